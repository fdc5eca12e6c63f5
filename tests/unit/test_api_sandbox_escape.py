"""A decoder that was taken over can do nothing: what it would try, tried on the running kernel, in and out of it."""

import ctypes
import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from foley.container import Limits
from foley.errors import SettingError
from foley_server.sandbox import landlock, self_test
from foley_server.sandbox.sandbox import Sandbox

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "steel.mp4"
ATTEMPTS = list(self_test.attempts(EXAMPLE, EXAMPLE.parent, 0, 0))
OWN = ["use descriptors of the server", "read variables of the server"]  # refused by how the decoder is started


def sandbox():
    return Sandbox(Limits(), memory_bytes=2 << 30, cpu_s=60, wall_s=120)


def landlock_abi():
    """Return the ABI of the kernel's Landlock, 0 without one."""
    return max(0, ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_long(0), ctypes.c_long(1)))


needs_landlock = pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")


def test_all_attempts_succeed_outside_the_sandbox(tmp_path):
    """The self-test can tell: each attempt succeeds in a process with the same parent, but without the sandbox."""
    for name in ("input", "other", "program"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "program").chmod(0o700)
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1))  # PR_SET_PTRACER: Yama lets only ancestors trace
    extra = fcntl.fcntl(0, fcntl.F_DUPFD, 10)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"""
import json
from pathlib import Path
from foley_server.sandbox.self_test import gaps
folder = Path({str(tmp_path)!r})
print(json.dumps(gaps(folder / "input", folder, {listener.getsockname()[1]}, {os.getpid()})))
"""
        run = subprocess.run(
            [sys.executable, "-c", program],
            pass_fds=[extra],
            env=os.environ | {"SECRET": "x"},
            capture_output=True,
            check=True,
            timeout=120,
        )
    os.close(extra)
    assert json.loads(run.stdout) == ATTEMPTS


@needs_landlock
def test_no_attempt_succeeds_in_the_sandbox(tmp_path, caplog):
    measured = sandbox()
    with caplog.at_level(logging.INFO):
        measured.measure(tmp_path, strict=True)
    assert measured.level == "strict"
    assert [record.getMessage() for record in caplog.records] == ["decoder sandbox: strict, by landlock and seccomp"]
    assert list(tmp_path.iterdir()) == []


# a process under a filter like those of container runtimes that do not know Landlock, or forbid new filters, too
UNDER_FILTER = """
import ctypes, json, logging, pathlib, sys
from foley.container import Limits
from foley.errors import SettingError
from foley_server.sandbox import seccomp
from foley_server.sandbox.sandbox import Sandbox
prctl = {"x86_64": 157, "aarch64": 167}[__import__("os").uname().machine]
no_filters = [
    (seccomp.IF_EQUAL, 0, 3, prctl),
    (seccomp.LOAD, 0, 0, seccomp.ARGUMENTS),
    (seccomp.IF_EQUAL, 0, 1, 22),
    (seccomp.RETURN, 0, 0, 0x00050000 | 22),
] if "seccomp" in sys.argv else []
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
assert seccomp.install([
    (seccomp.LOAD, 0, 0, seccomp.NUMBER),
    *((seccomp.IF_EQUAL, 0, 1, 444), (seccomp.RETURN, 0, 0, seccomp.NOT_THERE)),
    *no_filters,
    (seccomp.RETURN, 0, 0, seccomp.ALLOW),
])
sandbox = Sandbox(Limits(), memory_bytes=2 << 30, cpu_s=60, wall_s=120)
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
sandbox.measure(pathlib.Path(sys.argv[1]))
video = sum(1 for _ in sandbox.loader.video(pathlib.Path(sys.argv[2])))
try:
    sandbox.measure(pathlib.Path(sys.argv[1]), strict=True)
    refusal = ""
except SettingError as error:
    refusal = str(error)
_, gaps = sandbox._tested(pathlib.Path(sys.argv[1]))
print(json.dumps([sandbox.level, gaps, video, refusal]))
"""


