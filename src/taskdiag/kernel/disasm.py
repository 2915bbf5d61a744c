"""The disassembler: bytecode as text, in the words of the kernel's verifier.

    >>> a = Assembler()
    >>> a.load(R1, R6, 1264, 4)
    >>> a.jump("==", R1, 0, "skip")
    >>> a.call(127)
    >>> a.label("skip")
    >>> a.exit()
    >>> print("\\n".join(listing(a.assemble())))
         0  r1 = *(u32 *)(r6 +1264)
         1  if r1 == 0x0 goto skip
         2  call bpf_seq_write#127
    skip:
         3  exit

kernel/bpf/disasm.c (print_bpf_insn); jumps name their labels, and maps, helpers and kernel
functions are called by their names.
"""

from __future__ import annotations

from . import asm
from .asm import ALU, INSN, JUMPS, AsmError
from .emit import HELPERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .asm import Code

__all__ = ("disassemble", "listing")

_LDX, _ST, _STX, _JMP, _ALU32, _JMP32, _ALU64 = 1, 2, 3, 5, 4, 6, 7
# Of an ld_imm64: the address of a subprogram (include/uapi/linux/bpf.h).
_PSEUDO_FUNC = 4
_SIZES = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
_MODE, _MODE_MEM = 0xE0, 0x60

_OPERATORS = {
    "add": "+=", "sub": "-=", "mul": "*=", "div": "/=", "or": "|=", "and": "&=",
    "lsh": "<<=", "rsh": ">>=", "mod": "%=", "xor": "^=", "mov": "=", "arsh": "s>>=",
}  # fmt: skip
_ALU_NAMES = {code: name for name, code in ALU.items()}
_CONDITIONS = {code: name for name, code in JUMPS.items()}
_HELPER_NAMES = {number: name for name, number in HELPERS.items()}


def disassemble(
    code: Code, name_of: Callable[[int], str] | None = None
) -> Iterator[tuple[int, str]]:
    """(number, text) of every instruction.

    ``name_of`` gives the name of a BTF id, as `btf.Btf.name` does; without it kernel
    functions and variables stay numbers.

    Raises AsmError if the code is no whole number of instructions.
    """
    if len(code.insns) % INSN.size:
        raise AsmError(f"{len(code.insns)} bytes are no whole number of instructions")
    insns = list(INSN.iter_unpack(code.insns))
    names = _targets(code, insns)
    maps = dict(code.maps)
    skip = False
    for at, insn in enumerate(insns):
        if skip:
            skip = False
        elif insn[0] == asm._LD_IMM64 and at + 1 < len(insns):
            yield at, _wide(at, insn, insns[at + 1][3], names, maps.get(at), name_of)
            skip = True
        else:
            yield at, _narrow(at, insn, names, name_of)


def listing(
    code: Code,
    name_of: Callable[[int], str] | None = None,
    describe: Callable[[str], str] = str,
) -> Iterator[str]:
    """The lines of a program for people: labels, notes as headings, comments behind.

    ``describe`` makes a heading of a note.  Raises AsmError as `disassemble` does.
    """
    labels: dict[int, list[str]] = {}
    for at, name in _targets(code, list(INSN.iter_unpack(code.insns))).items():
        labels.setdefault(at, []).append(name)
    notes: dict[int, str] = dict(code.notes)
    for at, text in disassemble(code, name_of):
        for name in labels.get(at, ()):
            yield f"{name}:"
        if at in notes:
            yield f"; {describe(notes[at])}"
        comment = code.comments.get(at)
        line = f"{at:6}  {text}"
        yield f"{line:<52}; {comment}" if comment else line


def _targets(code: Code, insns: list[tuple[int, int, int, int]]) -> dict[int, str]:
    """Names for the instructions that are jumped to or called: the label's, else L and
    the number."""
    known: dict[int, str] = {}
    for name, at in code.labels.items():
        known.setdefault(at, name.replace(" ", "_"))
    targets = {}
    for at, insn in enumerate(insns):
        to = _target(at, insn)
        if to is not None and 0 <= to < len(insns):
            targets[to] = known.get(to, f"L{to}")
    return targets


