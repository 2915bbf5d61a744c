"""The process table: rows of text straight from the bytes of a stream.

What was asked for is compiled once per run.  `Table` works out which groups the
columns, the selection and the order need (``Table.show``), where their fields lie
in the messages, and writes the source of a small Python function that picks just
these fields out of a chunk with one `struct.Struct` per message and formats a row
with one ``%``.  No message becomes an object.  For ``ps -o pid,stat`` it is::

    def mixed(data, add, key):
        ...
        while at < end:
            length, head, tgid, cont, sid, pgid, state, threads, ... = FULL(buf, at)
            if head == HEAD and not cont and length == SIZE and mark == MARK:
                at += length
            else: ...
            z = C1[state, nice, locked_vm, sid == tgid, threads > 1, pgid == tpgid]
            v = (tgid, z)
            row = FORMAT % v
            if len(row) != 7 + len(z): row = exact(v)
            add(row)

Columns keep their place as in procps-ng: a value that is too wide pushes what
follows to the right, and the row falls back into step as soon as there is room.
That is rare, so it is handled by noticing that the row's length is not what the
format makes it, and laying out just that row again (`lay_out`).

Whatever is not exactly as expected (a message in several parts, an attribute that
was not asked for, damage) goes through the strict decoder.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct

from .. import abi
from ..abi import GROUPS, MSG, MSG_FLAG_CONT, NLM_F_MULTI, RESPONSE, Attr, Show, align
from ..errors import DecodeError
from ..terminal import CONTROL, cells, clean, clip
from .columns import Column, constants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from .columns import Kind

__all__ = ("Table",)

#: Fields at the start of every message: name to (offset, struct code).
_FRONT = {"pid": (16, "I"), "tgid": (20, "I")}
#: Groups that kernel threads and zombies lack.
_OPTIONAL = (Attr.STATM, Attr.CMDLINE)
_HEAD = Struct("=HH").pack(RESPONSE, NLM_F_MULTI)
#: NULs and newlines in arguments are shown as spaces.
_ARGUMENTS = bytes(
    32 if byte in (0, 10) else CONTROL if byte < 32 or byte == 127 else byte for byte in range(256)
)
#: The same for a block of rows, whose newlines have to stay.
_BLOCK = _ARGUMENTS[:10] + b"\n" + _ARGUMENTS[11:]


class Table:
    """A table of tasks: its columns, which tasks, in which order, how wide.

    ``where`` is a Python expression over field names with what it ``needs``, or
    empty; ``names`` are further names that it uses.  ``order`` are (kind, descending)
    pairs.  ``width`` bounds lines, in cells.

    >>> import os, taskdiag
    >>> from taskdiag.views.columns import column
    >>> table = Table([column("pid"), column("comm")])
    >>> for block in table.format_chunks(taskdiag.stream(table.show, pid=os.getpid())):
    ...     print(block.split())
    [b'...', b'py...']
    """

    def __init__(
        self,
        columns: Sequence[Column],
        where: str = "",
        needs: Iterable[str] = (),
        names: dict[str, object] | None = None,
        order: Sequence[tuple[Kind, bool]] = (),
        width: int | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.width = width
        self._order = tuple(order)
        wanted = {name for item in self.columns for name in item.kind.needs}
        wanted.update(needs, *(kind.needs for kind, _ in order))
        #: The fields to pick, by name: (attribute, offset in it, struct code).
        self._fields: dict[str, tuple[Attr, int, str]] = {}
        attrs = set()
        for name in sorted(wanted.difference(_FRONT)):
            if name == "cmdline":
                attrs.add(Attr.CMDLINE)
            else:
                group, item = abi.field(name)
                assert group.attr is not None
                self._fields[item.name] = group.attr, item.offset, item.code
                attrs.add(group.attr)
        self._attrs = [attr for attr in GROUPS if attr in attrs]
        self._cmdline = Attr.CMDLINE in attrs
        #: The show flags that a request for this table needs.
        self.show = Show(sum(1 << attr for attr in attrs)) or Show.BASE
        if not attrs:
            self._attrs = [Attr.BASE]
        self._names: dict[str, Any] = {**constants(), **(names or {})}
        self._where = where
        self._offset = 0
        last = self.columns[-1]
        #: Whether rows end in arguments, which are made safe block by block.
        self._raw_tail = last.just == "U" and "cmdline" in last.kind.needs
        self._compiled = False

    # --- What is printed ---

    def header(self) -> bytes:
        """The line of headers; nothing if all are empty."""
        if not any(item.header for item in self.columns):
            return b""
        return lay_out(self.columns, [clean(item.header.encode()) for item in self.columns])

    def format_chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The rows of a stream, in blocks of whole lines.

        Raises DecodeError as `taskdiag.decoder.decode` does.
        """
        self._offset = 0
        chunks = self._begin(chunks)
        if self._order:
            rows: list[bytes] = []
            keys: list[tuple[Any, ...]] = []
            for data in chunks:
                self._format(data, rows.append, keys.append)
            for index in reversed(range(len(self._order))):
                ranks = [key[index] for key in keys]
                turn = sorted(
                    range(len(keys)), key=ranks.__getitem__, reverse=self._order[index][1]
                )
                rows = [rows[at] for at in turn]
                keys = [keys[at] for at in turn]
            if rows:
                yield self._finish(rows)
            return
        for data in chunks:
            if self._bulk is not None:
                block = self._in_bulk(data)
                if block is not None:
                    yield block
                    continue
            rows = []
            self._format(data, rows.append, None)
            if rows:
                yield self._finish(rows)

    def _begin(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass chunks on, and compile the row functions when the first one has arrived.

        By then the kernel is busy with the next chunk, so compiling costs no time of its own.
        """
        for chunk in chunks:
            if not self._compiled:
                self._compile()
                self._compiled = True
            yield chunk

    def _format(
        self,
        data: bytes,
        add: Callable[[bytes], None],
        key: Callable[[tuple[Any, ...]], None] | None,
    ) -> None:
        rows = self._uniform if self._is_uniform(data) else self._mixed
        rows(data, add, key)
        self._offset += len(data)

    def _finish(self, rows: list[bytes]) -> bytes:
        """Join rows.  If they end in arguments, make those safe and cut them to the width."""
        block = b"".join(rows)
        if not self._raw_tail and self.width is None:
            return block
        if self.width is None and block.isascii() and block.count(b"\n") == len(rows):
            return block.translate(_BLOCK)
        if self._raw_tail:
            rows = [
                row.translate(_ARGUMENTS)[:-1] + b"\n"
                if row.isascii()
                else clean(row[:-1].replace(b"\0", b" ").replace(b"\n", b" ")) + b"\n"
                for row in rows
            ]
        if self.width is not None and self.columns[-1].just == "U":
            width = self.width
            rows = [row if len(row) <= width else clip(row[:-1], width) + b"\n" for row in rows]
        return b"".join(rows)

    # --- Compilation ---

    def _compile(self) -> None:
        """Write and compile the functions that format the rows of a chunk."""
        body = self._row_body()
        full = _Layout(self._attrs, self._cmdline)
        bare = _Layout([attr for attr in self._attrs if attr not in _OPTIONAL], False)
        used = _names_in(body)
        fields = [name for name in (*_FRONT, *self._fields) if name in used]
        #: Every message has the same length and layout.
        self._always = full.size == bare.size and not self._cmdline
        self._layout = full
        self._variables = (*fields, *(("cmdline",) if self._cmdline else ()))
        names = self._names
        columns = self.columns
        names.update(exact=lambda values: lay_out(columns, values), other=self._other)
        source = self._mixed_source(full, bare, fields, body)
        if self._always:
            source += self._uniform_source(full, fields, body)
        exec(compile("\n".join(source), "<ps row formatter>", "exec"), names)
        self._mixed = names["mixed"]
        self._uniform = names.get("uniform", self._mixed)
        self._compile_bulk()

    def _row_body(self) -> list[str]:
        """The lines that make a row of a task's fields, for all functions the same."""
        values = self._column_values()
        body = [f"if not ({self._where}): continue"] if self._where else []
        body += [
            f"z = {values[-1]}",
            f"v = ({''.join(value + ', ' for value in values[:-1])}z,)",
            "row = FORMAT % v",
            f"if {self._row_format()}: row = exact(v)",
            "add(row)",
        ]
        if self._order:
            body.append(f"key(({self._sort_keys()}))")
        return body

    def _column_values(self) -> list[str]:
        """The expression of each column's value; caches for them become known names."""
        last = len(self.columns) - 1
        values = []
        for index, item in enumerate(self.columns):
            if item.kind.cache is not None:
                # The last column has the rest of the line to itself.
                self._names[f"C{index}"] = item.kind.cache(0 if index == last else item.width)
            values.append(item.kind.expression.replace("{c}", f"C{index}"))
        if self._raw_tail:
            # Raw for now: `_finish` makes whole blocks safe at once.
            values[-1] = (
                '(cmdline.rstrip(b"\\0") if cmdline else b"") or bracketed(name, state, cmdline)'
            )
        return values

    def _row_format(self) -> str:
        """Set FORMAT; the condition under which a row made by it has another width."""
        *before, last = self.columns
        text = "".join(_cell(item) + " " for item in before)
        width = sum(item.width + 1 for item in before) + 1
        if last.just == "R":
            self._names["FORMAT"] = f"{text}{_cell(last)}\n".encode()
            return f"len(row) != {width + last.width}"
        self._names["FORMAT"] = f"{text}%b\n".encode()
        return f"len(row) != {width} + len(z)"

    def _sort_keys(self) -> str:
        """The expressions that rows are sorted by, each with a comma behind it."""
        keys = ""
        for index, (kind, _) in enumerate(self._order):
            if kind.cache is not None:
                self._names[f"O{index}"] = kind.cache(0)
            keys += kind.order.replace("{c}", f"O{index}") + ", "
        return keys

    def _uniform_source(self, layout: _Layout, fields: list[str], body: list[str]) -> list[str]:
        """The function for chunks whose messages all have this layout."""
        struct, targets = layout.picker(self._picks(fields, layout))
        self._names["ITER"] = struct.iter_unpack
        return [
            "def uniform(data, add, key):",
            f"    for {targets} in ITER(data):",
            *(f"        {line}" for line in body),
        ]

    def _compile_bulk(self) -> None:
        """Prepare to format whole chunks by one ``%``, if all columns are plain fields."""
        #: The format of so many rows, by their number; None if the table is not of this kind.
        self._bulk: dict[int, bytes] | None = None
        if not self._always or self._where or self._order:
            return
        fields = [item.kind.expression for item in self.columns]
        if not all(
            item.just == "R" and (field in _FRONT or field in self._fields)
            for item, field in zip(self.columns, fields, strict=True)
        ):
            return
        picks = self._picks(fields, self._layout)
        if sorted(set(picks)) == picks:
            self._bulk = {}
            self._bulk_picker = self._layout.picker(picks)[0]

    def _in_bulk(self, data: bytes) -> bytes | None:
        """Format a whole chunk by one ``%``; None if it is not uniform or a value is too wide."""
        if self._bulk is None or not self._is_uniform(data):
            return None
        number = len(data) // self._layout.size
        line: bytes = self._names["FORMAT"]
        form = self._bulk.get(number)
        if form is None:
            form = self._bulk[number] = line * number
        block = form % tuple(chain.from_iterable(self._bulk_picker.iter_unpack(data)))
        if len(block) != number * sum(item.width + 1 for item in self.columns):
            return None
        self._offset += len(data)
        return block

    def _picks(self, fields: Iterable[str], layout: _Layout) -> list[tuple[int, str, str]]:
        """Offset, struct code and name of each of the fields that a layout has."""
        picks = []
        for name in fields:
            if name in _FRONT:
                picks.append((*_FRONT[name], name))
            elif self._fields[name][0] in layout.starts:
                attr, offset, code = self._fields[name]
                picks.append((layout.starts[attr] + offset, code, name))
        return picks

    def _mixed_source(
        self, full: _Layout, bare: _Layout, fields: list[str], body: list[str]
    ) -> list[str]:
        """The function for chunks whose messages differ in length or groups."""
        names = self._names
        source = [
            "def mixed(data, add, key):",
            "    buf, at, end = data + SLACK, 0, len(data)",
            "    while at < end:",
        ]
        depth = "        "
        for label, layout in (
            (("FULL", full),) if self._always else (("FULL", full), ("BARE", bare))
        ):
            struct, targets = layout.picker(self._picks(fields, layout) + layout.checks)
            names[label] = struct.unpack_from
            names[label + "_MARK"] = layout.mark
            source += [
                f"{depth}{targets} = {label}(buf, at)",
                f"{depth}if {layout.expected(label)}:",
            ]
            if layout.cmdline:
                source.append(
                    f"{depth}    cmdline = data[at + {layout.size + 4}:at + {layout.size} + clen]"
                )
            absent = [name for name in fields if name not in targets.split(", ")]
            if absent:
                source.append(f"{depth}    {' = '.join(absent)} = 0")
            if self._cmdline and not layout.cmdline:
                source.append(f"{depth}    cmdline = None")
            source += [f"{depth}    at += length", f"{depth}else:"]
            depth += "    "
        names["SLACK"] = bytes(full.size + 4)
        names["HEAD"] = Struct("=I").unpack(_HEAD)[0]
        source.append(f"{depth}at, {', '.join(self._variables)} = other(data, at)")
        source += [f"        {line}" for line in body]
        return [*source, "    if at != end: other(data, end)"]

    # --- Messages ---

    def _is_uniform(self, data: bytes) -> bool:
        """Whether all messages of a chunk have the expected layout."""
        size = self._layout.size
        if not self._always or len(data) % size:
            return False
        number = len(data) // size
        return all(
            data[offset::size] == data[offset : offset + 1] * number and data[offset] == byte
            for offset, byte in self._layout.headers
        )

    def _other(self, data: bytes, at: int) -> tuple[Any, ...]:
        """Decode the process at ``at`` strictly: the offset of the next one, then all values."""
        from ..decoder import decode
        from ..netlink import messages

        base = self._offset + at
        piece = data[at:]
        end = 0
        for _, stop, _, _, flags in messages(piece, base):
            if not flags & MSG_FLAG_CONT:
                end = stop
                break
        if not end:
            raise DecodeError(base + len(piece), "truncated: more messages must follow")
        try:
            (task,) = decode([piece[:end]])
        except DecodeError as error:
            reason = str(error).partition(": ")[2]
            raise DecodeError(base + error.offset, reason) from None
        values: list[Any] = [at + end]
        for name in self._variables:
            if name == "cmdline":
                values.append(task.cmdline_raw)
            elif name in _FRONT:
                values.append(getattr(task, name))
            else:
                attr, offset, code = self._fields[name]
                found = task.payloads(attr)
                absent = b"" if code.endswith("s") else 0
                values.append(
                    Struct("=" + code).unpack_from(found[0], offset)[0] if found else absent
                )
        return tuple(values)


class _Layout:
    """The layout of messages with these fixed groups, with or without arguments."""

    def __init__(self, attrs: Sequence[Attr], cmdline: bool) -> None:
        self.cmdline = cmdline
        #: Offset of each group's payload.
        self.starts: dict[Attr, int] = {}
        #: Offset and value of every header byte.
        self.headers: list[tuple[int, int]] = []
        at = MSG.size
        header = Struct("=HH")
        for attr in attrs:
            size = GROUPS[attr].size
            raw = header.pack(4 + size, attr)
            self.headers += [(at + index, byte) for index, byte in enumerate(raw)]
            self.starts[attr] = at + 4
            at += 4 + align(size)
        #: Length of the message without the arguments.
        self.size = at
        front = Struct("=I").pack(at) + _HEAD
        self.headers += [*enumerate(front), *((24 + index, 0) for index in range(4))]
        self.checks = [(0, "I", "length"), (4, "I", "head"), (24, "I", "cont")]
        #: The header of the last fixed group.  If it is in its place, all others are.
        self.mark: int | None = None
        if attrs:
            self.mark = Struct("=I").unpack(raw)[0]
            self.checks.append((self.starts[attrs[-1]] - 4, "I", "mark"))
        if cmdline:
            self.checks += [(at, "H", "clen"), (at + 2, "H", "kind")]

    def expected(self, label: str) -> str:
        """The condition under which a message has this layout."""
        tests = ["head == HEAD", "not cont"]
        if self.mark is not None:
            tests.append(f"mark == {label}_MARK")
        if self.cmdline:
            tests += [f"kind == {int(Attr.CMDLINE)}", f"length == {self.size} + (clen + 3 & -4)"]
        else:
            tests.append(f"length == {self.size}")
        return " and ".join(tests)

    def picker(self, picks: Iterable[tuple[int, str, str]]) -> tuple[Struct, str]:
        """A struct of the layout's size that unpacks just these, and names for its values."""
        code, at, names = "=", 0, []
        for offset, item, name in sorted(picks):
            code += f"{offset - at}x{item}"
            at = offset + Struct("=" + item).size
            names.append(name)
        return Struct(f"{code}{max(0, self.size - at)}x"), ", ".join(names) + ", "


def lay_out(columns: Sequence[Column], values: Sequence[int | bytes]) -> bytes:
    """A row whose values do not fit their columns, as procps-ng lays it out."""
    row = b""
    #: Where the column should start, and where the row ends so far.
    correct = actual = 0
    last = len(columns) - 1
    for index, (item, value) in enumerate(zip(columns, values, strict=True)):
        text = b"%d" % value if isinstance(value, int) else value
        if index < last:
            text = text.rstrip(b" ")
        amount = cells(text)
        pad = item.width - amount if item.just == "R" and amount < item.width else 0
        space = correct - actual + pad
        if space < 1:
            space = 1 if index else 0
        row += b" " * space + text
        actual += space + amount
        correct += item.width + 1
    return row + b"\n"


def _cell(item: Column) -> str:
    """The ``%`` conversion of a column, padded to its width."""
    if item.just == "R":
        return f"%{item.width}{'d' if item.kind.cache is None else 'b'}"
    return f"%-{item.width}b"


def _names_in(body: Iterable[str]) -> set[str]:
    source = "def f():\n while 1:\n" + "".join(f"  {line}\n" for line in body)
    return set(compile(source, "<names>", "exec").co_consts[0].co_names)
