"""Long videos: memory grows like the sound, not faster, and the results are those of the whole at once."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from foley import clip, loudness
from foley.audio import read_audio
from foley.envelope import measure
from foley.sampler import Sampling
from foley.windows import crossfade, window_starts_s
from foley_pipeline import rms2sound, video2rms
from foley_pipeline.progress import Stage, StageTimer

WIDTH = 2048  # of the features, as in the official networks
RATE = clip.SAMPLE_RATE_HZ


class Server:
    """Stands for a Triton: features and envelopes that are simple functions of the frames."""

    def __init__(self) -> None:
        self.cancel = self
        self.stages = {"latents_to_waveform": SimpleNamespace(max_batch=4)}

    @contextmanager
    def child(self) -> Iterator["Server"]:
        yield self

    def under(self, cancel: "Server") -> "Server":
        return self

    def infer(self, model: str, **inputs: Any) -> dict[str, np.ndarray]:
        if model == "video2rms":
            return {"envelope": np.repeat(inputs["features"][:, :, 0], 4, axis=1)[:, :1024]}
        if model == "latents_to_waveform":
            return {"waveform": np.repeat(inputs["latents"].reshape(len(inputs["latents"]), -1), 5, axis=1)}
        brightness = inputs["frames"][:-1, 0, 0, 0].astype(np.float32)
        rows = np.repeat(brightness[:, None], WIDTH // 2, axis=1)
        return {"rgb": rows, "flow": -rows}


class Video:
    """Frames whose brightness repeats after 251 of them."""

    def __init__(self, seconds: float) -> None:
        self.count = round(seconds * clip.FRAME_RATE_HZ)
        self.frame = np.empty((256, 344, 3), np.uint8)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(self.count):
            self.frame[0, 0, 0] = number % 251
            yield self.frame.copy()


@pytest.mark.parametrize("seconds", [0.5, 9.9, 10.0, 10.03, 19.0, 19.04, 25.7, 61.3])
def test_envelope_is_that_of_all_features_at_once(seconds: float) -> None:
    server: Any = Server()
    found = video2rms.predict_envelope(server, Video(seconds), seconds, StageTimer())
    rows = video2rms.extract_features(server, Video(seconds), StageTimer())
    starts = window_starts_s(seconds)
    pieces = []
    for start in [round(start * clip.FRAME_RATE_HZ) for start in starts]:
        window = video2rms.clip_features(rows[:-1][start : start + clip.CLIP_FRAMES - 1], rows[-1])
        pieces.append(server.infer("video2rms", features=window[None])["envelope"][0, : clip.CLIP_ENVELOPE])
    np.testing.assert_array_equal(
        found,
        crossfade(pieces, len(pieces), clip.ENVELOPE_RATE_HZ, len(measure(np.ones(round(seconds * RATE)))), "linear"),
    )


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_for_features_does_not_grow() -> None:
    server: Any = Server()
    short, long = (
        peak_bytes(lambda s=seconds: video2rms.predict_envelope(server, Video(s), s, StageTimer()))  # type: ignore[misc]
        for seconds in (60, 300)
    )
    of_features = 240 * clip.FRAME_RATE_HZ * WIDTH * 4
    assert long - short < of_features / 5


@pytest.mark.parametrize("loop", ["client", "server"])
@pytest.mark.parametrize("variations", [1, 3])
def test_sound_is_joined_once(monkeypatch: pytest.MonkeyPatch, loop: rms2sound.Loop, variations: int) -> None:
    seconds = 120.0
    shape = (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)

    def latents(_: Any, condition: Any, sampling: Sampling, window: int, advance: Callable[[], None]) -> np.ndarray:
        return np.full(shape, sampling.seed + window / 100, np.float32)

    def waveform(*arguments: Any) -> np.ndarray:
        return np.repeat(latents(*arguments).reshape(-1), 5)

    monkeypatch.setattr(rms2sound, "_in_client", latents)
    monkeypatch.setattr(rms2sound, "_in_server", waveform)
    samplings = [Sampling("ddim", 2, 1.0, 0.0, seed) for seed in range(variations)]
    condition = rms2sound.Conditioning(np.zeros(12_000, np.float32), *np.zeros((2, 512), np.float32))
    timer, sounds = StageTimer(), []

    def work() -> None:
        sounds[:] = rms2sound.synthesize(Server(), condition, samplings, round(seconds * RATE), loop, timer)  # type: ignore[arg-type]

    peak = peak_bytes(work)
    copies = 1.4 if loop == "client" else 2.4  # of the waveforms that the server sends, one more
    assert peak < copies * variations * seconds * RATE * 4 + 20e6
    for number, sound in enumerate(sounds):
        assert sound[5 * RATE] == pytest.approx(number)
        assert sound[-1] == pytest.approx(number + (len(window_starts_s(seconds)) - 1) / 100)
    assert (Stage.DECODE in timer.timings_s) == (loop == "client"), "the stage has ended"


@pytest.mark.parametrize("mode", ["level", "follow", "peak"])
def test_memory_for_loudness_is_one_copy(mode: loudness.Loudness) -> None:
    wave = np.random.default_rng(0).normal(0, 0.3, 1200 * RATE).astype(np.float32)
    envelope = np.full(1200 * clip.ENVELOPE_RATE_HZ, 0.3, np.float32)
    assert peak_bytes(lambda: loudness.apply(wave, envelope, mode)) < 1.1 * wave.nbytes + 60e6
    assert peak_bytes(lambda: measure(wave)) < 0.1 * wave.nbytes + 60e6


def test_memory_for_a_recording(tmp_path: Any) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((300 * RATE, 2), np.int16), RATE)
    assert peak_bytes(lambda: read_audio(path)) < 2.5 * 300 * RATE * 4
