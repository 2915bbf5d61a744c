"""``taskdiag explain``: the BPF program that a request becomes."""

from __future__ import annotations

from .arguments import HELP, asks_for_help, parse
from .output import write, write_all

__all__ = ("run",)

_HELP = f"""\
usage: taskdiag explain [--show GROUP,...] [--all | --threads | --one PID | --children PID
                        | --thread PID]

Print the BPF program that answers the request on the running kernel, annotated with the
kernel's names for what it reads, and say which groups come from /proc instead, and why.
Nothing is loaded, so no privilege is needed.

{HELP}"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError, and EngineUnavailable without BTF."""
    if asks_for_help(args):
        write(_HELP.encode())
        return 0
    request, _ = parse(args, "explain")
    from ..kernel.explain import explain
    from ..kernel.facts import Facts

    # Complete before anything is printed, so that no error can follow half a program.
    lines = list(explain(request, Facts.live()))
    write_all(f"{line}\n".encode() for line in lines)
    return 0
