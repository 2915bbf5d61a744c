"""Requests: what they accept, what they refuse, and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdiag import Dump, NoSuchProcess, Request, RequestError, Show, UnsupportedRequest
from taskdiag.abi import REQUEST
from taskdiag.request import parse_show

KNOWN = int(sum(Show))


def test_golden_bytes() -> None:
    raw = Request(Show.BASE | Show.CMDLINE, Dump.CHILDREN, 0x01020304, seq=5).encode()
    assert raw.hex(" ", 4) == (
        "28000000 00000100 05000000 00000000 41000000 00000000 03000000 00000000 04030201 00000000"
    )


@given(
    st.lists(st.sampled_from(list(Show))),
    st.sampled_from(list(Dump)),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_round_trip(show: list[Show], strategy: Dump, pid: int, seq: int) -> None:
    flags = 0
    for flag in show:
        flags |= flag
    request = Request(flags, strategy, pid, seq)
    again = Request.decode(request.encode())
    assert again == request
    assert hash(again) == hash(request)
    assert again.seq == seq


@given(st.binary(min_size=8, max_size=8), st.binary(max_size=64))
def test_only_the_length_of_the_header_counts(garbage: bytes, behind: bytes) -> None:
    """Old C clients leave type, flags and what follows the structure uninitialised."""
    raw = bytearray(Request(Show.STAT, Dump.ONE, 7, seq=9).encode())
    kind = garbage[:2] if garbage[:2] != b"\x02\xd1" else b"\0\0"
    raw[4:8] = kind + garbage[2:4]
    raw[12:16] = garbage[4:8]
    raw[36:40] = garbage[:4]
    assert Request.decode(bytes(raw) + behind) == Request(Show.STAT, Dump.ONE, 7, seq=9)


def test_vma_stat_implies_vma() -> None:
    assert Request(Show.VMA_STAT).show == Show.VMA | Show.VMA_STAT


def test_pid_is_ignored_where_the_strategy_has_none() -> None:
    assert Request(Show.BASE, Dump.ALL, -5).pid == 0
    assert Request(Show.BASE, Dump.ALL_THREAD, 2**40) == Request(Show.BASE, Dump.ALL_THREAD)


@pytest.mark.parametrize("pid", [0, -1, 2**32, 2**64])
@pytest.mark.parametrize("strategy", [Dump.ONE, Dump.CHILDREN, Dump.THREAD])
def test_pids_out_of_range(strategy: Dump, pid: int) -> None:
    with pytest.raises(RequestError, match="out of range"):
        Request(Show.BASE, strategy, pid)


@pytest.mark.parametrize("show", [-1, 1 << 7, 1 << 31, 1 << 35, 1 << 63, KNOWN | 1 << 20])
def test_unknown_show_flags(show: int) -> None:
    with pytest.raises(RequestError, match="unknown show flags"):
        Request(show)


@pytest.mark.parametrize("strategy", [-1, 5, 2**32, 2**64 - 1])
def test_unknown_strategies(strategy: int) -> None:
    with pytest.raises(RequestError, match="unknown dump strategy"):
        Request(Show.BASE, strategy)


@pytest.mark.parametrize("seq", [-1, 2**32])
def test_sequence_numbers_out_of_range(seq: int) -> None:
    with pytest.raises(RequestError, match="sequence number"):
        Request(seq=seq)


@given(st.binary(max_size=39))
def test_short_requests(raw: bytes) -> None:
    with pytest.raises(RequestError, match="short request"):
        Request.decode(raw)


@pytest.mark.parametrize("length", [0, 16, 39, 41, 2**32 - 1])
def test_lengths_that_lie(length: int) -> None:
    with pytest.raises(RequestError, match="nlmsg_len"):
        Request.decode(REQUEST.pack(length, 0, 1, 0, 0, 1, 0, 0))


def test_extended_requests_are_refused() -> None:
    with pytest.raises(UnsupportedRequest):
        Request.decode(REQUEST.pack(40, 0xD102, 1, 0, 0, 1, 0, 0))


@given(st.binary(min_size=40, max_size=80))
def test_any_bytes_are_a_request_or_an_error(raw: bytes) -> None:
    try:
        request = Request.decode(raw)
    except (RequestError, NoSuchProcess):
        return
    assert Request.decode(request.encode()) == request


@given(st.integers(0, 2**64 - 1))
def test_unknown_show_flags_of_clients_are_ignored(show: int) -> None:
    found = Request.decode(REQUEST.pack(40, 0, 1, 0, 0, show, Dump.ONE, 7)).show
    assert found & ~Show.VMA == show & KNOWN & ~Show.VMA
    assert bool(found & Show.VMA) == bool(show & (Show.VMA | Show.VMA_STAT))


@pytest.mark.parametrize("strategy", list(Dump))
def test_pid_0_of_clients_is_no_process(strategy: Dump) -> None:
    raw = REQUEST.pack(40, 0, 1, 0, 0, 1, strategy, 0)
    if strategy in (Dump.ALL, Dump.ALL_THREAD):
        assert Request.decode(raw).pid == 0
    else:
        with pytest.raises(NoSuchProcess):
            Request.decode(raw)


def test_parse_show() -> None:
    assert parse_show("base, STAT,vma_stat") == Show.BASE | Show.STAT | Show.VMA_STAT
    assert parse_show(["tty", "sched"]) == Show.TTY | Show.SCHED
    for bad in ("", "base,", "nosuch", "base;stat"):
        with pytest.raises(RequestError, match=r"choose from base, cred|did you mean "):
            parse_show(bad)
    assert isinstance(RequestError("x"), ValueError)
