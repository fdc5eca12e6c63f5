"""The two stages of Video-Foley as methods, on a connected Triton server."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import av

from foley import __version__, clip, loudness
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.options import GenerateOptions, Loudness, OpticalFlow
from foley.sampler import Sampling
from foley.stages import features_stage
from foley_pipeline.cache import Cache
from foley_pipeline.content import content_sha256
from foley_pipeline.prompt import Prompt, embed_audio, embed_text
from foley_pipeline.reader import IN_PROCESS, Reader, Video
from foley_pipeline.rms2sound import Conditioning, Loop, synthesize
from foley_pipeline.triton import Triton
from foley_pipeline.video2rms import predict_envelope
from foley_pipeline.watch import Watch

Embeddings: TypeAlias = tuple[Floats, Floats]
"""CLAP embeddings of the prompt and of the negative prompt, float32 [512] each."""


@dataclass(frozen=True)
class Take:
    """One generated sound.

    Attributes:
        waveform: float32 [samples at 16 kHz] in [-1, 1].
        recipe: Versions, inputs and settings that reproduce the sound.
        timings_s: Seconds per stage of the whole call, which its variations share.
    """

    waveform: Floats
    recipe: dict[str, Any]
    timings_s: dict[str, float] = field(default_factory=dict)


def vary(sampling: Sampling, variations: int) -> list[Sampling]:
    """Return `sampling` for each variation, with consecutive seeds.

    Raises:
        SettingError: The number of variations or a seed is out of range.
    """
    options = GenerateOptions(seed=sampling.seed, variations=variations)
    return [replace(sampling, seed=sampling.seed + i) for i in range(options.variations)]


class Foley:
    """Video-Foley on a Triton server.

    Example:
        with Triton("localhost:8001") as triton:
            foley = Foley(triton)
            envelope = foley.predict_envelope(Path("hits.mp4"))
            (take,) = foley.generate(envelope, samples=8 * 16_000, prompt=Prompt("a stick hits metal"))

    Args:
        triton: The connected server.
        cache: Cache of envelopes and embeddings; it does not change the results.
        reader: Opens videos and recordings.
    """

    def __init__(self, triton: Triton, cache: Cache | None = None, reader: Reader = IN_PROCESS) -> None:
        self.triton = triton
        self.cache = cache
        self.reader = reader

    @property
    def defaults(self) -> Sampling:
        """The bundle's sampling defaults, seed 0."""
        return Sampling(**self.triton.manifest.sampling.model_dump())

    def predict_envelope(
        self, video: Path | Video, watch: Watch | None = None, flow: OpticalFlow = "default"
    ) -> Floats:
        """Predict the envelope of a video with Video2RMS.

        Args:
            video: A file, or an opened video.
            watch: Progress and cancellation.
            flow: Optical flow.

        Returns:
            Linear RMS, float32 [ceil(duration * 100)].

        Raises:
            MediaError: The video cannot be used.
            SettingError: The bundle is not served with this `flow`.
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
        """Compute the embeddings of a prompt and of its negative text, which is empty by default.

        Raises:
            MediaError: The audio prompt cannot be read.
        """
        watch = watch or Watch()
        made = self._embed_audio(prompt.audio, watch) if prompt.audio else self._embed_text(prompt.text, watch)
        return made, self._embed_text(prompt.negative_text, watch)

    def prepare(
        self, video: Path | Video, prompt: Prompt, watch: Watch | None = None, flow: OpticalFlow = "default"
    ) -> tuple[Floats, Embeddings]:
        """Run `predict_envelope` and `embed` concurrently; an error in one cancels the other."""
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
        """Generate sounds that follow an envelope.

        Args:
            envelope: Linear RMS, float32 [ceil(samples / 160)].
            samples: Length of the sounds, in samples at 16 kHz.
            prompt: The timbre prompt; None: the empty text.
            sampling: Sampling settings; None: the bundle's defaults.
            embeddings: The result of `embed` or `prepare` for `prompt`; None: they are computed.
            variations: Number of sounds, which have consecutive seeds.
            loop: Whether the diffusion loop runs on the client or on the server.
            level: How the loudness is set; see `foley.loudness.apply`.
            watch: Progress and cancellation.

        Returns:
            One take per variation.

        Raises:
            EnvelopeError: The envelope is invalid, or its length does not match `samples`.
            SettingError: A setting is out of range, or a negative text has no effect because guidance is 1.
        """
        watch, prompt = watch or Watch(), prompt or Prompt()
        samplings = vary(sampling or self.defaults, variations)
        prompt.check(samplings[0].guidance)
        envelope = validate(envelope, frames(samples / clip.SAMPLE_RATE_HZ))
        condition = Conditioning(envelope, *(embeddings or self.embed(prompt, watch)))
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

        return self._once(("prompt", "text", text), (clip.EMBEDDING_DIM,), embed, watch)

    def _embed_audio(self, audio: Path, watch: Watch) -> Floats:
        def embed() -> Floats:
            with watch.stage("prompt"):
                return embed_audio(self.triton.under(watch), self.reader.audio(audio))

        return self._once(("prompt", "audio"), (clip.EMBEDDING_DIM,), embed, watch, audio)

    def _once(
        self,
        about: Sequence[str],
        shape: tuple[int, ...],
        make: Callable[[], Floats],
        watch: Watch,
        file: Path | None = None,
    ) -> Floats:
        """Return the cached result of `make`, or call it and cache the result.

        The key consists of `about`, the content of `file`, and the versions of the software and of the bundle.
        """
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
        if _content(file) == content:  # the file has not changed while it was read
            self.cache.put(key, made)
        return made


def _content(file: Path | None) -> str | None:
    """Return the SHA-256 of `file`, "" if there is no file, or None if it cannot be read; its reader raises then."""
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
