"""Runs the two stages of Video-Foley on a Triton server."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av

from foley import __version__, clip, loudness
from foley.envelope import Floats, frames
from foley.errors import SettingError
from foley.options import OpticalFlow
from foley.profiles import resolve_flow, resolve_sampling
from foley.sampler import Sampling
from foley.stages import features_stage
from foley_pipeline import video2rms
from foley_pipeline.backend import Embeddings
from foley_pipeline.cache import Cache
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.hashing import content_sha256
from foley_pipeline.media_loader import MediaLoader, Video, in_process
from foley_pipeline.paths import file_path
from foley_pipeline.progress import OnProgress, Progress, Stage, StageTimer, ignore_progress
from foley_pipeline.prompt import Prompt, as_prompt, embed_audio, embed_text
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult, Take, describe_inputs
from foley_pipeline.rms2sound import Conditioning, Loop, synthesize
from foley_pipeline.triton import TritonClient


class TritonBackend:
    """The `foley_pipeline.backend.Backend` that drives a Triton server.

    Args:
        triton: The connected server.
        cache: Cache of envelopes and embeddings; it does not change the results.
        loader: Opens videos and recordings; None: in this process, within the default limits.
        loop: Whether the diffusion loop runs on the client, one call of `denoiser` per step, or on the server.
        max_sound_s: Limit on the duration of the sound of one request, over all variations, in seconds.
    """

    def __init__(
        self,
        triton: TritonClient,
        *,
        cache: Cache | None = None,
        loader: MediaLoader | None = None,
        loop: Loop = "client",
        max_sound_s: float = float("inf"),
    ) -> None:
        self.triton = triton
        self.cache = cache
        self.loader = loader or in_process()
        self.loop: Loop = loop
        self.max_sound_s = max_sound_s

    def generate(
        self, request: GenerationRequest, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> GenerationResult:
        """See `Backend.generate`; requests for more than `max_sound_s` of sound raise `SettingError`."""
        call, options, prompt = _Call(self, StageTimer(progress), cancel), request.options, request.prompt
        sampling = resolve_sampling(options, self.triton.manifest.sampling)
        prompt.check(sampling.guidance)  # before the long work on the video
        flow: OpticalFlow | None = None
        if request.envelope:
            envelope, samples = request.envelope.envelope, request.envelope.samples
            self._check_length(samples, options.variations)
            embeddings = call.embed_prompt(prompt)
        else:
            assert request.video is not None
            video = self.loader.video(request.video)
            samples = video.info.samples(clip.SAMPLE_RATE_HZ)
            self._check_length(samples, options.variations)
            flow = resolve_flow(options, self.triton.stages)
            envelope, embeddings = call.prepare(video, prompt, flow)
        call.timer.report(Progress(Stage.VIDEO2RMS, 1, 1, envelope=envelope))

        samplings = [replace(sampling, seed=sampling.seed + i) for i in range(options.variations)]
        waveforms = synthesize(
            call.triton, Conditioning(envelope, *embeddings), samplings, samples, self.loop, call.timer
        )
        recipe = {
            "foley": __version__,
            **self.triton.versions,
            **describe_inputs(request),
            "flow": flow,
            "envelope_sha256": hashlib.sha256(envelope.astype("<f4").tobytes()).hexdigest(),
            "loudness": options.loudness,
        }
        takes = [
            # each is removed, so that no more than one sound is in memory twice
            Take(loudness.apply(waveforms.pop(0), envelope, options.loudness), {**recipe, **asdict(one)})
            for one in samplings
        ]
        return GenerationResult(envelope, takes, call.timer.timings_s, request.video)

    def predict_envelope(
        self,
        video: Path | str | Video,
        *,
        flow: OpticalFlow | None = None,
        progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> Floats:
        """See `Backend.predict_envelope`; the video may also be opened already."""
        opened = self.loader.video(file_path(video, "video")) if isinstance(video, Path | str) else video
        return _Call(self, StageTimer(progress), cancel).predict_envelope(opened, flow or "default")

    def embed_prompt(
        self, prompt: Prompt | str, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> Embeddings:
        """See `Backend.embed_prompt`."""
        return _Call(self, StageTimer(progress), cancel).embed_prompt(as_prompt(prompt))

    @property
    def defaults(self) -> Sampling:
        """The bundle's sampling defaults, with seed 0."""
        return Sampling(**self.triton.manifest.sampling.model_dump())

    def _check_length(self, samples: int, variations: int) -> None:
        seconds = variations * samples / clip.SAMPLE_RATE_HZ
        if seconds > self.max_sound_s:
            raise SettingError(
                f"the request is for {seconds:.0f} s of sound, the limit is {self.max_sound_s:g} s; "
                "request a shorter video or fewer variations"
            )


