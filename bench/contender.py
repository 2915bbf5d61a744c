"""The programs that are compared: each does its job once per call, and reports the time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

__all__ = (
    "ENVIRONMENT", "Command", "Contender", "Iterator", "Reader", "RunError", "Served", "Taken",
    "Worker", "note",
)  # fmt: skip

#: The whole environment of every command, so that measurements are alike on all hosts.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": os.environ.get("HOME", "/root"),
    "COLUMNS": "200",
}


class RunError(Exception):
    """A contender failed; the message says why."""


class Taken(NamedTuple):
    """What a run took, in seconds of real time and of CPU time."""

    wall: float
    cpu: float


class Contender(Protocol):
    """A program that does a job."""

    @property
    def label(self) -> str:
        """Its name in the table."""

    def run(self) -> Taken:
        """Do the job once, and return what it took.  Raises RunError."""


class Command:
    """A whole command, measured from start to exit, with its output discarded."""

    def __init__(self, label: str, argv: Sequence[str | Path]) -> None:
        self.label = label
        self.argv = [str(word) for word in argv]

    def run(self) -> Taken:
        """Run it once."""
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)]
        try:
            start = time.perf_counter()
            pid = os.posix_spawn(self.argv[0], self.argv, ENVIRONMENT, file_actions=actions)
            try:
                _, status, usage = os.wait4(pid, 0)
            except BaseException:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                raise
            seconds = time.perf_counter() - start
        finally:
            os.close(null)
        if status:
            raise RunError(f"{' '.join(self.argv)}: status {status}")
        return Taken(seconds, usage.ru_utime + usage.ru_stime)

    def output(self) -> str:
        """What it prints, as text."""
        return self._output(self.argv).decode("utf-8", "replace")

    def _output(self, argv: Sequence[str]) -> bytes:
        done = subprocess.run(
            argv, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise RunError(f"{' '.join(argv)}: {said or f'status {done.returncode}'}")
        return done.stdout


class Service:
    """A service that runs until `close`.  Raises RunError if it does not start."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        said = [self._process.stderr.readline()]
        while said[-1] and b"listening" not in said[-1]:
            said.append(self._process.stderr.readline())
        if not said[-1]:
            self.close()
            raise RunError(f"the service did not start: {b''.join(said).decode().strip()}")

    def close(self) -> None:
        """Stop the service."""
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


class Asking(Command):
    """A command run by a user who has to ask the service, which is started for it.

    The user is nobody with CAP_SYS_PTRACE, who cannot load programs but sees as many tasks
    as root.
    """

    def __init__(self, label: str, taskdiag: str | Path, *args: str) -> None:
        self._where = tempfile.TemporaryDirectory(prefix="bench-")
        os.chmod(self._where.name, 0o755)
        path = f"{self._where.name}/socket"
        self._service = Service([str(taskdiag), "serve", "--socket", path], ENVIRONMENT)
        user = ("--reuid=65534", "--regid=65534", "--clear-groups")
        # CAP_DAC_READ_SEARCH is for the command itself, in a private directory of root's.
        held = "-all,+sys_ptrace,+dac_read_search"
        caps = (f"--inh-caps={held}", f"--ambient-caps={held}")
        super().__init__(
            label,
            ["/usr/bin/env", f"TASKDIAG_SOCKET={path}", "setpriv", *user, *caps, taskdiag,
             "--engine", "service", *args],
        )  # fmt: skip

    def close(self) -> None:
        """Stop the service."""
        self._service.close()
        self._where.cleanup()


class Reader(Command):
    """A C program that measures itself and prints the times, in nanoseconds."""

    def run(self) -> Taken:
        """Run it once.  Its start and exit are not counted."""
        return _taken(self.output())

    def check_output(self) -> bytes:
        """What it has read, as it prints it if it is given an argument."""
        return self._output([*self.argv, "check"])


