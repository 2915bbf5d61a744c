"""Reading /proc: bytes of files below a task's directory, errors that carry the path.

A `Directory` stands for one task.  Opened as a descriptor it stays with *that* task:
the kernel answers ENOENT or ESRCH below it once the task is gone, also when a new
task has taken the number (fs/proc/base.c, ``get_proc_task``).
"""

from __future__ import annotations

import os

from ..errors import EngineUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any

__all__ = (
    "BLOCK",
    "Changed",
    "Directory",
    "Malformed",
    "Refused",
    "Vanished",
    "explain",
    "open_procfs",
)

_open, _read, _readv, _close = os.open, os.read, os.readv, os.close
_READ = os.O_RDONLY | os.O_CLOEXEC

#: The first read of a file.  stat and status nearly always fit.
BLOCK = 4096
#: One read(2) of maps or smaps gives at most about a page, however much is asked for.
#: readv(2) goes on to the next buffer if the last one was filled, and one of three quarters of
#: a page is, unless an entry is longer than the last quarter (fs/seq_file.c,
#: ``seq_read_iter``; fs/read_write.c, ``do_loop_readv_writev``).  So a single call gives most
#: files whole.
_MAPPINGS, _MAPPINGS_COUNT = 3 << 10, 21
#: The start of an entry about the vsyscall page (arch/x86/entry/vsyscall/vsyscall_64.c), which
#: is in the kernel's half of the address space.  If a list has it, it is the last one, and has
#: been written after all others (fs/proc/task_mmu.c, ``get_gate_vma``).
_GATE = b"\nffffffffff600000-"
#: The longest text that is yielded as one piece.
_PIECE = 1 << 19
#: Sizes to try, one after the other, for a file that must be read by one read(2).
_WHOLE = (1 << 17, 1 << 21, 1 << 25)


class Vanished(Exception):
    """The task no longer exists, or the caller may not see it.  Both must look the same."""


class Refused(Vanished):
    """The kernel refuses to show this file, although the task may exist."""


class Changed(Exception):
    """The task has changed between two reads, so it must be read again from the start."""


class Malformed(EngineUnavailable):
    """A file below /proc has a form that Linux does not write."""


