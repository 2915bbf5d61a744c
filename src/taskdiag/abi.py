"""The contract, declared once: every structure, offset and constant of the interface.

The reference is A. Vagin's task_diag patch series, v3 (April 2016,
``include/uapi/linux/task_diag.h``).  A request is a ``struct nlmsghdr`` immediately followed
by a ``struct task_diag_pid``.  The answer is a sequence of messages, each a ``struct
nlmsghdr``, a ``struct task_diag_msg`` and attributes (``struct nlattr``), one for each group of
fields.

The tables of groups at the end of this module are also the *catalogue of fields*.  Each
`Field` has a name, a C type, an offset, a unit and a meaning.  It also says how the kernel
engine reaches it (``kernel``: a C expression over ``task`` and ``mm``, or one of the functions
in :mod:`taskdiag.kernel`) and where procfs shows it (``procfs``: file and key).  To add a
field, add an entry here.

Integers are in native byte order; offsets are those of a C compiler for a 64-bit
machine.  ``taskdiag abi`` prints this module as a C header.
"""

from __future__ import annotations

import enum
from struct import Struct

__all__ = (
    "DEFERRED",
    "EXTENDED_REQUEST",
    "GROUPS",
    "MSG",
    "MSG_FLAG_CONT",
    "NLATTR",
    "NLMSGHDR",
    "NLMSG_ERROR",
    "NLM_F_MULTI",
    "ORDER",
    "REQUEST",
    "REQUEST_SIZE",
    "RESPONSE",
    "TASK_DIAG_MSG",
    "TASK_DIAG_PID",
    "Attr",
    "Dump",
    "Field",
    "Group",
    "Show",
    "State",
    "VmaFlag",
    "align",
    "field",
)

# --- Messages -------------------------------------------------------------

#: Message type of an answer.
RESPONSE = 0xD101
#: Message type of our own extended request; every other type is the reference's.
EXTENDED_REQUEST = 0xD102
#: ``NLMSG_ERROR`` (include/uapi/linux/netlink.h), the type of the service's replies.
NLMSG_ERROR = 2
#: ``NLM_F_MULTI``, set on every message of an answer.
NLM_F_MULTI = 2
#: ``task_diag_msg.flags``: the next message is about the same task and continues this one.
MSG_FLAG_CONT = 1 << 0
#: ``task_diag_msg.flags``, never in an answer: set by programs of the kernel engine in a
#: message that the engine must complete from procfs.
DEFERRED = 1 << 31


class Show(enum.IntFlag):
    """Show flags: the attribute groups that a request asks for, ``1 << group``.

    The first seven are the reference's.  Those from bit 32 on are ours, for what ``ps`` needs
    in addition; the distance leaves room for new numbers of the reference.

    >>> int(Show.BASE | Show.STAT)
    17
    """

    BASE = 1 << 0
    CRED = 1 << 1
    VMA = 1 << 2
    VMA_STAT = 1 << 3
    STAT = 1 << 4
    STATM = 1 << 5
    CMDLINE = 1 << 6
    TTY = 1 << 32
    SCHED = 1 << 33
    NAME = 1 << 34


class Dump(enum.IntEnum):
    """Dump strategies: the tasks that a request is about."""

    ALL = 0
    """Every process (thread group leaders); ``pid`` is ignored."""
    ONE = 1
    """The process ``pid``."""
    ALL_THREAD = 2
    """Every thread; ``pid`` is ignored."""
    CHILDREN = 3
    """The direct children of process ``pid``, whichever of its threads created them."""
    THREAD = 4
    """Every thread of process ``pid``."""


class State(enum.IntEnum):
    """Task states, in the order of ``task_state_array`` (fs/proc/array.c)."""

    RUNNING = 0
    INTERRUPTIBLE = 1
    UNINTERRUPTIBLE = 2
    STOPPED = 3
    TRACE_STOP = 4
    DEAD = 5
    ZOMBIE = 6
    PARKED = 7
    IDLE = 8

    @property
    def letter(self) -> str:
        """The letter that /proc/PID/stat and ps(1) print.

        >>> State.ZOMBIE.letter
        'Z'
        """
        return "RSDTtXZPI"[self]


