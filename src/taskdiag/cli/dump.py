"""``taskdiag dump``: tasks as JSON lines, or as the raw netlink stream."""

from __future__ import annotations

from ..abi import Dump
from ..engine import choose
from ..errors import RequestError
from ..request import Request, parse_show
from .output import write, write_all

__all__ = ("run",)

_HELP = """\
usage: taskdiag dump [--show GROUP,...] [--all | --threads | --one PID | --children PID
                     | --thread PID] [--raw]

Print one JSON object per task and line.

  --show GROUP,...  base (default), cred, vma, vma_stat, stat, statm, cmdline, tty, sched;
                    or all
  --all             every process (default)
  --threads         every thread
  --one PID         the process PID
  --children PID    the direct children of process PID
  --thread PID      every thread of process PID
  --raw             the netlink stream as it is; taskdiag decode reads it

Objects have pid, tgid and the groups asked for that the task has, with the names and
units of taskdiag abi.  State is the letter of ps(1), cmdline a list of arguments, vmas a
list of mappings whose flags are names.
"""

_STRATEGIES = {
    "--all": Dump.ALL,
    "--threads": Dump.ALL_THREAD,
    "--one": Dump.ONE,
    "--children": Dump.CHILDREN,
    "--thread": Dump.THREAD,
}


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError and whatever engines and output raise."""
    if "--help" in args:
        write(_HELP.encode())
        return 0
    request, raw = _parse(args)
    chunks = choose(engine).stream(request)
    if raw:
        write_all(chunks)
        return 0
    from ..decoder import decode
    from ..views.jsonl import lines

    write_all(lines(decode(chunks)))
    return 0


def _parse(args: list[str]) -> tuple[Request, bool]:
    show: str | None = None
    chosen: str | None = None
    pid, raw = 0, False
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name == "--raw" and not equals:
            raw = True
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
            raise RequestError(f"unknown argument {arg!r}: taskdiag dump --help lists those known")
    groups = "base" if show is None else show
    if groups == "all":
        groups = "base,cred,vma,vma_stat,stat,statm,cmdline,tty,sched"
    return Request(parse_show(groups), _STRATEGIES[chosen or "--all"], pid), raw


def _pid(option: str, value: str) -> int:
    digits = value[1:] if value[:1] == "-" else value
    if not (digits.isascii() and digits.isdecimal()):
        raise RequestError(f"{option} needs a pid, not {value!r}")
    if len(digits) > 20:
        raise RequestError(f"pid {value} is out of range: a pid is from 1 to {0xFFFFFFFF}")
    return int(value)
