"""JSON lines: one object per task, keyed by group, with the contract's field names.

Every value is as the contract has it (numbers in the contract's units,
capabilities as 64-bit numbers), except that

* ``base.state`` is the letter that ps(1) prints;
* ``cmdline`` is the list of arguments;
* ``vmas`` is a list of mappings, with ``flags`` a list of names (``"read"``) and
  ``stat`` an object or null.

A group that was not asked for, or that a task does not have (a kernel thread has
no memory), has no key.  Lines are pure ASCII; a byte that is not UTF-8 becomes a
lone surrogate (``\\udcff`` is byte 0xff), as `os.fsdecode` has it.
"""

from __future__ import annotations

import json
from typing import Any

from ..abi import State, VmaFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..task import Task, Vma

__all__ = ("as_dict", "lines")

_LETTERS = {state: state.letter for state in State}
_FLAGS = tuple((int(flag), str(flag.name).lower()) for flag in VmaFlag)


def lines(tasks: Iterable[Task]) -> Iterator[bytes]:
    """One line of JSON per task, newline included."""
    encode = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode
    for task in tasks:
        yield encode(as_dict(task)).encode("ascii") + b"\n"


def as_dict(task: Task) -> dict[str, Any]:
    """A task as plain dictionaries and lists.

    >>> import taskdiag
    >>> import os
    >>> as_dict(next(taskdiag.dump("tty", pid=os.getpid())))
    {'pid': ..., 'tgid': ..., 'tty': {'tty_nr': ..., 'tpgid': ...}}
    """
    out: dict[str, Any] = {"pid": task.pid, "tgid": task.tgid}
    base = task.base
    if base is not None:
        out["base"] = base._asdict()
        out["base"]["state"] = _LETTERS[base.state]
    for name in ("cred", "stat", "statm", "tty", "sched", "name"):
        group = getattr(task, name)
        if group is not None:
            out[name] = group._asdict()
    cmdline = task.cmdline
    if cmdline is not None:
        out["cmdline"] = cmdline
    vmas = task.vmas
    if vmas is not None:
        out["vmas"] = [_vma(vma) for vma in vmas]
    return out


def _vma(vma: Vma) -> dict[str, Any]:
    out = vma._asdict()
    flags = int(vma.flags)
    out["flags"] = [name for bit, name in _FLAGS if flags & bit]
    out["stat"] = None if vma.stat is None else vma.stat._asdict()
    return out
