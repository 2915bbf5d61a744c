"""``taskdiag doctor``: what this host and this user can do, one line each."""

from __future__ import annotations

import os

from ..doctor import Finding, engine_of, examine
from ..errors import RequestError
from ..terminal import clean
from .output import write

__all__ = ("run",)

_HELP = """\
usage: taskdiag doctor [--json]

Say what this host and this user can do, and what to change to get more.  Programs are
really loaded and engines really asked.

Each line is a verdict, a subject, what was found and, behind an arrow, what would help:

  ok       it works
  limited  it works, but not fully
  missing  it does not work
  info     good to know

  --json   the same as one JSON object: findings, and the engine that auto chooses

exit status: 0 if some engine works, 1 if none does
"""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; raises RequestError for unknown arguments."""
    if "--help" in args:
        write(_HELP.encode())
        return 0
    for arg in args:
        if arg != "--json":
            raise RequestError(
                f"unknown argument {arg!r}: taskdiag doctor --help lists those known"
            )
    findings = list(examine())
    write(_json(findings) if args else b"".join(map(_line, findings)))
    return 0 if engine_of(findings) else 1


def _line(found: Finding) -> bytes:
    remedy = f" -> {found.remedy}" if found.remedy else ""
    return clean(os.fsencode(f"{found.status:<8} {found.check:<15} {found.text}{remedy}")) + b"\n"


def _json(findings: list[Finding]) -> bytes:
    import json

    listed = [{name: getattr(found, name) for name in Finding.__slots__} for found in findings]
    text = json.dumps({"engine": engine_of(findings), "findings": listed}, indent=2)
    return text.encode() + b"\n"
