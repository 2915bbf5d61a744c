"""Which groups of which tasks: the arguments that `dump` and `explain` share."""

from __future__ import annotations

from ..abi import Dump, Show
from ..errors import RequestError
from ..request import Request, parse_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("HELP", "parse")

HELP = """\
  --show GROUP,...  base (default), cred, vma, vma_stat, stat, statm, cmdline, tty, sched;
                    or all
  --all             every process (default)
  --threads         every thread
  --one PID         the process PID
  --children PID    the direct children of process PID
  --thread PID      every thread of process PID
"""

_STRATEGIES = {
    "--all": Dump.ALL,
    "--threads": Dump.ALL_THREAD,
    "--one": Dump.ONE,
    "--children": Dump.CHILDREN,
    "--thread": Dump.THREAD,
}


def parse(args: list[str], command: str, switches: Iterable[str] = ()) -> tuple[Request, set[str]]:
    """The request, and which of the command's own switches were given.

    >>> parse(["--show", "stat", "--one", "1", "--raw"], "dump", ["--raw"])
    (Request(<Show.STAT: 16>, <Dump.ONE: 1>, pid=1), {'--raw'})

    Raises RequestError.
    """
    show: str | None = None
    chosen: str | None = None
    pid, given = 0, set()
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name in switches and not equals:
            given.add(name)
        elif name == "--show":
            value = value if equals else next(rest, "")
            if not value:
                raise RequestError("--show needs group names, such as base,stat")
            show = value if show is None else f"{show},{value}"
        elif name in _STRATEGIES:
            if chosen not in (None, name):
                raise RequestError(f"{chosen} and {name} exclude each other")
            chosen = name
            if name in ("--one", "--children", "--thread"):
                pid = _pid(name, value if equals else next(rest, ""))
            elif equals:
                raise RequestError(f"{name} takes no value")
        else:
            raise RequestError(
                f"unknown argument {arg!r}: taskdiag {command} --help lists those known"
            )
    groups = Show(sum(Show)) if show == "all" else parse_show("base" if show is None else show)
    return Request(groups, _STRATEGIES[chosen or "--all"], pid), given


def _pid(option: str, value: str) -> int:
    digits = value[1:] if value[:1] == "-" else value
    if not (digits.isascii() and digits.isdecimal()):
        raise RequestError(f"{option} needs a pid, not {value!r}")
    if len(digits) > 20:
        raise RequestError(f"pid {value} is out of range: a pid is from 1 to {0xFFFFFFFF}")
    return int(value)
