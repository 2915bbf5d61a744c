"""Arguments that commands share: those of `dump` and `explain` that make a request, and help."""

from __future__ import annotations

from ..abi import Dump, Show
from ..errors import RequestError
from ..request import Request, parse_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("HELP", "asks_for_help", "parse", "unknown")

_GROUPS = [str(show.name).lower() for show in Show]

HELP = f"""\
  --show GROUP,...  {", ".join(_GROUPS[:6])},
                    {", ".join(_GROUPS[6:])}, or all; base if not given
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
    """Return the request that arguments make, and the set of ``switches`` that were given.

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
                raise RequestError("--show needs group names, such as --show base,stat")
            show = value if show is None else f"{show},{value}"
        elif name in _STRATEGIES:
            if chosen not in (None, name):
                raise RequestError(f"{chosen} and {name} exclude each other: choose one")
            if chosen and pid:
                raise RequestError(f"{name} is given twice: it takes one pid")
            chosen = name
            if name in ("--one", "--children", "--thread"):
                pid = _pid(name, value if equals else next(rest, ""))
            elif equals:
                raise RequestError(f"{name} takes no value: give it as {name}")
        elif name in switches:
            raise RequestError(f"{name} takes no value: give it as {name}")
        else:
            raise unknown(arg, command, ["--show", *_STRATEGIES, *switches])
    show = "base" if show is None else show
    groups = Show(sum(Show)) if "all" in show.split(",") else parse_show(show)
    return Request(groups, _STRATEGIES[chosen or "--all"], pid), given


def asks_for_help(args: list[str]) -> bool:
    """Whether a command is to print its help and nothing else.

    >>> asks_for_help(["--show", "base", "-h"])
    True
    """
    return "--help" in args or "-h" in args


def unknown(arg: str, command: str, known: Iterable[str] = ()) -> RequestError:
    """The error for an argument that the command does not have.

    >>> str(unknown("--row", "dump", ["--raw"]))
    "unknown argument '--row': did you mean --raw? taskdiag dump --help lists the arguments"
    """
    from difflib import get_close_matches

    near = get_close_matches(arg.partition("=")[0], list(known), 1, 0.7)
    hint = f"did you mean {near[0]}? " if near else ""
    return RequestError(
        f"unknown argument {arg!r}: {hint}taskdiag {command} --help lists the arguments"
    )


def _pid(option: str, value: str) -> int:
    if not value:
        raise RequestError(f"{option} needs a pid, such as {option} 1")
    digits = value[1:] if value[:1] == "-" else value
    if not (digits.isascii() and digits.isdecimal()):
        raise RequestError(f"{option} needs a pid, not {value!r}")
    if len(digits) > 20:
        raise RequestError(f"pid {value} is out of range: a pid is from 1 to {0xFFFFFFFF}")
    return int(value)
