"""The command line as a user meets it: real processes, their output and their status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import taskdiag
from conftest import need
from population import child, comm_of, stopped
from taskdiag import Dump
from taskdiag.cli import COMMANDS
from taskdiag.netlink import pack_task

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "taskdiag", *args]


def run(*args: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*args),
        input=stdin,
        capture_output=True,
        env={**ENVIRONMENT, **environment},
        timeout=60,
    )


def refused(status: int, pattern: str, *args: str, stdin: bytes = b"", **environment: str) -> None:
    """One sentence on standard error, nothing on standard output, that status."""
    done = run(*args, stdin=stdin, **environment)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b""), text
    assert re.search(pattern, text), text
    assert text.startswith("taskdiag: ")
    assert text.count("\n") == 1


# --- Bad input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        ((), "which command"),
        (("dmup",), "did you mean 'dump'"),
        (("qqqq",), "choose from ps, dump, decode, "),
        (("--nosuch",), "unknown option '--nosuch'"),
        (("--engine", "nosuch", "ps"), "unknown engine 'nosuch'"),
        (("--engine=", "ps"), "unknown engine ''"),
        (("--engine",), "unknown engine ''"),
        (("dump", "--show", "nosuch"), "unknown show flag 'nosuch': choose from base, cred"),
        (("dump", "--show", "base,"), "unknown show flag ''"),
        (("dump", "--show"), "--show needs"),
        (("dump", "--nosuch"), "unknown argument '--nosuch'"),
        (("dump", "1"), "unknown argument '1'"),
        (("dump", "--one"), "--one needs a pid"),
        (("dump", "--one", "x"), "needs a pid, not 'x'"),
        (("dump", "--one", "0"), "pid 0 is out of range"),
        (("dump", "--one", "-1"), "pid -1 is out of range"),
        (("dump", "--one", "4294967296"), "pid 4294967296 is out of range"),
        (("dump", "--children", "9" * 5000), "is out of range"),
        (("dump", "--thread", "1", "--all"), "exclude each other"),
        (("decode", "a", "b"), "decode takes one file"),
        (("decode", "--nosuch"), "unknown argument"),
        (("abi", "x"), "unknown argument 'x'"),
        (("ps", "-o", "pidd"), "unknown column 'pidd': did you mean pid"),
        (("ps", "-o", "qqqqqqq"), "taskdiag ps L"),
        (("ps", "-o", "pid,,comm"), "empty item"),
        (("ps", "-o", "pid:x"), "column width 'x'"),
        (("ps", "-o", ""), "needs a value"),
        (("ps", "-p", "0"), "process id 0 is out of range"),
        (("ps", "-p", "1,-1"), "is not a process id"),
        (("ps", "-p", "99999999999"), "out of range"),
        (("ps", "-p"), "-p needs a value"),
        (("ps", "-u", "no such user"), "no user is called"),
        (("ps", "-t", "nosuch"), "no terminal is called"),
        (("ps", "-Q"), "unknown option '-Q'"),
        (("ps", "--sort", "nosuch"), "unknown column 'nosuch'"),
        (("ps", "--nosuch"), "unknown option '--nosuch'"),
        (("ps", "-l"), "option -l is not supported yet"),
        (("ps", "-f", "-o", "pid"), "user-defined format"),
        (("ps", "-"), "unknown argument"),
    ],
)  # fmt: skip
def test_bad_usage(args: Sequence[str], pattern: str) -> None:
    refused(2, pattern, *args)


def test_unknown_engine_of_the_environment() -> None:
    refused(2, "unknown engine 'nosuch'", "ps", TASKDIAG_ENGINE="nosuch")


@pytest.mark.parametrize("option", ["--one", "--children", "--thread"])
def test_a_pid_that_does_not_exist(option: str) -> None:
    refused(1, "no process has pid 4294967295", "--engine", "procfs", "dump", option, "4294967295")


def test_decode_of_what_is_not_a_stream(tmp_path: Path) -> None:
    refused(1, "standard input is not a whole stream: byte 4: ", "decode", stdin=b"x" * 100)
    refused(1, "byte 0: 5 bytes left", "decode", "-", stdin=b"short")
    refused(1, "nosuch: No such file", "decode", str(tmp_path / "nosuch"))
    refused(1, "Is a directory", "decode", str(tmp_path))


def test_decode_of_nothing_is_nothing() -> None:
    done = run("decode")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_decode_of_a_cut_stream_prints_nothing_else(tmp_path: Path) -> None:
    raw = b"".join(pack_task(pid, pid, [(6, b"a\0b\0")]) for pid in (1, 2, 3))
    path = tmp_path / "saved"
    # A cut between messages leaves a whole stream; anywhere else it is told where.
    for cut in (1, 27, 29, 35, 37, 71, 73, 107):
        path.write_bytes(raw[:cut])
        refused(1, r"saved is not a whole stream: byte \d+: ", "decode", str(path))
    path.write_bytes(raw)
    assert run("decode", str(path)).stdout.count(b"\n") == 3


def test_names_of_files_are_safe_to_print(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[31m\nname"
    path.write_bytes(b"x" * 40)
    refused(1, r"evil\?\[31m\?name is not", "decode", str(path))


# --- What works -----------------------------------------------------------


def test_version_and_help() -> None:
    assert run("--version").stdout == f"taskdiag {taskdiag.__version__}\n".encode()
    text = run("--help").stdout.decode()
    for name in COMMANDS:
        assert f"\n  {name}" in text
    for name in ("ps", "dump", "decode", "abi"):
        done = run(name, "--help")
        assert done.stdout.startswith(f"usage: taskdiag {name}".encode())
        assert (done.returncode, done.stderr) == (0, b"")


def test_dump_is_what_the_library_says() -> None:
    with child() as one:
        done = run(
            "--engine", "procfs", "dump", "--show", "base,cred,stat,cmdline", "--one", str(one.pid)
        )
        (task,) = taskdiag.dump("base,cred,stat,cmdline", pid=one.pid, engine="procfs")
    found = json.loads(done.stdout)
    assert task.base is not None
    assert task.cred is not None
    assert list(found) == ["pid", "tgid", "base", "cred", "stat", "cmdline"]
    assert found["base"] == {**task.base._asdict(), "state": task.base.state.letter}
    assert found["cred"] == task.cred._asdict()
    assert found["cmdline"] == task.cmdline


def test_dump_of_mappings() -> None:
    with child() as one:
        done = run("--engine", "procfs", "dump", "--show", "vma_stat", "--one", str(one.pid))
        (task,) = taskdiag.dump("vma_stat", pid=one.pid, engine="procfs")
    (found,) = map(json.loads, done.stdout.splitlines())
    assert task.vmas is not None
    assert [(vma["start"], vma["name"]) for vma in found["vmas"]] == [
        (vma.start, vma.name) for vma in task.vmas
    ]
    flags = {name for vma in found["vmas"] for name in vma["flags"]}
    assert {"read", "write", "exec"} <= flags
    assert all(vma["stat"]["resident"] >= 0 for vma in found["vmas"])


def test_dump_strategies() -> None:
    me = str(os.getpid())
    with stopped() as one:
        children = run("--engine", "procfs", "dump", "--children", me).stdout
        assert one.pid in [json.loads(line)["pid"] for line in children.splitlines()]
        (line,) = run("--engine", "procfs", "dump", "--one", str(one.pid)).stdout.splitlines()
        assert json.loads(line)["base"]["state"] == "T"
    everything = run("--engine", "procfs", "dump", "--threads").stdout.splitlines()
    pids = [json.loads(line)["pid"] for line in everything]
    assert pids == sorted(set(pids))
    wanted = [task.pid for task in taskdiag.dump("base", Dump.THREAD, os.getpid(), engine="procfs")]
    assert set(wanted) <= set(pids)


@pytest.mark.parametrize("name", ["procfs", "kernel"])
def test_a_saved_stream_decodes_to_the_same(name: str) -> None:
    from conftest import open_engine

    open_engine(name)
    with stopped() as one:
        # Without VMA_STAT: shares of pages change with what other processes do.
        groups = "base,cred,vma,stat,statm,cmdline,tty,sched"
        args = ("--engine", name, "dump", "--show", groups, "--one", str(one.pid))
        raw = run(*args, "--raw")
        assert raw.returncode == 0, raw.stderr
        plain = run(*args)
        again = run("decode", stdin=raw.stdout)
    assert again.stdout == plain.stdout
    assert again.stdout.count(b"\n") == 1


def test_engine_of_the_environment_and_of_the_option() -> None:
    with stopped() as one:
        args = ("dump", "--one", str(one.pid))
        assert run(*args, TASKDIAG_ENGINE="procfs").returncode == 0
        assert run("--engine=procfs", *args, TASKDIAG_ENGINE="nosuch").returncode == 0


def test_abi_prints_the_header() -> None:
    from taskdiag.cheader import header

    assert run("abi").stdout.decode() == header()


# --- Ends -----------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [("dump",), ("dump", "--raw"), ("ps", "ax"), ("abi",), ("--help",)]
)
def test_a_reader_that_goes_away(args: Sequence[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command("--engine", "procfs", *args), stdout=write, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == -signal.SIGPIPE


def test_head_of_a_long_answer(tmp_path: Path) -> None:
    need("bash")
    saved = tmp_path / "saved"
    saved.write_bytes(b"".join(pack_task(pid, pid, [(6, b"x" * 5000)]) for pid in range(1, 2000)))
    script = '"$@" | head -n 1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("decode", str(saved))],
        capture_output=True,
        timeout=60,
    )
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    assert done.returncode == 128 + signal.SIGPIPE


def test_control_c_ends_quietly() -> None:
    reader = subprocess.Popen(
        command("decode"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stderr is not None
    with reader:
        # It waits for more in read(2) once what was written is gone from the pipe.
        raw = pack_task(1, 1, [])
        reader.stdin.write(raw * 100_000)
        reader.stdin.flush()
        reader.send_signal(signal.SIGINT)
        assert reader.wait(timeout=60) == -signal.SIGINT
        assert reader.stderr.read() == b""
        assert reader.stdout.read() == b""


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("abi"), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"taskdiag: standard output: No space left on device\n"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("abi")], stderr=subprocess.PIPE, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == b"taskdiag: standard output: Bad file descriptor\n"


def test_json_of_hostile_names_is_ascii() -> None:
    with child(lambda: comm_of(b"a) R 1 (\n\x1b\xff\xfe")) as one:
        done = run("--engine", "procfs", "dump", "--one", str(one.pid))
    assert done.stdout.isascii()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    (line,) = done.stdout.splitlines()
    assert os.fsencode(json.loads(line)["base"]["comm"]) == b"a) R 1 (\n\x1b\xff\xfe"


@pytest.mark.parametrize(
    "columns", ["pid,comm", "comm,pid", "pid,args", "args,pid", "pid,comm,args"]
)
def test_ps_of_hostile_names_is_safe(columns: str) -> None:
    with child(lambda: comm_of(b"a) R 1 (\n\x1b\xff\xfe")) as one:
        done = run("--engine", "procfs", "ps", "-o", columns, "-p", str(one.pid))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 2
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    done.stdout.decode("utf-8")
