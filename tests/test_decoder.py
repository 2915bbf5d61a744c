"""The decoder: round trips, and that every damage is a DecodeError that says where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import Made, tasks
from taskdiag import DecodeError, State, Task, abi, decode
from taskdiag.abi import GROUPS, Attr
from taskdiag.netlink import pack_task, pack_vma

BASE = GROUPS[Attr.BASE].struct.pack(5, 5, 1, 0, 5, 5, 1, b"name")
VMA = pack_vma(0, 4096, 1, 0, 0, 0, 0, 0, b"/x", bytes(80))


def assert_same(task: Task, made: Made) -> None:
    assert (task.pid, task.tgid) == (made.pid, made.tgid)
    for kind in GROUPS:
        found = getattr(task, kind.name.lower())
        if kind not in made.groups:
            assert found is None
            continue
        values = list(made.groups[kind])
        if kind == Attr.BASE:
            values[6] = State(values[6])  # type: ignore[call-overload]
        values = [
            value.split(b"\0")[0].decode(errors="surrogateescape")
            if isinstance(value, bytes)
            else value
            for value in values
        ]
        assert tuple(found) == tuple(values)
    assert task.cmdline_raw == made.cmdline
    if not made.vmas:
        assert task.vmas is None
        return
    assert task.vmas is not None
    assert len(task.vmas) == len(made.vmas)
    for vma, (*values, name, stat) in zip(task.vmas, made.vmas, strict=True):
        assert [*vma[:8]] == values
        text = bytes(name).decode(errors="surrogateescape") or None  # type: ignore[call-overload]
        assert vma.name == text
        packed = b"" if vma.stat is None else abi.VMA_STAT.struct.pack(*vma.stat)
        assert packed == stat


@given(st.lists(tasks(), max_size=5))
def test_round_trip(made: list[Made]) -> None:
    chunks = [task.pack() for task in made]
    for stream in (chunks, [b"".join(chunks)]):
        found = list(decode(stream))
        assert len(found) == len(made)
        for task, wanted in zip(found, made, strict=True):
            assert_same(task, wanted)


@given(st.lists(tasks(), min_size=1, max_size=3), st.data())
def test_a_cut_stream_is_an_error_unless_cut_between_processes(
    made: list[Made], data: st.DataObject
) -> None:
    parts = [task.pack() for task in made]
    raw = b"".join(parts)
    cut = data.draw(st.integers(0, len(raw) - 1))
    whole = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    if cut in whole:
        assert len(list(decode([raw[:cut]]))) < len(made)
        return
    with pytest.raises(DecodeError) as caught:
        list(decode([raw[:cut]]))
    assert 0 <= caught.value.offset <= cut
    assert f"byte {caught.value.offset}: " in str(caught.value)


def assert_decodes_or_refuses(raw: bytes) -> None:
    offset = None
    try:
        for task in decode([raw]):
            # What the decoder lets through must not fail later.
            repr(task), task.base, task.cred, task.stat, task.statm, task.cmdline, task.vmas
    except DecodeError as error:
        offset = error.offset
    assert offset is None or 0 <= offset <= len(raw)


@settings(max_examples=300)
@given(st.lists(tasks(), min_size=1, max_size=3), st.data())
def test_flipped_bits_are_decoded_or_refused(made: list[Made], data: st.DataObject) -> None:
    raw = bytearray(b"".join(task.pack() for task in made))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert_decodes_or_refuses(bytes(raw))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_stream_or_an_error(raw: bytes) -> None:
    assert_decodes_or_refuses(raw)


def test_offsets_count_over_chunks() -> None:
    good = pack_task(1, 1, [])
    with pytest.raises(DecodeError) as caught:
        list(decode([good, good, b"\0\0"]))
    assert caught.value.offset == 56


def wrong(attrs: list[tuple[int, bytes]], vmas: tuple[bytes, ...] = ()) -> bytes:
    return pack_task(5, 5, attrs, vmas)


def vma_with(offset: int, value: int) -> bytes:
    return VMA[:offset] + value.to_bytes(2, "little") + VMA[offset + 2 :]


@pytest.mark.parametrize(
    ("raw", "offset", "what"),
    [
        (wrong([(0, BASE[:-4])]), 28, "BASE attribute of 40 bytes, expected 44"),
        (wrong([(1, bytes(68))]), 28, "CRED attribute of 68 bytes, expected 64"),
        (wrong([(0, BASE), (0, BASE)]), 78, "a second attribute of type 0"),
        (wrong([(0, b"\6" + BASE[1:])]), 32, "BASE is about task 5 of process 6"),
        (wrong([(0, BASE[:24] + b"\x09" + BASE[25:])]), 56, "unknown state 9"),
        (wrong([], (vma_with(58, 60),)), 90, "VMA statistics of 80 bytes at 60"),
        (wrong([], (vma_with(60, 79),)), 90, "VMA statistics of 79 bytes"),
        (wrong([], (vma_with(54, 63),)), 86, "VMA name of 3 bytes at 63"),
        (wrong([], (vma_with(56, 400),)), 86, "VMA name of 400 bytes"),
        (wrong([], (vma_with(56, 2),)), 177, "VMA name without its NUL"),
        (wrong([])[:24] + b"\1\0\0\0", 28, "more messages about process 5 must follow"),
        (wrong([])[:24] + b"\1\0\0\0" + pack_task(6, 6, []), 44, "message about task 6"),
        (wrong([(0, BASE)])[:24] + b"\1\0\0\0" + wrong([(0, BASE)])[28:] + wrong([(0, BASE)]), 76,
         "a second BASE in joined messages"),
    ],
)  # fmt: skip
def test_contradictions_are_named(raw: bytes, offset: int, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as caught:
        list(decode([raw]))
    assert caught.value.offset == offset
    assert isinstance(caught.value, ValueError)


def test_unknown_attributes_are_skipped_and_kept() -> None:
    (task,) = decode([pack_task(5, 5, [(0, BASE), (77, b"new"), (900, b"")])])
    assert task.base is not None
    assert task.base.comm == "name"
    assert task.payloads(77) == [b"new"]
    assert task.payloads(900) == [b""]
    assert task.payloads(78) == []


@given(tasks(), st.integers(66_000, 140_000))
@settings(max_examples=10)
def test_joined_messages_are_one_task(made: Made, length: int) -> None:
    made.cmdline = b"x" * length
    (task,) = decode([made.pack()])
    assert_same(task, made)
    with pytest.raises(DecodeError, match="truncated"):
        list(decode([made.pack()[:-28]]))
