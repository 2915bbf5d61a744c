"""A pytest plugin for the guest: reports every result immediately, one JSON object per line.

The lines go to the file in ``TASKDIAG_RESULTS``, which is a separate serial port, so kernel
messages on the console cannot garble them.  If a test hangs or the kernel crashes, the host
has the name of the test.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import pytest

__all__ = ("Reporter", "pytest_configure")

#: The most characters of a failure's report; the last ones are kept.
LONGEST = 20_000


class Reporter:
    """Writes what pytest reports to a file, usually a serial port."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        if os.isatty(self._file):
            import tty

            tty.setraw(self._file)
        self._seconds: dict[str, float] = {}

    def send(self, **record: object) -> None:
        """Write one record."""
        data = json.dumps(record).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]

    def pytest_sessionstart(self) -> None:
        """Report that the guest has booted, and its kernel."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        self.send(event="boot", release=platform.release(), uptime=uptime)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failure; one that skips itself is a skip."""
        if report.outcome != "passed":
            self._result(report.nodeid, report.outcome, report)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Report the number of tests."""
        self.send(event="collected", count=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Report the test that is started."""
        self.send(event="start", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Report a test's outcome; again if its setup or teardown fails."""
        seconds = self._seconds.get(report.nodeid, 0.0) + report.duration
        self._seconds[report.nodeid] = seconds
        if report.when == "call" or report.outcome != "passed":
            self._result(report.nodeid, report.outcome, report, seconds)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Report the end of the run."""
        self.send(event="end", status=int(exitstatus), time=time.time())

    def _result(
        self,
        nodeid: str,
        outcome: str,
        report: pytest.CollectReport | pytest.TestReport,
        seconds: float = 0.0,
    ) -> None:
        reason = ""
        if hasattr(report, "wasxfail"):
            # An expected failure is reported as skipped, an unexpected pass as passed.
            reason = f"expected to fail: {report.wasxfail}"
        elif outcome == "skipped" and isinstance(report.longrepr, tuple):
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif outcome == "failed":
            reason = _all_of(report)[-LONGEST:]
        self.send(event="result", test=nodeid, outcome=outcome, seconds=seconds, reason=reason)


def _all_of(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The traceback, and the captured output of the test."""
    parts = [report.longreprtext]
    parts += [f"--- {title}\n{text}" for title, text in report.sections]
    return "\n".join(parts)


def pytest_configure(config: pytest.Config) -> None:
    """Register the reporter."""
    config.pluginmanager.register(Reporter(os.environ["TASKDIAG_RESULTS"]), "guest")
