"""Shared by all tests: a known environment, the engines, and when a test is skipped.

A test that lacks a privilege or a kernel feature calls `missing`, one that lacks a tool
calls `need`.  Both skip, unless the environment says that nothing may be missing:
TASKDIAG_REQUIRE_KERNEL=1 makes the first a failure, TASKDIAG_REQUIRE_TOOLS=1 the second.
CI sets them, so that it cannot pass by skipping.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import hypothesis
import pytest

import taskdiag
from taskdiag.engine import choose
from taskdiag.errors import EngineUnavailable

sys.path.insert(0, str(Path(__file__).parent))

import tools
from population import Population, standing

if TYPE_CHECKING:
    from taskdiag.engine import Engine

# Children that become other users may not be able to read this checkout any more.
# Whether the locale is UTF-8 is decided on import.  Tests that format in this process
# expect it to be, whatever it is here: on a machine without any setting it is C.
with mock.patch.dict(os.environ, {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}):
    for _, _name, _ in pkgutil.walk_packages(taskdiag.__path__, "taskdiag."):
        if not _name.endswith("__main__"):
            importlib.import_module(_name)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("taskdiag", deadline=None)
hypothesis.settings.load_profile("taskdiag")

KERNEL_REQUIRED = os.environ.get("TASKDIAG_REQUIRE_KERNEL") == "1"
TOOLS_REQUIRED = os.environ.get("TASKDIAG_REQUIRE_TOOLS") == "1"
ENGINES = ("procfs", "kernel")


def _known_environment() -> None:
    """Undo what this process may have inherited and tests would be surprised by."""
    # A service that runs on this host is none of the tests' concern.
    os.environ["TASKDIAG_SOCKET"] = "/nonexistent/taskdiag.sock"
    os.environ.pop("TASKDIAG_ENGINE", None)
    # nohup(1) and "&" in a script ignore signals, and children would inherit that.  A handler
    # in Python ignores them here, and execve(2) sets the default in the child.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


_known_environment()


def missing(reason: str) -> None:
    """Skip a test that lacks a privilege or kernel feature; fail it if these are required."""
    if KERNEL_REQUIRED:
        pytest.fail(f"TASKDIAG_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


def need(*names: str) -> None:
    """Skip the test unless these tools of `tools.PACKAGES` are installed; fail if required."""
    absent = [tools.hint(name) for name in names if not tools.found(name)]
    if absent and TOOLS_REQUIRED:
        pytest.fail(f"TASKDIAG_REQUIRE_TOOLS=1, but {'; '.join(absent)}")
    if absent:
        pytest.skip("; ".join(absent))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs to run as root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("this test needs root")


def reachable(path: str | os.PathLike[str]) -> bool:
    """Whether every user can read a file, or enter a directory."""
    found = Path(path).absolute()
    if not found.stat().st_mode & (0o001 if found.is_dir() else 0o004):
        return False
    return all(folder.stat().st_mode & 0o001 for folder in found.parents)


@functools.cache
def public_directory() -> str | None:
    """Where to make temporary files for other users; None for the usual place.

    TMPDIR may be a directory of this user's own.
    """
    usual = tempfile.gettempdir()
    return None if reachable(usual) or not os.access("/tmp", os.W_OK) else "/tmp"


@functools.cache
def public_source() -> str:
    """A directory to import the package from that every user can read.

    The checkout's own, or a copy where that lies below a directory that others cannot enter.
    """
    source = Path(taskdiag.__file__).parent
    if reachable(source) and all(map(reachable, source.rglob("*.py"))):
        return os.fspath(source.parent)
    folder = tempfile.mkdtemp(prefix="taskdiag-", dir=public_directory())
    atexit.register(_remove, folder, os.getpid())
    shutil.copytree(source, Path(folder, "taskdiag"), ignore=shutil.ignore_patterns("__pycache__"))
    for path in (Path(folder), *Path(folder).rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _remove(folder: str, owner: int) -> None:
    # Forked children come here as well if they end by sys.exit.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def interpreters() -> list[str]:
    """Interpreters that other users may be able to run, this one first.

    The package has no dependencies, so that one outside the virtual environment will do.
    """
    found = [sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3"]
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


@functools.cache
def public_interpreter() -> str:
    """An interpreter that every user can run, with `public_source` in PYTHONPATH."""
    probe = "import sys; sys.exit(sys.version_info < (3, 10))"
    for path in interpreters():
        if (
            reachable(path)
            and reachable(os.path.realpath(path))
            and subprocess.run([path, "-c", probe], check=False).returncode == 0
        ):
            return path
    missing(f"other users cannot run {sys.executable}")
    raise AssertionError


def open_engine(name: str) -> Engine:
    """The engine of that name, or a skip that says why not.

    The kernel engine is the one that procfs helps out where the kernel lacks a piece.
    """
    try:
        chosen = choose(name)
        if name == "kernel":
            from taskdiag.kernel import KernelEngine

            chosen = KernelEngine()
        return chosen
    except (EngineUnavailable, ImportError) as error:
        missing(f"the {name} engine is not available: {error}")
        raise


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return open_engine(request.param)


@pytest.fixture(scope="session")
def population() -> Iterator[Population]:
    """Processes of every kind that stand still for all tests of the session."""
    if os.geteuid() != 0:
        missing("making the population needs root")
    with standing() as found:
        yield found
