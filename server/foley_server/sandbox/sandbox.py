"""Reads untrusted media in a subprocess (`decoder`) with limited rights, memory and time."""

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Literal, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from foley.clip import FRAME_HEIGHT, FRAME_WIDTH, SAMPLE_RATE_HZ
from foley.container import Limits
from foley.envelope import Floats
from foley.errors import MediaError, MediaTooLarge, Overloaded, SettingError
from foley.media import VideoInfo
from foley.options import SourceAudio
from foley.output import replacing
from foley_pipeline.api.messages import field
from foley_pipeline.api.status import reason
from foley_pipeline.media_loader import Image, MediaLoader
from foley_server.sandbox.decoder import AUDIO_BLOCK, DATA, END, ERROR, HEADER, PREFIX

FRAME_BYTES = FRAME_HEIGHT * FRAME_WIDTH * 3
MAX_CONTROL_BYTES = 64 * 1024  # maximum size of a header or an error, bytes
_CONTROL = {HEADER: MAX_CONTROL_BYTES, ERROR: MAX_CONTROL_BYTES, END: 0}
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # of the decoder: threads from before its lock-down would keep their rights
RETRY_AFTER_S = 10.0
KILL_S = 10.0  # maximum time to wait for a killed process, which may be stuck in a file system
_INFO = TypeAdapter(VideoInfo)

log = logging.getLogger(__name__)

Level: TypeAlias = Literal["strict", "partial", "limits"]
Outcome: TypeAlias = Literal["ok", "refused", "crashed", "timeout", "cancelled"]


