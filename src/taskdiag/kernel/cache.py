"""Small files that a later start may believe: where they lie, and when to believe them.

A cached file is trusted only if it is a plain file, of this user, that no one else may
write, in a directory of which the same holds, and if its first lines and its checksum say
that it is whole and answers exactly this question about exactly this kernel.  Anything
else is as if it were not there, and so is a place where nothing can be written: a cache
never fails, it only misses.

The checksum is against accidents.  Against people there is the ownership: whoever can
write as this user, or as root, needs no cache to do harm.
"""

from __future__ import annotations

import os

# The interpreter's own checksum of .pyc files (importlib.util.source_hash), 64 bits of
# SipHash.  Built in: importing zlib or hashlib for this would cost more than all else here.
from _imp import source_hash

__all__ = ("BIGGEST", "Cache", "directory")

#: Bytes that a cached file has at most.
BIGGEST = 1 << 20
#: Files that the directory has at most; then the oldest go.
_MOST = 64
_STALE_SECONDS = 3600

_FORMAT = b"taskdiag cache 1\n"
_SEAL = 17
_SEED = 0x7461736B64696167  # "taskdiag"
_TEMPORARY = ".new-"
_OTHERS_WRITE = 0o022
_S_IFMT, _S_IFREG = 0o170000, 0o100000


def directory() -> str | None:
    """Where this user's cached files belong, or None if they have no such place.

    TASKDIAG_CACHE names the directory itself; if it is empty nothing is cached.
    Else XDG_CACHE_HOME or, failing that, /var/cache for root and ~/.cache for others.
    Root follows XDG_CACHE_HOME only into a directory of root's: `sudo -E` brings along
    the caller's, and its HOME is as likely the caller's, so that is not asked.
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
    """Whether this is this user's, and nobody else may write there."""
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
        """What was written under that key, or None if there is nothing to believe."""
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
        """Keep ``data`` under that key; False if that cannot be done.

        A reader finds the old file or the new, never half of one.
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
        """The line that says that ``head`` and ``data`` belong together and are whole."""
        return source_hash(_SEED, head + source_hash(_SEED, data)).hex().encode() + b"\n"

    def _unseal(self, key: str, sealed: bytes) -> bytes | None:
        head = self._head(key)
        start = len(head) + _SEAL
        if not sealed.startswith(head):
            return None
        data = sealed[start:]
        return data if sealed[len(head) : start] == self._seal(head, data) else None

    def _open(self, make: bool = False) -> int | None:
        """A descriptor of the directory, if it is to be trusted."""
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
        """Keep the directory small: forget other kernels first, then what is oldest."""
        names = os.listdir(folder)
        if len(names) <= _MOST:
            return
        ages: list[tuple[bool, float, str]] = []
        newest = 0.0
        for name in names:
            temporary = name.startswith(_TEMPORARY)
            if not temporary and not (len(name) == 33 and name[16] == "-"):
                continue  # nothing of ours
            try:
                age = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            newest = max(newest, age)
            ages.append((name.startswith(self._family), age, name))
        ages.sort()
        for _, age, name in ages[: len(names) - _MOST * 3 // 4]:
            if name.startswith(_TEMPORARY) and newest - age < _STALE_SECONDS:
                continue  # being written
            _forget_file(name, folder)


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _make(path: str) -> None:
    """The directory, and the one above it (~/.cache) where that is missing."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.mkdir(os.path.dirname(path), 0o700)
        os.mkdir(path, 0o700)


def _read_file(name: str, folder: int) -> bytes:
    """A file's bytes if it is one that only this user can have written, else none."""
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
    """Put a file in place of another at once.

    There is no fsync: after a power cut the file may be empty or torn, the checksum
    tells, and it is written again.
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
