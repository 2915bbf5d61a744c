"""The mount of the file, and the libfuse that serves it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import os

from ..errors import EngineUnavailable, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__all__ = ("Mountpoint", "load_binding", "options")

#: The source of our mounts, as /proc/self/mountinfo shows it.
_SOURCE = "taskdiag"
_MNT_DETACH = 2
#: In the order of choice.  libfuse 3.17 changed the number in the name.
_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3", "libfuse.so.2")
#: Threads that libfuse may have.
_THREADS = 64


class Mountpoint:
    """The directory that a file is served in: the one before the last name of ``file``.

    Raises RequestError if ``file`` cannot be served.
    """

    def __init__(self, file: str) -> None:
        directory, self.name = os.path.split(file)
        if self.name in ("", ".", ".."):
            raise RequestError(f"--file needs MOUNTPOINT/NAME, and {file!r} does not name a file")
        self.path = os.path.realpath(directory or ".")
        self._made = False

    def prepare(self) -> None:
        """Make the directory if it is missing, and take it over if we left a mount there.

        Raises RequestError, EngineUnavailable.
        """
        self.clear()
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            raise RequestError(
                f"--file: there is no directory {parent!r}; "
                "of the directories above the file only the last one is made"
            )
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o755)
                self._made = True
            found = os.listdir(self.path)
        except NotADirectoryError:
            raise RequestError(f"--file: {self.path!r} is not a directory") from None
        except OSError as error:
            raise EngineUnavailable(
                error.errno, f"cannot mount at {self.path}: {error.strerror}"
            ) from None
        if found:
            raise RequestError(
                f"--file needs an empty directory to mount on, and {self.path!r} is not empty"
            )

    def refuse_above(self, path: str) -> None:
        """Raises RequestError if ``path`` lies below the mount, which would hide it."""
        directory = os.path.realpath(os.path.dirname(path) or ".")
        if os.path.commonpath((directory, self.path)) == self.path:
            raise RequestError(
                f"--file: a mount at {self.path!r} would hide the socket {path!r}; "
                "the file needs a directory of its own"
            )

    def clear(self) -> None:
        """Unmount what a server of ours left here when it was killed.

        Raises EngineUnavailable if the directory is somebody else's mount point.
        """
        while True:
            try:
                # Not stat(2), which the kernel answers from its cache.
                os.statvfs(self.path)
                dead = False
            except OSError as error:
                # ECONNABORTED is returned while the server is dying.
                dead = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            kind, source = _mounted(self.path)
            ours = kind.startswith("fuse") and source == _SOURCE
            if ours and dead:
                self.unmount()
                continue
            if ours:
                raise EngineUnavailable(
                    errno.EBUSY, f"cannot mount at {self.path}: another service serves a file there"
                )
            if dead:
                raise EngineUnavailable(
                    errno.EBUSY,
                    f"cannot mount at {self.path}: it is a mount of {source} whose server is gone; "
                    f"umount {self.path} removes it",
                )
            return

    def unmount(self) -> None:
        """Unmount, even if the file is open."""
        ctypes.CDLL(None).umount2(os.fsencode(self.path), _MNT_DETACH)

    def remove(self) -> None:
        """Remove the directory if `prepare` has made it."""
        if self._made:
            self._made = False
            with contextlib.suppress(OSError):
                os.rmdir(self.path)


def _mounted(path: str) -> tuple[str, str]:
    """Type and source of what is mounted at a path, both empty if nothing is."""
    escaped = path
    for char in "\\ \t\n":
        escaped = escaped.replace(char, f"\\{ord(char):03o}")
    found = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split(" ")
            if words[4] == escaped:
                # The last one is on top.
                at = words.index("-")
                found = words[at + 1], words[at + 2]
    return found


def load_binding() -> ModuleType:
    """The FUSE binding, mfusepy, with libfuse 3 where there is one, else libfuse 2.

    By itself it would choose libfuse 2 if both are installed.  FUSE_LIBRARY_PATH chooses
    another library.

    Raises EngineUnavailable with what has to be installed.
    """
    if importlib.util.find_spec("mfusepy") is None:
        raise EngineUnavailable(
            errno.ENOSYS,
            "--file needs the Python package mfusepy, which taskdiag[fuse] asks for: "
            "pip install mfusepy",
        )
    if not os.environ.get("FUSE_LIBRARY_PATH"):
        library = _find_library()
        if library is None:
            raise EngineUnavailable(
                errno.ENOSYS,
                "--file needs libfuse: the package libfuse3-3 of Debian and Ubuntu, fuse3-libs of "
                "Fedora, or fuse3, which brings it along on either",
            )
        os.environ["FUSE_LIBRARY_PATH"] = library
    try:
        import mfusepy
    except (ImportError, OSError, AttributeError) as error:
        raise EngineUnavailable(errno.ENOSYS, f"--file cannot use libfuse: {error}") from None
    module: ModuleType = mfusepy
    return module


def _find_library() -> str | None:
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return name
    return None


def options(version: tuple[int, int]) -> dict[str, Any]:
    """The mount options for a version of libfuse."""
    found: dict[str, Any] = {"allow_other": True, "default_permissions": True, "fsname": _SOURCE}
    if version < (3, 0):
        # Else a write of more than a page would come in pages.
        found["big_writes"] = True
    else:
        found["max_idle_threads"] = 10
    if version >= (3, 12):
        # From that version on there are but ten unless more are asked for.  They must not end,
        # see `Files`.
        found["max_threads"] = found["max_idle_threads"] = _THREADS
    return found
