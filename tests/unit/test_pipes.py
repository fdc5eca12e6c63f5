"""Pipes as inputs and outputs of the command line, and names that are no files."""

import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

import foley_client
from foley.errors import FoleyError, MediaError, MediaTooLarge, SettingError
from foley_client import pipes
from foley_client.cli import app
from foley_client.pipes import Pipes

FOLEY = Path(sys.executable).with_name("foley")
STEEL = Path(__file__).resolve().parents[2] / "examples" / "steel.mp4"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "a.fifo")
    return tmp_path / "a.fifo"


def test_fifo_is_copied_and_the_copy_removed(fifo):
    content = os.urandom(3 << 20)
    writer = threading.Thread(target=fifo.write_bytes, args=[content])
    writer.start()
    with Pipes() as opened:
        copy = opened.source(fifo)
        writer.join()
        assert copy.read_bytes() == content
        assert opened.source(STEEL) == STEEL
        (fifo.parent / "other").mkdir()
        os.mkfifo(fifo.parent / "other" / fifo.name)
        writer = threading.Thread(target=(fifo.parent / "other" / fifo.name).write_bytes, args=[b"x"])
        writer.start()
        assert opened.source(fifo.parent / "other" / fifo.name).read_bytes() == b"x"
        writer.join()
        assert copy.read_bytes() == content
        with pytest.raises(SettingError, match="is given for two inputs"):
            opened.source(fifo)
    assert not copy.exists()


def test_fifo_has_limits(fifo, monkeypatch):
    monkeypatch.setattr(pipes, "IDLE_S", 0.01)
    with Pipes() as opened, pytest.raises(MediaError, match="nothing was written"):
        opened.source(fifo)
    writer = threading.Thread(target=_written_until_closed, args=[fifo])
    writer.start()
    monkeypatch.setattr(pipes, "IDLE_S", 60)
    with Pipes(limit=1 << 20) as opened, pytest.raises(MediaTooLarge, match="more than 1048576 bytes"):
        opened.source(fifo)
    writer.join()


def _written_until_closed(fifo: Path) -> None:
    with suppress(BrokenPipeError), fifo.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "https://x.org/a.mp4"], "https://x.org/a.mp4 is a URL; give a file, or use `foley render`"),
        (["envelope", "https://x.org/a.mp4", "-o", "a.csv"], "https://x.org/a.mp4 is a URL"),
        (["generate", STEEL, "-o", "s3://bucket/a.mp4"], "s3://bucket/a.mp4 is a URL"),
        (["generate", STEEL, "--audio", "http://x.org/a.wav"], "http://x.org/a.wav is a URL"),
        (["generate", STEEL, "--envelope", "http://x.org/a.wav"], "http://x.org/a.wav is a URL"),
        (["generate", STEEL, "-o", "-"], "standard output needs a format; add one, such as `--format wav`"),
        (["generate", STEEL, "-o", "a.wav", "--format", "wav"], "--format applies to standard output"),
        (["generate", STEEL, "-o", "-", "--format", "exe"], "--format is exe: use one of mp4, "),
        (["generate", STEEL, "-o", "-", "--format", "wav", "--variations", "2"], "takes one sound"),
        (["generate", STEEL, "-o", "-", "-o", "-", "--format", "wav"], "an output is named twice"),
    ],
)
def test_errors_of_names(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoleyError, match=re.escape(words)) as refused:
        typer.main.get_command(app)([str(argument) for argument in arguments], standalone_mode=False)
    assert refused.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-"], "stdin is empty"), (["-", "--audio", "-"], "standard input is given for two inputs")],
)
def test_errors_of_standard_input(tmp_path, arguments, words):
    command = [FOLEY, "generate", *arguments]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {words}")


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_terminals_are_no_files(tmp_path, stream):
    controller, terminal = os.openpty()
    arguments = ["-", "-o", "a.wav"] if stream == "stdin" else [STEEL, "-o", "-", "--format", "wav"]
    with os.fdopen(controller), os.fdopen(terminal) as device:
        ended = subprocess.run(
            [FOLEY, "generate", *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, stream: device},
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=60,
        )
    assert ended.returncode == 2
    assert b"is a terminal" in ended.stderr


@pytest.mark.parametrize("stream", ["0<&-", "1>&-"])
def test_closed_streams(tmp_path, stream):
    arguments = "- -o a.wav" if stream == "0<&-" else f"'{STEEL}' -o - --format wav"
    ended = subprocess.run(
        ["bash", "-c", f"'{FOLEY}' generate {arguments} {stream}"], cwd=tmp_path, stderr=subprocess.PIPE, timeout=60
    )
    assert ended.returncode == 2
    assert b"is closed; give the name of a file" in ended.stderr


@pytest.mark.parametrize(("sink", "words"), [("/dev/full", "No space left"), ("closed", "Broken pipe")])
def test_output_that_cannot_be_written(sink, words, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") if sink == "closed" else Path(sink).open("w") as stream, Pipes() as opened:
        monkeypatch.setattr(sys, "stdout", stream)
        (made,) = opened.destinations([pipes.STANDARD], "WAV", [".wav"])
        assert made.suffix == ".wav"
        made.write_bytes(bytes(1 << 20))
        with pytest.raises(FoleyError, match=f"cannot write standard output .{words}"):
            opened.finish()


@pytest.mark.parametrize("program", ["foley", "foley-server", "foley-export", "foley-train", "foley-bench"])
def test_version(program):
    ended = subprocess.run([FOLEY.with_name(program), "--version"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{program} {version('foley-core')}\n"
    assert foley_client.__version__ == version("foley-client") == version("foley-core")
