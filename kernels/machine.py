"""A virtual machine that boots a kernel, runs the tests and reports the outcome of each."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from .errors import HarnessError
from .packages import Kernel

__all__ = ("Machine", "Result")

#: prctl(2).
PR_SET_PDEATHSIG = 1

MEMORY = 2048
CPUS = 2

#: Mapped pages of ramfs count as file pages, as those of a disk do; on tmpfs they would be shared
#: memory.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 rootfstype=ramfs"

#: The seconds that a machine may take until pytest has started.
BOOT_LIMIT = 120.0


class Result:
    """The outcome of one test."""

    def __init__(self, test: str, outcome: str, seconds: float, reason: str) -> None:
        self.test = test
        self.outcome = outcome
        self.seconds = seconds
        self.reason = reason


class Machine:
    """One kernel under qemu in software, from its start to its report."""

    def __init__(self, kernel: Kernel, initramfs: Path, folder: Path, limit: float) -> None:
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            raise HarnessError("qemu-system-x86_64 is missing: install qemu-system-x86")
        self.kernel = kernel
        self.console = folder / f"console-{kernel.series}.log"
        self.records = folder / f"results-{kernel.series}.jsonl"
        for path in (self.console, self.records):
            path.write_bytes(b"")
        self.results: dict[str, Result] = {}
        self.collected = 0
        self.running: str | None = None
        self.boot: float | None = None
        self.status: int | None = None
        self.trouble: str | None = None
        self._started = time.monotonic()
        self._limit = limit
        self._read = 0
        self.seconds = 0.0
        # In a session of its own, so that Ctrl-C reaches only us, and we stop it.  If we are
        # killed, the kernel kills it.
        self._process = subprocess.Popen(
            [
                *(program, "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY), "-smp", str(CPUS)),
                *("-nographic", "-no-reboot", "-nodefaults", "-monitor", "none", "-nic", "none"),
                *("-serial", f"file:{self.console}", "-serial", f"file:{self.records}"),
                *("-kernel", os.fspath(kernel.image), "-initrd", os.fspath(initramfs)),
                *("-append", COMMAND_LINE),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def poll(self) -> bool:
        """Read new results.  Returns whether the machine is still running tests."""
        ended = self._process.poll() is not None
        self._take()
        self.seconds = time.monotonic() - self._started
        if ended:
            self._finish()
        elif self.seconds > self._limit:
            self._stop(f"not finished within {self._limit:.0f} s")
        elif self.boot is None and self.seconds > BOOT_LIMIT:
            self._stop(f"the tests have not started within {BOOT_LIMIT:.0f} s")
        else:
            return True
        return False

    def kill(self) -> None:
        """Kill the machine."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def count(self, outcome: str) -> int:
        """The number of tests with this outcome."""
        return sum(result.outcome == outcome for result in self.results.values())

    @property
    def good(self) -> bool:
        """Whether the run is complete, and tests have passed and none has failed."""
        return self.trouble is None and self.status == 0 and self.count("passed") > 0

    def report(self) -> str:
        """The results as text: counts, then every skip and every failure with its reason.

        ::

            6.1.0-50-cloud-amd64: 120 passed, 0 failed, 2 skipped in 95 s (tests began after 7.9 s)
        """
        began = "never began" if self.boot is None else f"began after {self.boot:.1f} s"
        counts = (f"{self.count(name)} {name}" for name in ("passed", "failed", "skipped"))
        lines = [
            f"{self.kernel.release}: {', '.join(counts)} in {self.seconds:.0f} s (tests {began})"
        ]
        if self.trouble:
            lines.append(f"  {self.trouble}")
            lines += [f"  console: {_printable(line)}" for line in self._last_lines()]
        for reason, tests in self._skips().items():
            lines.append(f"  skipped, {_printable(reason)}:")
            lines += [f"    {test}" for test in tests]
        for result in self.results.values():
            if result.outcome == "failed":
                lines.append(f"  FAILED {result.test}")
                lines += [f"    {_printable(line)}" for line in result.reason.splitlines()]
        return "\n".join(lines)

    def slowest(self, count: int) -> str:
        """The tests that took longest, with their times in the guest."""
        ranked = sorted(self.results.values(), key=lambda result: -result.seconds)[:count]
        return "\n".join(f"  {result.seconds:7.1f} s  {result.test}" for result in ranked)

    def as_json(self) -> dict[str, object]:
        """The results for JSON."""
        return {
            "series": self.kernel.series,
            "release": self.kernel.release,
            "good": self.good,
            "trouble": self.trouble,
            "boot_seconds": self.boot,
            "seconds": self.seconds,
            "tests": [vars(result) for result in self.results.values()],
        }

    def _skips(self) -> dict[str, list[str]]:
        grouped: dict[str, list[str]] = {}
        for result in self.results.values():
            if result.outcome == "skipped":
                grouped.setdefault(result.reason, []).append(result.test)
        return grouped

    def _take(self) -> None:
        with self.records.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        # The last line may be incomplete.
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self._record(record)

    def _record(self, record: dict[str, object]) -> None:
        event = record.get("event")
        if event == "boot":
            self.boot = time.monotonic() - self._started
        elif event == "collected":
            self.collected = int(str(record["count"]))
        elif event == "start":
            self.running = str(record["test"])
        elif event == "result":
            self._result(record)
        elif event == "end":
            self.status = int(str(record["status"]))

    def _result(self, record: dict[str, object]) -> None:
        test, outcome = str(record["test"]), str(record["outcome"])
        self.running = None
        known = self.results.get(test)
        # A test that passed may fail while it is taken down; the worse outcome stands.
        if known is None or outcome == "failed":
            seconds = float(str(record["seconds"]))
            self.results[test] = Result(test, outcome, seconds, str(record["reason"]))

    def _finish(self) -> None:
        if self.status is None and self.trouble is None:
            at = f" during {self.running}" if self.running else ""
            said = b"" if self._process.stderr is None else self._process.stderr.read()
            why = said.decode(errors="replace").strip()
            self.trouble = f"the machine ended before the tests did{at}" + (
                f": {why}" if why else ""
            )
        elif self.status == 0 and not self.count("passed"):
            self.trouble = "no test has passed"
        elif self.status and not self.count("failed"):
            self.trouble = f"pytest ended with status {self.status}"
        self.kill()

    def _stop(self, why: str) -> None:
        self.trouble = why + (f", in {self.running}" if self.running else "")
        self.kill()

    def _last_lines(self, count: int = 25) -> list[str]:
        text = self.console.read_bytes().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-count:]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _printable(line: str) -> str:
    """The text without characters that could control the terminal."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in line)
