"""Runs the examples of docstrings and documents; needs nothing but the package.

    python tests/examples.py            # the docstrings of every module
    python tests/examples.py PAGE.md    # the >>> examples of a document

It prints what fails, and what could not be tried because this user may not use BPF.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import taskdiag
from taskdiag.errors import EngineUnavailable

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


class Checker(doctest.OutputChecker):
    """Takes other numbers than those shown, where they are the running kernel's."""

    def __init__(self, numbers_vary: bool) -> None:
        self.numbers_vary = numbers_vary

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        if not self.numbers_vary:
            return False
        want, got = _NUMBER.sub("0", want), _NUMBER.sub("0", got)
        return super().check_output(want, got, optionflags)


class Runner(doctest.DocTestRunner):
    """Runs examples; those that BPF is withheld from are counted apart."""

    def __init__(self, numbers_vary: bool) -> None:
        super().__init__(Checker(numbers_vary), verbose=False, optionflags=FLAGS)
        self.failed: list[str] = []
        self.withheld: list[str] = []

    def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
        if isinstance(exc_info[1], (EngineUnavailable, PermissionError)):
            self.withheld.append(f"{test.name}: {exc_info[1]}")
        elif not any(one.startswith(f"{test.name}:") for one in self.withheld):
            super().report_unexpected_exception(out, test, example, exc_info)

    def look_at(self, test: doctest.DocTest) -> None:
        said: list[str] = []
        self.run(test, out=said.append)
        self.failed += said


def of_module(name: str) -> Runner:
    """Run the examples in the docstrings of one module."""
    module = importlib.import_module(name)
    runner = Runner(numbers_vary=name.startswith("taskdiag.kernel"))
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if test.examples:
            test.globs.update({key: value for key, value in taken_for_granted().items()
                               if key not in test.globs})  # fmt: skip
            runner.look_at(test)
    return runner


def of_page(path: Path) -> Runner:
    """Run the ``>>>`` examples of a document."""
    runner = Runner(numbers_vary=False)
    test = doctest.DocTestParser().get_doctest(
        path.read_text(), taken_for_granted(), path.name, str(path), 0
    )
    if test.examples:
        runner.look_at(test)
    return runner


_granted: dict[str, Any] = {}


def taken_for_granted() -> dict[str, Any]:
    """Names that examples use without saying where they come from."""
    if not _granted:
        _granted.update(os=os, taskdiag=taskdiag)
        for name in taskdiag.__all__:
            _granted[name] = getattr(taskdiag, name)
        if os.access("/sys/kernel/btf/vmlinux", os.R_OK):
            from taskdiag.kernel.btf import Btf
            from taskdiag.kernel.facts import VMLINUX, Facts

            _granted.update(facts=Facts.live(), btf=Btf(Path(VMLINUX).read_bytes()))
        for name in ("kernel.annotate", "kernel.asm", "kernel.compile", "kernel.emit",
                     "kernel.viewer", "procfs.reader"):  # fmt: skip
            module = importlib.import_module(f"taskdiag.{name}")
            _granted.update({public: getattr(module, public) for public in module.__all__})
    return dict(_granted)


def modules() -> list[str]:
    """Every module of the package."""
    found = [name for _, name, _ in pkgutil.walk_packages(taskdiag.__path__, "taskdiag.")]
    return ["taskdiag", *(name for name in found if not name.endswith("__main__"))]


def main(pages: list[str]) -> int:
    failed = False
    runners = [of_page(Path(page)) for page in pages] or [of_module(name) for name in modules()]
    for runner in runners:
        print("".join(runner.failed), end="")
        for text in runner.withheld:
            print(f"withheld: {text}")
        failed = failed or bool(runner.failed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
