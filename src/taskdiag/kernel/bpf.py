"""The bpf(2) system call: loading programs, creating maps, links and iterators.

Constants and layouts are those of ``union bpf_attr`` (include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct, pack, pack_into

from ..errors import EngineUnavailable
from .asm import INSN, Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals
else:
    # Part of every interpreter, where `signal` takes time to import.
    from _signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals

__all__ = (
    "BpfError",
    "VerifierError",
    "bpf",
    "btf_load",
    "create_iterator",
    "create_link",
    "create_map",
    "load_program",
    "map_delete",
    "map_lookup",
    "map_update",
)

_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

_MAP_CREATE, _MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM = 0, 1, 2, 3
_PROG_LOAD, _BTF_LOAD, _LINK_CREATE, _ITER_CREATE = 5, 18, 28, 33

_PROG_TYPE_TRACING = 26
_ATTACH_TRACE_ITER = 28
_F_SLEEPABLE = 1 << 4

MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
MAP_TYPE_PERCPU_ARRAY = 6
F_NO_PREALLOC = 1 << 0
F_MMAPABLE = 1 << 10

_MAP_ATTR = Struct("=5I")
_PROG_ATTR = Struct("=IIQQIIQII16sIIIIQIIQIII")
_LINK_ATTR = Struct("=IIIIQI4x")
_ITER_ATTR = Struct("=II")
_ELEM_ATTR = Struct("=I4xQQQ")
_BTF_ATTR = Struct("=QQIII4x")

# The kernel requires BTF with a program whose functions it calls back.  One type is enough
# for all of them: FUNC taskdiag, static, without parameters.  These are the bytes that
# BtfBuilder makes (a test compares them), so that no program has to import it.
_STRINGS = b"\0long\0taskdiag\0"
_FUNCTION_BTF = (
    pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 40, 40, len(_STRINGS))
    + pack("=4I", 1, 1 << 24, 8, 1 << 24 | 64)  # INT long: signed, 64 bits
    + pack("=3I", 0, 13 << 24, 1)  # FUNC_PROTO: long (*)(void)
    + pack("=3I", 6, 12 << 24, 2)  # FUNC taskdiag
    + _STRINGS
)
_FUNCTION_ID = 3

#: How often the kernel is asked to check a program again (as libbpf does).
_ATTEMPTS = 5

# The tracing helpers are only for programs with a licence that is compatible with the GPL.
# "Dual MIT/GPL" is the string for our licence that license_is_gpl_compatible() accepts
# (include/linux/license.h).
_LICENSE = ctypes.create_string_buffer(b"Dual MIT/GPL")


class BpfError(EngineUnavailable):
    """bpf(2) failed, with this ``errno``."""


class VerifierError(BpfError):
    """The verifier rejected a program.

    ``where`` is the note of the rejected code (a group or a field), ``log`` the whole log
    of the verifier.
    """

    def __init__(self, errno: int, where: str, log: str) -> None:
        last = "\n".join(log.strip().splitlines()[-6:])
        super().__init__(errno, f"the kernel's verifier rejected {where}:\n{last}")
        self.where = where
        self.log = log


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_number = _NR_BPF.get(os.uname().machine)


def bpf(command: int, attr: bytes | bytearray) -> int:
    """The result of the system call, often a descriptor.  Raises BpfError."""
    if _number is None:
        raise BpfError(errno.ENOSYS, f"the number of bpf(2) on {os.uname().machine} is not known")
    buffer = ctypes.create_string_buffer(bytes(attr), len(attr))
    result: int = _syscall(
        ctypes.c_long(_number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attr))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise BpfError(code, os.strerror(code))
    return result


def create_map(kind: int, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
    """The descriptor of a new map.  Raises BpfError."""
    return bpf(_MAP_CREATE, _MAP_ATTR.pack(kind, key_size, value_size, entries, flags))


def map_lookup(fd: int, key: bytes, size: int) -> bytes:
    """The value of a key.  Raises BpfError, ENOENT if there is none."""
    name = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(size)
    bpf(_MAP_LOOKUP_ELEM, _ELEM_ATTR.pack(fd, _address(name), _address(value), 0))
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key.  Raises BpfError."""
    name = ctypes.create_string_buffer(key, len(key))
    data = ctypes.create_string_buffer(value, len(value))
    bpf(_MAP_UPDATE_ELEM, _ELEM_ATTR.pack(fd, _address(name), _address(data), 0))


def map_delete(fd: int, key: bytes) -> None:
    """Remove a key.  Raises BpfError, ENOENT if there is none."""
    name = ctypes.create_string_buffer(key, len(key))
    bpf(_MAP_DELETE_ELEM, _ELEM_ATTR.pack(fd, _address(name), 0, 0))