class VmaFlag(enum.IntFlag):
    """``vm_flags`` of a VMA, in the ABI's own numbering (not the kernel's VM_* bits)."""

    READ = 1 << 0
    WRITE = 1 << 1
    EXEC = 1 << 2
    SHARED = 1 << 3
    MAYREAD = 1 << 4
    MAYWRITE = 1 << 5
    MAYEXEC = 1 << 6
    MAYSHARE = 1 << 7
    GROWSDOWN = 1 << 8
    PFNMAP = 1 << 9
    DENYWRITE = 1 << 10
    MPX = 1 << 11
    LOCKED = 1 << 12
    IO = 1 << 13
    SEQ_READ = 1 << 14
    RAND_READ = 1 << 15
    DONTCOPY = 1 << 16
    DONTEXPAND = 1 << 17
    ACCOUNT = 1 << 18
    NORESERVE = 1 << 19
    HUGETLB = 1 << 20
    ARCH_1 = 1 << 21
    DONTDUMP = 1 << 22
    SOFTDIRTY = 1 << 23
    MIXEDMAP = 1 << 24
    HUGEPAGE = 1 << 25
    NOHUGEPAGE = 1 << 26
    MERGEABLE = 1 << 27


class Attr(enum.IntEnum):
    """Attribute types (``nlattr.nla_type``): the group's number.

    VMA_STAT has no attribute of its own; it is part of a VMA record.
    """

    BASE = 0
    CRED = 1
    VMA = 2
    VMA_STAT = 3
    STAT = 4
    STATM = 5
    CMDLINE = 6
    TTY = 32
    SCHED = 33
    NAME = 34


def align(length: int) -> int:
    """Round up to a multiple of 4 bytes, the alignment of netlink (``NLMSG_ALIGN``)."""
    return (length + 3) & ~3


# --- Structures -----------------------------------------------------------

_CODES = {"u8": "B", "u16": "H", "u32": "I", "i32": "i", "u64": "Q"}


class Field:
    """One entry of the catalogue.

    ``ctype`` is one of u8, u16, u32, i32, u64 and ``char[N]``; ``offset`` counts
    from the start of the structure.  ``unit`` is what a number counts.

    ``visible`` says who may see it.  "ptrace" means everyone who may see the task, as
    ptrace_may_access() decides.  "root" is for fields that not even the owner of a task may see
    (a kernel pointer); a request for one is refused without CAP_SYS_PTRACE.
    """

    __slots__ = ("ctype", "doc", "kernel", "name", "offset", "procfs", "unit", "visible")

    def __init__(
        self,
        name: str,
        ctype: str,
        offset: int,
        doc: str,
        *,
        unit: str = "",
        kernel: str = "",
        procfs: str = "",
        visible: str = "ptrace",
    ) -> None:
        if visible not in ("ptrace", "root"):
            raise AssertionError(f"{name}: visible is {visible!r}, expected ptrace or root")
        self.name = name
        self.ctype = ctype
        self.offset = offset
        self.doc = doc
        self.unit = unit
        self.kernel = kernel
        self.procfs = procfs
        self.visible = visible

    @property
    def code(self) -> str:
        """The :mod:`struct` format of the field, without padding."""
        if self.ctype.startswith("char["):
            return self.ctype[5:-1] + "s"
        return _CODES[self.ctype]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return Struct("=" + self.code).size

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.ctype!r}, {self.offset})"


class Group:
    """A structure of the contract: its C name, size in bytes and fields.

    ``struct`` packs and unpacks all fields in order, padding included.
    """

    __slots__ = ("attr", "cname", "doc", "fields", "size", "struct")

    def __init__(
        self, cname: str, size: int, fields: tuple[Field, ...], doc: str, attr: Attr | None = None
    ) -> None:
        self.cname = cname
        self.size = size
        self.fields = fields
        self.doc = doc
        self.attr = attr
        self.struct = Struct(self.format())
        if self.struct.size != size:
            raise AssertionError(f"{cname}: {self.struct.size} bytes laid out, {size} declared")

    def format(self, only: tuple[str, ...] | None = None) -> str:
        """The :mod:`struct` format; with ``only``, other fields are skipped."""
        out, at = "=", 0
        for item in self.fields:
            if only is not None and item.name not in only:
                continue
            if item.offset > at:
                out += f"{item.offset - at}x"
            out += item.code
            at = item.offset + item.size
        return out + f"{self.size - at}x" if at < self.size else out

    @property
    def visible(self) -> str:
        """Who may see the group: "root" if a field of it is for root only, else "ptrace"."""
        return "root" if any(item.visible == "root" for item in self.fields) else "ptrace"

    def __getitem__(self, name: str) -> Field:
        for item in self.fields:
            if item.name == name:
                return item
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"Group({self.cname!r}, {self.size})"


