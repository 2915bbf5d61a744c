"""Answers about this kernel's types, kept on disk from one start to the next.

`Facts` has the methods of `btf.Btf` and answers from a file of a few kilobytes.  Only a
question that was never asked before makes it read the kernel's BTF, which takes 50 ms.

    >>> facts = Facts.live()
    >>> facts.member("struct task_struct", "tgid").offset
    1268
    >>> facts.save()
"""

from __future__ import annotations

import os
from struct import Struct
from struct import error as struct_error

from .. import __version__
from . import cache
from .member import Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .btf import Btf

__all__ = ("NOTES", "VMLINUX", "Facts", "build_id", "identify")

VMLINUX = "/sys/kernel/btf/vmlinux"
NOTES = "/sys/kernel/notes"

_NOTE = Struct("=III")  # name size, description size, type
_NT_GNU_BUILD_ID = 3
_BTF_HEADER = 24
#: Most answers that the file keeps: ten times what all groups together ask.
_MAX_ANSWERS = 2000
_MAX_BYTES = 1 << 19
#: Longest question and answer that is kept, in characters.
_MAX_LINE = 8000


class Facts:
    """Answers about one kernel's types.  `btf.Btf` documents each question.

    ``load`` reads the BTF; it is called when an answer is missing.  So any question may
    raise EngineUnavailable, if the BTF cannot be read or is damaged, and NotFound, which
    is a kind of it.
    """

    def __init__(self, store: cache.Cache, load: Callable[[], Btf]) -> None:
        self._store = store
        self._load = load
        self._btf: Btf | None = None
        self._answers = self._read()
        self._fresh: dict[str, str] = {}

    @classmethod
    def live(cls, path: str = VMLINUX, notes: str = NOTES) -> Facts:
        """Facts about the running kernel.

        Raises EngineUnavailable, naming the file, if the BTF is missing or unreadable.
        """

        def load() -> Btf:
            from .btf import Btf

            return Btf.load(path)

        return cls(cache.Cache(identify(path, notes), cache.directory()), load)

    @property
    def btf(self) -> Btf:
        """The BTF itself, read on first use."""
        if self._btf is None:
            self._btf = self._load()
        return self._btf

    # -- questions -----------------------------------------------------------------------

    def type_id(self, kind: str, name: str) -> int:
        """The id of a type."""
        return self._number(f"type {kind} {name}", lambda btf: btf.type_id(kind, name))

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a type."""
        return self._known(f"type {kind} {name}", lambda btf: str(btf.type_id(kind, name)))

    def size(self, type: str | int) -> int:
        """The size of a type in bytes."""
        return self._number(f"size {type}", lambda btf: btf.size(type))

    def enumerator(self, name: str) -> int:
        """An enumerator's value."""
        return self._number(f"enumerator {name}", lambda btf: btf.enumerator(name))

    def has_enumerator(self, name: str) -> bool:
        """Whether any enum has that enumerator."""
        return self._known(f"enumerator {name}", lambda btf: str(btf.enumerator(name)))

    def member(self, type: str | int, path: str) -> Member:
        """Where a member lies within an object of the type."""
        key = f"member {type} {path}"
        text = self._answer(key, lambda btf: btf.member(type, path).encode())
        try:
            return Member.decode(text)
        except ValueError:  # the checksum is right, the line is not: ask again
            return self.btf.member(type, path)

    def path(self, type: str | int, path: str) -> list[Member]:
        """The loads that a path takes."""
        text = self._answer(f"path {type} {path}", lambda btf: _encode(btf.path(type, path)))
        try:
            return _decode(text)
        except ValueError:
            return self.btf.path(type, path)

    def has_member(self, type: str | int, path: str) -> bool:
        """Whether `path` would find it."""
        return self._known(f"path {type} {path}", lambda btf: _encode(btf.path(type, path)))

    def func_proto(self, name: str) -> list[tuple[str, str]]:
        """The parameters of a function: name and type of each."""

        def compute(btf: Btf) -> str:
            return "\t".join(word for pair in btf.func_proto(name) for word in pair)

        words = self._answer(f"func_proto {name}", compute).split("\t")
        return list(zip(words[::2], words[1::2], strict=False))

    # -- other data ----------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """What `put` stored under that key for this kernel, now or earlier; None if nothing."""
        return self._store.read(f"put {key}")

    def put(self, key: str, data: str | bytes) -> bool:
        """Store up to about a megabyte for later starts; False if that is not possible.

        The key must name everything that the data depends on, except the kernel and the
        version of this package.
        """
        return self._store.write(f"put {key}", data.encode() if isinstance(data, str) else data)

    def save(self) -> None:
        """Write new answers to the cache, if there are any.

        This also happens when the interpreter exits, so nobody has to call it.
        """
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        self._btf = None  # ten megabytes, hardly needed again
        # Another process may have added answers since this one read the file.
        kept = {**self._read(), **self._answers}
        if len(kept) > _MAX_ANSWERS:
            kept = fresh
        text = "".join(f"{key}\t{answer}\n" for key, answer in kept.items())
        if len(text) <= _MAX_BYTES:
            self._store.write("facts", text.encode("ascii"))

    # -- the cached answers --------------------------------------------------------------

    def _read(self) -> dict[str, str]:
        data = self._store.read("facts")
        if not data:
            return {}
        try:
            lines = data.decode("ascii").split("\n")
            lines.pop()
            return dict(line.split("\t", 1) for line in lines)
        except ValueError:
            return {}

    def _raw(self, key: str, compute: Callable[[Btf], str]) -> str:
        """The answer as it is stored: "=" and a value, or "!" and why nothing was found."""
        answer = self._answers.get(key)
        if answer is not None and answer[:1] in ("=", "!"):
            return answer
        from .btf import NotFound

        try:
            answer = "=" + compute(self.btf)
        except NotFound as error:
            answer = f"!{error}"
        if _keeps(key, answer):
            if not self._fresh:
                _at_exit(self)
            self._answers[key] = self._fresh[key] = answer
        return answer

    def _answer(self, key: str, compute: Callable[[Btf], str]) -> str:
        answer = self._raw(key, compute)
        if answer[0] == "!":
            from .btf import NotFound

            raise NotFound(answer[1:])
        return answer[1:]

    def _number(self, key: str, compute: Callable[[Btf], int]) -> int:
        text = self._answer(key, lambda btf: str(compute(btf)))
        try:
            return int(text)
        except ValueError:
            return compute(self.btf)

    def _known(self, key: str, compute: Callable[[Btf], str]) -> bool:
        return self._raw(key, compute)[0] == "="


