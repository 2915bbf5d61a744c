"""``taskdiag ps``: the process table, with the options of ps(1).

UNIX options (``-ef``), BSD options (``aux``) and long options are taken apart as
procps-ng 4.0.2 does, including that what makes no sense as UNIX options is read
again as BSD ones (``-aux``).
"""

from __future__ import annotations

import gc
import os
from itertools import chain
from sys import byteorder

from ..abi import Dump
from ..engine import choose
from ..errors import NoSuchProcess, RequestError
from ..request import Request
from ..terminal import terminal_width
from ..views.columns import COLUMNS, Column, column, kind_of, numeric
from ..views.ps import Table
from .output import write, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..engine import Engine
    from ..views.columns import Kind

__all__ = ("Options", "choose_columns", "parse", "parse_columns", "run")

_HELP = """\
usage: taskdiag ps [OPTIONS]

Show processes, as ps(1) of procps-ng does.

which:    -A -e ax (all)  -a  -d  a  x  r  T  -N --deselect
          -p p --pid LIST   -q --quick-pid LIST   --ppid LIST   -s --sid LIST   -C NAMES
          -u U --user LIST  -U --User LIST  -G --Group LIST  --group LIST  -g LIST
          -t t --tty LIST   PID...
columns:  -f -F -j u j      -o o --format COLUMN[:WIDTH][=HEADER],...      -O COLUMN,...
          -c -P -y modify   L lists the columns known
threads:  -L  -T  H
more:     k --sort [+|-]COLUMN,...   w -w --cols N   h --no-headers   n   c
"""


class Options:
    """The meaning of a command line."""

    def __init__(self) -> None:
        #: Whether any option was a BSD one.  Then the defaults are those of BSD.
        self.bsd = False
        self.all = False
        #: Simple selections, with their dash if they have one: -a -d a g x.
        self.simple: set[str] = set()
        #: What to select by value: field, catalogue name, values.
        self.lists: list[tuple[str, str, frozenset[int | bytes]]] = []
        #: The pids of -q, in the order given.
        self.sequence: list[int] = []
        self.negate = False
        self.running = False
        #: Formats (-f, u, j) and their modifiers.
        self.formats: set[str] = set()
        self.modifiers: set[str] = set()
        self.columns: list[Column] = []
        self.order: list[tuple[Kind, bool]] | None = None
        #: The options given among -L, -T and H.
        self.threads: set[str] = set()
        self.header = True
        self.wide = 0
        self.screen: int | None = None
        self.numeric = False
        self.short_names = False
        #: What to tell about the command itself, instead of a table: "help", "version",
        #: "columns"; "" for a table.
        self.tell = ""


def run(args: list[str], engine: str | None) -> int:
    """Run the command; the status is 1 if there was nothing to show."""
    options = parse(args)
    if options.tell:
        write(_told(options.tell).encode())
        return 0
    # Almost everything that is allocated lives until the process ends, so looking for
    # garbage would find none.
    gc.disable()
    columns = choose_columns(options)
    where, needs, names = _selection(options)
    width = _width(options, columns)
    order = options.order or []
    if options.threads:
        # Answers are in the order of thread ids; ps keeps threads of a process together.
        order = [*order, (kind_of("tgid"), False)]
    table = Table(columns, where, needs, names, order, width)
    rows = table.format_chunks(_chunks(choose(engine, read_ahead=True), table, options))
    # The header is written with the first rows, so that a failing engine prints no header.
    first = next(rows, b"")
    write_all(chain((table.header() if options.header else b"", first), rows))
    return 0 if first else 1


def _told(what: str) -> str:
    """What options tell about the command itself."""
    if what == "help":
        return _HELP
    if what == "version":
        from .. import __version__

        return f"ps from taskdiag {__version__}\n"
    return "".join(f"{name:<12} {spec[0]:<8}\n" for name, spec in COLUMNS.items())


# --- Requests ---------------------------------------------------------------

#: For more pids than this, it is cheaper to ask for all processes.
_FEW = 16