NLMSGHDR = Group(
    "nlmsghdr",
    16,
    (
        Field("nlmsg_len", "u32", 0, "Length of the message, this header included", unit="bytes"),
        Field("nlmsg_type", "u16", 4, "Message type"),
        Field("nlmsg_flags", "u16", 6, "NLM_F_* flags"),
        Field("nlmsg_seq", "u32", 8, "Sequence number, echoed by the answer"),
        Field("nlmsg_pid", "u32", 12, "Port; 0"),
    ),
    "The header of every message (include/uapi/linux/netlink.h).",
)

NLATTR = Group(
    "nlattr",
    4,
    (
        Field("nla_len", "u16", 0, "Length, this header included, padding not", unit="bytes"),
        Field("nla_type", "u16", 2, "Attribute type: the group's number"),
    ),
    "The header of every attribute (include/uapi/linux/netlink.h).",
)

TASK_DIAG_PID = Group(
    "task_diag_pid",
    24,
    (
        Field("show_flags", "u64", 0, "The groups asked for, 1 << group"),
        Field("dump_strategy", "u64", 8, "Which tasks"),
        Field("pid", "u32", 16, "The process that ONE, CHILDREN and THREAD are about"),
    ),
    "A request; it immediately follows its nlmsghdr.",
)

TASK_DIAG_MSG = Group(
    "task_diag_msg",
    12,
    (
        Field("pid", "u32", 0, "The task: thread id in the requester's pid namespace"),
        Field("tgid", "u32", 4, "Its process: thread group id"),
        Field("flags", "u32", 8, "TASK_DIAG_FLAG_CONT"),
    ),
    "The head of an answer's payload; attributes follow.",
)

#: nlmsghdr and task_diag_pid together: the shortest valid request.
REQUEST = Struct("=IHHIIQQI4x")
REQUEST_SIZE = 40
#: nlmsghdr and task_diag_msg together: the start of every message of an answer.
MSG = Struct("=IHHIIIII")

BASE = Group(
    "task_diag_base",
    44,
    (
        Field("tgid", "u32", 0, "Thread group id", kernel="tgid_nr(task)", procfs="status:Tgid"),
        Field("pid", "u32", 4, "Thread id", kernel="pid_nr(task)", procfs="status:Pid"),
        Field(
            "ppid",
            "u32",
            8,
            "Parent process; 0 if outside the pid namespace",
            kernel="parent_nr(task)",
            procfs="status:PPid",
        ),
        Field(
            "tpid",
            "u32",
            12,
            "The thread that traces this one; 0 if none",
            kernel="tracer_nr(task)",
            procfs="status:TracerPid",
        ),
        Field(
            "sid",
            "u32",
            16,
            "Session id",
            kernel="session_nr(task)",
            procfs="status:NSsid:0|stat:6",
        ),
        Field(
            "pgid",
            "u32",
            20,
            "Process group id",
            kernel="pgrp_nr(task)",
            procfs="status:NSpgid:0|stat:5",
        ),
        Field(
            "state",
            "u8",
            24,
            "State, a value of State",
            kernel="state(task)",
            procfs="status:State",
        ),
        Field(
            "comm",
            "char[16]",
            25,
            "Name, NUL-terminated",
            kernel="task->comm",
            procfs="status:Name",
        ),
    ),
    "Identity, family and state of a task.",
    Attr.BASE,
)

