"""taskdiag explain: the programs of a request as annotated text, without a privilege."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from conftest import missing
from made_kernel import new_kernel, old_kernel
from taskdiag import Request, Show, cli
from taskdiag.abi import GROUPS, Attr, Dump
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel import explain as explain_module
from taskdiag.kernel import facts as facts_module
from taskdiag.kernel.annotate import Annotator, Named
from taskdiag.kernel.compile import compile_request
from taskdiag.kernel.emit import Host
from taskdiag.kernel.explain import explain
from taskdiag.kernel.viewer import Viewer

NEW, OLD = new_kernel(), old_kernel()


@pytest.fixture(autouse=True)
def root_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are explained as for root on the host, no matter who runs the tests."""
    monkeypatch.setattr(explain_module, "effective", lambda: 2**41 - 1)
    monkeypatch.setattr(explain_module, "_namespace", lambda kind, first: (0, first))


def text(show: int, strategy: Dump = Dump.ALL, pid: int = 0, *, old: bool = False) -> str:
    return "\n".join(explain(Request(show, strategy, pid), OLD if old else NEW))


# --- Names of numbers ---------------------------------------------------------------------


def test_numbers_remember_where_they_come_from() -> None:
    number = Named(80, "pid::numbers")
    assert number == 80
    assert (number + 0).name == "pid::numbers"
    assert (number + 16).name == "pid::numbers+16"
    both = number + Named(8, "upid::ns")
    assert (both, both.name) == (88, "pid::numbers.ns")
    assert type(number * 2) is int


def test_loads_are_commented_with_their_members_through_every_pointer() -> None:
    program = compile_request(Request(Show.CRED), NEW, Viewer(), Host(), Annotator)
    comments = list(program.code.comments.values())
    assert "bpf_iter__task::task" in comments
    at = comments.index("task_struct::real_cred")
    assert comments[at + 1] == "cred::cap_inheritable"
    assert "local seq" in comments
    assert "message +16" in comments


# --- The text -----------------------------------------------------------------------------


@pytest.mark.parametrize("attr", [attr for attr in GROUPS if attr != Attr.STATM])
def test_every_field_has_its_heading(attr: Attr) -> None:
    group = GROUPS[attr]
    found = text(1 << attr)
    assert f"; {attr.name.lower()}: {group.doc}" in found
    summed = {"minflt", "majflt", "stime", "utime"} if attr == Attr.STAT else set()
    for field in group.fields:
        if field.name not in summed:
            assert f"; {attr.name.lower()}.{field.name} = {field.kernel}" in found


def test_lines_are_numbered_and_jumps_have_labels() -> None:
    found = text(Show.BASE)
    at = 0
    for number, code in re.findall(r"^ +(\d+)  (.*)", found, re.M):
        assert int(number) == at
        # Only the load of 64 bits takes the place of two instructions.
        at += 2 if re.match(r"r\d = 0x[0-9a-f]{16}\b", code) else 1
    labels = set(re.findall(r"^(\S+):$", found, re.M))
    assert set(re.findall(r"goto (\S+)", found)) <= labels
    assert "skip" in labels
    assert "pc+" not in found


def test_kernel_functions_are_called_by_name() -> None:
    found = text(Show.STAT)
    assert "call bpf_iter_task_next#" in found
    assert "call bpf_rdonly_cast#" in found
    assert "call bpf_seq_write#127" in found
    assert "call mul_div" in found


def test_maps_and_sleeping_are_said() -> None:
    assert "; iter.s/task, which may sleep: " in text(Show.CMDLINE)
    assert "maps arena, deferred" in text(Show.CMDLINE)
    assert "r9 = map[arena][0]+64" in text(Show.VMA)
    assert "; iter/task: " in text(Show.BASE)
    assert "no map" in text(Show.BASE)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Dump.ALL, "; every process: base"),
        (Dump.ONE, "; process 77: base"),
        (Dump.ALL_THREAD, "; every thread: base"),
        (Dump.CHILDREN, "; the children of process 77: base"),
        (Dump.THREAD, "; every thread of process 77: base"),
    ],
)
def test_which_tasks(strategy: Dump, expected: str) -> None:
    found = text(Show.BASE, strategy, 77)
    assert found.startswith(expected + "\n")
    narrowed = {Dump.ONE: "run for tid = 77", Dump.THREAD: "run for pid = 77"}
    assert narrowed.get(strategy, "run for all tasks") in found