def _keeps(key: str, answer: str) -> bool:
    """Whether the two fit in one line of the file: names in a blob may be anything."""
    line = key + answer.replace("\t", "")
    return len(line) <= _MAX_LINE and line.isascii() and line.isprintable()


def _encode(members: list[Member]) -> str:
    return "\t".join(member.encode() for member in members)


def _decode(text: str) -> list[Member]:
    words = text.split("\t")
    return [Member.decode("\t".join(words[at : at + 3])) for at in range(0, len(words), 3)]


def _at_exit(facts: Facts) -> None:
    import atexit

    atexit.unregister(facts.save)
    atexit.register(facts.save)


def identify(path: str = VMLINUX, notes: str = NOTES) -> str:
    """One line that distinguishes this kernel's types from those of any other.

    The build id is a digest of the kernel image, types included.  It is read in
    microseconds, where hashing the types takes 20 ms; a kernel linked without one is
    hashed.  The size and the header of the BTF are part of the line as well.

    Raises EngineUnavailable, naming the file, if the BTF cannot be read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            head = os.read(file, _BTF_HEADER)
        finally:
            os.close(file)
        digest = build_id(notes)
        name = f"sha256 {_sha256(path)}" if digest is None else f"build-id {digest.hex()}"
    except OSError as error:
        from .btf.reader import cannot_read

        raise cannot_read(path, error) from None
    return f"taskdiag {__version__} {name} {size} {head.hex()}"


def _sha256(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def build_id(notes: str = NOTES) -> bytes | None:
    """The running kernel's build id from its ELF notes; None if it has none.

    >>> build_id().hex()
    '4a5a9b0affb66c437abcd455d2738af879985fa9'
    """
    try:
        file = os.open(notes, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(file, 1 << 16)
    except OSError:
        return None
    finally:
        os.close(file)
    at = 0
    try:
        while at < len(data):
            name_size, size, kind = _NOTE.unpack_from(data, at)
            name = at + _NOTE.size
            start = name + (name_size + 3 & ~3)
            at = start + (size + 3 & ~3)
            if kind == _NT_GNU_BUILD_ID and data[name : name + name_size] == b"GNU\0":
                found = data[start : start + size]
                return found if len(found) == size >= 16 else None
    except struct_error:
        return None
    return None
