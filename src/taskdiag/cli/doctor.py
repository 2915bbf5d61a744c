"""``taskdiag doctor``: what works on this host for this user, one line each."""

from __future__ import annotations

import os

from ..doctor import Finding, engine_of, examine
from ..terminal import clean
from .arguments import asks_for_help, unknown
from .output import write

__all__ = ("run",)

_HELP = """\
usage: taskdiag doctor [--json]

Say what works on this host for this user, and how to get more.  Nothing is guessed that can
be tried: programs are loaded, and engines are asked.  --engine and TASKDIAG_ENGINE count as
they do for other commands.

Each line has a verdict, a subject, what was found and, after an arrow, what would help:

  ok       it works
  limited  it works, but not fully
  missing  it does not work
  info     good to know

  --json   one JSON object: the findings, and the engine that will answer

exit status: 0 if an engine will answer, 1 if none will
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError for unknown arguments."""
    if asks_for_help(args):
        write(_HELP.encode())
        return 0
    for arg in args:
        if arg != "--json":
            raise unknown(arg, "doctor", ["--json"])
    findings = list(examine(engine))
    write(_json(findings) if args else b"".join(map(_line, findings)))
    return 0 if engine_of(findings) else 1


def _line(found: Finding) -> bytes:
    remedy = f" -> {found.remedy}" if found.remedy else ""
    return clean(os.fsencode(f"{found.status:<8} {found.check:<15} {found.text}{remedy}")) + b"\n"


def _json(findings: list[Finding]) -> bytes:
    import json

    shown = ("status", "check", "text", "remedy")
    listed = [{name: getattr(found, name) for name in shown} for found in findings]
    text = json.dumps({"engine": engine_of(findings), "findings": listed}, indent=2)
    return text.encode() + b"\n"
