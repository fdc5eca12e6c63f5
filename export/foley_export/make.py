"""Creates bundles: first the weights, then the graphs."""

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
    """Create a bundle with seeded random weights, except for Video2RMS (see `wiring`).

    Yields:
        The name of every stage as its work starts.

    Raises:
        OutputError: If the folder exists or cannot be written.
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
    """Create a bundle without graphs from `network(stage)` for every stage with weights.

    Only one network is in memory at a time.

    Args:
        manifest: The bundle's manifest; file hashes are added.
        network: Builds the network of a stage, with its weights.
        tokenizer: The tokenizer of the text encoder.
        destination: Folder to create.
        half: Store weights as float16.

    Yields:
        The name of every stage as its work starts.

    Raises:
        CheckpointError: See `save_weights`; nothing is left behind.
        OutputError: If the folder exists or cannot be written.
    """
    with new_bundle(destination) as folder:
        for stage in weighted_networks(manifest):
            yield stage
            save_weights(network(stage), folder / weights_file(stage), half)
        (folder / TOKENIZER).parent.mkdir()
        tokenizer.save(str(folder / TOKENIZER))
        write_manifest(folder, manifest)


def save_weights(network: Network, path: Path, half: bool = False) -> None:
    """Write the state of `network` as safetensors; with `half`, floats as float16.

    Raises:
        CheckpointError: If a value does not fit into float16; nothing is written.
    """
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    if half:
        weights = {
            key: _to_float16(key, tensor) if tensor.is_floating_point() else tensor for key, tensor in weights.items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    path.chmod(0o644)  # safetensors creates files that only the owner can read


def _to_float16(key: str, tensor: torch.Tensor) -> torch.Tensor:
    converted = tensor.half()
    if not converted.isfinite().all():
        raise CheckpointError(
            f"{key} exceeds the range of float16: its largest value is {tensor.abs().max():g}; store it as float32"
        )
    return converted


def load_network(bundle: bundles.Bundle, stage: str) -> Network:
    """Return the torch module of a stage with the bundle's weights, in float32 even if they are stored as float16.

    Raises:
        BundleError: If the weights are missing or damaged, or belong to another network.
    """
    path = bundle.path(weights_file(stage))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"cannot read {path} ({error}); create the bundle again") from error
    network = NETWORKS[stage](bundle.manifest)
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if {key: tensor.shape for key, tensor in weights.items()} != expected:
        raise BundleError(
            f"{path} does not contain the weights of {stage} described by the manifest; create the bundle again"
        )
    network.load_state_dict(weights)
    return network.eval()


def make_graphs(root: Path, precision: Precision = "fp32") -> Iterator[str]:
    """Export every network of the bundle at `root` to ONNX.

    Yields:
        The name of every stage as its work starts.

    Raises:
        BundleError: See `foley.bundle.read`, `foley.bundle.verify` and `load_network`.
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
    """Measure the half-precision error of every network of the bundle at `root`, on random inputs.

    Yields:
        Stage name and error.

    Raises:
        BundleError: If the graphs in float32 or in this precision are missing.
    """
    bundle = bundles.read(root)
    bundle.need_graphs()
    bundle.need_graphs(precision)
    for stage in networks(bundle.manifest):
        inputs = [tensor.numpy() for tensor in NETWORKS[stage](bundle.manifest).sample_inputs()]
        rounded = Rounded(bundle.path(graph_file(stage, precision)))
        yield stage, rounded.error(inputs, Graph(bundle.path(graph_file(stage)))(*inputs))
