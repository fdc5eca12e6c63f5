"""Configurations for GPUs parse, and satisfy the rules that Triton and its backends enforce."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from foley.bundle import MANIFEST, TOKENIZER, Bundle, graph_file, read, weights_file
from foley.errors import BundleError, SettingError
from foley.manifest import Manifest
from foley.stages import networks, stages
from foley_client.render.engine import Threads
from foley_client.render.row import Row
from foley_client.render.server import Server
from foley_client.render.storage import Output
from foley_client.render.task import row_key
from foley_export.presets import DEMO, PAPER, TINY
from foley_pipeline.triton import TritonClient
from foley_server.cli import app
from foley_server.launcher.gpu import CUDA_GRAPHS, Gpu
from foley_server.launcher.repository import lay_out
from harness.models import REPOSITORY, read_config, served

Kind = model_config_pb2.ModelInstanceGroup
TARGETS = [Gpu(target, "fp16", tuning) for target in ("cuda", "tensorrt") for tuning in ("latency", "throughput")]


def gpu_bundle(root: Path, preset: Manifest, gpu: Gpu) -> Bundle:
    """Create a bundle that lists everything served on a GPU, with tiny placeholder files."""
    names = [file(stage) for stage in networks(preset) for file in (graph_file, gpu.source, weights_file)]
    for name in {*names, TOKENIZER}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    files = {name: "0" * 64 for name in names if not name.endswith(".plan")}
    (root / MANIFEST).write_text(preset.model_copy(update={"files": files}).model_dump_json())
    return read(root)


def broken_rules(config: model_config_pb2.ModelConfig) -> list[str]:
    """Return the rules of Triton (model_config_utils.cc) and its backends that the configuration of a model breaks."""
    broken = []
    inputs = {one.name: one for one in config.input}
    batches = config.max_batch_size
    if config.platform == "ensemble":
        for field in ("instance_group", "model_warmup"):
            broken += [f"an ensemble with {field}"] if len(getattr(config, field)) else []
        broken += ["an ensemble that batches"] if config.HasField("dynamic_batching") else []
        return broken
    if config.HasField("dynamic_batching"):
        broken += ["batching without batches"] if batches < 1 else []
        broken += [f"prefers {n}" for n in config.dynamic_batching.preferred_batch_size if not 0 < n <= batches]
    for group in config.instance_group:
        broken += ["no instances"] if group.count < 1 else []
        broken += ["GPUs named for a processor"] if group.kind == Kind.KIND_CPU and group.gpus else []
        broken += ["a plan on a processor"] if config.backend == "tensorrt" and group.kind != Kind.KIND_GPU else []
    for warmup in config.model_warmup:
        broken += ["a warm-up of no batch"] if batches and not 1 <= warmup.batch_size <= batches else []
        broken += ["a warm-up batch without batches"] if not batches and warmup.batch_size else []
        broken += ["a warm-up that is not complete"] if set(warmup.inputs) != set(inputs) else []
        for name, warmup_input in warmup.inputs.items():
            broken += _misfits(f"warm-up {name}", warmup_input.dims, inputs[name].dims)
            broken += [f"warm-up type of {name}"] if warmup_input.data_type != inputs[name].data_type else []
    cuda = config.optimization.cuda
    broken += ["CUDA graphs outside TensorRT"] if cuda.graphs and config.backend != "tensorrt" else []
    for spec in cuda.graph_spec:
        broken += ["a CUDA graph of no batch"] if not 1 <= spec.batch_size <= batches else []
        broken += ["a CUDA graph that is not complete"] if set(spec.input) != set(inputs) else []
        for name, shape in spec.input.items():
            broken += _misfits(f"CUDA graph {name}", shape.dim, inputs[name].dims)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    broken += ["accelerators outside ONNX Runtime"] if accelerators and config.backend != "onnxruntime" else []
    return broken


def _misfits(what, given, contract):
    fits = len(given) == len(contract) and all(
        one > 0 and other in (-1, one) for one, other in zip(given, contract, strict=True)
    )
    return [] if fits else [f"{what}: {list(given)} is not {list(contract)}"]


@pytest.mark.parametrize("preset", [PAPER, TINY, DEMO], ids=lambda preset: preset.name)
@pytest.mark.parametrize("gpu", TARGETS, ids=lambda gpu: f"{gpu.target}-{gpu.tuning}")
def test_configurations_satisfy_tritons_rules(tmp_path, preset, gpu):
    bundle = gpu_bundle(tmp_path / "bundle", preset, gpu)
    folder = lay_out(REPOSITORY, bundle, tmp_path / "models", gpu)
    for name, stage in stages(preset).items():
        config = read_config(folder / name)
        assert broken_rules(config) == []
        files = {path.name: path.read_text() for path in served(folder / name).iterdir()}
        if stage.kind == "network":
            assert config.backend == {"cuda": "onnxruntime", "tensorrt": "tensorrt"}[gpu.target]
            assert [group.kind for group in config.instance_group] == [Kind.KIND_GPU]
            assert files.pop(config.default_model_filename) == gpu.source(name)
            beside = {Path(weights_file(name)).name: weights_file(name)} if gpu.target == "cuda" else {}
            assert files == beside
            assert len(config.model_warmup) == (2 if stage.max_batch > 1 else 1)
            graphs = {spec.batch_size for spec in config.optimization.cuda.graph_spec}
            captured = gpu.target == "tensorrt" and name in CUDA_GRAPHS
            assert graphs == (set(range(1, stage.max_batch + 1)) if captured else set())
        else:  # as on the CPU
            assert set(files) == ({"model.py"} if stage.kind == "python" else set())
            assert not config.HasField("optimization")


def test_only_throughput_tuning_waits_for_full_batches(tmp_path):
    for gpu in TARGETS:
        name = f"{gpu.target}-{gpu.tuning}"
        folder = lay_out(REPOSITORY, gpu_bundle(tmp_path / name, TINY, gpu), tmp_path / f"{name}-models", gpu)
        batching = read_config(folder / "denoiser").dynamic_batching
        assert (batching.max_queue_delay_microseconds > 0) == (gpu.tuning == "throughput")
        assert list(batching.preferred_batch_size) == ([16] if gpu.tuning == "throughput" else [])


@pytest.mark.parametrize(
    ("gpu", "command"),
    [
        (Gpu("cuda", "bf16"), "foley-export onnx .* --precision bf16"),
        (Gpu("tensorrt", "fp16", "throughput"), "foley-export tensorrt .* --precision fp16 --profile throughput"),
    ],
)
def test_missing_files_are_named_with_the_command_that_builds_them(tmp_path, gpu, command):
    bundle = gpu_bundle(tmp_path / "bundle", TINY, Gpu("cuda", "fp16"))
    with pytest.raises(BundleError, match=rf"denoiser.*{command}"):
        lay_out(REPOSITORY, bundle, tmp_path / "models", gpu)


def test_rules_detect_planted_faults(tmp_path):
    """The rules detect a batch that is too large, a missing input, and a plan on a CPU."""
    gpu = Gpu("tensorrt", "fp16")
    folder = lay_out(REPOSITORY, gpu_bundle(tmp_path / "bundle", TINY, gpu), tmp_path / "models", gpu)
    config = read_config(folder / "denoiser")
    config.max_batch_size = 8
    del config.model_warmup[0].inputs["guidance"]
    config.instance_group[0].kind = Kind.KIND_CPU
    config.instance_group[0].gpus[:] = [0]
    broken = broken_rules(config)
    assert {"a CUDA graph of no batch", "a warm-up that is not complete", "a plan on a processor"} <= set(broken)
    assert {"a warm-up of no batch", "GPUs named for a processor"} <= set(broken)


def test_embedded_triton_rejects_gpu_target(tiny_bundle, monkeypatch, tmp_path):
    """It has no GPU backends; the message says which installations do."""
    monkeypatch.setattr("foley_server.launcher.installation.OFFICIAL", tmp_path)
    result = CliRunner().invoke(app, ["run", "--bundle", str(tiny_bundle), "--target", "cuda"])
    assert "no Triton with backends for GPUs" in str(result.exception)


@contextmanager
def describe_server(models: Path) -> Iterator[str]:
    """Serve a KServe endpoint that describes a repository as Triton does but runs no model; yields its address."""

    class Endpoint(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerReady(self, request, context):
            return service_pb2.ServerReadyResponse(ready=True)

        def ServerMetadata(self, request, context):
            return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

        def ModelConfig(self, request, context):
            return service_pb2.ModelConfigResponse(config=read_config(models / request.name))

    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Endpoint(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_server_identity_includes_platform(tmp_path):
    """With one bundle on several platforms, no two share cache entries, rows of the render farm, or a render."""
    platforms = [None, *(Gpu("cuda", one) for one in ("fp16", "bf16"))]
    platforms += [Gpu("tensorrt", "fp16", tuning) for tuning in ("latency", "throughput")]
    with ExitStack() as servers:

        def serve(name, gpu):
            folder = lay_out(REPOSITORY, bundle, tmp_path / name, gpu)
            return servers.enter_context(describe_server(folder))

        root = tmp_path / "bundle"
        for gpu in platforms:
            bundle = gpu_bundle(root, TINY, gpu or Gpu("cuda", "fp16"))
        files = [graph_file(stage, one) for stage in networks(TINY) for one in ("fp32", "fp16", "bf16")]
        listed = dict.fromkeys((*files, TOKENIZER), "0" * 64)
        (root / MANIFEST).write_text(TINY.model_copy(update={"files": listed}).model_dump_json())
        bundle = read(root)
        urls = [serve(f"models-{i}", gpu) for i, gpu in enumerate(platforms)]
        (root / platforms[-1].source("vocoder")).write_text("built once more")
        urls.append(serve("rebuilt", platforms[-1]))

        folders = [*(tmp_path / f"models-{i}" for i in range(len(platforms))), tmp_path / "rebuilt"]
        assert len({served(folder / "generate").name for folder in folders}) == len(folders)
        versions = [servers.enter_context(TritonClient(url)).versions for url in urls]
        assert len({one["bundle_sha256"] for one in versions}) == 1
        assert versions[0].items() >= {"target": "cpu", "precision": "fp32"}.items()
        assert versions[3].items() >= {"target": "tensorrt", "precision": "fp16", "tuning": "latency"}.items()
        keys = {row_key(Row(video="a.mp4"), {"video": "hash"}, one) for one in versions}
        assert len(keys) == len(urls)

        output = Output(str(tmp_path / "out"), tmp_path)
        mixed = {url: Server(url, None, None, output, tmp_path) for url in urls[:2]}
        with pytest.raises(SettingError, match="different bundles"):
            Threads(mixed, 1)
        for server in mixed.values():
            server.close()