class _Call:
    """The steps of one call of a `TritonBackend`, with its progress and its cancellation.

    Attributes:
        timer: Progress and timings of the call.
        triton: The server; its calls end when this call is cancelled.
    """

    def __init__(self, backend: TritonBackend, timer: StageTimer, cancel: CancelToken | None) -> None:
        self._backend = backend
        self.timer = timer
        self.triton = backend.triton.under(cancel) if cancel else backend.triton

    def prepare(self, video: Video, prompt: Prompt, flow: OpticalFlow) -> tuple[Floats, Embeddings]:
        """Run `predict_envelope` and `embed_prompt` concurrently; an error in one cancels the other."""
        with ThreadPoolExecutor(2) as pool, self.triton.cancel.child() as cancel:
            part = _Call(self._backend, self.timer, cancel)
            envelope = pool.submit(part.predict_envelope, video, flow)
            embeddings = pool.submit(part.embed_prompt, prompt)
            running: list[Future[Any]] = [envelope, embeddings]
            for ended in wait(running, return_when=FIRST_EXCEPTION).done:
                ended.result()
        return envelope.result(), embeddings.result()

    def predict_envelope(self, video: Video, flow: OpticalFlow) -> Floats:
        """Predict the envelope of an opened video."""
        if features_stage(flow) not in self.triton.stages:
            raise SettingError(
                f"flow is {flow!r}, which replaces RAFT, but this bundle has another optical flow; use 'default'"
            )
        duration_s = video.info.duration_s

        def predict() -> Floats:
            return video2rms.predict_envelope(self.triton, video, duration_s, self.timer, features_stage(flow))

        key = ("envelope", flow)
        return self._cached(key, (frames(duration_s),), predict, Stage.ENVELOPE_CACHED, video.path)

    def embed_prompt(self, prompt: Prompt) -> Embeddings:
        """Embed a prompt and its negative text."""
        wanted = self._embed_audio(prompt.audio) if prompt.audio else self._embed_text(prompt.text)
        return wanted, self._embed_text(prompt.negative_text)

    def _embed_text(self, text: str) -> Floats:
        def embed() -> Floats:
            with self.timer.stage(Stage.PROMPT):
                return embed_text(self.triton, text)

        return self._cached(("prompt", "text", text), (clip.EMBEDDING_DIM,), embed, Stage.PROMPT_CACHED)

    def _embed_audio(self, audio: Path) -> Floats:
        def embed() -> Floats:
            with self.timer.stage(Stage.PROMPT):
                return embed_audio(self.triton, self._backend.loader.audio(audio))

        return self._cached(("prompt", "audio"), (clip.EMBEDDING_DIM,), embed, Stage.PROMPT_CACHED, audio)

    def _cached(
        self,
        about: Sequence[str],
        shape: tuple[int, ...],
        compute: Callable[[], Floats],
        hit: Stage,
        file: Path | None = None,
    ) -> Floats:
        """Return the cached result of `compute`, or call it and cache the result.

        The key consists of `about`, the content of `file`, and the versions of the software and of the bundle. A hit is
        reported as the stage `hit`.
        """
        cache = self._backend.cache
        content = _content(file) if cache else None
        if cache is None or content is None:
            return compute()
        versions = {"foley": __version__, "av": av.__version__, **self.triton.versions}
        key = [*about, content, *(f"{name} {version}" for name, version in versions.items())]
        found = cache.get(key, shape)
        if found is not None:
            with self.timer.stage(hit):
                return found
        computed = compute()
        if _content(file) == content:  # the file has not changed while it was read
            cache.put(key, computed)
        return computed


def _content(file: Path | None) -> str | None:
    """Return the SHA-256 of `file`, "" if there is no file, or None if it cannot be read; its reader raises then."""
    try:
        if file is None:
            return ""
        return content_sha256(file) if file.is_file() else None
    except OSError:
        return None
