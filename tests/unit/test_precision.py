"""Half-precision graphs: which operations they contain, and the error of their outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from foley.bundle import Half, graph_file, read, weights_file
from foley.stages import networks
from foley_export.make import half_errors, load_network, save_weights
from foley_export.networks.clap_frontend import BicubicResize
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.onnx_export import export
from foley_export.precision import FULL_PRECISION_OPS, HALF
from foley_export.presets import TINY
from foley_export.rounding import Rounded
from foley_export.runtime import Graph
from foley_export.weights import fill

PRECISIONS: tuple[Half, ...] = ("fp16", "bf16")
HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@pytest.mark.parametrize("stage", networks(TINY))
def test_half_graph_is_strongly_typed_and_matches_contract(tiny_bundle: Path, stage: str) -> None:
    bundle = read(tiny_bundle)
    path = bundle.path(graph_file(stage, "fp16"))
    onnx.checker.check_model(path, full_check=True)  # every type matches without implicit casts
    half, single = ir.load(path).graph, ir.load(bundle.path(graph_file(stage))).graph
    for ours, contract in ((half.inputs, single.inputs), (half.outputs, single.outputs)):
        assert [(v.name, v.dtype, v.shape) for v in ours] == [(v.name, v.dtype, v.shape) for v in contract]
    external = {value.const_value.location for value in half.initializers.values() if is_external(value)}
    assert external <= {Path(weights_file(stage)).name}  # no second copy of the weights


def is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


@pytest.mark.parametrize("stage", networks(TINY))
def test_heavy_operations_are_half_precision(tiny_bundle: Path, stage: str) -> None:
    network = load_network(read(tiny_bundle), stage)
    graph = ir.load(read(tiny_bundle).path(graph_file(stage, "fp16"))).graph
    for node in graph:
        if node.op_type in FULL_PRECISION_OPS:
            assert all(value is None or value.dtype not in HALF.values() for value in node.inputs)
    heavy = [node for node in graph if node.op_type in HEAVY]
    in_half = [node for node in heavy if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16]
    if stage == "video2rms":
        assert not in_half  # the predicted class must not depend on rounding
    else:
        assert len(in_half) > 0.7 * len(heavy)
    assert network.full_precision <= {name for name, _ in network.named_modules()}  # all names exist


def test_half_errors_are_small_without_overflow(tiny_bundle: Path) -> None:
    errors = dict(half_errors(tiny_bundle, "fp16"))
    assert set(errors) == set(networks(TINY))
    for stage, error in errors.items():
        exact = stage == "video2rms"
        assert all((relative == 0) if exact else 1e-5 < relative < 1e-2 for relative in error.relative.values())
        assert error.headroom > 10


class Linear(Network):
    """A linear layer with the contract of a stage."""

    stage_name = "vocoder"

    def __init__(self, weight: float) -> None:
        torch.nn.Module.__init__(self)
        self.stage = networks(TINY)["vocoder"]
        self.layer = torch.nn.Linear(64, 160, bias=False)
        torch.nn.init.constant_(self.layer.weight, weight)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        return key

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.layer(mel).flatten(1)


def exported(network: Network, folder: Path, precision: Half) -> Rounded:
    weights, graph = folder / "vocoder.safetensors", folder / f"vocoder.{precision}.onnx"
    save_weights(network, weights)
    export(network, weights, graph, precision)
    return Rounded(graph)


@pytest.mark.parametrize(("precision", "digits"), [("fp16", 11), ("bf16", 8)])
def test_rounding_matches_data_type(tmp_path: Path, precision: Half, digits: int) -> None:
    """A sum of 64 products of representable numbers is exact and then rounded once."""
    rounded = exported(Linear(1.0), tmp_path, precision)
    mel = np.zeros((1, 1024, 64), np.float32)
    mel[..., 0], mel[..., 1] = 1.0, 2.0**-digits * 1.5  # the second is partly lost
    expected = mel.sum(-1, keepdims=True).repeat(160, 2).reshape(1, -1)
    to_type = torch.from_numpy(expected).to({"fp16": torch.float16, "bf16": torch.bfloat16}[precision]).float().numpy()
    assert rounded.error([mel], [to_type]).relative == {"waveform": 0.0}
    assert rounded.error([mel], [expected]).relative["waveform"] == pytest.approx(2.0**-digits / 2, rel=0.01)


@pytest.mark.parametrize(("precision", "fits"), [("fp16", False), ("bf16", True)])
def test_overflow_is_detected(tmp_path: Path, precision: Half, fits: bool) -> None:
    """bfloat16 has the range of float32; float16 ends at 65,504."""
    rounded = exported(Linear(100.0), tmp_path, precision)
    mel = np.full((1, 1024, 64), 20.0, np.float32)
    error = rounded.error([mel], [np.full((1, 163_840), 128_000.0, np.float32)])
    assert error.peak == 128_000
    assert (error.headroom > 1) == fits
    assert np.isfinite(error.relative["waveform"]) == fits


def test_full_guidance_batch_matches_guided_rows() -> None:
    """On a GPU, every row runs both branches, with the same noise as without."""
    network = fill(Denoiser(TINY), "branches:")
    inputs = list(network.sample_inputs(batch=3))
    inputs[5] = torch.tensor([[1.0], [3.5], [7.0]])
    with torch.inference_mode():
        some = network(*inputs)
        network.for_gpu()
        both = network(*inputs)
    for ours, expected in zip(both[0], some[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1][1:], some[1][1:], rtol=1e-4, atol=1e-4)


def test_gpu_graph_has_no_data_dependent_shapes(tiny_bundle: Path) -> None:
    single, half = (ir.load(read(tiny_bundle).path(graph_file("denoiser", one))).graph for one in ("fp32", "fp16"))
    assert "NonZero" in {node.op_type for node in single}
    assert "NonZero" not in {node.op_type for node in half}


def test_clap_resize_matches_torch_bicubic() -> None:
    spectrogram = torch.randn(2, 1001, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(spectrogram[:, None], (1024, 64), mode="bicubic", align_corners=True)
    torch.testing.assert_close(BicubicResize(1001, 1024)(spectrogram), expected[:, 0], rtol=1e-5, atol=1e-5)


def test_onnx_runtime_understates_rounding_error(tiny_bundle: Path) -> None:
    """Reason for `Rounded`: ONNX Runtime computes in float32 between nodes, which understates the error."""
    bundle = read(tiny_bundle)
    single, half = (bundle.path(graph_file("vae_decoder", one)) for one in ("fp32", "fp16"))
    inputs = [tensor.numpy() for tensor in load_network(bundle, "vae_decoder").sample_inputs()]
    (expected,), (found,) = Graph(single)(*inputs), Graph(half)(*inputs)
    runtime_error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert runtime_error < Rounded(half).error(inputs, [expected]).relative["mel"]
