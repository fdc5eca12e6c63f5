"""Untrusted media, read through a process of its own (`decoder`) that is bounded in memory and time."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from foley.clip import FRAME_HEIGHT, FRAME_WIDTH, SAMPLE_RATE_HZ
from foley.container import Limits
from foley.envelope import Floats
from foley.errors import MediaError, MediaTooLarge
from foley.media import VideoInfo
from foley.options import SourceAudio
from foley.output import replacing
from foley_pipeline.api.messages import field
from foley_pipeline.api.status import reason
from foley_pipeline.reader import Image, Reader
from foley_server.api.decoder import AUDIO_BLOCK, DATA, END, ERROR, HEADER, PREFIX

FRAME_BYTES = FRAME_HEIGHT * FRAME_WIDTH * 3
MAX_WORDS = 64 * 1024  # bytes of a header or an error
_CONTROL = {HEADER: MAX_WORDS, ERROR: MAX_WORDS, END: 0}
_INFO = TypeAdapter(VideoInfo)


@dataclass(frozen=True)
class Sandbox:
    """What the decoding of one file may cost.

    Attributes:
        memory_bytes: address space of the process, its libraries included.
        cpu_s: its processor time.
        wall_s: how long we wait for it in all; the time that it waits for us does not count.
    """

    limits: Limits
    memory_bytes: int
    cpu_s: float
    wall_s: float

    @property
    def reader(self) -> Reader:
        """What opens files with these bounds."""
        return Reader(self.open_video, self.read_audio)

    def open_video(self, path: Path) -> "SandboxedVideo":
        """`foley.media.read_frames`; errors blame the field `video`, and those of `read_audio` `prompt.audio`."""
        with field("video"):
            return SandboxedVideo(path, self)

    def read_audio(self, path: Path) -> Floats:
        """`foley.audio.read_audio`, at 16 kHz."""
        longest = int(self.limits.duration_s * SAMPLE_RATE_HZ * 1.1) + AUDIO_BLOCK
        blocks, count = [], 0
        with field("prompt.audio"):
            for _, content in self.run("audio", path, 4 * AUDIO_BLOCK):
                blocks.append(np.frombuffer(content, "<f4").astype(np.float32))
                count += len(blocks[-1])
                if count > longest:
                    raise _broken(path)
            samples: Floats = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
            if not len(samples) or not np.isfinite(samples).all():
                raise _broken(path)
        return samples

    def mux(self, video: Path, sound: Path, to: Path, source_audio: SourceAudio) -> None:
        """`foley.mux.write_video` with the sound in the file `sound`; `to` is there whole, or not at all.

        Raises:
            MediaError: the video or the sound cannot be used for that.
        """
        self._write("mux", video, to, sound=str(sound), source_audio=source_audio)

    def preview(self, video: Path, to: Path) -> None:
        """`foley.preview.write_preview`; `to` is there whole, or not at all. Raises MediaError."""
        self._write("preview", video, to)

    def _write(self, verb: str, video: Path, to: Path, **more: str) -> None:
        with replacing(to) as temporary:
            for _ in self.run(verb, video, 0, to=str(temporary), file_bytes=4 * self.limits.bytes, **more):
                pass

    def run(
        self, verb: str, path: Path, data_bytes: int, **more: str | int
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """What the decoder says about `path`, letter and content; no data longer than `data_bytes`. It ends with us.

        What it is told `more` is the verb's.

        Raises:
            MediaError: what the decoder says is wrong, or what became of it.
        """
        order = {"limits": asdict(self.limits), "memory_bytes": self.memory_bytes, "cpu_s": self.cpu_s, **more}
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "foley_server.api.decoder", verb, str(path.absolute()), json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        assert process.stdout is not None
        try:
            with closing(_Pipe(process.stdout.fileno(), self.wall_s)) as pipe:
                while prefix := pipe.read(PREFIX.size):
                    kind, size = PREFIX.unpack(prefix)
                    if size > _CONTROL.get(kind, data_bytes if kind == DATA else -1):
                        raise _broken(path)
                    content = pipe.read(size)
                    if kind == END:
                        return
                    if kind == ERROR:
                        raise _said(path, content)
                    yield kind, content
            raise self._died(path, process.wait(self.wall_s))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise MediaTooLarge(f"{path.name} takes more than {self.wall_s:g} s to decode; shorten it") from error
        except EOFError as error:
            raise self._died(path, process.wait(self.wall_s)) from error
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def _died(self, path: Path, code: int) -> MediaError:
        if -code in (signal.SIGXCPU, signal.SIGKILL):
            return MediaTooLarge(
                f"{path.name} takes more than {self.cpu_s:g} s of processor time to decode; "
                "shorten it, or lower its resolution"
            )
        return MediaError(f"{path.name} cannot be decoded: its decoder broke down over it; export it again")


class SandboxedVideo:
    """`foley.media.Frames`, each of whose readings is a process of its own."""

    def __init__(self, path: Path, sandbox: Sandbox) -> None:
        self.path = path
        self._sandbox = sandbox
        headers = [content for kind, content in sandbox.run("probe", path, 0) if kind == HEADER]
        self.info = _info(path, headers, sandbox.limits)

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Image]:
        count = 0
        with field("video"), closing(self._sandbox.run("frames", self.path, FRAME_BYTES)) as said:
            for _, content in said:
                count += 1
                if len(content) != FRAME_BYTES or count > len(self):
                    raise _broken(self.path)
                yield np.frombuffer(content, np.uint8).reshape(FRAME_HEIGHT, FRAME_WIDTH, 3)
        if count != len(self):
            raise _broken(self.path)


class _Pipe:
    """Reads whole pieces from a pipe; the time that it waits for them, in all, is bounded."""

    def __init__(self, descriptor: int, wall_s: float) -> None:
        self._descriptor = descriptor
        self._left_s = wall_s
        self._selector = selectors.DefaultSelector()  # `select.select` takes no descriptor above 1023
        self._selector.register(descriptor, selectors.EVENT_READ)

    def close(self) -> None:
        """Stop waiting; the pipe itself is the process's."""
        self._selector.close()

    def read(self, size: int) -> bytes:
        """`size` bytes, or none at the end. Raises TimeoutError, or EOFError where the end comes in between."""
        pieces, missing = [], size
        while missing:
            began = time.monotonic()
            ready = self._selector.select(max(0.0, self._left_s))
            self._left_s -= time.monotonic() - began
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


def _info(path: Path, headers: list[bytes], limits: Limits) -> VideoInfo:
    try:
        (header,) = headers
        info = _INFO.validate_json(header, strict=True)
    except ValueError as error:  # pydantic's errors are such too
        raise _broken(path) from error
    if not 0 < info.duration_s <= limits.duration_s or not 0 < info.source_frames <= limits.frames:
        raise _broken(path)
    return info


def _said(path: Path, content: bytes) -> MediaError:
    try:
        word, message = json.loads(content)
        kind = {reason(kind): kind for kind in (MediaError, MediaTooLarge)}[word]
        return kind(str(message))
    except (ValueError, KeyError, TypeError):
        return _broken(path)


def _broken(path: Path) -> MediaError:
    return MediaError(f"{path.name} cannot be decoded: its decoder speaks nonsense over it; export it again")
