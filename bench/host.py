"""What the jobs of a run share: tools, a clean installation, helper processes."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from types import TracebackType

from .contender import Worker
from .install import Installation
from .peers import Toolbox

__all__ = ("Host", "Missing")


class Missing(Exception):
    """A job cannot run on this host; the message says what is missing."""


class Host:
    """A context manager that removes everything it has made at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Host:
        name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="taskdiag-bench-"))
        self.directory = Path(name)
        self.toolbox = Toolbox(self.directory)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def file(self, name: str) -> Path:
        """The path of a temporary file."""
        return self.directory / name

    @cached_property
    def installation(self) -> Installation:
        """A clean installation of taskdiag."""
        return Installation(self.file("env"))

    @cached_property
    def worker(self) -> Worker:
        """An interpreter that has taskdiag and, at the end of its module path, psutil."""
        worker = Worker(self.installation.python, self.psutil or "")
        self._stack.callback(worker.close)
        return worker

    @cached_property
    def psutil(self) -> str | None:
        """The directory that contains psutil, if it is installed."""
        spec = importlib.util.find_spec("psutil")
        return None if spec is None or not spec.origin else str(Path(spec.origin).parents[1])

    def closing(self, thing: contextlib.AbstractContextManager[object]) -> None:
        """Enter a context that is left at the end."""
        self._stack.enter_context(thing)

    @property
    def source(self) -> str:
        """The version of Python, for the report."""
        return sys.version.split()[0]
