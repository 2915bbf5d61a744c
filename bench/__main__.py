"""``python -m bench``: measure taskdiag beside the programs that do the same today."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import groups, growth, jobs, limits, machine, picture, syscalls
from .checks import CheckError
from .contender import RunError, note
from .host import Host, Missing
from .jobs import Job
from .limits import LimitError
from .peers import BuildError
from .population import Population
from .report import report

SPECIAL = ("growth", "groups", "syscalls")
NAMES = (*(job.name for job in jobs.JOBS), *SPECIAL)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report.  Return 1 if a measurement failed, whatever the figures are, else 0."""
    options = _parser().parse_args(arguments)
    if os.geteuid() != 0:
        note("bench: not root: without the kernel engine, and without raising limits")
    # Exit by an exception, so that processes, files and limits are cleaned up.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        results = measure(options)
    except (LimitError, BuildError, RunError) as error:
        note(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(picture.draw(results))
    return 1 if results["failed"] else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked for; the result is what the JSON file contains."""
    wanted: Sequence[str] = options.job or NAMES
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.describe(),
        "runs": options.runs,
        "jobs": [],
        "skipped": [],
        "failed": [],
    }
    with Host() as host:
        for (tasks, threads), some in _by_population(options, wanted).items():
            note(f"bench: {tasks:,} processes with {threads} threads")
            with _room(results, [job.name for job in some]):
                _pairs(host, some, tasks, threads, options.runs, results)
        order = [job.name for job in jobs.JOBS]
        results["jobs"].sort(key=lambda job: order.index(job["name"]))
        _special(host, options, wanted, results)
    return results


def _pairs(
    host: Host, some: list[Job], tasks: int, threads: int, runs: int, results: dict[str, Any]
) -> None:
    """Run the jobs that need the same population."""
    with limits.raised(tasks, threads), Population(host.toolbox, threads) as people:
        people.grow(tasks)
        members = people.pids()
        for job in some:
            found = _attempt(results, job.name, partial(jobs.run, job, host, members, runs))
            if found:
                results["jobs"].append({**found, "tasks": tasks, "threads": threads})


def _special(
    host: Host, options: argparse.Namespace, wanted: Sequence[str], results: dict[str, Any]
) -> None:
    """Run the measurements that do not compare a pair."""
    standing: dict[str, tuple[int, Callable[[int], Any]]] = {
        "groups": (groups.TASKS, lambda _: groups.measure(host, options.runs)),
        "syscalls": (syscalls.TASKS, lambda tasks: syscalls.measure(host, tasks)),
    }
    for name, (usual, run) in standing.items():
        if name in wanted:
            tasks = options.tasks or usual
            with (
                _room(results, [name]),
                limits.raised(tasks),
                Population(host.toolbox) as people,
            ):
                people.grow(tasks)
                results[name] = _attempt(results, name, partial(run, tasks))
    if "growth" in wanted:
        sizes = [options.tasks, 2 * options.tasks] if options.tasks else growth.SIZES
        with _room(results, ["growth"]), limits.raised(max(sizes)):
            run_growth = partial(growth.measure, host, sizes, options.runs)
            results["growth"] = _attempt(results, "growth", run_growth)


@contextlib.contextmanager
def _room(results: dict[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Skip these jobs if the host has no room for their population."""
    try:
        yield
    except LimitError as error:
        note(f"bench: {error}")
        results["skipped"] += [[name, str(error)] for name in names]
        results["failed"] += names


def _attempt(results: dict[str, Any], name: str, run: Callable[[], Any]) -> Any:
    """Run one measurement.  If it fails, the others go on."""
    note(f"bench: {name}")
    try:
        return run()
    except (Missing, BuildError) as error:
        results["skipped"].append([name, str(error)])
    except (CheckError, RunError) as error:
        note(f"bench: {name} failed: {error}")
        results["skipped"].append([name, f"FAILED: {str(error)[:300]}"])
        results["failed"].append(name)
    return None


def _by_population(
    options: argparse.Namespace, wanted: Sequence[str]
) -> dict[tuple[int, int], list[Job]]:
    """The jobs asked for, grouped by the population that they need."""
    found: dict[tuple[int, int], list[Job]] = {}
    for job in jobs.JOBS:
        if job.name in wanted:
            key = options.tasks or job.tasks, options.threads or job.threads
            found.setdefault(key, []).append(job)
    return found


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure taskdiag beside the programs that do the same today.",
        epilog=f"jobs: {', '.join(NAMES)}",
    )
    add = parser.add_argument
    add(
        "--tasks",
        type=_positive,
        metavar="N",
        help="processes (default: as each job requires)",
    )
    add("--threads", type=_positive, metavar="N", help="threads per process")
    add(
        "--job", action="append", choices=NAMES, metavar="NAME",
        help="only this job; may be repeated",
    )  # fmt: skip
    add("--runs", type=_positive, default=11, metavar="N", help="runs of each (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE")
    add("--svg", type=Path, metavar="FILE", help="write a chart of them to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
