"""Messages of the kernel completed from /proc: of the right task, for the right eyes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from struct import Struct

import pytest

import taskdiag
from conftest import missing, need
from population import Child, arguments, child, end, letter, plain_user, until
from taskdiag import Dump, Show
from taskdiag.errors import EngineUnavailable, NoSuchProcess
from taskdiag.kernel import KernelEngine
from taskdiag.kernel import completion as module
from taskdiag.kernel.identity_reader import Reader
from taskdiag.procfs import TaskReader
from taskdiag.task import Task

pytestmark = pytest.mark.root

MAPPED = int(Show.BASE | Show.CRED | Show.VMA | Show.VMA_STAT)
ARGUMENTS = int(Show.BASE | Show.CRED | Show.CMDLINE)

#: struct clone_args (include/uapi/linux/sched.h), and its system call.
CLONE_ARGS = Struct("=11Q")
SYS_clone3 = 435
CLONE_PARENT = 0x8000


def take_number(pid: int, uid: int = 0) -> None:
    """A child of that number that is ``sleep 60``, called taker."""
    helper = os.fork()
    if helper == 0:
        # A process with a single thread, or what it clones might wait for the others.
        try:
            os._exit(clone(pid, uid) != pid)
        finally:
            os._exit(1)
    if os.waitpid(helper, 0)[1]:
        missing("clone3(2) gives no number on demand")
    until(lambda: comm(pid) == b"sleep\n" and letter(pid) == "S", "the child sleeps")


def clone(pid: int, uid: int) -> int:
    """Clone with that number, as a child of our parent; the clone does not come back."""
    tids = (ctypes.c_int * 1)(pid)
    args = ctypes.create_string_buffer(
        CLONE_ARGS.pack(CLONE_PARENT, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    )
    # Keeps the interpreter's lock, which the child needs as well.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall
    found: int = syscall(SYS_clone3, args, ctypes.c_size_t(CLONE_ARGS.size))
    if found:
        return found
    # No PR_SET_PDEATHSIG: its parent is a thread, which may end before the test does.
    try:
        if uid:
            ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            os.execvp("setpriv", ["setpriv", *ids, "sleep", "60"])
        os.execv("/bin/sleep", ["taker", "60"])
    finally:
        os._exit(1)


def comm(pid: int) -> bytes:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return file.read()


@contextlib.contextmanager
def engine_of(uid: int | None) -> Iterator[KernelEngine]:
    """The engine for this process, or as a service has it for a user."""
    try:
        engine = KernelEngine()
        if uid is None:
            yield engine
            return
        home = engine.own.home()
        reader = Reader(engine.facts, *home)
    except EngineUnavailable as error:
        missing(f"the kernel engine is not available: {error}")
        raise
    try:
        with child(plain_user(uid, uid)) as it:
            viewer = reader.of_task(it.pid).viewer(home)
        yield KernelEngine(viewer=viewer, facts=engine.facts)
    finally:
        reader.close()


def passed_on(monkeypatch: pytest.MonkeyPatch, pid: int, uid: int = 0) -> list[int]:
    """Let the number pass to another process right before /proc is asked about it."""
    done: list[int] = []
    real = TaskReader.read

    def read(
        self: TaskReader, tgid: int, tid: int, same: Callable[[int], bool] | None = None
    ) -> object:
        if tid == pid and not done:
            done.append(pid)
            end(pid)
            take_number(pid, uid)
        return real(self, tgid, tid, same)

    monkeypatch.setattr(TaskReader, "read", read)
    return done


def about(pid: int, tasks: list[Task]) -> Task | None:
    found = [task for task in tasks if task.pid == pid]
    assert len(found) <= 1
    return found[0] if found else None


@contextlib.contextmanager
def first(show: int, uid: int) -> Iterator[Child]:
    """A process that is to lose its number: as a user, or with a long command line."""
    if show == ARGUMENTS:
        with arguments("x" * 100_000) as it:
            yield it
    else:
        with child(plain_user(uid, uid) if uid else lambda: None) as it:
            yield it


@pytest.mark.parametrize("strategy", [Dump.ALL, Dump.ONE, Dump.THREAD])
@pytest.mark.parametrize("show", [MAPPED, ARGUMENTS])
def test_a_number_that_passes_on(
    monkeypatch: pytest.MonkeyPatch, strategy: Dump, show: int
) -> None:
    with engine_of(None) as engine, first(show, 0) as it:
        list(taskdiag.dump(show, pid=os.getpid(), engine=engine))
        done = passed_on(monkeypatch, it.pid)
        task = about(it.pid, list(taskdiag.dump(show, strategy, it.pid, engine=engine)))
        assert done
        assert task is not None
        assert task.base is not None
        assert task.base.comm == "sleep"
        if show == ARGUMENTS:
            assert task.cmdline == ["taker", "60"]
        else:
            assert task.vmas
            assert os.path.basename(task.vmas[0].name or "") in ("sleep", "coreutils")


@pytest.mark.parametrize("many", [1, module._MANY])
@pytest.mark.parametrize("heir", [0, 1001])
def test_a_number_that_passes_on_before_a_user(
    monkeypatch: pytest.MonkeyPatch, heir: int, many: int
) -> None:
    """The task that has the number then is shown as a whole if the viewer may see it."""
    need("setpriv")
    with engine_of(1001) as engine, contextlib.ExitStack() as stack:
        people = [stack.enter_context(first(MAPPED, 1001)) for _ in range(many)]
        pid = people[many // 2].pid
        done = passed_on(monkeypatch, pid, heir)
        tasks = list(taskdiag.dump(MAPPED, engine=engine))
        assert done
        assert {it.pid for it in people} - {pid} <= {task.pid for task in tasks if task.vmas}
        task = about(pid, tasks)
        if not heir:
            assert task is None
            return
        if task is not None:
            assert task.base is not None
            assert task.vmas
            assert task.base.comm == "sleep"
            assert os.path.basename(task.vmas[0].name or "") in ("sleep", "coreutils")


def test_a_process_that_is_gone_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TaskReader.read
    with engine_of(None) as engine, child() as it:

        def read(
            self: TaskReader, tgid: int, tid: int, same: Callable[[int], bool] | None = None
        ) -> object:
            if tid == it.pid:
                end(it.pid)
            return real(self, tgid, tid, same)

        monkeypatch.setattr(TaskReader, "read", read)
        with pytest.raises(NoSuchProcess):
            list(taskdiag.dump(MAPPED, pid=it.pid, engine=engine))


def test_young_and_old_are_complete() -> None:
    """A process that was started in this very moment is asked about twice."""
    with engine_of(None) as engine:
        for _ in range(20):
            with child() as it:
                (task,) = taskdiag.dump(MAPPED, pid=it.pid, engine=engine)
                assert task.vmas
                assert task.vmas[0].stat is not None


def test_a_user_sees_no_mapping_of_others() -> None:
    with engine_of(1001) as engine, contextlib.ExitStack() as stack:
        own = [stack.enter_context(child(plain_user(1001, 1001))) for _ in range(module._MANY + 1)]
        others = [stack.enter_context(child()), stack.enter_context(child(plain_user(1002, 1001)))]
        tasks = {task.pid: task for task in taskdiag.dump(MAPPED, engine=engine)}
        assert not {it.pid for it in others} & set(tasks)
        for it in own:
            with open(f"/proc/{it.pid}/maps") as file:
                starts = [line.split("-")[0] for line in file]
            assert [f"{vma.start:08x}" for vma in tasks[it.pid].vmas or []] == starts
        for it in others:
            with pytest.raises(NoSuchProcess):
                list(taskdiag.dump(MAPPED, pid=it.pid, engine=engine))
