"""The file: open, write a request, read until nothing comes; as the reference had it.

One file in a FUSE mount of its own, for programs written for ``/proc/task_diag`` and for
languages without a client.  Who opens it is told by the header of the request that FUSE
sends, while the opener waits for our answer; what is read later is for those eyes.

A process of its own does this, since the binding (mfusepy, an extra) takes the main
thread and the signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import threading
import time

from ..errors import EngineUnavailable, TaskdiagError
from ..request import Request
from .backend import Backend, errno_of, label_of
from .server import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from typing import Any

    from ..kernel.identity import Identity
    from .backend import Lease

__all__ = ("FileProcess", "Files", "clear")

_PR_SET_PDEATHSIG = 1
_MNT_DETACH = 2
#: Open files, in all and of one user.
_FILES, _FILES_EACH = 1024, 256
#: Threads that the binding may have; calls of one user that may be held up at a time.
_THREADS, _HELD_UP = 64, 8
_LONG = 5.0


class _Handle:
    """One open file: whose it is, and the answer that is being read."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.user: Hashable = identity.user
        # Two readers of one descriptor take turns, but not for ever.
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._fd = -1
        self._chunks: Iterator[bytes] | None = None
        self._rest = b""

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=1):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        try:
            yield
        finally:
            self._lock.release()

    def write(self, data: bytes, backend: Backend) -> None:
        """Take a request.  Raises OSError: EBUSY before the last answer was read."""
        with self._turn():
            if self._lease is not None:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            request = Request.decode(data)
            self._lease = backend.lease(self.identity)
            try:
                fd = self._lease.open(request)
                if fd is not None:
                    self._fd = fd
                else:
                    self._chunks = self._lease.stream(request)
            except BaseException:
                self._finish()
                raise

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the answer, b"" at its end."""
        with self._turn():
            if self._lease is None:
                return b""
            try:
                data = self._more(size)
            except BaseException:
                self._finish()
                raise
            if not data:
                self._finish()
            return data

    def _more(self, size: int) -> bytes:
        if self._fd >= 0:
            while True:
                try:
                    return os.read(self._fd, size)
                except BlockingIOError:
                    continue
        assert self._chunks is not None
        if not self._rest:
            self._rest = next(self._chunks, b"")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _finish(self) -> None:
        """The answer is over, one way or another."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
        self._chunks, self._rest = None, b""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def close(self) -> None:
        """Forget the answer, wherever its reading had got to."""
        with self._lock:
            self._finish()


