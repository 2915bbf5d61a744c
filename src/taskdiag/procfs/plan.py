"""Plans: which files a request needs, and functions that make attributes of them.

The catalogue (:mod:`taskdiag.abi`) says where procfs shows a field, as

- ``stat:14``: the 14th field of /proc/PID/stat, counted as in proc_pid_stat(5);
- ``status:VmRSS``: the first word of a line of status, ``status:Uid:2``: its word with index 2;
- ``smaps:Rss``: a line about a mapping in smaps;
- ``this|that``: the first of these that this kernel shows.

A plan turns the entries of the requested groups into Python source, one expression per group,
and compiles it once, so that the catalogue is not consulted for every task.
"""

from __future__ import annotations

import os

from .. import abi
from ..abi import Attr, Show, State
from ..errors import EngineUnavailable
from .message import compile_message
from .status import MM, TGID, THREADS, compile_parser, forms, keys, mm_keys, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .message import Message, Source

    #: Makes a payload of the fields of stat, the values of status and the comm.
    Fill = Callable[[Sequence[bytes], Sequence[bytes | None], bytes], bytes]

__all__ = ("Plan", "plan_for", "statistics")

#: The bytes of a page, and of the "kB" of /proc.
_PAGE = os.sysconf("SC_PAGESIZE")
_KB = 1024

#: The state by the letter that /proc shows.
STATES = {state.letter.encode(): int(state) for state in State}
#: The names that generated sources refer to.
_NAMES = {"STATES": STATES, "unescape": unescape}


class Plan:
    """What to read for one set of show flags, and how to make attributes of it."""

    __slots__ = (
        "cmdline", "comm", "files", "fixed", "mappings", "messages", "stat", "statistics",
        "status",
    )  # fmt: skip

    def __init__(self, show: int, sample: bytes) -> None:
        """``sample`` is the status file of a process with memory on this kernel."""
        order = keys(sample)
        compiler = _Compiler(order)
        sources = [
            (attr, *compiler.group(group))
            for attr, group in abi.GROUPS.items()
            if show & Show[attr.name]
        ]
        #: (attribute type, payload function, whether it needs an address space)
        self.fixed: list[tuple[int, Fill, bool]] = [
            (int(attr), _fill(abi.GROUPS[attr], values), needs_mm)
            for attr, values, needs_mm in sources
        ]
        #: Whether /proc/PID/stat is read.
        self.stat = bool(compiler.last)
        #: The parser of /proc/PID/status, or None if it is not read; its last three
        #: values are those of `status.MM`, `status.TGID` and `status.THREADS`.
        self.status: Callable[[bytes], tuple[bytes | None, ...]] | None = None
        if compiler.wanted:
            self.status = compile_parser(order, [*compiler.wanted, MM, TGID, THREADS])
        #: Where the parser puts the name, or None if no field is the comm.
        self.comm: int | None = None
        if show & Show.BASE:
            self.comm = compiler.wanted.index(("Name", 0))
        self.cmdline = bool(show & Show.CMDLINE)
        #: "smaps", "maps" or "".  Only smaps shows all flags of a mapping, so it is read for
        #: VMA too, unless the kernel lacks it (CONFIG_PROC_PAGE_MONITOR).
        self.mappings = ""
        if show & (Show.VMA | Show.VMA_STAT):
            self.mappings = "smaps" if os.path.exists("/proc/self/smaps") else "maps"
        #: Whether the statistics of mappings are wanted.
        self.statistics = bool(show & Show.VMA_STAT)
        #: How many files of a process are read.
        self.files = self.stat + (self.status is not None) + self.cmdline + bool(self.mappings)
        if not self.files:
            # No group was requested, only which tasks there are.
            self.stat, self.files = True, 1
        #: Functions that make the whole message of most tasks, to be tried in this order;
        #: empty if more than status and stat is read.
        self.messages: list[Message] = []
        if sources and not self.cmdline and not self.mappings:
            self.messages = compiler.messages(sources)


