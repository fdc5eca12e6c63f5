"""The SDK: methods that take files and options by name, on any backend and on a public API."""

import os
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from foley.container import DEFAULT_LIMITS, Limits
from foley.envelope import Floats
from foley.options import GenerateOptions, OpticalFlow
from foley_client._async.backend import AsyncApiBackend
from foley_client._inputs import (
    EnvelopeSource,
    MediaSource,
    generation_request,
    media_file,
    prompt_request,
    source_of_result,
)
from foley_client._wire import MAX_RETRIES, AsyncEvents, AsyncStatuses, JobStatus, with_inputs
from foley_client.channel import Channel
from foley_pipeline.backend import Embeddings
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress, ignore_progress
from foley_pipeline.result import GenerationResult, describe_inputs

Own = TypeVar("Own", bound="AsyncClient")


class AsyncClient:
    """Methods that take files and options by name; base class of the clients.

    Arguments of the same name have the same meaning in all methods:

    - `video` and `audio` are paths, or the content of a file as bytes.
    - `on_progress` receives a `Progress` for every part of the work, including the envelope as soon as it is known.
    - `cancel`: `cancel.cancel()`, from any thread, ends the call with `Cancelled`, even if the server does not respond.
    - `timeout` is the maximum duration of the call in seconds, after which it raises `TimedOut`.

    Errors are those of `foley_client.errors`.
    """

    def __init__(self, backend: AsyncApiBackend, limits: Limits = DEFAULT_LIMITS) -> None:
        self.backend = backend
        self._limits = limits

    async def __aenter__(self: Own) -> Own:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        await self.backend.close()

    async def serving(self) -> bool:
        """Return whether the server accepts work.

        Raises:
            ServerUnavailable: No server responds.
        """
        return await self.backend.serving()

    async def generate(
        self,
        video: MediaSource | None = None,
        *,
        envelope: EnvelopeSource | None = None,
        audio: MediaSource | None = None,
        options: GenerateOptions | None = None,
        on_progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> GenerationResult:
        """Generate sound for a video, or for an envelope.

        The server stops within one denoising step after a cancellation or a disconnect.

        Args:
            video: The video.
            envelope: The envelope to follow, in place of the predicted one: RMS values at 100 Hz, or the path of a
                .json or .csv file or of a recording.
            audio: Recording that is the timbre prompt, in place of the option `text`.
            options: Options.
            on_progress: Receives the progress.
            cancel: Cancels the call.
            timeout: Maximum duration in seconds.
            **settings: Options by name, such as `text="a stick hits metal"` or `seed=3`; see
                `foley_client.GenerateOptions` and docs/options.md.

        Returns:
            The sounds, which `save` writes to files, and the envelope.

        Raises:
            MediaError: A file cannot be read, or the server cannot decode it.
            SettingError: An option is unknown or out of range.
            Cancelled: `cancel` was cancelled.
            TimedOut: The call took longer than `timeout`.
            FoleyError: Any other error of the server.
        """
        request = generation_request(video, envelope, audio, options, settings, self._limits)
        with (cancel or CancelToken()).child(timeout) as token:
            result = await self.backend.generate(request, progress=on_progress, cancel=token)
        return replace(result, video=source_of_result(video))

    async def stream(
        self,
        video: MediaSource | None = None,
        *,
        envelope: EnvelopeSource | None = None,
        audio: MediaSource | None = None,
        options: GenerateOptions | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> AsyncEvents:
        """Generate sound as `generate` does, and yield events as they arrive.

        Yields:
            `Progress`, with the envelope as soon as it is known; `AudioChunk`, the parts of the sounds; and last the
            `GenerationResult`.
        """
        request = generation_request(video, envelope, audio, options, settings, self._limits)
        with (cancel or CancelToken()).child(timeout) as token:
            async with aclosing(self.backend.stream(request, cancel=token)) as events:
                async for event in events:
                    if isinstance(event, GenerationResult):
                        event = replace(event, video=source_of_result(video))
                    yield event

    async def predict_envelope(
        self,
        video: MediaSource,
        *,
        flow: OpticalFlow | None = None,
        on_progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Floats:
        """Predict the envelope of a video.

        Args:
            video: The video.
            flow: Optical flow; None: the server's default.
            on_progress: Receives the progress.
            cancel: Cancels the call.
            timeout: Maximum duration in seconds.

        Returns:
            Linear RMS, float32 [ceil(duration * 100)].

        Raises:
            MediaError: The file cannot be read, or the server cannot decode it.
        """
        with media_file(video, "video") as path, (cancel or CancelToken()).child(timeout) as token:
            return await self.backend.predict_envelope(path, flow=flow, progress=on_progress, cancel=token)

    async def embed_prompt(
        self,
        text: str = "",
        *,
        audio: MediaSource | None = None,
        negative_text: str = "",
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """Return the CLAP embeddings of a prompt and of its negative text, float32 [512] each."""
        with prompt_request(text, audio, negative_text) as prompt, (cancel or CancelToken()).child(timeout) as token:
            return await self.backend.embed_prompt(prompt, cancel=token)

    async def create(
        self,
        video: MediaSource | None = None,
        *,
        envelope: EnvelopeSource | None = None,
        audio: MediaSource | None = None,
        options: GenerateOptions | None = None,
        request_id: str | None = None,
        on_progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> "AsyncGenerationJob":
        """Start a long-running generation, which continues after a disconnect or a restart of the server.

        Args:
            video: See `generate`.
            envelope: See `generate`.
            audio: See `generate`.
            options: See `generate`.
            request_id: UUID that makes the call idempotent: repeated calls return the same generation. Random by
                default.
            on_progress: Receives the progress of the upload.
            cancel: Cancels the upload.
            timeout: Maximum duration of the upload in seconds.
            **settings: See `generate`.

        Returns:
            The accepted generation.

        Raises:
            MediaError: A file cannot be read, or the server cannot decode it.
            AlreadyExists: `request_id` belongs to a different request.
        """
        request = generation_request(video, envelope, audio, options, settings, self._limits)
        with (cancel or CancelToken()).child(timeout) as token:
            name = await self.backend.create(request, request_id=request_id, progress=on_progress, cancel=token)
        return AsyncGenerationJob(self.backend, name, source_of_result(video), describe_inputs(request))

    def job(self, name: str, video: MediaSource | None = None) -> "AsyncGenerationJob":
        """Return a long-running generation by its name, as after a restart of the caller.

        Args:
            name: The `GenerationJob.name` of an earlier `create`.
            video: The video, with which the result can be saved as a video.
        """
        return AsyncGenerationJob(self.backend, name, source_of_result(video))

    async def jobs(self) -> AsyncStatuses:
        """Yield the status of all long-running generations of this client's token, newest first."""
        async with aclosing(self.backend.generations()) as statuses:
            async for status in statuses:
                yield status


class AsyncFoleyClient(AsyncClient):
    """Client of the public API. Thread-safe; use it as a context manager, or call `close`.

    Every call has a deadline, and is retried if the server marks its error as retryable.

    Example:
        with FoleyClient("grpcs://foley.example.com") as client:
            result = client.generate("hits.mp4", text="a stick hits metal")
            result.save("out.mp4")

    Args:
        url: `grpcs://HOST[:PORT]`, or `grpc://HOST[:PORT]` without TLS; None: $FOLEY_SERVER.
        token: Bearer token; None: $FOLEY_TOKEN, or the content of the file $FOLEY_TOKEN_FILE.
        ca: PEM file of root certificates that replaces those of the system; None: $FOLEY_CA.
        certificate: PEM file of the client certificate for mutual TLS; None: $FOLEY_CERTIFICATE.
        key: PEM file of the private key of `certificate`; None: $FOLEY_KEY.
        max_retries: How often a call is retried.

    Raises:
        SettingError: The address or a certificate is not valid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        channel = Channel.from_environment(url, token=token, ca=ca, certificate=certificate, key=key)
        super().__init__(AsyncApiBackend(channel, max_retries))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.backend.channel.url}>"


class AsyncGenerationJob:
    """A long-running generation on the server; `AsyncFoleyClient.create` returns it.

    Attributes:
        name: Name of the generation on the server.
    """

    def __init__(
        self,
        backend: AsyncApiBackend,
        name: str,
        video: Path | bytes | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._backend, self._video, self._inputs = backend, video, inputs or {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    async def status(self) -> JobStatus:
        """The status, requested from the server.

        Raises:
            NotFound: The generation was deleted, or has expired.
        """
        return await self._backend.status(self.name)

    async def wait(
        self,
        *,
        on_progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> GenerationResult:
        """Wait for the end of the generation, and return its result.

        `cancel` and `timeout` end the wait, not the generation.

        Raises:
            NotFound: The generation was deleted, or has expired.
            TimedOut: It has not ended within `timeout` seconds.
            FoleyError: The error with which it failed; `Cancelled` if it was cancelled.
        """
        with (cancel or CancelToken()).child(timeout) as token:
            result = await self._backend.wait(self.name, progress=on_progress, cancel=token)
        return replace(with_inputs(result, self._inputs), video=self._video)

    async def cancel(self) -> None:
        """Cancel the generation; has no effect if it has ended.

        Raises:
            NotFound: The generation was deleted, or has expired.
        """
        await self._backend.cancel(self.name)

    async def delete(self) -> None:
        """Delete the generation and its files from the server.

        Raises:
            NotFound: The generation was deleted, or has expired.
            NotFinished: It has not ended; cancel it first.
        """
        await self._backend.delete(self.name)