class Served(Reader):
    """A C program that asks a service, which runs as long as this does.

    ``program`` is `bench/c/ask.c` and ``show`` the show flags.  It asks by the file if there
    is a ``binding``, the module for FUSE that the clean installation lacks, else by the
    socket.  Raises RunError if the service does not start.
    """

    def __init__(
        self, label: str, taskdiag: str | Path, program: str | Path, show: int, binding: str = ""
    ) -> None:
        self._where = tempfile.TemporaryDirectory(prefix="bench-")
        socket, file = f"{self._where.name}/socket", f"{self._where.name}/mount/task_diag"
        argv = [str(taskdiag), "serve", "--socket", socket]
        environment = dict(ENVIRONMENT)
        if binding:
            argv += ["--file", file]
            shutil.copy(binding, self._where.name)
            environment["PYTHONPATH"] = self._where.name
        self._service = Service(argv, environment)
        way = ["file", file] if binding else ["socket", socket]
        super().__init__(label, [program, *way, str(show)])

    def save(self, path: Path) -> None:
        """Write its answer to a file, for a check."""
        with path.open("wb") as file:
            done = subprocess.run(
                [*self.argv, "check"], stdin=subprocess.DEVNULL, stdout=file, check=False
            )
        if done.returncode:
            raise RunError(f"{' '.join(self.argv)}: status {done.returncode}")

    def close(self) -> None:
        """End the service."""
        self._service.close()
        self._where.cleanup()


class _Process:
    """A process that answers each line with a line, and runs as long as the benchmark."""

    def __init__(self, argv: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )  # fmt: skip

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunError("a helper process died") from None
        answer = self._process.stdout.readline().decode()
        if not answer:
            raise RunError("a helper process died")
        return answer

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def close(self) -> None:
        self._process.communicate()


class Worker:
    """A Python interpreter that runs jobs of `bench.worker` in the clean installation.

    ``extra`` is a directory that contains psutil, appended to the module path.
    """

    def __init__(self, python: Path, extra: str = "") -> None:
        script = Path(__file__).with_name("worker.py")
        self._process = _Process([python, "-I", script, *([extra] if extra else [])])

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do a job.  Raises RunError if it fails."""
        answer: dict[str, Any] = json.loads(self._process.ask(json.dumps({"do": do, **arguments})))
        if "error" in answer:
            raise RunError(f"{do} {arguments}: {answer['error']}")
        return answer

    def contender(self, label: str, do: str, **arguments: Any) -> _Asked:
        """A job as a contender."""
        return _Asked(self, label, do, arguments)

    def close(self) -> None:
        """Stop it."""
        self._process.close()


class _Asked:
    def __init__(self, worker: Worker, label: str, do: str, arguments: Mapping[str, Any]) -> None:
        self.label = label
        self._worker = worker
        self._do = do
        self._arguments = arguments

    def run(self) -> Taken:
        """Ask the worker, which measures the time itself."""
        answer = self._worker.ask(self._do, **self._arguments)
        return Taken(answer["seconds"], answer["cpu"])

    def save(self, path: Path) -> None:
        """Write its answer to a file, for a check."""
        self._worker.ask(self._do, **self._arguments, path=str(path))


class Iterator:
    """A C BPF iterator, loaded once."""

    def __init__(self, label: str, loader: Path, code: Path, program: str) -> None:
        self.label = label
        self._process = _Process([loader, code, program])
        if self._process.read().strip() != "ready":
            self.close()
            raise RunError("libbpf could not load the C iterator")

    def run(self) -> Taken:
        """Attach, read to the end and detach.  The process measures the time itself."""
        return _taken(self._process.ask(""))

    def save(self, path: Path) -> None:
        """Write its answer to a file, for a check."""
        self._process.ask(str(path))

    def close(self) -> None:
        """Stop it."""
        self._process.close()


def _taken(line: str) -> Taken:
    """Parse the line that the C programs print: real time and CPU time in nanoseconds."""
    wall, cpu = line.split()[:2]
    return Taken(int(wall) / 1e9, int(cpu) / 1e9)


def note(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
