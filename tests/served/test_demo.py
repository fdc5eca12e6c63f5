"""The default bundle, served by default: optical flow is DIS, and the sound follows the predicted envelope."""

import json
import os
import subprocess
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from foley import bundle as bundles
from foley import envelope_file
from foley.dis_flow import DisFlow
from foley.envelope import measure, samples
from foley.manifest import DisFlowConfig
from foley.media import probe, read_frames
from foley_pipeline.triton import TritonClient

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


@pytest.fixture
def video(repository: Path) -> Path:
    return repository / "examples" / "steel.mp4"


def test_served_optical_flow_matches_dis(demo_triton: TritonClient, video: Path) -> None:
    config = demo_triton.manifest.optical_flow
    assert isinstance(config, DisFlowConfig)
    frames = np.stack(list(islice(read_frames(video), 5)))
    served = demo_triton.infer("optical_flow", frames=frames)["flow"]
    assert np.ptp(served) > 0
    np.testing.assert_array_equal(served, DisFlow(config).flow(frames))


def test_generate_follows_predicted_envelope(
    demo_triton: TritonClient, video: Path, repository: Path, tmp_path: Path
) -> None:
    outputs = [option for name in ("clip.mp4", "clip.wav", "curve.json") for option in ("-o", name)]
    command = [BIN / "foley", "generate", video, "--text", "a stick hits metal", "--server", demo_triton.url, *outputs]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "clip.mp4")) as result:
        assert len(result.streams.video) == len(result.streams.audio) == 1
        recipe = json.loads(result.metadata["foley_recipe"])
    assert recipe["bundle_sha256"] == bundles.read(repository / "bundles" / "demo").digest
    assert recipe["steps"] == demo_triton.manifest.sampling.steps
    sound, _ = soundfile.read(tmp_path / "clip.wav", dtype="float32")
    assert len(sound) == samples(probe(video).duration_s)
    requested = envelope_file.read(tmp_path / "curve.json")
    assert np.corrcoef(measure(sound), requested)[0, 1] > 0.7
