"""Subprocess that decodes one untrusted file: `python -m foley_server.sandbox.decoder COMMAND FILE ARGUMENTS`.

Before it opens the file, it limits its own resources (`set_limits`) and takes away its own rights (`lock_down`): it
can read the file, write the result of `mux` and `preview`, and nothing else. Everything is imported before that.

Its only output is standard output: messages of a kind (one byte), a length (uint32, see `PREFIX`) and content. Kinds:
H header, D data, E error, Z end. The reader, `sandbox`, treats the output as untrusted.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from av.subtitles import codeccontext, stream  # noqa: F401  PyAV imports them late, after the lock-down

from foley.audio import read_audio
from foley.clip import SAMPLE_RATE_HZ
from foley.container import Limits
from foley.errors import FoleyError, MediaTooLarge
from foley.media import probe, read_frames
from foley.mux import write_video
from foley_pipeline.api.status import reason
from foley_server.sandbox import landlock, seccomp, self_test
from foley_server.sandbox.preview import write_preview

HEADER, DATA, ERROR, END = b"H", b"D", b"E", b"Z"
PREFIX = struct.Struct("<cI")
AUDIO_BLOCK = 1 << 16  # maximum number of samples in a data message


def set_limits(memory_bytes: int, cpu_s: float, file_bytes: int = 0) -> None:
    """Limit the resources of this process, and end it with its parent.

    Args:
        memory_bytes: Maximum address space.
        cpu_s: Maximum CPU time.
        file_bytes: Maximum size of a written file.
    """
    seconds = max(1, round(cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def lock_down(readable: Iterable[Path], writable: Iterable[Path]) -> list[str]:
    """Take away the rights of this process that it does not need, as far as the kernel can.

    Args:
        readable: Files that it may read.
        writable: Files, which exist, that it may read and write.

    Returns:
        What is in force: "landlock", "seccomp", both or none.

    Raises:
        RuntimeError: There are other threads, which would keep their rights.
        OSError: The kernel refuses.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a library has started threads, which keep their rights; start them later")
    in_force = ["landlock"] if landlock.restrict(readable, writable) else []
    return [*in_force, "seccomp"] if seccomp.restrict() else in_force


def main(out: BinaryIO, command: str, file: Path, arguments: Mapping[str, Any]) -> None:
    """Run `command` on `file` and write the result to `out`.

    Args:
        out: Stream for the messages.
        command: "probe", "frames", "audio", "mux", "preview" or "self-test".
        file: The untrusted file.
        arguments: Limits, and arguments of the command.
    """

    def send(kind: bytes, content: bytes) -> None:
        out.write(PREFIX.pack(kind, len(content)))
        out.write(content)
        out.flush()

    limits = Limits(**arguments["limits"])
    try:
        _COMMANDS[command](file, limits, send, arguments)
        send(END, b"")
    except FoleyError as error:
        send(ERROR, json.dumps([reason(type(error)), str(error)]).encode())
    except MemoryError:
        too_large = f"{file.name} needs too much memory to decode; lower its resolution"
        send(ERROR, json.dumps([reason(MediaTooLarge), too_large]).encode())


Send = Callable[[bytes, bytes], None]
Arguments = Mapping[str, Any]


def _probe(file: Path, limits: Limits, send: Send, _: Arguments) -> None:
    send(HEADER, json.dumps(asdict(probe(file, limits))).encode())


def _frames(file: Path, limits: Limits, send: Send, _: Arguments) -> None:
    for image in read_frames(file, limits):
        send(DATA, image.tobytes())


def _audio(file: Path, limits: Limits, send: Send, _: Arguments) -> None:
    samples = read_audio(file, limits)
    for start in range(0, len(samples), AUDIO_BLOCK):
        send(DATA, samples[start : start + AUDIO_BLOCK].astype("<f4").tobytes())


def _mux(file: Path, limits: Limits, send: Send, arguments: Arguments) -> None:
    """Write the picture of `file` with the sound of another file to `arguments["to"]`; see `foley.mux.write_video`."""
    sound = read_audio(Path(arguments["sound"]), limits)
    write_video(file, sound, SAMPLE_RATE_HZ, Path(arguments["to"]), arguments["source_audio"], limits=limits)


def _preview(file: Path, limits: Limits, send: Send, arguments: Arguments) -> None:
    """Write a preview of `file` to `arguments["to"]`; see `foley_server.sandbox.preview`."""
    write_preview(file, Path(arguments["to"]), limits)


def _self_test(file: Path, limits: Limits, send: Send, arguments: Arguments) -> None:
    """Report what is in force, and what succeeds nevertheless; see `foley_server.sandbox.self_test`."""
    gaps = self_test.gaps(file, Path(arguments["folder"]), arguments["port"], arguments["server"])
    send(HEADER, json.dumps({"mechanisms": arguments["mechanisms"], "gaps": gaps}).encode())


_COMMANDS: Mapping[str, Callable[[Path, Limits, Send, Arguments], None]] = {
    "probe": _probe,
    "frames": _frames,
    "audio": _audio,
    "mux": _mux,
    "preview": _preview,
    "self-test": _self_test,
}

if __name__ == "__main__":
    command, file, arguments = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    set_limits(arguments["memory_bytes"], arguments["cpu_s"], arguments.get("file_bytes", 0))
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep the output of libraries out of the message stream
    readable, writable = ([Path(arguments[name])] if name in arguments else [] for name in ("sound", "to"))
    arguments["mechanisms"] = lock_down([file, *readable], writable)
    main(stdout, command, file, arguments)
