"""HTTP endpoints of the studio: uploads of videos and recordings, envelopes, takes and muxed videos."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import soundfile
from pydantic import Field
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from foley import clip
from foley.envelope import Floats, measure, samples
from foley.errors import MediaError, MediaTooLarge, NotFound, SettingError, TimedOut
from foley.options import GenerateOptions, SourceAudio, describe
from foley.profiles import PROFILES, resolve_sampling
from foley.sampler import Sampling
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress, label
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.result import GenerationResult
from foley_pipeline.triton_backend import TritonBackend
from foley_server.api.tokens import Tokens
from foley_server.http.shelf import Recording, Shelves, Take, Video
from foley_server.http.web import Answer, Door, Guarded, document, handle_errors, lines
from foley_server.jobs.engine import Engine
from foley_server.jobs.progress import Progress
from foley_server.sandbox.sandbox import Sandbox

STATIC = Path(__file__).with_name("static")
TICK_S = 0.2  # interval between progress checks
SILENCE_S = 5.0  # maximum interval between lines; the page treats a longer silence as a lost connection
MAX_DOCUMENT = 4 * 2**20  # a curve of ten minutes is 60,000 numbers


class Wish(GenerateOptions):
    """Body of `POST /api/takes`.

    Attributes:
        envelope: Linear RMS at 100 Hz.
        sample_count: Number of samples of the sound at 16 kHz, if it ends within the last envelope frame.
        audio: Name of an uploaded recording as the audio prompt, instead of `text`.
    """

    envelope: list[float] = Field(min_length=1)
    sample_count: int | None = Field(default=None, ge=1)
    audio: str | None = None


@dataclass
class Studio:
    """Handles the requests of the page. Not thread-safe: use it from the event loop of its engine.

    Attributes:
        engine: Runs the pipeline.
        sandbox: Opens uploaded media.
        shelves: Uploaded videos and recordings, and generated takes.
        examples: Example videos by name.
        tokens: Tokens of the API.
        max_bytes: Maximum size of an upload.
        max_duration_s: Maximum duration of an envelope.
        upload_timeout_s: Time limit of an upload.
    """

    engine: Engine
    sandbox: Sandbox
    shelves: Shelves
    examples: Mapping[str, Path]
    tokens: Tokens
    max_bytes: int
    max_duration_s: float
    upload_timeout_s: float

    def app(self, hosts: frozenset[str]) -> Starlette:
        """Return the ASGI application, which accepts requests for `hosts` (values of the Host header)."""

        def route(path: str, answer: Answer, method: str = "GET") -> Route:
            return Route(path, Guarded(self.tokens, answer), methods=[method])

        app = Starlette(
            routes=[
                Route("/", self.page),
                Mount("/static", StaticFiles(directory=STATIC)),
                route("/api/about", self.about),
                route("/api/examples/{name}", self.example),
                route("/api/videos", self.add_video, "POST"),
                route("/api/videos/{name}/envelope", self.predict, "POST"),
                route("/api/videos/{name}/preview.mp4", self.preview),
                route("/api/videos/{name}/mux", self.mux, "POST"),
                route("/api/recordings", self.add_recording, "POST"),
                route("/api/takes", self.make_takes, "POST"),
                route("/api/takes/{name}.wav", self.sound),
            ],
            middleware=[Middleware(Door, hosts=hosts)],
        )
        handle_errors(app)
        return app

    async def page(self, _: Request) -> Response:
        """Return the page."""
        return FileResponse(STATIC / "index.html")

    async def about(self, _: Request) -> Response:
        """Return the configuration of the page: options, profiles, examples and limits."""
        triton = self.engine.supervisor.triton()
        profiles = {
            name: _shown(resolve_sampling(GenerateOptions(profile=name), triton.manifest.sampling)) for name in PROFILES
        }
        return JSONResponse(
            {
                "bundle": triton.versions,
                "profiles": profiles,
                "options": {option.name: asdict(option) for option in describe(GenerateOptions)},
                "examples": list(self.examples),
                "max_bytes": self.max_bytes,
                "max_duration_s": self.max_duration_s,
            }
        )

    async def example(self, request: Request) -> Response:
        """Return an example video."""
        path = self.examples.get(request.path_params["name"])
        if path is None:
            raise NotFound("there is no such example")
        return FileResponse(path)

    async def add_video(self, request: Request) -> Response:
        """Accept a video as the request body."""
        async with self.engine.request():
            name, folder = self.shelves.videos.room()
            try:
                path = folder / "the video"  # appears in error messages
                await self._receive(request, path)
                info = await asyncio.to_thread(lambda: self.sandbox.open_video(path).info)
                video = Video(path, info.duration_s, info.samples(clip.SAMPLE_RATE_HZ))
            except BaseException:
                self.shelves.videos.drop(name)
                raise
            self.shelves.videos.put(name, video)
        answer = {"video": name, "duration_s": video.duration_s, "sample_count": video.samples}
        return JSONResponse(answer, 201)

    async def predict(self, request: Request) -> Response:
        """Predict the envelope of a video; stream progress events, then an `envelope` event."""
        video = self.shelves.videos[request.path_params["name"]]

        def look(backend: TritonBackend, on_progress: OnProgress, cancel: CancelToken) -> Floats:
            return backend.predict_envelope(video.path, progress=on_progress, cancel=cancel)

        def found(envelope: Floats) -> dict[str, Any]:
            return {"event": "envelope", "envelope": _rounded(envelope)}

        return await lines(self._work(lambda progress: self.engine.call(progress, look), found))

    async def add_recording(self, request: Request) -> Response:
        """Accept a recording as the request body, for an audio prompt; return its envelope, too."""
        async with self.engine.request(later=True):
            name, folder = self.shelves.recordings.room()
            try:
                path = folder / "the recording"
                await self._receive(request, path)
                waveform = await asyncio.to_thread(self.sandbox.read_audio, path)
            except BaseException:
                self.shelves.recordings.drop(name)
                raise
            self.shelves.recordings.put(name, Recording(path))
        return JSONResponse({"recording": name, "envelope": _rounded(measure(waveform))}, 201)

    async def make_takes(self, request: Request) -> Response:
        """Generate takes for an envelope; stream progress events, then a `takes` event."""
        wish = Wish(**await document(request, MAX_DOCUMENT))
        curve = np.asarray(wish.envelope, np.float32)
        if len(curve) > self.max_duration_s * clip.ENVELOPE_RATE_HZ:
            raise MediaTooLarge(f"the curve lasts more than {self.max_duration_s:g} s, the limit; cut it")
        recording = self.shelves.recordings[wish.audio].path if wish.audio else None
        length = wish.sample_count or samples(len(curve) / clip.ENVELOPE_RATE_HZ)
        options = GenerateOptions(**wish.model_dump(include=set(GenerateOptions.model_fields)))
        wanted = GenerationRequest(None, EnvelopeInput(curve, length), recording, options)
        return await lines(self._work(lambda progress: self.engine.generate(progress, wanted), self._keep))

    async def sound(self, request: Request) -> Response:
        """Return a take as a WAV file."""
        return FileResponse(self.shelves.takes[request.path_params["name"]].path, media_type="audio/wav")

    async def preview(self, request: Request) -> Response:
        """Return a small preview of a video, without sound, that every browser can play."""
        video = self.shelves.videos[request.path_params["name"]]
        path = video.path.with_name("preview.mp4")
        if not path.is_file():
            async with self.engine.request(later=True):
                await asyncio.to_thread(self.sandbox.preview, video.path, path)
        return FileResponse(path)

    async def mux(self, request: Request) -> Response:
        """Return a video with the sound in the request body.

        The query parameter `source_audio` says what happens to the video's own audio: replace, mix or keep.
        """
        source_audio = cast(SourceAudio, request.query_params.get("source_audio", "replace"))
        if source_audio not in get_args(SourceAudio):
            raise SettingError(f"source_audio is one of {', '.join(get_args(SourceAudio))}")
        video = self.shelves.videos[request.path_params["name"]]
        folder = Path(tempfile.mkdtemp(dir=video.path.parent))
        clean = partial(shutil.rmtree, folder, ignore_errors=True)
        try:
            async with self.engine.request(later=True):
                sound, path = folder / "the sound", folder / "muxed.mp4"
                await self._receive(request, sound)
                await asyncio.to_thread(self.sandbox.mux, video.path, sound, path, source_audio)
        except BaseException:
            clean()
            raise
        return FileResponse(path, background=BackgroundTask(clean))

    def _keep(self, result: GenerationResult) -> dict[str, Any]:
        kept = []
        for take in result.takes:
            name, folder = self.shelves.takes.room()
            soundfile.write(folder / "take.wav", take.waveform, clip.SAMPLE_RATE_HZ, subtype="PCM_16")
            self.shelves.takes.put(name, Take(folder / "take.wav"))
            about = {"recipe": take.recipe, "produced": _rounded(measure(take.waveform)), "seconds": result.timings_s}
            kept.append({"take": name, **about})
        return {"event": "takes", "takes": kept}

    async def _work(
        self, start: Callable[[Progress], Awaitable[Any]], finish: Callable[[Any], dict[str, Any]]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Run work in the engine's queue, and yield progress events, then the result. Closing the generator cancels it.

        Args:
            start: Starts the work, which reports to the progress.
            finish: Converts the result of the work to an event.
        """
        async with self.engine.request():
            progress, begun = Progress("studio"), time.monotonic()
            work = asyncio.ensure_future(self.engine.in_time(start(progress)))
            try:
                last: dict[str, Any] = {}
                told = begun
                while not work.done():
                    await asyncio.wait([work], timeout=TICK_S)
                    now, at = _where(progress), time.monotonic()
                    if now != last or at - told > SILENCE_S:
                        last, told = now, at
                        yield {**now, "seconds": round(at - begun, 1)}
                yield finish(work.result())
            finally:
                work.cancel()
                await asyncio.wait([work])

    async def _receive(self, request: Request, path: Path) -> None:
        async def write() -> int:
            size = 0
            with path.open("xb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.max_bytes:
                        raise MediaTooLarge(f"the file has more than {self.max_bytes >> 20} MiB, the limit; cut it")
                    file.write(chunk)
            return size

        try:
            size = await asyncio.wait_for(write(), self.upload_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"the upload took more than {self.upload_timeout_s:g} s; send less, or faster") from error
        if not size:
            raise MediaError("the file is empty")


def _shown(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling settings of a profile that the page shows."""
    return {"steps": sampling.steps, "guidance": sampling.guidance}


def _where(progress: Progress) -> dict[str, Any]:
    if progress.stage is None:
        return {"event": "waiting", "position": progress.position or 0}
    stage = progress.stage
    return {"event": "progress", "stage": label(stage.stage), "done": stage.done, "total": stage.total}


def _rounded(envelope: Floats) -> list[float]:
    return [round(float(value), 6) for value in envelope]