@pytest.mark.parametrize(
    ("missing", "level", "refused"),
    [
        (
            ["landlock"],
            "partial",
            {
                *("open a TCP socket", "open a Unix socket", "connect to a port", "list a folder", "remove a file"),
                *("read the memory of the server", "send the server a signal", "start a process", "run a program"),
                *("use ptrace", *OWN),
            },
        ),
        (["landlock", "seccomp"], "limits", set(OWN)),
    ],
)
def test_level_is_measured_and_can_be_demanded(tmp_path, missing, level, refused):
    run = subprocess.run(
        [sys.executable, "-c", UNDER_FILTER, str(tmp_path), str(EXAMPLE), *missing],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found, gaps, frames, refusal = json.loads(run.stdout)
    assert found == level
    assert set(gaps) == set(ATTEMPTS) - refused
    assert run.stderr.startswith(f"WARNING decoder sandbox: {level}, by ")
    assert all(gap in run.stderr for gap in gaps)
    assert frames > 0  # files are decoded nevertheless
    assert "set sandbox to auto" in refusal
    assert level in refusal


def test_a_decoder_that_does_not_start_is_an_error(tmp_path):
    with pytest.raises(SettingError, match="raise decoder_mib"):
        Sandbox(Limits(), memory_bytes=2 << 30, cpu_s=60, wall_s=0.001).measure(tmp_path)


def in_sandbox(tmp_path, program):
    """Run a program after the lock-down of the decoder, and return its output."""
    started = "import ctypes, os, threading\nfrom pathlib import Path\nfrom foley_server.sandbox import decoder\n"
    locked = f"decoder.set_limits(2 << 30, 60)\ndecoder.lock_down([Path({str(tmp_path)!r})], [])\n"
    return subprocess.run(
        [sys.executable, "-c", started + locked + program],
        env={"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


# name -> number on x86_64, on aarch64; what an allow list of system calls has to leave out
CALLS = {
    **{"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206), "socketpair": (53, 199)},
    **{"fork": (57, None), "vfork": (58, None), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281)},
    **{"kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "pidfd_send_signal": (424, 424)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "prctl": (157, 167), "prlimit64": (302, 261)},
    **{"mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51)},
    **{"bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "perf_event_open": (298, 241)},
    **{"io_uring_setup": (425, 425), "io_setup": (206, 0), "userfaultfd": (323, 282), "memfd_create": (319, 279)},
    **{"ioctl": (16, 29), "truncate": (76, 45), "linkat": (265, 37), "symlinkat": (266, 36), "unlinkat": (263, 35)},
    **{"mknodat": (259, 33), "fchmodat": (268, 53), "open_by_handle_at": (304, 265), "getdents64": (217, 61)},
    **{"setuid": (105, 146), "capset": (126, 91), "finit_module": (313, 273), "seccomp": (317, 277), "dup": (32, 23)},
    "getpid of x32": (0x40000000 | 39, None),
}


def test_other_system_calls_do_not_exist(tmp_path):
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: both[column] for name, both in CALLS.items() if both[column] is not None}
    answers = in_sandbox(
        tmp_path,
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {list(numbers.values())}:\n"
        "    ctypes.set_errno(0)\n"
        "    print(libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6), ctypes.get_errno())\n",
    )
    assert dict(zip(numbers, answers.splitlines(), strict=True)) == dict.fromkeys(numbers, f"-1 {errno.ENOSYS}")


def test_threads_start_and_processes_do_not(tmp_path):
    output = in_sandbox(
        tmp_path,
        "thread = threading.Thread(target=lambda: print('thread'))\n"
        "thread.start()\n"
        "thread.join()\n"
        "libc, clone = ctypes.CDLL(None, use_errno=True), 56 if os.uname().machine == 'x86_64' else 220\n"
        "for flags in (17, 0x10000, 0x3d0f00 | 0x40000000):\n"  # a process, another thread, a thread in a new network
        "    print(libc.syscall(ctypes.c_long(clone), ctypes.c_long(flags), *[ctypes.c_long(0)] * 4))\n",
    )
    assert output.split() == ["thread", "-1", "-1", "-1"]


def test_a_folder_is_no_file_that_may_be_read(tmp_path):
    """Rights on a folder would hold for all files below it."""
    (tmp_path / "other").write_text("secret")
    program = f"try:\n    print(Path({str(tmp_path / 'other')!r}).read_text())\nexcept OSError:\n    print('refused')\n"
    assert in_sandbox(tmp_path, program) == "refused\n"


def test_threads_from_before_the_lock_down_are_an_error():
    """They would keep their rights."""
    program = """
import threading
from foley_server.sandbox import decoder
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    decoder.lock_down([], [])
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "keep their rights" in run.stdout


@needs_landlock
@pytest.mark.parametrize("abi", range(1, 8))
def test_kernel_accepts_the_rights_of_every_abi(abi):
    if abi > landlock_abi():
        pytest.skip("the kernel has an older Landlock")
    attributes = (ctypes.c_uint64 * 3)(*landlock.handled(abi))
    rules = ctypes.CDLL(None).syscall(ctypes.c_long(444), attributes, ctypes.c_long(24), ctypes.c_long(0))
    assert rules >= 0
    os.close(rules)


def test_older_kernels_are_asked_for_less():
    assert landlock.handled(1) == (0x1FFF, 0, 0)
    assert landlock.handled(2) == (0x3FFF, 0, 0)
    assert landlock.handled(4) == (0x7FFF, 3, 0)
    assert landlock.handled(5) == (0xFFFF, 3, 0)
    assert landlock.handled(6) == landlock.handled(99) == (0xFFFF, 3, 3)
