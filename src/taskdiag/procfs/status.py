"""/proc/PID/status: a key and its value on each line, in a fixed order.

A kernel writes the same lines for every task, except that a task without memory or
without a file system context lacks some.  So the positions of the wanted values are
determined once for each of these forms and compiled into a function, which splits a file
into lines and extracts the values.  A file of another form (of a newer kernel) is parsed by
`parse_lines`, which is slower and accepts any order.
"""

from __future__ import annotations

from .reader import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "MM",
    "TGID",
    "THREADS",
    "compile_parser",
    "forms",
    "keys",
    "parse_lines",
    "unescape",
    "values_of",
)

#: Always extracted: a task that was released while the file was written has 0 threads
#: (fs/proc/array.c, ``task_sig``, without sighand).
THREADS = ("Threads", 0)
#: Always extracted: only tasks with an address space have this line.
MM = ("VmSize", 0)
#: Always extracted: /proc/TID opens for threads too, so a number that was a process's when
#: /proc was listed may be a thread's by now.
TGID = ("Tgid", 0)

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
    compiled = [_compile_form(form, wanted) for form in forms(order)]

    def parse(data: bytes) -> tuple[bytes | None, ...]:
        lines = data.split(b"\n")
        for marks, extract in compiled:
            try:
                for at, key in marks:
                    if not lines[at].startswith(key):
                        break
                else:
                    return extract(lines)
            except IndexError:
                continue
        return parse_lines(data, wanted, block)

    return parse


def forms(order: list[str]) -> list[list[str]]:
    """The forms of the file on this kernel, as keys in order; the most common form first."""
    block = mm_keys(order)
    kernel_thread = [key for key in order if key not in block]
    zombie = [key for key in kernel_thread if key not in _OPTIONAL]
    return [order, kernel_thread, zombie]


def _compile_form(
    form: list[str], wanted: list[tuple[str, int]]
) -> tuple[list[tuple[int, bytes]], Callable[[list[bytes]], tuple[bytes | None, ...]]]:
    """Lines that tell whether a file has this form, and a function from its lines to values."""
    marks, values = values_of(form, wanted)
    extract: Callable[[list[bytes]], tuple[bytes | None, ...]] = eval(
        f"lambda l: ({', '.join(values)},)" if values else "lambda l: ()"
    )
    return marks, extract


def values_of(
    form: list[str], wanted: list[tuple[str, int]]
) -> tuple[list[tuple[int, bytes]], list[str]]:
    """Lines that tell whether a file has this form, and source that cuts values out of them.

    Lines may be missing from a file but never change their order.  So if the last wanted line
    and the line after those that may be missing are in their places, all lines before are too.

    >>> values_of(["Name", "Pid"], [("Pid", 0)])
    ([(1, b'Pid:')], ['l[1].split(None, 2)[1]'])
    """
    present = [key for key, _ in wanted if key in form]
    told = {"Threads"} & set(form)
    if present:
        told.add(max(present, key=form.index))
    marks = sorted((form.index(key), key.encode() + b":") for key in told)
    counts = {key: sum(1 for name, _ in wanted if name == key) for key in present}
    values, split = [], set()
    for key, word in wanted:
        if key not in form:
            values.append("None")
        elif key == "Name":
            values.append(f"l[{form.index(key)}][6:]")
        elif counts[key] == 1 and word == 0:
            values.append(f"l[{form.index(key)}].split(None, 2)[1]")
        else:
            line = f"w{form.index(key)}"
            first = line not in split
            split.add(line)
            words = f"({line} := l[{form.index(key)}].split())" if first else line
            values.append(f"{words}[{word + 1}]")
    return marks, values


def parse_lines(
    data: bytes, wanted: list[tuple[str, int]], may_lack: list[str]
) -> tuple[bytes | None, ...]:
    """Do what the compiled parser does, for a file in any order.  Raises Malformed."""
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
    r"""Undo the escapes in the value of Name: only newline and backslash are escaped.

    >>> unescape(rb"a\nb\\n")
    b'a\nb\\n'
    """
    if b"\\" not in name:
        return name
    return b"\\".join(part.replace(b"\\n", b"\n") for part in name.split(b"\\\\"))
