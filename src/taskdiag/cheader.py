"""The contract as a C header: `taskdiag.abi`, printed."""

from __future__ import annotations

from . import abi
from .abi import Dump, Field, Group, Show, State, VmaFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("header",)

_TYPES = {"u8": "__u8", "u16": "__u16", "u32": "__u32", "i32": "__s32", "u64": "__u64"}
#: Each after those that it refers to.  netlink's own structures come from linux/netlink.h.
_GROUPS = (
    abi.TASK_DIAG_PID, abi.TASK_DIAG_MSG, abi.BASE, abi.CRED, abi.STAT, abi.STATM, abi.VMA,
    abi.VMA_STAT, abi.TTY, abi.SCHED, abi.NAME,
)  # fmt: skip

_TOP = """\
/* SPDX-License-Identifier: MIT */
/*
 * task_diag: ask about processes in one transaction.
 *
 * A request is a struct nlmsghdr immediately followed by a struct task_diag_pid.  The
 * answer is messages of type TASK_DIAG_RESPONSE, each a struct nlmsghdr, a struct
 * task_diag_msg and attributes (struct nlattr), padded to 4 bytes.  It ends when a read
 * returns 0.  An attribute's type is the number of its group.  TASK_DIAG_CMDLINE is the
 * bytes of the arguments, NULs included; TASK_DIAG_VMA is one or more struct
 * task_diag_vma, each vma_len bytes long.
 *
 * Native byte order.  Printed by "taskdiag abi".
 */
#ifndef TASK_DIAG_H
#define TASK_DIAG_H

#include <stddef.h>
#include <linux/types.h>
#include <linux/netlink.h>
"""

_ASSERT = """\
/* The layout is part of the interface: a compiler with another layout must fail here. */
#ifdef __cplusplus
#define TASK_DIAG_ASSERT(what) static_assert(what, #what)
#else
#define TASK_DIAG_ASSERT(what) _Static_assert(what, #what)
#endif
"""


def header() -> str:
    """The whole header, as text.

    >>> header().splitlines()[0]
    '/* SPDX-License-Identifier: MIT */'
    """
    parts = [_TOP, _constants()]
    parts += [_enum("Attribute groups: types of attributes, bits of show_flags.", _groups())]
    parts += [
        _enum(
            "Which tasks: task_diag_pid.dump_strategy.",
            ((f"TASK_DIAG_DUMP_{item.name}", str(int(item))) for item in Dump),
        ),
        _enum(
            "task_diag_base.state.",
            ((f"TASK_DIAG_STATE_{item.name}", str(int(item))) for item in State),
        ),
        _enum(
            "task_diag_vma.vm_flags: the interface's own numbering, not the kernel's.",
            (
                (f"TASK_DIAG_VMA_F_{item.name}", f"1 << {int(item).bit_length() - 1}")
                for item in VmaFlag
            ),
        ),
        "/* Capabilities: bit n is bit n % 32 of cap[n / 32]. */\n"
        "struct task_diag_caps {\n\t__u32 cap[2];\n};\n",
    ]
    parts += [_struct(group) for group in _GROUPS]
    parts += [_ASSERT + "\n".join(line for group in _GROUPS for line in _asserts(group)) + "\n"]
    return "\n".join(parts) + "\n#endif /* TASK_DIAG_H */\n"


def _constants() -> str:
    values = (
        ("TASK_DIAG_RESPONSE", f"{abi.RESPONSE:#x}", "nlmsg_type of every message of an answer"),
        (
            "TASK_DIAG_EXTENDED_REQUEST",
            f"{abi.EXTENDED_REQUEST:#x}",
            "nlmsg_type of an extended request",
        ),
        ("TASK_DIAG_REQUEST_SIZE", str(abi.REQUEST_SIZE), "least nlmsg_len of a request, bytes"),
        (
            "TASK_DIAG_FLAG_CONT",
            f"{abi.MSG_FLAG_CONT}U",
            "task_diag_msg.flags: more about this same process follows",
        ),
    )
    return "".join(f"#define {name} {value} /* {doc} */\n" for name, value, doc in values)


def _groups() -> Iterable[tuple[str, str]]:
    for show in Show:
        yield f"TASK_DIAG_{show.name}", str(int(show).bit_length() - 1)


def _enum(doc: str, items: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"\t{name} = {value},\n" for name, value in items)
    # With -pedantic, C before C99 and C++ before C++11 refuse a comma after the last one.
    text = f"/* {doc} */\nenum {{\n{lines[:-2]}\n}};\n"
    if "TASK_DIAG_BASE" not in lines:
        return text
    shows = "".join(
        f"#define TASK_DIAG_SHOW_{show.name} (1ULL << TASK_DIAG_{show.name})\n" for show in Show
    )
    return f"{text}\n/* Bits of task_diag_pid.show_flags. */\n{shows}"


def _struct(group: Group) -> str:
    lines = []
    for item in group.fields:
        unit = f"; {item.unit}" if item.unit else ""
        lines.append(f"\t{_declaration(item)}; /* {item.doc}{unit} */\n")
    tail = group.size - group.fields[-1].offset - group.fields[-1].size
    if tail:
        lines.append(f"\t__u8 reserved[{tail}];\n")
    return f"/* {group.doc} */\nstruct {group.cname} {{\n{''.join(lines)}}};\n"


def _declaration(item: Field) -> str:
    if item.name.startswith("cap_"):
        return f"struct task_diag_caps {item.name}"
    if item.ctype.startswith("char["):
        return f"char {item.name}{item.ctype[4:]}"
    return f"{_TYPES[item.ctype]} {item.name}"


def _asserts(group: Group) -> Iterable[str]:
    name = f"struct {group.cname}"
    yield f"TASK_DIAG_ASSERT(sizeof({name}) == {group.size});"
    for item in group.fields:
        yield f"TASK_DIAG_ASSERT(offsetof({name}, {item.name}) == {item.offset});"
