"""taskdiag doctor: every verdict, on hosts made to withhold what it looks at."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import missing, open_engine
from serving import running
from taskdiag import capability, cli, doctor
from taskdiag.abi import Show
from taskdiag.capability import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE
from taskdiag.doctor import Finding, engine_of, examine
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel import bpf
from taskdiag.kernel.facts import Facts
from test_environments import UNPRIVILEGED, execute, interpreter, taskdiag

STATUSES = ("ok", "limited", "missing", "info")
FULL = 1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_SYS_PTRACE


def findings_of(environment: str) -> dict[str, list[Finding]]:
    """What doctor --json says in one of test_environments' environments, by check."""
    result = taskdiag(environment, "doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found: dict[str, list[Finding]] = {}
    for item in json.loads(result.stdout)["findings"]:
        found.setdefault(item["check"], []).append(Finding(**item))
    return found


def one(found: dict[str, list[Finding]], check: str) -> Finding:
    (finding,) = found[check]
    return finding


# --- Here ---------------------------------------------------------------------------------


def test_every_line_is_one_line_with_a_known_verdict() -> None:
    found = list(examine())
    for finding in found:
        assert finding.status in STATUSES
        assert finding.text
        assert finding.text.isprintable()
        assert finding.remedy.isprintable()
    checks = [finding.check for finding in found]
    assert checks[:2] == ["kernel", "btf"]
    assert checks[-3:] == ["engine kernel", "engine service", "engine procfs"]


def test_the_engine_is_the_first_that_works() -> None:
    found = [
        Finding("missing", "engine kernel", "no"),
        Finding("ok", "engine service", "works", answers="service"),
        Finding("ok", "engine procfs", "works"),
    ]
    assert engine_of(found) == "service"
    assert engine_of(found[:1]) is None


def test_what_the_kernel_engine_can_do_it_is_said_to_do() -> None:
    open_engine("kernel")
    found = {finding.check: finding for finding in examine()}
    assert found["engine kernel"].status == "ok"
    assert found["engine kernel"].text == "works, and is what auto chooses"
    assert found["engine procfs"].text == "works"
    assert found["programs"].status == "ok"
    assert found["btf"].text.startswith("/sys/kernel/btf/vmlinux, ")
    from taskdiag.kernel import served_by

    for name, who in served_by().items():
        text = found[f"group {name.lower()}"].text
        assert text.startswith(who), (name, text)


def test_nothing_is_left_open() -> None:
    list(examine())
    before = sorted(os.listdir("/proc/self/fd"))
    list(examine())
    # The engines of choose() keep their programs.
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


# --- Elsewhere ------------------------------------------------------------------------------


@pytest.mark.root
def test_as_nobody() -> None:
    found = findings_of("unprivileged")
    verdicts = {finding.text.partition(":")[0]: finding for finding in found["capability"]}
    for name in ("CAP_BPF", "CAP_PERFMON"):
        assert verdicts[name].status == "missing"
        assert "root" in verdicts[name].remedy
    assert verdicts["CAP_SYS_PTRACE"].status == "info"
    assert one(found, "programs").status == "missing"
    assert "EPERM" in one(found, "programs").text
    assert one(found, "engine kernel").status == "missing"
    assert one(found, "engine procfs").status == "ok"
    assert "process 1" not in found
    for name in ("base", "cred"):
        assert one(found, f"group {name}").text.startswith("procfs; bpf could serve it")


@pytest.mark.root
def test_with_bpf_capabilities_only() -> None:
    open_engine("kernel")
    found = findings_of("only-bpf")
    verdicts = [(finding.status, finding.text) for finding in found["capability"]]
    assert verdicts[:2] == [("ok", "CAP_BPF: present"), ("ok", "CAP_PERFMON: present")]
    assert verdicts[2][0] == "info"
    assert one(found, "programs").status == "ok"
    assert one(found, "engine kernel").text == "works, and is what auto chooses"


@pytest.mark.root
def test_without_btf() -> None:
    found = findings_of("without-btf")
    assert one(found, "btf").status == "missing"
    assert "CONFIG_DEBUG_INFO_BTF" in one(found, "btf").remedy
    assert one(found, "programs").status == "missing"
    assert not any(check.startswith("group ") for check in found)
    assert one(found, "engine kernel").status == "missing"
    assert one(found, "engine procfs").status == "ok"


@pytest.mark.root
def test_without_proc() -> None:
    open_engine("kernel")
    found = findings_of("without-proc")
    assert one(found, "proc").status == "missing"
    assert one(found, "proc").remedy == "mount -t proc proc /proc"
    assert one(found, "engine procfs").status == "missing"
    assert one(found, "engine kernel").status == "ok"


@pytest.mark.root
def test_in_a_container() -> None:
    found = findings_of("container")
    assert one(found, "user namespace").status == "limited"
    assert "with their pids in it" in one(found, "pid namespace").text
    assert all(finding.status != "ok" for finding in found["capability"][:2])
    assert one(found, "programs").status == "missing"
    assert "user namespace" in one(found, "programs").text
    assert one(found, "engine procfs").status == "ok"


@pytest.mark.root
def test_in_a_pid_namespace_of_a_privileged_user() -> None:
    open_engine("kernel")
    found = findings_of("pid-namespace")
    assert "user namespace" not in found
    assert one(found, "engine kernel").status == "ok"
    assert one(found, "proc").status == "ok"


def asked(service: str, *args: str) -> dict[str, Any]:
    """What doctor --json says to a user, with a service at that path."""
    prefix = (*UNPRIVILEGED, "env", f"TASKDIAG_SOCKET={service}")
    result = execute((*prefix, interpreter(prefix), "-m", "taskdiag", *args, "doctor", "--json"))
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if found["engine"] else 1)
    return found


