"""The boot time clock belongs to who asks: in a time namespace all start times are shifted.

The oracle is field 22 of /proc/PID/stat, read by the one who asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import taskdiag
from conftest import missing
from population import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_REC_PRIVATE,
    Population,
    check,
    child,
    forked,
    headless,
    libc,
    new_user_namespace,
    plain_user,
)
from serving import Service, mount, service
from taskdiag import Request, Show
from taskdiag.abi import Dump
from taskdiag.decoder import decode
from taskdiag.kernel import KernelEngine
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.identity_reader import Reader
from taskdiag.procfs import ProcfsEngine
from taskdiag.views.columns import _boot_time

pytestmark = pytest.mark.root
__all__ = ("service",)

CLONE_NEWTIME = 0x80
OFFSETS = ["1000000 0", "-100 0", "315360000 999999999", "0 10000000", "0 0"]


def in_time_namespace(offset: str, function: Callable[[], Any]) -> Any:
    """The result of a function that is called in a new time namespace."""

    def run() -> Any:
        if libc.unshare(CLONE_NEWTIME):
            missing("this kernel has no time namespaces (CONFIG_TIME_NS)")
        with open("/proc/self/timens_offsets", "w") as file:
            file.write(f"boottime {offset}")
        return forked(function)

    return forked(run)


def by_proc(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b") ")[2].split()[19])


def start_of(engine: Any, pid: int) -> int:
    (task,) = decode(engine.stream(Request(Show.SCHED, Dump.ONE, pid)))
    assert task.sched is not None
    return task.sched.start_time


@pytest.mark.parametrize("offset", OFFSETS)
def test_start_time(service: Service, population: Population, offset: str) -> None:
    pid = population["user"].pid
    outside = KernelEngine()
    host = start_of(outside, pid)

    def ask() -> list[int]:
        return [
            by_proc(pid),
            start_of(KernelEngine(), pid),
            # An engine that was used before determines its viewer again.
            start_of(outside, pid),
            start_of(service.engine(), pid),
            start_of(ProcfsEngine(), pid),
        ]

    expected, *found = in_time_namespace(offset, ask)
    assert found == [expected] * 4
    assert (expected == host) == (offset == "0 0")
    assert start_of(outside, pid) == host


@pytest.mark.parametrize("who", ["user", "root of a user namespace"])
def test_of_an_unprivileged_viewer(service: Service, population: Population, who: str) -> None:
    become = {"user": plain_user(), "root of a user namespace": new_user_namespace}[who]

    def ask() -> list[int]:
        become()
        pid = os.getpid()
        return [by_proc(pid), start_of(service.engine(), pid), start_of(ProcfsEngine(), pid)]

    expected, *found = in_time_namespace("5000 0", ask)
    assert found == [expected] * 2


def test_in_a_container(service: Service) -> None:
    """As a restored one: its own pids, its own clock."""

    def inside() -> list[int]:
        check(libc.unshare(CLONE_NEWNS))
        mount(b"none", "/", MS_REC_PRIVATE)
        mount(b"proc", "/proc")
        engines = KernelEngine(), service.engine()
        return [os.getpid(), by_proc(1), *(start_of(engine, 1) for engine in engines)]

    def ask() -> Any:
        check(libc.unshare(CLONE_NEWPID))
        return forked(inside)

    pid, expected, *found = in_time_namespace("77777 0", ask)
    assert pid == 1
    assert found == [expected] * 2


def test_without_proc(population: Population) -> None:
    """Then the kernel is asked which time namespace this is."""
    pid = population["user"].pid

    def ask() -> list[int]:
        expected = by_proc(pid)
        check(libc.unshare(CLONE_NEWNS))
        mount(b"none", "/", MS_REC_PRIVATE)
        mount(b"tmpfs", "/proc")
        return [expected, start_of(KernelEngine(), pid)]

    expected, found = in_time_namespace("4321 0", ask)
    assert found == expected


def test_the_answer_is_the_clients_not_the_readers(service: Service) -> None:
    """Viewers that differ in nothing else do not share programs."""
    with child() as it:
        pid = it.pid
        host = start_of(service.engine(), pid)
        inside = in_time_namespace("1000 0", lambda: start_of(service.engine(), pid))
        assert inside == host + 1000 * os.sysconf("SC_CLK_TCK")
        assert start_of(service.engine(), pid) == host


def test_boot_time_of_ps() -> None:
    """The time of boot moves with the clock, as btime of /proc/stat does (5.11 and later)."""

    def ask() -> list[int]:
        with open("/proc/stat") as file:
            (line,) = [line for line in file if line.startswith("btime")]
        return [int(line.split()[1]), _boot_time()]

    for offset in ("0 0", "100000 0", "-50 0"):
        shown, ours = in_time_namespace(offset, ask)
        assert abs(shown - ours) <= 1


def test_of_a_process_whose_leader_has_exited() -> None:
    """Its threads go on in the namespace, and one of them is asked."""
    taskdiag.engine.choose("kernel")

    def ask() -> list[Any]:
        with headless() as it:
            reader = Reader(Facts.live())
            tids = [int(name) for name in os.listdir(f"/proc/{it.pid}/task")]
            found = [reader.of_task(tid).boottime_offset for tid in tids if tid != it.pid]
            reader.close()
        return found

    assert set(in_time_namespace("12 34", ask)) == {12_000_000_034}
