"""Populations: many sleeping processes, each with a name of its own.

They are children of a C program (c/population.c) and end with it: at the end of the ``with``
block, on a signal or an exception, and even if this process is killed with SIGKILL.

    >>> with Population(toolbox, threads=5) as people:
    ...     people.grow(10_000)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from . import limits
from .limits import LimitError
from .peers import Toolbox

__all__ = ("NAME", "TITLE", "Population", "Progress")

#: The name of each member is this followed by its number.
NAME = "bench-"
#: Their last argument, over which each member writes its number.
TITLE = "0000000"

#: How many members are made first, to find out how much memory each takes.
_SAMPLE = 500
#: The most memory that a process and each further thread may take, before that is known,
#: and how much is left for the rest of the host.
_GUESS = 160 << 10
_GUESS_THREAD = 40 << 10
_RESERVE = 512 << 20


class Progress:
    """A progress bar on standard error, if that is a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self._shown = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Draw it."""
        if self._shown:
            filled = 30 * done // max(self.total, 1)
            bar = "#" * filled + "." * (30 - filled)
            sys.stderr.write(f"\r{self.what} [{bar}] {done:,}/{self.total:,} ")
            sys.stderr.flush()

    def close(self) -> None:
        """Erase it."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Population:
    """A context manager; `grow` makes members, leaving the block ends them all.

    Raises LimitError if the host has no room for them.
    """

    def __init__(self, toolbox: Toolbox, threads: int = 1, workers: int | None = None) -> None:
        self.threads = threads
        self.size = 0
        #: Measured bytes of memory per member, 0 until enough of them were made.
        self.weight = 0
        self._program = toolbox.program("population", "-pthread")
        self._workers = workers or min(2 * (os.cpu_count() or 1), 64)
        self._root: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Population:
        argv = [
            str(self._program), str(os.getpid()), str(self._workers), str(self.threads), TITLE,
        ]  # fmt: skip
        self._root = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        root, self._root, self.size = self._root, None, 0
        if root is None:
            return
        # It kills and reaps the members at the end of its input.  If it fails to, they are
        # killed when it ends.
        assert root.stdin is not None
        assert root.stdout is not None
        try:
            root.stdin.close()
            root.wait(300)
        except BaseException:
            root.kill()
            root.wait()
            raise
        finally:
            root.stdout.close()

    def grow(self, size: int) -> None:
        """Make members until there are ``size``.  Raises LimitError if there is no room."""
        guess = _GUESS + (self.threads - 1) * _GUESS_THREAD
        if not self.weight:
            self._check_memory(size, guess)
            first = min(size, self.size + _SAMPLE)
            before, count = _kernel_memory(), self.size
            self._make(first, size)
            if first - count >= _SAMPLE:
                self.weight = max(_kernel_memory() - before, 0) // (first - count)
        if size > self.size:
            # Other processes start and end meanwhile, so the sample may be far off.
            self._check_memory(size, min(max(self.weight, guess // 2), guess))
            self._make(size, size)
        # The last of them has said "ready", but may not sleep yet.
        time.sleep(0.1)

    def pids(self) -> list[int]:
        """The members in ascending order: the processes of the session that have their name."""
        assert self._root is not None
        session = str(self._root.pid).encode()
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    head, _, rest = Path(entry.path, "stat").read_bytes().rpartition(b") ")
                except OSError:
                    continue
                # State, parent, group, session.
                if rest.split(None, 4)[3] == session and f" ({NAME}".encode() in head:
                    found.append(int(entry.name))
        return sorted(found)

    def _check_memory(self, size: int, each: int) -> None:
        needed = (size - self.size) * each
        free = limits.memory()["MemAvailable"] - _RESERVE
        if needed > free:
            raise LimitError(
                f"{size:,} processes with {self.threads} threads need about "
                f"{needed >> 20:,} MiB of memory, but {max(free, 0) >> 20:,} MiB are available"
            )

    def _make(self, size: int, total: int) -> None:
        assert self._root is not None
        assert self._root.stdin is not None
        assert self._root.stdout is not None
        bar = Progress("processes", total)
        try:
            self._root.stdin.write(f"{size}\n".encode())
            self._root.stdin.flush()
            for line in self._root.stdout:
                word, _, rest = line.decode().strip().partition(" ")
                if word == "error":
                    raise LimitError(f"no more processes can be made: {rest}")
                self.size = int(rest)
                bar.show(self.size)
                if word == "ready":
                    return
            raise LimitError("the population died: was the memory too little?")
        except BrokenPipeError:
            raise LimitError("the population died: was the memory too little?") from None
        finally:
            bar.close()


def _kernel_memory() -> int:
    """The memory in use that is not page cache."""
    found = limits.memory()
    names = ("Slab", "KernelStack", "PageTables", "AnonPages", "Percpu", "VmallocUsed")
    return sum(found.get(name, 0) for name in names)
