"""Completing the kernel's messages with groups that procfs serves.

Used where this kernel lacks a piece (see `compile.served`), and for single tasks that
a program left unfinished: a command line or mappings beyond what one message holds.
"""

from __future__ import annotations

import os

from ..abi import DEFERRED, MSG, Attr, Show
from ..netlink import attributes, pack_task
from ..procfs import attributes as procfs_attributes
from ..procfs import open_procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..request import Request

__all__ = ("complete",)

_FLAGS = 24


def complete(data: bytes, request: Request, elsewhere: Show) -> bytes:
    """The same messages with the groups of ``elsewhere`` in all of them, and whatever is
    lacking in those that a program deferred.  Tasks that are gone by now are left out.

    Raises EngineUnavailable if /proc is not there to complete them from.
    """
    proc = open_procfs()
    try:
        return b"".join(_messages(data, request, elsewhere, proc))
    finally:
        os.close(proc)


def _messages(data: bytes, request: Request, elsewhere: Show, proc: int) -> list[bytes]:
    done = []
    at = 0
    while at < len(data):
        length, _, _, seq, _, pid, tgid, flags = MSG.unpack_from(data, at)
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
            answer = procfs_attributes(
                tgid, pid, wanted, whole=not request.threads, root=proc
            )
            if answer is not None:
                attrs, vmas = answer
                plain = sorted(found + attrs, key=lambda item: item[0])
                done.append(pack_task(pid, tgid, plain, vmas, seq))
        else:
            done.append(data[at : at + length])
        at += length
    return done