@pytest.mark.root
def test_a_user_whose_service_runs_is_not_told_to_get_one() -> None:
    with running() as service:
        found = asked(service.path)
        assert found["engine"] == "service"
        texts = {item["check"]: item["text"] for item in found["findings"]}
        assert texts["engine service"] == "works, and is what auto chooses"
        assert texts["engine procfs"] == "works"
        assert texts["group base"] == "bpf, through the service"
        for item in found["findings"]:
            assert "serve" not in item["remedy"], item
            assert item["check"] == "engine kernel" or item["status"] != "missing", item
        capabilities = [item for item in found["findings"] if item["check"] == "capability"]
        for item in capabilities[:2]:
            assert item["status"] == "info"
            assert item["text"].endswith("the service answers instead")
        # Once it has been asked for, what does not work is missing all the same.
        assert asked(service.path, "--engine", "kernel")["engine"] is None
        assert asked(service.path, "--engine", "procfs")["engine"] == "procfs"
    gone = asked(service.path)
    assert gone["engine"] == "procfs"
    remedies = [item["remedy"] for item in gone["findings"] if item["check"] == "engine service"]
    assert remedies == ["have root start taskdiag serve"]


# --- Verdicts that no environment here can bring about ------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the files that the checks look at."""
    monkeypatch.setattr(doctor, "_PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(doctor, "_SYSCTL", str(tmp_path / "proc/sys"))
    monkeypatch.setattr(doctor, "_SECURITY", str(tmp_path / "security"))
    for folder in ("proc/self", "proc/thread-self", "proc/sys/net/core", "security"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("none [integrity] confidentiality\n", "ok", "integrity: programs may read"),
        ("[none] integrity confidentiality\n", "ok", "none: programs may read"),
        ("none integrity [confidentiality]\n", "limited", "kernel memory"),
        (None, "info", "not there"),
    ],
)
def test_lockdown(root: Path, text: str | None, status: str, said: str) -> None:
    if text is not None:
        (root / "security/lockdown").write_text(text)
    (found,) = doctor.security()
    assert (found.check, found.status) == ("lockdown", status)
    assert said in found.text


def test_security_modules(root: Path) -> None:
    (root / "security/lsm").write_text("lockdown,capability,landlock,apparmor,bpf")
    found = list(doctor.security())[-1]
    assert found.check == "lsm"
    assert found.text.startswith("lockdown,capability,landlock,apparmor,bpf; apparmor may refuse")
    (root / "security/lsm").write_text("capability,bpf")
    assert list(doctor.security())[-1].text == "capability,bpf"


def test_sysctls(root: Path) -> None:
    assert list(doctor.sysctls()) == []
    (root / "proc/sys/net/core/bpf_jit_enable").write_text("0\n")
    (root / "proc/sys/kernel/unprivileged_bpf_disabled").write_text("2\n")
    unprivileged, jit = doctor.sysctls()
    assert unprivileged.text.startswith("kernel.unprivileged_bpf_disabled = 2;")
    assert (jit.status, jit.remedy) == ("limited", "sysctl net.core.bpf_jit_enable=1")
    (root / "proc/sys/net/core/bpf_jit_enable").write_text("1\n")
    assert list(doctor.sysctls())[-1].status == "ok"


def mount(root: Path, options: str) -> None:
    (root / "proc/self/mountinfo").write_text(
        "21 26 0:5 / /sys rw - sysfs sysfs rw\n"
        f"22 26 0:20 / {root}/proc rw,nosuid shared:5 - proc proc rw,{options}\n"
        "23 26 0:21 / /elsewhere rw - proc proc rw,hidepid=2\n"
    )


