"""``taskdiag dump``: tasks as JSON lines, or as the raw netlink stream."""

from __future__ import annotations

from ..engine import choose
from .arguments import HELP, asks_for_help, parse
from .output import write, write_all

__all__ = ("run",)

_HELP = """\
usage: taskdiag dump [--show GROUP,...] [--all | --threads | --one PID | --children PID
                     | --thread PID] [--raw]

Print one JSON object per task and line.

{arguments}  --raw             the netlink stream as it is; taskdiag decode reads it

Objects have pid, tgid and the groups asked for that the task has, with the names and
units of taskdiag abi.  State is the letter of ps(1), cmdline a list of arguments, vmas a
list of mappings whose flags are names.
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError and whatever engines and output raise."""
    if asks_for_help(args):
        write(_HELP.format(arguments=HELP).encode())
        return 0
    request, switches = parse(args, "dump", ["--raw"])
    chunks = choose(engine).stream(request)
    if switches:
        write_all(chunks)
        return 0
    from ..decoder import decode
    from ..views.jsonl import lines

    write_all(lines(decode(chunks)))
    return 0
