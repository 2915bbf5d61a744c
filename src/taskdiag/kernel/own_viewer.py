"""The viewer that the calling thread is: its credentials and namespaces at this moment."""

from __future__ import annotations

import os

from ..capability import CAP_SYS_PTRACE, effective
from . import probe
from .viewer import INIT_PID_NS, INIT_TIME_NS, INIT_USER_NS, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facts import Facts
    from .identity_reader import Reader
    from .programs import Programs

__all__ = ("OwnViewer",)


class OwnViewer:
    """Finds out whose view the calling thread has.  Freed by `close`.

    Raises EngineUnavailable if that takes a BPF program and BPF cannot be used.
    """

    def __init__(self, facts: Facts, programs: Programs) -> None:
        self._facts = facts
        self._programs = programs
        self._reader: Reader | None = None

    def viewer(self, before: Viewer | None = None) -> Viewer:
        """The viewer as of now; ``before`` is the result of the last call.

        Most callers are root on the host, which is recognised without a BPF program.
        """
        if _is_host_root():
            return before if before is not None and before.plain else Viewer(*self.home())
        from _thread import get_native_id

        home = self.home()
        if self._reader is None:
            from .identity_reader import Reader

            self._reader = Reader(self._facts, *home, sockets=False)
        return self._reader.of_task(get_native_id()).viewer(home)

    def home(self) -> tuple[int, int]:
        """The level of this process's pid namespace (0 is the host's), and its inode number."""
        try:
            inode = os.stat("/proc/self/ns/pid").st_ino
        except OSError:
            inode = 0
        if inode == INIT_PID_NS:
            return 0, inode
        level, inode = self._programs.ask(probe.pid_namespace(self._facts))
        return level, inode

    def close(self) -> None:
        """Free the programs that read identities."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _is_host_root() -> bool:
    """Whether this thread has CAP_SYS_PTRACE over the host, and the host's boot time clock.

    It then needs neither an access rule nor a time offset.  False if /proc cannot be read.
    """
    try:
        if os.stat("/proc/thread-self/ns/user").st_ino != INIT_USER_NS:
            return False
    except OSError:
        return False
    try:
        if os.stat("/proc/thread-self/ns/time").st_ino != INIT_TIME_NS:
            return False
    except FileNotFoundError:
        # A kernel before 5.6, or without CONFIG_TIME_NS.
        pass
    except OSError:
        return False
    return bool((effective() or 0) & 1 << CAP_SYS_PTRACE)