class Files:
    """What the mount does: a directory with one file.

    The names of the methods, and what they are called with, are the binding's.
    """

    use_ns = True

    def __init__(self, name: str, backend: Backend, ready: Callable[[], None]) -> None:
        self._path = f"/{name}"
        self._backend = backend
        self._ready = ready
        self._lock = threading.Lock()
        self._handles: dict[int, _Handle] = {}
        self._next = 1
        self._running: dict[int, tuple[Hashable, float]] = {}
        self._now = time.time_ns()

    def init(self, path: str) -> None:
        self._ready()

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        if path == "/":
            mode, links = stat.S_IFDIR | 0o555, 2
        elif path == self._path:
            mode, links = stat.S_IFREG | 0o666, 1
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return {
            "st_mode": mode, "st_nlink": links, "st_size": 0, "st_uid": 0, "st_gid": 0,
            "st_ctime": self._now, "st_mtime": self._now, "st_atime": self._now,
        }  # fmt: skip

    def readdir(self, path: str, fh: Any) -> list[str]:
        return [".", "..", self._path[1:]]

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        # What a shell does to a file before it writes to it.
        return 0

    def open(self, path: str, info: Any) -> int:
        from mfusepy import fuse_get_context

        if path != self._path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        uid, gid, tid = fuse_get_context()
        with _told(), self._call(("opening", uid)):
            identity = self._backend.identify_task(tid, uid, gid, label_of(tid))
            with self._lock:
                held = sum(one.user == identity.user for one in self._handles.values())
                if len(self._handles) >= _FILES or held >= _FILES_EACH:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                number, self._next = self._next, self._next + 1
                self._handles[number] = _Handle(identity)
        info.fh = number
        info.direct_io = 1
        info.nonseekable = 1
        return 0

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        handle = self._handles[info.fh]
        with _told(), self._call(handle.user):
            handle.write(data, self._backend)
        return len(data)

    def read(self, path: str, size: int, offset: int, info: Any) -> bytes:
        handle = self._handles[info.fh]
        with _told(), self._call(handle.user):
            return handle.read(size)

    def release(self, path: str, info: Any) -> int:
        with self._lock:
            handle = self._handles.pop(info.fh, None)
        if handle is not None:
            handle.close()
        return 0

    @contextlib.contextmanager
    def _call(self, user: Hashable) -> Iterator[None]:
        """A call of a user, who may not let so many threads wait that none is left."""
        now = time.monotonic()
        me = threading.get_ident()
        with self._lock:
            held_up = sum(
                who == user and now - since > _LONG for who, since in self._running.values()
            )
            if held_up >= _HELD_UP:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self._running[me] = (user, now)
        try:
            yield
        finally:
            with self._lock:
                del self._running[me]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong is an errno; the binding tells it."""
    try:
        yield
    except TaskdiagError as error:
        code = errno_of(error)
        if code == errno.EIO:
            log(f"cannot answer: {error}")
        raise OSError(code, os.strerror(code)) from None
    except OSError:
        raise
    except Exception as error:
        log(f"internal error: {type(error).__name__}: {error}")
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None


class FileProcess:
    """The process that serves the file, from mount to unmount.

    Raises EngineUnavailable with what went wrong there.
    """

    def __init__(self, where: str, name: str) -> None:
        self._where = where
        self._status = 0
        self._ended = threading.Event()
        back, forth = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(back)
            os._exit(_serve(where, name, forth, parent))
        os.close(forth)
        with os.fdopen(back, "rb") as pipe:
            word = pipe.read()
        if word != b"ready":
            os.waitpid(self.pid, 0)
            self.pid = 0
            raise EngineUnavailable(
                errno.EIO, word.decode("utf-8", "replace") or f"cannot mount {where}"
            )

    def watch(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` if the process ends by itself."""

        def wait() -> None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
            self._ended.set()
            stop()

        threading.Thread(target=wait, daemon=True).start()
        self._watched = True

    _watched = False

    def status(self) -> int:
        """1 if it ended before it was told to."""
        return int(self._ended.is_set())

    def end(self) -> None:
        """Unmount, and end the process."""
        if not self.pid:
            return
        if self._ended.is_set():
            clear(self._where)
            return
        if not self._watched:
            self.watch(lambda: None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        if not self._ended.wait(3):
            # Somebody has the file open, or a call is held up.
            _unmount(self._where)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._ended.wait(3)
        clear(self._where)


def _serve(where: str, name: str, forth: int, parent: int) -> int:
    """Mount, serve and unmount; the exit status."""
    said = False

    def ready() -> None:
        nonlocal said
        said = True
        os.write(forth, b"ready")
        os.close(forth)
        log(f"serving {where}/{name}")

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:
            return 1
        try:
            import mfusepy
        except (ImportError, OSError) as error:
            raise EngineUnavailable(
                errno.ENOSYS,
                f"--file needs libfuse and pip install taskdiag[fuse]: {error}",
            ) from None
        backend = Backend()
        # Since libfuse 3.12 there are but ten unless more are asked for.
        threads = {"max_idle_threads": 10}
        if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
            threads["max_threads"] = _THREADS
        mfusepy.FUSE(
            Files(name, backend, ready), where, raw_fi=True, foreground=True, nothreads=False,
            allow_other=True, default_permissions=True, fsname="taskdiag",
            **threads,
        )  # fmt: skip
        return 0
    except BaseException as error:
        text = str(error)
        if isinstance(error, RuntimeError):
            if said:
                # So the binding tells that a signal ended it.
                return 0
            text = f"cannot mount {where} (libfuse's status is {text})"
        if not said:
            os.write(forth, text.encode())
        else:
            log(text)
        return 1


def clear(where: str) -> None:
    """Unmount what a server that was killed has left behind."""
    try:
        # Not stat(2), which the kernel answers by what it remembers.
        os.statvfs(where)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            _unmount(where)


def _unmount(where: str) -> None:
    ctypes.CDLL(None).umount2(os.fsencode(where), _MNT_DETACH)
