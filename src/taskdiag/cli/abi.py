"""``taskdiag abi``: the interface as a C header."""

from __future__ import annotations

from ..cheader import header
from ..errors import RequestError
from .arguments import asks_for_help
from .output import write

__all__ = ("run",)

_HELP = """\
usage: taskdiag abi

Print the interface as a C header, for programs that talk to the service or read saved
streams: taskdiag abi > taskdiag.h
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError for arguments, OSError."""
    if asks_for_help(args):
        write(_HELP.encode())
        return 0
    if args:
        raise RequestError(f"unknown argument {args[0]!r}: taskdiag abi takes no arguments")
    write(header().encode())
    return 0
