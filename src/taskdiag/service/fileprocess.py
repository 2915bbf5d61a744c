"""The process that serves the file.

It is a process of its own, because the FUSE binding (mfusepy, an extra) needs the main thread
and the signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import threading

from ..errors import EngineUnavailable
from .backend import Backend
from .file import Files
from .log import log
from .mount import load_binding, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .mount import Mountpoint

__all__ = ("FileProcess",)

_PR_SET_PDEATHSIG = 1
_READY = b"ready"
#: Seconds that it may take to end by itself.
_PATIENCE = 3


class FileProcess:
    """The process that serves the file, from mount to unmount.

    Raises EngineUnavailable with the error of that process.
    """

    def __init__(self, mountpoint: Mountpoint) -> None:
        self._mountpoint = mountpoint
        self._ended = threading.Event()
        self._watched = False
        back, forth = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(back)
            os._exit(_serve(mountpoint, forth, parent))
        os.close(forth)
        with os.fdopen(back, "rb") as pipe:
            word = pipe.read()
        if word != _READY:
            os.waitpid(self.pid, 0)
            self.pid = 0
            raise EngineUnavailable(
                errno.EIO,
                word.decode("utf-8", "replace") or f"cannot mount at {mountpoint.path}",
            )

    def watch(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` if the process ends by itself."""

        def wait() -> None:
            os.waitpid(self.pid, 0)
            self._ended.set()
            stop()

        threading.Thread(target=wait, daemon=True).start()
        self._watched = True

    def status(self) -> int:
        """1 if it ended before it was told to, else 0."""
        return int(self._ended.is_set())

    def end(self) -> None:
        """Unmount, and end the process."""
        if not self.pid:
            return
        if not self._ended.is_set():
            if not self._watched:
                self.watch(lambda: None)
            self._signal(signal.SIGTERM)
            if not self._ended.wait(_PATIENCE):
                # A call is blocked.
                self._mountpoint.unmount()
                self._signal(signal.SIGKILL)
                self._ended.wait(_PATIENCE)
        with contextlib.suppress(EngineUnavailable):
            self._mountpoint.clear()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _serve(mountpoint: Mountpoint, forth: int, parent: int) -> int:
    """Mount, serve and unmount; the exit status.

    Writes to the descriptor ``forth`` when it serves, or why it cannot.
    """
    serving = False

    def ready() -> None:
        nonlocal serving
        serving = True
        os.write(forth, _READY)
        os.close(forth)
        log(f"serving {mountpoint.path}/{mountpoint.name}")

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:
            return 1
        binding = load_binding()
        backend = Backend()
        version = binding.fuse_version_major, binding.fuse_version_minor
        binding.FUSE(
            Files(mountpoint.name, backend, ready, stay=version >= (3, 12)), mountpoint.path,
            raw_fi=True, foreground=True, nothreads=False, **options(version),
        )  # fmt: skip
        return 0
    except BaseException as error:
        why = str(error)
        if isinstance(error, RuntimeError):
            if serving:
                # The binding raises this at the end, if a signal brought it about.
                return 0
            why = f"cannot mount at {mountpoint.path}: libfuse gave up with status {why}"
            if not os.path.exists("/dev/fuse"):
                why = f"cannot mount at {mountpoint.path}: there is no /dev/fuse; modprobe fuse"
        if serving:
            log(why)
        else:
            os.write(forth, why.encode("utf-8", "replace"))
        return 1
