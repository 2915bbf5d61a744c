"""The disassembler: all instructions of the assembler, compared with the kernel's text."""

from __future__ import annotations

import ctypes
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import missing, open_engine
from taskdiag import Request, Show
from taskdiag.kernel import bpf
from taskdiag.kernel.asm import ALU, INSN, JUMPS, R1, R6, AsmError, Assembler, Code, Reg
from taskdiag.kernel.compile import Program, compile_request
from taskdiag.kernel.disasm import disassemble, listing
from taskdiag.kernel.emit import Host
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.viewer import Viewer

REGISTERS = st.integers(0, 9).map(Reg)
IMMEDIATES = st.integers(-(2**31), 2**31 - 1)
OFFSETS = st.integers(-0x8000, 0x7FFF)
SIZES = st.sampled_from([1, 2, 4, 8])
KINDS = (
    "alu", "neg", "mov", "load", "store", "jump", "goto", "map", "value", "call", "kfunc", "sub",
    "exit",
)  # fmt: skip

_OPERATORS = {
    "+=": "add", "-=": "sub", "*=": "mul", "/=": "div", "|=": "or", "&=": "and", "<<=": "lsh",
    ">>=": "rsh", "%=": "mod", "^=": "xor", "=": "mov", "s>>=": "arsh",
}  # fmt: skip


def number(text: str) -> int:
    """An operand in the text: a register or an immediate."""
    if text[0] in "rw":
        return Reg(int(text[1:]))
    return int(text, 0)


def reassemble(lines: list[str], a: Assembler) -> None:
    """Assemble the disassembler's text again, from nothing but the text."""
    for line in lines:
        if line.endswith(":"):
            a.label(line[:-1])
            continue
        text = line.split(None, 1)[1]
        if text == "exit":
            a.exit()
        elif match := re.fullmatch(r"goto (\S+)", text):
            a.goto(match[1])
        elif match := re.fullmatch(r"if (\w+) (\S+) (\S+) goto (\S+)", text):
            right = number(match[3])
            if not isinstance(right, Reg) and right >= 2**31:
                right -= 2**32
            left = Reg(int(match[1][1:]))
            a.jump(match[2], left, right, match[4], bits=64 if match[1][0] == "r" else 32)
        elif match := re.fullmatch(r"call bpf_\w+#(\d+)|call helper#(\d+)", text):
            a.call(int(match[1] or match[2]))
        elif match := re.fullmatch(r"call btf_\d+#(\d+)", text):
            a.call_kfunc(int(match[1]))
        elif match := re.fullmatch(r"call (\S+)", text):
            a.call_local(match[1])
        elif match := re.fullmatch(r"r(\d+) = \*\(u(\d+) \*\)\(r(\d+) ([+-]\d+)\)", text):
            a.load(Reg(int(match[1])), Reg(int(match[3])), int(match[4]), int(match[2]) // 8)
        elif match := re.fullmatch(r"\*\(u(\d+) \*\)\(r(\d+) ([+-]\d+)\) = (\S+)", text):
            a.store(Reg(int(match[2])), int(match[3]), number(match[4]), int(match[1]) // 8)
        elif match := re.fullmatch(r"r(\d+) = map\[(\w+)\]", text):
            a.map(Reg(int(match[1])), match[2])
        elif match := re.fullmatch(r"r(\d+) = map\[(\w+)\]\[0\]\+(\d+)", text):
            a.map_value(Reg(int(match[1])), match[2], int(match[3]))
        elif match := re.fullmatch(r"([rw])(\d+) = -\1\2", text):
            a.alu("neg", Reg(int(match[2])), 0, bits=64 if match[1] == "r" else 32)
        elif match := re.fullmatch(r"r(\d+) = (0x\w+)", text):
            a._ld_imm64(Reg(int(match[1])), 0, int(match[2], 16))
        elif match := re.fullmatch(r"([rw])(\d+) (\S+) (\S+)", text):
            bits = 64 if match[1] == "r" else 32
            a.alu(_OPERATORS[match[3]], Reg(int(match[2])), number(match[4]), bits=bits)
        else:
            raise AssertionError(f"what is {text!r}?")


@st.composite
def programs(draw: st.DrawFn) -> Code:
    """Any program that the assembler can make, with jumps between its instructions."""
    a = Assembler()
    count = draw(st.integers(1, 12))
    for index in range(count):
        a.label(f"l{index}")
        to = f"l{draw(st.integers(0, count - 1))}"
        dst, operand = draw(REGISTERS), draw(REGISTERS | IMMEDIATES)
        kind = draw(st.sampled_from(KINDS))
        if kind == "alu":
            operations = st.sampled_from(sorted(set(ALU) - {"neg"}))
            a.alu(draw(operations), dst, operand, bits=draw(st.sampled_from([32, 64])))
        elif kind == "neg":
            a.alu("neg", dst, 0, bits=draw(st.sampled_from([32, 64])))
        elif kind == "mov":
            a.mov(dst, draw(st.integers(2**31, 2**64 - 1)))
        elif kind == "load":
            a.load(dst, draw(REGISTERS), draw(OFFSETS), draw(SIZES))
        elif kind == "store":
            a.store(dst, draw(OFFSETS), operand, draw(SIZES))
        elif kind == "jump":
            bits = draw(st.sampled_from([32, 64]))
            a.jump(draw(st.sampled_from(sorted(JUMPS))), dst, operand, to, bits=bits)
        elif kind == "goto":
            a.goto(to)
        elif kind == "map":
            a.map(dst, "numbers")
        elif kind == "value":
            a.map_value(dst, "arena", draw(st.integers(0, 2**31 - 1)))
        elif kind == "call":
            a.call(draw(st.sampled_from([1, 113, 127, 211])))
        elif kind == "kfunc":
            a.call_kfunc(draw(st.integers(1, 2**31 - 1)))
        elif kind == "sub":
            a.call_local(to)
        else:
            a.exit()
    return a.assemble()


@given(programs(), st.booleans())
def test_the_text_says_everything(code: Code, named: bool) -> None:
    """Assembling the text gives the same bytes, with names of labels and without."""
    if not named:
        code.labels = {}
    a = Assembler()
    reassemble(list(listing(code)), a)
    again = a.assemble()
    assert again.insns == code.insns
    assert again.maps == code.maps


def test_names_of_helpers_functions_and_variables() -> None:
    a = Assembler()
    a.call(127)
    a.call(9999)
    a.call_kfunc(77)
    a.btf_var(R1, 78)
    code = a.assemble()
    plain = [text for _, text in disassemble(code)]
    assert plain == ["call bpf_seq_write#127", "call helper#9999", "call btf_77#77", "r1 = &btf_78"]
    named = [
        text for _, text in disassemble(code, {77: "bpf_iter_task_new", 78: "init"}.__getitem__)
    ]
    assert named[2:] == ["call bpf_iter_task_new#77", "r1 = &init"]


def test_callbacks_are_addresses_of_labels() -> None:
    a = Assembler()
    a.function(R1, "each")
    a.exit()
    a.label("each")
    a.exit()
    code = a.assemble()
    assert [text for _, text in disassemble(code)] == ["r1 = &each", "exit", "exit"]
    code.labels = {}
    assert next(disassemble(code)) == (0, "r1 = &L3")


def test_labels_notes_and_comments_have_their_place() -> None:
    a = Assembler()
    a.note("base.pid")
    a.load(R1, R6, 16)
    a.goto("no mm")
    a.label("no mm")
    a.exit()
    code = a.assemble()
    code.comments[0] = "task_struct::pid"
    assert list(listing(code, describe=str.upper)) == [
        "; BASE.PID",
        "     0  r1 = *(u64 *)(r6 +16)                       ; task_struct::pid",
        "     1  goto no_mm",
        "no_mm:",
        "     2  exit",
    ]


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=8))
def test_any_bytes_have_a_text(insns: list[bytes]) -> None:
    code = Code(b"".join(insns), [], [], {})
    found = dict(disassemble(code))
    assert all(text and text.isprintable() for text in found.values())
    skipped = set(range(len(insns))) - set(found)
    assert all(insns[at - 1][0] == 0x18 for at in skipped)


