"""The compiler, without a kernel: programs for kernels made of BTF, field by field."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_kernel import KFUNCS, NEW, OLD, made, new_kernel, old_kernel
from taskdiag.abi import GROUPS, Attr, Dump, Field, Show
from taskdiag.kernel.annotate import Annotator
from taskdiag.kernel.asm import INSN
from taskdiag.kernel.compile import (
    CONVERSIONS,
    FUNCTIONS,
    Program,
    compile_request,
    missing_features,
)
from taskdiag.kernel.disasm import disassemble
from taskdiag.kernel.emit import Host
from taskdiag.kernel.facts import Facts
from taskdiag.kernel.viewer import Rule, Viewer
from taskdiag.request import Request

NEW_KERNEL, OLD_KERNEL = new_kernel(), old_kernel()
#: Old structures, and the helpers of Linux 6.1.
MIDDLE_KERNEL = made(OLD, (), ("copy_from_user_task", "loop"))
HOST = Host((0x1000, 0x2000, 0xFFFF888000000000), 0xFFFFFFFF82000000, b"\1" * 80)
ALL = Show(sum(Show)) & ~Show.VMA_STAT
FIELDS = [
    pytest.param(attr, field, id=f"{attr.name.lower()}.{field.name}")
    for attr, group in GROUPS.items()
    for field in group.fields
]


def compiled(
    show: int, facts: Facts = NEW_KERNEL, strategy: Dump = Dump.ALL, viewer: Viewer | None = None
) -> Program:
    return compile_request(Request(show, strategy, 1), facts, viewer or Viewer(), HOST)


def groups_in(program: Program) -> set[str]:
    """The groups that the notes of a program speak of, but for the task's own numbers."""
    notes = {text for _, text in program.code.notes} - {"base.pid", "base.tgid"}
    names = {str(show.name).lower() for show in Show}
    return {note.partition(".")[0] for note in notes} & names


# --- What a kernel serves ---------------------------------------------------------------


def test_a_new_kernel_serves_everything_that_bpf_can() -> None:
    lacking = {show: why for show, why in missing_features(NEW_KERNEL).items() if why}
    assert set(lacking) == {Show.VMA_STAT}
    assert list(missing_features(NEW_KERNEL)) == list(Show)


def test_an_old_kernel_says_what_it_lacks() -> None:
    lacking = {show: why for show, why in missing_features(OLD_KERNEL).items() if why}
    assert set(lacking) == {Show.VMA_STAT, Show.VMA, Show.STAT, Show.CMDLINE}
    assert "bpf_iter_task_vma_new" in lacking[Show.VMA]
    assert "copy_from_user_task" in lacking[Show.CMDLINE]
    # The sums over threads are not needed for threads.
    assert not missing_features(OLD_KERNEL, threads=True)[Show.STAT]


def test_counters_per_cpu_need_a_cast() -> None:
    facts = made(NEW, tuple(name for name in KFUNCS if name != "bpf_rdonly_cast"), ())
    assert "bpf_rdonly_cast" in missing_features(facts)[Show.STATM]
    assert not missing_features(made(OLD, (), ()))[Show.STATM]


# --- Programs ---------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.sets(st.sampled_from(list(Show))).map(lambda some: Show(sum(some))),
    st.sampled_from(list(Dump)),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([NEW_KERNEL, MIDDLE_KERNEL, OLD_KERNEL]),
)
def test_every_request_has_a_program(
    show: Show, strategy: Dump, pid: int, seq: int, level: int, facts: Facts
) -> None:
    lacking = missing_features(facts, threads=strategy in (Dump.ALL_THREAD, Dump.THREAD))
    show = Show(sum(group for group in Show if group & show and not lacking[group]))
    request = Request(show, strategy, pid, seq)
    viewer = Viewer(level, 0xF0000001) if level else Viewer()
    program = compile_request(request, facts, viewer, HOST)
    check(program)
    again = compile_request(request, facts, viewer, HOST, Annotator)
    assert again.code.insns == program.code.insns
    assert again.code.comments
    assert groups_in(program) == {str(group.name).lower() for group in Show if group & show}


def check(program: Program) -> None:
    """What the verifier would refuse in any program, whatever it does."""
    code = program.code
    insns = list(INSN.iter_unpack(code.insns))
    texts = dict(disassemble(code))
    assert not any(text.startswith(".insn") for text in texts.values())
    for at, (opcode, registers, off, _) in enumerate(insns):
        if at not in texts:
            continue
        if opcode & 7 in (5, 6) and opcode not in (0x85, 0x95):
            assert at + 1 + off in texts, "a jump out of the program, or into an instruction"
        if (
            opcode & 7 in (1, 2, 3)
            and (registers >> 4 if opcode & 7 == 1 else registers & 15) == 10
        ):
            assert -512 <= off <= -1, "outside of the stack"
            assert off % (1, 2, 4, 8)[{0x10: 0, 0x08: 1, 0x00: 2, 0x18: 3}[opcode & 0x18]] == 0
        if opcode & 7 == 7 and registers & 15 == 10:
            raise AssertionError("the frame pointer is not to be written")
    # Execution never continues past the last instruction.
    assert insns[-1][0] in (0x95, 0x05)
    assert {name for _, name in code.maps} <= {"arena", "deferred", "names"}
    assert program.arena or not code.maps


def test_equal_requests_have_equal_programs() -> None:
    assert compiled(ALL).code.insns == compiled(ALL).code.insns


