"""Making a bundle: seeded weights first, then the graphs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from foley import bundle as bundles
from foley.bundle import TOKENIZER, Precision, graph_file, weights_file
from foley.errors import BundleError, CheckpointError
from foley.manifest import Manifest, Source
from foley.stages import networks, weighted_networks
from foley_export.bundle_writer import new_bundle, write_manifest
from foley_export.networks import NETWORKS
from foley_export.networks.bn_inception import RgbFeatures
from foley_export.networks.network import Network
from foley_export.networks.video2rms import Video2RMS
from foley_export.onnx_export import export
from foley_export.rounding import HalfError, Rounded
from foley_export.runtime import Graph
from foley_export.tokenizer import byte_tokenizer
from foley_export.weights import fill
from foley_export.wiring import wire


def init(preset: Manifest, seed: int, destination: Path) -> Iterator[str]:
    """Make a bundle of random weights, but for Video2RMS (see `wiring`); yields the name of every stage as it is begun.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    salt = f"{seed}:"

    def seeded(stage: str) -> Network:
        network = fill(NETWORKS[stage](preset), salt)
        if isinstance(network, Video2RMS):
            wire(network, fill(RgbFeatures(preset), salt))
        return network

    manifest = preset.model_copy(update={"sources": (Source(name=f"seed {seed}"),)})
    yield from write(manifest, seeded, byte_tokenizer(preset.clap_text), destination)


def write(
    manifest: Manifest,
    network: Callable[[str], Network],
    tokenizer: Tokenizer,
    destination: Path,
    half: bool = False,
) -> Iterator[str]:
    """Make a bundle, still without graphs, of `network(stage)` for every stage; yields the stages as they are begun.

    Only one network is in memory at a time. With `half`, weights are stored as float16.

    Raises:
        CheckpointError: see `save_weights`; nothing is left behind.
        OutputError: the folder exists or cannot be written.
    """
    with new_bundle(destination) as folder:
        for stage in weighted_networks(manifest):
            yield stage
            save_weights(network(stage), folder / weights_file(stage), half)
        (folder / TOKENIZER).parent.mkdir()
        tokenizer.save(str(folder / TOKENIZER))
        write_manifest(folder, manifest)


def save_weights(network: Network, path: Path, half: bool = False) -> None:
    """Write the state of `network` as safetensors; with `half`, its floats as float16.

    Raises:
        CheckpointError: with `half`, a value that float16 cannot hold; nothing is written.
    """
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    if half:
        weights = {key: _half(key, tensor) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    path.chmod(0o644)  # safetensors makes files that only their owner reads


def _half(key: str, tensor: torch.Tensor) -> torch.Tensor:
    halved = tensor.half()
    if not halved.isfinite().all():
        raise CheckpointError(
            f"{key} does not fit into float16: it reaches {tensor.abs().max():g}; store it in float32"
        )
    return halved


def load_network(bundle: bundles.Bundle, stage: str) -> Network:
    """The torch module of a stage, with the bundle's weights; it computes in float32, also with weights of float16.

    Raises:
        BundleError: the weights are missing, damaged, or those of another network.
    """
    path = bundle.path(weights_file(stage))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"cannot read {path}: {error}") from error
    network = NETWORKS[stage](bundle.manifest)
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if {key: tensor.shape for key, tensor in weights.items()} != expected:
        raise BundleError(f"{path} does not hold the weights of {stage} that the bundle's manifest describes")
    network.load_state_dict(weights)
    return network.eval()


def make_graphs(root: Path, precision: Precision = "fp32") -> Iterator[str]:
    """Export every network of the bundle at `root`; yields the name of every stage as it is begun.

    Raises:
        BundleError: see `foley.bundle.read`, `foley.bundle.verify` and `load_network`.
    """
    bundle = bundles.read(root)
    bundles.verify(bundle)
    for stage in networks(bundle.manifest):
        yield stage
        destination = bundle.path(graph_file(stage, precision))
        temporary = destination.with_suffix(".tmp")
        try:
            export(load_network(bundle, stage), bundle.path(weights_file(stage)), temporary, precision)
            temporary.replace(destination)
        finally:
            temporary.unlink(missing_ok=True)
    write_manifest(root, bundle.manifest)


def half_errors(root: Path, precision: Precision) -> Iterator[tuple[str, HalfError]]:
    """What half precision does to every network of the bundle at `root`, on random inputs.

    Raises:
        BundleError: the bundle has no graphs in float32, or none in this precision.
    """
    bundle = bundles.read(root)
    bundle.need_graphs()
    bundle.need_graphs(precision)
    for stage in networks(bundle.manifest):
        inputs = [tensor.numpy() for tensor in NETWORKS[stage](bundle.manifest).sample_inputs()]
        rounded = Rounded(bundle.path(graph_file(stage, precision)))
        yield stage, rounded.error(inputs, Graph(bundle.path(graph_file(stage)))(*inputs))
