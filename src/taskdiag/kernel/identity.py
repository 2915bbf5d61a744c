"""Who somebody is to the access rule: credentials read from the kernel's own structures.

`Reader.of_socket` reads what the kernel noted of the peer when it connected
(``sk_peer_cred`` and ``sk_peer_pid``, which the socket holds on to), `Reader.of_task`
what a task acts with right now.  SO_PEERCRED and /proc would leave out capabilities,
fsuid and the user namespace, and speak of a process that may be another one by now.
"""

from __future__ import annotations

import os
from functools import cache
from struct import Struct, unpack_from
from sys import byteorder

from ..errors import EngineUnavailable, NoSuchProcess
from . import bpf
from .asm import R0, R1, R2, R3, R6, R7, R8, R9, R10, Assembler
from .emit import HELPERS
from .viewer import CAP_SYS_PTRACE, INIT_PID_NS, Rule, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .asm import Code, Reg
    from .facts import Facts
    from .viewer import Extents

__all__ = ("SECURITY_WORDS", "Identity", "Reader", "overflow_ids")

#: Words of a credential's security blob that are read: what its modules keep there.
SECURITY_WORDS = 8

_CRED = ("fsuid", "fsgid", "euid", "egid", "uid", "gid", "suid", "sgid")
_NAMESPACE = ("level", "ns.inum", "owner")
# struct uid_gid_extent: first, lower_first, count.
_EXTENT = Struct("=III")
_INLINE = 5
_MOST = 340
#: Extents that are copied at once, beyond those that lie in the map itself.
_PIECE = 34
_DEEPEST = 34
# include/linux/mm_types.h (MMF_DUMPABLE_MASK)
_DUMPABLE_MASK = 3

# Of the frame: the number or bytes passed (up to 408), then the seq_file.
_SEQ = -8
_BUFFER = -8 - 12 * _PIECE


class Identity:
    """What the kernel says of somebody: the numbers that the rule and the view depend on.

    ``user`` is who pays, ``pid_ns`` the pid namespace's inode number and
    ``pid_level`` its depth, ``tgid`` the process' number on the host and ``nr`` its
    number in the reader's own pid namespace, 0 if it has none there.  ``top_owner`` is
    who made the outermost user namespace that the credentials lie in.
    """

    __slots__ = (
        "caps", "dumpable", "egid", "euid", "fsgid", "fsuid", "gid", "gid_map", "inum",
        "level", "namespace", "nr", "ns_id", "owner", "permitted", "pid", "pid_level",
        "pid_ns", "plain", "security", "sgid", "start", "suid", "tgid", "top_owner", "uid",
        "uid_map",
    )  # fmt: skip

    fsuid: int
    fsgid: int
    euid: int
    egid: int
    uid: int
    gid: int
    suid: int
    sgid: int
    caps: int
    permitted: int
    namespace: int
    level: int
    inum: int
    owner: int
    ns_id: int
    top_owner: int
    security: tuple[int, ...]
    uid_map: Extents | None
    gid_map: Extents | None
    pid: int
    pid_level: int
    pid_ns: int
    tgid: int
    nr: int
    start: int
    plain: bool
    dumpable: int

    @property
    def privileged(self) -> bool:
        """Whether it may see every task: CAP_SYS_PTRACE over the host."""
        return self.level == 0 and bool(self.caps & CAP_SYS_PTRACE)

    @property
    def user(self) -> tuple[int, int]:
        """Whose share of resources it uses.

        Inside a user namespace one may have any number of ids, so there it is whoever
        made that.
        """
        return (1, self.top_owner) if self.level else (0, self.uid)

    @property
    def process(self) -> tuple[int, int] | None:
        """The process, as `Rule` wants it: None where it would see itself by the rule too.

        So that programs can be shared between the processes of one user.
        """
        if not self.start:
            return None
        uids = {self.fsuid, self.euid, self.suid, self.uid}
        gids = {self.fsgid, self.egid, self.sgid, self.gid}
        if len(uids) == len(gids) == 1 and self.plain and self.dumpable == 1:
            return (self.tgid, self.start) if self.permitted & ~self.caps else None
        return self.tgid, self.start

    def viewer(self, home: tuple[int, int] | None = None) -> Viewer:
        """Whom to make programs for; ``home`` as in `Viewer`."""
        overflow_uid, overflow_gid = overflow_ids()
        rule = None
        if not self.privileged:
            rule = Rule(
                self.fsuid, self.fsgid, self.euid, self.caps, level=self.level,
                namespace=self.namespace, inum=self.inum, owner=self.owner, ns_id=self.ns_id,
                process=self.process,
            )  # fmt: skip
        return Viewer(
            self.pid_level, self.pid_ns, self.uid_map, self.gid_map,
            overflow_uid, overflow_gid, rule, home,
        )  # fmt: skip


