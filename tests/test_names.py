"""Full names: every engine gives what /proc/PID/comm shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import taskdiag
from population import child, comm_of
from serving import running
from taskdiag.abi import Attr, Dump, Show

if TYPE_CHECKING:
    from taskdiag.engine import Engine


def shown(pid: int) -> bytes | None:
    """What /proc/PID/comm shows, None if there is no such process."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read()[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return None


def kernel_threads() -> dict[int, bytes | None]:
    """The kernel threads of this host and what /proc shows of them."""
    if shown(2) != b"kthreadd":
        pytest.skip("no kernel thread can be seen from this pid namespace")
    with open("/proc/2/task/2/children", "rb") as file:
        return {pid: shown(pid) for pid in map(int, file.read().split())}


def names_of(engine: Engine, which: Dump, pid: int) -> dict[int, bytes]:
    found = {}
    for task in taskdiag.dump("name", which, pid, engine=engine):
        assert task.name is not None
        found[task.pid] = os.fsencode(task.name.name)
    return found


@pytest.mark.root
@pytest.mark.parametrize("show", ["name", "base,name", "all"])
def test_kernel_threads(engine: Engine, show: str) -> None:
    groups = sum(Show) & ~Show.VMA_STAT if show == "all" else show
    for _ in range(10):
        before = kernel_threads()
        tasks = list(taskdiag.dump(groups, Dump.CHILDREN, 2, engine=engine))
        after = kernel_threads()
        wrong, still = {}, 0
        for task in tasks:
            # Workers change their description all the time, the others never.
            first, last = before.get(task.pid), after.get(task.pid)
            if first is None or first != last:
                continue
            still += 1
            assert task.name is not None
            if os.fsencode(task.name.name) != first:
                wrong[task.pid] = (task.name.name, first)
        assert still > 5
        # A worker may have had another description in between.
        assert all(right.startswith(b"kworker/") for _, right in wrong.values()), wrong
        if not wrong:
            return
    pytest.fail(f"ten times in a row: {wrong}")


@pytest.mark.root
def test_names_beyond_comm_are_there(engine: Engine) -> None:
    """So that the comparison above compares something."""
    longer = {pid: raw for pid, raw in kernel_threads().items() if raw and len(raw) > 15}
    longer = {pid: raw for pid, raw in longer.items() if not raw.startswith(b"kworker/")}
    if not longer:
        pytest.skip("every kernel thread has a name of at most 15 bytes here")
    found = names_of(engine, Dump.CHILDREN, 2)
    assert {pid: found[pid] for pid in longer} == longer


@pytest.mark.parametrize(
    "raw", [b"", b"a", b"a) R 1 (\n\x1b[2J", b"fifteen bytes..", b"\xff\xfe\\n", b"kworker/0:1-abc"]
)
def test_other_tasks_are_called_what_they_say(engine: Engine, raw: bytes) -> None:
    with child(lambda: comm_of(raw)) as it:
        assert names_of(engine, Dump.ONE, it.pid) == {it.pid: raw}
        assert names_of(engine, Dump.THREAD, it.pid) == {it.pid: raw}


def test_a_shorter_name_leaves_nothing_of_the_longer_one(engine: Engine) -> None:
    def setup() -> None:
        comm_of(b"fifteen bytes..")
        comm_of(b"x")

    with child(setup) as it:
        (raw,) = (
            task.payloads(Attr.NAME)[0]
            for task in taskdiag.dump("name", Dump.ONE, it.pid, engine=engine)
        )
        assert raw == b"x".ljust(64, b"\0")


@pytest.mark.root
def test_through_the_service() -> None:
    with running() as service, child(lambda: comm_of(b"a service's")) as it:
        engine = service.engine()
        assert names_of(engine, Dump.ONE, it.pid) == {it.pid: b"a service's"}
        found = names_of(engine, Dump.ALL, 0)
        assert found[it.pid] == b"a service's"
        assert found[2] == shown(2)
