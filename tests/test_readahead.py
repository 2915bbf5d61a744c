"""Reading ahead: the same chunks, whoever stops first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from taskdiag.readahead import readahead


def test_all_chunks_in_order() -> None:
    chunks = [b"%d" % number for number in range(2000)]
    assert list(readahead(iter(chunks))) == chunks


def test_nothing() -> None:
    assert list(readahead(iter([]))) == []


def test_what_reading_raises_comes_after_what_was_read() -> None:
    def failing() -> Iterator[bytes]:
        yield b"one"
        raise OSError("no more")

    found = readahead(failing())
    assert next(found) == b"one"
    with pytest.raises(OSError, match="no more"):
        next(found)


def test_the_reader_is_done_when_the_taker_stops() -> None:
    """Else it might go on reading from a descriptor that means something else by then."""
    reading = 0

    def slow() -> Iterator[bytes]:
        nonlocal reading
        while True:
            reading += 1
            time.sleep(0.001)
            yield b"chunk"

    found = readahead(slow())
    assert next(found) == b"chunk"
    found.close()
    seen = reading
    time.sleep(0.05)
    assert reading == seen


def test_a_single_cpu_reads_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert list(readahead(iter([b"a", b"b"]))) == [b"a", b"b"]


def test_an_interpreter_that_ends_does_not_wait_for_the_thread() -> None:
    """It is stopped before what is left in reference cycles is closed."""
    script = (
        "import gc, time\n"
        "from taskdiag.readahead import readahead\n"
        "def slow():\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        yield b'chunk'\n"
        "gc.disable()\n"
        "chunks = readahead(slow())\n"
        "next(chunks)\n"
        "kept = [chunks]\n"
        "kept.append(kept)\n"
        "del chunks, kept\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
