"""Jobs that are measured inside Python, run by the interpreter of the clean installation.

Each line of standard input is a job in JSON: ``do`` is the name of a function below, the rest
are its arguments.  The answer is a line of JSON with what the function returns.  This module
imports nothing of `bench`, which is not installed there.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Row = tuple[int, int, str, str, int, int, float, float, int, int]

#: The ten attributes, by their names in psutil.
PSUTIL = (
    "pid", "ppid", "name", "status", "uids", "gids", "cpu_times", "memory_info", "num_threads",
)  # fmt: skip

_engines: dict[str, Any] = {}


def _engine(name: str) -> Any:
    """The engine of that name, made once, as in a program that asks often."""
    from taskdiag.engine import choose

    if name not in _engines:
        _engines[name] = choose(name)
    return _engines[name]


def stream(engine: str, show: str | int, strategy: int = 0, path: str = "") -> dict[str, Any]:
    """Read an answer to its end, and then once more into ``path`` if that is given."""
    import taskdiag

    chosen = _engine(engine)
    size = 0
    start, cpu = time.perf_counter(), time.process_time()
    for chunk in taskdiag.stream(show, strategy, engine=chosen):
        size += len(chunk)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if path:
        with open(path, "wb") as file:
            file.writelines(taskdiag.stream(show, strategy, engine=chosen))
    return {"seconds": seconds, "cpu": cpu, "bytes": size}


def ten(engine: str, path: str = "") -> dict[str, Any]:
    """Read ten attributes of every process by `taskdiag.dump`."""
    import taskdiag

    chosen = _engine(engine)
    start, cpu = time.perf_counter(), time.process_time()
    rows = []
    task: Any
    for task in taskdiag.dump("base,cred,stat,statm", engine=chosen):
        base, cred, stat, statm = task.base, task.cred, task.stat, task.statm
        rows.append(
            (
                task.pid, base.ppid, base.comm, base.state, cred.uid, cred.gid, stat.utime,
                stat.stime, statm.total_rss if statm else 0, stat.threads,
            )
        )  # fmt: skip
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if path:
        _save(path, [(*row[:3], row[3].name.lower(), *row[4:]) for row in rows])
    return {"seconds": seconds, "cpu": cpu, "rows": len(rows)}


def ten_psutil(path: str = "") -> dict[str, Any]:
    """Read the same by psutil."""
    import psutil  # type: ignore[import-untyped]

    start, cpu = time.perf_counter(), time.process_time()
    rows = []
    for process in psutil.process_iter(PSUTIL):
        info = process.info
        times = info["cpu_times"]
        try:
            rows.append(
                (
                    info["pid"], info["ppid"], info["name"], info["status"], info["uids"].real,
                    info["gids"].real, times.user, times.system, info["memory_info"].rss,
                    info["num_threads"],
                )
            )  # fmt: skip
        except AttributeError:
            # What psutil was refused is None.
            continue
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if path:
        _save(path, rows)
    return {"seconds": seconds, "cpu": cpu, "rows": len(rows)}


def imports(modules: list[str]) -> dict[str, Any]:
    """Import modules, so that no measured call has to."""
    for module in modules:
        importlib.import_module(module)
    return {"version": {m: getattr(sys.modules[m], "__version__", "") for m in modules}}


def _save(path: str, rows: list[Any]) -> None:
    with open(path, "w") as file:
        json.dump(rows, file)


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "stream": stream,
    "ten": ten,
    "ten_psutil": ten_psutil,
    "imports": imports,
}


def main() -> None:
    """Do jobs until the end of standard input."""
    sys.path += sys.argv[1:]
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = DO[job.pop("do")](**job)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
