"""The file: open it, write a request, and read until read(2) returns 0, as with the reference.

It is one file in a FUSE mount of its own, for programs written for ``/proc/task_diag`` and for
languages without a client.  The request that FUSE sends for open(2) names the opener, who waits
for our reply meanwhile.  All answers on that descriptor are for this identity, no matter who
reads them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
import time

from ..errors import NoSuchProcess, TaskdiagError
from ..request import Request
from .answer import Answer
from .backend import Backend, label_of
from .log import log
from .protocol import errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from typing import Any

    from ..kernel.identity import Identity

__all__ = ("Files",)

#: Open files, in all and of one user.
_FILES, _FILES_EACH = 1024, 256
#: Calls of one user that may take longer than `_LONG` seconds at a time.
_SLOW_EACH = 8
_LONG = 5.0
#: Seconds that a call waits for another one on the same open file.
_PATIENCE = 1.0


class OpenFile:
    """One open file: its opener, the request written, and the answer that is being read."""

    def __init__(self, identity: Identity, backend: Backend) -> None:
        self.user: Hashable = identity.user
        self._identity = identity
        self._backend = backend
        self._lock = threading.Lock()
        #: A request written but not yet read from, or the error that the first read raises.
        self._request: Request | NoSuchProcess | None = None
        self._answer: Answer | None = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=_PATIENCE):
            raise _os_error(errno.EBUSY)
        try:
            yield
        finally:
            self._lock.release()

    def write(self, data: bytes) -> None:
        """Accept a request.

        Raises RequestError if it is malformed, and OSError (EBUSY) if the last answer has not
        been read to its end.
        """
        with self._alone():
            if self._request is not None or self._answer is not None:
                raise _os_error(errno.EBUSY)
            try:
                self._request = Request.decode(data)
            except NoSuchProcess as error:
                self._request = error

    def read(self, size: int) -> bytes:
        """As many whole messages of the answer as fit, b"" at its end.

        Raises errors of making the answer, such as NoSuchProcess, which end the request, and
        OSError (EMSGSIZE) if the next message does not fit; the message is then kept.
        """
        with self._alone():
            if self._request is not None:
                request, self._request = self._request, None
                self._answer = self._start(request)
            if self._answer is None:
                return b""
            try:
                data = self._answer.read(size)
            except BaseException as error:
                if not (isinstance(error, OSError) and error.errno == errno.EMSGSIZE):
                    self._finish()
                raise
            if not data:
                self._finish()
            return data

    def _start(self, request: Request | NoSuchProcess) -> Answer:
        if isinstance(request, NoSuchProcess):
            raise request
        lease = self._backend.lease(self._identity)
        try:
            return Answer(lease, request)
        except BaseException:
            lease.close()
            raise

    def _finish(self) -> None:
        self._request = None
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def close(self) -> None:
        """Drop the request and its answer, which need not have been read to its end."""
        with self._lock:
            self._finish()


class Files:
    """The operations of the mount, a directory with one file.

    The names of the methods and their arguments are those of the FUSE binding.  With ``stay``,
    the threads that call them do not end.
    """

    use_ns = True

    def __init__(
        self, name: str, backend: Backend, ready: Callable[[], None], *, stay: bool = False
    ) -> None:
        self._path = f"/{name}"
        self._backend = backend
        self._ready = ready
        self._lock = threading.Lock()
        self._open: dict[int, OpenFile] = {}
        self._next = 1
        #: For each thread in a call: the user, and when the call began.
        self._calls: dict[int, tuple[Hashable, float]] = {}
        self._now = time.time_ns()
        self._stay = stay
        self._thread = threading.local()

    def init(self, path: str) -> None:
        self._ready()

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        if path == "/":
            mode, links = stat.S_IFDIR | 0o555, 2
        elif path == self._path:
            mode, links = stat.S_IFREG | 0o666, 1
        else:
            raise _os_error(errno.ENOENT)
        return {
            "st_mode": mode, "st_nlink": links, "st_size": 0, "st_uid": 0, "st_gid": 0,
            "st_ctime": self._now, "st_mtime": self._now, "st_atime": self._now,
        }  # fmt: skip

    def readdir(self, path: str, fh: Any) -> list[str]:
        return [".", "..", self._path[1:]]

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        # A shell truncates a file before it writes to it.
        return 0

    def open(self, path: str, info: Any) -> int:
        from mfusepy import fuse_get_context

        if path != self._path:
            raise _os_error(errno.ENOENT)
        uid, gid, tid = fuse_get_context()
        with self._call(("opening", uid)):
            identity = self._backend.identify_task(tid, uid, gid, label_of(tid))
            with self._lock:
                held = sum(one.user == identity.user for one in self._open.values())
                if len(self._open) >= _FILES or held >= _FILES_EACH:
                    raise _os_error(errno.EMFILE)
                number, self._next = self._next, self._next + 1
                self._open[number] = OpenFile(identity, self._backend)
        info.fh = number
        # Pass on every read and write as it is made; their positions have no meaning.
        info.direct_io = 1
        return 0

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        file = self._open[info.fh]
        with self._call(file.user):
            file.write(data)
        return len(data)

    def read(self, path: str, size: int, offset: int, info: Any) -> bytes:
        file = self._open[info.fh]
        with self._call(file.user):
            return file.read(size)

    def release(self, path: str, info: Any) -> int:
        with self._lock:
            file = self._open.pop(info.fh, None)
        if file is not None:
            file.close()
        return 0

    @contextlib.contextmanager
    def _call(self, user: Hashable) -> Iterator[None]:
        """Run a call of a user; its errors become errnos for the binding.

        The number of threads is limited, so a user with too many long calls gets EBUSY.
        """
        if self._stay:
            self._keep_thread_state()
        now = time.monotonic()
        me = threading.get_ident()
        with self._lock:
            if len(self._calls) >= _SLOW_EACH:
                calls = self._calls.values()
                if sum(who == user and now - since > _LONG for who, since in calls) >= _SLOW_EACH:
                    raise _os_error(errno.EBUSY)
            self._calls[me] = (user, now)
        try:
            yield
        except TaskdiagError as error:
            code = errno_of(error)
            if code == errno.EIO:
                log(f"cannot answer: {error}")
            raise _os_error(code) from None
        except OSError:
            raise
        except Exception as error:
            log(f"internal error: {type(error).__name__}: {error}")
            raise _os_error(errno.EIO) from None
        finally:
            with self._lock:
                del self._calls[me]

    def _keep_thread_state(self) -> None:
        """Keep the interpreter's state of this thread, which belongs to libfuse.

        Otherwise it is made for each call and freed after it, with memory that is mapped and
        unmapped each time, which takes longer than the call.
        """
        if not hasattr(self._thread, "kept"):
            self._thread.kept = True
            # It is freed by the last PyGILState_Release(), which is now one short.
            ctypes.pythonapi.PyGILState_Ensure()


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
