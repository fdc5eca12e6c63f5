"""The diffusion loop in the client and on the server gives the same sound, with and without batching."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from foley.envelope import frames
from foley.errors import EnvelopeError, InvalidInput, SettingError
from foley.options import GenerateOptions
from foley.sampler import Sampling
from foley_pipeline.progress import Progress
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from harness.settled import settled

SAMPLES = 30_000
ENVELOPE = np.abs(np.sin(np.arange(frames(SAMPLES / 16_000)) / 20)).astype(np.float32)


def request(sampling: Sampling, text: str = "a stick hits wood", **options: Any) -> GenerationRequest:
    chosen = GenerateOptions(text=text, **asdict(sampling), **options)
    return GenerationRequest(envelope=EnvelopeInput(ENVELOPE, SAMPLES), options=chosen)


def wave(backend: TritonBackend, sampling: Sampling) -> np.ndarray:
    return backend.generate(request(sampling)).waveform


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=4, seed=0),
        Sampling("ddim", steps=5, eta=1.0, seed=2**64 - 1),
        Sampling(steps=3, guidance=1.0, seed=7),
        Sampling(steps=1),
        Sampling(steps=6, timestep_spacing="karras", guidance_interval=(0.5, 8.0)),
    ],
    ids=["dpm++", "ddim eta 1", "guidance 1", "one step", "all switches"],
)
def test_client_and_server_loop_match(backend: TritonBackend, sampling: Sampling) -> None:
    in_client = wave(backend, sampling)
    in_server = wave(TritonBackend(backend.triton, loop="server"), sampling)
    assert in_client.shape == (SAMPLES,)
    assert np.isfinite(in_client).all()
    np.testing.assert_allclose(in_server, in_client, atol=1e-5)
    assert not np.allclose(wave(backend, Sampling(steps=sampling.steps, seed=3)), in_client, atol=1e-3)


def test_batching_steps_of_several_clients_preserves_sound(triton: TritonClient, backend: TritonBackend) -> None:
    """Triton's statistics show fewer executions than steps: steps that wait for the model are batched."""
    samplings = [Sampling("ddim" if seed % 2 else "dpm++", steps=15, seed=seed) for seed in range(4)]
    alone = [wave(backend, sampling) for sampling in samplings]
    before = settled(lambda: triton.statistics("denoiser"))
    with TritonClient(triton.url) as other, ThreadPoolExecutor(len(samplings)) as pool:
        together = list(pool.map(wave, [backend, TritonBackend(other)] * 2, samplings))
    after = settled(lambda: triton.statistics("denoiser"))

    def increase(key: str) -> int:
        return int(after[key]) - int(before[key])

    assert increase("inference_count") == 60
    assert increase("execution_count") < 60
    batches = {int(one["batch_size"]) for one in after["batch_stats"]}
    assert max(batches) > 1
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_variations_use_consecutive_seeds(backend: TritonBackend) -> None:
    takes = backend.generate(request(Sampling(steps=2, seed=5), "glass", negative_text="music", variations=3)).takes
    assert [take.recipe["seed"] for take in takes] == [5, 6, 7]
    single = backend.generate(request(Sampling(steps=2, seed=6), "glass", negative_text="music"))
    np.testing.assert_allclose(takes[1].waveform, single.waveform, atol=1e-4)


def test_rejects_negative_text_without_guidance(backend: TritonBackend) -> None:
    with pytest.raises(SettingError, match="higher guidance"):
        backend.generate(request(Sampling(guidance=1.0), "glass", negative_text="music"))


def test_long_sound_is_assembled_from_windows_without_gaps(backend: TritonBackend) -> None:
    """Seven windows, more than one batch of the VAE and the vocoder."""
    samples = 60 * 16_000 + 123
    envelope = EnvelopeInput(np.full(frames(samples / 16_000), 0.1, np.float32), samples)
    events: list[Progress] = []
    result = backend.generate(
        GenerationRequest(envelope=envelope, options=GenerateOptions(steps=1)), progress=events.append
    )
    assert result.waveform.shape == (samples,)
    blocks = result.waveform[: samples // 1600 * 1600].reshape(-1, 1600)
    loudness = np.sqrt(np.mean(blocks**2, axis=1))
    assert loudness.min() > 0.2 * np.median(loudness)
    assert list(result.timings_s) == ["prompt", "denoise", "decode"]
    seconds = {stage: sum(event.seconds or 0 for event in events if event.stage == stage) for stage in result.timings_s}
    assert seconds == pytest.approx(result.timings_s)
    assert max(event.done for event in events if event.stage == "denoise") == 7
    assert [event.done for event in events if event.stage == "decode" and event.seconds is None] == [0, 4, 7]
    (known,) = (event for event in events if event.envelope is not None)
    assert known.envelope is result.envelope


def test_invalid_settings_are_rejected_by_client_and_server(triton: TritonClient) -> None:
    with pytest.raises(EnvelopeError, match="frames"):
        EnvelopeInput(ENVELOPE[:-1], SAMPLES)
    with pytest.raises(SettingError, match="variations"):
        request(Sampling(), variations=0)
    event = triton.stream(
        "generate",
        envelope=np.zeros(1024),
        embedding=np.zeros(512),
        negative_embedding=np.zeros(512),
        options=[b'{"steps": 0}'],
    )
    with pytest.raises(InvalidInput, match="steps is 0"):
        next(event)
