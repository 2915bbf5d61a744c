"""The columns of ``ps``: procps-ng 4.0.2's names, headers, widths and values.

A `Kind` says how a value is computed: which fields of the contract it needs, and a Python
expression over them, which :mod:`taskdiag.views.ps` compiles into its row formatter.  If a
column has few different values, its kind has a `Cache`, ``{c}`` in the expression, that makes
each text once.
`COLUMNS` then gives every name its header, width, justification and kind.
"""

from __future__ import annotations

import os
import time

from ..errors import RequestError
from ..terminal import cells, clean, clip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Texts(Protocol):
        """Anything with ``[]`` that gives the text of a value."""

        def __getitem__(self, key: Any, /) -> bytes: ...


__all__ = ("COLUMNS", "Column", "Kind", "column", "constants", "kind_of", "numeric", "pid_width")

#: Clock ticks a second, and the size of a page in KiB.
HZ = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


def constants() -> dict[str, object]:
    """The names that row expressions may use.  None of them needs /proc."""
    since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return {
        "HZ": HZ,
        "PAGE_KB": PAGE_KB,
        "NOW": since_boot * HZ // 1_000_000_000,
        "USER_NAME": _USER_NAME,
        "GROUP_NAME": _GROUP_NAME,
        "TTY_NAME": _TTY_NAME,
        "bracketed": bracketed,
    }


