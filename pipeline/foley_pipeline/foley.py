"""The SDK: a connected server as the two stages of Video-Foley."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import av

from foley import __version__, clip, loudness
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.loudness import Loudness
from foley.profiles import PROFILES, ProfileName
from foley.sampler import Sampling
from foley.stages import FlowMethod, features_stage
from foley_pipeline.cache import Cache
from foley_pipeline.content import content_sha256
from foley_pipeline.prompt import Prompt, embed_audio, embed_text
from foley_pipeline.reader import IN_PROCESS, Reader, Video
from foley_pipeline.rms2sound import Condition, Loop, synthesize
from foley_pipeline.triton import Triton
from foley_pipeline.video2rms import predict_envelope
from foley_pipeline.watch import Watch

MAX_VARIATIONS = 16

Embeddings: TypeAlias = tuple[Floats, Floats]
"""[512] each: of a prompt, and of what the sound should not be."""


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

    Args:
        cache: where envelopes and embeddings are looked for before they are made, and kept. The numbers are the same.
        reader: what opens videos and recordings.
    """

    def __init__(self, triton: Triton, cache: Cache | None = None, reader: Reader = IN_PROCESS) -> None:
        self.triton = triton
        self.cache = cache
        self.reader = reader

    @property
    def defaults(self) -> Sampling:
        """The bundle's sampling defaults, seed 0."""
        return Sampling(**self.triton.manifest.sampling.model_dump())

    def profile(self, name: ProfileName) -> tuple[Sampling, FlowMethod]:
        """How a profile samples here, seed 0, and its optical flow: the bundle's own, where that is no RAFT."""
        chosen = PROFILES[name]
        flow = chosen.flow if features_stage(chosen.flow) in self.triton.stages else "exact"
        return replace(self.defaults, **chosen.sampling), flow

    def predict_envelope(self, video: Path | Video, watch: Watch | None = None, flow: FlowMethod = "exact") -> Floats:
        """The envelope [ceil(duration * 100)] that Video2RMS predicts for a video, a file or an opened one.

        Raises:
            MediaError: the file is not a video that can be used.
            SettingError: the bundle is not served with this `flow`.
        """
        if features_stage(flow) not in self.triton.stages:
            raise SettingError(
                f"{flow!r} stands in for RAFT, which this bundle does not have; take its own optical flow"
            )
        watch = watch or Watch()
        source = self.reader.video(video) if isinstance(video, Path) else video
        duration_s = source.info.duration_s

        def predict() -> Floats:
            return predict_envelope(self.triton, source, duration_s, watch, flow)

        return self._once(("envelope", flow), (frames(duration_s),), predict, watch, source.path)

    def embed(self, prompt: Prompt, watch: Watch | None = None) -> Embeddings:
        """The embeddings of a prompt and of what the sound should not be (the empty text by default).

        Raises:
            MediaError: the audio prompt cannot be read.
        """
        watch = watch or Watch()
        made = self._embed_audio(prompt.audio, watch) if prompt.audio else self._embed_text(prompt.text, watch)
        return made, self._embed_text(prompt.negative_text, watch)

    def prepare(
        self, video: Path | Video, prompt: Prompt, watch: Watch | None = None, flow: FlowMethod = "exact"
    ) -> tuple[Floats, Embeddings]:
        """`predict_envelope` and `embed` at the same time; an error of one stops the other."""
        with ThreadPoolExecutor(2) as pool, (watch or Watch()).part() as part:
            envelope = pool.submit(self.predict_envelope, video, part, flow)
            embeddings = pool.submit(self.embed, prompt, part)
            jobs: list[Future[Any]] = [envelope, embeddings]
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        return envelope.result(), embeddings.result()

    def generate(
        self,
        envelope: Floats,
        samples: int,
        prompt: Prompt | None = None,
        sampling: Sampling | None = None,
        *,
        embeddings: Embeddings | None = None,
        variations: int = 1,
        loop: Loop = "client",
        level: Loudness = "level",
        watch: Watch | None = None,
    ) -> list[Take]:
        """Sounds of `samples` samples at 16 kHz on `envelope`: one a variation, with seeds counting up.

        Args:
            embeddings: those of `prompt`, where `embed` or `prepare` has made them already.

        Raises:
            EnvelopeError: the envelope does not have one frame for every 10 ms of sound.
            SettingError: a setting outside its range, or a negative text that would do nothing.
        """
        watch, prompt = watch or Watch(), prompt or Prompt()
        samplings = vary(sampling or self.defaults, variations)
        prompt.check(samplings[0].guidance)
        envelope = validate(envelope, frames(samples / clip.SAMPLE_RATE_HZ))
        condition = Condition(envelope, *(embeddings or self.embed(prompt, watch)))
        waveforms = synthesize(self.triton, condition, samplings, samples, loop, watch)
        recipe = {**self.triton.versions, **_describe(prompt, envelope), "loudness": level}
        return [
            Take(loudness.apply(waveform, envelope, level), {**recipe, **asdict(one)}, dict(watch.timings_s))
            for waveform, one in zip(waveforms, samplings, strict=True)
        ]

    def _embed_text(self, text: str, watch: Watch) -> Floats:
        def embed() -> Floats:
            with watch.stage("prompt"):
                return embed_text(self.triton.under(watch), text)

        return self._once(("prompt", "text", text), (clip.EMBEDDING,), embed, watch)

    def _embed_audio(self, audio: Path, watch: Watch) -> Floats:
        def embed() -> Floats:
            with watch.stage("prompt"):
                return embed_audio(self.triton.under(watch), self.reader.audio(audio))

        return self._once(("prompt", "audio"), (clip.EMBEDDING,), embed, watch, audio)

    def _once(
        self,
        about: Sequence[str],
        shape: tuple[int, ...],
        make: Callable[[], Floats],
        watch: Watch,
        file: Path | None = None,
    ) -> Floats:
        """What `make` makes on this bundle from `about` and the content of `file`; from the cache where it is there."""
        content = _content(file) if self.cache else None
        if self.cache is None or content is None:
            return make()
        versions = {"foley": __version__, "av": av.__version__, **self.triton.versions}
        key = [*about, content, *(f"{name} {version}" for name, version in versions.items())]
        found = self.cache.get(key, shape)
        if found is not None:
            with watch.stage(f"{about[0]}, seen before"):
                return found
        made = make()
        if _content(file) == content:  # nobody has changed it while it was read
            self.cache.put(key, made)
        return made


def _content(file: Path | None) -> str | None:
    """The sha256 of what is in `file`, "" without one; None where it cannot be read: who needs it says why."""
    try:
        if file is None:
            return ""
        return content_sha256(file) if file.is_file() else None
    except OSError:
        return None


def _describe(prompt: Prompt, envelope: Floats) -> dict[str, Any]:
    return {
        "foley": __version__,
        "envelope_sha256": hashlib.sha256(envelope.astype("<f4").tobytes()).hexdigest(),
        "text": prompt.text,
        "negative_text": prompt.negative_text,
        "audio": prompt.audio.name if prompt.audio else None,
        "audio_sha256": content_sha256(prompt.audio) if prompt.audio else None,
    }
