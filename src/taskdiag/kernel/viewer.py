"""Whose eyes a program sees through: pid namespace and user namespace.

Numbers in an answer are those of the viewer's pid namespace, ids those of its user
namespace.
"""

from __future__ import annotations

__all__ = ("INIT_PID_NS", "Extents", "Viewer")

#: ``PROC_PID_INIT_INO`` (include/linux/proc_ns.h): the first pid namespace's inode number.
INIT_PID_NS = 0xEFFFFFFC

#: A user namespace's map as the kernel keeps it: (id inside, the kernel's id, count).
Extents = tuple[tuple[int, int, int], ...]


class Viewer:
    """The viewer that a program is made for.

    ``level`` is how deep its pid namespace lies (0 is the host's) and ``pid_ns`` that
    namespace's inode number.  ``uid_map`` and ``gid_map`` are None in the first user
    namespace, where ids are the kernel's own.
    """

    __slots__ = ("gid_map", "level", "overflow_gid", "overflow_uid", "pid_ns", "uid_map")

    def __init__(
        self,
        level: int = 0,
        pid_ns: int = INIT_PID_NS,
        uid_map: Extents | None = None,
        gid_map: Extents | None = None,
        overflow_uid: int = 65534,
        overflow_gid: int = 65534,
    ) -> None:
        self.level = level
        self.pid_ns = pid_ns
        self.uid_map = uid_map
        self.gid_map = gid_map
        self.overflow_uid = overflow_uid
        self.overflow_gid = overflow_gid

    def key(self) -> tuple[object, ...]:
        """Everything that a program made for this viewer depends on."""
        return (
            self.level, self.pid_ns, self.uid_map, self.gid_map,
            self.overflow_uid, self.overflow_gid,
        )  # fmt: skip
