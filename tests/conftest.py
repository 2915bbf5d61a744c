"""What all tests share: the engines, and what a missing privilege or kernel means.

With TASKDIAG_REQUIRE_KERNEL=1 a skip for want of privilege or of the kernel engine is
a failure, so that CI cannot pass by skipping.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

import taskdiag
from taskdiag.engine import choose
from taskdiag.errors import EngineUnavailable

sys.path.insert(0, str(Path(__file__).parent))

from population import Population, standing

if TYPE_CHECKING:
    from taskdiag.engine import Engine

# Children that become other users may not be able to read this checkout any more.
for _, _name, _ in pkgutil.walk_packages(taskdiag.__path__, "taskdiag."):
    if not _name.endswith("__main__"):
        importlib.import_module(_name)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("taskdiag", deadline=None)
hypothesis.settings.load_profile("taskdiag")

REQUIRED = os.environ.get("TASKDIAG_REQUIRE_KERNEL") == "1"
ENGINES = ("procfs", "kernel")


def missing(reason: str) -> None:
    """Skip the test; fail instead where everything has to be there."""
    if REQUIRED:
        pytest.fail(f"TASKDIAG_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs to run as root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("this test needs root")


def need_reachable() -> None:
    """For tests that run the command as other users: skip where they cannot get at it."""
    for file in (sys.executable, taskdiag.__file__):
        for folder in Path(file).absolute().parents:
            if not folder.stat().st_mode & 0o001:
                missing(f"other users cannot reach {folder}")


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
