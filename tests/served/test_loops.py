"""The diffusion loop: the same in the client and in the server, alone and in company."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from foley.envelope import frames
from foley.errors import EnvelopeError, InvalidInput, SettingError
from foley.sampler import Sampling
from foley_client import Foley, Prompt, Triton, Watch

SAMPLES = 30_000
ENVELOPE = np.abs(np.sin(np.arange(frames(SAMPLES / 16_000)) / 20)).astype(np.float32)


def wave(foley: Foley, sampling: Sampling, **options: Any) -> np.ndarray:
    (take,) = foley.generate(ENVELOPE, SAMPLES, Prompt("a stick hits wood"), sampling, **options)
    return take.waveform


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=4, seed=0),
        Sampling("ddim", steps=5, eta=1.0, seed=2**63 - 1),
        Sampling(steps=3, guidance=1.0, seed=7),
        Sampling(steps=1),
        Sampling(steps=6, spacing="karras", guidance_interval=(0.5, 8.0)),
    ],
    ids=["dpm++", "ddim eta 1", "guidance 1", "one step", "all switches"],
)
def test_client_and_server_make_the_same_sound(foley_sdk: Foley, sampling: Sampling) -> None:
    in_client = wave(foley_sdk, sampling, loop="client")
    in_server = wave(foley_sdk, sampling, loop="server")
    assert in_client.shape == (SAMPLES,)
    assert np.isfinite(in_client).all()
    np.testing.assert_allclose(in_server, in_client, atol=1e-5)
    assert not np.allclose(wave(foley_sdk, Sampling(steps=sampling.steps, seed=3)), in_client, atol=1e-3)


def test_steps_of_several_clients_are_merged_and_nobody_hears_it(triton: Triton, foley_sdk: Foley) -> None:
    """Shown from Triton's own statistics: fewer executions than steps. While one runs, the others wait."""
    samplings = [Sampling("ddim" if seed % 2 else "dpm++", steps=15, seed=seed) for seed in range(4)]
    alone = [wave(foley_sdk, sampling) for sampling in samplings]
    before = triton.statistics("denoiser")
    with Triton(triton.url) as other, ThreadPoolExecutor(len(samplings)) as pool:
        together = list(pool.map(wave, [foley_sdk, Foley(other)] * 2, samplings))
    after = triton.statistics("denoiser")

    def grown(key: str) -> int:
        return int(after[key]) - int(before[key])

    assert grown("inference_count") == 60
    assert grown("execution_count") < 60
    batches = {int(one["batch_size"]) for one in after["batch_stats"]}
    assert max(batches) > 1
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_variations_count_seeds_up(foley_sdk: Foley) -> None:
    prompt = Prompt("glass", negative_text="music")
    takes = foley_sdk.generate(ENVELOPE, SAMPLES, prompt, Sampling(steps=2, seed=5), variations=3)
    assert [take.recipe["seed"] for take in takes] == [5, 6, 7]
    (again,) = foley_sdk.generate(ENVELOPE, SAMPLES, prompt, Sampling(steps=2, seed=6))
    np.testing.assert_allclose(takes[1].waveform, again.waveform, atol=1e-4)


def test_a_negative_text_is_not_left_without_effect(foley_sdk: Foley) -> None:
    with pytest.raises(SettingError, match="more guidance"):
        foley_sdk.generate(ENVELOPE, SAMPLES, Prompt("glass", negative_text="music"), Sampling(guidance=1.0))


def test_longer_than_a_clip_is_made_of_windows_without_a_gap(foley_sdk: Foley) -> None:
    samples = 25 * 16_000 + 123
    watch = Watch()
    (take,) = foley_sdk.generate(
        np.full(frames(samples / 16_000), 0.1, np.float32), samples, sampling=Sampling(steps=1), watch=watch
    )
    assert take.waveform.shape == (samples,)
    blocks = take.waveform[: samples // 1600 * 1600].reshape(-1, 1600)
    loudness = np.sqrt(np.mean(blocks**2, axis=1))
    assert loudness.min() > 0.2 * np.median(loudness)
    assert list(take.timings_s) == ["prompt", "denoising", "VAE and vocoder"]
    assert take.timings_s == watch.timings_s


def test_bad_settings_are_refused_on_both_sides(triton: Triton, foley_sdk: Foley) -> None:
    with pytest.raises(EnvelopeError, match="frames"):
        foley_sdk.generate(ENVELOPE[:-1], SAMPLES)
    with pytest.raises(SettingError, match="variations"):
        foley_sdk.generate(ENVELOPE, SAMPLES, variations=0)
    event = triton.stream(
        "generate",
        envelope=np.zeros(1024),
        embedding=np.zeros(512),
        negative_embedding=np.zeros(512),
        guidance=[3.5],
        seed=[0, 0],
        steps=[0],
        sampler=[b"dpm++"],
        eta=[0.0],
        spacing=[b"uniform"],
        guidance_interval=[0.0, 100.0],
    )
    with pytest.raises(InvalidInput, match="steps is 0"):
        next(event)
