"""``taskdiag explain``: the program that a request becomes."""

from __future__ import annotations

from .arguments import HELP, parse
from .output import write, write_all

__all__ = ("run",)

_HELP = f"""\
usage: taskdiag explain [--show GROUP,...] [--all | --threads | --one PID | --children PID
                        | --thread PID]

Print the BPF program by which the running kernel would answer a request, annotated with
the kernel's names of what it reads, and say which groups procfs would serve and why.
Nothing is loaded, so this needs no privilege.

{HELP}"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError, and EngineUnavailable without BTF."""
    if "--help" in args:
        write(_HELP.encode())
        return 0
    request, _ = parse(args, "explain")
    from ..kernel.explain import explain
    from ..kernel.facts import Facts

    # All of it before the first line: an error must not follow half a program.
    lines = list(explain(request, Facts.live()))
    write_all(f"{line}\n".encode() for line in lines)
    return 0
