"""seccomp: after `restrict`, this process can make only the system calls that decoding needs.

An allow list, because calls are added to Linux with every version. Others fail with ENOSYS, as on a kernel that does
not have them, so that libc falls back to older ones: to `clone` instead of `clone3`, whose flags a filter cannot read.
Installed with `prctl`: the packages for it (pyseccomp, seccomp) need the system library libseccomp.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence

# flags of pthread_create in glibc: a thread of this process, in no new namespace
_THREAD = 0x3D0F00
_GET_DESCRIPTOR_FLAGS, _SET_DESCRIPTOR_FLAGS, _GET_FLAGS = 1, 2, 3

# name -> (number on x86_64, number on aarch64); None: the architecture does not have it
_CALLS: Mapping[str, tuple[int | None, int | None]] = {
    # files, which Landlock restricts
    "openat": (257, 56),
    "close": (3, 57),
    "read": (0, 63),
    "readv": (19, 65),
    "pread64": (17, 67),
    "write": (1, 64),
    "writev": (20, 66),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "ftruncate": (77, 46),
    "fcntl": (72, 25),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    # threads
    "clone": (56, 220),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getpid": (39, 172),
    "gettid": (186, 178),
    # signals to itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # time, and what is harmless
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# call -> index of the argument whose values are limited, and these values
_LIMITED = {"clone": (0, (_THREAD,)), "fcntl": (1, (_GET_DESCRIPTOR_FLAGS, _SET_DESCRIPTOR_FLAGS, _GET_FLAGS))}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of `_CALLS`, AUDIT_ARCH

# classic BPF, see seccomp(2): operations, results, and offsets in struct seccomp_data
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, KILL_PROCESS, NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
_SET_SECCOMP, _FILTER = 22, 2  # prctl

Instruction = tuple[int, int, int, int]  # operation, instructions to skip if true, if false, operand


def restrict() -> bool:
    """Refuse all other system calls to the calling thread and the threads that it starts; it cannot be undone.

    Needs PR_SET_NO_NEW_PRIVS.

    Returns:
        Whether they are refused: False if the kernel has no seccomp, or on other architectures.

    Raises:
        OSError: The kernel has seccomp, but refuses the filter.
    """
    architecture = _ARCHITECTURES.get(os.uname().machine)
    return architecture is not None and install(_program(*architecture))


def install(program: Sequence[Instruction]) -> bool:
    """Install a filter; see `restrict`."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    fprog = struct.pack("HP", len(program), ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_SECCOMP, _FILTER, fprog) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _program(column: int, architecture: int) -> list[Instruction]:
    # The calls of another architecture have other numbers. Those of x32, which have another bit set, equal none here.
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    for name, numbers in _CALLS.items():
        number = numbers[column]
        if number is None:
            continue
        allowed: list[Instruction] = [(RETURN, 0, 0, ALLOW)]
        if name in _LIMITED:
            index, values = _LIMITED[name]
            allowed = [(LOAD, 0, 0, ARGUMENTS + 8 * index)]  # its lower half: the kernel reads 32 bits of these
            for value in values:
                allowed += [(IF_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
            allowed += [(RETURN, 0, 0, NOT_THERE)]
        program += [(IF_EQUAL, 0, len(allowed), number), *allowed]
    return [*program, (RETURN, 0, 0, NOT_THERE)]