@dataclass
class Sandbox:
    """Runs the decoder with limited rights and resources. Thread-safe.

    Attributes:
        limits: Limits for the media itself.
        memory_bytes: Address space of the decoder process, including its libraries.
        cpu_s: CPU time of the decoder process.
        wall_s: Total time to wait for the decoder's output; excludes the time that the decoder waits for the reader.
            Also the maximum time to wait until fewer than `decoders` processes run.
        decoders: Maximum number of decoder processes at a time. Iterating over a video takes one until the end.
        on_end: Called at the end of every decoder process, in the thread that reads from it. "refused": it reported
            an error in the file. "timeout": it reached a limit on time. "cancelled": the caller stopped reading.
        level: What `measure` found; None before. "strict": everything that `self_test` tries is refused. "partial":
            some of it is not. "limits": the kernel has neither Landlock nor seccomp, and only resources are limited.
    """

    limits: Limits
    memory_bytes: int
    cpu_s: float
    wall_s: float
    decoders: int = 4
    on_end: Callable[[Outcome], None] = lambda _: None
    level: Level | None = None

    def __post_init__(self) -> None:
        self._slots = threading.BoundedSemaphore(self.decoders)

    def measure(self, folder: Path, strict: bool = False) -> None:
        """Try in a decoder process what it must not be able to do, set `level` and log it.

        Args:
            folder: A folder of the server, for temporary files that the decoder must not reach.
            strict: Whether any level but "strict" is an error.

        Raises:
            SettingError: The level is not "strict", or the decoder does not start.
        """
        mechanisms, gaps = self._tested(folder)
        complete = len(mechanisms) == 2 and not gaps
        self.level = "strict" if complete else "partial" if mechanisms else "limits"
        if complete:
            log.info("decoder sandbox: strict, by %s", " and ".join(mechanisms))
            return
        found = f"{self.level}, by {' and '.join(mechanisms) or 'limits on resources'}; it can {', '.join(gaps)}"
        if strict:
            raise SettingError(
                f"the decoder's sandbox is {found}; use a kernel with Landlock (5.13) and a container runtime that "
                "allows it, or set sandbox to auto"
            )
        log.warning("decoder sandbox: %s", found)

    def _tested(self, folder: Path) -> tuple[list[str], list[str]]:
        """Return which mechanisms are in force in a decoder process, and what it can do nevertheless."""
        with TemporaryDirectory(dir=folder) as name, socket.create_server(("127.0.0.1", 0)) as listener:
            scratch = Path(name)
            for file in ("input", "other", "program"):
                (scratch / file).write_bytes(b"\0")
            (scratch / "program").chmod(0o700)
            options = {"folder": name, "port": listener.getsockname()[1], "server": os.getpid()}
            try:
                answers = [content for _, content in self.run("self-test", scratch / "input", 0, **options)]
            except MediaError as error:
                raise SettingError(
                    "the decoder does not start; raise decoder_mib, decoder_cpu or decoder_wall"
                ) from error
        found = json.loads(answers[0])
        return found["mechanisms"], found["gaps"]

    @property
    def loader(self) -> MediaLoader:
        """Loader that opens files in the sandbox."""
        return MediaLoader(self.open_video, self.read_audio)

    def open_video(self, path: Path) -> "SandboxedVideo":
        """Open a video, as `foley.media.read_frames` does; errors have the field `video`."""
        with field("video"):
            return SandboxedVideo(path, self)

    def read_audio(self, path: Path) -> Floats:
        """Decode audio, as `foley.audio.read_audio` does; errors have the field `prompt.audio`.

        Returns:
            Samples [n] at 16 kHz, float32.
        """
        longest = int(self.limits.duration_s * SAMPLE_RATE_HZ * 1.1) + AUDIO_BLOCK
        blocks, count = [], 0
        with field("prompt.audio"):
            for _, content in self.run("audio", path, 4 * AUDIO_BLOCK):
                blocks.append(np.frombuffer(content, "<f4").astype(np.float32))
                count += len(blocks[-1])
                if count > longest:
                    raise _invalid_output(path)
            samples: Floats = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
            if not len(samples) or not np.isfinite(samples).all():
                raise _invalid_output(path)
        return samples

    def mux(self, video: Path, sound: Path, to: Path, source_audio: SourceAudio) -> None:
        """Write a video with a sound, as `foley.mux.write_video` does; the output file is written atomically.

        Args:
            video: The video.
            sound: Audio file with the sound.
            to: Output file.
            source_audio: Whether the video's own audio is replaced, mixed in, or kept as a second track.

        Raises:
            MediaError: The video or the sound cannot be used.
        """
        self._write("mux", video, to, sound=str(sound), source_audio=source_audio)

    def preview(self, video: Path, to: Path) -> None:
        """Write a preview, as `foley_server.sandbox.preview.write_preview` does; the output file is written atomically.

        Raises:
            MediaError: The video cannot be used.
        """
        self._write("preview", video, to)

    def _write(self, command: str, video: Path, to: Path, **options: str) -> None:
        with replacing(to) as temporary:
            for _ in self.run(
                command, video, 0, to=str(temporary), file_bytes=min(4 * self.limits.bytes, sys.maxsize), **options
            ):
                pass

    def run(
        self, command: str, path: Path, data_bytes: int, **options: str | int
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """Run the decoder on a file. Closing the generator kills the process.

        Args:
            command: Verb of the decoder.
            path: The untrusted file.
            data_bytes: Maximum size of a data message.
            options: Further arguments of the command.

        Yields:
            Kind and content of each message.

        Raises:
            MediaError: The decoder reported an error, crashed, or wrote invalid output.
            MediaTooLarge: The decoder reached a limit.
            Overloaded: `decoders` processes run, and none has ended within `wall_s`.
        """
        arguments = {"limits": asdict(self.limits), "memory_bytes": self.memory_bytes, "cpu_s": self.cpu_s, **options}
        outcome: Outcome = "crashed"
        with self._slot(), _decoder(command, str(path.absolute()), json.dumps(arguments)) as (process, output):
            try:
                with closing(_Pipe(output.fileno(), self.wall_s)) as pipe:
                    while prefix := pipe.read(PREFIX.size):
                        kind, size = PREFIX.unpack(prefix)
                        if size > _CONTROL.get(kind, data_bytes if kind == DATA else -1):
                            raise _invalid_output(path)
                        content = pipe.read(size)
                        if kind == END:
                            outcome = "ok"
                            return
                        if kind == ERROR:
                            outcome = "refused"
                            raise _reported_error(path, content)
                        outcome = "cancelled"
                        yield kind, content
                        outcome = "crashed"
                    raise EOFError
            except TimeoutError as error:
                outcome = "timeout"
                raise MediaTooLarge(f"{path.name} takes more than {self.wall_s:g} s to decode; shorten it") from error
            except EOFError as error:
                if _kill(process) != -signal.SIGXCPU:  # a process that has already ended keeps its exit status
                    raise MediaError(
                        f"{path.name} cannot be decoded: the decoder crashed; export the file again"
                    ) from error
                outcome = "timeout"
                raise MediaTooLarge(
                    f"{path.name} needs more than {self.cpu_s:g} s of CPU time to decode; "
                    "shorten it, or lower its resolution"
                ) from error
            finally:
                self.on_end(outcome)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=self.wall_s):
            error = Overloaded(f"{self.decoders} files are being decoded, which is the limit; try again later")
            error.retry_after_s = RETRY_AFTER_S
            raise error
        try:
            yield
        finally:
            self._slots.release()