def _chunks(engine: Engine, table: Table, options: Options) -> Iterator[bytes]:
    """The answers to the narrowest requests that cover the selection."""
    strategy = Dump.ALL_THREAD if options.threads else Dump.ALL
    pids: Iterable[int] = (0,)
    if len(options.lists) == 1 and not (options.all or options.simple or options.negate):
        field, _, values = options.lists[0]
        numbers = sorted(value for value in values if isinstance(value, int))
        if field == "tgid" and (options.sequence or len(numbers) <= _FEW):
            strategy = Dump.THREAD if options.threads else Dump.ONE
            pids = options.sequence or numbers
        elif field == "ppid" and len(numbers) == 1 and not options.threads:
            strategy, pids = Dump.CHILDREN, numbers
    for pid in pids:
        try:
            yield from engine.stream(Request(table.show, strategy, pid))
        except NoSuchProcess:
            continue


def _selection(options: Options) -> tuple[str, list[str], dict[str, object]]:
    """The condition on a task, the fields it needs and the names it uses."""
    needs: list[str] = []
    names: dict[str, object] = {}
    tests = []
    if not options.all:
        if options.simple or not options.lists:
            bits = _simple_bits(options)
            if bits is not None:
                needs += ["cred.euid", "base.sid", "tty.tty_nr"]
                names.update(BITS=bits, ME=os.geteuid(), MY_TTY=_own_tty())
                tests.append(
                    "BITS >> ((euid == ME) | (sid == tgid) << 1 | (not tty_nr) << 2"
                    " | (tty_nr == MY_TTY) << 3) & 1"
                )
            else:
                tests.append("True")
        for index, (field, need, values) in enumerate(options.lists):
            needs.append(need)
            names[f"LIST{index}"] = values
            value = 'name.partition(b"\\0")[0]' if field == "name" else field
            tests.append(f"{value} in LIST{index}")
    where = " or ".join(tests)
    if where == "True":
        where = ""
    if options.running:
        needs.append("base.state")
        where = f"({where or True}) and state in (0, 2)"
    if options.negate:
        where = f"not ({where or True})"
    return where, [name for name in needs if name], names


def _simple_bits(options: Options) -> int | None:
    """The kinds of task, of 16, that the simple selections take, as a bit mask; None for all.

    In the number of a kind, bit 0 says that the task has our effective user, bit 1 that it
    leads its session, bit 2 that it has no terminal, and bit 3 that it has our terminal (or
    none, where we have none).
    """
    simple = options.simple
    if not simple and not options.bsd:
        return 0xAA00
    dashed = simple & {"-a", "-d"}
    if dashed and simple - dashed - {"g"}:
        raise RequestError("-a and -d do not go together with a and x")
    if dashed:
        return {"-a": 0x0303, "-d": 0x3333}.get("".join(dashed), 0x3F3F)
    if {"a", "x"} <= simple:
        return None
    return 0x0F0F if "a" in simple else 0xAAAA if "x" in simple else 0x0A0A


