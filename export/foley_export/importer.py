"""Creates a bundle from published files according to an `import_plan.Plan`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from foley.bundle import file_sha256
from foley.errors import CheckpointError
from foley.manifest import Source
from foley_export import make
from foley_export.checkpoint import shorten
from foley_export.import_plan import Origin, Plan
from foley_export.networks import NETWORKS
from foley_export.networks.network import Network


def write(plan: Plan, destination: Path) -> Iterator[str]:
    """Write the bundle, with one network in memory at a time.

    Yields:
        The name of every stage as its work starts.

    Raises:
        CheckpointError: If weights are not finite; nothing is left behind.
        OutputError: If the folder exists or cannot be written.
    """

    def imported(stage: str) -> Network:
        network = NETWORKS[stage](plan.manifest)
        _load(network, plan.origins[stage])
        return network

    sources = tuple(Source(name=path.name, sha256=file_sha256(path)) for path in plan.sources)
    manifest = plan.manifest.model_copy(update={"sources": sources})
    yield from make.write(manifest, imported, plan.tokenizer, destination)


@torch.no_grad()
def _load(network: Network, origins: Mapping[str, Origin]) -> None:
    """Load the weights of `network` in place as float32; integer tables it computes itself must equal the file's."""
    faults: dict[str, None] = {}
    for key, (file, name) in origins.items():
        theirs, ours = file.tensors[name], network.tensor(key)
        if not ours.is_floating_point():
            if not torch.equal(theirs, ours):
                faults[f"{name} of {file.path} differs from the table that the network computes"] = None
            continue
        theirs = theirs.to(torch.float32)
        if not theirs.isfinite().all():
            faults[f"{name} of {file.path} has values that are not finite"] = None
        ours.copy_(network.from_checkpoint(key, theirs))
    if faults:
        raise CheckpointError(f"{shorten(list(faults))}; copy or download the file again")
