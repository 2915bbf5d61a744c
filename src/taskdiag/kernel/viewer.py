"""The viewer that a program is made for: its namespaces and its access rule.

Pids in an answer are those of the viewer's pid namespace, ids those of its user namespace,
and start times those of its time namespace.  Tasks are those that its credentials may see.
The root directory, to which paths are relative, is not part of a program: see `viewer_root`.
"""

from __future__ import annotations

__all__ = ("INIT_PID_NS", "INIT_TIME_NS", "INIT_USER_NS", "Extents", "Rule", "Viewer")

#: ``PROC_PID_INIT_INO`` (include/linux/proc_ns.h): the first pid namespace's inode number.
INIT_PID_NS = 0xEFFFFFFC
#: ``PROC_USER_INIT_INO``: the first user namespace's.
INIT_USER_NS = 0xEFFFFFFD
#: ``PROC_TIME_INIT_INO``: the first time namespace's.
INIT_TIME_NS = 0xEFFFFFFA

#: A user namespace's map as the kernel keeps it: (id inside, the kernel's id, count).
Extents = tuple[tuple[int, int, int], ...]


class Rule:
    """The parts of a viewer's identity that `access` compiles in, if it may not see everything.

    ``fsuid``, ``fsgid`` and ``euid`` are the kernel's own numbers, and ``caps`` are the
    effective capabilities.  The user namespace is identified by its ``level`` (0 is the
    host's), and below level 0 by its address, inode number, owner and ``ns_id`` as well.
    ``process`` is the viewer's own process, which it may always see: tgid and start time in ns,
    as the host counts them; None if it makes no difference.
    """

    __slots__ = (
        "caps", "euid", "fsgid", "fsuid", "inum", "level", "namespace", "ns_id", "owner",
        "process",
    )  # fmt: skip

    def __init__(
        self,
        fsuid: int,
        fsgid: int,
        euid: int,
        caps: int = 0,
        *,
        level: int = 0,
        namespace: int = 0,
        inum: int = INIT_USER_NS,
        owner: int = 0,
        ns_id: int = 0,
        process: tuple[int, int] | None = None,
    ) -> None:
        self.fsuid = fsuid
        self.fsgid = fsgid
        self.euid = euid
        self.caps = caps
        self.level = level
        self.namespace = namespace
        self.inum = inum
        self.owner = owner
        self.ns_id = ns_id
        self.process = process

    def key(self) -> tuple[object, ...]:
        """Everything that the rule's code depends on."""
        return tuple(getattr(self, name) for name in self.__slots__)


class Viewer:
    """The viewer that a program is made for.

    ``level`` is the level of its pid namespace (0 is the host's) and ``pid_ns`` the inode
    number.  ``uid_map`` and ``gid_map`` are None in the first user namespace, where ids are the
    kernel's own.  Without a ``rule`` it sees every task.  ``home`` is the level and inode
    number of the pid namespace that iterators walk, which is that of the process that creates
    them; by default it is the viewer's own.  ``boottime_offset`` is what its time namespace
    adds to the time since boot, in nanoseconds.
    """

    __slots__ = (
        "boottime_offset", "gid_map", "home", "level", "overflow_gid", "overflow_uid",
        "pid_ns", "rule", "uid_map",
    )  # fmt: skip

    def __init__(
        self,
        level: int = 0,
        pid_ns: int = INIT_PID_NS,
        uid_map: Extents | None = None,
        gid_map: Extents | None = None,
        overflow_uid: int = 65534,
        overflow_gid: int = 65534,
        rule: Rule | None = None,
        home: tuple[int, int] | None = None,
        boottime_offset: int = 0,
    ) -> None:
        self.boottime_offset = boottime_offset
        self.level = level
        self.pid_ns = pid_ns
        self.uid_map = uid_map
        self.gid_map = gid_map
        self.overflow_uid = overflow_uid
        self.overflow_gid = overflow_gid
        self.rule = rule
        self.home = home or (level, pid_ns)

    @property
    def foreign(self) -> bool:
        """Whether its pid namespace is not the one that iterators walk."""
        return self.home[1] != self.pid_ns

    @property
    def plain(self) -> bool:
        """Whether it sees every task and has the host's boot time clock."""
        return self.rule is None and not self.boottime_offset

    def key(self) -> tuple[object, ...]:
        """Everything that a program made for this viewer depends on."""
        return (
            self.level, self.pid_ns, self.home, self.uid_map, self.gid_map, self.boottime_offset,
            self.overflow_uid, self.overflow_gid, None if self.rule is None else self.rule.key(),
        )  # fmt: skip
