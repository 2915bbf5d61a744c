"""Tasks as objects: names, arguments and mappings out of hostile bytes."""

from __future__ import annotations

import os

import pytest

from taskdiag import State, Task, VmaFlag, decode
from taskdiag.abi import GROUPS, Attr
from taskdiag.netlink import pack_task, pack_vma


def task_of(attrs: list[tuple[int, bytes]], vmas: tuple[bytes, ...] = ()) -> Task:
    (task,) = decode([pack_task(5, 4, attrs, vmas)])
    return task


def base(comm: bytes) -> tuple[int, bytes]:
    return 0, GROUPS[Attr.BASE].struct.pack(4, 5, 1, 2, 3, 6, 4, comm)


def test_base() -> None:
    found = task_of([base(b"a) R 1 (\n\x1b[2J")]).base
    assert found == (4, 5, 1, 2, 3, 6, State.TRACE_STOP, "a) R 1 (\n\x1b[2J")


def test_what_lies_behind_the_end_of_a_name_is_not_shown() -> None:
    found = task_of([base(b"sh\0bash-leftover")]).base
    assert found is not None
    assert found.comm == "sh"


def test_name() -> None:
    raw = b"kworker/0:1-events\xff\0left over".ljust(64, b"\0")
    found = task_of([(Attr.NAME, raw)]).name
    assert found == ("kworker/0:1-events\udcff",)


def test_bytes_that_are_no_text_come_back() -> None:
    found = task_of([base(b"\xff\xfe"), (Attr.CMDLINE, b"\x80\0\xc3\xa9\0")])
    assert found.base is not None
    assert os.fsencode(found.base.comm) == b"\xff\xfe"
    assert found.cmdline is not None
    assert [os.fsencode(arg) for arg in found.cmdline] == [b"\x80", "é".encode()]


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        (b"", []),
        (b"\0", [""]),
        (b"a", ["a"]),
        (b"a\0", ["a"]),
        (b"a\0\0", ["a", ""]),
        (b"a b\0c\nd\0", ["a b", "c\nd"]),
    ],
)
def test_arguments(raw: bytes, arguments: list[str]) -> None:
    task = task_of([(Attr.CMDLINE, raw)])
    assert task.cmdline == arguments
    assert task.cmdline_raw == raw


def test_groups_that_are_not_there_are_none() -> None:
    task = task_of([])
    assert (task.pid, task.tgid) == (5, 4)
    groups = "base", "cred", "stat", "statm", "tty", "sched", "name"
    for name in (*groups, "cmdline", "cmdline_raw", "vmas"):
        assert getattr(task, name) is None


def test_mappings() -> None:
    name = b"/a\nb (deleted)"
    task = task_of(
        [],
        (
            pack_vma(1, 2, 5, 4096, 8, 1, 7, 0, name, bytes(72) + (5 << 12).to_bytes(8, "little")),
            pack_vma(3, 4, 1 << 27, 0, 0, 0, 0, 9, b""),
        ),
    )
    assert task.vmas is not None
    first, second = task.vmas
    assert first.flags == VmaFlag.READ | VmaFlag.EXEC
    assert (first.name, first.pgoff, first.inode) == (name.decode(), 4096, 7)
    assert first.stat is not None
    assert first.stat.pss == 5 << 12
    assert (second.name, second.stat, second.generation) == (None, None, 9)
    assert second.flags == VmaFlag.MERGEABLE


def test_repr_names_groups() -> None:
    assert repr(task_of([base(b"x"), (Attr.CMDLINE, b"")])) == "<Task pid=5 tgid=4 BASE|CMDLINE>"
