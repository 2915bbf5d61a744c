"""The controlling terminal of a process.

drivers/tty/tty_io.c (tty_devnum), include/linux/kdev_t.h.
"""

from __future__ import annotations

from .asm import R0, R1, R2, R3
from .emit import SIGNAL
from .pid import nr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .emit import Emitter

__all__ = ("tpgid", "tty_nr")


def tty_nr(c: Emitter) -> None:
    """R0 = ``new_encode_dev(tty_devnum())``, the terminal's device number; 0 without one."""
    done = c.fresh("tty")
    c.mov(R0, 0)
    c.follow(R1, SIGNAL, "signal_struct", "tty")
    c.jump("==", R1, 0, done)
    c.follow(R2, R1, "tty_struct", "driver->minor_start")
    c.follow(R3, R1, "tty_struct", "index")
    c.alu("add", R2, R3)
    c.follow(R0, R1, "tty_struct", "driver->major")
    c.alu("lsh", R0, 8)
    c.mov(R1, R2)
    c.alu("and", R1, 0xFF)
    c.alu("or", R0, R1)
    c.alu("and", R2, 0xFFF00)
    c.alu("lsh", R2, 12)
    c.alu("or", R0, R2)
    c.label(done)


def tpgid(c: Emitter) -> None:
    """R0 = the foreground process group of the terminal; -1 without one."""
    done = c.fresh("tpgid")
    c.mov(R0, -1)
    c.follow(R1, SIGNAL, "signal_struct", "tty")
    c.jump("==", R1, 0, done)
    # Since Linux kernel commit 64d608db38ff ("tty: cumulate and document
    # tty_struct::ctrl* members") (in v5.13), the group is in tty_struct::ctrl.
    new = c.facts.has_member("tty_struct", "ctrl.pgrp")
    c.follow(R1, R1, "tty_struct", "ctrl.pgrp" if new else "pgrp")
    nr(c)
    c.label(done)
