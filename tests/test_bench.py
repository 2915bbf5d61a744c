"""The benchmarks at a small size: every job runs, its check holds, nothing is left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import missing, need, open_engine
from population import child, comm_of, many_mappings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import checks, jobs, limits, picture, report  # noqa: E402
from bench.contender import Command, RunError, Taken  # noqa: E402
from bench.host import Host  # noqa: E402
from bench.measure import alternate, pair  # noqa: E402
from bench.peers import Toolbox  # noqa: E402
from bench.population import NAME, TITLE, Population  # noqa: E402

COMPILER = ("gcc", "/usr/include/stdio.h")
#: What the peers of jobs need besides, by the start of the job's name.
PEERS = {
    "ps": ("ps",),
    "service": ("setpriv",),
    "top": ("top",),
    "kernel-c-iterator": ("bpftool", "clang", "/usr/include/bpf/libbpf.h"),
}
SYSCTLS = ("kernel/pid_max", "kernel/threads-max", "vm/max_map_count")


def settings() -> list[str]:
    return [Path("/proc/sys", name).read_text() for name in SYSCTLS]


def members_now(parent: int) -> list[int]:
    """Living members of populations below a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                head, _, rest = (entry / "stat").read_bytes().rpartition(b") ")
            except OSError:
                continue
            words = rest.split()
            if words[0] not in (b"Z", b"X"):
                name = head.partition(b" (")[2].decode("utf-8", "replace")
                parents[int(entry.name)] = int(words[1]), name

    def below(pid: int) -> bool:
        while pid in parents:
            if pid == parent:
                return True
            pid = parents[pid][0]
        return False

    return [pid for pid, (_, name) in parents.items() if name.startswith(NAME) and below(pid)]


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    need(*COMPILER)
    return Toolbox(tmp_path_factory.mktemp("bench"))


# --- Populations --------------------------------------------------------------------


def test_population_is_as_asked_for(toolbox: Toolbox) -> None:
    with Population(toolbox, threads=3) as people:
        people.grow(40)
        people.grow(60)
        pids = people.pids()
        assert sorted(members_now(os.getpid())) == pids
        assert len(pids) == 60
        names, titles = set(), set()
        for pid in pids:
            proc = Path(f"/proc/{pid}")
            names.add((proc / "comm").read_text().strip())
            titles.add((proc / "cmdline").read_bytes().split(b"\0")[-2].decode())
            assert len(os.listdir(proc / "task")) == 3
            assert os.listdir(proc / "fd") == []
        assert names == {f"{NAME}{number}" for number in range(60)}
        assert titles == {f"{number:0{len(TITLE)}}" for number in range(60)}
    assert members_now(os.getpid()) == []