def btf_load(blob: bytes) -> int:
    """Load BTF for a program; gives its descriptor.  Raises BpfError."""
    data = ctypes.create_string_buffer(blob, len(blob))
    return bpf(_BTF_LOAD, _BTF_ATTR.pack(_address(data), 0, len(blob), 0, 0))


def load_program(
    code: Code,
    attach_btf_id: int,
    maps: Mapping[str, int],
    *,
    sleepable: bool = False,
    name: bytes = b"taskdiag",
) -> int:
    """Load an iterator program; gives its descriptor.

    ``attach_btf_id`` is the BTF id of the iterator's function (``bpf_iter_task``),
    ``maps`` the descriptors for the maps that the code names.

    Raises VerifierError with the verifier's log, BpfError for anything else.
    """
    insns = bytearray(code.insns)
    for at, wanted in code.maps:
        pack_into("=i", insns, at * INSN.size + 4, maps[wanted])
    text = ctypes.create_string_buffer(bytes(insns), len(insns))

    # One (instruction, type) each.
    infos = b"".join([pack("=II", at, _FUNCTION_ID) for at in code.functions])
    functions = ctypes.create_string_buffer(infos, len(infos)) if infos else None
    btf = btf_load(_FUNCTION_BTF) if infos else 0

    def attr(level: int, log: ctypes.Array[ctypes.c_char] | None) -> bytes:
        return _PROG_ATTR.pack(
            _PROG_TYPE_TRACING, len(insns) // INSN.size, _address(text), _address(_LICENSE),
            level, _length(log), _address(log),
            0, _F_SLEEPABLE if sleepable else 0, name, 0, _ATTACH_TRACE_ITER,
            btf, 8 if infos else 0, _address(functions), len(code.functions),
            0, 0, 0, attach_btf_id, 0,
        )  # fmt: skip

    try:
        return _load(attr(0, None))
    except BpfError as error:
        if error.errno == errno.EAGAIN:
            raise
        # Ask for the log only now: writing it takes longer than the check itself.
        log = ctypes.create_string_buffer(1 << 22)
        try:
            return _load(attr(1, log))
        except BpfError as again:
            words = log.value.decode("utf-8", "replace")
            if not words or again.errno == errno.EAGAIN:
                raise error from None
            where = code.note_at(_last_insn(words)) or "the program"
            raise VerifierError(error.errno or 0, where, words) from None
    finally:
        if btf:
            os.close(btf)


def _load(attr: bytes) -> int:
    """BPF_PROG_LOAD, undisturbed by signals.

    The verifier gives up with EAGAIN when a signal is pending (do_check(),
    kernel/bpf/verifier.c), and a process with an interval timer always has one.  So signals
    are blocked meanwhile.  SIGSTOP cannot be, so the call is repeated as well.
    """
    mask = pthread_sigmask(SIG_BLOCK, valid_signals())
    try:
        for _ in range(_ATTEMPTS - 1):
            try:
                return bpf(_PROG_LOAD, attr)
            except BpfError as error:
                if error.errno != errno.EAGAIN:
                    raise
        return bpf(_PROG_LOAD, attr)
    finally:
        pthread_sigmask(SIG_SETMASK, mask)


def create_link(program: int, tid: int = 0, pid: int = 0) -> int:
    """Attach an iterator program, to all tasks or to one thread (``tid``) or process (``pid``).

    Gives the link's descriptor.  Raises BpfError.
    """
    if not tid and not pid:
        return bpf(_LINK_CREATE, _LINK_ATTR.pack(program, 0, _ATTACH_TRACE_ITER, 0, 0, 0))
    # struct bpf_iter_link_info: since Linux kernel commit f0d74c4da1f0 ("bpf:
    # Parameterize task iterators.") (in v6.1), it can name a task.
    info = ctypes.create_string_buffer(Struct("=III4x").pack(tid, pid, 0), 16)
    return bpf(
        _LINK_CREATE,
        _LINK_ATTR.pack(program, 0, _ATTACH_TRACE_ITER, 0, _address(info), 16),
    )


def create_iterator(link: int) -> int:
    """A descriptor that one run of the link's program can be read from.  Raises BpfError."""
    return bpf(_ITER_CREATE, _ITER_ATTR.pack(link, 0))


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


def _length(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return 0 if buffer is None else len(buffer)


def _last_insn(log: str) -> int:
    """The number of the last instruction that the verifier's log mentions, or 0."""
    for line in reversed(log.splitlines()):
        number, colon, _ = line.partition(":")
        if colon and number.isdigit():
            return int(number)
    return 0
