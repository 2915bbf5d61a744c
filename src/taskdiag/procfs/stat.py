"""/proc/PID/stat: one line with a pid, a name that may contain anything, and numbers."""

from __future__ import annotations

from .reader import Malformed

__all__ = ("FIELDS", "parse")

#: Fields that every supported kernel writes (proc_pid_stat(5)).
FIELDS = 52


def parse(data: bytes) -> list[bytes]:
    """Split the line into fields; the name is without its parentheses.

    The first field of proc_pid_stat(5) has index 0.  The name may contain ``)``, spaces and
    newlines, so it ends at the *last* parenthesis.

    >>> parse(b"7 (a) R 1 () S " + b"0 " * 49)[:4]
    [b'7', b'a) R 1 (', b'S', b'0']

    Raises Malformed.
    """
    pid, behind, rest = data.partition(b" (")
    comm, close, rest = rest.rpartition(b") ")
    fields = [pid, comm, *rest.split()]
    if not behind or not close or len(fields) < FIELDS:
        raise Malformed(f"/proc/PID/stat has an unknown form: {data[:100]!r}")
    return fields
