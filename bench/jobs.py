"""The jobs: each compares taskdiag with a program that does the same today.

There is a job for each row of the table of goals.  Jobs without a ``target`` have no goal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import checks
from .contender import Asking, Command, Contender, Iterator, Reader, Served
from .host import Host, Missing
from .measure import pair

__all__ = ("JOBS", "Job", "run")

Pair = tuple[Contender, Contender]


class Job:
    """A comparison of two contenders.

    ``build`` returns ours and the peer's.  ``check`` is called with both and the pids of the
    population; it raises CheckError if their answers differ, and returns how many were
    compared.  ``target`` is the least ratio of the peer's time to ours; with ``at_most``, it
    is the greatest ratio of our time to the peer's.
    """

    def __init__(
        self,
        name: str,
        title: str,
        build: Callable[[Host], Any],
        check: Callable[[Host, Any, Any, Sequence[int]], int],
        target: float | None = None,
        *,
        at_most: bool = False,
        tasks: int = 50_000,
        threads: int = 1,
    ) -> None:
        self.name = name
        self.title = title
        self.build = build
        self.check = check
        self.target = target
        self.at_most = at_most
        self.tasks = tasks
        self.threads = threads


def run(job: Job, host: Host, members: Sequence[int], runs: int) -> dict[str, Any]:
    """Check a job's pair, then measure it.  Raises Missing, CheckError, RunError."""
    ours, peer = job.build(host)
    with contextlib.ExitStack() as stack:
        for contender in (ours, peer):
            if isinstance(contender, (Asking, Iterator, Served)):
                stack.callback(contender.close)
        checked = job.check(host, ours, peer, members)
        found = pair(ours, peer, runs)
    if job.at_most:
        found["ratio"] = 1 / found["ratio"]
        if found["cpu_ratio"]:
            found["cpu_ratio"] = 1 / found["cpu_ratio"]
        found["ratio_spread"] = [1 / ratio for ratio in reversed(found["ratio_spread"])]
    met = None
    if job.target is not None:
        met = found["ratio"] <= job.target if job.at_most else found["ratio"] >= job.target
    return {
        "name": job.name,
        "title": job.title,
        "checked": checked,
        **found,
        "target": job.target,
        "at_most": job.at_most,
        "met": met,
    }


# --- Contenders -------------------------------------------------------------------


def _tool(name: str) -> str:
    found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if not found:
        raise Missing(f"{name} is not installed")
    return found


def _ps(*args: str) -> Callable[[Host], Pair]:
    def build(host: Host) -> Pair:
        words = " ".join(args)
        return (
            Command(f"taskdiag ps {words}", [host.installation.command, "ps", *args]),
            Command(f"ps {words}", [_tool("ps"), *args]),
        )

    return build


def _service(host: Host) -> Pair:
    taskdiag, words = host.installation.command, ("ps", "ax", "-o", "pid,ppid")
    _tool("setpriv")
    # Both run setpriv, whose time is not what is compared.
    root: list[str | Path] = [
        "/usr/bin/env",
        "setpriv",
        "--reuid=0",
        taskdiag,
        "--engine",
        "kernel",
        *words,
    ]
    return (
        Asking("taskdiag ps by the service", taskdiag, *words),
        Command("taskdiag ps of root", root),
    )


def _top(host: Host) -> Pair:
    columns = "pid,user,priority,nice,vsz,rss,s,pcpu,pmem,time,comm"
    return (
        Command(f"taskdiag ps -eo {columns}", [host.installation.command, "ps", "-eo", columns]),
        Command("top -b -n 1", [_tool("top"), "-b", "-n", "1"]),
    )


def _stream(host: Host, show: str, strategy: int = 0) -> Any:
    return host.worker.contender(
        f"taskdiag.stream({show!r})", "stream", engine="kernel", show=show, strategy=strategy
    )


def _read_stat(host: Host) -> Pair:
    peer = Reader("C: read /proc/PID/stat", [host.toolbox.program("read_stat")])
    return _stream(host, "base,stat"), peer


def _read_threads(host: Host) -> Pair:
    peer = Reader("C: read task/*/status, maps", [host.toolbox.program("read_threads")])
    return _stream(host, "base,vma", 2), peer


#: Show flags, as C programs have them.
_VMA, _VMA_STAT, _STAT = 1 << 2, 1 << 2 | 1 << 3, 1 << 4


def _by_file(host: Host, show: int) -> Served:
    found = importlib.util.find_spec("mfusepy")
    if found is None or not found.origin:
        raise Missing("mfusepy is not installed: pip install mfusepy")
    program = host.toolbox.program("ask")
    return Served("C: the service's file", host.installation.command, program, show, found.origin)


def _file_and_socket(host: Host) -> Any:
    ours = _by_file(host, _STAT)
    program = host.toolbox.program("ask")
    return ours, Served("C: its socket", host.installation.command, program, _STAT)


def _file_and_proc(name: str, show: int) -> Callable[[Host], Any]:
    def build(host: Host) -> Any:
        peer = Reader(f"C: read /proc/PID/{name}", [host.toolbox.program("read_proc"), name])
        return _by_file(host, show), peer

    return build