class SandboxedVideo:
    """Sandboxed counterpart of `foley.media.Frames`; each iteration runs a decoder process.

    Attributes:
        path: The video file.
        info: Its metadata.
    """

    def __init__(self, path: Path, sandbox: Sandbox) -> None:
        self.path = path
        self._sandbox = sandbox
        headers = [content for kind, content in sandbox.run("probe", path, 0) if kind == HEADER]
        self.info = _parse_info(path, headers, sandbox.limits)

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Image]:
        count = 0
        with field("video"), closing(self._sandbox.run("frames", self.path, FRAME_BYTES)) as messages:
            for _, content in messages:
                count += 1
                if len(content) != FRAME_BYTES or count > len(self):
                    raise _invalid_output(self.path)
                yield np.frombuffer(content, np.uint8).reshape(FRAME_HEIGHT, FRAME_WIDTH, 3)
        if count != len(self):
            raise _invalid_output(self.path)


@contextmanager
def _decoder(*arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """Start a decoder process, yield it and its output, and kill it."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "foley_server.sandbox.decoder", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,  # also its process group; see `_kill`
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        process.stdout.close()
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> int | None:
    """Kill a process and those that it started, where the sandbox does not prevent that.

    Returns:
        Its exit status; None if it does not end.
    """
    if process.returncode is None:  # otherwise its number may belong to another process
        os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)
    return process.returncode


class _Pipe:
    """Reads exact byte counts from a pipe, with a limit on the total time spent waiting."""

    def __init__(self, descriptor: int, wall_s: float) -> None:
        self._descriptor = descriptor
        self._left_s = wall_s
        self._selector = selectors.DefaultSelector()  # `select.select` takes no descriptor above 1023
        self._selector.register(descriptor, selectors.EVENT_READ)

    def close(self) -> None:
        """Close the selector; the pipe belongs to the process."""
        self._selector.close()

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes; return b"" at the end of the stream.

        Raises:
            TimeoutError: The time limit is reached.
            EOFError: The stream ends after fewer bytes.
        """
        pieces, missing = [], size
        while missing:
            started_at = time.monotonic()
            ready = self._selector.select(max(0.0, self._left_s))
            self._left_s -= time.monotonic() - started_at
            if not ready:
                raise TimeoutError
            piece = os.read(self._descriptor, min(missing, 1 << 20))
            if not piece:
                if missing == size:
                    return b""
                raise EOFError
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


def _parse_info(path: Path, headers: list[bytes], limits: Limits) -> VideoInfo:
    try:
        (header,) = headers
        info = _INFO.validate_json(header, strict=True)
    except ValueError as error:  # includes pydantic.ValidationError
        raise _invalid_output(path) from error
    if not 0 < info.duration_s <= limits.duration_s or not 0 < info.source_frames <= limits.frames:
        raise _invalid_output(path)
    return info


def _reported_error(path: Path, content: bytes) -> MediaError:
    try:
        name, message = json.loads(content)
        kind = {reason(kind): kind for kind in (MediaError, MediaTooLarge)}[name]
        return kind(str(message))
    except (ValueError, KeyError, TypeError):
        return _invalid_output(path)


def _invalid_output(path: Path) -> MediaError:
    return MediaError(f"{path.name} cannot be decoded: the decoder returned invalid output; export the file again")
