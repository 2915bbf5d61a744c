"""Hosts that withhold something: each gives an answer or one clear sentence, never a traceback.

Every test runs the command line as a user would, in a process that lacks a privilege, a
mount or the file that the kernel engine needs.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from conftest import interpreters, missing, need, open_engine, public_source
from taskdiag import cli

NOBODY = 65534

#: Commands in each of which another part of the package answers.
COMMANDS = {
    "dump": ("dump", "--show", "base,cred,stat,cmdline"),
    "dump-vma": ("dump", "--show", "statm,vma", "--one", "{pid}"),
    "ps": ("ps", "-e", "-o", "pid,comm"),
    "ps-aux": ("ps", "aux"),
    "doctor": ("doctor",),
}
ENGINES = ("auto", "kernel", "procfs")

#: Runs a command with an empty directory mounted over another one, for itself alone.
HIDE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
#: A container as an unprivileged user may make one: its own pids, users and mounts.
CONTAINER = (
    *("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"),
    *("--mount", "--mount-proc"),
)
#: A container as root makes one that is trusted: its root is the host's.
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")
UNPRIVILEGED = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
)
ONLY_BPF = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=-all,+bpf,+perfmon", "--ambient-caps=-all,+bpf,+perfmon"),
    *("--bounding-set=-all,+bpf,+perfmon", "--no-new-privs"),
)
ENVIRONMENTS = {
    "plain": (),
    "container": CONTAINER,
    "pid-namespace": PID_NAMESPACE,
    "unprivileged": UNPRIVILEGED,
    "unprivileged-container": (*UNPRIVILEGED, *CONTAINER),
    "only-bpf": ONLY_BPF,
    "without-btf": (*HIDE, "/sys/kernel/btf"),
    "without-proc": (*HIDE, "/proc"),
}

pytestmark = pytest.mark.root


@functools.cache
def interpreter(prefix: tuple[str, ...]) -> str:
    """A Python that can be run with that prefix, or skip.

    The one that runs the tests may lie in a home directory that others cannot enter.
    """
    tried = ""
    for python in interpreters():
        probe = "import sys, taskdiag; assert sys.version_info >= (3, 10)"
        result = execute((*prefix, python, "-c", probe))
        if result.returncode == 0:
            return python
        tried = tried or result.stderr.strip()
    missing(f"this environment cannot be made here: {tried}")
    raise AssertionError


def execute(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run a command from the root directory, with nothing of ours in its environment."""
    if command[0] in ("setpriv", "unshare"):
        need("mount", "setpriv", "unshare")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": public_source(),
        "TASKDIAG_SOCKET": os.environ["TASKDIAG_SOCKET"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    return subprocess.run(
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def taskdiag(
    environment: str, *arguments: str, engine: str = "auto"
) -> subprocess.CompletedProcess[str]:
    """``taskdiag --engine ENGINE ARGUMENTS`` in that environment."""
    prefix = ENVIRONMENTS[environment]
    command = (interpreter(prefix), "-m", "taskdiag", "--engine", engine, *arguments)
    return execute((*prefix, *command))


def refused(result: subprocess.CompletedProcess[str]) -> bool:
    """Whether it was refused: with one sentence, nothing else, and the right status."""
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 1, 2), result.stderr
    if result.returncode == 0:
        assert result.stdout.strip()
        return False
    assert result.stdout == "", "half an answer"
    assert result.stderr.startswith("taskdiag: "), result.stderr
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    return True


def pids(result: subprocess.CompletedProcess[str]) -> set[int]:
    """The processes in the answer of ``taskdiag dump``, which must not be refused."""
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return {json.loads(line)["pid"] for line in result.stdout.splitlines()}


@pytest.fixture
def kernel_engine() -> object:
    """For tests of what the kernel engine must do where it can."""
    return open_engine("kernel")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of user nobody that stands still."""
    process = subprocess.Popen(
        ["sleep", "600"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
    )
    yield process
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("command", "engine"),
    [("dump", "kernel"), ("dump", "procfs"), *((command, "auto") for command in COMMANDS)],
)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_answer_or_one_sentence(environment: str, command: str, engine: str) -> None:
    if COMMANDS[command][0] not in cli.COMMANDS:
        pytest.skip(f"there is no command {command} yet")
    # In a container this process does not exist, but the first one does.
    inside = environment.endswith(("container", "namespace"))
    pid = "1" if inside else str(os.getpid())
    arguments = [word.format(pid=pid) for word in COMMANDS[command]]
    result = taskdiag(environment, *arguments, engine=engine)
    refusal = refused(result)
    if environment == "plain" and engine != "kernel":
        assert not refusal, result.stderr


@pytest.mark.parametrize("environment", sorted(set(ENVIRONMENTS) - {"without-proc"}))
def test_without_a_choice_there_is_always_an_answer(environment: str) -> None:
    assert pids(taskdiag(environment, "dump", "--show", "base"))


def test_the_kernel_engine_needs_no_proc(kernel_engine: object) -> None:
    for engine in ("kernel", "auto"):
        found = pids(taskdiag("without-proc", "dump", "--show", "base", engine=engine))
        assert {os.getpid(), os.getppid()} <= found


def test_procfs_without_proc_says_so() -> None:
    result = taskdiag("without-proc", "dump", "--show", "base", engine="procfs")
    assert refused(result)
    assert "/proc" in result.stderr


def test_the_kernel_engine_without_btf_says_so() -> None:
    result = taskdiag("without-btf", "dump", "--show", "base", engine="kernel")
    assert refused(result)
    assert "BTF" in result.stderr


def test_the_kernel_engine_without_capabilities_says_so() -> None:
    result = taskdiag("unprivileged", "dump", "--show", "base", engine="kernel")
    assert refused(result)
    assert "CAP_BPF" in result.stderr or "root" in result.stderr


def test_bpf_capabilities_alone_are_enough(
    kernel_engine: object, sleeper: subprocess.Popen[bytes]
) -> None:
    found = pids(taskdiag("only-bpf", "dump", "--show", "base,stat", engine="kernel"))
    assert sleeper.pid in found
    # Not CAP_SYS_PTRACE, so what is not its own stays hidden, as with hidepid=2.
    assert 1 not in found
    assert os.getpid() not in found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_user_sees_its_own_processes_only(engine: str, sleeper: subprocess.Popen[bytes]) -> None:
    environment = "unprivileged"
    if engine == "kernel":
        open_engine("kernel")
        environment = "only-bpf"
    result = taskdiag(environment, "dump", "--show", "base", engine=engine)
    found = pids(result)
    assert sleeper.pid in found
    assert not {1, os.getpid()} & found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("environment", ["container", "pid-namespace", "unprivileged-container"])
def test_a_container_sees_its_own_tasks_under_its_own_numbers(
    environment: str, engine: str, sleeper: subprocess.Popen[bytes]
) -> None:
    if engine == "kernel":
        open_engine("kernel")
    result = taskdiag(environment, "dump", "--show", "base,cred", engine=engine)
    if engine == "kernel" and environment != "pid-namespace":
        # Capabilities in a user namespace do not count for bpf(2).
        assert refused(result)
        assert "CAP_BPF" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    tasks = [json.loads(line) for line in result.stdout.splitlines()]
    # Nothing runs in there but the command itself, as the namespace's first process.
    assert [task["pid"] for task in tasks] == [1]
    assert tasks[0]["base"]["ppid"] == 0
    assert tasks[0]["cred"]["uid"] == 0