CRED = Group(
    "task_diag_creds",
    64,
    (
        Field(
            "cap_inheritable",
            "u64",
            0,
            "Inheritable capabilities, one bit each (two u32 in C)",
            kernel="task->real_cred->cap_inheritable",
            procfs="status:CapInh",
        ),
        Field(
            "cap_permitted",
            "u64",
            8,
            "Permitted capabilities",
            kernel="task->real_cred->cap_permitted",
            procfs="status:CapPrm",
        ),
        Field(
            "cap_effective",
            "u64",
            16,
            "Effective capabilities",
            kernel="task->real_cred->cap_effective",
            procfs="status:CapEff",
        ),
        Field(
            "cap_bset",
            "u64",
            24,
            "Capability bounding set",
            kernel="task->real_cred->cap_bset",
            procfs="status:CapBnd",
        ),
        Field(
            "uid",
            "u32",
            32,
            "Real user id, in the requester's user namespace",
            kernel="uid(task->real_cred->uid)",
            procfs="status:Uid:0",
        ),
        Field(
            "euid",
            "u32",
            36,
            "Effective user id",
            kernel="uid(task->real_cred->euid)",
            procfs="status:Uid:1",
        ),
        Field(
            "suid",
            "u32",
            40,
            "Saved user id",
            kernel="uid(task->real_cred->suid)",
            procfs="status:Uid:2",
        ),
        Field(
            "fsuid",
            "u32",
            44,
            "File system user id",
            kernel="uid(task->real_cred->fsuid)",
            procfs="status:Uid:3",
        ),
        Field(
            "gid",
            "u32",
            48,
            "Real group id, in the requester's user namespace",
            kernel="gid(task->real_cred->gid)",
            procfs="status:Gid:0",
        ),
        Field(
            "egid",
            "u32",
            52,
            "Effective group id",
            kernel="gid(task->real_cred->egid)",
            procfs="status:Gid:1",
        ),
        Field(
            "sgid",
            "u32",
            56,
            "Saved group id",
            kernel="gid(task->real_cred->sgid)",
            procfs="status:Gid:2",
        ),
        Field(
            "fsgid",
            "u32",
            60,
            "File system group id",
            kernel="gid(task->real_cred->fsgid)",
            procfs="status:Gid:3",
        ),
    ),
    "Credentials of a task, in the requester's user namespace.",
    Attr.CRED,
)

STAT = Group(
    "task_diag_stat",
    72,
    (
        Field(
            "minflt",
            "u64",
            0,
            "Minor page faults",
            unit="faults",
            kernel="faults(min_flt)",
            procfs="stat:10",
        ),
        Field(
            "cminflt",
            "u64",
            8,
            "Minor page faults of waited-for children",
            unit="faults",
            kernel="task->signal->cmin_flt",
            procfs="stat:11",
        ),
        Field(
            "majflt",
            "u64",
            16,
            "Major page faults",
            unit="faults",
            kernel="faults(maj_flt)",
            procfs="stat:12",
        ),
        Field(
            "cmajflt",
            "u64",
            24,
            "Major page faults of waited-for children",
            unit="faults",
            kernel="task->signal->cmaj_flt",
            procfs="stat:13",
        ),
        Field(
            "utime",
            "u64",
            32,
            "Time in user mode",
            unit="clock ticks",
            kernel="cputime(utime)",
            procfs="stat:14",
        ),
        Field(
            "stime",
            "u64",
            40,
            "Time in kernel mode",
            unit="clock ticks",
            kernel="cputime(stime)",
            procfs="stat:15",
        ),
        Field(
            "cutime",
            "u64",
            48,
            "Time in user mode of waited-for children",
            unit="clock ticks",
            kernel="clock_t(task->signal->cutime)",
            procfs="stat:16",
        ),
        Field(
            "cstime",
            "u64",
            56,
            "Time in kernel mode of waited-for children",
            unit="clock ticks",
            kernel="clock_t(task->signal->cstime)",
            procfs="stat:17",
        ),
        Field(
            "threads",
            "u32",
            64,
            "Threads in the process",
            kernel="task->signal->nr_threads",
            procfs="stat:20",
        ),
    ),
    "Faults and times: of the whole process, or of the thread for thread strategies.",
    Attr.STAT,
)

