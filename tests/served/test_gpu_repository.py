"""Model repositories for GPUs in a real Triton, which accepts every configuration and produces the right sound.

Only the parts that need a GPU are replaced: the two backends (see `gpu_backend`) and the placement of instances.
"""

import os
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2

from foley.bundle import Bundle, engine_file, graph_file, read
from foley.envelope import frames
from foley.options import GenerateOptions
from foley.stages import networks
from foley_export.presets import TINY
from foley_pipeline.cache import Cache
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.rms2sound import Loop
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from foley_server.launcher import gpu, installation
from foley_server.launcher.gpu import Target
from foley_server.launcher.triton import serve
from harness.settled import settled

SAMPLES = 30_000
ENVELOPE = np.abs(np.sin(np.arange(frames(SAMPLES / 16_000)) / 20)).astype(np.float32)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like /opt/tritonserver in the official container, from the parts of the wheel."""
    found, folder = installation.find(), tmp_path_factory.mktemp("tritonserver")
    assert found.stub
    (folder / "bin").mkdir()
    (folder / "bin" / "tritonserver").symlink_to(found.binary)
    shutil.copytree(found.python_backend, folder / "backends" / "python")
    shutil.copy(found.stub, folder / "backends" / "python")
    for backend in ("onnxruntime", "tensorrt"):
        (folder / "backends" / backend).mkdir()
        shutil.copy(Path(__file__).with_name("gpu_backend.py"), folder / "backends" / backend / "model.py")
    (folder / "caches").symlink_to(found.caches)
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle `tiny` with engines that contain the paths of their graphs."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    for stage in networks(TINY):
        engine = folder / engine_file(stage, "fp16", "latency")
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_text(str(folder / graph_file(stage, "fp16")))
    return read(folder)


@pytest.mark.parametrize("target", [pytest.param("cuda", marks=pytest.mark.long), "tensorrt"])
def test_gpu_repository_loads_and_matches_float32(
    backend: TritonBackend,
    official: Path,
    bundle: Bundle,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(installation, "OFFICIAL", official)
    monkeypatch.setattr(gpu, "KIND", model_config_pb2.ModelInstanceGroup.KIND_CPU)
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(map(str, installation.find().libraries)))
    options, prompt = GenerateOptions(text="a stick hits wood", steps=3, seed=5), Prompt("a stick hits wood")
    request = GenerationRequest(envelope=EnvelopeInput(ENVELOPE, SAMPLES), options=options)
    expected = backend.generate(request)
    cache = Cache(tmp_path)
    TritonBackend(backend.triton, cache=cache).embed_prompt(prompt)
    serving = serve(repository / "model_repository", bundle, gpu=gpu.Gpu(target))
    with serving as server, TritonClient(server.endpoints.grpc) as triton:
        assert triton.ready()
        found = {loop: TritonBackend(triton, loop=loop).generate(request).waveform for loop in get_args(Loop)}
        assert triton.versions.items() >= {"target": target, "precision": "fp16"}.items()
        embedded = settled(lambda: int(triton.statistics("clap_text")["inference_count"]))
        TritonBackend(triton, cache=cache).embed_prompt(prompt)  # not a hit for the embedding computed on the CPU
        assert settled(lambda: int(triton.statistics("clap_text")["inference_count"])) == embedded + 2
    np.testing.assert_allclose(found["server"], found["client"], atol=1e-5)
    error = np.linalg.norm(found["client"] - expected.waveform) / np.linalg.norm(expected.waveform)
    assert 0 < error < 0.02  # the error of half precision