def _boot_time() -> int:
    """The time of boot in seconds since 1970, as ``btime`` in /proc/stat."""
    return (time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1_000_000_000


class Cache(dict[object, bytes]):
    """Maps values to texts; ``make`` is called once for each value."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., bytes]) -> None:
        self.make = make

    def __missing__(self, key: object) -> bytes:
        text = self[key] = self.make(key)
        return text


class Kind:
    """How the value of a column is computed.

    ``needs`` are fields (``group.field``), ``expression`` the value, an int or clean
    bytes.  ``cache`` makes the `Cache` of one column from its width (0 = unbounded).
    ``order`` is the expression that it sorts by.
    """

    __slots__ = ("cache", "expression", "needs", "order")

    def __init__(
        self,
        needs: str,
        expression: str,
        cache: Callable[[int], Texts] | None = None,
        order: str = "",
    ) -> None:
        self.needs = tuple(needs.split())
        self.expression = expression
        self.cache = cache
        self.order = order or expression


class Column:
    """One column of a table: a name of `COLUMNS` with its header and width settled."""

    __slots__ = ("header", "just", "kind", "name", "width")

    def __init__(self, name: str, header: str, width: int, just: str, kind: Kind) -> None:
        self.name = name
        self.header = header
        self.width = width
        #: Justification: L left, R right, N user or group name, U left and cut to the width.
        self.just = just
        self.kind = kind


# --- Texts ----------------------------------------------------------------


def _fixed(make: Callable[..., bytes]) -> Callable[[int], Texts]:
    """A cache whose texts do not depend on the column's width."""
    return lambda width: Cache(make)


def _padded(text: bytes, width: int) -> bytes:
    # Beyond ASCII a text has more bytes than cells.  It is then longer than the column, so
    # the row formatter lays the row out exactly.
    return text if text.isascii() else text + b" " * max(0, width - cells(text))


def _stat(key: tuple[int, int, int, bool, bool, bool]) -> bytes:
    state, nice, locked, leader, threads, foreground = key
    text = "RSDTtXZPI?"[min(state, 9)]
    if nice:
        text += "<" if nice < 0 else "N"
    text += "L" * bool(locked) + "s" * leader + "l" * threads + "+" * foreground
    return text.encode()


def _state(state: int) -> bytes:
    return b"%c" % b"RSDTtXZPI?"[min(state, 9)]


def _clock(seconds: int) -> bytes:
    """``[dd-]hh:mm:ss``."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours:02}:{minutes:02}:{seconds:02}"
    return (f"{days}-{text}" if days else text).encode()


def _elapsed(seconds: int) -> bytes:
    """``[[dd-]hh:]mm:ss``."""
    text = _clock(max(0, seconds))
    return text[3:] if len(text) == 8 and text.startswith(b"00:") else text


def _bsd_time(seconds: int) -> bytes:
    return b"%3d:%02d" % divmod(seconds, 60)


def _per_mille(value: int) -> bytes:
    value = max(0, value)
    return b"%d" % (value // 10) if value > 999 else b"%d.%d" % divmod(value, 10)


def _memory_share(width: int) -> Texts:
    total = os.sysconf("SC_PHYS_PAGES")
    return Cache(lambda pages: b"%2d.%d" % divmod(min(999, pages * 1000 // total), 10))


def _when(make: Callable[[int, int], str]) -> Callable[[int], Texts]:
    """Texts of start times in seconds since boot; ``make`` gets start and now, since 1970."""

    def cache(width: int) -> Texts:
        boot, now = _boot_time(), int(time.time())
        return Cache(lambda seconds: make(boot + seconds, now).encode())

    return cache


def _start_time(start: int, now: int) -> str:
    then, today = time.localtime(start), time.localtime(now)
    if then.tm_year != today.tm_year:
        return str(then.tm_year)
    return time.strftime("%H:%M" if then.tm_yday == today.tm_yday else "%b%d", then)


def _bsd_start(start: int, now: int) -> str:
    text = time.ctime(start)
    return text[4:10] if now - start > 86400 else " " + text[11:16]


def _start(start: int, now: int) -> str:
    text = time.ctime(start)
    if start + 86400 > now:
        return text[11:19]
    return "  " + text[4:10].replace("  ", " 0")


def _name(kind: str) -> Texts:
    def find(number: int) -> bytes:
        import grp
        import pwd

        try:
            name = pwd.getpwuid(number)[0] if kind == "user" else grp.getgrgid(number)[0]
        except (KeyError, OverflowError):
            return b"%d" % number
        # For names of 33 bytes or more procps-ng shows the number.
        raw = os.fsencode(name)
        return clean(raw) if len(raw) < 33 else b"%d" % number

    return Cache(find)


_USER_NAME = _name("user")
_GROUP_NAME = _name("group")


def _names(source: Texts) -> Callable[[int], Texts]:
    """User or group names; one that is too long for the width is cut and ends in ``+``."""

    def cache(width: int) -> Texts:
        def make(number: int) -> bytes:
            name = source[number]
            if not width or cells(name) <= width:
                return _padded(name, width)
            return name[: width - 1] + b"+" if name[:width].isascii() else b"%d" % number

        return Cache(make)

    return cache


def _devices() -> list[str]:
    try:
        return [name for name in os.listdir("/dev") if name.startswith(("tty", "hvc"))]
    except OSError:
        return []


def _tty_name(number: int) -> bytes:
    """The name of a terminal in /dev by its device number; ``?`` if it is not there."""
    if not number:
        return b"?"
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    guesses = []
    if 136 <= major <= 143:
        guesses.append(f"pts/{(major - 136) * 256 + minor}")
    elif major == 4:
        guesses.append(f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}")
    elif major == 5 and minor < 3:
        guesses.append(("tty", "console", "ptmx")[minor])
    else:
        guesses += _devices()
    device = os.makedev(major, minor)
    for name in guesses:
        try:
            if os.stat("/dev/" + name).st_rdev == device:
                return clean(os.fsencode(name))
        except OSError:
            continue
    return b"?"


_TTY_NAME: Texts = Cache(_tty_name)


def _command_name(width: int) -> Texts:
    def make(raw: bytes) -> bytes:
        name = clean(raw.partition(b"\0")[0])
        return _padded(clip(name, width), width) if width else name

    return Cache(make)


def bracketed(name: bytes, state: int, cmdline: bytes | None) -> bytes:
    """The text for a task without arguments: its name in brackets."""
    if cmdline:
        return b"?"  # It has arguments, but they are only NULs.
    text = b"[" + clean(name.partition(b"\0")[0]) + b"]"
    return text + b" <defunct>" if state == 6 else text


class Arguments:
    """Arguments in a column that is not the last: clean, and cut to the column's width."""

    __slots__ = ("width",)

    def __init__(self, width: int) -> None:
        self.width = width

    def __getitem__(self, key: tuple[bytes | None, bytes, int]) -> bytes:
        cmdline, name, state = key
        raw = (cmdline or b"").rstrip(b"\0").replace(b"\0", b" ").replace(b"\n", b" ")
        text = clean(raw) if raw else bracketed(name, state, cmdline)
        return _padded(clip(text, self.width), self.width) if self.width else text


_POLICIES = ("TS", "FF", "RR", "B", "ISO", "IDL", "DLN", "EXT")


def _policy(number: int) -> bytes:
    return (_POLICIES[number] if number < len(_POLICIES) else "?").encode()


# --- The table ------------------------------------------------------------

_SECONDS = "(utime + stime) // HZ"
_STARTED = "{c}[start_time // HZ]"
_SHARE = "// (NOW - start_time or 1)"


def _names_of(field: str) -> Kind:
    source = _GROUP_NAME if "gid" in field else _USER_NAME
    name = "GROUP_NAME" if "gid" in field else "USER_NAME"
    return Kind(f"cred.{field}", f"{{c}}[{field}]", _names(source), f"{name}[{field}]")


def _plain(needs: str, expression: str = "") -> Kind:
    return Kind(needs, expression or needs.rpartition(".")[2])


_KINDS = {
    "args": Kind("cmdline name.name base.state", "{c}[cmdline, name, state]", Arguments),
    "bsdstart": Kind("sched.start_time", _STARTED, _when(_bsd_start), "start_time"),
    "bsdtime": Kind(
        "stat.utime stat.stime", f"{{c}}[{_SECONDS}]", _fixed(_bsd_time), "utime + stime"
    ),
    "c": Kind(
        "stat.utime stat.stime sched.start_time",
        f"{{c}}[(utime + stime) * 100 {_SHARE}]",
        _fixed(lambda share: b"%2d" % min(99, max(0, share))),
        f"(utime + stime) * 100000 {_SHARE}",
    ),
    "comm": Kind("name.name", "{c}[name]", _command_name),
    "cp": Kind(
        "stat.utime stat.stime sched.start_time",
        f"{{c}}[(utime + stime) * 1000 {_SHARE}]",
        _fixed(lambda share: b"%3d" % min(999, max(0, share))),
        f"(utime + stime) * 100000 {_SHARE}",
    ),
    "egid": _plain("cred.egid"),
    "egroup": _names_of("egid"),
    "etime": Kind(
        "sched.start_time", "{c}[(NOW - start_time) // HZ]", _fixed(_elapsed), "-start_time"
    ),
    "etimes": Kind("sched.start_time", "max(0, NOW - start_time) // HZ", None, "-start_time"),
    "euid": _plain("cred.euid"),
    "euser": _names_of("euid"),
    "flags": _plain("sched.flags", "flags >> 6 & 7"),
    "fname": Kind("name.name", "{c}[name]", lambda width: _command_name(8), "name"),
    "fsgid": _plain("cred.fsgid"),
    "fsgroup": _names_of("fsgid"),
    "fsuid": _plain("cred.fsuid"),
    "fsuser": _names_of("fsuid"),
    "rgid": _plain("cred.gid"),
    "rgroup": _names_of("gid"),
    "lstart": Kind(
        "sched.start_time", _STARTED, _when(lambda start, now: time.ctime(start)), "start_time"
    ),
    "majflt": _plain("stat.majflt"),
    "minflt": _plain("stat.minflt"),
    "nice": Kind(
        "sched.nice sched.policy",
        "{c}[nice, policy]",
        _fixed(lambda key: b"%d" % key[0] if key[1] in (0, 3) else b"-"),
        "nice",
    ),
    "nlwp": _plain("stat.threads"),
    "opri": _plain("sched.priority", "60 + priority"),
    "pcpu": Kind(
        "stat.utime stat.stime sched.start_time",
        f"{{c}}[(utime + stime) * 1000 {_SHARE}]",
        _fixed(_per_mille),
        f"(utime + stime) * 100000 {_SHARE}",
    ),
    "pgid": _plain("base.pgid"),
    "pmem": Kind("statm.total_rss", "{c}[total_rss]", _memory_share, "total_rss"),
    "policy": Kind("sched.policy", "{c}[policy]", _fixed(_policy)),
    "ppid": _plain("base.ppid"),
    "pri": _plain("sched.priority", "39 - priority"),
    "pri_api": _plain("sched.priority", "-1 - priority"),
    "pri_bar": _plain("sched.priority", "priority + 1"),
    "pri_baz": _plain("sched.priority", "priority + 100"),
    "pri_foo": _plain("sched.priority", "priority - 20"),
    "priority": _plain("sched.priority"),
    "processor": _plain("sched.processor"),
    "rss": _plain("statm.total_rss", "total_rss * PAGE_KB"),
    "rtprio": Kind(
        "sched.rt_priority sched.policy",
        "{c}[rt_priority, policy]",
        _fixed(lambda key: b"%d" % key[0] if key[1] else b"-"),
        "rt_priority",
    ),
    "s": Kind("base.state", "{c}[state]", _fixed(_state), "b'RSDTtXZPI?'[min(state, 9)]"),
    "sched": _plain("sched.policy"),
    "sgid": _plain("cred.sgid"),
    "sgroup": _names_of("sgid"),
    "sid": _plain("base.sid"),
    "size": _plain("statm.data_vm statm.stack_vm", "(data_vm + stack_vm) * PAGE_KB"),
    "start": Kind("sched.start_time", _STARTED, _when(_start), "start_time"),
    "start_time": Kind("sched.start_time", _STARTED, _when(_start_time), "start_time"),
    "stat": Kind(
        "base.state sched.nice statm.locked_vm base.sid stat.threads base.pgid tty.tpgid",
        "{c}[state, nice, locked_vm, sid == tgid, threads > 1, pgid == tpgid]",
        _fixed(_stat),
        "b'RSDTtXZPI?'[min(state, 9)]",
    ),
    "suid": _plain("cred.suid"),
    "suser": _names_of("suid"),
    "sz": _plain("statm.total_vm"),
    "tgid": _plain("tgid"),
    "tid": _plain("pid"),
    "time": Kind("stat.utime stat.stime", f"{{c}}[{_SECONDS}]", _fixed(_clock), "utime + stime"),
    "times": Kind("stat.utime stat.stime", _SECONDS, None, "utime + stime"),
    "tpgid": _plain("tty.tpgid"),
    "tty": Kind("tty.tty_nr", "{c}[tty_nr]", lambda width: _TTY_NAME),
    "ruid": _plain("cred.uid"),
    "ruser": _names_of("uid"),
    "vsz": _plain("statm.total_vm", "total_vm * PAGE_KB"),
}

# name header width justification kind; P is R, as wide as the longest pid.
_TABLE = """
%cpu %CPU 4 R pcpu
%mem %MEM 4 R pmem
args COMMAND 27 U args
atime TIME 8 R time
bsdstart START 6 R bsdstart
bsdtime TIME 6 R bsdtime
c C 2 R c
class CLS 3 L policy
cls CLS 3 R policy
cmd CMD 27 U args
comm COMMAND 15 U comm
command COMMAND 27 U args
cp CP 3 R cp
cpuid CPUID 5 R processor
cputime TIME 8 R time
cputimes TIME 8 R times
egid EGID 5 R egid
egroup EGROUP 8 N egroup
etime ELAPSED 11 R etime
etimes ELAPSED 7 R etimes
euid EUID 5 R euid
euser EUSER 8 N euser
f F 1 R flags
fgid FGID 5 R fsgid
fgroup FGROUP 8 N fsgroup
flag F 1 R flags
flags F 1 R flags
fname COMMAND 8 L fname
fsgid FSGID 5 R fsgid
fsgroup FSGROUP 8 N fsgroup
fsuid FSUID 5 R fsuid
fsuser FSUSER 8 N fsuser
fuid FUID 5 R fsuid
fuser FUSER 8 N fsuser
gid GID 5 R egid
group GROUP 8 N egroup
intpri PRI 3 R opri
lastcpu C 3 R processor
longtname TTY 8 L tty
lstart STARTED 24 R lstart
lwp LWP 5 P tid
maj_flt MAJFL 6 R majflt
majflt MAJFLT 6 R majflt
min_flt MINFL 6 R minflt
minflt MINFLT 6 R minflt
ni NI 3 R nice
nice NI 3 R nice
nlwp NLWP 4 R nlwp
opri PRI 3 R opri
pagein PAGEIN 6 R majflt
pcpu %CPU 4 R pcpu
pgid PGID 5 P pgid
pgrp PGRP 5 P pgid
pid PID 5 P tgid
pmem %MEM 4 R pmem
policy POL 3 L policy
ppid PPID 5 P ppid
pri PRI 3 R pri
pri_api API 3 R pri_api
pri_bar BAR 3 R pri_bar
pri_baz BAZ 3 R pri_baz
pri_foo FOO 3 R pri_foo
priority PRI 3 R priority
psr PSR 3 R processor
rgid RGID 5 R rgid
rgroup RGROUP 8 N rgroup
rss RSS 5 R rss
rssize RSS 5 R rss
rsz RSZ 5 R rss
rtprio RTPRIO 6 R rtprio
ruid RUID 5 R ruid
ruser RUSER 8 N ruser
s S 1 L s
sched SCH 3 R sched
sess SESS 5 P sid
session SESS 5 P sid
sgid SGID 5 R sgid
sgroup SGROUP 8 N sgroup
sid SID 5 P sid
size SIZE 5 R size
spid SPID 5 P tid
start STARTED 8 R start
start_time START 5 R start_time
stat STAT 4 L stat
state S 1 L s
stime STIME 5 R start_time
suid SUID 5 R suid
suser SUSER 8 N suser
svgid SVGID 5 R sgid
svgroup SVGROUP 8 N sgroup
svuid SVUID 5 R suid
svuser SVUSER 8 N suser
sz SZ 5 R sz
tgid TGID 5 P tgid
thcount THCNT 5 R nlwp
tid TID 5 P tid
time TIME 8 R time
times TIME 8 R times
tname TTY 8 L tty
tpgid TPGID 5 P tpgid
tt TT 8 L tty
tty TT 8 L tty
tty8 TTY 8 L tty
ucmd CMD 15 U comm
ucomm COMMAND 15 U comm
uid UID 5 R euid
uid_hack UID 8 N euser
uname USER 8 N euser
user USER 8 N euser
util C 2 R c
vsize VSZ 6 R vsz
vsz VSZ 6 R vsz
"""


#: name to (header, width, justification, kind).
COLUMNS: dict[str, tuple[str, int, str, str]] = {
    name: (header, int(width), just, kind)
    for name, header, width, just, kind in map(str.split, _TABLE.split("\n")[1:-1])
}


def column(name: str, header: str | None = None, width: int = 0) -> Column:
    """The column of that name.

    ``header`` replaces its own, and widens it if need be; ``width``, if given, holds.

    >>> column("pid", "THE-PROCESS").width
    11

    Raises RequestError for an unknown name, saying which known ones are near.
    """
    try:
        title, wide, just, kind = COLUMNS[name]
    except KeyError:
        raise RequestError(f"unknown column {name!r}{_nearest(name)}") from None
    if just == "P":
        just, wide = "R", max(pid_width(), len(title))
    if header is not None:
        title, wide = header, max(wide, len(os.fsencode(header)))
    return Column(name, title, width or wide, just, _KINDS[kind])


def kind_of(name: str) -> Kind:
    """The kind of the column of that name.  Raises KeyError for an unknown one."""
    return _KINDS[COLUMNS[name][3]]


def numeric(item: Column) -> Column:
    """The column itself, or for users and groups the same column with numbers."""
    if item.just != "N":
        return item
    (field,) = item.kind.needs
    return Column(item.name, item.header, item.width, "R", _plain(field))


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), COLUMNS, 3, 0.5)
    return f": did you mean {' or '.join(near)}?" if near else ": taskdiag ps L lists those known"


_PID_WIDTH = 0


def pid_width() -> int:
    """The digits of the longest pid: of pid_max, or of its limit where /proc is missing."""
    global _PID_WIDTH
    if not _PID_WIDTH:
        try:
            with open("/proc/sys/kernel/pid_max", "rb", 0) as file:
                _PID_WIDTH = len(str(int(file.read()) - 1))
        except (OSError, ValueError):
            _PID_WIDTH = 7
    return _PID_WIDTH