@pytest.mark.parametrize("show", [show for show in Show if show != Show.VMA_STAT])
def test_groups_that_are_not_asked_for_add_no_instruction(show: Show) -> None:
    alone = compiled(show)
    assert groups_in(alone) == {str(show.name).lower()}
    none = compiled(0)
    assert groups_in(none) == set()
    assert len(none.code.insns) < len(alone.code.insns)
    # Two groups together take no more than each alone.
    if show != Show.BASE:
        both = compiled(Show.BASE | show)
        rest = len(compiled(Show.BASE).code.insns) - len(none.code.insns)
        assert len(both.code.insns) <= len(alone.code.insns) + rest + 8 * 64


def test_only_arguments_may_sleep_and_only_mappings_and_they_need_an_arena() -> None:
    for show in Show:
        if show == Show.VMA_STAT:
            continue
        program = compiled(show)
        assert program.sleepable == (show == Show.CMDLINE)
        assert program.arena == (show in (Show.CMDLINE, Show.VMA))
        assert bool(program.code.maps) == program.arena


def test_the_message_fits_the_stack_with_every_fixed_group() -> None:
    check(compiled(ALL & ~(Show.CMDLINE | Show.VMA)))
    check(compiled(ALL & ~(Show.CMDLINE | Show.VMA), viewer=Viewer(3, 5)))


def test_with_an_access_rule_the_subprograms_keep_their_stack() -> None:
    """Main program, rule and what the rule calls: 512 bytes in all, in steps of 32."""
    viewer = Viewer(rule=Rule(1000, 1000, 1000))
    for show in (ALL & ~(Show.CMDLINE | Show.VMA), Show.BASE | Show.CRED | Show.STAT | Show.STATM):
        for facts in (NEW_KERNEL, MIDDLE_KERNEL):
            program = compiled(show, facts, Dump.ALL_THREAD, viewer)
            check(program)
            stack = [
                -off
                for code, registers, off, _ in INSN.iter_unpack(program.code.insns)
                if code & 7 in (2, 3) and registers & 15 == 10
            ]
            assert -(-max(stack) // 32) * 32 + 2 * 32 <= 512
    # Not where it is not needed: without an arena the iterator can be handed out.
    assert not compiled(Show.BASE | Show.CRED | Show.STAT, viewer=viewer).arena


def test_nothing_of_a_cpu_or_a_host_is_in_programs_that_do_not_need_it() -> None:
    other = Host((1, 2), 3, b"")
    for show in (Show.BASE, Show.CRED, Show.STAT, Show.CMDLINE, Show.TTY, Show.SCHED, Show.NAME):
        request = Request(show)
        with_host = compile_request(request, NEW_KERNEL, Viewer(), HOST)
        assert with_host.code.insns == (
            compile_request(request, NEW_KERNEL, Viewer(), other).code.insns
        )


def test_thread_strategies_do_not_filter_leaders_or_sum() -> None:
    def notes(strategy: Dump) -> set[str]:
        return {text for _, text in compiled(Show.STAT, strategy=strategy).code.notes}

    assert "group leaders" in notes(Dump.ALL)
    assert "group leaders" not in notes(Dump.ALL_THREAD)
    assert "children" in notes(Dump.CHILDREN)
    threads = compiled(Show.STAT, strategy=Dump.ALL_THREAD).code.insns
    assert len(threads) < len(compiled(Show.STAT).code.insns)


def test_in_a_pid_namespace_numbers_are_looked_up_at_its_level() -> None:
    host, inside = compiled(Show.BASE), compiled(Show.BASE, viewer=Viewer(2, 0xF0000002))
    wanted = 0xF0000002 - 2**32
    assert any(insn[3] == wanted for insn in INSN.iter_unpack(inside.code.insns))
    assert not any(insn[3] == wanted for insn in INSN.iter_unpack(host.code.insns))


# --- The catalogue --------------------------------------------------------------------------


@pytest.mark.parametrize(("attr", "field"), FIELDS)
def test_every_field_is_one_that_the_compiler_knows(attr: Attr, field: Field) -> None:
    text = field.kernel
    assert text, "no expression"
    outer, bracket, inner = text.partition("(")
    if text in FUNCTIONS or text.isdigit():
        return
    if attr == Attr.STAT and field.name in ("minflt", "majflt", "utime", "stime"):
        return  # sums: sched.totals()
    if attr == Attr.STATM and (outer == "mm_counter" or field.name in ("total_rss", "hiwater_rss")):
        return
    if attr == Attr.NAME:
        return  # bytes, not a number: names.emit()
    path = inner[:-1] if bracket else text
    assert not bracket or outer in CONVERSIONS, outer
    root, _, member = path.partition("->")
    struct = {"task": "task_struct", "mm": "mm_struct"}[root]
    for facts in (NEW_KERNEL, OLD_KERNEL):
        assert facts.has_member(struct, member)


@pytest.mark.parametrize(("attr", "field"), FIELDS)
def test_every_field_is_in_the_program(attr: Attr, field: Field) -> None:
    """Its bytes of the message are written by somebody."""
    program = compile_request(Request(Show(1 << attr)), NEW_KERNEL, Viewer(), HOST, Annotator)
    written = {
        int(match[1])
        for comment in program.code.comments.values()
        if (match := re.fullmatch(r"message \+(\d+)", comment))
    }
    # After nlmsghdr, task_diag_msg and the attribute's header.
    assert 16 + 12 + 4 + field.offset in written


def test_every_function_is_used() -> None:
    texts = {field.kernel for group in GROUPS.values() for field in group.fields}
    assert set(FUNCTIONS) <= texts
    assert set(CONVERSIONS) <= {text.partition("(")[0] for text in texts}
