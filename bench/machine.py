"""A description of the host that the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import taskdiag

from . import limits

__all__ = ("describe", "sentence")


def describe() -> dict[str, Any]:
    """CPU, cores, memory, kernel, Python, and the versions of the peers."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": limits.memory()["MemTotal"],
        "virtual": _virtual(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "taskdiag": taskdiag.__version__,
        "ps": _version("ps", "--version"),
        "psutil": _psutil(),
        "load": os.getloadavg()[0],
    }


def sentence(machine: dict[str, Any]) -> str:
    """The same as one sentence, for a caption."""
    where = " (virtual machine)" if machine["virtual"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{where}, "
        f"{machine['memory'] / (1 << 30):.0f} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['ps']}, psutil {machine['psutil']}"
    )


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _virtual() -> bool:
    return " hypervisor" in _cpuinfo("flags")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return ""


def _version(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, check=False, text=True)
    except OSError:
        return ""
    return done.stdout.strip().removeprefix("ps from ")


def _psutil() -> str:
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return ""
    return str(psutil.__version__)
