"""The BTF reader: blobs built by the test, damaged blobs, and the running kernel's BTF."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tools
from conftest import need
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel.btf import VMLINUX, Btf, BtfError, NotFound, parse_path
from taskdiag.kernel.btf.paths import member_names
from taskdiag.kernel.btf_build import BtfBuilder
from taskdiag.kernel.member import Member


def sample() -> bytes:
    """A small kernel with every kind of type, in forms that occur in kernels."""
    b = BtfBuilder()
    i32 = b.integer("int", 4, signed=True)
    u32 = b.integer("unsigned int", 4)
    u64 = b.integer("long unsigned int", 8)
    char = b.integer("char", 1, signed=True, char=True)
    pid_t = b.typedef("pid_t", b.typedef("__kernel_pid_t", i32))
    comm = b.array(char, 16, u32)
    atomic = b.typedef("atomic_t", b.struct("", 4, [("counter", i32, 0)]))
    b.enum("pid_type", [("PIDTYPE_PID", 0), ("PIDTYPE_TGID", 1), ("PIDTYPE_SID", 3)])
    b.enum("minus", [("MINUS_ONE", -1), ("BIG", 0x7FFFFFFF)], signed=True)
    b.enum64("wide", [("WIDE", 1 << 40), ("HIGH", (1 << 64) - 1)])
    b.enum64("low", [("LOWEST", -(1 << 63))], signed=True)
    upid = b.struct("upid", 16, [("nr", i32, 0), ("ns", b.ptr(b.fwd("pid_namespace")), 64)])
    pid = b.struct("pid", 16, [("level", u32, 0), ("numbers", b.array(upid, 0, u32), 128)])
    pid_ptr = b.ptr(pid)
    signal = b.struct(
        "signal_struct", 64, [("live", atomic, 0), ("pids", b.array(pid_ptr, 4, u32), 64)]
    )
    grid = b.struct("grid", 24, [("cell", b.array(b.array(u32, 3, u32), 2, u32), 0)])
    inner = b.union(
        "", 8, [("start", u64, 0), ("", b.struct("", 8, [("lo", u32, 0), ("hi", u32, 32)]), 0)]
    )
    flags = b.struct(
        "flags",
        16,
        [("a", u32, 0, 3), ("b", i32, 3, 5), ("whole", u32, 32, 0), ("crossing", u32, 88, 16)],
    )
    old = b.struct(
        "old",
        4,
        [
            ("x", b.integer("unsigned int", 4, bits=7), 0),
            ("y", b.integer("unsigned int", 4, bits=1, offset=7), 0),
        ],
    )
    members: list[tuple[str | int, ...]] = [
        ("pid", pid_t, 0),
        ("parent", b.ptr(0), 64),
        ("comm", b.const(comm), 128),
        ("signal", b.restrict(b.const(b.ptr(b.type_tag("rcu", signal)))), 256),
        ("", b.const(inner), 320),
        ("grid", b.volatile(grid), 384),
        ("f", flags, 576),
        ("thread_pid", pid_ptr, 704),
        ("handler", b.ptr(b.func_proto(0, [("", i32), ("", 0)])), 768),
    ]
    task_ptr = b.ptr(len(b) + 1)  # the type that is added next
    task = b.struct("task_struct", 256, members)
    b.typedef("task_t", task)
    proto = b.func_proto(i32, [("meta", b.ptr(b.const(char))), ("task", b.ptr(task))])
    func = b.func("bpf_iter_task", proto, linkage=1)
    b.decl_tag("kfunc", func)
    var = b.var("runqueues", task)
    b.datasec(".data..percpu", 256, [(var, 0, 256)])
    b.floating("double", 8)
    b.struct("uses", 16, [("old", old, 0), ("back", task_ptr, 64)])
    return b.blob()


BTF = Btf(sample())


def test_golden_bytes() -> None:
    b = BtfBuilder()
    i32 = b.integer("int", 4, signed=True)
    b.struct("s", 8, [("a", i32, 0), ("b", b.ptr(i32), 32)])
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 64, 64, 11)
    types = struct.pack("=4I", 1, 1 << 24, 4, 0x01000020)
    types += struct.pack("=3I", 0, 2 << 24, 1)
    types += struct.pack("=3I3I3I", 5, 4 << 24 | 2, 8, 7, 1, 0, 9, 2, 32)
    assert b.blob() == head + types + b"\0int\0s\0a\0b\0"
    btf = Btf(b.blob())
    assert len(btf) == 4
    assert btf.type_id("struct", "s") == 3
    assert btf.member("s", "b").offset == 4


def test_types_by_kind_and_name() -> None:
    assert BTF.name(BTF.type_id("struct", "task_struct")) == "task_struct"
    assert BTF.kind(BTF.type_id("func", "bpf_iter_task")) == "func"
    assert BTF.kind(BTF.type_id("var", "runqueues")) == "var"
    assert BTF.kind(BTF.type_id("datasec", ".data..percpu")) == "datasec"
    assert BTF.kind(BTF.type_id("float", "double")) == "float"
    assert BTF.kind(BTF.type_id("enum", "wide")) == "enum64"
    assert BTF.kind(BTF.type_id("fwd", "pid_namespace")) == "fwd"
    assert BTF.has("typedef", "pid_t")
    assert not BTF.has("struct", "pid_t")
    assert not BTF.has("struct", "task")  # only a member has this name
    assert not BTF.has("struct", "")
    assert not BTF.has("struct", "a\0b")
    assert not BTF.has("struct", "ä")
    with pytest.raises(NotFound, match="no union 'task_struct'"):
        BTF.type_id("union", "task_struct")
    with pytest.raises(KeyError):
        BTF.type_id("union", "task_struct")
    with pytest.raises(BtfError, match="no kind of type 'klass'"):
        BTF.type_id("klass", "x")


def test_names_that_share_the_end_of_a_string_are_found() -> None:
    b = BtfBuilder()
    i32 = b.integer("int", 4)
    b.struct("task_struct", 4, [("pid", i32, 0)])
    blob = bytearray(b.blob())
    # Change the structure's name to the last six characters of its string: "struct".
    at = blob.index(struct.pack("=II", 5, 4 << 24 | 1), 24)
    blob[at : at + 4] = struct.pack("=I", 10)
    btf = Btf(bytes(blob))
    assert btf.type_id("struct", "struct") == 2
    assert not btf.has("struct", "task_struct")


def test_sizes() -> None:
    assert BTF.size("struct task_struct") == 256
    assert BTF.size("task_t") == 256
    assert BTF.size("pid_t") == 4
    assert BTF.size(BTF.member("task_struct", "comm").type_id) == 16
    assert BTF.size(BTF.member("task_struct", "grid.cell").type_id) == 24
    assert BTF.size(BTF.type_id("var", "runqueues")) == 256
    with pytest.raises(BtfError, match="has no size"):
        BTF.size(BTF.type_id("func", "bpf_iter_task"))
    with pytest.raises(BtfError, match="does not exist"):
        BTF.size(10**6)
    with pytest.raises(BtfError, match="does not exist"):
        BTF.size(-1)


def test_members() -> None:
    pid = BTF.member("struct task_struct", "pid")
    assert (pid.offset, pid.size, pid.kind, pid.signed, pid.type) == (0, 4, "int", True, "pid_t")
    comm = BTF.member("struct task_struct", "comm")
    assert (comm.offset, comm.size, comm.kind) == (16, 16, "array")
    assert (comm.count, comm.elem_size, BTF.kind(comm.elem_id)) == (16, 1, "int")
    assert BTF.member("task_struct", "comm[3]").offset == 19
    signal = BTF.member("task_struct", "signal")
    assert (signal.kind, signal.size, signal.pointee) == ("ptr", 8, "signal_struct")
    assert signal.pointee_id == BTF.type_id("struct", "signal_struct")
    void = BTF.member("task_struct", "parent")
    assert (void.pointee, void.pointee_id) == (None, 0)
    assert BTF.member("upid", "ns").pointee == "pid_namespace"
    live = BTF.member("signal_struct", "live")
    assert (live.kind, live.type) == ("struct", "atomic_t")
    assert BTF.member("signal_struct", "live.counter").kind == "int"
    assert BTF.member(BTF.type_id("struct", "pid"), "level").offset == 0


def test_members_of_anonymous_members_are_found() -> None:
    assert BTF.member("task_struct", "start").offset == 40
    assert BTF.member("task_struct", "hi").offset == 44


def test_arrays_of_arrays() -> None:
    assert BTF.member("task_struct", "grid.cell[1][2]").offset == 48 + 20
    assert BTF.member("task_struct", "grid.cell[1]").size == 12
    with pytest.raises(NotFound, match="has 2 elements"):
        BTF.member("task_struct", "grid.cell[2]")
    assert BTF.member("pid", "numbers[7].nr").offset == 16 + 7 * 16  # flexible


@pytest.mark.skipif(sys.byteorder != "little", reason="shifts are for little endian")
def test_bit_fields() -> None:
    def where(type: str, path: str) -> tuple[int, int, int, int]:
        m = BTF.member(type, path)
        return m.offset, m.size, m.bit_offset, m.bit_size

    assert where("flags", "a") == (0, 4, 0, 3)
    assert where("flags", "b") == (0, 4, 3, 5)
    assert BTF.member("flags", "b").signed
    assert where("flags", "whole") == (4, 4, 0, 0)
    assert where("flags", "crossing") == (8, 8, 24, 16)  # too wide for a u32 at 8
    assert where("task_struct", "f.b") == (72, 4, 3, 5)
    assert where("old", "x") == (0, 4, 0, 7)  # as before kind_flag
    assert where("old", "y") == (0, 4, 7, 1)


def test_paths_follow_pointers() -> None:
    steps = BTF.path("task_struct", "signal->pids[PIDTYPE_SID]->numbers[0].nr")
    assert [(m.name, m.offset, m.kind) for m in steps] == [
        ("signal", 32, "ptr"),
        ("pids[PIDTYPE_SID]", 32, "ptr"),
        ("numbers[0].nr", 16, "int"),
    ]
    dotted = BTF.path("task_struct", "signal.pids[3].numbers[0].nr")
    assert [m.offset for m in dotted] == [m.offset for m in steps]
    assert [m.offset for m in BTF.path("task_struct", "pid")] == [0]
    # An index after a pointer.
    assert [m.offset for m in BTF.path("task_struct", "thread_pid[2].level")] == [88, 32]
    assert [m.offset for m in BTF.path("uses", "back->signal->live.counter")] == [8, 32, 0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sigal", "struct task_struct has no member 'sigal'; similar names: signal"),
        ("signal->pidz", r"struct signal_struct has no member 'pidz' \(in 'signal->pidz'\); similar names: pids"),  # noqa: E501
        ("pid.x", "'pid' in 'pid.x' has no members"),
        ("signal->pids[PIDTYPE_X]", "no enumerator 'PIDTYPE_X'"),
        ("thread_pid->numbers[0].ns->x", "declared but not defined"),
        ("parent->x", "has no members"),
    ],
)  # fmt: skip
def test_errors_name_what_does_not_exist(path: str, message: str) -> None:
    with pytest.raises(NotFound, match=message):
        BTF.path("task_struct", path)
    assert not BTF.has_member("task_struct", path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "expected a member's name at character 1"),
        ("a..b", "expected a member's name at character 3"),
        ("a[", "expected an index at character 3"),
        ("a[1", "expected ']' at character 4"),
        ("a[-1]", "expected an index at character 3"),
        ("a b", "expected '.', '->' or '\\[' at character 2"),
        ("a-b", "expected '.', '->' or '\\[' at character 2"),
        ("ä", "expected a member's name"),
        ("9a", "expected a member's name"),
        ("a" * 2000, "2000 characters"),
        (".".join("a" * 40), "more than 32 steps"),
        ("pid->x", "'pid' is not a pointer"),
        ("pid[0]", "'pid' is not an array"),
        ("comm[1x]", "neither a number nor a name"),
        ("thread_pid->numbers[99999999999]", "out of range"),
    ],
)
def test_invalid_paths_are_refused(path: str, message: str) -> None:
    with pytest.raises(BtfError, match=message) as caught:
        BTF.path("task_struct", path)
    assert not isinstance(caught.value, NotFound)


def test_member_does_not_follow_pointers() -> None:
    with pytest.raises(BtfError, match="'signal' is a pointer"):
        BTF.member("task_struct", "signal->live")
    assert BTF.has_member("task_struct", "signal->live")
    assert not BTF.has_member("no_such_struct", "x")


@given(st.text())
def test_any_path_is_split_or_refused(path: str) -> None:
    try:
        steps = parse_path(path)
    except BtfError:
        return
    joined = "".join(f"[{word}]" if op == "[" else op + word for op, word in steps)
    assert joined == "." + path


def test_enumerators() -> None:
    assert BTF.enumerator("PIDTYPE_SID") == 3
    assert BTF.enumerator("MINUS_ONE") == -1
    assert BTF.enumerator("BIG") == 0x7FFFFFFF
    assert BTF.enumerator("WIDE") == 1 << 40
    assert BTF.enumerator("HIGH") == (1 << 64) - 1
    assert BTF.enumerator("LOWEST") == -(1 << 63)
    assert not BTF.has_enumerator("pid")  # a member and a struct, but no enumerator
    with pytest.raises(NotFound, match="no enumerator 'pid'"):
        BTF.enumerator("pid")


def test_functions_and_text() -> None:
    assert BTF.func_proto("bpf_iter_task") == [
        ("meta", "const char *"),
        ("task", "struct task_struct *"),
    ]
    assert BTF.dump("func bpf_iter_task") == (
        "int bpf_iter_task(const char *meta, struct task_struct *task);"
    )
    assert BTF.dump("upid") == (
        "struct upid {\n\tint nr; /* 0, 4 */\n\tstruct pid_namespace *ns; /* 8, 8 */\n}; /* 16 */"
    )
    assert BTF.dump("minus") == "enum minus {\n\tMINUS_ONE = -1,\n\tBIG = 2147483647,\n};"
    assert BTF.dump("atomic_t") == "typedef struct {\n\tint counter; /* 0, 4 */\n} atomic_t;"
    text = BTF.dump("task_struct")
    assert "void (*handler)(int, ...); /* 96, 8 */" in text
    assert "const union {\n\t\tlong unsigned int start; /* 0, 8 */" in text
    assert "unsigned int cell[2][3]; /* 0, 24 */" in BTF.dump("grid")
    assert "unsigned int a:3; /* 0:0, 3 bits */" in BTF.dump("flags")
    assert "runqueues; /* 0, 256 */" in BTF.dump("datasec .data..percpu")


def test_member_round_trip() -> None:
    for path in ("pid", "comm", "signal", "f.b", "start", "parent", "handler", "grid.cell[1]"):
        member = BTF.member("task_struct", path)
        assert Member.decode(member.encode()) == member
    assert BTF.member("task_struct", "pid") != BTF.member("task_struct", "comm")
    with pytest.raises(ValueError):  # noqa: PT011 - any will do
        Member.decode("1 2 3")


# -- round trips -------------------------------------------------------------------------

layouts = st.recursive(
    st.sampled_from(["u8", "u32", "u64", "ptr"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["struct", "union", "anon"]), st.lists(inner, max_size=5)),
        st.tuples(st.just("array"), inner, st.integers(1, 5)),
    ),
    max_leaves=25,
)


class Layout:
    """Builds a random type, and computes independently where each scalar of it lies."""

    def __init__(self) -> None:
        self.build = BtfBuilder()
        self.scalars = {
            "u8": (self.build.integer("u8", 1), 1),
            "u32": (self.build.integer("u32", 4), 4),
            "u64": (self.build.integer("u64", 8), 8),
            "ptr": (self.build.ptr(0), 8),
        }
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def add(self, shape: object) -> tuple[int, int, list[tuple[str, int, int]]]:
        """Type id, size, and (path, offset, size) of each scalar."""
        if isinstance(shape, str):
            type_id, size = self.scalars[shape]
            return type_id, size, [("", 0, size)]
        assert isinstance(shape, tuple)
        if shape[0] == "array":
            element, size, leaves = self.add(shape[1])
            count = shape[2]
            type_id = self.build.array(element, count, self.scalars["u32"][0])
            found = [
                (f"[{i}]{path}", i * size + at, leaf)
                for i in range(count)
                for path, at, leaf in leaves
            ]
            return type_id, size * count, found
        members: list[tuple[str | int, ...]] = []
        found, end, widest = [], 0, 0
        for part in shape[1]:
            hidden = isinstance(part, tuple) and part[0] == "anon"
            inner, size, leaves = self.add(part)
            at = 0 if shape[0] == "union" else end
            name = "" if hidden else self.name()
            members.append((name, inner, 8 * at))
            for path, offset, leaf in leaves:
                joined = path.lstrip(".") if hidden else name + path
                found.append((f".{joined}", at + offset, leaf))
            end, widest = end + size, max(widest, size)
        size = widest if shape[0] == "union" else end
        kind = self.build.union if shape[0] == "union" else self.build.struct
        return kind("" if shape[0] == "anon" else self.name(), size, members), size, found


@given(st.lists(layouts, min_size=1, max_size=6))
def test_members_of_random_layouts(shapes: list[object]) -> None:
    layout = Layout()
    type_id, size, leaves = layout.add(("struct", shapes))
    btf = Btf(layout.build.blob())
    assert btf.size(type_id) == size
    for path, offset, leaf in leaves:
        member = btf.member(type_id, path.lstrip("."))
        assert (member.offset, member.size) == (offset, leaf), path


# -- damaged blobs ------------------------------------------------------------------------


def exercise(blob: bytes) -> None:
    """Ask every question; only BtfError may be raised."""
    try:
        btf = Btf(blob)
    except BtfError:
        return
    questions: list[Callable[[], object]] = [
        lambda: btf.path("task_struct", "signal->pids[PIDTYPE_SID]->numbers[0].nr"),
        lambda: btf.member("task_struct", "hi"),
        lambda: btf.member("task_struct", "grid.cell[1][2]"),
        lambda: btf.member("flags", "crossing"),
        lambda: btf.has_member("uses", "back->nothing"),
        lambda: btf.enumerator("PIDTYPE_SID"),
        lambda: btf.enumerator("WIDE"),
        lambda: btf.func_proto("bpf_iter_task"),
        lambda: btf.type_id("func", "bpf_iter_task"),
    ]
    for type_id in range(len(btf) + 1):
        for method in (btf.size, btf.dump, btf.spell, btf.name, btf.kind, btf.strip):
            questions.append(partial(method, type_id))
    for question in questions:
        with suppress(BtfError):
            question()


def test_every_cut() -> None:
    blob = sample()
    for end in range(len(blob)):
        with pytest.raises(BtfError, match=r"^(byte \d+: |it has \d+ bytes|it is empty)"):
            Btf(blob[:end])


def test_every_bit_of_the_header_and_of_all_types() -> None:
    blob = sample()
    types = struct.unpack_from("=I", blob, 12)[0]
    for at in range(24 + types):
        for bit in (0, 1 + at % 7):
            broken = bytearray(blob)
            broken[at] ^= 1 << bit
            exercise(bytes(broken))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_many_broken_words(data: st.DataObject) -> None:
    blob = bytearray(sample())
    small = st.integers(0, 80)
    kinds = st.builds(lambda kind, n: kind << 24 | n, st.integers(0, 20), st.integers(0, 3))
    words = st.one_of(small, kinds, st.integers(0, 2**32 - 1))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(6, len(blob) // 4 - 1))
        blob[4 * at : 4 * at + 4] = struct.pack("=I", data.draw(words))
    exercise(bytes(blob))


@given(st.binary(max_size=200))
def test_any_bytes(blob: bytes) -> None:
    exercise(blob)
    exercise(struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(blob) & ~3, 0, len(blob)) + blob)


def test_headers_that_are_wrong_say_where() -> None:
    good = sample()

    def patched(at: int, what: bytes) -> bytes:
        return good[:at] + what + good[at + len(what) :]

    for blob, message in (
        (patched(0, struct.pack("=H", 0x9FEB)), "other byte order"),
        (patched(0, b"\x7fE"), "not BTF: its magic number is 0x457f"),
        (patched(2, b"\x02"), "version 2"),
        (patched(4, struct.pack("=I", 8)), "header has 8"),
        (patched(8, struct.pack("=I", 1)), "types are not aligned"),
        (patched(12, struct.pack("=I", 1 << 31)), "types end at"),
        (patched(20, struct.pack("=I", 1 << 31)), "strings end at"),
        (b"", "it is empty"),
        (good[:23], "23 bytes, too few"),
        (good[:-1] + b"x", "NUL"),
    ):
        with pytest.raises(BtfError, match=message):
            Btf(blob)
    assert issubclass(BtfError, ValueError)
    # So that another engine answers if no program can be made.
    assert issubclass(BtfError, EngineUnavailable)


def test_an_unknown_kind_is_named() -> None:
    b = BtfBuilder()
    b.integer("int", 4)
    blob = bytearray(b.blob())
    blob[24 + 4 : 24 + 8] = struct.pack("=I", 25 << 24)
    with pytest.raises(BtfError, match="byte 28: unknown kind 25"):
        Btf(bytes(blob))


def test_cycles_end() -> None:
    b = BtfBuilder()
    b.typedef("a", 2)
    b.typedef("b", 1)
    b.array(3, 2, 3)
    b.ptr(4)
    b.struct("s", 8, [("", 5, 0), ("x", 1, 0), ("y", 3, 0)])
    b.func_proto(6, [("f", 6), ("g", 6), ("h", 6)])
    b.struct("p", 8, [("f", 6, 0), ("q", 4, 0)])
    btf = Btf(b.blob())
    for ask in (
        lambda: btf.size("a"),
        lambda: btf.size(3),
        lambda: btf.member("s", "x"),
        lambda: btf.member("s", "y"),
        lambda: btf.dump("s"),
        lambda: btf.spell(4),
        lambda: btf.dump("p"),
        lambda: btf.path("p", "q->q"),
    ):
        with pytest.raises(BtfError):
            ask()
    with pytest.raises(NotFound):
        btf.member("s", "nothing")


def test_structures_that_multiply_end() -> None:
    b = BtfBuilder()
    type_id = b.struct("", 8, [("leaf", b.integer("int", 4), 0)])
    for _ in range(60):  # 2**60 members if written out
        type_id = b.struct("", 8, [("", type_id, 0), ("", type_id, 0)])
    top = b.struct("top", 8, [("", type_id, 0)])
    btf = Btf(b.blob())
    assert btf.member(top, "leaf").offset == 0
    with pytest.raises(NotFound):
        btf.member(top, "leave")
    with pytest.raises(BtfError):
        btf.dump(top)


# -- the running kernel ----------------------------------------------------------------------


def test_absent_btf_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="does not describe its types"):
        Btf.load(f"{tmp_path}/vmlinux")
    with pytest.raises(EngineUnavailable, match=f"^cannot read {tmp_path}: Is a directory$"):
        Btf.load(f"{tmp_path}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda blob: b"", "it is empty"),
        (lambda blob: blob[:10], "it has 10 bytes, too few"),
        (lambda blob: blob[:200], "byte 8: the types end at byte"),
        (lambda blob: blob[:-1], "byte 16: the strings end at byte"),
        (lambda blob: b"\x7fELF" + blob[4:], "it is not BTF"),
        (lambda blob: blob[1::-1] + blob[2:], "it is BTF of a machine with the other"),
        (lambda blob: blob[:28] + b"\xff" * 4 + blob[32:], "byte 28: unknown kind 31"),
        (lambda blob: bytes(len(blob)), "it is not BTF"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(damage(sample()))
    with pytest.raises(EngineUnavailable) as caught:
        Btf.load(str(path))
    assert str(caught.value).startswith(f"cannot use {path}: {message}")
    assert "\n" not in str(caught.value)


def test_damage_that_shows_later_names_the_file_as_well(tmp_path: Path) -> None:
    b = BtfBuilder()
    b.typedef("endless", 1)
    path = tmp_path / "vmlinux"
    path.write_bytes(b.blob())
    btf = Btf.load(str(path))
    with pytest.raises(EngineUnavailable, match=f"^cannot use {path}: byte 24: type 1: more than"):
        btf.size("endless")


@pytest.fixture(scope="module")
def live() -> Btf:
    if not os.path.exists(VMLINUX):
        pytest.skip("this kernel has no BTF")
    return Btf.load()


def test_live_kernel_has_what_every_kernel_has(live: Btf) -> None:
    assert live.type_id("func", "bpf_iter_task") > 0
    comm = live.member("task_struct", "comm")
    assert (comm.count, comm.elem_size) == (16, 1)
    assert live.enumerator("PIDTYPE_PID") == 0
    assert [m.kind for m in live.path("task_struct", "mm->total_vm")] == ["ptr", "int"]
    assert live.func_proto("bpf_iter_task")[1] == ("task", "struct task_struct *")
    assert live.has_member("task_struct", "state") != live.has_member("task_struct", "__state")


def real_slice(types: int) -> bytes:
    """The first types of the running kernel, and the strings that they use."""
    with open(VMLINUX, "rb") as file:
        blob = file.read()
    header, type_at, _, str_at, str_len = struct.unpack_from("=IIIII", blob, 4)
    at = begin = header + type_at
    names: dict[int, int] = {}
    strings = blob[header + str_at : header + str_at + str_len]
    kept, text = bytearray(), bytearray(b"\0")
    each = {4: (3, (0,)), 5: (3, (0,)), 6: (2, (0,)), 13: (2, (0,)), 15: (3, ()), 19: (3, (0,))}
    fixed = {1: 1, 3: 3, 14: 1, 17: 1}
    for _ in range(types):
        info = struct.unpack_from("=I", blob, at + 4)[0]
        kind, count = info >> 24 & 31, info & 0xFFFF
        width, named = each.get(kind, (0, ()))
        words = list(struct.unpack_from(f"={3 + fixed.get(kind, 0) + width * count}I", blob, at))
        at += 4 * len(words)
        for index in (0, *(3 + width * i + j for i in range(count) for j in named if width)):
            offset = words[index]
            if offset not in names:
                names[offset] = len(text) if offset else 0
                text += strings[offset : strings.index(b"\0", offset) + 1] if offset else b""
            words[index] = names[offset]
        kept += struct.pack(f"={len(words)}I", *words)
    assert at > begin
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(kept), len(kept), len(text))
    return head + bytes(kept) + bytes(text)


@pytest.fixture(scope="module")
def slices() -> list[bytes]:
    if not os.path.exists(VMLINUX):
        pytest.skip("this kernel has no BTF")
    return [real_slice(types) for types in (60, 400)]


def test_a_slice_of_the_kernel_is_read_like_the_whole(slices: list[bytes], live: Btf) -> None:
    for blob in slices:
        btf = Btf(blob)
        for type_id in range(1, len(btf)):
            assert (btf.kind(type_id), btf.name(type_id)) == (
                live.kind(type_id),
                live.name(type_id),
            )
            with suppress(BtfError):  # it may name types outside the slice
                assert btf.dump(type_id) == live.dump(type_id)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_slices_of_the_kernel(slices: list[bytes], data: st.DataObject) -> None:
    """Real types with some words or bits changed: only BtfError may be raised."""
    blob = bytearray(data.draw(st.sampled_from(slices)))
    types = 24 + struct.unpack_from("=I", blob, 12)[0]
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(blob) - 4))
        where = data.draw(st.sampled_from(["any byte", "a type's word", "a bit", "a length"]))
        if where == "any byte":
            blob[at] = data.draw(st.integers(0, 255))
        elif where == "a type's word":
            at = 24 + at % (types - 24) & ~3
            blob[at : at + 4] = struct.pack("=I", data.draw(st.integers(0, 2**32 - 1)))
        elif where == "a bit":
            blob[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del blob[at : at + data.draw(st.sampled_from([1, 4, 12]))]
    try:
        btf = Btf(bytes(blob))
    except BtfError:
        return
    chosen = data.draw(st.lists(st.integers(0, len(btf)), min_size=1, max_size=20))
    for type_id in chosen:
        for method in (btf.size, btf.dump, btf.spell, btf.name, btf.kind, btf.strip):
            with suppress(BtfError):
                method(type_id)
        with suppress(BtfError):
            for member in member_names(btf, type_id)[:20]:
                btf.path(type_id, member)
                btf.has_member(type_id, f"{member}[1].{member}->{member}")
        with suppress(BtfError):
            name = btf.name(type_id)
            btf.enumerator(name)
            btf.func_proto(name)


def offsets_of_every_member(btf: Btf, name: str) -> dict[str, int]:
    """The offset of every member that C can take offsetof of."""
    found = {}
    for member in member_names(btf, btf.type_id("struct", name)):
        place = btf.member(f"struct {name}", member)
        if not place.bit_size:
            found[member] = place.offset
    return found


def test_live_offsets_equal_those_of_a_compiler(live: Btf, tmp_path: object) -> None:
    """bpftool writes the types as C, gcc lays them out: the offsets are the same."""
    need("bpftool", "gcc")
    bpftool, gcc = tools.find("bpftool"), tools.find("gcc")
    dump = subprocess.run(
        [bpftool, "btf", "dump", "file", VMLINUX, "format", "c"], capture_output=True, check=False
    )
    if dump.returncode or len(dump.stdout) < 100_000:
        pytest.skip("this bpftool cannot read this kernel's BTF")
    wanted = {
        name: offsets_of_every_member(live, name)
        for name in ("task_struct", "mm_struct", "cred", "signal_struct", "vm_area_struct", "file")
    }
    assert sum(map(len, wanted.values())) > 300
    source, program = f"{tmp_path}/offsets.c", f"{tmp_path}/offsets"
    with open(source, "wb") as file:
        file.write(dump.stdout)
        file.write(b"\nint printf(const char *, ...);\nint main(void) {\n")
        for name, members in wanted.items():
            size = f'printf("{name} . %lu\\n", (unsigned long)sizeof(struct {name}));\n'
            file.write(size.encode())
            for member in members:
                offset = f"__builtin_offsetof(struct {name}, {member})"
                line = f'printf("{name} {member} %lu\\n", (unsigned long){offset});\n'
                file.write(line.encode())
        file.write(b"return 0; }\n")
    built = subprocess.run(
        [gcc, "-w", "-O0", "-o", program, source], capture_output=True, check=False
    )
    if built.returncode:
        pytest.skip(f"gcc does not take bpftool's C: {built.stderr.decode()[:200]}")
    lines = subprocess.run([program], capture_output=True, check=True).stdout.decode().splitlines()
    for line in lines:
        name, member, offset = line.split()
        if member == ".":
            assert live.size(f"struct {name}") == int(offset), name
        else:
            assert wanted[name][member] == int(offset), (name, member)


def test_bpftool_reads_what_we_build(tmp_path: object) -> None:
    need("bpftool")
    bpftool = tools.find("bpftool")
    blob = f"{tmp_path}/blob"
    with open(blob, "wb") as file:
        file.write(sample())
    lines = subprocess.run(
        [bpftool, "btf", "dump", "file", blob], capture_output=True, check=True
    ).stdout.decode()
    names = [line for line in lines.splitlines() if line.startswith("[")]
    assert len(names) == len(BTF) - 1
    for type_id, line in enumerate(names, 1):
        assert line.startswith(f"[{type_id}] ")
        if BTF.name(type_id) and BTF.kind(type_id) != "decl_tag":
            assert f" '{BTF.name(type_id)}'" in line
        if BTF.kind(type_id) in ("struct", "union"):
            assert f" size={BTF.size(type_id)} " in line


def test_the_kernel_takes_what_we_build() -> None:
    """BPF_BTF_LOAD accepts the types of a callback, as a program with bpf_loop needs them."""
    b = BtfBuilder()
    u32, ptr = b.integer("unsigned int", 4), b.ptr(0)
    long = b.integer("long", 8, signed=True)
    b.func("callback", b.func_proto(long, [("index", u32), ("ctx", ptr)]))
    number = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
    if number is None:
        pytest.skip("number of bpf(2) unknown on this machine")
    blob = ctypes.create_string_buffer(b.blob(), len(b.blob()))
    attr = ctypes.create_string_buffer(
        struct.pack("=QQIII", ctypes.addressof(blob), 0, len(blob), 0, 0)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    file = libc.syscall(number, 18, attr, 28)
    if file < 0:
        code = ctypes.get_errno()
        if code in (1, 38):
            pytest.skip(f"bpf(2) is not for this user: {os.strerror(code)}")
        raise OSError(code, os.strerror(code))
    os.close(file)