def _target(at: int, insn: tuple[int, int, int, int]) -> int | None:
    """The instruction that one may continue at, besides the next."""
    code, registers, off, imm = insn
    if code == asm._LD_IMM64:
        return at + 1 + imm if registers >> 4 == _PSEUDO_FUNC else None
    if code == asm._CALL:
        return at + 1 + imm if registers >> 4 == asm.PSEUDO_CALL else None
    if code == asm._GOTO or (code & 7 in (_JMP, _JMP32) and code & 0xF0 in _CONDITIONS):
        return at + 1 + off
    return None


def _narrow(
    at: int,
    insn: tuple[int, int, int, int],
    names: dict[int, str],
    name_of: Callable[[int], str] | None,
) -> str:
    code, registers, off, imm = insn
    dst, src = registers & 15, registers >> 4
    kind = code & 7
    if code == asm._EXIT:
        return "exit"
    if code == asm._CALL and src != asm.PSEUDO_CALL:
        return f"call {_function(src, imm, name_of)}"
    to = _target(at, insn)
    if to is not None:
        where = names.get(to, f"pc{to - at - 1:+d}")
        if code == asm._CALL:
            return f"call {where}"
        if code == asm._GOTO:
            return f"goto {where}"
        letter = "r" if kind == _JMP else "w"
        right = f"{letter}{src}" if code & asm._SRC_REG else f"{imm & 0xFFFFFFFF:#x}"
        return f"if {letter}{dst} {_CONDITIONS[code & 0xF0]} {right} goto {where}"
    if kind in (_ALU32, _ALU64) and code & 0xF0 in _ALU_NAMES and not off:
        letter = "r" if kind == _ALU64 else "w"
        name = _ALU_NAMES[code & 0xF0]
        if name == "neg":
            return f"{letter}{dst} = -{letter}{dst}"
        right = f"{letter}{src}" if code & asm._SRC_REG else str(imm)
        return f"{letter}{dst} {_OPERATORS[name]} {right}"
    if kind in (_LDX, _ST, _STX) and code & _MODE == _MODE_MEM:
        size = _SIZES[code & 0x18]
        if kind == _LDX:
            return f"r{dst} = *({size} *)(r{src} {off:+d})"
        right = f"r{src}" if kind == _STX else str(imm)
        return f"*({size} *)(r{dst} {off:+d}) = {right}"
    return f".insn {INSN.pack(*insn).hex()}"


def _wide(
    at: int,
    insn: tuple[int, int, int, int],
    high: int,
    names: dict[int, str],
    map_name: str | None,
    name_of: Callable[[int], str] | None,
) -> str:
    """An ld_imm64: a number of 64 bits, or what its source register says."""
    _, registers, _, low = insn
    dst, src = registers & 15, registers >> 4
    if src in (asm.PSEUDO_MAP_FD, asm.PSEUDO_MAP_VALUE):
        text = f"map[{map_name or low}]"
        return f"r{dst} = {text}" if src == asm.PSEUDO_MAP_FD else f"r{dst} = {text}[0]+{high}"
    if src == asm.PSEUDO_BTF_ID:
        return f"r{dst} = &{_named(low, name_of)}"
    if src == _PSEUDO_FUNC:
        return f"r{dst} = &{names.get(at + 1 + low, f'pc{low:+d}')}"
    return f"r{dst} = {(high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF:#x}"


def _function(src: int, number: int, name_of: Callable[[int], str] | None) -> str:
    if src == asm.PSEUDO_KFUNC_CALL:
        return f"{_named(number, name_of)}#{number}"
    name = _HELPER_NAMES.get(number)
    return f"bpf_{name}#{number}" if name else f"helper#{number}"


def _named(btf_id: int, name_of: Callable[[int], str] | None) -> str:
    return (name_of(btf_id) if name_of is not None else "") or f"btf_{btf_id}"
