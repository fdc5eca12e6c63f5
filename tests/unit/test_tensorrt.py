"""TensorRT engines, without TensorRT: optimization profiles, supported operators, and reuse of engines."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from foley.bundle import Bundle, engine_file, graph_file, read
from foley.errors import BundleError
from foley.stages import networks
from foley_export.cli import app
from foley_export.presets import DEMO, PAPER, TINY
from foley_export.tensorrt.engine import Origin, decide, origin, sidecar, write
from foley_export.tensorrt.plan import Shapes, engine_plans
from foley_export.tensorrt.support import violations


@pytest.mark.parametrize("stage", networks(TINY))
def test_graphs_use_only_supported_operators(tiny_bundle: Path, stage: str) -> None:
    assert violations(tiny_bundle / graph_file(stage, "fp16")) == []


def test_cpu_graph_has_data_dependent_shapes(tiny_bundle: Path) -> None:
    found = violations(tiny_bundle / graph_file("denoiser"))
    assert any(problem.startswith("NonZero") and "depends on values" in problem for problem in found)


def graph_of(path: Path, nodes: list[onnx.NodeProto], dtype: int = TensorProto.FLOAT, opset: int = 20) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", dtype, [2, 3, 8, 8])], [value("y", dtype, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("own", 1)])
    path.write_bytes(model.SerializeToString())
    return path


AXES = helper.make_node("Shape", ["x"], ["axes"])
PLANTED = [
    ("operator", [helper.make_node("Det", ["x"], ["y"])], TensorProto.FLOAT, "operator is not supported"),
    ("domain", [helper.make_node("Fast", ["x"], ["y"], domain="own")], TensorProto.FLOAT, "operators of own"),
    ("type", [helper.make_node("Sigmoid", ["x"], ["y"])], TensorProto.DOUBLE, "DOUBLE is not supported"),
    ("bytes", [helper.make_node("Transpose", ["x"], ["y"])], TensorProto.UINT8, "UINT8 is not supported"),
    ("values", [helper.make_node("NonZero", ["x"], ["y"])], TensorProto.FLOAT, "depends on values"),
    ("axes", [AXES, helper.make_node("ReduceSum", ["x", "axes"], ["y"])], TensorProto.FLOAT, "`axes` must be known"),
    (
        "resize",
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="cubic")],
        TensorProto.FLOAT,
        "`mode` must be nearest or linear",
    ),
    (
        "dilation",
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])],
        TensorProto.FLOAT,
        "`dilations` must be all ones",
    ),
    (
        "indices",
        [helper.make_node("MaxPool", ["x"], ["z", "y"], kernel_shape=[2, 2])],
        TensorProto.FLOAT,
        "only the first 1 outputs",
    ),
]


@pytest.mark.parametrize(("nodes", "dtype", "problem"), [case[1:] for case in PLANTED], ids=[c[0] for c in PLANTED])
def test_unsupported_features_are_found(tmp_path: Path, nodes: list, dtype: int, problem: str) -> None:
    found = violations(graph_of(tmp_path / "g.onnx", nodes, dtype))
    assert any(problem in one for one in found), found


def test_newer_opset_is_unsupported(tmp_path: Path) -> None:
    found = violations(graph_of(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], opset=26))
    assert "opset 26 is not supported" in found


@pytest.mark.parametrize("preset", [PAPER, TINY, DEMO], ids=lambda preset: preset.name)
@pytest.mark.parametrize("tuning", ["latency", "throughput"])
def test_profiles_cover_the_contract(preset, tuning) -> None:
    plans = engine_plans(preset, "fp16", tuning)
    assert set(plans) == set(networks(preset))
    for name, stage in networks(preset).items():
        plan = plans[name]
        assert plan.graph == f"networks/{name}.fp16.onnx"
        assert list(plan.shapes) == [tensor.name for tensor in stage.inputs]
        for tensor in stage.inputs:
            shapes, contract = plan.shapes[tensor.name], stage.shape(tensor)
            for smallest, usual, largest, size in zip(shapes.min, shapes.opt, shapes.max, contract, strict=True):
                assert 1 <= smallest <= usual <= largest
                assert (smallest == largest) == isinstance(size, int)
        if stage.max_batch:
            usual = 1 if tuning == "latency" else stage.max_batch
            firsts = {(shapes.min[0], shapes.opt[0], shapes.max[0]) for shapes in plan.shapes.values()}
            assert firsts == {(1, usual, stage.max_batch)}


def test_profiles_of_paper_preset() -> None:
    latency, throughput = (engine_plans(PAPER, "bf16", tuning) for tuning in ("latency", "throughput"))
    assert latency["denoiser"].shapes["latents"] == Shapes((1, 8, 256, 16), (1, 8, 256, 16), (16, 8, 256, 16))
    assert throughput["denoiser"].shapes["guidance"] == Shapes((1, 1), (16, 1), (16, 1))
    assert latency["optical_flow"].shapes["frames"] == Shapes((2, 256, 344, 3), (17, 256, 344, 3), (17, 256, 344, 3))
    assert latency["flow_features"].shapes["flow"].min == (1, 256, 344, 2)
    assert latency["clap_text"].shapes["input_ids"] == Shapes((1, 1), (1, 16), (16, 512))
    assert (latency["vocoder"].optimization_level, throughput["vocoder"].optimization_level) == (5, 3)


@pytest.fixture
def bundle_and_origin(tiny_bundle: Path) -> tuple[Bundle, Origin]:
    """The bundle `tiny`, and the origin of an engine of its vocoder on some GPU."""
    bundle = read(tiny_bundle)
    plan = engine_plans(bundle.manifest, "fp16", "latency")["vocoder"]
    return bundle, origin(bundle, plan, "NVIDIA H100", "9.0", "11.4.0")


def test_engine_is_reused_only_if_unchanged(tmp_path: Path, bundle_and_origin: tuple[Bundle, Origin]) -> None:
    _, engine_origin = bundle_and_origin
    path = tmp_path / engine_file("vocoder", "fp16", "latency")
    assert decide(path, engine_origin) == ("build", "it does not exist yet")
    write(path, b"engine", engine_origin)
    assert decide(path, engine_origin) == ("reuse", "nothing has changed")
    for change, decision, reason in (
        ({"gpu": "NVIDIA L4"}, "build", "it was built for GPU NVIDIA H100, this is NVIDIA L4"),
        ({"compute_capability": "8.9"}, "build", "it was built for compute capability 9.0, this is 8.9"),
        ({"tensorrt": "11.5.0"}, "build", "it was built for TensorRT 11.4.0, this is 11.5.0"),
        ({"graph_sha256": "0"}, "build", "its graph has changed"),
        (
            {"plan": {**engine_origin.plan, "optimization_level": 1}},
            "build",
            "it was built for other shapes or settings",
        ),
        ({"weights_sha256": "0"}, "refit", "only its weights have changed"),
        ({"weights_sha256": "0", "graph_sha256": "0"}, "build", "its graph has changed"),
    ):
        assert decide(path, engine_origin.model_copy(update=change)) == (decision, reason)


def test_damaged_engine_is_rebuilt(tmp_path: Path, bundle_and_origin: tuple[Bundle, Origin]) -> None:
    _, engine_origin = bundle_and_origin
    path = tmp_path / "vocoder.plan"
    write(path, b"engine", engine_origin)
    path.write_bytes(b"engin")
    assert decide(path, engine_origin) == ("build", f"{path} is damaged")
    for text in ("", "{}", "[1", json.dumps({"gpu": 1})):
        sidecar(path).write_text(text)
        assert decide(path, engine_origin) == ("build", f"{sidecar(path)} cannot be read")


def test_origin_hashes_the_files(bundle_and_origin: tuple[Bundle, Origin]) -> None:
    bundle, engine_origin = bundle_and_origin
    graph = bundle.path(graph_file("vocoder", "fp16"))
    assert engine_origin.graph_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest()
    plan = engine_plans(bundle.manifest, "bf16", "latency")["vocoder"]
    with pytest.raises(BundleError, match="foley-export onnx --precision"):
        origin(bundle, plan, "NVIDIA H100", "9.0", "11.4.0")


def test_check_runs_without_tensorrt_and_reports_missing_graphs(tiny_bundle: Path) -> None:
    checked = CliRunner().invoke(app, ["tensorrt", str(tiny_bundle), "--check"])
    assert checked.exit_code == 0, checked.output
    assert "supports all operators of the fp16 graphs" in checked.output
    missing = CliRunner().invoke(app, ["tensorrt", str(tiny_bundle), "--check", "--precision", "bf16"])
    assert "foley-export onnx" in str(missing.exception)


def test_missing_tensorrt_is_reported(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(app, ["tensorrt", str(tiny_bundle)])
    assert any(word in str(result.exception) for word in ("pip install 'tensorrt>=11,<12'", "PyTorch finds no GPU"))


def test_inlined_graph_has_only_standard_operators(tiny_bundle: Path) -> None:
    """The graph that the builder passes to TensorRT has its functions inlined."""
    from foley_export.tensorrt.build import _inlined

    model = onnx.load_model_from_string(_inlined(tiny_bundle / graph_file("denoiser", "fp16")))
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
