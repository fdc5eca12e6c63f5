"""The SDK: a connected server as the two stages of Video-Foley."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foley import __version__, clip, loudness
from foley.audio import read_audio
from foley.bundle import file_sha256
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.loudness import Loudness
from foley.media import read_frames
from foley.sampler import Sampling
from foley_client.prompt import Prompt, embed_audio, embed_texts
from foley_client.rms2sound import Condition, Loop, synthesize
from foley_client.triton import Triton
from foley_client.video2rms import predict_envelope
from foley_client.watch import Watch

MAX_VARIATIONS = 16


@dataclass(frozen=True)
class Take:
    """One sound, everything that it takes to make it again, and how long each stage took."""

    waveform: Floats  # [samples at 16 kHz], within [-1, 1]
    recipe: dict[str, Any]
    timings_s: dict[str, float] = field(default_factory=dict)  # of the whole call: variations share them


def override(sampling: Sampling, chosen: Mapping[str, Any]) -> Sampling:
    """`sampling` with those of `chosen` that are not None in their place.

    Raises:
        SettingError: one of them is outside its range.
    """
    return replace(sampling, **{key: value for key, value in chosen.items() if value is not None})


def vary(sampling: Sampling, variations: int) -> list[Sampling]:
    """`sampling` once for every variation, with seeds counting up.

    Raises:
        SettingError: fewer than one or more than `MAX_VARIATIONS`, or a seed past the last one.
    """
    if not 1 <= variations <= MAX_VARIATIONS:
        raise SettingError(f"variations is {variations}; choose 1 to {MAX_VARIATIONS}")
    return [replace(sampling, seed=sampling.seed + i) for i in range(variations)]


class Foley:
    """Video-Foley on a server.

    with Triton("localhost:8001") as triton:
        foley = Foley(triton)
        envelope = foley.predict_envelope(Path("hits.mp4"))
        (take,) = foley.generate(envelope, samples=8 * 16_000, prompt=Prompt("a stick hits metal"))
    """

    def __init__(self, triton: Triton) -> None:
        self.triton = triton

    @property
    def defaults(self) -> Sampling:
        """The bundle's sampling defaults, seed 0."""
        return Sampling(**self.triton.manifest.sampling.model_dump())

    def predict_envelope(self, video: Path, watch: Watch | None = None) -> Floats:
        """The envelope [ceil(duration * 100)] that Video2RMS predicts for a video file.

        Raises:
            MediaError: the file is not a video that can be used.
        """
        source = read_frames(video)
        return predict_envelope(self.triton, source, source.info.duration_s, watch or Watch())

    def embed(self, prompt: Prompt, watch: Watch | None = None) -> tuple[Floats, Floats]:
        """The embeddings [512] of a prompt and of what it should not be (the empty text by default)."""
        with (watch or Watch()).stage("prompt"):
            if prompt.audio is None:
                embedding, negative = embed_texts(self.triton, [prompt.text, prompt.negative_text])
                return embedding, negative
            waveform = read_audio(prompt.audio)
            return embed_audio(self.triton, waveform), embed_texts(self.triton, [prompt.negative_text])[0]

    def generate(
        self,
        envelope: Floats,
        samples: int,
        prompt: Prompt | None = None,
        sampling: Sampling | None = None,
        *,
        variations: int = 1,
        loop: Loop = "client",
        level: Loudness = "level",
        watch: Watch | None = None,
    ) -> list[Take]:
        """Sounds of `samples` samples at 16 kHz on `envelope`: one a variation, with seeds counting up.

        Raises:
            EnvelopeError: the envelope does not have one frame for every 10 ms of sound.
            SettingError: a setting outside its range, or a negative text that would do nothing.
        """
        watch, prompt = watch or Watch(), prompt or Prompt()
        samplings = vary(sampling or self.defaults, variations)
        prompt.check(samplings[0].guidance)
        envelope = validate(envelope, frames(samples / clip.SAMPLE_RATE_HZ))
        condition = Condition(envelope, *self.embed(prompt, watch))
        waveforms = synthesize(self.triton, condition, samplings, samples, loop, watch)
        recipe = {**self.triton.versions, **_describe(prompt, envelope), "loudness": level}
        return [
            Take(loudness.apply(waveform, envelope, level), {**recipe, **asdict(one)}, dict(watch.timings_s))
            for waveform, one in zip(waveforms, samplings, strict=True)
        ]


def _describe(prompt: Prompt, envelope: Floats) -> dict[str, Any]:
    return {
        "foley": __version__,
        "envelope_sha256": hashlib.sha256(envelope.astype("<f4").tobytes()).hexdigest(),
        "text": prompt.text,
        "negative_text": prompt.negative_text,
        "audio": prompt.audio.name if prompt.audio else None,
        "audio_sha256": file_sha256(prompt.audio) if prompt.audio else None,
    }
