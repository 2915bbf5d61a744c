"""The root directory of a viewer, to which the paths in its answers are relative.

d_path() makes paths that start at the root directory of the task that *reads* (fs/d_path.c),
also when a BPF program calls it.  A viewer in a chroot must get the paths that its own /proc
would show, so a thread of the service takes on the viewer's root for the reads that make paths.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from functools import cache

from ..errors import AccessDenied, NoSuchProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .identity import Identity
    from .identity_reader import Reader

__all__ = ("ViewerRoot",)

_CLONE_FS = 0x200
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class ViewerRoot:
    """A root directory, pinned by a descriptor.  Freed by `close`.

    ``fd`` is a descriptor of the directory and belongs to the object from now on.

    Raises AccessDenied if this process cannot take it on, which takes CAP_SYS_CHROOT and the
    right to enter the directory.
    """

    def __init__(self, fd: int) -> None:
        self._unshare = ctypes.CDLL(None, use_errno=True).unshare
        self._fds = [fd]
        try:
            _load_unwinder()
            self._fds.append(os.open("/", _DIRECTORY))
            self.call(os.getpid)
        except OSError as error:
            self.close()
            raise _denied(error.strerror or str(error)) from None

    @classmethod
    def of(cls, identity: Identity, reader: Reader) -> ViewerRoot:
        """The root that a client had when its identity was read.

        Raises AccessDenied if the client has another root by now, or no longer exists.
        """
        if identity.root is None:
            raise _denied("the client is gone")
        try:
            fd = os.open(f"/proc/{identity.tid}/root", _DIRECTORY)
        except OSError as error:
            raise _denied(error.strerror or "") from None
        try:
            # This is done after the directory was opened: if the same process still has the
            # number, it had it all the time, so the directory is its root.
            now = reader.of_task(identity.tid)
        except NoSuchProcess:
            os.close(fd)
            raise _denied("the client is gone") from None
        except BaseException:
            os.close(fd)
            raise
        if (now.pid, now.start, now.root) != (identity.pid, identity.start, identity.root):
            os.close(fd)
            raise _denied("the client has changed it")
        return cls(fd)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)`` with this root, in this thread only.

        The function must be a single system call that looks up no path, because the client
        controls every name below this root.  If the old root cannot be restored, the process
        is aborted.
        """
        root, own = self._fds
        # Threads share root and working directory by default.  After the first time this has
        # no effect.
        if self._unshare(_CLONE_FS):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_FS) failed")
        chroot, fchdir, entered = os.chroot, os.fchdir, False
        try:
            fchdir(root)
            entered = True
            try:
                chroot(".")
            except OSError:
                entered = False
                raise
            return function(*args)
        finally:
            try:
                fchdir(own)
                if entered:
                    chroot(".")
            except BaseException:
                os.abort()

    def close(self) -> None:
        """Close the descriptors."""
        while self._fds:
            os.close(self._fds.pop())


@cache
def _load_unwinder() -> None:
    """Load the library that the C library loads when a thread ends by pthread_exit(3).

    The interpreter ends threads so when it ends itself, also in the middle of
    `ViewerRoot.call`: the library would be looked for below the client's root, and run with
    our privileges.
    """
    try:
        ctypes.CDLL("libgcc_s.so.1")
    except OSError:
        # The GNU C library needs it; others have an unwinder of their own.
        with contextlib.suppress(ValueError):
            if os.confstr("CS_GNU_LIBC_VERSION"):
                raise


def _denied(why: str) -> AccessDenied:
    return AccessDenied(errno.EACCES, f"the client's root directory cannot be taken on: {why}")
