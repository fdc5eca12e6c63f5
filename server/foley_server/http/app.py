"""HTTP endpoints of the studio: uploads of videos and recordings, envelopes, takes and muxed videos."""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
from google.protobuf.message import Message
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
from foley.sound_file import write_sound
from foley.sound_tags import SoundTags
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.progress import label
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_server.api.quotas import Quotas
from foley_server.api.tokens import Principal, Tokens
from foley_server.http.files import Recording, StudioFiles, Take, Video
from foley_server.http.web import (
    PRINCIPAL,
    AuthenticatedEndpoint,
    Handler,
    HostCheckMiddleware,
    handle_errors,
    read_json,
    stream_events,
)
from foley_server.jobs.jobs import Jobs, error_of
from foley_server.jobs.progress import Progress
from foley_server.jobs.store import Job, Kind
from foley_server.jobs.upload import SPACE_CHECK_BYTES
from foley_server.sandbox.sandbox import Sandbox

Result = TypeVar("Result")

STATIC = Path(__file__).with_name("static")
DECODING_THREADS = 8
POLL_S = 0.2  # interval between progress checks
HEARTBEAT_S = 5.0  # maximum interval between events; the page treats a longer silence as a lost connection
MAX_BODY = 4 * 2**20  # a curve of ten minutes is 60,000 numbers