class Directory:
    """The files of one task, below /proc/PID or /proc/PID/task/TID.

    ``where`` is relative to ``root``, a descriptor of /proc.  With ``pinned`` the
    directory is opened, so that all files are surely of the same task; without, each
    file is opened by its whole path, which is cheaper for a single one.  ``through``
    calls a function for us, ``through(os.read, fd, size)``, where the kernel makes paths
    that depend on who reads; None calls it as it is.

    Raises Vanished if there is no such task.
    """

    __slots__ = ("_fd", "_prefix", "_through", "pinned", "where")

    def __init__(
        self,
        root: int,
        where: str,
        pinned: bool = True,
        through: Callable[..., Any] | None = None,
    ) -> None:
        self.where = where
        self._through = through
        self.pinned = pinned
        if pinned:
            self._prefix = ""
            try:
                self._fd = _open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            except OSError as error:
                raise explain(error, where) from None
        else:
            self._prefix = where + "/"
            self._fd = root

    def read(self, name: str) -> bytes:
        """The content of a file that the kernel writes in one piece.

        Raises Vanished, or OSError with the path.
        """
        try:
            fd = _open(self._prefix + name, _READ, dir_fd=self._fd)
            try:
                data = _read(fd, BLOCK)
                if len(data) < BLOCK:
                    return data
                # Read again rather than on: half of this and half of what the task
                # became meanwhile (an exec) would be neither.
                for size in _WHOLE:
                    data = os.pread(fd, size, 0)
                    if len(data) < size:
                        break
                return data
            finally:
                _close(fd)
        except OSError as error:
            raise explain(error, f"{self.where}/{name}") from None

    def read_mappings(self, name: str, last: bytes = b"") -> Iterator[bytes]:
        """The content of maps or smaps in pieces; none if it is empty.

        Most files are one piece.  Longer ones are cut after a line that starts with ``last``,
        so that an entry is never split.

        The kernel hands these files out a page at a time.  If the address space goes away
        meanwhile (exit, exec), reading just ends early (fs/proc/task_mmu.c, ``m_start``).
        So at the end the first bytes are asked for once more: an address space that is
        still there then was there all along.  That is not necessary if the list ends with
        the vsyscall page, which is written only while the address space is there.

        Raises Changed at the end if it was not, Vanished, or OSError with the path.
        """
        buffers = _Buffers.take()
        try:
            fd = _open(self._prefix + name, _READ, dir_fd=self._fd)
            try:
                pieces: list[bytes] = []
                size = 0
                while data := self._read_paths(fd, buffers):
                    if not pieces and is_whole(data, last):
                        yield data
                        return
                    pieces.append(data)
                    size += len(data)
                    if size >= _PIECE:
                        whole, rest = _cut(b"".join(pieces), last)
                        if whole:
                            yield whole
                        pieces, size = [rest], len(rest)
                if pieces:
                    if not os.pread(fd, 1, 0):
                        raise Changed
                    if size:
                        yield b"".join(pieces)
            finally:
                _close(fd)
        except OSError as error:
            raise explain(error, f"{self.where}/{name}") from None
        finally:
            buffers.keep()

    def _read_paths(self, fd: int, buffers: _Buffers) -> bytes:
        """The next bytes of a file that shows paths."""
        if self._through is None:
            return buffers.content(_readv(fd, buffers.pieces))
        return buffers.content(self._through(_readv, fd, buffers.pieces))

    def readlink(self, name: str) -> bytes:
        """Where a link points to.  Raises OSError as it comes."""
        path = os.fsencode(self._prefix + name)
        if self._through is None:
            return os.readlink(path, dir_fd=self._fd)
        # The link is looked up in this root; only its target is read with the other one.
        fd = _open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            target: bytes = self._through(_readlink_fd, fd)
            return target
        finally:
            _close(fd)

    def names(self, name: str) -> list[str]:
        """The entries of a directory.  Raises Vanished, or OSError with the path."""
        try:
            fd = _open(self._prefix + name, _READ, dir_fd=self._fd)
            try:
                return os.listdir(fd)
            finally:
                _close(fd)
        except OSError as error:
            raise explain(error, f"{self.where}/{name}") from None

    def close(self) -> None:
        """Close the descriptor."""
        if self.pinned:
            _close(self._fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pinned:
            _close(self._fd)


class _Buffers:
    """Memory for one readv(2) of maps or smaps, kept for the next file."""

    __slots__ = ("_whole", "pieces")

    #: Those that are not in use, at most as many as there were threads at once.
    _idle: list[_Buffers] = []  # noqa: RUF012

    def __init__(self) -> None:
        self._whole = whole = memoryview(bytearray(_MAPPINGS * _MAPPINGS_COUNT))
        starts = range(0, len(whole), _MAPPINGS)
        self.pieces = [whole[start : start + _MAPPINGS] for start in starts]

    @classmethod
    def take(cls) -> _Buffers:
        """Some that nobody else uses until `keep` is called."""
        try:
            return cls._idle.pop()
        except IndexError:
            return cls()

    def keep(self) -> None:
        """Let others use them."""
        self._idle.append(self)

    def content(self, size: int) -> bytes:
        """A copy of what a call has read."""
        return bytes(self._whole[:size])


def _readlink_fd(fd: int) -> bytes:
    return os.readlink(b"", dir_fd=fd)


def is_whole(text: bytes, last: bytes) -> bool:
    r"""Whether the text certainly goes to the end of the list of mappings.

    >>> is_whole(b"0-1 r--p\nffffffffff600000-ffffffffff601000 --xp\n", b"")
    True
    """
    gate = text.rfind(_GATE, -BLOCK)
    return gate >= 0 and text.endswith(b"\n") and text.find(b"\n" + last, gate + 1) >= 0


def _cut(text: bytes, last: bytes) -> tuple[bytes, bytes]:
    r"""Up to the end of the last whole line that starts with ``last``, and the rest.

    >>> _cut(b"a\nb 1\na\nb", b"b"), _cut(b"a\nb", b"")
    ((b'a\nb 1\n', b'a\nb'), (b'a\n', b'b'))
    """
    at = text.rfind(b"\n")
    if last and at >= 0:
        begin = text.rfind(b"\n" + last, 0, at)
        at = text.find(b"\n", begin + 1) if begin >= 0 else -1
    return text[: at + 1], text[at + 1 :]


def explain(error: OSError, where: str) -> Exception:
    """The exception for an error below /proc/PID.

    ENOENT and ESRCH: the task is gone.  EPERM and EACCES: the caller may not see it,
    because /proc is mounted with hidepid=1, because the task has just changed its
    credentials, or because a security module protects it.
    """
    if isinstance(error, (FileNotFoundError, ProcessLookupError)):
        return Vanished(where)
    if isinstance(error, PermissionError):
        return Refused(where)
    return OSError(error.errno, error.strerror, f"/proc/{where}")


def open_procfs() -> int:
    """A descriptor of /proc.

    Raises EngineUnavailable if /proc is no procfs, or shows a pid namespace that this
    process is not in.
    """
    try:
        root = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineUnavailable(f"/proc cannot be opened: {error.strerror}") from None
    try:
        try:
            # Every procfs has this link; where it leads depends on who asks.
            os.stat("self", dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            raise EngineUnavailable("/proc is not a mounted procfs") from None
        with Directory(root, "self") as own:
            own.read("stat")
    except Vanished:
        os.close(root)
        raise EngineUnavailable(
            "/proc does not show this process: it belongs to another pid namespace"
        ) from None
    except BaseException:
        os.close(root)
        raise
    return root
