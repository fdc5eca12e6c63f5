"""Landlock: after `restrict`, this process opens only the given files.

Called through ctypes: there is no maintained package without a system library. See landlock(7).
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 14
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI -> how many rights on files it has; they are numbered from bit 0


def handled(abi: int) -> tuple[int, int, int]:
    """Return the rights on files and on the network, and the scopes, that an ABI of Landlock can take away (bit masks).

    An older kernel refuses a rule set with rights that it does not know.
    """
    files = max(count for since, count in _FILE_RIGHTS.items() if since <= abi)
    bind_and_connect_tcp = 0b11 if abi >= 4 else 0
    abstract_sockets_and_signals = 0b11 if abi >= 6 else 0
    return (1 << files) - 1, bind_and_connect_tcp, abstract_sockets_and_signals


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Refuse all files, TCP, and signals and abstract sockets to other processes; it cannot be undone.

    It applies to the calling thread and the threads that it starts, and needs PR_SET_NO_NEW_PRIVS. Open descriptors
    stay usable. Metadata (`stat`) of other files stay readable.

    Args:
        readable: Regular files that may be read; others in the list, such as folders, are skipped.
        writable: Regular files, which exist, that may be read and written.

    Returns:
        The ABI of Landlock; 0 if the kernel has none, and nothing is restricted.

    Raises:
        OSError: The kernel has Landlock, but refuses the rule set.
    """
    try:
        abi = _call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):  # EPERM: by the container's seccomp profile
            return 0
        raise
    files, network, scopes = handled(abi)
    attributes = struct.pack("QQQ", files, network, scopes)  # struct landlock_ruleset_attr
    rules = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    for paths, rights in ((readable, _READ_FILE), (writable, _READ_FILE | _WRITE_FILE | _TRUNCATE)):
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # reported by whoever opens it
                file = os.open(path, os.O_PATH | os.O_CLOEXEC)
                if stat.S_ISREG(os.fstat(file).st_mode):  # a right on a folder holds for everything below it
                    _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights & files, file), 0)
                os.close(file)
    _call(_RESTRICT_SELF, rules, 0)
    os.close(rules)
    return abi


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(*(ctypes.c_long(one) if isinstance(one, int) else one for one in (number, *arguments))))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
