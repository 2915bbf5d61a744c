"""``taskdiag serve``: answer requests of everyone on this host."""

from __future__ import annotations

import os

from ..errors import RequestError
from .arguments import asks_for_help, unknown
from .output import write

__all__ = ("run",)

_HELP = """\
usage: taskdiag serve [--socket PATH] [--file MOUNTPOINT/NAME]

Answer the requests of every user of this host, each seeing what procfs mounted with
hidepid=2 would show them.  Runs in the foreground until SIGTERM; needs root, or CAP_BPF,
CAP_PERFMON and CAP_SYS_PTRACE.

  --socket PATH           listen there; TASKDIAG_SOCKET or /run/taskdiag.sock by default
  --file MOUNTPOINT/NAME  also a file to write requests to and read answers from.  The
                          mount point is made if it is missing.  Needs libfuse 3 or 2
                          and pip install mfusepy

If systemd passes a socket, that one is used instead.
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError, EngineUnavailable and OSError."""
    if asks_for_help(args):
        write(_HELP.encode())
        return 0
    if engine not in (None, "auto", "kernel"):
        raise RequestError(f"the service answers by the kernel engine, not by {engine}")
    values = _parse(args)
    from ..service.serve import serve

    status = serve(values.get("--socket"), values.get("--file"))
    # Threads may still be busy with answers that nobody reads any more, and there is
    # nothing left to be written.
    os._exit(status)


def _parse(args: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name not in ("--socket", "--file"):
            raise unknown(arg, "serve", ["--socket", "--file"])
        value = value if equals else next(rest, "")
        if not value:
            raise RequestError(f"{name} needs a path")
        if name in values:
            raise RequestError(f"{name} is given twice")
        values[name] = value
    return values
