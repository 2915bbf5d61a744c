"""The identity of a requester: credentials, namespaces and root directory, as the kernel has them.

An `Identity` is a value.  `identity_reader` reads one by running a program of
`identity_program`, and `decode` makes the Identity of the program's output.
"""

from __future__ import annotations

from functools import cache
from struct import Struct, unpack_from

from ..capability import CAP_SYS_PTRACE
from ..errors import EngineUnavailable
from .viewer import Rule, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .viewer import Extents

__all__ = (
    "CRED",
    "EXTENT",
    "INLINE_EXTENTS",
    "MOST_EXTENTS",
    "NAMESPACE",
    "SECURITY_WORDS",
    "Identity",
    "decode",
    "overflow_ids",
)

#: Words of a credential's security blob that are read; security modules keep their data there.
SECURITY_WORDS = 8

#: Members of struct cred, in the order in which they are written.
CRED = ("fsuid", "fsgid", "euid", "egid", "uid", "gid", "suid", "sgid")
#: Members of struct user_namespace, likewise.
NAMESPACE = ("level", "ns.inum", "owner")

#: ``struct uid_gid_extent``: first, lower_first, count.
EXTENT = Struct("=III")
#: Up to this many extents are in ``struct uid_gid_map`` itself; if there are more, all are
#: in a separate array.
INLINE_EXTENTS = 5
MOST_EXTENTS = 340

_WORDS = 33 + SECURITY_WORDS


class Identity:
    """Everything about a process that the access rule and the view depend on.

    The ids are the kernel's own numbers.  The user namespace is identified by ``namespace``
    (its address), ``level``, ``inum``, ``owner`` and ``ns_id``; ``top_owner`` is the user who
    created the outermost user namespace above it, other than the host's.

    ``pid`` is the address of the process's struct pid, ``pid_ns`` the inode number of its pid
    namespace, and ``pid_level`` the level of that.  ``tgid`` is the process's number on the
    host and ``nr`` its number in the reader's own pid namespace, 0 if it has none; ``tid`` is
    the number of the thread that was read, in the reader's pid namespace.  ``start`` is when
    the process was started, in ns by the host's clock, 0 if it no longer exists.

    ``boottime_offset`` is what its time namespace adds to the boot time clock, in ns.
    ``root`` is the addresses of the mount and dentry of its root directory, None if the
    process no longer exists; ``at_top`` says whether that is the root of its mount namespace.
    """

    __slots__ = (
        "at_top", "boottime_offset", "caps", "dumpable", "egid", "euid", "fsgid", "fsuid",
        "gid", "gid_map", "inum", "level", "namespace", "nr", "ns_id", "owner", "permitted",
        "pid", "pid_level", "pid_ns", "plain", "root", "security", "sgid", "start", "suid",
        "tgid", "tid", "top_owner", "uid", "uid_map",
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
    tid: int
    start: int
    plain: bool
    dumpable: int
    boottime_offset: int
    root: tuple[int, int] | None
    at_top: bool

    @property
    def privileged(self) -> bool:
        """Whether it may see every task: CAP_SYS_PTRACE over the host."""
        return self.level == 0 and bool(self.caps & 1 << CAP_SYS_PTRACE)

    @property
    def user(self) -> tuple[int, int]:
        """The user whose limits apply.

        A user may have any number of ids in user namespaces of their own, so inside of one
        this is the user who created the outermost of them.
        """
        return (1, self.top_owner) if self.level else (0, self.uid)

    @property
    def process(self) -> tuple[int, int] | None:
        """The process for `Rule`; None if the rest of the rule makes it visible to itself.

        With None, programs can be shared between the processes of a user.
        """
        if not self.start:
            return None
        uids = {self.fsuid, self.euid, self.suid, self.uid}
        gids = {self.fsgid, self.egid, self.sgid, self.gid}
        if len(uids) == len(gids) == 1 and self.plain and self.dumpable == 1:
            return (self.tgid, self.start) if self.permitted & ~self.caps else None
        return self.tgid, self.start

    def shares_paths(self, other: Identity) -> bool:
        """Whether d_path() gives both the same paths.

        A path starts at the root directory of the task that reads it, or at the root of the
        mount namespace that the file is in.  If the root directory is the root of the mount
        namespace, the two are the same.
        """
        if self.root is None:
            return False
        return self.root == other.root or (self.at_top and other.at_top)

    def viewer(self, home: tuple[int, int] | None = None) -> Viewer:
        """The viewer to make programs for; ``home`` is as in `Viewer`."""
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
            overflow_uid, overflow_gid, rule, home, self.boottime_offset,
        )  # fmt: skip


def decode(data: bytes, level: int, pid_ns: int) -> Identity:
    """Make an Identity of the output of a program of `identity_program`.

    ``level`` and ``pid_ns`` are those of the reader's pid namespace.  Raises
    EngineUnavailable if the record is too short or has an unknown form.
    """
    found = Identity()
    if len(data) < 8 * _WORDS:
        raise EngineUnavailable("the kernel's answer about a process's identity is cut short")
    take = iter(unpack_from(f"={_WORDS}Q", data)).__next__
    for name in CRED:
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
    found.tid = found.nr
    found.start, found.plain, found.dumpable = take(), bool(take()), take()
    if take() != found.pid:
        # It has just exited, and what was read may be about another process.
        found.start = 0
    found.boottime_offset = _signed(take()) * 1_000_000_000 + take()
    mount, dentry = take(), take()
    found.root = (mount, dentry) if mount and dentry else None
    found.at_top = bool(take())
    uids, gids = take(), take()
    at = 8 * _WORDS
    found.uid_map, at = _extents(data, at, uids, found.level)
    found.gid_map, at = _extents(data, at, gids, found.level)
    if at != len(data):
        raise EngineUnavailable("the kernel's answer about a process's identity is too long")
    return found


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _extents(data: bytes, at: int, count: int, level: int) -> tuple[Extents | None, int]:
    """The extents of a map (None for the first user namespace), and where they end."""
    room = INLINE_EXTENTS if count <= INLINE_EXTENTS else MOST_EXTENTS
    end = at + room * EXTENT.size
    if count > MOST_EXTENTS or end > len(data):
        raise EngineUnavailable("the kernel's map of user ids is not one that is known here")
    if not level:
        return None, end
    return tuple(EXTENT.unpack_from(data, at + index * EXTENT.size) for index in range(count)), end


@cache
def overflow_ids() -> tuple[int, int]:
    """The uid and gid shown for ids that have none in a user namespace; read once."""
    return _number("overflowuid"), _number("overflowgid")


def _number(name: str) -> int:
    try:
        with open(f"/proc/sys/kernel/{name}", "rb", 0) as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return 65534