def _ten(engine: str) -> Callable[[Host], Pair]:
    def build(host: Host) -> Pair:
        if not host.psutil:
            raise Missing("psutil is not installed: pip install psutil")
        host.worker.ask("imports", modules=["taskdiag", "psutil"])
        return (
            host.worker.contender(f"taskdiag.dump, {engine}", "ten", engine=engine),
            host.worker.contender("psutil.process_iter", "ten_psutil"),
        )

    return build


def _iterator(show: str) -> Callable[[Host], Pair]:
    def build(host: Host) -> Pair:
        program = show.replace(",", "_")
        peer = Iterator(f"C iterator, {show}", *host.toolbox.iterator(), program)
        return _stream(host, show), peer

    return build


# --- Checks -----------------------------------------------------------------------


def _table(column: int, *without: int) -> Callable[[Host, Any, Any, Sequence[int]], int]:
    def check(host: Host, ours: Command, peer: Command, members: Sequence[int]) -> int:
        mine, theirs = (checks.lines_by_pid(who.output(), column, without) for who in (ours, peer))
        return checks.same(members, mine, theirs)

    return check


def _top_check(host: Host, ours: Command, peer: Command, members: Sequence[int]) -> int:
    # Columns and units differ: compare the names only.
    mine, theirs = (
        {pid: words[-1] for pid, words in checks.lines_by_pid(who.output(), 0).items()}
        for who in (ours, peer)
    )
    return checks.same(members, mine, theirs)


def _saved(host: Host, contender: Any, name: str) -> Path:
    path = host.file(name)
    contender.save(path)
    return path


def _stat_check(host: Host, ours: Any, peer: Reader, members: Sequence[int]) -> int:
    mine = checks.stats_of(_saved(host, ours, "ours").read_bytes())
    return checks.same(members, mine, checks.stat_files(peer.check_output(), set(members)))


def _served_check(host: Host, ours: Served, peer: Served, members: Sequence[int]) -> int:
    mine = checks.bytes_of(_saved(host, ours, "ours").read_bytes())
    return checks.same(members, mine, checks.bytes_of(_saved(host, peer, "peer").read_bytes()))


def _file_maps_check(host: Host, ours: Served, peer: Reader, members: Sequence[int]) -> int:
    mine = checks.mappings_of(_saved(host, ours, "ours").read_bytes())
    return checks.same(members, mine, checks.maps_by_pid(peer.check_output()))


def _threads_check(host: Host, ours: Any, peer: Reader, members: Sequence[int]) -> int:
    mine = checks.maps_of(_saved(host, ours, "ours").read_bytes())
    return checks.same(members, mine, checks.map_files(peer.check_output(), set(members)))


def _ten_check(host: Host, ours: Any, peer: Any, members: Sequence[int]) -> int:
    mine = checks.json_rows(_saved(host, ours, "ours"), psutil=False)
    theirs = checks.json_rows(_saved(host, peer, "peer"), psutil=True)
    return checks.same(members, mine, theirs)


def _bytes_check(host: Host, ours: Any, peer: Any, members: Sequence[int]) -> int:
    mine = checks.bytes_of(_saved(host, ours, "ours").read_bytes())
    return checks.same(members, mine, checks.bytes_of(_saved(host, peer, "peer").read_bytes()))


JOBS = (
    Job(
        "ps-pid-ppid",
        "ps ax -o pid,ppid, whole command",
        _ps("ax", "-o", "pid,ppid"),
        _table(0),
        25,
    ),
    # %CPU (2) changes, and START (8) depends on a boot time that each computes for itself.
    Job("ps-aux", "ps aux, whole command", _ps("aux"), _table(1, 2, 8), 20),
    Job(
        "service",
        "ps ax -o pid,ppid of a user, whole command",
        _service,
        _table(0),
        1.5,
        at_most=True,
    ),
    Job("top", "a screen of top, whole command", _top, _top_check),
    Job("base-stat", "BASE and STAT of every process", _read_stat, _stat_check, 10),
    Job("python-ten", "ten attributes in Python", _ten("kernel"), _ten_check, 100),
    Job("python-ten-procfs", "the same by the procfs engine", _ten("procfs"), _ten_check, 5),
    Job(
        "kernel-c-iterator",
        "the kernel engine, BASE",
        _iterator("base"),
        _bytes_check,
        1.15,
        at_most=True,
    ),
    Job(
        "kernel-c-iterator-stat",
        "the kernel engine, BASE and STAT",
        _iterator("base,stat"),
        _bytes_check,
        1.15,
        at_most=True,
    ),
    Job(
        "file-stat",
        "STAT of every process by the file and by the socket",
        _file_and_socket,
        _served_check,
        1.5,
        at_most=True,
        tasks=20_000,
    ),
    Job(
        "file-maps",
        "the mappings of every process by the file",
        _file_and_proc("maps", _VMA),
        _file_maps_check,
        3,
        tasks=20_000,
    ),
    Job(
        "file-smaps",
        "the mappings with their statistics by the file",
        _file_and_proc("smaps", _VMA_STAT),
        _file_maps_check,
        2,
        at_most=True,
        tasks=20_000,
    ),
    Job(
        "threads-vmas",
        "all threads and mappings",
        _read_threads,
        _threads_check,
        10,
        tasks=10_000,
        threads=5,
    ),
)