STATM = Group(
    "task_diag_statm",
    128,
    (
        Field(
            "anon",
            "u64",
            0,
            "Resident anonymous memory",
            unit="pages",
            kernel="mm_counter(MM_ANONPAGES)",
            procfs="status:RssAnon",
        ),
        Field(
            "file",
            "u64",
            8,
            "Resident file mappings",
            unit="pages",
            kernel="mm_counter(MM_FILEPAGES)",
            procfs="status:RssFile",
        ),
        Field(
            "shmem",
            "u64",
            16,
            "Resident shared memory",
            unit="pages",
            kernel="mm_counter(MM_SHMEMPAGES)",
            procfs="status:RssShmem",
        ),
        Field(
            "total_vm",
            "u64",
            24,
            "Mapped memory",
            unit="pages",
            kernel="mm->total_vm",
            procfs="status:VmSize",
        ),
        Field(
            "total_rss",
            "u64",
            32,
            "Resident memory: anon + file + shmem",
            unit="pages",
            kernel="rss(mm)",
            procfs="status:VmRSS",
        ),
        Field(
            "hiwater_vm",
            "u64",
            40,
            "Peak of total_vm",
            unit="pages",
            kernel="hiwater_vm(mm)",
            procfs="status:VmPeak",
        ),
        Field(
            "hiwater_rss",
            "u64",
            48,
            "Peak of total_rss",
            unit="pages",
            kernel="hiwater_rss(mm)",
            procfs="status:VmHWM",
        ),
        Field(
            "text",
            "u64",
            56,
            "Size of the program text",
            unit="pages",
            kernel="text(mm)",
            procfs="status:VmExe",
        ),
        Field(
            "lib",
            "u64",
            64,
            "Size of executable mappings other than text",
            unit="pages",
            kernel="lib(mm)",
            procfs="status:VmLib",
        ),
        Field(
            "swap",
            "u64",
            72,
            "Swapped-out anonymous memory",
            unit="pages",
            kernel="mm_counter(MM_SWAPENTS)",
            procfs="status:VmSwap",
        ),
        Field(
            "ptes",
            "u64",
            80,
            "Page tables",
            unit="bytes",
            kernel="mm->pgtables_bytes",
            procfs="status:VmPTE",
        ),
        Field(
            "pmds",
            "u64",
            88,
            "Second-level page tables; counted in ptes since 4.15, then 0",
            unit="bytes",
            kernel="0",
            procfs="status:VmPMD",
        ),
        Field(
            "locked_vm",
            "u64",
            96,
            "mlock(2)ed memory",
            unit="pages",
            kernel="mm->locked_vm",
            procfs="status:VmLck",
        ),
        Field(
            "pinned_vm",
            "u64",
            104,
            "Pinned memory",
            unit="pages",
            kernel="mm->pinned_vm",
            procfs="status:VmPin",
        ),
        Field(
            "data_vm",
            "u64",
            112,
            "Private writable mappings",
            unit="pages",
            kernel="mm->data_vm",
            procfs="status:VmData",
        ),
        Field(
            "stack_vm",
            "u64",
            120,
            "Stack",
            unit="pages",
            kernel="mm->stack_vm",
            procfs="status:VmStk",
        ),
    ),
    "Memory of a process.",
    Attr.STATM,
)

VMA = Group(
    "task_diag_vma",
    64,
    (
        Field("start", "u64", 0, "First address", unit="bytes"),
        Field("end", "u64", 8, "First address after it", unit="bytes"),
        Field("vm_flags", "u64", 16, "Flags, bits of VmaFlag"),
        Field("pgoff", "u64", 24, "Offset in the file", unit="bytes"),
        Field("major", "u32", 32, "Device of the file, major number"),
        Field("minor", "u32", 36, "Device of the file, minor number"),
        Field("inode", "u64", 40, "Inode number of the file; 0 if none"),
        Field("generation", "u32", 48, "Inode generation; 0 where procfs answers"),
        Field("vma_len", "u16", 52, "Length of the whole record, padded", unit="bytes"),
        Field("name_off", "u16", 54, "Offset of the name in the record", unit="bytes"),
        Field("name_len", "u16", 56, "Length of the name with its NUL; 0 = none", unit="bytes"),
        Field("stat_off", "u16", 58, "Offset of the task_diag_vma_stat", unit="bytes"),
        Field("stat_len", "u16", 60, "Its length; 0 = none", unit="bytes"),
    ),
    "One memory mapping; a VMA attribute holds one or more such records.",
    Attr.VMA,
)

