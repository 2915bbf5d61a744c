"""The stream of netlink messages: building it and taking it apart, without interpreting groups.

Every chunk that an engine yields is a whole number of messages, and never splits
a process whose messages are joined by CONT.
"""

from __future__ import annotations

from struct import Struct

from .abi import (
    MSG,
    MSG_FLAG_CONT,
    NLM_F_MULTI,
    RESPONSE,
    VMA,
    Attr,
    align,
)
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = (
    "LONGEST",
    "attr",
    "attributes",
    "in_order",
    "messages",
    "pack_task",
    "pack_vma",
    "rechunk",
    "shorten",
    "vma_records",
)

#: The longest message or attribute: what a u16 can say, aligned.
LONGEST = 0xFFFC

_ATTR = Struct("=HH")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute with its header, padded to 4 bytes.

    >>> attr(6, b"cat\\0x").hex(" ", 4)
    '09000600 63617400 78000000'
    """
    return _ATTR.pack(4 + len(payload), kind) + payload + _PAD[len(payload) & 3]


def pack_vma(
    start: int,
    end: int,
    vm_flags: int,
    pgoff: int,
    major: int,
    minor: int,
    inode: int,
    generation: int,
    name: bytes,
    stat: bytes = b"",
) -> bytes:
    """One VMA record: the structure, then the statistics if any, then the name with its NUL."""
    fixed = VMA.size + len(stat)
    name_len = len(name) + 1 if name else 0
    length = (fixed + name_len + 7) & ~7
    head = VMA.struct.pack(
        start, end, vm_flags, pgoff, major, minor, inode, generation,
        length, fixed if name else 0, name_len, VMA.size if stat else 0, len(stat),
    )  # fmt: skip
    return (head + stat + name).ljust(length, b"\0")


def pack_task(
    pid: int,
    tgid: int,
    attrs: Iterable[tuple[int, bytes]],
    vmas: Iterable[bytes] = (),
    seq: int = 0,
) -> bytes:
    """The messages about one task: one, or several joined by CONT if one is too short.

    ``attrs`` are types and payloads; ``vmas`` are records from `pack_vma`, packed into as
    few VMA attributes as hold them.  A payload beyond a u16 (a very long command line)
    goes on in an attribute of the same type in the next message.
    """
    room = LONGEST - MSG.size
    attrs, vmas = list(attrs), list(vmas)
    size = sum([7 + len(payload) for _, payload in attrs])
    if size <= room:
        # Nearly all tasks: everything fits one message.
        records = b"".join(vmas)
        if size + 4 + len(records) <= room:
            body = b"".join([attr(kind, payload) for kind, payload in attrs])
            if records:
                body += attr(Attr.VMA, records)
            length = MSG.size + len(body)
            return MSG.pack(length, RESPONSE, NLM_F_MULTI, seq, 0, pid, tgid, 0) + body
    bodies: list[bytearray] = [bytearray()]

    def put(kind: int, payload: bytes) -> None:
        if len(bodies[-1]) + align(4 + len(payload)) > room:
            bodies.append(bytearray())
        bodies[-1] += attr(kind, payload)

    for kind, payload in attrs:
        most = room - 4
        if len(payload) <= most:
            put(kind, payload)
        else:
            for at in range(0, len(payload), most):
                put(kind, payload[at : at + most])
    batch = bytearray()
    for record in vmas:
        if batch and len(bodies[-1]) + 4 + len(batch) + len(record) > room:
            put(Attr.VMA, bytes(batch))
            batch = bytearray()
            bodies.append(bytearray())
        batch += record
    if batch:
        put(Attr.VMA, bytes(batch))

    last = len(bodies) - 1
    return b"".join(
        MSG.pack(
            MSG.size + len(body), RESPONSE, NLM_F_MULTI, seq, 0,
            pid, tgid, MSG_FLAG_CONT if index < last else 0,
        )
        + body
        for index, body in enumerate(bodies)
    )  # fmt: skip


def shorten(data: bytes, longest: int) -> bytes:
    """The same answer in messages of at most ``longest`` bytes, a multiple of 4.

    ``data`` holds whole messages.  One that is longer becomes several, joined by CONT:
    mappings are divided between records, a command line anywhere.
    """
    if len(data) <= longest:
        return data
    pieces = []
    done = at = 0
    size = len(data)
    while at < size:
        (length,) = _LENGTH.unpack_from(data, at)
        if length > longest:
            pieces += [data[done:at], _divided(data[at : at + length], longest)]
            done = at + length
        at += length
    return b"".join([*pieces, data[done:]]) if pieces else data


def _divided(message: bytes, longest: int) -> bytes:
    _, kind, nlflags, seq, port, pid, tgid, flags = MSG.unpack_from(message)
    room = longest - MSG.size
    bodies = [bytearray()]
    for group, start, end in attributes(message, MSG.size, len(message)):
        for piece in _cut(message, group, start, end, room - 4):
            if len(bodies[-1]) + align(4 + len(piece)) > room:
                bodies.append(bytearray())
            bodies[-1] += attr(group, piece)
    # The last one is followed by what followed the message.
    last = len(bodies) - 1
    return b"".join(
        MSG.pack(
            MSG.size + len(body), kind, nlflags, seq, port, pid, tgid,
            flags | MSG_FLAG_CONT if index < last else flags,
        )
        + body
        for index, body in enumerate(bodies)
    )  # fmt: skip


def _cut(data: bytes, group: int, start: int, end: int, most: int) -> Iterator[bytes]:
    """The payload between two offsets in pieces of at most ``most`` bytes."""
    if group != Attr.VMA:
        while end - start > most:
            yield data[start : start + most]
            start += most
    else:
        at = start
        while end - start > most and at < end:
            (length,) = _VMA_LEN.unpack_from(data, at + 52)
            if at + length - start > most and at > start:
                yield data[start:at]
                start = at
            at += length or end
    yield data[start:end]


_LENGTH = Struct("=I")


def messages(data: bytes, base: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk a buffer of whole messages: (offset, end, pid, tgid, flags) of each.

    ``base`` is what to add to an offset in an error.  Raises DecodeError.
    """
    at, size = 0, len(data)
    while at < size:
        if size - at < MSG.size:
            raise DecodeError(
                base + at, f"{size - at} bytes left, a message header needs {MSG.size}"
            )
        length, kind, nlflags, _, _, pid, tgid, flags = MSG.unpack_from(data, at)
        if kind != RESPONSE:
            raise DecodeError(base + at + 4, f"message type {kind:#x}, expected {RESPONSE:#x}")
        if length < MSG.size or length > LONGEST or length & 3:
            raise DecodeError(
                base + at,
                f"message length {length}, expected a multiple of 4 from {MSG.size} to {LONGEST}",
            )
        if length > size - at:
            raise DecodeError(
                base + at, f"truncated: the message has {length} bytes, {size - at} are left"
            )
        if not nlflags & NLM_F_MULTI:
            raise DecodeError(base + at + 6, f"message flags {nlflags:#x}, expected NLM_F_MULTI")
        if flags & ~MSG_FLAG_CONT:
            raise DecodeError(base + at + 24, f"unknown task flags {flags:#x}")
        yield at, at + length, pid, tgid, flags
        at += length


