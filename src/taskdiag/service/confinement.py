"""Clients that a security module confines, which are not served.

ptrace_may_access() ends with a hook (``security_ptrace_access_check``) where SELinux,
AppArmor, Smack, Landlock and BPF programs may refuse what capabilities allow.  They judge
the current task, which is not the client when a program of ours runs, so our rule cannot
include what they would refuse.  Such clients have to use /proc.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from ..kernel.identity import SECURITY_WORDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.identity import Identity
    from ..kernel.identity_reader import Reader

__all__ = ("Confinement", "landlock_word")

_SYS_CREATE_RULESET, _SYS_RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38
# With four levels of page tables even 16 bits are set, with five only these.
_KERNEL_POINTER = 0xFF << 56


class Confinement:
    """Determines who is confined, as far as that can be seen from outside.

    ``word`` is the place of Landlock's domain in the security blob of credentials, None if
    there is no Landlock; see `landlock_word`.
    """

    def __init__(self, word: int | None) -> None:
        self._word = word

    def why(self, identity: Identity, label: bytes) -> str:
        """The name of what confines a client, "" if nothing is known to.

        ``label`` is what SO_PEERSEC or /proc/PID/attr/current say.
        """
        if self._word is not None and identity.security[self._word]:
            return "Landlock"
        name = label.rstrip(b"\0\n")
        # AppArmor; SELinux, whose unconfined domains may see all others; the label of
        # Smack that everything has by default.
        if name in (b"", b"unconfined", b"_", b"kernel") or b":unconfined_" in name:
            return ""
        return "a security module"


def landlock_word(reader: Reader) -> int | None:
    """The place of Landlock's domain in the security blob, found with a process that has one.

    None without Landlock.  Raises OSError if there is Landlock but the place cannot be found,
    because confined clients could then not be recognized.
    """
    if platform.machine() not in ("x86_64", "aarch64", "riscv64"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION) < 1:
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise OSError(code, "it cannot be told whether there is Landlock", None)
    candidates = set(range(SECURITY_WORDS))
    for _ in range(3):
        before, after = _restricted(reader, libc)
        candidates &= {
            index
            for index in range(SECURITY_WORDS)
            if not before[index] and after[index] & _KERNEL_POINTER == _KERNEL_POINTER
        }
    if not candidates:
        raise OSError("it cannot be told whom Landlock confines")
    return min(candidates)


def _restricted(reader: Reader, libc: ctypes.CDLL) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The security blob of a process before and after it restricts itself."""
    before = reader.of_task(os.getpid()).security
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # struct landlock_ruleset_attr: handle making block devices, and allow none.
            attr = ctypes.create_string_buffer((1 << 11).to_bytes(8, "little"), 8)
            ruleset = libc.syscall(_SYS_CREATE_RULESET, attr, ctypes.c_size_t(8), ctypes.c_uint(0))
            libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
            if ruleset >= 0 and not libc.syscall(_SYS_RESTRICT_SELF, ruleset, ctypes.c_uint(0)):
                os.write(ready[1], b".")
            os.close(ready[1])
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    os.close(done[0])
    try:
        if not os.read(ready[0], 1):
            raise OSError("a process cannot restrict itself by Landlock")
        return before, reader.of_task(pid).security
    finally:
        os.close(ready[0])
        os.close(done[1])
        os.waitpid(pid, 0)
