"""Work by several threads: results in order, bounded, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdiag import ordered as module
from taskdiag.ordered import ordered


@pytest.fixture(params=[1, 2, 4])
def cpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """With as many CPUs, whatever this host has."""
    count: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    return count


@given(st.lists(st.integers(0, 3), max_size=40))
def test_order(delays: list[int]) -> None:
    def work(item: tuple[int, int]) -> int:
        time.sleep(item[1] / 5000)
        return item[0]

    assert list(ordered(work, iter(enumerate(delays)), lambda _: 1)) == list(range(len(delays)))


def test_threads_share_the_work(cpus: int) -> None:
    def work(_: int) -> int:
        time.sleep(0.001)
        return threading.get_ident()

    before = threading.active_count()
    assert len(set(ordered(work, iter(range(200)), lambda _: 1))) == cpus
    assert threading.active_count() == before


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize("bad", [0, 1, 7, 39])
def test_errors_come_in_their_place(bad: int) -> None:
    def work(item: int) -> int:
        if item == bad:
            raise KeyError(item)
        return item

    results = ordered(work, iter(range(40)), lambda _: 1)
    for item in range(bad):
        assert next(results) == item
    with pytest.raises(KeyError):
        next(results)


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize("bad", [0, 1, 7])
def test_errors_of_the_items(bad: int) -> None:
    def items() -> Iterator[int]:
        yield from range(bad)
        raise KeyError

    results = ordered(lambda item: item, items(), lambda _: 1)
    assert [next(results) for _ in range(bad)] == list(range(bad))
    with pytest.raises(KeyError):
        next(results)


def test_what_waits_is_bounded(cpus: int) -> None:
    taken: list[int] = []

    def work(item: int) -> bytes:
        taken.append(item)
        return bytes(module._WAITING_SIZE // 8)

    results = ordered(work, iter(range(1000)), len)
    for item in range(20):
        next(results)
        time.sleep(0.002)
        assert len(taken) <= item + 1 + 8 + cpus
    results.close()


@pytest.mark.usefixtures("cpus")
def test_abandoned() -> None:
    """No thread goes on once the generator is closed."""
    at_work = 0

    def work(item: int) -> int:
        nonlocal at_work
        at_work += 1
        time.sleep(0.001)
        at_work -= 1
        return item

    results = ordered(work, iter(range(1000)), lambda _: 1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert at_work == 0


def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "start_new_thread", refuse)
    assert list(ordered(lambda item: item, iter(range(100)), lambda _: 1)) == list(range(100))


def test_an_interpreter_that_ends_does_not_wait_for_threads() -> None:
    """They are stopped before what is left in reference cycles is closed."""
    script = (
        "import gc, time\n"
        "from taskdiag.ordered import ordered\n"
        "gc.disable()\n"
        "results = ordered(lambda _: time.sleep(0.01), iter(range(10**9)), lambda _: 1)\n"
        "next(results), next(results)\n"
        "kept = [results]\n"
        "kept.append(kept)\n"
        "del results, kept\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