def test_children_are_two_programs() -> None:
    found = text(Show.BASE, Dump.CHILDREN, 77)
    assert "; First: is there a process 77?" in found
    assert found.count("; iter/task: ") == 2
    assert "run for tid = 77" in found
    assert text(Show.BASE).count("; iter/task: ") == 1


def test_what_procfs_serves_and_why() -> None:
    found = text(Show.BASE | Show.VMA_STAT)
    assert "; vma_stat: from procfs (missing: a page walk" in found
    assert "; vma: from procfs as well, since vma_stat is part of its records" in found
    assert "; vma:" not in found.partition("iter/task")[2]
    found = text(Show.BASE | Show.VMA | Show.CMDLINE, old=True)
    assert "; vma: from procfs (missing: kfunc bpf_iter_task_vma_new" in found
    assert "; cmdline: from procfs (missing: helper bpf_copy_from_user_task" in found
    assert "from procfs" not in text(Show.BASE)


def test_a_viewer_without_privilege_has_the_access_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "effective", lambda: 0)
    found = text(Show.BASE)
    assert "; access: without CAP_SYS_PTRACE, only tasks that this user may trace" in found
    assert "call access" in found
    monkeypatch.setattr(explain_module, "effective", lambda: 2**41 - 1)
    monkeypatch.setattr(explain_module, "_namespace", lambda kind, first: (0, first))
    found = text(Show.BASE)
    assert "access" not in found


def test_inside_namespaces_their_depth_is_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "_namespace", lambda kind, first: (1, 4026532000))
    found = text(Show.BASE)
    assert "; stand-in: level 1 for the depth of this pid namespace" in found
    assert "; stand-in: level 1, address 0 for this user namespace" in found


def test_stand_ins_are_named_where_they_are_used() -> None:
    assert "stand-in" not in text(Show.BASE | Show.CRED | Show.CMDLINE).lower()
    found = text(Show.STATM)
    assert "; stand-ins: 0x1111111111111111 and up for the offsets of the" in found
    assert re.search(r"r\d = 0x1111111111111111$", found, re.M)
    assert "special_mapping_vmops" in text(Show.VMA)
    # Counters of old kernels are in one place.
    assert "stand-in" not in text(Show.STATM, old=True)


def test_the_program_shown_is_the_program_loaded() -> None:
    """Annotating changes no instruction; see test_compile for every request."""
    found = text(Show.BASE | Show.STAT | Show.TTY)
    viewer = explain_module._viewer()
    program = compile_request(Request(Show.BASE | Show.STAT | Show.TTY), NEW, viewer, Host())
    assert f"; iter/task: {len(program.code.insns) // 8} instructions" in found


# --- The command ----------------------------------------------------------------------------


def command(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    if not os.path.exists(facts_module.VMLINUX):
        missing("this kernel has no BTF")
    return subprocess.run(
        [sys.executable, "-m", "taskdiag", "explain", *args],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    "args",
    [(), ("--show", "all", "--threads"), ("--show", "base,stat", "--children", "1")],
)
def test_command(args: tuple[str, ...]) -> None:
    result = command(*args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith("; ")
    assert "task_struct::signal" in result.stdout
    assert all(line.isprintable() for line in result.stdout.split("\n"))


def test_it_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from taskdiag.kernel import bpf

    def refuse(*args: object) -> int:
        raise AssertionError("bpf(2) was called")

    monkeypatch.setattr(bpf, "bpf", refuse)
    assert text(Show(sum(Show)), Dump.CHILDREN, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--show", "nonsense"), "unknown group 'nonsense'"),
        (("--raw",), "unknown argument '--raw': taskdiag explain --help lists the arguments"),
        (("--one", "0"), "pid 0 is out of range"),
        (("--one", "1", "--all"), "--one and --all exclude each other"),
        (("--one", "x"), "--one needs a pid, not 'x'"),
        (("--show",), "--show needs group names"),
    ],
)
def test_bad_usage(args: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", *args]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("taskdiag: ")
    assert message in err
    assert err.count("\n") == 1


def test_without_btf_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def live() -> None:
        raise EngineUnavailable(2, "this kernel does not describe its types")

    monkeypatch.setattr(facts_module.Facts, "live", live)
    assert cli.main(["explain"]) == 1
    assert capfd.readouterr() == ("", "taskdiag: this kernel does not describe its types\n")


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--help"]) == 0
    out, _ = capfd.readouterr()
    assert out.startswith("usage: taskdiag explain ")
    for show in Show:
        assert str(show.name).lower() in out