@pytest.mark.parametrize(
    ("options", "caps", "status", "said"),
    [
        ("gid=4", 0, "ok", "is mounted and shows"),
        ("hidepid=0", 0, "ok", "is mounted and shows"),
        ("gid=4,hidepid=2", 0, "info", "hidepid=2: it shows only tasks of this user"),
        ("hidepid=invisible", 0, "info", "hidepid=invisible: it shows"),
        ("hidepid=2", FULL, "ok", "CAP_SYS_PTRACE sees all"),
    ],
)
def test_hidepid(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: str, caps: int, status: str, said: str
) -> None:
    monkeypatch.setattr(doctor.os, "readlink", lambda path: str(os.getpid()))
    monkeypatch.setattr(capability, "effective", lambda: caps)
    mount(root, options)
    (found,) = doctor.proc()
    assert found.status == status
    assert said in found.text


def test_a_foreign_or_absent_proc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = doctor.proc()
    assert found.status == "missing"
    (root / "proc/self").rmdir()
    (root / "proc/self").symlink_to("1234567890")
    (found,) = doctor.proc()
    assert (found.status, found.text) == (
        "limited",
        "/proc shows another pid namespace than that of this process",
    )


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        (FULL, ["ok", "ok", "ok"]),
        (1 << CAP_BPF, ["ok", "missing", "info"]),
        (1 << CAP_SYS_ADMIN, ["ok", "ok", "info"]),
        (0, ["missing", "missing", "info"]),
        (None, ["info"]),
    ],
)
def test_capabilities(
    monkeypatch: pytest.MonkeyPatch, caps: int | None, expected: list[str]
) -> None:
    monkeypatch.setattr(capability, "effective", lambda: caps)
    monkeypatch.setattr(doctor, "_namespace", lambda kind: doctor._INIT_USER_NS)
    assert [found.status for found in doctor.capabilities()] == expected


def test_capabilities_in_a_user_namespace_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "effective", lambda: FULL)
    monkeypatch.setattr(doctor, "_namespace", lambda kind: 4026532000)
    found = list(doctor.capabilities())
    assert found[0].text == "CAP_BPF: present, in this user namespace only"
    assert found[0].status == found[1].status == "info"


def test_seccomp(root: Path) -> None:
    status = root / "proc/thread-self/status"
    status.write_text("Name:\tx\nSeccomp:\t0\n")
    assert list(doctor.seccomp()) == []
    status.write_text("Name:\tx\nSeccomp:\t2\n")
    (found,) = doctor.seccomp()
    assert "may refuse bpf(2)" in found.text


@pytest.mark.parametrize(
    ("number", "namespace", "may", "said"),
    [
        (errno.EPERM, None, False, "CAP_BPF and CAP_PERFMON are missing"),
        (errno.EPERM, None, True, "seccomp or a security module"),
        (errno.EPERM, 4026532000, True, "in every user namespace but the first"),
        (errno.ENOSYS, None, True, "no bpf(2), or seccomp forbids it"),
        (errno.EINVAL, None, True, "does not know task iterators"),
        (524, None, True, "kernel functions need the JIT"),
        (errno.ENOMEM, None, True, "Cannot allocate memory"),
    ],
)
def test_why_a_program_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, number: int, namespace: int | None, may: bool, said: str
) -> None:
    def refuse(*args: object, **options: object) -> int:
        raise bpf.BpfError(number, os.strerror(number))

    monkeypatch.setattr(bpf, "load_program", refuse)
    monkeypatch.setattr(doctor, "_namespace", lambda kind: namespace)
    monkeypatch.setattr(capability, "may_load_bpf", lambda: may)

    class Anything:
        def type_id(self, kind: str, name: str) -> int:
            return 1

    found = doctor.program(Anything())  # type: ignore[arg-type]
    assert found.status == "missing"
    assert found.text.startswith("the kernel refused to load a program: ")
    assert said in found.text


def test_which_step_failed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine("kernel")

    def refuse(*args: object) -> int:
        raise bpf.BpfError(errno.EINVAL, "Invalid argument")

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(bpf, "create_iterator", refuse)
    assert "refused to make an iterator: EINVAL" in doctor.program(Facts.live()).text
    monkeypatch.setattr(bpf, "create_link", refuse)
    assert "refused to attach one: EINVAL" in doctor.program(Facts.live()).text
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_group_that_the_verifier_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine("kernel")
    from taskdiag.kernel import compile
    from taskdiag.kernel.asm import R0, R10
    from taskdiag.kernel.emit import Emitter

    def nice(c: Emitter) -> None:
        c.load(R0, R10, 8)

    monkeypatch.setitem(compile.FUNCTIONS, "nice(task)", nice)
    found = {finding.check: finding for finding in doctor.groups(Facts.live(), True)}
    sched = found["group sched"]
    assert sched.status == "limited"
    assert sched.text.startswith("not by bpf: the kernel's verifier rejected sched.nice: ")
    assert "invalid read from stack" in sched.text
    assert found["group base"].status == "ok"


