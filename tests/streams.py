"""Streams made up by tests, and hypothesis strategies for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from taskdiag import abi
from taskdiag.abi import GROUPS, Attr
from taskdiag.netlink import pack_task, pack_vma

_RANGES = {"u8": (0, 8), "u32": (0, 2**32 - 1), "i32": (-(2**31), 2**31 - 1), "u64": (0, 2**64 - 1)}


@dataclass
class Made:
    """One task as a test made it: what a decoder must find."""

    pid: int
    tgid: int
    groups: dict[Attr, tuple[object, ...]] = field(default_factory=dict)
    cmdline: bytes | None = None
    vmas: list[tuple[object, ...]] = field(default_factory=list)

    def pack(self, seq: int = 0) -> bytes:
        """Its messages."""
        attrs = [(int(kind), GROUPS[kind].struct.pack(*self.groups[kind])) for kind in self.groups]
        if self.cmdline is not None:
            attrs.append((int(Attr.CMDLINE), self.cmdline))
        records = [pack_vma(*vma) for vma in self.vmas]  # type: ignore[arg-type]
        return pack_task(self.pid, self.tgid, attrs, records, seq)


_U32 = st.integers(1, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
_NAME = st.binary(max_size=40).filter(lambda raw: b"\0" not in raw)


def _text(size: int) -> st.SearchStrategy[bytes]:
    names = st.binary(max_size=size - 1).map(lambda raw: raw.split(b"\0")[0])
    return names.map(lambda raw: raw.ljust(size, b"\0"))


def _group(kind: Attr) -> st.SearchStrategy[tuple[object, ...]]:
    items = []
    for item in GROUPS[kind].fields:
        if item.ctype.startswith("char["):
            items.append(_text(item.size))
        else:
            items.append(st.integers(*_RANGES[item.ctype]))
    return st.tuples(*items)


_STAT = st.one_of(
    st.just(b""),
    st.lists(_U64, min_size=10, max_size=10).map(lambda v: abi.VMA_STAT.struct.pack(*v)),
)
_VMA = st.tuples(
    _U64, _U64, st.integers(0, 2**28 - 1), _U64, _U32, _U32, _U64, _U32, _NAME, _STAT
)  # fmt: skip


@st.composite
def tasks(draw: st.DrawFn) -> Made:
    """Any task with any groups."""
    made = Made(draw(_U32), draw(_U32))
    for kind in draw(st.sets(st.sampled_from(list(GROUPS)))):
        values = draw(_group(kind))
        if kind == Attr.BASE:
            values = (made.tgid, made.pid, *values[2:])
        made.groups[kind] = values
    made.groups = dict(sorted(made.groups.items()))
    made.cmdline = draw(st.none() | st.binary(max_size=60))
    made.vmas = draw(st.lists(_VMA, max_size=4))
    return made
