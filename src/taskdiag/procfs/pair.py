"""Reading one or two files of a task without opening its directory first.

Each path is looked up separately; the order of the calls ensures that all of them find the
same task.
"""

from __future__ import annotations

import os

from . import access
from .reader import BLOCK, Directory, explain

__all__ = ("read_pair",)

_open, _read, _close = os.open, os.read, os.close
_READ = os.O_RDONLY | os.O_CLOEXEC


def read_pair(root: int, where: str, first: str, second: str, ask: bool) -> tuple[bytes, bytes]:
    """Read at most `BLOCK` bytes of two files of one task, or of one if ``second`` is "".

    With ``ask``, it is also checked that the caller may see the task.

    ``first`` is opened first and read last.  An open file belongs to the task that had the
    number when it was opened, and can be read as long as that task exists (fs/proc/base.c,
    ``proc_single_show``).  The task keeps its number until then.  So if ``first`` can be read
    in the end, everything that was looked up by the number in between was about the same task.

    Raises Vanished, or OSError with the path.
    """
    name, later = first, b""
    try:
        fd = _open(f"{where}/{first}", _READ, dir_fd=root)
        try:
            if ask:
                access.check(Directory(root, where, pinned=False))
            if second:
                name = second
                other = _open(f"{where}/{second}", _READ, dir_fd=root)
                try:
                    later = _read(other, BLOCK)
                finally:
                    _close(other)
                name = first
            return _read(fd, BLOCK), later
        finally:
            _close(fd)
    except OSError as error:
        raise explain(error, f"{where}/{name}") from None