def test_a_process_1_that_iterators_hide() -> None:
    open_engine("kernel")
    if not doctor._has(CAP_SYS_PTRACE):
        missing("this test needs CAP_SYS_PTRACE")
    (found,) = doctor.first_process(Facts.live())
    from taskdiag.kernel import KernelEngine

    engine = KernelEngine()
    fd = engine.open(doctor.Request(Show.BASE, doctor.Dump.ONE, 1))
    assert fd is not None
    shown = os.read(fd, 4096)
    os.close(fd)
    engine.close()
    assert found.status == ("ok" if shown else "info")


@pytest.mark.parametrize(
    ("shown", "status", "said"),
    [
        (("kernel", "service"), "info", "; the engines show it all the same"),
        (("kernel",), "limited", "; service cannot show it"),
        ((), "limited", "; kernel and service cannot show it"),
    ],
)
def test_who_shows_a_process_1_that_iterators_hide(
    monkeypatch: pytest.MonkeyPatch, shown: tuple[str, ...], status: str, said: str
) -> None:
    open_engine("kernel")
    if not doctor._has(CAP_SYS_PTRACE):
        missing("this test needs CAP_SYS_PTRACE")
    monkeypatch.setattr(doctor.os, "read", lambda fd, size: b"")
    monkeypatch.setattr(doctor, "_shows_first", lambda name: name in shown)
    (found,) = doctor.first_process(Facts.live())
    assert (found.check, found.status) == ("process 1", status)
    assert found.text == f"this host hides it from BPF iterators{said}"


@pytest.mark.parametrize("by", ["--engine", "TASKDIAG_ENGINE"])
def test_the_engine_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    def found(name: str) -> dict[str, Finding]:
        if by == "--engine":
            monkeypatch.setenv("TASKDIAG_ENGINE", "nosuch")
            return {finding.check: finding for finding in doctor.engines(name)}
        monkeypatch.setenv("TASKDIAG_ENGINE", name)
        return {finding.check: finding for finding in doctor.engines()}

    monkeypatch.setenv("TASKDIAG_SOCKET", "/nosuch/socket")
    works = found("procfs")
    assert works["engine procfs"].text == f"works, and is what {by} asks for"
    assert engine_of(list(works.values())) == "procfs"
    fails = found("service")
    assert fails["engine service"].status == "missing"
    said = f"{by} asks for it, but it does not work: no service at /nosuch/socket"
    assert fails["engine service"].text.startswith(said)
    assert engine_of(list(fails.values())) is None


def test_an_engine_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASKDIAG_ENGINE", "kernl")
    status, out, _ = run([], capfd)
    assert status == 1
    line = (
        r"^missing  engine          TASKDIAG_ENGINE: unknown engine 'kernl': did you mean 'kernel'"
    )
    assert re.search(line, out, re.M)


def test_no_engine_at_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def choose(name: str) -> object:
        raise EngineUnavailable(errno.ENOENT, f"no {name}: see taskdiag doctor")

    monkeypatch.setattr("taskdiag.engine.choose", choose)
    assert cli.main(["doctor"]) == 1
    out, err = capfd.readouterr()
    assert err == ""
    # The doctor does not advise to run the doctor.
    assert re.search(r"^missing  engine procfs   no procfs$", out, re.M)


# --- The command ----------------------------------------------------------------------------


def run(args: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["doctor", *args])
    return (status, *capfd.readouterr())


def test_lines(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run([], capfd)
    assert (status, err) == (0, "")
    for line in out.splitlines():
        assert re.fullmatch(rf"({'|'.join(STATUSES)}) +\S.* +\S.*", line), line


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["--json"], capfd)
    assert status == 0
    answer = json.loads(out)
    assert answer["engine"] in ("kernel", "service", "procfs")
    assert {frozenset(item) for item in answer["findings"]} == {
        frozenset({"status", "check", "text", "remedy"})
    }


def test_what_was_found_cannot_harm_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from taskdiag.cli import doctor as command

    hostile: Callable[[object], list[Finding]] = lambda engine: [  # noqa: E731
        Finding("ok", "engine procfs", "a\x1b[31m\udcffb", "\x07", answers="procfs")
    ]
    monkeypatch.setattr(command, "examine", hostile)
    status, out, _ = run([], capfd)
    assert status == 0
    # After a byte that is not text, every byte is a character, and controls are shown as dots.
    assert out == "ok       engine procfs   a?[31m?b -> .\n"


def test_unknown_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(["--xml"], capfd)
    assert (status, out) == (2, "")
    assert err == "taskdiag: unknown argument '--xml': taskdiag doctor --help lists the arguments\n"


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["--help"], capfd)
    assert status == 0
    assert out.startswith("usage: taskdiag doctor [--json]\n")
    for word in STATUSES:
        assert f"  {word} " in out
