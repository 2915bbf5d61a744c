"""Credentials: user and group ids in the viewer's user namespace.

kernel/cred.c, kernel/user_namespace.c.
"""

from __future__ import annotations

from .asm import R0, signed32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter


__all__ = ("gid", "uid")


def uid(c: Emitter) -> None:
    """``from_kuid_munged()``: translate the kuid in R0 to the viewer's user namespace."""
    _translate(c, c.viewer.uid_map, c.viewer.overflow_uid)


def gid(c: Emitter) -> None:
    """``from_kgid_munged()``: translate the kgid in R0 to the viewer's user namespace."""
    _translate(c, c.viewer.gid_map, c.viewer.overflow_gid)


def _translate(c: Emitter, extents: tuple[tuple[int, int, int], ...] | None, overflow: int) -> None:
    """``map_id_up()``: translate the id in R0; an id in no extent becomes the overflow id."""
    if extents is None:
        return
    done = c.fresh("id")
    for inside, outside, count in extents:
        other = c.fresh("extent")
        # A 32-bit jump compares the low half of the register with the immediate.
        c.jump("<", R0, signed32(outside), other, bits=32)
        c.jump(">", R0, signed32(outside + count - 1), other, bits=32)
        c.alu("add", R0, signed32(inside - outside), bits=32)
        c.goto(done)
        c.label(other)
    c.mov(R0, overflow)
    c.label(done)
