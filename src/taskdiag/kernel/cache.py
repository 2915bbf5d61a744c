"""Small files that are kept from one run to the next: where they are, and which to trust.

A cached file is used only if

- it is a regular file that belongs to this user and that nobody else may write,
- the same holds for its directory,
- its first lines name exactly this kernel and this question, and
- its checksum is right.

Any other file is ignored, and a directory that cannot be written to is not an error: the
cache then has no answers.

The checksum protects against accidents, the ownership against other users.  Someone who
can write as this user, or as root, can do harm without the cache.
"""

from __future__ import annotations

import os

# The interpreter's checksum of .pyc files (importlib.util.source_hash), a SipHash of 64
# bits.  It is built in: importing zlib or hashlib would take longer than the rest of this.
from _imp import source_hash

__all__ = ("BIGGEST", "Cache", "directory")

#: Largest size of a cached file, in bytes.
BIGGEST = 1 << 20
#: Most files in the directory; then the oldest are removed.
_MOST = 64
_STALE_SECONDS = 3600

_FORMAT = b"taskdiag cache 1\n"
_SEAL = 17
_SEED = 0x7461736B64696167  # "taskdiag"
_TEMPORARY = ".new-"
_OTHERS_WRITE = 0o022
_S_IFMT, _S_IFREG = 0o170000, 0o100000


def directory() -> str | None:
    """The directory for this user's cached files, or None if there is none.

    It is TASKDIAG_CACHE if that is set; if that is empty, nothing is cached.  Otherwise it
    is ``taskdiag`` in XDG_CACHE_HOME, else in /var/cache for root and in ~/.cache for
    other users.

    With ``sudo -E`` XDG_CACHE_HOME may be that of the caller.  So root uses it only if it
    is a directory that belongs to root, and never uses HOME.
    """
    environ = os.environ
    chosen = environ.get("TASKDIAG_CACHE")
    if chosen is not None:
        return chosen if chosen.startswith("/") else None
    parent = environ.get("XDG_CACHE_HOME", "")
    if os.geteuid() == 0:
        if not (parent.startswith("/") and _ours(parent)):
            parent = "/var/cache"
    elif not parent.startswith("/"):
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        parent = home + "/.cache"
    return parent + "/taskdiag"


def _ours(path: str) -> bool:
    """Whether the path belongs to this user, and nobody else may write to it."""
    try:
        return _owned(os.stat(path))
    except (OSError, ValueError):
        return False


def _owned(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


class Cache:
    """Files about one identity (of a kernel), each found by its key.

    >>> from tempfile import mkdtemp
    >>> cache = Cache("build-id 4a5a9b0a", mkdtemp(prefix="taskdiag-example-"))
    >>> cache.write("greeting", b"hello")
    True
    >>> cache.read("greeting")
    b'hello'
    >>> from shutil import rmtree
    >>> rmtree(cache.where)
    """

    def __init__(self, identity: str, where: str | None) -> None:
        self.where = where
        self._identity = identity.encode("utf-8", "surrogateescape")
        self._family = source_hash(_SEED, self._identity).hex()

    def read(self, key: str) -> bytes | None:
        """The data written under that key, or None if there is none that can be trusted."""
        folder = self._open()
        if folder is None:
            return None
        try:
            data = _read_file(self._name(key), folder)
        except (OSError, ValueError):
            return None
        finally:
            os.close(folder)
        return self._unseal(key, data)

    def write(self, key: str, data: bytes) -> bool:
        """Write ``data`` under that key; False if that is not possible.

        A reader finds either the old file or the new one, complete.
        """
        head = self._head(key)
        sealed = head + self._seal(head, data) + data
        if len(sealed) > BIGGEST:
            return False
        folder = self._open(make=True)
        if folder is None:
            return False
        try:
            _replace_file(self._name(key), sealed, folder)
            self._prune(folder)
        except OSError:
            return False
        finally:
            os.close(folder)
        return True

    def _name(self, key: str) -> str:
        return f"{self._family}-{source_hash(_SEED, _encoded(key)).hex()}"

    def _head(self, key: str) -> bytes:
        return b"%b%b\n%b\n" % (_FORMAT, self._identity, _encoded(key))

    def _seal(self, head: bytes, data: bytes) -> bytes:
        """The line with the checksum over ``head`` and ``data``."""
        return source_hash(_SEED, head + source_hash(_SEED, data)).hex().encode() + b"\n"

    def _unseal(self, key: str, sealed: bytes) -> bytes | None:
        head = self._head(key)
        start = len(head) + _SEAL
        if not sealed.startswith(head):
            return None
        data = sealed[start:]
        return data if sealed[len(head) : start] == self._seal(head, data) else None

    def _open(self, make: bool = False) -> int | None:
        """A descriptor of the directory, or None if it cannot be trusted."""
        if self.where is None:
            return None
        try:
            if make:
                _make(self.where)
            folder = os.open(
                self.where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except (OSError, ValueError):
            return None
        if _owned(os.fstat(folder)):
            return folder
        os.close(folder)
        return None

    def _prune(self, folder: int) -> None:
        """Remove files if there are too many: first those of other kernels, then the oldest."""
        names = os.listdir(folder)
        if len(names) <= _MOST:
            return
        ages: list[tuple[bool, float, str]] = []
        newest = 0.0
        for name in names:
            temporary = name.startswith(_TEMPORARY)
            if not temporary and not (len(name) == 33 and name[16] == "-"):
                continue  # not a file of this cache
            try:
                age = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            newest = max(newest, age)
            ages.append((name.startswith(self._family), age, name))
        ages.sort()
        for _, age, name in ages[: len(names) - _MOST * 3 // 4]:
            if name.startswith(_TEMPORARY) and newest - age < _STALE_SECONDS:
                continue  # someone may be writing it
            _forget_file(name, folder)


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _make(path: str) -> None:
    """Make the directory, and also the one above it (~/.cache) if that is missing."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.mkdir(os.path.dirname(path), 0o700)
        os.mkdir(path, 0o700)


def _read_file(name: str, folder: int) -> bytes:
    """The bytes of a file that only this user can have written; none of any other file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(file)
        if status.st_mode & _S_IFMT != _S_IFREG or not _owned(status) or status.st_size > BIGGEST:
            return b""
        return os.read(file, status.st_size)
    finally:
        os.close(file)


def _replace_file(name: str, data: bytes, folder: int) -> None:
    """Replace a file atomically.

    There is no fsync: if the file is incomplete after a power failure, its checksum is
    wrong, and it will be written again.
    """
    temporary = f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        try:
            os.fchmod(file, 0o600)  # whatever the umask
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _forget_file(temporary, folder)
        raise


def _forget_file(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    return True