class TakeRequest(GenerateOptions):
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
    """Handles the requests of the page. Not thread-safe: use it from the event loop of its jobs.

    Attributes:
        jobs: The jobs.
        quotas: Limits of the callers.
        sandbox: Opens uploaded media.
        files: Uploaded videos and recordings, and generated takes.
        examples: Example videos by name.
        tokens: Tokens of the API.
        max_bytes: Maximum size of an upload.
        max_duration_s: Maximum duration of an envelope.
        upload_timeout_s: Time limit of an upload.
    """

    jobs: Jobs
    quotas: Quotas
    sandbox: Sandbox
    files: StudioFiles
    examples: Mapping[str, Path]
    tokens: Tokens
    max_bytes: int
    max_duration_s: float
    upload_timeout_s: float

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(DECODING_THREADS, "studio")

    async def _decode(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a method of the sandbox in a thread of the studio's own: it can wait for a decoder."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def app(self, hosts: frozenset[str]) -> Starlette:
        """Return the ASGI application, which accepts requests for `hosts` (values of the Host header)."""

        def route(path: str, handler: Handler, method: str = "GET") -> Route:
            return Route(path, AuthenticatedEndpoint(self.tokens, handler), methods=[method])

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
                route("/api/takes", self.create_takes, "POST"),
                route("/api/takes/{name}.wav", self.sound),
            ],
            middleware=[Middleware(HostCheckMiddleware, hosts=hosts)],
        )
        handle_errors(app)
        return app

    async def page(self, _: Request) -> Response:
        """Return the page."""
        return FileResponse(STATIC / "index.html")

    async def about(self, _: Request) -> Response:
        """Return the configuration of the page: options, profiles, examples and limits."""
        triton = self.jobs.tritons.any()
        profiles = {
            name: _profile_summary(resolve_sampling(GenerateOptions(profile=name), triton.manifest.sampling))
            for name in PROFILES
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
            raise NotFound("there is no such example; choose one that the page lists")
        return FileResponse(path)

    async def add_video(self, request: Request) -> Response:
        """Accept a video as the request body."""
        name, folder = self.files.videos.allocate()
        try:
            path = folder / "the video"  # appears in error messages
            await self._receive(request, path)
            info = await self._decode(lambda: self.sandbox.open_video(path).info)
            video = Video(path, info.duration_s, info.samples(clip.SAMPLE_RATE_HZ))
        except BaseException:
            self.files.videos.remove(name)
            raise
        self.files.videos.add(name, video, _owner(request))
        answer = {"video": name, "duration_s": video.duration_s, "sample_count": video.samples}
        return JSONResponse(answer, 201)

    async def predict(self, request: Request) -> Response:
        """Predict the envelope of a video; stream progress events, then an `envelope` event."""
        video = self.files.videos[request.path_params["name"]]

        async def finish(job: Job) -> dict[str, Any]:
            response = pb.PredictEnvelopeResponse.FromString(job.result or b"")
            return {"event": "envelope", "envelope": _rounded(np.asarray(response.envelope.rms, np.float32))}

        files = {pb.FILE_KIND_VIDEO: video.path}
        return await stream_events(self._stream_job(request, "envelope", pb.VideoSource(), files, finish))

    async def add_recording(self, request: Request) -> Response:
        """Accept a recording as the request body, for an audio prompt; return its envelope, too."""
        name, folder = self.files.recordings.allocate()
        try:
            path = folder / "the recording"
            await self._receive(request, path)
            waveform = await self._decode(self.sandbox.read_audio, path)
        except BaseException:
            self.files.recordings.remove(name)
            raise
        self.files.recordings.add(name, Recording(path), _owner(request))
        return JSONResponse({"recording": name, "envelope": _rounded(measure(waveform))}, 201)

    async def create_takes(self, request: Request) -> Response:
        """Generate takes for an envelope; stream progress events, then a `takes` event."""
        body = TakeRequest(**await read_json(request, MAX_BODY))
        curve = np.asarray(body.envelope, np.float32)
        if len(curve) > self.max_duration_s * clip.ENVELOPE_RATE_HZ:
            raise MediaTooLarge(f"the envelope is longer than {self.max_duration_s:g} s, the limit; shorten it")
        recording = self.files.recordings[body.audio].path if body.audio else None
        length = body.sample_count or samples(len(curve) / clip.ENVELOPE_RATE_HZ)
        options = GenerateOptions(**body.model_dump(include=set(GenerateOptions.model_fields)))
        wanted = GenerationRequest(None, EnvelopeInput(curve, length), recording, options)
        files = {pb.FILE_KIND_AUDIO_PROMPT: recording} if recording else {}
        return await stream_events(
            self._stream_job(request, "generate", request_to_proto(wanted), files, self._store_takes)
        )

    async def sound(self, request: Request) -> Response:
        """Return a take as a WAV file."""
        return FileResponse(self.files.takes[request.path_params["name"]].path, media_type="audio/wav")

    async def preview(self, request: Request) -> Response:
        """Return a small preview of a video, without sound, that every browser can play."""
        video = self.files.videos[request.path_params["name"]]
        path = video.path.with_name("preview.mp4")
        if not path.is_file():
            await self._decode(self.sandbox.preview, video.path, path)
        return FileResponse(path)

    async def mux(self, request: Request) -> Response:
        """Return a video with the sound in the request body.

        The query parameter `source_audio` says what happens to the video's own audio: replace, mix or keep.
        """
        source_audio = cast(SourceAudio, request.query_params.get("source_audio", "replace"))
        if source_audio not in get_args(SourceAudio):
            raise SettingError(f"source_audio must be one of {', '.join(get_args(SourceAudio))}")
        video = self.files.videos[request.path_params["name"]]
        folder = Path(tempfile.mkdtemp(dir=video.path.parent))
        clean = partial(shutil.rmtree, folder, ignore_errors=True)
        try:
            sound, path = folder / "the sound", folder / "muxed.mp4"
            await self._receive(request, sound)
            await self._decode(self.sandbox.mux, video.path, sound, path, source_audio)
        except BaseException:
            clean()
            raise
        return FileResponse(path, background=BackgroundTask(clean))

    async def _store_takes(self, job: Job) -> dict[str, Any]:
        generation = self.jobs.generation(job)
        seconds = {one.stage: one.duration.ToNanoseconds() / 1e9 for one in generation.stage_times}
        stored = []
        for i, take in enumerate(generation.takes):
            content = b"".join([chunk async for chunk in self.jobs.sound(job, i)])
            waveform = np.frombuffer(content, "<f4").astype(np.float32)
            name, folder = self.files.takes.allocate()
            write_sound(folder / "take.wav", waveform, clip.SAMPLE_RATE_HZ, tags=SoundTags(recipe=take.recipe_json))
            self.files.takes.add(name, Take(folder / "take.wav"), job.owner)
            about = {
                "recipe": _without_large_seed(json.loads(take.recipe_json)),
                "produced": _rounded(measure(waveform)),
                "seconds": seconds,
            }
            stored.append({"take": name, **about})
        return {"event": "takes", "takes": stored}

    async def _stream_job(
        self,
        request: Request,
        kind: Kind,
        message: Message,
        files: Mapping[pb.FileKind, Path],
        finish: Callable[[Job], Awaitable[dict[str, Any]]],
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Run a job, and yield progress events, then the result. Closing the generator cancels it.

        Args:
            request: The request of the page.
            kind: Kind of the job.
            message: Its request.
            files: Its files.
            finish: Converts the job to the last event.
        """
        principal: Principal = request.scope[PRINCIPAL]
        quota = self.quotas.of(principal)
        async with self.jobs.receive(principal.name, kind, message, "", quota, call=True) as upload:
            for file, path in upload.work.files.items():
                await asyncio.to_thread(shutil.copyfile, files[file], path)
            job = await self.jobs.accept(upload, call=True)
        async with self.jobs.call(job) as progress:
            ended = asyncio.ensure_future(progress.wait())
            started_at = sent_at = time.monotonic()
            last_event: dict[str, Any] = {}
            try:
                while not ended.done():
                    await asyncio.wait([ended], timeout=POLL_S)
                    now, at = _progress_event(progress), time.monotonic()
                    if now != last_event or at - sent_at > HEARTBEAT_S:
                        last_event, sent_at = now, at
                        yield {**now, "seconds": round(at - started_at, 1)}
            finally:
                ended.cancel()
            job = await progress.wait()
            if error := error_of(job):
                raise error
            yield await finish(job)

    async def _receive(self, request: Request, path: Path) -> None:
        async def write() -> int:
            size = unchecked = 0
            self.jobs.uploads.check_space()
            with path.open("xb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    unchecked += len(chunk)
                    if unchecked >= SPACE_CHECK_BYTES:
                        unchecked = 0
                        self.jobs.uploads.check_space()
                    if size > self.max_bytes:
                        raise MediaTooLarge(
                            f"the file is larger than {self.max_bytes >> 20} MiB, the limit; shorten it"
                        )
                    file.write(chunk)
            return size

        try:
            size = await asyncio.wait_for(write(), self.upload_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"the upload took longer than {self.upload_timeout_s:g} s; send a smaller file") from error
        if not size:
            raise MediaError("the file is empty; choose another")


def _owner(request: Request) -> str:
    principal: Principal = request.scope[PRINCIPAL]
    return principal.name


def _profile_summary(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling settings of a profile that the page shows."""
    return {"steps": sampling.steps, "guidance": sampling.guidance}


def _progress_event(progress: Progress) -> dict[str, Any]:
    if progress.stage is None:
        return {"event": "waiting", "position": progress.position or 0}
    stage = progress.stage
    return {"event": "progress", "stage": label(stage.stage), "done": stage.done, "total": stage.total}


def _rounded(envelope: Floats) -> list[float]:
    return [round(float(value), 6) for value in envelope]


def _without_large_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe for JavaScript, whose numbers have 53 bits: a seed beyond is a text."""
    return {**recipe, "seed": str(recipe["seed"])} if recipe["seed"] >= 2**53 else recipe
