"""The names of mapped files of stacking file systems, such as overlayfs.

For such a file, /proc/PID/maps shows the path by which it was opened, of which a program can
find out the identity but not the text (`vma`).  So the record of the first mapping of a file is
written without a name, and its name is read here, from the maps of the task.  The program is
then given the name, and writes it into later records itself: each distinct file of an answer
costs one look at /proc, however many tasks map it.
"""

from __future__ import annotations

import re
from struct import Struct

from ..abi import DEFERRED, MSG, Attr
from ..netlink import LONGEST, attributes, pack_vma
from ..procfs.maps import parse_line
from ..procfs.reader import Changed, Directory, Vanished
from .vma import KEY, MARKER, STAMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: Called with a KEY and the name of that file.
    KeepName = Callable[[bytes, bytes], None]

__all__ = ("StackedNames",)

#: How many names are remembered.
_REMEMBERED = 4096
#: No name is longer (with its NUL); tasks with such names are left to procfs.
_PATH_MAX = 4096
#: How much of maps is read.  A message with such records holds less than 600 mappings.
_MOST = 1 << 22
#: The part of a record before the marker.
_HEAD = Struct("=QQQQIIQI")
_LENGTH = Struct("=I")
_ATTR_LENGTH = Struct("=H")


class StackedNames:
    """Completes the records without a name of one answer.

    ``proc`` is a descriptor of /proc, ``marker`` what such records have (`Host.marker`).
    ``again`` runs a program with the same marker again for one thread, by its number in /proc.
    ``through`` is as in `Directory`; names depend on the root directory of who reads.
    ``keep_name`` is told each name that is found.  Several threads may use one object.

    A name is only used for records with an equal KEY.  While a file is mapped, its mount and
    dentry cannot be freed.  If it is unmapped within the answer and both addresses are used
    again, the KEY differs in the other numbers, unless it is the same file in the same directory,
    under a name of the same hash.  If a directory above it is renamed within the answer, either
    path is right.
    """

    def __init__(
        self,
        proc: int,
        marker: bytes,
        again: Callable[[int], bytes],
        through: Callable[..., Any] | None = None,
        keep_name: KeepName | None = None,
    ) -> None:
        self._proc = proc
        self._marker = marker
        self._again = again
        self._through = through
        self._keep_name = keep_name
        # Without the marker, a message is text, KEY and STAMP in turn.  Nobody else knows it,
        # so it is in no name and no command line.
        pattern = re.escape(marker) + b"(.{%d})(.{%d})" % (KEY.size, STAMP.size)
        self._split = re.compile(pattern, re.DOTALL).split
        #: By KEY, what takes the place of marker, KEY and STAMP.
        self._known: dict[bytes, bytes] = {}

    def complete(self, data: bytes) -> bytes:
        """The same messages, with names.

        Messages for which a name was not found have no mappings, and are marked as deferred.
        """
        marked = data.find(self._marker)
        pieces: list[bytes] = []
        at = begin = 0
        while marked >= 0:
            end = at + _LENGTH.unpack_from(data, at)[0]
            if end > marked:
                pieces += data[begin:at], self._completed(data[at:end])
                begin = end
                marked = data.find(self._marker, end)
            at = end
        return b"".join([*pieces, data[begin:]])

    def _completed(self, message: bytes) -> bytes:
        parts: list[bytes] = self._split(message)
        keys = parts[1::3]
        known = self._known
        if not known.keys() >= {*keys}:
            known = self._learn(message, {*keys})
        at = next(
            start - 4
            for kind, start, _ in attributes(message, MSG.size, len(message))
            if kind == Attr.VMA
        )
        try:
            parts[1::3] = map(known.__getitem__, keys)
        except KeyError:
            return _deferred(message, at)
        parts[2::3] = [b""] * len(keys)
        body = bytearray(b"".join(parts))
        if len(body) > LONGEST:
            return _deferred(message, at)
        _LENGTH.pack_into(body, 0, len(body))
        _ATTR_LENGTH.pack_into(body, at, len(body) - at)
        return bytes(body)

    def _learn(self, message: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
        """Find out the names that a message lacks.  Returns those that are known then."""
        known = self._known
        if len(known) + len(wanted) > _REMEMBERED:
            # Another thread may still use the old ones.
            known = self._known = {}
        _, _, _, _, port, pid, _, _ = MSG.unpack_from(message)
        for key, name in self._read(port or pid, wanted - known.keys()).items():
            known[key] = pack_vma(0, 0, 0, 0, 0, 0, 0, 0, name)[MARKER.start :]
            if self._keep_name is not None:
                self._keep_name(key, name)
        return known

    def _read(self, tid: int, wanted: set[bytes]) -> dict[bytes, bytes]:
        """The names of files that a task maps, by KEY.

        A name will be used for other tasks, so this one must not be able to choose it, as it
        could by mapping the same file from another mount for a moment.  So the program is run
        before and after maps is read.  If the record of a mapping and its STAMP are the same,
        the task has neither changed its mappings nor executed a program in between.
        """
        try:
            with Directory(self._proc, str(tid), True, self._through) as directory:
                before = self._marked(tid)
                heads = {key: before[key][0] for key in wanted & before.keys()}
                found = _shown(directory, heads)
                for key, name in found.items():
                    if b"\\012" in name:
                        # A newline, or these four characters; see `maps.exact_name`.
                        exact = _link(directory, heads[key])
                        found[key] = exact if exact.replace(b"\n", b"\\012") == name else b""
                after = self._marked(tid)
                # The number was still that of the same task.
                directory.read("stat")
        except (Vanished, Changed, OSError):
            return {}
        return {
            key: name
            for key, name in found.items()
            if 0 < len(name) < _PATH_MAX and before[key] == after.get(key)
        }

    def _marked(self, tid: int) -> dict[bytes, tuple[bytes, bytes]]:
        """The head and the STAMP of a record of each KEY, from another run of the program."""
        parts: list[bytes] = self._split(self._again(tid))
        return {
            key: (text[-_HEAD.size :], stamp)
            for text, key, stamp in zip(parts[:-1:3], parts[1::3], parts[2::3], strict=True)
        }


def _shown(directory: Directory, wanted: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The names as maps shows them, by KEY; ``wanted`` has the heads of records."""
    found: dict[bytes, bytes] = {}
    size = 0
    for piece in directory.read_mappings("maps"):
        text = b"\n" + piece
        for key, head in wanted.items():
            start, end, _, pgoff, major, minor, inode, _ = _HEAD.unpack(head)
            at = text.find(b"\n%08x-%08x " % (start, end)) + 1
            if at:
                *numbers, name = parse_line(text[at : text.find(b"\n", at)])[3:]
                if numbers == [pgoff, major, minor, inode]:
                    found[key] = name
        size += len(piece)
        if len(found) == len(wanted) or size > _MOST:
            break
    return found


def _link(directory: Directory, head: bytes) -> bytes:
    """Where the link in map_files leads to, of a mapping with this head of a record."""
    start, end, *_ = _HEAD.unpack(head)
    return directory.readlink(f"map_files/{start:x}-{end:x}")


def _deferred(message: bytes, at: int) -> bytes:
    """The message without its last attribute, which begins at ``at``, to be completed."""
    kept = bytearray(message[:at])
    _LENGTH.pack_into(kept, 0, at)
    _LENGTH.pack_into(kept, 24, _LENGTH.unpack_from(kept, 24)[0] | DEFERRED)
    return bytes(kept)
