"""pyroute2, somebody else's netlink decoder, finds the same values in our stream."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings

from streams import Made, tasks
from taskdiag import decode
from taskdiag.abi import GROUPS, RESPONSE, Attr

pyroute2 = pytest.importorskip("pyroute2.netlink")

_CODES = {"u8": "B", "u32": "I", "i32": "i", "u64": "Q"}


def group_class(kind: Attr) -> type:
    """A pyroute2 structure with the fields of one of our groups."""
    fields = []
    for item in GROUPS[kind].fields:
        code = item.ctype[5:-1] + "s" if item.ctype.startswith("char[") else _CODES[item.ctype]
        fields.append((item.name, code))
    return type(f"group_{kind.name}", (pyroute2.nla,), {"fields": tuple(fields)})


class task_message(pyroute2.nlmsg):  # type: ignore[misc, name-defined]
    """task_diag_msg and its attributes, in pyroute2's terms."""

    fields = (("pid", "I"), ("tgid", "I"), ("flags", "I"))
    nla_map = tuple(
        (int(kind), kind.name, f"group_{kind.name}" if kind in GROUPS else "cdata") for kind in Attr
    )


for _kind in GROUPS:
    setattr(task_message, f"group_{_kind.name}", group_class(_kind))


def parsed(raw: bytes) -> list[Any]:
    """The messages of a stream, by pyroute2."""
    found, at = [], 0
    while at < len(raw):
        length, kind = struct.unpack_from("=IH", raw, at)
        assert kind == RESPONSE
        message = task_message(raw[at : at + length])
        message.decode()
        found.append(message)
        at += length
    return found


@settings(deadline=None)
@given(tasks())
def test_same_values(made: Made) -> None:
    made.vmas = []
    (message,) = parsed(made.pack(seq=77))
    assert message["header"]["sequence_number"] == 77
    assert (message["pid"], message["tgid"], message["flags"]) == (made.pid, made.tgid, 0)
    for kind, values in made.groups.items():
        found = message.get_attr(kind.name)
        for item, value in zip(GROUPS[kind].fields, values, strict=True):
            other = found[item.name]
            if item.ctype.startswith("char["):
                other = other.encode() if isinstance(other, str) else other
                other, value = other.rstrip(b"\0"), bytes(value).rstrip(b"\0")  # type: ignore[call-overload]
                if not value.isascii():
                    continue  # pyroute2 decodes names as text.
            assert other == value, item.name
    names = {name for name, _ in message["attrs"]}
    wanted = {kind.name for kind in made.groups}
    assert names - {"CMDLINE"} == wanted
    assert ("CMDLINE" in names) == (made.cmdline is not None)


def test_same_values_of_a_real_answer() -> None:
    import taskdiag

    raw = b"".join(
        taskdiag.stream("base,cred,stat,statm,tty,sched,name", pid=os.getpid(), engine="procfs")
    )
    (message,) = parsed(raw)
    (task,) = decode([raw])
    for name in ("cred", "stat", "statm", "tty", "sched"):
        found = message.get_attr(name.upper())
        assert {key: found[key] for key in getattr(task, name)._fields} == getattr(
            task, name
        )._asdict()
    assert task.base is not None
    assert message.get_attr("BASE")["ppid"] == task.base.ppid == os.getppid()
