"""bpf(2): layouts compared with those of the C compiler, errors, and the verifier's log."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from conftest import need, open_engine
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel import bpf
from taskdiag.kernel.asm import R0, R1, R2, R10, Assembler, Code
from taskdiag.kernel.btf_build import BtfBuilder
from taskdiag.kernel.facts import Facts

_HEADERS = "#include <linux/bpf.h>\n#include <stddef.h>\n#include <stdio.h>\n"
# Every attribute, with a different number in each member.
_SOURCE = r"""
#include <linux/bpf.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static union bpf_attr attr;
static void out(size_t size) {
    write(1, &attr, size);
    memset(&attr, 0, sizeof attr);
}
#define END(member) (offsetof(union bpf_attr, member) + sizeof attr.member)

int main(void) {
    memset(&attr, 0, sizeof attr);
    attr.map_type = 1; attr.key_size = 2; attr.value_size = 3; attr.max_entries = 4;
    attr.map_flags = 5;
    out(END(map_flags));

    attr.map_fd = 1; attr.key = 2; attr.value = 3; attr.flags = 4;
    out(END(flags));

    attr.link_create.prog_fd = 1; attr.link_create.target_fd = 2;
    attr.link_create.attach_type = 3; attr.link_create.flags = 4;
    attr.link_create.iter_info = 5; attr.link_create.iter_info_len = 6;
    out(32);

    attr.iter_create.link_fd = 1; attr.iter_create.flags = 2;
    out(8);

    union bpf_iter_link_info info;
    memset(&info, 0, sizeof info);
    info.task.tid = 1; info.task.pid = 2; info.task.pid_fd = 3;
    write(1, &info, 16);
    return 0;
}
"""


def compiled(tmp_path: Path, source: str) -> bytes:
    """The output of a C program."""
    need("gcc", "/usr/include/stdio.h", "/usr/include/linux/bpf.h")
    file = tmp_path / "attr.c"
    file.write_text(source)
    result = subprocess.run(
        ["gcc", "-o", str(tmp_path / "attr"), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode and "bpf_iter_link_info" in result.stderr:
        pytest.skip("the headers installed here are older than Linux 6.1")
    assert result.returncode == 0, result.stderr
    return subprocess.run([str(tmp_path / "attr")], capture_output=True, check=True).stdout


def test_attributes_are_laid_out_as_a_compiler_does(tmp_path: Path) -> None:
    ours = (
        bpf._MAP_ATTR.pack(1, 2, 3, 4, 5)
        + bpf._ELEM_ATTR.pack(1, 2, 3, 4)
        + bpf._LINK_ATTR.pack(1, 2, 3, 4, 5, 6)
        + bpf._ITER_ATTR.pack(1, 2)
        + bytes.fromhex("01000000 02000000 03000000 00000000")
    )
    assert compiled(tmp_path, _SOURCE) == ours


def test_program_attributes_are_laid_out_as_a_compiler_does(tmp_path: Path) -> None:
    """The offset of each member, found by setting only that member."""
    members = (
        "prog_type", "insn_cnt", "insns", "license", "log_level", "log_size", "log_buf",
        "kern_version", "prog_flags", "prog_name", "prog_ifindex", "expected_attach_type",
        "prog_btf_fd", "func_info_rec_size", "func_info", "func_info_cnt", "line_info_rec_size",
        "line_info", "line_info_cnt", "attach_btf_id",
    )  # fmt: skip
    lines = "".join(
        f'    printf("%zu ", offsetof(union bpf_attr, {member}));\n' for member in members
    )
    source = f"{_HEADERS}int main(void) {{\n{lines}}}\n"
    offsets = [int(word) for word in compiled(tmp_path, source).split()]
    for index, at in enumerate(offsets):
        values: list[int | bytes] = [0] * (len(members) + 1)
        values[members.index("prog_name")] = b""
        values[index] = b"\x01" if members[index] == "prog_name" else 1
        attr = bpf._PROG_ATTR.pack(*values)
        assert attr.find(1) == at, members[index]


def test_btf_attributes(tmp_path: Path) -> None:
    source = r"""
    #include <linux/bpf.h>
    #include <string.h>
    #include <unistd.h>
    int main(void) {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.btf = 1; attr.btf_log_buf = 2; attr.btf_size = 3; attr.btf_log_size = 4;
        attr.btf_log_level = 5;
        write(1, &attr, 32);
        return 0;
    }
    """
    assert compiled(tmp_path, source) == bpf._BTF_ATTR.pack(1, 2, 3, 4, 5)


def test_commands_and_types_have_the_headers_numbers(tmp_path: Path) -> None:
    source = r"""
    #include <linux/bpf.h>
    #include <stdio.h>
    #include <sys/syscall.h>
    int main(void) {
        printf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d\n", BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM,
               BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD, BPF_BTF_LOAD, BPF_LINK_CREATE, BPF_ITER_CREATE,
               BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER, BPF_F_SLEEPABLE, BPF_MAP_TYPE_ARRAY,
               BPF_MAP_TYPE_PERCPU_ARRAY, BPF_F_MMAPABLE, SYS_bpf);
        return 0;
    }
    """
    assert [int(word) for word in compiled(tmp_path, source).split()] == [
        bpf._MAP_CREATE, bpf._MAP_LOOKUP_ELEM, bpf._MAP_UPDATE_ELEM, bpf._PROG_LOAD,
        bpf._BTF_LOAD, bpf._LINK_CREATE, bpf._ITER_CREATE, bpf._PROG_TYPE_TRACING,
        bpf._ATTACH_TRACE_ITER, bpf._F_SLEEPABLE, bpf.MAP_TYPE_ARRAY, bpf.MAP_TYPE_PERCPU_ARRAY,
        bpf.F_MMAPABLE, bpf._number,
    ]  # fmt: skip


def test_helpers_have_the_headers_numbers(tmp_path: Path) -> None:
    from taskdiag.kernel.emit import HELPERS

    lines = "".join(f'    printf("%d ", BPF_FUNC_{name});\n' for name in HELPERS)
    source = f"{_HEADERS}int main(void) {{\n{lines}}}\n"
    assert [int(word) for word in compiled(tmp_path, source).split()] == list(HELPERS.values())


def test_the_types_of_callbacks_are_what_the_builder_makes() -> None:
    build = BtfBuilder()
    proto = build.func_proto(build.integer("long", 8, signed=True), [])
    assert build.func("taskdiag", proto) == bpf._FUNCTION_ID
    assert build.blob() == bpf._FUNCTION_BTF


# --- Errors ------------------------------------------------------------------------


def test_an_error_of_the_call_is_an_exception_with_its_number() -> None:
    with pytest.raises(bpf.BpfError) as caught:
        bpf.bpf(12345, b"")
    # EINVAL if the kernel has no such command; EPERM or ENOSYS if bpf(2) is forbidden.
    assert caught.value.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS)
    assert str(caught.value) == os.strerror(caught.value.errno or 0)
    assert isinstance(caught.value, EngineUnavailable)


def test_a_machine_whose_number_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_number", None)
    with pytest.raises(bpf.BpfError, match=r"the number of bpf\(2\) on .* is not known") as caught:
        bpf.bpf(0, b"")
    assert caught.value.errno == errno.ENOSYS


def test_a_bad_descriptor() -> None:
    open_engine("kernel")
    with pytest.raises(bpf.BpfError) as caught:
        bpf.create_iterator(0x7FFFFFFF)
    assert caught.value.errno == errno.EBADF


def test_maps_keep_what_is_put_into_them() -> None:
    open_engine("kernel")
    fd = bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 2)
    try:
        bpf.map_update(fd, b"\1\0\0\0", b"12345678")
        assert bpf.map_lookup(fd, b"\1\0\0\0", 8) == b"12345678"
        assert bpf.map_lookup(fd, b"\0\0\0\0", 8) == bytes(8)
        with pytest.raises(bpf.BpfError) as caught:
            bpf.map_lookup(fd, b"\2\0\0\0", 8)
        assert caught.value.errno == errno.ENOENT
    finally:
        os.close(fd)


def load(code: Code, **options: bool) -> int:
    facts = Facts.live()
    return bpf.load_program(code, facts.type_id("func", "bpf_iter_task"), {}, **options)


def test_a_rejection_names_the_code_at_fault_and_has_the_verifiers_words() -> None:
    open_engine("kernel")
    a = Assembler()
    a.note("base.pid")
    a.mov(R0, 0)
    a.note("base.ppid")
    a.load(R0, R10, 8)
    a.note("base.comm")
    a.exit()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(bpf.VerifierError) as caught:
        load(a.assemble())
    assert caught.value.where == "base.ppid"
    assert caught.value.errno == errno.EACCES
    assert "invalid read from stack" in caught.value.log
    first, *rest = str(caught.value).splitlines()
    assert first == "the kernel's verifier rejected base.ppid:"
    assert 1 <= len(rest) <= 6
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_rejection_without_notes_is_of_the_program() -> None:
    open_engine("kernel")
    a = Assembler()
    a.mov(R0, R2)
    a.exit()
    with pytest.raises(bpf.VerifierError, match="rejected the program:"):
        load(a.assemble())


def test_an_error_before_the_verifier_is_not_a_rejection() -> None:
    open_engine("kernel")
    with pytest.raises(bpf.BpfError) as caught:
        load(Code(b"", [], [], {}))
    assert type(caught.value) is bpf.BpfError
    assert caught.value.errno == errno.E2BIG


def long_program() -> Code:
    a = Assembler()
    for _ in range(3000):
        a.mov(R0, 0)
    a.exit()
    return a.assemble()


def test_signals_do_not_disturb_the_verifier() -> None:
    """A process with an interval timer, as profilers set one, can load programs."""
    open_engine("kernel")
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(30):
            os.close(load(long_program()))
        while not seen:
            signal.pause()
        assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_an_interrupted_check_is_repeated_and_is_not_a_rejection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def interrupted(command: int, attr: bytes) -> int:
        calls.append(command)
        raise bpf.BpfError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(bpf, "bpf", interrupted)
    with pytest.raises(bpf.BpfError) as caught:
        bpf.load_program(long_program(), 1, {})
    assert type(caught.value) is bpf.BpfError
    assert caught.value.errno == errno.EAGAIN
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("0: R1=ctx()\n12: (61) r1 = *(u32 *)(r6 +8)\nR6 invalid mem access\n", 12),
        ("processed 5 insns\n", 0),
        ("", 0),
        ("3: x\nfrom 3 to 7: R0=1\nmath between: no\n", 3),
    ],
)
def test_the_last_instruction_that_a_log_mentions(log: str, expected: int) -> None:
    assert bpf._last_insn(log) == expected


@pytest.mark.root
def test_maps_of_a_program_are_filled_in_by_name() -> None:
    open_engine("kernel")
    a = Assembler()
    a.map_value(R1, "numbers")
    a.load(R2, R1, 0)
    a.alu("add", R2, 1)
    a.store(R1, 0, R2)
    a.mov(R0, 0)
    a.exit()
    held = [bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1)]
    try:
        facts = Facts.live()
        program = facts.type_id("func", "bpf_iter_task")
        held.append(bpf.load_program(a.assemble(), program, {"numbers": held[0]}))
        held.append(bpf.create_link(held[-1], tid=os.getpid()))
        held.append(bpf.create_iterator(held[-1]))
        assert os.read(held[-1], 4096) == b""
        runs = int.from_bytes(bpf.map_lookup(held[0], bytes(4), 8), "little")
        # Once for the task, and once without a task at the end.
        assert runs == 2
    finally:
        for fd in held:
            os.close(fd)
