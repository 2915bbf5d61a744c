"""Capabilities of this process (capabilities(7), include/uapi/linux/capability.h)."""

from __future__ import annotations

import os

__all__ = (
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "effective",
    "may_load_bpf",
)

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39


def effective() -> int | None:
    """The effective set as a mask, or None if /proc is not mounted.

    >>> hex(effective())
    '0x...'
    """
    try:
        with open("/proc/thread-self/status", "rb", 0) as file:
            status = file.read(1 << 14)
    except OSError:
        return None
    at = status.find(b"\nCapEff:")
    return None if at < 0 else int(status[at + 8 :].split(None, 1)[0], 16)


def may_load_bpf() -> bool:
    """Whether it is worth trying: False only if the kernel would surely refuse.

    Tracing programs need CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, in the first user
    namespace (kernel/bpf/syscall.c, bpf_prog_load).
    """
    if os.geteuid() == 0:
        return True
    caps = effective()
    if caps is None:
        return True
    both = 1 << CAP_BPF | 1 << CAP_PERFMON
    return caps & both == both or bool(caps & 1 << CAP_SYS_ADMIN)