class Reader:
    """Reads identities; its programs are loaded once.  Freed by `close`.

    ``level`` and ``pid_ns`` are those of this process' pid namespace.

    Raises EngineUnavailable where BPF is not to be had or the kernel keeps credentials
    in a way that is not known here.
    """

    def __init__(self, facts: Facts, level: int = 0, pid_ns: int = INIT_PID_NS) -> None:
        self._facts = facts
        self._level = level
        self._pid_ns = pid_ns
        self._fds: list[int] = []
        try:
            self._wanted = self._keep(bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1))
            self._socket = self._load(_socket_program(facts, level), "bpf_iter_task_file")
            self._task = self._load(_task_program(facts, level), "bpf_iter_task")
        except bpf.BpfError as error:
            self.close()
            if isinstance(error, bpf.VerifierError):
                raise
            raise EngineUnavailable(
                error.errno,
                f"the kernel refused to load a program: {os.strerror(error.errno or 0)}",
            ) from None

    def of_socket(self, fd: int) -> Identity:
        """The peer of a connected socket of this process, as it was when it connected.

        Raises EngineUnavailable if the kernel would not say.
        """
        bpf.map_update(self._wanted, bytes(4), fd.to_bytes(8, byteorder))
        data = self._run(self._socket, os.getpid())
        if not data:
            raise EngineUnavailable("the kernel did not say who is connected")
        return _decode(data, self._level, self._pid_ns)

    def of_task(self, tid: int) -> Identity:
        """What a thread acts with now.  Raises NoSuchProcess."""
        data = self._run(self._task, tid)
        if not data:
            raise NoSuchProcess(tid)
        return _decode(data, self._level, self._pid_ns)

    def close(self) -> None:
        """Give the programs back."""
        while self._fds:
            os.close(self._fds.pop())

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _load(self, code: Code, target: str) -> int:
        return self._keep(
            bpf.load_program(code, self._facts.type_id("func", target), {"wanted": self._wanted})
        )

    @staticmethod
    def _run(program: int, tid: int) -> bytes:
        link = bpf.create_link(program, tid)
        try:
            fd = bpf.create_iterator(link)
        finally:
            os.close(link)
        try:
            return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
        finally:
            os.close(fd)


# --- What the programs write ---------------------------------------------------


_WORDS = 28 + SECURITY_WORDS


def _decode(data: bytes, level: int, pid_ns: int) -> Identity:
    """The numbers in the order in which `_identity` writes them."""
    found = Identity()
    if len(data) < 8 * _WORDS:
        raise EngineUnavailable("the kernel's answer about somebody's identity is not whole")
    take = iter(unpack_from(f"={_WORDS}Q", data)).__next__
    for name in _CRED:
        setattr(found, name, take())
    found.caps, found.permitted = take(), take()
    found.security = tuple(take() for _ in range(SECURITY_WORDS))
    found.namespace = take()
    found.level, found.inum, found.owner = take(), take(), take()
    found.ns_id = take()
    found.top_owner = take()
    found.pid, found.pid_level, found.pid_ns, found.tgid = take(), take(), take(), take()
    namespace, nr = take(), take()
    found.nr = nr if found.pid_level >= level and namespace == pid_ns else 0
    found.start, found.plain, found.dumpable = take(), bool(take()), take()
    if take() != found.pid:
        # It ended just now, and what was read may be another's.
        found.start = 0
    uids, gids = take(), take()
    at = 8 * _WORDS
    found.uid_map, at = _extents(data, at, uids, found.level)
    found.gid_map, at = _extents(data, at, gids, found.level)
    if at != len(data):
        raise EngineUnavailable("the kernel's answer about somebody's identity is not whole")
    return found


def _extents(data: bytes, at: int, count: int, level: int) -> tuple[Extents | None, int]:
    """The extents of a map, and where they end; the first namespace needs none."""
    room = _INLINE if count <= _INLINE else _MOST
    end = at + room * _EXTENT.size
    if count > _MOST or end > len(data):
        raise EngineUnavailable("the kernel's map of user ids is not one that is known here")
    if not level:
        return None, end
    return tuple(
        _EXTENT.unpack_from(data, at + index * _EXTENT.size) for index in range(count)
    ), end


# --- The programs ----------------------------------------------------------------


