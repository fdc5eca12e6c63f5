"""Temporary files on a full disk: one sentence from every place that writes them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from foley.errors import OutputError
from foley.scratch import scratch_folder
from foley_client.embedded import embedded_triton

STEEL = Path(__file__).resolve().parents[2] / "examples" / "steel.mp4"
# No file of this process may grow beyond 64 KiB, which is less than the video.
PROGRAM = f"""
import resource, sys
from contextlib import ExitStack
from pathlib import Path
import numpy as np
from foley.errors import FoleyError
from foley.scratch import scratch_folder
from foley_client import GenerationResult, Take
from foley_client._inputs import media_file
from foley_client.pipes import STANDARD, Pipes
from foley_client.render.storage import Output, fetched

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
video = Path({str(STEEL)!r})

def write_to_bucket():
    with Output("memory://bucket", scratch).writing("a.mp4") as path:
        path.write_bytes(bytes(1 << 17))

places = dict(
    save=lambda: GenerationResult(np.ones(9), [Take(np.zeros(9), {{}})], video=video.read_bytes()).save("a.mp4"),
    input=lambda: stack.enter_context(media_file(video.read_bytes(), "video")),
    stdin=lambda: stack.enter_context(Pipes()).source(STANDARD),
    url=lambda: stack.enter_context(fetched(f"file://{{video}}", scratch, "video")),
    bucket=write_to_bucket,
)
with ExitStack() as stack:
    scratch = stack.enter_context(scratch_folder("foley-test-"))
    try:
        with ExitStack() as stack:
            places[sys.argv[1]]()
    except FoleyError as error:
        print(error)
"""


@pytest.mark.parametrize("place", ["save", "input", "stdin", "url", "bucket"])
def test_full_disk_is_one_sentence(tmp_path, place):
    with STEEL.open("rb") as video:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, place],
            stdin=video,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"TMPDIR": str(tmp_path)},
            timeout=60,
        )
    assert ended.stderr == ""
    assert ended.stdout.startswith("cannot write ")
    assert str(tmp_path) in ended.stdout
    assert "(File too large); " in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_for_temporary_files(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    for started in (scratch_folder("foley-"), embedded_triton()):
        with pytest.raises(OutputError, match=r"cannot write temporary files in /nowhere .*set TMPDIR"), started:
            pass


def test_every_command_explains_a_full_disk():
    program = "from foley import command; command.run(lambda: open('/dev/full', 'wb', 0).write(b'x'))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: No space left on device; free space, or set TMPDIR for temporary files\n",
    )
