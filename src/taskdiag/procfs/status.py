"""/proc/PID/status: a key and its value on each line, in a fixed order.

The lines wanted are compiled, in the order in which this kernel writes them, into one
regular expression; lines between are skipped at the speed of the regex engine.  If a
task's file has another form (a kernel that leaves lines out), a slow and general
parser does the same work.
"""

from __future__ import annotations

import re

from .reader import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("MM", "THREADS", "compile_parser", "keys", "parse_lines", "unescape")

#: Always extracted: 0 threads is what a task shows that was released while the file
#: was being written (fs/proc/array.c, ``task_sig``: no sighand left).
THREADS = ("Threads", 0)
#: Always extracted: shown by tasks that have an address space, and by no others.
MM = ("VmSize", 0)

#: Lines that some tasks lack although they have an address space, or the other way
#: round: a zombie has no file system context, so no umask.
_OPTIONAL = ("Umask",)


def keys(sample: bytes) -> list[str]:
    """The keys of a status file, in its order.

    >>> keys(b"Name:\\tcat\\nUmask:\\t0022\\n")
    ['Name', 'Umask']
    """
    return [line.split(b":", 1)[0].decode("ascii", "replace") for line in sample.splitlines()]


def mm_keys(order: list[str]) -> list[str]:
    """Those of the keys that describe an address space: from VmPeak to before Threads."""
    if "VmPeak" not in order or "Threads" not in order:
        return []
    return order[order.index("VmPeak") : order.index("Threads")]


def compile_parser(
    order: list[str], wanted: list[tuple[str, int]]
) -> Callable[[bytes], tuple[bytes | None, ...]]:
    """A function from the file's bytes to the values wanted, in the order of ``wanted``.

    ``order`` is what `keys` gives for a task that has an address space; each wanted is a
    key and the index of a word of its value.  Values of lines about an address space
    are None for tasks that have none.

    >>> parse = compile_parser(["Name", "Uid"], [("Uid", 1), ("Name", 0)])
    >>> parse(b"Name:\\ta b\\nUid:\\t5\\t6\\t7\\t8\\n")
    (b'6', b'a b')

    The function raises Malformed.
    """
    block = mm_keys(order)
    captured: list[tuple[str, int]] = []
    last = max((order.index(key) for key, _ in wanted), default=-1)
    pattern = ""
    for at, key in enumerate(order[: last + 1]):
        if block and key == block[0]:
            pattern += "(?:"
        words = sorted({index for name, index in wanted if name == key})
        captured += [(key, index) for index in words]
        pattern += _line(key, words)
        if key in block and (key == block[-1] or at == last):
            pattern += ")?"
    match = re.compile(pattern.encode(), re.ASCII).match
    # The groups come in the file's order; most requests want them in another.
    places = [captured.index(item) for item in wanted]
    straight = places == list(range(len(captured)))

    def parse(data: bytes) -> tuple[bytes | None, ...]:
        found = match(data)
        if found is None:
            return parse_lines(data, wanted, block)
        values = found.groups()
        return values if straight else tuple([values[place] for place in places])

    return parse


def _line(key: str, words: list[int]) -> str:
    """The pattern of one line, newline included."""
    if not words:
        skip = r"[^\n]*\n"
        return f"(?:{re.escape(key)}:{skip})?" if key in _OPTIONAL else skip
    if key == "Name":
        return r"Name:\t([^\n]*)\n"
    out = re.escape(key) + ":"
    for index in range(words[-1] + 1):
        out += r"[ \t]+([^ \t\n]+)" if index in words else r"[ \t]+[^ \t\n]+"
    return out + r"[^\n]*\n"


def parse_lines(
    data: bytes, wanted: list[tuple[str, int]], may_lack: list[str]
) -> tuple[bytes | None, ...]:
    """What the compiled parser does, for a file of any order.  Raises Malformed."""
    found: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        name, colon, text = line.partition(b":")
        if colon:
            found.setdefault(name, text)
    values: list[bytes | None] = []
    for key, index in wanted:
        value = found.get(key.encode())
        if value is None and key in may_lack:
            values.append(None)
            continue
        words = [b""] if value is None else [value[1:]] if key == "Name" else value.split()
        if value is None or len(words) <= index:
            raise Malformed(f"/proc/PID/status has no {key}, or not as Linux writes it")
        values.append(words[index])
    return tuple(values)


def unescape(name: bytes) -> bytes:
    r"""The value of Name as the task has it: only newline and backslash are escaped.

    >>> unescape(rb"a\nb\\n")
    b'a\nb\\n'
    """
    if b"\\" not in name:
        return name
    return b"\\".join(part.replace(b"\\n", b"\n") for part in name.split(b"\\\\"))