class _Program(Assembler):
    """Copies what lies at addresses, wherever they came from.

    R6 = the credentials, R7 = the struct pid of the process.  A structure that is
    reached by address alone is no BTF pointer, so every load is a probe_read_kernel().
    """

    def __init__(self, facts: Facts, context: str, level: int) -> None:
        super().__init__()
        self.facts = facts
        self.level = level
        self.load(R2, R1, facts.member(context, "meta").offset)
        self.load(R2, R2, facts.member("bpf_iter_meta", "seq").offset)
        self.store(R10, _SEQ, R2)

    def read(self, dst: Reg, base: Reg, struct: str, path: str) -> None:
        """``dst = base->path`` for an address; ``path`` goes through no pointer."""
        member = self.facts.member(struct, path)
        self.fetch(dst, base, member.offset, min(member.size, 8))

    def fetch(self, dst: Reg, base: Reg, off: int, size: int) -> None:
        self.store(R10, _BUFFER, 0)
        self.copy(base, off, size)
        self.load(dst, R10, _BUFFER, size)

    def copy(self, base: Reg, off: int, size: int) -> None:
        """Copy to the buffer; what cannot be read is 0."""
        self.mov(R3, base)
        if off:
            self.alu("add", R3, off)
        self.mov(R1, R10)
        self.alu("add", R1, _BUFFER)
        self.mov(R2, size)
        self.call(HELPERS["probe_read_kernel"])

    def write(self, number: Reg) -> None:
        """Hand a number to the reader."""
        self.store(R10, _BUFFER, number)
        self.hand(8)

    def hand(self, size: int) -> None:
        """Hand the front of the buffer to the reader."""
        self.load(R1, R10, _SEQ)
        self.mov(R2, R10)
        self.alu("add", R2, _BUFFER)
        self.mov(R3, size)
        self.call(HELPERS["seq_write"])

    def finish(self) -> Code:
        self.label("end")
        self.mov(R0, 0)
        self.exit()
        return self.assemble()


def _socket_program(facts: Facts, level: int) -> Code:
    a = _Program(facts, "bpf_iter__task_file", level)
    a.load(R6, R1, facts.member("bpf_iter__task_file", "file").offset)
    a.jump("==", R6, 0, "end")
    a.load(R8, R1, facts.member("bpf_iter__task_file", "fd").offset, 4)
    a.load(R9, R1, facts.member("bpf_iter__task_file", "task").offset)
    a.jump("==", R9, 0, "end")
    a.map_value(R2, "wanted")
    a.load(R2, R2, 0)
    a.jump("!=", R8, R2, "end")
    # The descriptor is one that accept(2) returned, so its file is a socket's.
    a.load(R6, R6, facts.member("file", "private_data").offset)
    a.read(R8, R6, "socket", "sk")
    a.read(R6, R8, "sock", "sk_peer_cred")
    a.jump("==", R6, 0, "end")
    a.read(R7, R8, "sock", "sk_peer_pid")
    a.jump("==", R7, 0, "end")
    _identity(a)
    return a.finish()


def _task_program(facts: Facts, level: int) -> Code:
    a = _Program(facts, "bpf_iter__task", level)
    a.load(R9, R1, facts.member("bpf_iter__task", "task").offset)
    a.jump("==", R9, 0, "end")
    # Those that it acts with, not those that it is acted upon with (real_cred).
    a.read(R6, R9, "task_struct", "cred")
    a.read(R8, R9, "task_struct", "signal")
    a.read(R7, R8, "signal_struct", "pids[PIDTYPE_TGID]")
    a.jump("==", R7, 0, "end")
    _identity(a)
    return a.finish()


def _identity(a: _Program) -> None:
    """Write all about the credentials in R6 and the process in R7; R9 = the iterator's task."""
    facts = a.facts
    for name in _CRED:
        a.read(R0, R6, "cred", name)
        a.write(R0)
    for name in ("cap_effective", "cap_permitted"):
        a.read(R0, R6, "cred", name)
        a.write(R0)
    _security(a)
    a.read(R8, R6, "cred", "user_ns")
    a.write(R8)
    for name in _NAMESPACE:
        a.read(R0, R8, "user_namespace", name)
        a.write(R0)
    a.mov(R0, 0)
    if facts.has_member("user_namespace", "ns.ns_id"):
        a.read(R0, R8, "user_namespace", "ns.ns_id")
    a.write(R0)
    _top_owner(a)
    _process(a)
    _leader(a)
    a.read(R6, R6, "cred", "user_ns")
    for name in ("uid_map", "gid_map"):
        a.read(R0, R6, "user_namespace", f"{name}.nr_extents")
        a.write(R0)
    for name in ("uid_map", "gid_map"):
        _map(a, name)


def _security(a: _Program) -> None:
    """The blob that security modules share, as far as it is read; zeroes without one."""
    words = 8 * SECURITY_WORDS
    for index in range(SECURITY_WORDS):
        a.store(R10, _BUFFER + 8 * index, 0)
    if a.facts.has_member("cred", "security"):
        a.read(R8, R6, "cred", "security")
        a.copy(R8, 0, words)
    a.hand(words)


