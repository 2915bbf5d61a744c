"""The stream: packing, walking, and cutting it into whole processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Made, tasks
from taskdiag import DecodeError
from taskdiag.abi import MSG, MSG_FLAG_CONT, Attr
from taskdiag.netlink import (
    LONGEST,
    attr,
    attributes,
    messages,
    pack_task,
    pack_vma,
    rechunk,
    shorten,
    vma_records,
)


def test_golden_message() -> None:
    raw = pack_task(7, 6, [(Attr.CMDLINE, b"cat\0x")], seq=3)
    assert raw.hex(" ", 4) == (
        "28000000 01d10200 03000000 00000000 07000000 06000000 00000000 09000600 63617400 78000000"
    )


def test_golden_vma() -> None:
    raw = pack_vma(0x1000, 0x2000, 5, 0x3000, 8, 1, 99, 0, b"/lib")
    assert len(raw) == 72
    assert raw[48:64].hex(" ", 2) == "0000 0000 4800 4000 0500 0000 0000 0000"
    assert raw[64:] == b"/lib\0\0\0\0"


@given(st.lists(tasks(), max_size=5))
def test_walk_of_what_was_packed(made: list[Made]) -> None:
    raw = b"".join(task.pack() for task in made)
    found = [(pid, tgid) for _, _, pid, tgid, flags in messages(raw) if not flags]
    assert found == [(task.pid, task.tgid) for task in made]
    ends = [end for _, end, *_ in messages(raw)]
    assert not ends or ends[-1] == len(raw)


@pytest.mark.parametrize("length", [0, 1, LONGEST - 40, LONGEST, 70_000, 200_000])
def test_long_arguments_are_spread_over_messages(length: int) -> None:
    payload = bytes(index % 251 for index in range(length))
    raw = pack_task(5, 5, [(Attr.CMDLINE, payload)])
    joined, flags_seen = b"", []
    for at, end, _, _, flags in messages(raw):
        assert end - at <= LONGEST
        flags_seen.append(flags)
        joined += b"".join(raw[a:b] for _, a, b in attributes(raw, at + MSG.size, end))
    assert joined == payload
    assert flags_seen == [MSG_FLAG_CONT] * (len(flags_seen) - 1) + [0]


def test_many_mappings_are_spread_over_messages() -> None:
    records = [pack_vma(at, at + 1, 1, 0, 0, 0, 0, 0, b"x" * (at % 50)) for at in range(3000)]
    raw = pack_task(5, 5, [], records)
    found = []
    count = 0
    for at, end, *_ in messages(raw):
        assert end - at <= LONGEST
        count += 1
        for kind, start, stop in attributes(raw, at + MSG.size, end):
            assert kind == Attr.VMA
            found += [raw[a:b] for a, b in vma_records(raw, start, stop)]
    assert found == records
    assert count > 1


@given(st.lists(tasks(), min_size=1, max_size=4), st.integers(1, 80))
def test_rechunk_yields_whole_processes(made: list[Made], step: int) -> None:
    raw = b"".join(task.pack() for task in made)
    chunks = list(rechunk(reader(raw, step)))
    assert b"".join(chunks) == raw
    for chunk in chunks:
        assert list(messages(chunk))[-1][4] == 0


@given(st.binary(min_size=1, max_size=100), st.integers(1, 40))
def test_rechunk_passes_garbage_on(raw: bytes, step: int) -> None:
    assert b"".join(rechunk(reader(raw, step))) == raw


def reader(raw: bytes, step: int) -> Iterator[bytes]:
    pieces: Iterator[bytes] = iter([raw[at : at + step] for at in range(0, len(raw), step)])
    return lambda: next(pieces, b"")  # type: ignore[return-value]


def damaged(offset: int, value: bytes, raw: bytes = pack_task(1, 1, [(0, bytes(44))])) -> bytes:
    return raw[:offset] + value + raw[offset + len(value) :]


@pytest.mark.parametrize(
    ("raw", "offset", "what"),
    [
        (damaged(4, b"\0\0"), 4, "message type 0x0, expected 0xd101"),
        (damaged(0, b"\x10\0\0\0"), 0, "message length 16"),
        (damaged(0, b"\x4d\0\0\0"), 0, "message length 77, expected a multiple of 4"),
        (damaged(0, b"\0\0\1\0"), 0, "message length 65536"),
        (damaged(0, b"\x50\0\0\0"), 0, "truncated: the message has 80 bytes, 76 are left"),
        (damaged(6, b"\0\0"), 6, "message flags 0x0, expected NLM_F_MULTI"),
        (damaged(24, b"\2"), 24, "unknown task flags 0x2"),
        (pack_task(1, 1, []) + b"\0" * 5, 28, "5 bytes left, a message header needs 28"),
    ],
)
def test_messages_name_what_is_wrong(raw: bytes, offset: int, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as caught:
        list(messages(raw, 1000))
    assert caught.value.offset == 1000 + offset


@pytest.mark.parametrize(
    ("raw", "offset", "what"),
    [
        (b"\0\0", 0, "2 bytes left, an attribute header needs 4"),
        (b"\3\0\0\0", 0, "attribute length 3, expected from 4 to 4"),
        (b"\x0c\0\0\0aaaa", 0, "attribute length 12, expected from 4 to 8"),
        (b"\5\0\0\0a", 5, "padding is cut off"),
        (attr(9, b"abcd") + b"\x01\0\0\0", 8, "attribute length 1"),
    ],
)
def test_attributes_name_what_is_wrong(raw: bytes, offset: int, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as caught:
        list(attributes(raw, 0, len(raw), 500))
    assert caught.value.offset == 500 + offset


@pytest.mark.parametrize(
    ("raw", "offset", "what"),
    [
        (b"", 0, "empty VMA attribute"),
        (bytes(63), 0, "63 bytes left, a VMA record needs 64"),
        (bytes(64), 52, "VMA record length 0"),
        (bytes(52) + b"\x42\0" + bytes(14), 52, "VMA record length 66"),
        (bytes(52) + b"\x44\0" + bytes(10), 52, "VMA record length 68"),
    ],
)
def test_records_name_what_is_wrong(raw: bytes, offset: int, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as caught:
        list(vma_records(raw, 0, len(raw), 10))
    assert caught.value.offset == 10 + offset


@given(st.lists(tasks(), max_size=4), st.integers(1, 60), st.integers(0, 70_000))
def test_shortened_messages_say_the_same(made: list[Made], count: int, length: int) -> None:
    records = [
        pack_vma(at, at + 1, 1, 0, 0, 0, 0, 0, b"x" * (at * 37 % 4000)) for at in range(count)
    ]
    arguments = bytes(index % 251 for index in range(length))
    long = pack_task(5, 4, [(Attr.BASE, bytes(44)), (Attr.CMDLINE, arguments)], records, seq=9)
    before = b"".join(task.pack() for task in made)
    short = shorten(before + long + before, 16384)
    assert all(end - at <= 16384 for at, end, *_ in messages(short))
    assert b"".join(rechunk(reader(short, 1000))) == short
    assert short.startswith(before)
    assert short.endswith(before)
    assert contents(short[len(before) : len(short) - len(before)]) == contents(long)


def contents(raw: bytes) -> tuple[dict[int, bytes], list[bytes]]:
    """Everything about one task: payloads put together, and VMA records."""
    payloads: dict[int, bytes] = {}
    records = []
    for at, end, pid, tgid, flags in messages(raw):
        assert (pid, tgid) == (5, 4)
        assert flags == (MSG_FLAG_CONT if end < len(raw) else 0)
        assert raw[at + 8] == 9
        for kind, start, stop in attributes(raw, at + MSG.size, end):
            if kind == Attr.VMA:
                records += [raw[a:b] for a, b in vma_records(raw, start, stop)]
            else:
                payloads[kind] = payloads.get(kind, b"") + raw[start:stop]
    return payloads, records


def test_what_is_short_stays_as_it_is() -> None:
    raw = pack_task(7, 6, [(Attr.CMDLINE, b"cat\0x")], seq=3) * 1000
    assert shorten(raw, 16384) is raw


def test_shortening_keeps_what_follows() -> None:
    """The first of two messages about a process is still followed by the second."""
    raw = pack_task(5, 5, [(Attr.CMDLINE, bytes(100_000))])
    flags = [flags for *_, flags in messages(shorten(raw, 16384))]
    assert flags == [MSG_FLAG_CONT] * (len(flags) - 1) + [0]
