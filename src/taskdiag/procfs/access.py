"""Who may see what: the rule of a procfs mounted with hidepid=2, decided by the kernel.

Reading the link /proc/PID/exe makes the kernel check ``ptrace_may_access(task,
PTRACE_MODE_READ_FSCREDS)`` and nothing else (fs/proc/base.c, ``proc_pid_readlink``).
EACCES means that access is denied; ENOENT that it is allowed, but the task has no
executable (a zombie).
"""

from __future__ import annotations

import os

from ..capability import CAP_SYS_PTRACE
from .reader import Directory, Vanished

__all__ = ("check", "sees_everything")

#: ``PROC_USER_INIT_INO``: the inode number of the initial user namespace.
_USER_INIT_INO = 0xEFFFFFFD


def sees_everything(root: int) -> bool:
    """Whether the caller may see every task, so that no task has to be checked.

    This takes CAP_SYS_PTRACE in effect in the initial user namespace.  In another user
    namespace the capability covers only the tasks of that namespace.
    """
    try:
        with Directory(root, "thread-self") as own:
            if os.stat(f"/proc/{own.where}/ns/user").st_ino != _USER_INIT_INO:
                return False
            status = own.read("status")
    except (Vanished, OSError):
        return False
    found = status.partition(b"\nCapEff:\t")[2].partition(b"\n")[0]
    try:
        return bool(int(found, 16) & 1 << CAP_SYS_PTRACE)
    except ValueError:
        return False


def check(directory: Directory) -> None:
    """Raises Vanished if the caller may not see that task."""
    try:
        directory.readlink("exe")
    except PermissionError:
        raise Vanished(directory.where) from None
    except OSError:
        # Allowed, but without an executable; or gone, which the next read will show.
        pass
