"""The official sizes: exported, loaded and run through a real Triton, with the numbers of the torch modules."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from foley import bundle as bundles
from foley_client import embedded_triton
from foley_export.make import load_network

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_paper_preset_runs_through_triton(tmp_path: Path) -> None:
    root = tmp_path / "paper"
    subprocess.run([BIN / "foley-export", "init", root, "--preset", "paper"], check=True)
    subprocess.run([BIN / "foley-export", "onnx", root], check=True)
    bundle = bundles.read(root)
    with embedded_triton(root) as triton:
        for stage in ("optical_flow", "denoiser", "vocoder"):
            network = load_network(bundle, stage)
            inputs = network.sample_inputs(batch=1, lengths={"frames": 2})
            with torch.inference_mode():
                expected = network(*inputs).numpy().astype(np.float64)
            named = {tensor.name: array.numpy() for tensor, array in zip(network.stage.inputs, inputs, strict=True)}
            (actual,) = triton.infer(stage, **named).values()
            assert np.linalg.norm(actual - expected) <= 5e-4 * np.linalg.norm(expected), stage