class _Compiler:
    """Turns catalogue entries into source, and collects the values that the source uses."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self._mm = mm_keys(order)
        #: The values of status that are used: the key of the line and the index of the word.
        self.wanted: list[tuple[str, int]] = []
        #: The highest index of a field of stat that is used, 0 if none is.
        self.last = 0

    def group(self, group: abi.Group) -> tuple[list[str], bool]:
        """The source for each field of a group, and whether the group needs an address space."""
        needs_mm = False
        values = []
        for field in group.fields:
            file, key, word = self._place(field)
            needs_mm |= file == "status" and key in self._mm
            values.append(self._expression(field, file, key, word))
        return values, needs_mm

    def messages(self, sources: list[Source]) -> list[Message]:
        """Functions that make a whole message, one for each form that status may have."""
        return [
            compile_message(sources, _NAMES, form, self.wanted, self.last)
            for form in (forms(self._order) if self.wanted else [self._order])
        ]

    def _place(self, field: abi.Field) -> tuple[str, str, int]:
        """The file, key and word of a field: the first alternative that this kernel has."""
        places = [place.split(":") for place in field.procfs.split("|")]
        for place in places:
            if place[0] == "stat" or place[1] in self._order:
                break
        else:
            place = places[0]
        return place[0], place[1], int(place[2]) if len(place) > 2 else 0

    def _expression(self, field: abi.Field, file: str, key: str, word: int) -> str:
        if file == "stat":
            self.last = max(self.last, int(key) - 1)
            value = f"f[{int(key) - 1}]"
            if field.name == "state":
                return f"STATES[{value}]"
            # Numbers that the contract has as unsigned, such as device numbers, may be shown
            # with a sign.
            return f"int({value}) & 0xFFFFFFFF" if field.ctype == "u32" else f"int({value})"
        if key not in self._order:
            # This kernel does not write the line (VmPMD, since 4.15).
            return "0"
        if (key, word) not in self.wanted:
            self.wanted.append((key, word))
        value = f"m[{self.wanted.index((key, word))}]"
        if field is abi.NAME["name"]:
            return f"unescape({value})[:{field.size - 1}]"
        if key == "Name":
            return "c"
        if key == "State":
            return f"STATES[{value}]"
        if key.startswith("Cap"):
            return f"int({value}, 16)"
        return scaled(f"int({value})", field.unit if key in self._mm else "")


def _fill(group: abi.Group, values: list[str]) -> Fill:
    """Compile the payload function of a group, given the source for each of its fields."""
    source = f"lambda f, m, c: pack({', '.join(values)})"
    fill: Fill = eval(source, {"pack": group.struct.pack, **_NAMES})
    return fill


def scaled(value: str, unit: str) -> str:
    """Source that converts a number of kB to a field's unit.

    >>> scaled("n", "pages"), scaled("n", "bytes << 12"), scaled("n", "")
    ('n // 4', 'n * 1024 << 12', 'n')
    """
    if unit == "pages":
        return f"{value} // {_PAGE // _KB}"
    if unit.startswith("bytes"):
        return f"{value} * {_KB}{unit[5:]}"
    return value


def _statistics() -> Callable[[dict[bytes, int]], bytes]:
    values = []
    for field in abi.VMA_STAT.fields:
        key = field.procfs.partition(":")[2].encode()
        values.append(scaled(f"n({key!r}, 0)", field.unit))
    build: Callable[[dict[bytes, int]], bytes] = eval(
        f"lambda numbers, pack=pack: (lambda n: pack({', '.join(values)}))(numbers.get)",
        {"pack": abi.VMA_STAT.struct.pack},
    )
    return build


#: Makes the task_diag_vma_stat of a mapping of the numbers in smaps, in kB by key.
statistics = _statistics()

_plans: dict[int, Plan] = {}


def plan_for(show: int) -> Plan:
    """The plan for these show flags, made at their first use.

    Raises EngineUnavailable if /proc/self/status cannot be read, or if VMA_STAT is requested
    and this kernel has no smaps (CONFIG_PROC_PAGE_MONITOR).
    """
    found = _plans.get(show)
    if found is None:
        try:
            with open("/proc/self/status", "rb") as file:
                sample = file.read()
            if show & Show.VMA_STAT:
                os.stat("/proc/self/smaps")
        except OSError as error:
            raise EngineUnavailable(f"{error.filename}: {error.strerror}") from None
        found = _plans[show] = Plan(show, sample)
    return found


assert set(abi.GROUPS) == set(Attr) - {Attr.VMA, Attr.VMA_STAT, Attr.CMDLINE}