def _own_tty() -> int:
    """The device number of our controlling terminal, encoded as in the TTY group; 0 if none."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        from fcntl import ioctl

        # TIOCGDEV (include/uapi/asm-generic/ioctls.h): the device behind /dev/tty.
        return int.from_bytes(ioctl(terminal, 0x80045432, bytes(4)), byteorder)
    except OSError:
        return 0
    finally:
        os.close(terminal)


# --- Columns ----------------------------------------------------------------

_READY = {
    "u": "user pid pcpu pmem vsz rss tname stat start_time bsdtime args",
    "j": "ppid pid pgid sid tname tpgid stat uid bsdtime args",
}


def choose_columns(options: Options) -> list[Column]:
    """The columns of a format, or those that the user named.

    Raises RequestError where formats contradict each other.
    """
    chosen = options.columns
    preferred = os.environ.get("PS_FORMAT")
    if preferred and not (chosen or options.formats or options.modifiers):
        chosen = parse_columns(preferred)
    if chosen:
        if options.formats or options.modifiers:
            raise RequestError("a user-defined format goes without -f, -F, -j, -c, -P, -y, u and j")
        columns = chosen
    elif len(options.formats) > 1:
        raise RequestError(f"formats {' and '.join(sorted(options.formats))} contradict each other")
    elif options.formats & {"u", "j"}:
        columns = _ready(options)
    else:
        columns = [column(name) for name in _standard(options)]
    if options.short_names:
        columns = [
            Column(item.name, item.header, item.width, item.just, kind_of("comm"))
            if "cmdline" in item.kind.needs
            else item
            for item in columns
        ]
    return [numeric(item) for item in columns] if options.numeric else columns


def _ready(options: Options) -> list[Column]:
    (form,) = options.formats
    if options.modifiers:
        raise RequestError(f"format {form} goes without -F, -j, -c, -P and -y")
    names = _READY[form].split()
    if "T" in options.threads:
        names.insert(names.index("pid") + 1, "spid")
    if "L" in options.threads:
        after = next(name for name in ("sid", "pgid", "ppid", "pid") if name in names)
        names.insert(names.index(after) + 1, "lwp")
        if "pcpu" in names:
            names.insert(names.index("pcpu") + 1, "nlwp")
    return [column(name) for name in names]


def _standard(options: Options) -> list[str]:
    """The columns of the standard format, of -f, and of what modifies them."""
    full, extra = "-f" in options.formats, options.modifiers
    if "y" in extra:
        raise RequestError("-y without -l makes no sense")
    names = ["uid_hack"] if full else []
    names.append("pid")
    if "T" in options.threads:
        names.append("spid")
    if full:
        names.append("ppid")
    if "j" in extra:
        names += ["pgid", "sid"]
    if "L" in options.threads:
        names.append("lwp")
    if "P" in extra:
        names.append("psr")
    if full and "c" not in extra:
        names.append("c")
    if full and "L" in options.threads:
        names.append("nlwp")
    if "c" in extra:
        names += ["class", "pri"]
    if "F" in extra:
        names += ["sz", "rss"]
        if "P" not in extra:
            names.append("psr")
    if full:
        names.append("stime")
    names.append("tname")
    if options.bsd:
        return [*names, "stat", "bsdtime", "cmd" if full else "args"]
    return [*names, "time", "cmd" if full else "ucmd"]


def _width(options: Options, columns: list[Column]) -> int | None:
    """The most cells of a line, in whole screens as the columns need; None for no limit."""
    screen = options.screen or terminal_width()
    if options.wide:
        screen = None if options.wide > 1 or screen is None else max(132, screen)
    if screen is None:
        return None
    last = columns[-1]
    total = sum(item.width + 1 for item in columns[:-1])
    total += 3 if last.just == "U" else last.width
    return screen * max(1, -(-total // screen))


# --- The options ----------------------------------------------------------


def parse(args: list[str]) -> Options:
    """Parse a command line.

    Like procps-ng, this tries UNIX options first.  If the command line makes no sense then, it
    is read again with all options as BSD options.  Raises RequestError if both fail; the error
    is about the first reading.
    """
    try:
        return _checked(_Parser(args, force_bsd=False).parse())
    except RequestError as error:
        try:
            return _checked(_Parser(args, force_bsd=True).parse())
        except RequestError:
            raise error from None


def _checked(options: Options) -> Options:
    """Return the same options.  Raises RequestError if two of them contradict each other."""
    if not options.tell:
        choose_columns(options)
        _simple_bits(options)
    return options


def _words(text: str, what: str) -> list[str]:
    """The items of a list of processes, users and so on."""
    items = text.replace(" ", ",").replace("\t", ",").split(",")
    if "" in items:
        raise RequestError(f"{what} list {text!r} has an empty item")
    return items


def _names(text: str, what: str) -> list[str]:
    """The items of a list of columns: one separator may end it, and a newline is one."""
    for blank in " \t\n":
        text = text.replace(blank, ",")
    items = text.removesuffix(",").split(",")
    if "" in items:
        raise RequestError(f"{what} list {text!r} has an empty item")
    return items


_ULONG_MAX = 0xFFFFFFFFFFFFFFFF


def _number(text: str) -> int | None:
    """The number that strtoul(3) reads in base 0, None if it does not read the whole text.

    >>> _number("0x10"), _number("010"), _number("+10"), _number("10x")
    (16, 8, 10, None)
    >>> _number("-1") == _ULONG_MAX
    True
    """
    digits = text.lstrip(" \t\n\v\f\r")
    negative = digits.startswith("-")
    if digits[:1] in ("+", "-"):
        digits = digits[1:]
    base = 10
    if digits[:2] in ("0x", "0X"):
        base, digits = 16, digits[2:]
    elif digits.startswith("0"):
        base = 8
    allowed = "0123456789abcdefABCDEF" if base == 16 else "0123456789"[:base]
    if not digits or digits.strip(allowed) or not digits.isalnum():
        return None
    digits = digits.lstrip("0")
    # No number of 23 digits fits, in whatever base; int() refuses decimal ones of thousands.
    value = int(digits[:23] or "0", base)
    if value > _ULONG_MAX:
        return _ULONG_MAX
    return -value & _ULONG_MAX if negative else value


def _pid(text: str, negate: bool) -> int:
    number = _number(text)
    if number is None:
        raise RequestError(f"{text!r} is not a process id")
    if not 0 < number <= 0x7FFFFFFF:
        raise RequestError(f"process id {text} is out of range: it is from 1 to {0x7FFFFFFF}")
    return number


def _user(text: str, negate: bool) -> int:
    number = _number(text)
    if number is None:
        import pwd

        try:
            return pwd.getpwnam(text).pw_uid
        except (KeyError, ValueError):
            return _unknown(f"no user is called {text!r}", negate)
    return _id(number, "user", text, negate)


def _group(text: str, negate: bool) -> int:
    number = _number(text)
    if number is None:
        import grp

        try:
            return grp.getgrnam(text).gr_gid
        except (KeyError, ValueError):
            return _unknown(f"no group is called {text!r}", negate)
    return _id(number, "group", text, negate)


def _id(number: int, what: str, text: str, negate: bool) -> int:
    if number > 0xFFFFFFFE:
        why = f"{what} id {text} is out of range: it is from 0 to {0xFFFFFFFE}"
        return _unknown(why, negate)
    return number


def _unknown(why: str, negate: bool) -> int:
    """With ``negate``, an id that no process has; otherwise raises RequestError."""
    if negate:
        return 0xFFFFFFFF
    raise RequestError(why)


def _command(text: str, negate: bool) -> bytes:
    return os.fsencode(text)[:63]


def _terminal(text: str, negate: bool) -> int:
    names = f"/dev/pts/{text}", f"/dev/{text}", f"/dev/tty{text}", f"/dev/pty{text}"
    for path in (text,) if text.startswith("/") else (*names, f"/dev/{text}nsole"):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        if found.st_mode & 0o170000 != 0o020000:
            raise RequestError(f"{path} is not a terminal")
        major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        # As tasks carry it: new_encode_dev() of include/linux/kdev_t.h.
        return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    if text in ("-", "?"):
        return 0
    raise RequestError(f"no terminal is called {text!r}")


def parse_columns(text: str) -> list[Column]:
    """The columns that the value of -o names: ``NAME[:WIDTH][=HEADER],...``.

    Raises RequestError.
    """
    found = []
    for item in _names(text, "column"):
        spec, equals, header = item.partition("=")
        name, colon, digits = spec.partition(":")
        width = 0
        if colon:
            if not (digits.isascii() and digits.isdecimal() and len(digits) < 6) or (
                digits.startswith("0")
            ):
                raise RequestError(f"column width {digits!r} is not a number from 1 to 99999")
            width = int(digits)
        found.append(column(name, header if equals else None, width))
    return found


def _order_list(text: str) -> list[tuple[Kind, bool]]:
    order = []
    for item in _names(text, "sort"):
        name = item[1:] if item[0] in "+-" else item
        order.append((column(name).kind, item[0] == "-"))
    return order


#: Kinds of lists: what an item is called, the field and its catalogue name, how to read an item.
_COMMANDS = ("command", "name", "name.name", _command)
_PIDS = ("process id", "tgid", "", _pid)
_PARENTS = ("process id", "ppid", "base.ppid", _pid)
_SESSIONS = ("session", "sid", "base.sid", _pid)
_TERMINALS = ("terminal", "tty_nr", "tty.tty_nr", _terminal)
_USERS = ("user", "euid", "cred.euid", _user)
_REAL_USERS = ("user", "uid", "cred.uid", _user)
_GROUPS = ("group", "egid", "cred.egid", _group)
_REAL_GROUPS = ("group", "gid", "cred.gid", _group)
#: Options with a list.
_LISTS: dict[str, tuple[str, str, str, Callable[[str, bool], int | bytes]]] = {
    "-C": _COMMANDS,
    "-G": _REAL_GROUPS,
    "-U": _REAL_USERS,
    "-g": _SESSIONS,
    "-p": _PIDS,
    "-q": _PIDS,
    "-s": _SESSIONS,
    "-t": _TERMINALS,
    "-u": _USERS,
    "U": _USERS,
    "p": _PIDS,
    "q": _PIDS,
    "t": _TERMINALS,
    "--Group": _REAL_GROUPS,
    "--User": _REAL_USERS,
    "--group": _GROUPS,
    "--pid": _PIDS,
    "--ppid": _PARENTS,
    "--quick-pid": _PIDS,
    "--sid": _SESSIONS,
    "--tty": _TERMINALS,
    "--user": _USERS,
}
_NO_HEADER = frozenset(
    f"--no{dash}{word}"
    for dash in ("", "-")
    for word in ("header", "headers", "heading", "headings")
)
#: Options of ps(1) that make sense but are not here.
_LATER = frozenset(
    (
        *(f"-{letter}" for letter in "HMZlmD"), *"OSXZeflmsvM", "--context", "--cumulative",
        "--forest", "--date-format", "--header", "--headers", "--heading", "--headings",
        "--info", "--lines", "--rows",
    )
)  # fmt: skip


class _Parser:
    """One pass over a command line."""

    def __init__(self, args: list[str], force_bsd: bool) -> None:
        self.args = args
        self.at = 0
        self.force_bsd = force_bsd
        self.options = Options()
        self.options.bsd = force_bsd
        #: The rest of the argument that is being read.
        self.rest = ""

    def parse(self) -> Options:
        """Read all arguments.  Raises RequestError for one that is not understood."""
        while self.at < len(self.args) and not self.options.tell:
            arg = self.args[self.at]
            self.at += 1
            first, second = arg[:1], arg[1:2]
            if arg.startswith("--") and arg[2:3].isalpha():
                self._long(arg)
            elif first == "-" and second.isalpha() and not self.force_bsd:
                self._letters(arg[1:], "-", self._unix)
            elif first.isalpha() or (first == "-" and second.isalpha()):
                if self.force_bsd and first != "-":
                    raise RequestError(f"unknown option {arg!r}")
                self.options.bsd = True
                self._letters(arg.removeprefix("-"), "", self._bsd)
            elif first.isdecimal() or first == "+" or (first == "-" and second.isdecimal()):
                self.options.bsd = True
                self._trailing([arg, *self.args[self.at :]])
                break
            else:
                raise RequestError(
                    f"unknown argument {arg!r}: taskdiag ps --help lists those known"
                )
        if {"L", "T"} <= self.options.threads:
            raise RequestError("-L and -T exclude each other")
        return self.options

    def _letters(self, letters: str, dash: str, handle: Callable[[str], bool]) -> None:
        self.rest = letters
        while self.rest and not self.options.tell:
            letter, self.rest = self.rest[0], self.rest[1:]
            name = dash + letter
            if name in _LATER:
                raise RequestError(f"option {name} is not supported yet")
            if name in _LISTS:
                self._list(name, self._value(name))
            elif not handle(letter):
                raise RequestError(f"unknown option {name!r}: taskdiag ps --help lists those known")

    def _value(self, name: str) -> str:
        """The rest of the argument, or the next one."""
        value, self.rest = self.rest, ""
        if not value and self.at < len(self.args):
            value = self.args[self.at]
            self.at += 1
        if not value:
            raise RequestError(f"option {name} needs a value")
        return value

    def _alone(self, option: str, tell: str) -> None:
        if len(self.args) > 1:
            raise RequestError(f"option {option} goes alone")
        self.options.tell = tell

    def _no_header(self) -> None:
        if not self.options.header:
            raise RequestError("only one option about headers may be given")
        self.options.header = False

    def _list(self, name: str, text: str) -> None:
        what, field, need, read = _LISTS[name]
        negate = self.options.negate
        try:
            items = [read(item, negate) for item in _words(text, what)]
        except RequestError:
            if name != "-g":
                raise
            _, field, need, read = _GROUPS
            try:
                items = [read(item, negate) for item in _words(text, what)]
            except RequestError:
                why = f"{text!r} is a list neither of session ids nor of groups"
                raise RequestError(why) from None
        if name in ("-q", "q", "--quick-pid"):
            self.options.sequence = [item for item in dict.fromkeys(items) if isinstance(item, int)]
        if name == "-C":
            # The kernel keeps 15 bytes of a process's name, so that many are enough.
            items += [item[:15] for item in items if isinstance(item, bytes)]
        self.options.lists.append((field, need, frozenset(items)))

    def _unix(self, letter: str) -> bool:
        options = self.options
        if letter in "Ae":
            options.all = True
        elif letter in "ad":
            options.simple.add("-" + letter)
        elif letter == "N":
            options.negate = True
        elif letter in "fF":
            options.formats.add("-f")
            if letter == "F":
                options.modifiers.add("F")
        elif letter in "jcPy":
            options.modifiers.add(letter)
        elif letter in "LT":
            options.threads.add(letter)
        elif letter == "o":
            options.columns += parse_columns(self._value("-o"))
        elif letter == "O":
            if options.columns:
                raise RequestError("-O can not follow other formats")
            options.columns = [column("pid"), *parse_columns(self._value("-O"))]
            options.columns += map(column, ("state", "tname", "time", "command"))
        elif letter == "V":
            self._alone("-V", "version")
        elif letter == "w":
            options.wide += 1
        else:
            return False
        return True

    def _bsd(self, letter: str) -> bool:
        options = self.options
        if letter in "agx":
            options.simple.add(letter)
        elif letter in "uj":
            options.formats.add(letter)
        elif letter == "H":
            options.threads.add("H")
        elif letter == "L":
            self._alone("L", "columns")
        elif letter == "T":
            options.lists.append(("tty_nr", "tty.tty_nr", frozenset((_own_tty(),))))
        elif letter == "V":
            self._alone("V", "version")
        elif letter == "c":
            options.short_names = True
        elif letter == "h":
            self._no_header()
        elif letter == "k":
            self._sort(self._value("k"))
        elif letter == "n":
            options.numeric = True
        elif letter == "o":
            options.columns += parse_columns(self._value("o"))
        elif letter == "r":
            options.running = True
        elif letter == "w":
            options.wide += 1
        elif letter.isdecimal():
            pids, self.rest = letter + self.rest, ""
            self._list("p", pids)
        else:
            return False
        return True

    def _sort(self, text: str) -> None:
        if self.options.order is not None:
            raise RequestError("there can be only one sort order")
        self.options.order = _order_list(text)

    def _long(self, arg: str) -> None:
        # A value follows "=" or ":", or is the next argument.
        end = min(at for at in (arg.find("="), arg.find(":"), len(arg)) if at >= 0)
        name, self.rest = arg[:end], arg[end + 1 :]
        if name in _LATER:
            raise RequestError(f"option {name} is not supported yet")
        if name == "--engine":
            raise RequestError("--engine goes before the command: taskdiag --engine NAME ps ...")
        if end < len(arg):
            if name == "--deselect" or name == "--version" or name in _NO_HEADER:
                raise RequestError(f"option {name} does not take a value")
            if not self.rest:
                raise RequestError(f"option {name} needs a value")
        if name in _LISTS:
            self._list(name, self._value(name))
        elif not self._long_without_list(name):
            raise RequestError(f"unknown option {name!r}: taskdiag ps --help lists those known")

    def _long_without_list(self, name: str) -> bool:
        options = self.options
        if name == "--format":
            options.columns += parse_columns(self._value(name))
        elif name == "--sort":
            self._sort(self._value(name))
        elif name in ("--cols", "--columns", "--width"):
            value = self._value(name)
            number = _number(value)
            if number is None or "-" in value or not 0 < number < 2_000_000_000:
                raise RequestError(f"{name} needs a number of columns, not {value!r}")
            options.screen = number
        elif name == "--deselect":
            options.negate = True
        elif name == "--help":
            options.tell = "help"
        elif name == "--version":
            self._alone(name, "version")
        elif name in _NO_HEADER:
            self._no_header()
        else:
            return False
        return True

    def _trailing(self, args: list[str]) -> None:
        """Process ids, and with a dash process groups, with a plus sessions."""
        groups = {"": ("tgid", ""), "-": ("pgid", "base.pgid"), "+": ("sid", "base.sid")}
        for sign, (field, need) in groups.items():
            numbers = frozenset(
                _pid(arg[len(sign) :], False)
                for arg in args
                if (arg[:1] if arg[:1] in ("+", "-") else "") == sign
            )
            if numbers:
                self.options.lists.append((field, need, numbers))
