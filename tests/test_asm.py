"""The assembler: golden bytes of every class of instruction, labels, references, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdiag.kernel.asm import ALU, INSN, JUMPS, R0, R1, R2, R3, R6, R9, R10, AsmError, Assembler

_MAX, _MIN = 0x7FFFFFFF, -0x80000000

#: What is emitted, and the bytes that the specification of the instruction set requires:
#: opcode, source and destination register, offset, immediate.
GOLDEN: dict[str, tuple[Callable[[Assembler], None], str]] = {
    "mov imm": (lambda a: a.mov(R1, 5), "b7 01 0000 05000000"),
    "mov negative": (lambda a: a.mov(R1, -1), "b7 01 0000 ffffffff"),
    "mov reg": (lambda a: a.mov(R1, R10), "bf a1 0000 00000000"),
    "mov reg 32": (lambda a: a.alu("mov", R2, R3, bits=32), "bc 32 0000 00000000"),
    "mov wide": (
        lambda a: a.mov(R9, 0x1122334455667788),
        "18 09 0000 88776655 00 00 0000 44332211",
    ),
    "mov just too wide": (lambda a: a.mov(R0, _MAX + 1), "18 00 0000 00000080 00 00 0000 00000000"),
    "mov widest": (lambda a: a.mov(R0, 2**64 - 1), "18 00 0000 ffffffff 00 00 0000 ffffffff"),
    "add": (lambda a: a.alu("add", R6, R1), "0f 16 0000 00000000"),
    "sub": (lambda a: a.alu("sub", R6, 1), "17 06 0000 01000000"),
    "mul": (lambda a: a.alu("mul", R6, R1), "2f 16 0000 00000000"),
    "div": (lambda a: a.alu("div", R0, 10_000_000), "37 00 0000 80969800"),
    "or": (lambda a: a.alu("or", R2, R1), "4f 12 0000 00000000"),
    "and": (lambda a: a.alu("and", R2, 0x7F), "57 02 0000 7f000000"),
    "lsh": (lambda a: a.alu("lsh", R2, 32), "67 02 0000 20000000"),
    "rsh": (lambda a: a.alu("rsh", R2, R1), "7f 12 0000 00000000"),
    "neg": (lambda a: a.alu("neg", R2, 0), "87 02 0000 00000000"),
    "mod": (lambda a: a.alu("mod", R2, 3), "97 02 0000 03000000"),
    "xor": (lambda a: a.alu("xor", R2, R1, bits=32), "ac 12 0000 00000000"),
    "arsh": (lambda a: a.alu("arsh", R1, 32), "c7 01 0000 20000000"),
    "load 8": (lambda a: a.load(R1, R6, 1848), "79 61 3807 00000000"),
    "load 4": (lambda a: a.load(R1, R6, -4, 4), "61 61 fcff 00000000"),
    "load 2": (lambda a: a.load(R1, R6, 2, 2), "69 61 0200 00000000"),
    "load 1": (lambda a: a.load(R1, R6, 0x7FFF, 1), "71 61 ff7f 00000000"),
    "store 8": (lambda a: a.store(R10, -8, R1), "7b 1a f8ff 00000000"),
    "store 4": (lambda a: a.store(R10, -8, R1, 4), "63 1a f8ff 00000000"),
    "store 2": (lambda a: a.store(R10, -8, R1, 2), "6b 1a f8ff 00000000"),
    "store 1": (lambda a: a.store(R10, -8, R1, 1), "73 1a f8ff 00000000"),
    "store imm 8": (lambda a: a.store(R10, -8, 7), "7a 0a f8ff 07000000"),
    "store imm 4": (lambda a: a.store(R10, -8, 7, 4), "62 0a f8ff 07000000"),
    "store imm 2": (lambda a: a.store(R10, -8, 7, 2), "6a 0a f8ff 07000000"),
    "store imm 1": (lambda a: a.store(R10, -8, 7, 1), "72 0a f8ff 07000000"),
    "helper": (lambda a: a.call(127), "85 00 0000 7f000000"),
    "kfunc": (lambda a: a.call_kfunc(65486), "85 20 0000 ceff0000"),
    "btf var": (lambda a: a.btf_var(R1, 99), "18 31 0000 63000000 00 00 0000 00000000"),
    "exit": (lambda a: a.exit(), "95 00 0000 00000000"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    emit, expected = GOLDEN[name]
    a = Assembler()
    emit(a)
    assert a.assemble().insns == bytes.fromhex(expected)
    assert len(a) == len(bytes.fromhex(expected)) // 8


@pytest.mark.parametrize(
    ("cond", "opcode"),
    [
        ("==", 0x15), (">", 0x25), (">=", 0x35), ("&", 0x45), ("!=", 0x55), ("s>", 0x65),
        ("s>=", 0x75), ("<", 0xA5), ("<=", 0xB5), ("s<", 0xC5), ("s<=", 0xD5),
    ],
)  # fmt: skip
def test_jumps(cond: str, opcode: int) -> None:
    a = Assembler()
    a.label("top")
    a.jump(cond, R1, 3, "top")
    a.jump(cond, R1, R2, "end")
    a.jump(cond, R1, R2, "end", bits=32)
    a.label("end")
    a.exit()
    assert [INSN.unpack_from(a.assemble().insns, at) for at in (0, 8, 16)] == [
        (opcode, 0x01, -1, 3),
        (opcode | 8, 0x21, 1, 0),
        ((opcode | 8) + 1, 0x21, 0, 0),
    ]


def test_every_condition_and_operation_is_tried() -> None:
    assert len(JUMPS) == 11
    tried = {name.split()[0] for name in GOLDEN}
    assert set(ALU) <= tried


def test_goto_and_calls_of_subprograms() -> None:
    a = Assembler()
    a.goto("end")
    a.call_local("sub")
    a.label("end")
    a.exit()
    a.label("sub")
    a.exit()
    code = a.assemble()
    assert code.insns.hex() == "0500010000000000" + "8510000001000000" + 2 * "9500000000000000"
    assert code.labels == {"end": 2, "sub": 3}


def test_addresses_of_subprograms_for_callbacks() -> None:
    a = Assembler()
    a.function(R1, "each")
    a.exit()
    a.label("each")
    a.exit()
    code = a.assemble()
    assert code.insns.hex() == "1841000002000000" + "00" * 8 + 2 * "9500000000000000"
    # The kernel must be told where both functions begin, the program and the callback.
    assert code.functions == [0, 3]
    a = Assembler()
    a.exit()
    assert not a.assemble().functions


def test_maps_are_named_for_the_loader() -> None:
    a = Assembler()
    a.map(R1, "percpu")
    a.map_value(R9, "arena", 64)
    code = a.assemble()
    assert code.maps == [(0, "percpu"), (2, "arena")]
    assert code.insns.hex() == (
        "1811000000000000" + "0000000000000000" + "1829000000000000" + "0000000040000000"
    )


def test_notes_hold_until_the_next() -> None:
    a = Assembler()
    a.mov(R0, 0)
    a.note("first")
    a.mov(R0, 1)
    a.mov(R0, 2)
    a.note("second")
    a.exit()
    code = a.assemble()
    assert [code.note_at(at) for at in range(4)] == ["", "first", "first", "second"]


def test_fresh_labels_differ() -> None:
    a = Assembler()
    assert len({a.fresh("x"), a.fresh("x"), a.fresh()}) == 3


def test_a_label_may_come_before_or_after_its_jump_but_not_twice() -> None:
    a = Assembler()
    a.label("here")
    with pytest.raises(AsmError, match="label here is defined twice"):
        a.label("here")


def test_a_label_that_is_missing() -> None:
    for emit in (lambda a: a.goto("nowhere"), lambda a: a.call_local("nowhere")):
        a = Assembler()
        emit(a)
        with pytest.raises(AsmError, match="no label nowhere"):
            a.assemble()


def test_jumps_reach_32767_instructions() -> None:
    a = Assembler()
    a.goto("far")
    for _ in range(0x7FFF):
        a.mov(R0, 0)
    a.label("far")
    a.exit()
    assert INSN.unpack_from(a.assemble().insns)[2] == 0x7FFF

    a = Assembler()
    a.goto("too far")
    for _ in range(0x8000):
        a.mov(R0, 0)
    a.label("too far")
    with pytest.raises(AsmError, match="label too far is 32768 instructions away"):
        a.assemble()


@pytest.mark.parametrize("off", [0x8000, -0x8001])
def test_offsets_that_do_not_fit(off: int) -> None:
    with pytest.raises(AsmError, match="does not fit 16 bits"):
        Assembler().load(R1, R6, off)


@pytest.mark.parametrize("imm", [_MAX + 1, _MIN - 1, 0xFFFFFFFF])
def test_immediates_that_do_not_fit(imm: int) -> None:
    a = Assembler()
    with pytest.raises(AsmError, match="does not fit 32 signed bits"):
        a.alu("add", R1, imm)
    with pytest.raises(AsmError, match="does not fit 32 signed bits"):
        a.jump("==", R1, imm, "x")
    with pytest.raises(AsmError, match="does not fit 32 signed bits"):
        a.store(R10, -8, imm)


@given(st.integers(-(2**63), 2**64 - 1))
def test_mov_takes_any_64_bits(value: int) -> None:
    a = Assembler()
    a.mov(R3, value)
    insns = list(INSN.iter_unpack(a.assemble().insns))
    if len(insns) == 1:
        assert insns == [(0xB7, 3, 0, value)]
    else:
        (_, _, _, low), (_, _, _, high) = insns
        assert (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF == value & 0xFFFFFFFFFFFFFFFF