def test_half_an_instruction_is_an_error() -> None:
    with pytest.raises(AsmError, match="9 bytes are not a whole number of instructions"):
        list(disassemble(Code(b"\x95" + bytes(8), [], [], {})))


def verifier_log(program: Program, facts: Facts) -> str:
    """The text of each instruction in the verifier's log of a program that it accepts."""
    text = ctypes.create_string_buffer(program.code.insns, len(program.code.insns))
    log = ctypes.create_string_buffer(1 << 24)
    attr = bpf._PROG_ATTR.pack(
        bpf._PROG_TYPE_TRACING, len(program.code.insns) // INSN.size, ctypes.addressof(text),
        ctypes.addressof(bpf._LICENSE), 2, len(log), ctypes.addressof(log), 0, 0, b"taskdiag", 0,
        bpf._ATTACH_TRACE_ITER, 0, 0, 0, 0, 0, 0, 0, facts.type_id("func", "bpf_iter_task"), 0,
    )  # fmt: skip
    os.close(bpf.bpf(bpf._PROG_LOAD, attr))
    return log.value.decode()


@pytest.mark.root
@pytest.mark.parametrize("show", [Show.BASE | Show.CRED, Show.STAT, Show.TTY | Show.SCHED])
def test_the_kernel_says_the_same(show: Show) -> None:
    open_engine("kernel")
    facts = Facts.live()
    # With thread strategies even the oldest kernel can serve these groups.
    program = compile_request(Request(show, 2), facts, Viewer(), Host())
    theirs: dict[int, str] = {}
    for line in verifier_log(program, facts).splitlines():
        if match := re.match(r"(\d+): \(\w\w\) ([^;]+?)\s*(;.*)?$", line):
            theirs[int(match[1])] = match[2]
    if not theirs:
        missing("this kernel's verifier does not print the program")
    ours = dict(disassemble(program.code, facts.btf.name))
    targets = {at: insn for at, insn in enumerate(INSN.iter_unpack(program.code.insns))}
    compared = 0
    for at, text in theirs.items():
        said = re.sub(r"goto \S+$", f"goto pc{targets[at][2]:+d}", ours[at])
        if targets[at][:2] == (0x85, 0x10):
            said = f"call pc{targets[at][3]:+d}"
        assert said == text, at
        compared += 1
    # The verifier prints only instructions that can be reached.
    assert compared > 0.8 * len(ours)
