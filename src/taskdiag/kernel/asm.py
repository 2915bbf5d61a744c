"""The BPF assembler: instructions, labels and references, from Python.

    >>> a = Assembler()
    >>> a.mov(R0, 0)
    >>> a.exit()
    >>> a.assemble().insns.hex(" ", 8)
    'b700000000000000 9500000000000000'

A `Reg` operand is a register, any other int an immediate.  The calling convention is
the kernel's: R0 is the result, R1 to R5 are arguments and are lost in a call, R6 to R9
are preserved, R10 is the frame pointer.  The encoding is that of
Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

from struct import Struct

from ..errors import TaskdiagError

__all__ = (
    "ALU",
    "CALL",
    "EXIT",
    "GOTO",
    "INSN",
    "JUMPS",
    "LD_IMM64",
    "PSEUDO_BTF_ID",
    "PSEUDO_CALL",
    "PSEUDO_FUNC",
    "PSEUDO_KFUNC_CALL",
    "PSEUDO_MAP_FD",
    "PSEUDO_MAP_VALUE",
    "R0",
    "R1",
    "R2",
    "R3",
    "R4",
    "R5",
    "R6",
    "R7",
    "R8",
    "R9",
    "R10",
    "SRC_REG",
    "AsmError",
    "Assembler",
    "Code",
    "Reg",
    "signed32",
)

#: opcode, registers (destination low, source high), offset, immediate
INSN = Struct("=BBhi")

#: Operations of the ALU classes, by the name that the assembler takes.
ALU = {
    "add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "or": 0x40, "and": 0x50,
    "lsh": 0x60, "rsh": 0x70, "neg": 0x80, "mod": 0x90, "xor": 0xA0, "mov": 0xB0,
    "arsh": 0xC0,
}  # fmt: skip

#: Conditions of the jump classes; unsigned unless they start with an s.
JUMPS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70,
    "<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0,
}  # fmt: skip

_SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}

LDX, ST, STX, ALU32, JMP, JMP32, ALU64 = 0x61, 0x62, 0x63, 0x04, 0x05, 0x06, 0x07
SRC_REG = 0x08
LD_IMM64 = 0x18
CALL, EXIT, GOTO = 0x85, 0x95, 0x05

# What the source register of an ld_imm64 or a call means (include/uapi/linux/bpf.h).
PSEUDO_MAP_FD = 1
PSEUDO_MAP_VALUE = 2
PSEUDO_BTF_ID = 3
PSEUDO_FUNC = 4
PSEUDO_CALL = 1
PSEUDO_KFUNC_CALL = 2


class AsmError(TaskdiagError):
    """The program cannot be encoded: a label is missing, or a number does not fit."""


class Reg(int):
    """A register, as an operand; any other int is an immediate."""

    def __repr__(self) -> str:
        return f"r{int(self)}"


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = (Reg(number) for number in range(11))


class Code:
    """An assembled program.

    ``insns``      the bytecode
    ``maps``       (instruction, map name) of each load of a map; `bpf.load_program`
                   fills in the map's descriptor
    ``notes``      (instruction, text): what the code from this instruction on is for
    ``functions``  the first instruction of each function, if the kernel calls one of
                   them back (it must then be told of all); else empty
    ``labels``     the instruction of each label, for listings
    ``comments``   a text for some instructions, for listings
    """

    __slots__ = ("comments", "functions", "insns", "labels", "maps", "notes")

    def __init__(
        self,
        insns: bytes,
        maps: list[tuple[int, str]],
        notes: list[tuple[int, str]],
        labels: dict[str, int],
        comments: dict[int, str] | None = None,
        functions: list[int] | None = None,
    ) -> None:
        self.insns = insns
        self.maps = maps
        self.notes = notes
        self.labels = labels
        self.comments = comments or {}
        self.functions = functions or []

    def note_at(self, insn: int) -> str:
        """The last note before or at an instruction: what the code there is for."""
        found = ""
        for at, text in self.notes:
            if at > insn:
                break
            found = text
        return found


class Assembler:
    """Collects instructions; `assemble` turns them into bytecode."""

    def __init__(self) -> None:
        self._insns: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._calls: list[tuple[int, str]] = []
        self._callbacks = False
        self._maps: list[tuple[int, str]] = []
        self._notes: list[tuple[int, str]] = []
        self._fresh = 0

    def __len__(self) -> int:
        return len(self._insns)

    def _emit(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        if not -0x8000 <= off <= 0x7FFF:
            raise AsmError(f"offset {off} does not fit 16 bits")
        if not -0x80000000 <= imm <= 0x7FFFFFFF:
            raise AsmError(f"immediate {imm:#x} does not fit 32 signed bits")
        self._insns.append((code, dst | src << 4, off, imm))

    # --- Moving and computing ---------------------------------------------

    def alu(self, op: str, dst: Reg, src: int, *, bits: int = 64) -> None:
        """``dst = dst op src``; a 32-bit operation clears the upper half."""
        code = ALU[op] | (ALU64 if bits == 64 else ALU32)
        if isinstance(src, Reg):
            self._emit(code | SRC_REG, dst, src)
        else:
            self._emit(code, dst, imm=src)

    def mov(self, dst: Reg, src: int) -> None:
        """``dst = src``; an immediate of any width up to 64 bits."""
        if isinstance(src, Reg) or -0x80000000 <= src <= 0x7FFFFFFF:
            self.alu("mov", dst, src)
        else:
            self._ld_imm64(dst, 0, src)

    def load(self, dst: Reg, base: Reg, off: int, size: int = 8) -> None:
        """``dst = *(u<size * 8> *)(base + off)``"""
        self._emit(LDX | _SIZES[size], dst, base, off)

    def store(self, base: Reg, off: int, src: int, size: int = 8) -> None:
        """``*(u<size * 8> *)(base + off) = src``"""
        if isinstance(src, Reg):
            self._emit(STX | _SIZES[size], base, src, off)
        else:
            self._emit(ST | _SIZES[size], base, 0, off, src)

    # --- References ---------------------------------------------------------

    def _ld_imm64(self, dst: Reg, src: int, value: int, high: int | None = None) -> None:
        if high is None:
            value &= 0xFFFFFFFFFFFFFFFF
            value, high = value & 0xFFFFFFFF, value >> 32
        self._emit(LD_IMM64, dst, src, 0, signed32(value))
        self._emit(0, 0, 0, 0, signed32(high))

    def map(self, dst: Reg, name: str) -> None:
        """``dst`` = a map, as helpers take it."""
        self._maps.append((len(self), name))
        self._ld_imm64(dst, PSEUDO_MAP_FD, 0)

    def map_value(self, dst: Reg, name: str, off: int = 0) -> None:
        """``dst`` = the address of byte ``off`` in the value of an array map with one entry."""
        self._maps.append((len(self), name))
        self._ld_imm64(dst, PSEUDO_MAP_VALUE, 0, off)

    def btf_var(self, dst: Reg, btf_id: int) -> None:
        """``dst`` = the address of a kernel variable."""
        self._ld_imm64(dst, PSEUDO_BTF_ID, btf_id, 0)

    # --- Control ------------------------------------------------------------

    def label(self, name: str) -> None:
        """Define a label: the next instruction."""
        if name in self._labels:
            raise AsmError(f"label {name} is defined twice")
        self._labels[name] = len(self)

    def fresh(self, stem: str = "l") -> str:
        """A name for a label, different from all others."""
        self._fresh += 1
        return f"{stem}.{self._fresh}"

    def jump(self, cond: str, dst: Reg, src: int, label: str, *, bits: int = 64) -> None:
        """Go to ``label`` if ``dst cond src``; ``&`` is true if they have a bit in common."""
        self._jumps.append((len(self), label))
        code = JUMPS[cond] | (JMP if bits == 64 else JMP32)
        if isinstance(src, Reg):
            self._emit(code | SRC_REG, dst, src)
        else:
            self._emit(code, dst, imm=src)

    def goto(self, label: str) -> None:
        """Go to ``label``."""
        self._jumps.append((len(self), label))
        self._emit(GOTO)

    def call(self, helper: int) -> None:
        """Call a helper by number (``enum bpf_func_id``)."""
        self._emit(CALL, imm=helper)

    def call_kfunc(self, btf_id: int) -> None:
        """Call a kernel function by the BTF id of its FUNC."""
        self._emit(CALL, 0, PSEUDO_KFUNC_CALL, 0, btf_id)

    def call_local(self, label: str) -> None:
        """Call a function of this program, which has its own R6 to R9 and its own frame."""
        self._calls.append((len(self), label))
        self._emit(CALL, 0, PSEUDO_CALL)

    def function(self, dst: Reg, label: str) -> None:
        """``dst`` = the address of a function of this program, for a helper to call back."""
        self._callbacks = True
        self._calls.append((len(self), label))
        self._ld_imm64(dst, PSEUDO_FUNC, 0)

    def exit(self) -> None:
        """Return R0."""
        self._emit(EXIT)

    # --- The result -----------------------------------------------------------

    def note(self, text: str) -> None:
        """State what the instructions from here on are for."""
        self._notes.append((len(self), text))

    def assemble(self) -> Code:
        """Resolve the labels; gives the bytecode.  Raises AsmError."""
        insns = list(self._insns)
        for at, name in self._jumps:
            code, regs, _, imm = insns[at]
            distance = self._resolve(name) - at - 1
            if not -0x8000 <= distance <= 0x7FFF:
                raise AsmError(
                    f"label {name} is {distance} instructions away, a jump reaches 32767"
                )
            insns[at] = code, regs, distance, imm
        for at, name in self._calls:
            code, regs, off, _ = insns[at]
            insns[at] = code, regs, off, self._resolve(name) - at - 1
        pack = INSN.pack
        packed = b"".join([pack(*insn) for insn in insns])
        functions = {0, *(self._resolve(name) for _, name in self._calls)}
        return Code(
            packed,
            list(self._maps),
            list(self._notes),
            self._labels,
            functions=sorted(functions) if self._callbacks else None,
        )

    def _resolve(self, name: str) -> int:
        try:
            return self._labels[name]
        except KeyError:
            raise AsmError(f"no label {name}") from None


def signed32(value: int) -> int:
    """The lower 32 bits of a number as a signed number, the form that immediates have.

    >>> signed32(0xFFFFFFFE)
    -2
    """
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
