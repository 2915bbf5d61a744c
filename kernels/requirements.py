"""What the machines need of this host, and what is fetched for them.

It is said before anything is fetched, so that nobody waits for a download to learn that a
program is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .errors import HarnessError
from .packages import KEYRING, MIRROR, cached

__all__ = ("check", "describe", "to_fetch")

#: Programs and their Debian packages: to run a machine, and to fetch a kernel.
_TO_RUN = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"}
_TO_FETCH = {"apt-get": "apt", "dpkg-deb": "dpkg"}

#: Megabytes: a kernel's package, and the lists of packages.
_KERNEL_SIZE, _LISTS_SIZE = 35, 10


def check(series: Iterable[str], cache: Path, *, refresh: bool = False) -> None:
    """Raises HarnessError, naming every program that is missing and its package."""
    tools = dict(_TO_RUN)
    if to_fetch(series, cache, refresh=refresh):
        tools |= _TO_FETCH
    missing = {name: package for name, package in tools.items() if shutil.which(name) is None}
    if "apt-get" in tools and not KEYRING.exists():
        missing[str(KEYRING)] = "debian-archive-keyring"
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        verb = "is" if len(missing) == 1 else "are"
        raise HarnessError(
            f"{_list(missing)} {verb} missing; on Debian: apt-get install {packages}"
        )


def describe(
    series: Iterable[str], cache: Path, memory: int, *, refresh: bool = False
) -> list[str]:
    """Sentences about what is needed and what will be fetched.

    ``memory`` is that of a machine in MB.
    """
    wanted = list(series)
    tools = _TO_RUN | _TO_FETCH
    said = [
        "the tests on other kernels need these programs (Debian packages): "
        + _list(f"{name} ({package})" for name, package in tools.items())
        + f"; and {memory} MB of memory for each of {len(wanted)} machines"
    ]
    fetched = to_fetch(wanted, cache, refresh=refresh)
    if fetched:
        size = _KERNEL_SIZE * len(fetched) + _LISTS_SIZE
        said.append(
            f"will fetch Debian's cloud kernel {_list(fetched)} from {MIRROR} into "
            f"{os.path.relpath(cache)}, about {size} MB with the package lists; "
            "nothing is installed"
        )
    else:
        said.append(f"will fetch nothing: the kernels are in {os.path.relpath(cache)}")
    return said


def to_fetch(series: Iterable[str], cache: Path, *, refresh: bool = False) -> list[str]:
    """The series whose kernels have to be fetched."""
    return [name for name in series if refresh or cached(name, cache) is None]


def _list(words: Iterable[str]) -> str:
    """The words as a sentence has them.

    >>> _list(["a"]), _list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