def test_population_ends_with_an_exception(toolbox: Toolbox) -> None:
    def fail() -> None:
        with Population(toolbox) as people:
            people.grow(20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert members_now(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_population_ends_with_the_command(tmp_path: Path, number: int) -> None:
    need(*COMPILER)
    before = settings()
    words = "--tasks 200 --job python-ten-procfs --runs 100000"
    argv = [sys.executable, "-m", "bench", *words.split()]
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("bench: python-ten-procfs"):
                break
        members = members_now(process.pid)
        assert len(members) == 200
        process.send_signal(number)
        process.wait(30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in {signal.SIGTERM: (143,), signal.SIGINT: (130,)}.get(number, (-9,))
    for _ in range(1000):
        if not any(os.path.exists(f"/proc/{pid}") for pid in members):
            break
        time.sleep(0.01)
    assert [pid for pid in members if os.path.exists(f"/proc/{pid}")] == []
    if number != signal.SIGKILL:
        assert settings() == before


def test_population_checks_memory_first(toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: {"MemAvailable": 600 << 20})
    with Population(toolbox) as people, pytest.raises(limits.LimitError, match="need about"):
        people.grow(100_000)


@pytest.mark.root
def test_limits_are_raised_and_put_back() -> None:
    before = settings()
    wanted = int(before[0]) + 1000
    if wanted > 4_000_000:
        missing("pid_max is as high as it can be")
    with limits.raised(wanted):
        assert int(settings()[0]) > wanted
    assert settings() == before


def test_limits_that_may_not_be_raised_are_told(tmp_path: Path) -> None:
    path = tmp_path / "no" / "limit"
    with limits._file(path, 10):
        pass
    path = tmp_path / "limit"
    path.write_text("5\n")
    with limits._file(path, 10):
        assert path.read_text() == "10\n"
    assert path.read_text() == "5\n"
    path.write_text("max\n")
    with limits._file(path, 10):
        assert path.read_text() == "max\n"


def test_a_process_limit_that_is_hard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    with pytest.raises(limits.LimitError, match="RLIMIT_NPROC is 20"), limits._rlimit(100):
        pass


# --- Jobs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need(*COMPILER)
    open_engine("kernel")
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def crowd(host: Host) -> Iterator[list[int]]:
    """The members of a population, beside strangers that are hard to read."""
    with (
        child(lambda: comm_of(b"\n7 (x) S 1 1 1")),
        child(many_mappings(60_000)) as large,
        Population(host.toolbox, threads=2) as people,
    ):
        assert len(Path(f"/proc/{large.pid}/maps").read_bytes()) > 2 << 20
        people.grow(50)
        yield people.pids()


@pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.name)
def test_job(host: Host, crowd: list[int], job: jobs.Job) -> None:
    need(*(tool for name, tools in PEERS.items() if job.name.startswith(name) for tool in tools))
    found = jobs.run(job, host, crowd, 1)
    assert found["checked"] == 50
    assert len(found["ours"]["seconds"]) == len(found["peer"]["seconds"]) == 1
    assert found["ratio"] > 0
    assert found["met"] in ((None,) if job.target is None else (True, False))


def test_command_measures_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need(*COMPILER, "ps", "strace")
    open_engine("kernel")
    before, living = settings(), members_now(os.getpid())
    arguments = ["--tasks", "50", "--runs", "1"]
    for name in ("ps-pid-ppid", "growth", "groups", "syscalls"):
        arguments += ["--job", name]
    out, svg = tmp_path / "results.json", tmp_path / "results.svg"
    status = command.main([*arguments, "--json", str(out), "--svg", str(svg)])
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["failed"] == []
    assert status == 0
    assert [job["name"] for job in results["jobs"]] == ["ps-pid-ppid"]
    assert results["groups"]["rows"][0]["group"] == "base"
    assert len(results["growth"]["points"]) == 2
    rows = results["syscalls"]["rows"]
    assert all(row["calls"] > 0 for row in rows)
    assert rows[0]["calls"] > rows[1]["beyond_start"]
    assert results["machine"]["kernel"] == os.uname().release
    for word in ("ps-pid-ppid", "growth:", "groups,", "system calls,"):
        assert word in printed
    assert ET.parse(svg).getroot().tag.endswith("svg")
    assert members_now(os.getpid()) == living
    assert settings() == before


def test_command_without_room_tells_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need(*COMPILER)
    monkeypatch.setattr(limits, "memory", lambda: {"MemAvailable": 1 << 20, "MemTotal": 1 << 30})
    arguments = ["--tasks", "10000"]
    for name in ("base-stat", "groups", "growth"):
        arguments += ["--job", name]
    assert command.main(arguments) == 1
    out = capsys.readouterr()
    assert out.out.count("0 MiB are available") == 3
    assert "Traceback" not in out.err


def test_command_refuses_what_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--tasks", "0"], ["--job", "none"], ["--runs", "x"]):
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


# --- Checks that must find a difference -----------------------------------------------


def test_same_finds_what_is_missing_or_different() -> None:
    assert checks.same([1, 2], {1: "a", 2: "b", 9: "x"}, {1: "a", 2: "b"}) == 2
    for ours, peer in (({1: "a"}, {}), ({}, {1: "a"}), ({1: "a"}, {1: "b"})):
        with pytest.raises(checks.CheckError):
            checks.same([1], ours, peer)
    with pytest.raises(checks.CheckError, match="no population"):
        checks.same([], {}, {})


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(RunError, match="status"):
        Command("false", ["/bin/false"]).run()


# --- Measuring and reporting ----------------------------------------------------------


class Fake:
    def __init__(self, label: str, seconds: list[float], log: list[str]) -> None:
        self.label = label
        self._seconds = iter(seconds)
        self._log = log

    def run(self) -> Taken:
        self._log.append(self.label)
        seconds = next(self._seconds)
        return Taken(seconds, seconds / 2)


def test_runs_alternate_and_the_first_does_not_count() -> None:
    log: list[str] = []
    one, two = Fake("a", [99, 1, 2, 3], log), Fake("b", [99, 10, 20, 60], log)
    mine, theirs = alternate([one, two], 3)
    assert "".join(log) == "ababbaab"
    assert mine.seconds == [1, 2, 3]
    assert theirs.median == 20
    found = pair(Fake("a", [9, 1, 2, 3], log), Fake("b", [9, 10, 20, 60], log), 3)
    assert found["ratio"] == 10
    assert found["cpu_ratio"] == 10
    assert found["ratio_spread"] == [10, 20]
    assert found["ours"]["spread"] == [1, 3]


def made_up(ratio: float = 25.0, **changes: Any) -> dict[str, Any]:
    samples = {"label": "<peer> & Co", "median": 0.1, "spread": [0.05, 0.2], "seconds": [0.1]}
    job = {
        "name": "ps-aux", "title": "ps <aux>", "tasks": 50_000, "threads": 5, "checked": 1,
        "ours": samples, "peer": samples, "ratio": ratio, "cpu_ratio": ratio,
        "ratio_spread": [ratio / 2, ratio * 2],
        "target": 20, "at_most": False, "met": ratio >= 20, **changes,
    }  # fmt: skip
    machine = {
        "cpu": "A & B <CPU>", "cores": 2, "memory": 8 << 30, "virtual": True, "kernel": "6.1",
        "python": "3.11", "ps": "procps-ng 4", "psutil": "7",
    }  # fmt: skip
    return {"machine": machine, "jobs": [job], "skipped": [["top", "no top"]], "failed": []}


@pytest.mark.parametrize("ratio", [0.01, 1, 25, 5000])
def test_picture_is_well_formed_and_fits(ratio: float) -> None:
    text = picture.draw(made_up(ratio))
    root = ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    _, _, width, height = (float(word) for word in root.attrib["viewBox"].split())
    for node in root.iter():
        if node.tag.endswith("rect"):
            assert float(node.attrib["x"]) + float(node.attrib["width"]) < width
            assert float(node.attrib["width"]) > 0
        if node.tag.endswith("}text"):
            assert 0 <= float(node.attrib["x"]) < width
            assert 0 < float(node.attrib["y"]) < height
    words = "".join(root.itertext())
    assert "ps <aux>" in words
    assert "10.8" in words


def test_report_says_what_was_missed_and_left_out() -> None:
    text = report.report(made_up(10.0))
    assert "at least 20: NOT MET" in text
    assert "no top" in text
    assert "at least 20: met" in report.report(made_up(30.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2 s"), (0.0421, "42.1 ms"), (3.1e-5, "31 \N{MICRO SIGN}s"), (5e-8, "50 ns")],
)
def test_seconds(value: float, text: str) -> None:
    assert report.seconds(value) == text
