"""System calls and bytes of each job, as the announcement of task_diag reported them.

strace(1) counts the calls.  The bytes are those of /proc/PID/io: all that read(2) and
write(2) transferred.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .contender import ENVIRONMENT, RunError
from .host import Host, Missing

__all__ = ("TARGET", "TASKS", "measure")

TASKS = 30_000
#: System calls of ``taskdiag ps ax -o pid,ppid`` beyond the interpreter's start.
TARGET = 100

#: Imports what a job imports, and does nothing else.
_START = """\
import importlib, sys
sys.path += sys.argv[2:]
for name in sys.argv[1].split(","):
    importlib.import_module(name)
"""
_TEN = """\
import sys
sys.path += sys.argv[2:]
sys.path.insert(0, sys.argv[1])
import worker
"""
_OURS = _TEN + "worker.ten('auto')\n"
_PSUTIL = _TEN + "worker.ten_psutil()\n"


def measure(host: Host, tasks: int) -> dict[str, Any]:
    """Count the system calls of each job, and of an interpreter that imports the same modules.

    Raises Missing if strace is not installed.
    """
    strace = shutil.which("strace")
    if not strace:
        raise Missing("strace is not installed: apt-get install strace")
    python = host.installation.python
    here = str(Path(__file__).parent)
    extra = [host.psutil] if host.psutil else []
    ps = ["ax", "-o", "pid,ppid"]
    taskdiag = [str(host.installation.command), "ps", *ps]
    jobs: list[tuple[str, Sequence[str | Path], str]] = [
        ("ps ax -o pid,ppid", [shutil.which("ps") or "/bin/ps", *ps], ""),
        ("taskdiag ps ax -o pid,ppid", taskdiag, _loaded(python, taskdiag)),
        ("taskdiag.dump, ten attributes", [python, "-I", "-c", _OURS, here, *extra], "worker"),
    ]
    if extra:
        jobs.append(("psutil, ten attributes", [python, "-I", "-c", _PSUTIL, here, *extra], "x"))
    found: list[dict[str, Any]] = []
    for label, argv, modules in jobs:
        start: list[str | Path] = []
        if modules == "worker":
            names = _loaded(python, [python, "-I", "-c", _OURS, here, *extra])
            start = [python, "-I", "-c", _START, names, *extra]
        elif modules == "x":
            start = [python, "-I", "-c", _START, "psutil,json", *extra]
        elif modules:
            start = [python, "-c", _START, modules]
        calls = _count(host, strace, argv)
        row: dict[str, Any] = {"label": label, "calls": sum(calls.values()), **_io(argv)}
        row["by_call"] = dict(sorted(calls.items(), key=lambda item: -item[1])[:12])
        row["start"] = sum(_count(host, strace, start).values()) if start else 0
        row["beyond_start"] = row["calls"] - row["start"]
        found.append(row)
    ours = found[1]["beyond_start"]
    return {"tasks": tasks, "rows": found, "target": TARGET, "met": ours < TARGET}


def _loaded(python: Path, argv: Sequence[str | Path]) -> str:
    """The modules that a Python command has imported by the time it ends."""
    words = [str(word) for word in argv]
    if words[0] == str(python):
        code, rest = words[3], words[4:]
        script = f"import sys\nsys.argv[1:] = {rest!r}\n{code}\n"
    else:
        script = (
            f"import sys, os\nsys.argv[1:] = {words[1:]!r}\n"
            "from taskdiag.cli import main\nsaved = os.dup(1)\n"
            "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\nmain()\nos.dup2(saved, 1)\n"
        )
    script += "print(','.join(n for n in sys.modules if n not in ('__main__', 'worker')))\n"
    done = subprocess.run(
        [str(python), "-I", "-c", script], env=ENVIRONMENT, capture_output=True, check=False
    )
    if done.returncode:
        raise RunError(f"{words[0]}: {done.stderr.decode()[-500:]}")
    return done.stdout.decode().strip().splitlines()[-1]


def _count(host: Host, strace: str, argv: Sequence[str | Path]) -> dict[str, int]:
    """The number of system calls of a command and its children, by name."""
    path = host.file("strace")
    done = subprocess.run(
        [strace, "-c", "-f", "-o", str(path), *map(str, argv)],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunError(f"strace {argv[0]}: {done.stderr.decode()[-500:]}")
    calls = {}
    for line in path.read_text().splitlines():
        words = line.split()
        # % time, seconds, usecs/call, calls, errors (if any), syscall
        if len(words) in (5, 6) and words[3].isdigit() and words[-1] != "total":
            calls[words[-1]] = int(words[3])
    return calls


def _io(argv: Sequence[str | Path]) -> dict[str, int]:
    """The bytes that a command reads and writes; {} if the kernel does not count them."""
    words = [str(word) for word in argv]
    null = os.open(os.devnull, os.O_RDWR)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)]
        pid = os.posix_spawn(words[0], words, ENVIRONMENT, file_actions=actions)
    finally:
        os.close(null)
    # A zombie's counters can still be read.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        text = ""
    os.waitpid(pid, 0)
    found = dict(line.split(": ") for line in text.splitlines())
    if not found:
        return {}
    return {"bytes_read": int(found["rchar"]), "bytes_written": int(found["wchar"])}