def attributes(data: bytes, at: int, end: int, base: int = 0) -> Iterator[tuple[int, int, int]]:
    """Walk the attributes between two offsets: (type, start, end) of each payload.

    Raises DecodeError.
    """
    while at < end:
        if end - at < 4:
            raise DecodeError(base + at, f"{end - at} bytes left, an attribute header needs 4")
        length, kind = _ATTR.unpack_from(data, at)
        if length < 4 or length > end - at:
            raise DecodeError(
                base + at, f"attribute length {length}, expected from 4 to {end - at}"
            )
        yield kind, at + 4, at + length
        at += align(length)
    if at != end:
        raise DecodeError(base + end, "the last attribute's padding is cut off")


def vma_records(data: bytes, at: int, end: int, base: int = 0) -> Iterator[tuple[int, int]]:
    """Walk the records of a VMA attribute: (start, end) of each.  Raises DecodeError."""
    if at == end:
        raise DecodeError(base + at, "empty VMA attribute, expected at least one record")
    while at < end:
        if end - at < VMA.size:
            raise DecodeError(base + at, f"{end - at} bytes left, a VMA record needs {VMA.size}")
        length = _VMA_LEN.unpack_from(data, at + 52)[0]
        if length < VMA.size or length > end - at or length & 3:
            raise DecodeError(
                base + at + 52,
                f"VMA record length {length}, "
                f"expected a multiple of 4 from {VMA.size} to {end - at}",
            )
        yield at, at + length
        at += length


_VMA_LEN = Struct("=H")


def rechunk(read: Callable[[], bytes], cut_off: Exception | None = None) -> Iterator[bytes]:
    """Cut the bytes that ``read`` returns, until it returns none, into chunks of whole processes.

    What does not look like messages is passed on as it is, for the decoder to judge; so
    is half a process at the end, unless ``cut_off`` is given to be raised then.
    """
    rest = b""
    while True:
        piece = read()
        if not piece:
            break
        data = rest + piece if rest else piece
        cut = _whole(data)
        if cut:
            yield data[:cut]
        rest = data[cut:]
    if rest:
        if cut_off is not None:
            raise cut_off
        yield rest


def _whole(data: bytes) -> int:
    """How many bytes at the front are whole messages of whole processes."""
    at = cut = 0
    size = len(data)
    while size - at >= MSG.size:
        length, kind, _, _, _, _, _, flags = MSG.unpack_from(data, at)
        if length < MSG.size or kind != RESPONSE:
            return size
        if length > size - at:
            break
        at += length
        if not flags & MSG_FLAG_CONT:
            cut = at
    return cut


def in_order(data: bytes) -> bytes:
    """The same messages in ascending order of pid; those about one task stay together."""
    found = [(pid, at, end) for at, end, pid, _, _ in messages(data)]
    found.sort(key=lambda item: item[0])
    return b"".join([data[at:end] for _, at, end in found])
