"""Completing the kernel's messages with groups that procfs serves.

Used where this kernel lacks a piece (see `compile.missing_features`), and for single tasks that
a program left unfinished: a command line or mappings beyond what one message holds.
"""

from __future__ import annotations

import errno
import os

from ..abi import DEFERRED, MSG, ORDER, Attr, Show
from ..errors import EngineUnavailable
from ..netlink import attributes, in_order, messages, pack_task
from ..procfs import attributes as procfs_attributes
from ..procfs import open_procfs
from .recheck import CHECK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ..procfs.task import Answer
    from ..request import Request
    from .viewer_root import ViewerRoot

    #: Asks the kernel about a thread, by its number here: a CHECK of `recheck`, or b"".
    Check = Callable[[int], bytes]

__all__ = ("complete", "merged", "with_init")


def complete(
    data: bytes,
    request: Request,
    elsewhere: Show,
    check: Check | None = None,
    viewer_root: ViewerRoot | None = None,
) -> bytes:
    """The same messages with the groups of ``elsewhere`` in all of them, and whatever is
    lacking in those that a program deferred.  Tasks that are gone by now are left out.

    ``check`` is for viewers who may see less than this process, see `recheck`;
    ``viewer_root`` for those whose root directory is another.

    Raises EngineUnavailable if /proc is not there to complete them from.
    """
    proc = _procfs()
    try:
        return b"".join(_messages(data, request, elsewhere, proc, check, viewer_root))
    finally:
        os.close(proc)


def _messages(
    data: bytes,
    request: Request,
    elsewhere: Show,
    proc: int,
    check: Check | None,
    viewer_root: ViewerRoot | None,
) -> list[bytes]:
    through = None if viewer_root is None else viewer_root.call
    done = []
    at = 0
    while at < len(data):
        length, _, _, seq, port, pid, tgid, flags = MSG.unpack_from(data, at)
        wanted = elsewhere
        found = [
            (kind, data[start:end])
            for kind, start, end in attributes(data, at + MSG.size, at + length)
        ]
        if flags & DEFERRED:
            had = {kind for kind, _ in found}
            for group in (Show.CMDLINE, Show.VMA):
                if request.show & group and Attr[str(group.name)] not in had:
                    wanted |= group
        if wanted:
            if check is None:
                answer = procfs_attributes(tgid, pid, wanted, not request.threads, proc, through)
            else:
                numbers = port or pid, pid, tgid
                answer = _checked(numbers, wanted, request, proc, check, through)
            if answer is not None:
                attrs, vmas = answer
                plain = sorted(found + attrs, key=lambda item: ORDER.index(Attr(item[0])))
                done.append(pack_task(pid, tgid, plain, vmas, seq))
        else:
            done.append(data[at : at + length] if not port else _unnumbered(data, at, length))
        at += length
    return done


def _unnumbered(data: bytes, at: int, length: int) -> bytes:
    """A message without the number that it had for us."""
    return data[at : at + 12] + bytes(4) + data[at + 16 : at + length]


def _checked(
    numbers: tuple[int, int, int],
    wanted: Show,
    request: Request,
    proc: int,
    check: Check,
    through: Callable[..., Any] | None,
) -> Answer | None:
    """The attributes of a task that is the viewer's to see before and after they are read.

    ``numbers`` is its own in our pid namespace, then pid and tgid in the viewer's.
    """
    tid, *seen = numbers
    before = check(tid)
    if not before:
        return None
    pid, tgid, _, _, process = CHECK.unpack(before)
    if [pid, tgid] != seen:
        return None
    answer = procfs_attributes(process, tid, wanted, not request.threads, proc, through)
    return answer if check(tid) == before else None


def with_init(chunks: Iterable[bytes], request: Request) -> Iterator[bytes]:
    """The chunks of an answer about all tasks, with those of process 1 where they belong.

    Every pid namespace has a process 1, and it is the first that such an answer shows.
    Some hardened guest kernels hide it from BPF; /proc has it.
    """
    return merged(chunks, _init_messages(request))


def merged(chunks: Iterable[bytes], hidden: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """The chunks of an answer with more tasks, each as its number and its messages, where
    they belong by their number.
    """
    for chunk in chunks:
        if not hidden:
            yield chunk
            continue
        last = max(pid for _, _, pid, _, _ in messages(chunk))
        yield in_order(chunk + b"".join([data for tid, data in hidden if tid < last]))
        hidden = [(tid, data) for tid, data in hidden if tid > last]
    yield from (data for _, data in hidden)


def _init_messages(request: Request) -> list[tuple[int, bytes]]:
    try:
        proc = _procfs()
    except EngineUnavailable:
        return []
    try:
        found = []
        for tid in _init_threads(proc) if request.threads else [1]:
            answer = procfs_attributes(1, tid, request.show, whole=not request.threads, root=proc)
            if answer is not None:
                found.append((tid, pack_task(tid, 1, *answer, request.seq)))
        return found
    except OSError:
        # Security modules may keep it from everybody.
        return []
    finally:
        os.close(proc)


def _init_threads(proc: int) -> list[int]:
    fd = os.open("1/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return sorted(int(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


def _procfs() -> int:
    """A descriptor of /proc, if it is that of our own pid namespace."""
    proc = open_procfs()
    try:
        if os.readlink("self", dir_fd=proc) == str(os.getpid()):
            return proc
    except OSError:
        pass
    os.close(proc)
    raise EngineUnavailable(
        errno.ENOENT, "/proc shows another pid namespace, so it cannot complete the answer"
    )