def _top_owner(a: _Program) -> None:
    """Who made the ancestor at level 1; R8 = the user namespace, lost."""
    a.mov(R0, 0)
    a.store(R10, _BUFFER + 16, _DEEPEST)
    a.label("up")
    a.read(R0, R8, "user_namespace", "level")
    a.jump("s<=", R0, 1, "top", bits=32)
    a.read(R8, R8, "user_namespace", "parent")
    a.load(R1, R10, _BUFFER + 16)
    a.alu("sub", R1, 1)
    a.store(R10, _BUFFER + 16, R1)
    a.jump("!=", R1, 0, "up")
    a.label("top")
    a.read(R0, R8, "user_namespace", "owner")
    a.write(R0)


def _process(a: _Program) -> None:
    """Of the process in R7: its address, level, pid namespace and number on the host, then
    its pid namespace and number at the reader's level.
    """
    numbers = a.facts.member("pid", "numbers").offset
    nr = a.facts.member("upid", "nr").offset
    size = a.facts.size(a.facts.type_id("struct", "upid"))
    a.write(R7)
    a.read(R8, R7, "pid", "level")
    a.write(R8)
    a.read(R8, R7, "pid", "level")
    a.alu("mul", R8, size)
    a.alu("add", R8, numbers)
    a.alu("add", R8, R7)
    _pid_ns(a)
    a.fetch(R0, R7, numbers + nr, 4)
    a.write(R0)
    # What lies there if the process has no number at that level is for the reader to see.
    a.mov(R8, R7)
    a.alu("add", R8, numbers + size * a.level)
    _pid_ns(a)
    a.fetch(R0, R7, numbers + size * a.level + nr, 4)
    a.write(R0)


def _pid_ns(a: _Program) -> None:
    """The pid namespace's inode number of the struct upid in R8, lost."""
    a.fetch(R8, R8, a.facts.member("upid", "ns").offset, 8)
    a.fetch(R0, R8, a.facts.member("pid_namespace", "ns.inum").offset, 4)
    a.write(R0)


def _leader(a: _Program) -> None:
    """Of the leader of the process in R7: when it started; whether it has the credentials
    in R6 and no other thread beside it; the flags that say whether it is dumpable; and last
    whether it was that leader all the time, by the address in R7.
    """
    gone, other, same = a.fresh("gone"), a.fresh("other"), a.fresh("same")
    a.read(R9, R7, "pid", "tasks[PIDTYPE_TGID].first")
    a.jump("==", R9, 0, gone)
    a.alu("sub", R9, a.facts.member("task_struct", "pid_links[PIDTYPE_TGID]").offset)
    a.label(gone)
    a.read(R0, R9, "task_struct", "start_boottime")
    a.write(R0)
    for name in ("cred", "real_cred"):
        a.read(R0, R9, "task_struct", name)
        a.jump("!=", R0, R6, other)
    a.read(R8, R9, "task_struct", "signal")
    a.read(R0, R8, "signal_struct", "nr_threads")
    a.jump("==", R0, 1, same)
    a.label(other)
    a.mov(R0, 0)
    a.label(same)
    a.write(R0)
    a.read(R8, R9, "task_struct", "mm")
    a.read(R0, R8, "mm_struct", "flags")
    a.alu("and", R0, _DUMPABLE_MASK)
    a.write(R0)
    a.read(R8, R9, "task_struct", "signal")
    a.read(R0, R8, "signal_struct", "pids[PIDTYPE_TGID]")
    a.write(R0)


def _map(a: _Program, name: str) -> None:
    """The extents of a map of the user namespace in R6: five in the map, or 340 elsewhere."""
    member = a.facts.member
    many, done = a.fresh("many"), a.fresh("map")
    a.read(R0, R6, "user_namespace", f"{name}.nr_extents")
    a.jump(">", R0, _INLINE, many)
    a.copy(R6, member("user_namespace", f"{name}.extent").offset, _INLINE * _EXTENT.size)
    a.hand(_INLINE * _EXTENT.size)
    a.goto(done)
    a.label(many)
    a.read(R8, R6, "user_namespace", f"{name}.forward")
    # The kernel always allocates room for all of them (insert_extent()).
    for index in range(_MOST // _PIECE):
        a.copy(R8, index * _PIECE * _EXTENT.size, _PIECE * _EXTENT.size)
        a.hand(_PIECE * _EXTENT.size)
    a.label(done)


# --- The caller itself ------------------------------------------------------------


@cache
def overflow_ids() -> tuple[int, int]:
    """What ids without a number in a user namespace are shown as; read once."""
    return _number("overflowuid"), _number("overflowgid")


def _number(name: str) -> int:
    try:
        with open(f"/proc/sys/kernel/{name}", "rb", 0) as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return 65534