VMA_STAT = Group(
    "task_diag_vma_stat",
    80,
    (
        Field("resident", "u64", 0, "Resident", unit="bytes", procfs="smaps:Rss"),
        Field("shared_clean", "u64", 8, "Shared, clean", unit="bytes", procfs="smaps:Shared_Clean"),
        Field(
            "shared_dirty", "u64", 16, "Shared, dirty", unit="bytes", procfs="smaps:Shared_Dirty"
        ),
        Field(
            "private_clean", "u64", 24, "Private, clean", unit="bytes", procfs="smaps:Private_Clean"
        ),
        Field(
            "private_dirty", "u64", 32, "Private, dirty", unit="bytes", procfs="smaps:Private_Dirty"
        ),
        Field("referenced", "u64", 40, "Referenced", unit="bytes", procfs="smaps:Referenced"),
        Field("anonymous", "u64", 48, "Anonymous", unit="bytes", procfs="smaps:Anonymous"),
        Field(
            "anonymous_thp",
            "u64",
            56,
            "Anonymous transparent huge pages",
            unit="bytes",
            procfs="smaps:AnonHugePages",
        ),
        Field("swap", "u64", 64, "Swapped out", unit="bytes", procfs="smaps:Swap"),
        Field("pss", "u64", 72, "Proportional share", unit="bytes << 12", procfs="smaps:Pss"),
    ),
    "Page statistics of one mapping, inside its task_diag_vma record.",
    Attr.VMA_STAT,
)

TTY = Group(
    "task_diag_tty",
    8,
    (
        Field(
            "tty_nr",
            "u32",
            0,
            "Controlling terminal, new_encode_dev() numbering; 0 = none",
            kernel="tty_nr(task)",
            procfs="stat:7",
        ),
        Field(
            "tpgid",
            "i32",
            4,
            "Foreground process group of the terminal; -1 = none",
            kernel="tpgid(task)",
            procfs="stat:8",
        ),
    ),
    "Controlling terminal of a process (ours, not the reference's).",
    Attr.TTY,
)

SCHED = Group(
    "task_diag_sched",
    32,
    (
        Field(
            "start_time",
            "u64",
            0,
            "Start, since boot",
            unit="clock ticks",
            kernel="start_time(task)",
            procfs="stat:22",
        ),
        Field(
            "flags",
            "u32",
            8,
            "PF_* flags (include/linux/sched.h)",
            kernel="task->flags",
            procfs="stat:9",
        ),
        Field("nice", "i32", 12, "Nice value", kernel="nice(task)", procfs="stat:19"),
        Field(
            "priority",
            "i32",
            16,
            "Priority as /proc/PID/stat counts it",
            kernel="priority(task)",
            procfs="stat:18",
        ),
        Field(
            "rt_priority",
            "u32",
            20,
            "Real-time priority",
            kernel="task->rt_priority",
            procfs="stat:40",
        ),
        Field("policy", "u32", 24, "SCHED_* policy", kernel="task->policy", procfs="stat:41"),
        Field(
            "processor", "u32", 28, "CPU last run on", kernel="processor(task)", procfs="stat:39"
        ),
    ),
    "Scheduling of a task (ours, not the reference's).",
    Attr.SCHED,
)

NAME = Group(
    "task_diag_name",
    64,
    (
        Field(
            "name",
            "char[64]",
            0,
            "Name as /proc/PID/comm shows it, NUL-padded",
            kernel="name(task)",
            procfs="status:Name",
        ),
    ),
    "Full name of a task, beyond comm's 15 bytes for kernel threads (ours, not the reference's).",
    Attr.NAME,
)

#: The groups with a fixed layout, by attribute type, in the order of our messages.  CMDLINE
#: is plain bytes, and a VMA record is a `VMA` structure followed by statistics and a name.
GROUPS: dict[Attr, Group] = {
    Attr.BASE: BASE,
    Attr.CRED: CRED,
    Attr.STAT: STAT,
    Attr.TTY: TTY,
    Attr.SCHED: SCHED,
    Attr.NAME: NAME,
    Attr.STATM: STATM,
}
#: The order of all attributes in our messages.  Groups that a task without memory lacks come
#: last, so the others are always in the same place.  Readers may use that to be fast, but must
#: not depend on it.
ORDER = (*GROUPS, Attr.CMDLINE, Attr.VMA)


def field(name: str) -> tuple[Group, Field]:
    """Look up a field of the catalogue by ``group.field``, or by its name alone.

    >>> field("stat.utime")
    (Group('task_diag_stat', 72), Field('utime', 'u64', 32))

    Raises KeyError if no group has it.
    """
    wanted, _, bare = name.rpartition(".")
    for attr, group in GROUPS.items():
        if wanted in ("", attr.name.lower()):
            for item in group.fields:
                if item.name == (bare or name):
                    return group, item
    raise KeyError(name)
