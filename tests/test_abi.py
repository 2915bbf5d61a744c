"""The contract: golden bytes of each structure, and the header beside a C compiler's layout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conftest import need
from taskdiag import abi
from taskdiag.abi import GROUPS, Attr, Group, Show, State, VmaFlag
from taskdiag.cheader import header

ALL = (
    abi.NLMSGHDR, abi.NLATTR, abi.TASK_DIAG_PID, abi.TASK_DIAG_MSG, abi.BASE, abi.CRED, abi.STAT,
    abi.STATM, abi.VMA, abi.VMA_STAT, abi.TTY, abi.SCHED, abi.NAME,
)  # fmt: skip


def numbered(group: Group) -> bytes:
    """The structure with field n holding n + 1, the comm holding its name."""
    values: list[object] = [
        b"name" if item.ctype.startswith("char[") else index + 1
        for index, item in enumerate(group.fields)
    ]
    return group.struct.pack(*values)


def words(size: int, first: int, last: int) -> str:
    """Consecutive little-endian numbers of ``size`` bytes, in hexadecimal."""
    return b"".join(number.to_bytes(size, "little") for number in range(first, last + 1)).hex()


GOLDEN = {
    "nlmsghdr": "01000000" "0200" "0300" "04000000" "05000000",
    "nlattr": "0100" "0200",
    "task_diag_pid": words(8, 1, 2) + "03000000" "00000000",
    "task_diag_msg": words(4, 1, 3),
    "task_diag_base": words(4, 1, 6) + "07" + b"name".hex() + "00" * 12 + "000000",
    "task_diag_creds": words(8, 1, 4) + words(4, 5, 12),
    "task_diag_stat": words(8, 1, 8) + "09000000" "00000000",
    "task_diag_statm": words(8, 1, 16),
    "task_diag_vma": words(8, 1, 4) + words(4, 5, 6) + words(8, 7, 7) + words(4, 8, 8)
    + words(2, 9, 13) + "0000",
    "task_diag_vma_stat": words(8, 1, 10),
    "task_diag_tty": words(4, 1, 2),
    "task_diag_sched": words(8, 1, 1) + words(4, 2, 7),
    "task_diag_name": b"name".hex() + "00" * 60,
}  # fmt: skip


@pytest.mark.parametrize("group", ALL, ids=lambda group: group.cname)
def test_golden_bytes(group: Group) -> None:
    assert numbered(group).hex() == GOLDEN[group.cname]


def test_offsets_of_the_reference() -> None:
    """The table of the reference, written down once more."""
    wanted = {
        "BASE": (44, {"tgid": 0, "pid": 4, "ppid": 8, "tpid": 12, "sid": 16, "pgid": 20,
                      "state": 24, "comm": 25}),
        "CRED": (64, {"cap_inheritable": 0, "cap_permitted": 8, "cap_effective": 16,
                      "cap_bset": 24, "uid": 32, "euid": 36, "suid": 40, "fsuid": 44, "gid": 48,
                      "egid": 52, "sgid": 56, "fsgid": 60}),
        "STAT": (72, {"minflt": 0, "cminflt": 8, "majflt": 16, "cmajflt": 24, "utime": 32,
                      "stime": 40, "cutime": 48, "cstime": 56, "threads": 64}),
    }  # fmt: skip
    for name, (size, offsets) in wanted.items():
        group = GROUPS[Attr[name]]
        assert group.size == size
        assert {item.name: item.offset for item in group.fields} == offsets
    assert (abi.STATM.size, abi.VMA.size, abi.VMA_STAT.size) == (128, 64, 80)
    assert " ".join(item.name for item in abi.STATM.fields) == (
        "anon file shmem total_vm total_rss hiwater_vm hiwater_rss text lib swap ptes pmds "
        "locked_vm pinned_vm data_vm stack_vm"
    )
    assert {item.name: item.offset for item in abi.VMA.fields}["stat_len"] == 60


def test_constants_of_the_reference() -> None:
    assert abi.RESPONSE == 0xD101
    assert [int(flag) for flag in Show][:7] == [1, 2, 4, 8, 16, 32, 64]
    assert "".join(state.letter for state in State) == "RSDTtXZPI"
    assert VmaFlag.MERGEABLE == 1 << 27
    assert VmaFlag.SOFTDIRTY == 1 << 23
    assert VmaFlag.GROWSDOWN == 1 << 8


def test_a_structure_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(AssertionError, match="8 bytes laid out, 4 declared"):
        Group("wrong", 4, (abi.Field("a", "u64", 0, ""),), "")


def test_fields_are_found_by_name() -> None:
    assert abi.field("utime") == (abi.STAT, abi.STAT["utime"])
    assert abi.field("sched.flags")[1].offset == 8
    for name in ("nosuch", "base.utime", "stat."):
        with pytest.raises(KeyError):
            abi.field(name)


def test_every_field_says_what_it_is() -> None:
    for group in ALL:
        for item in group.fields:
            assert item.doc
        assert header().count(f"struct {group.cname} {{") == (
            0 if group in (abi.NLMSGHDR, abi.NLATTR) else 1
        )


COMPILERS = {
    "c11": ("gcc", "-std=c11", ".c"),
    "c++11": ("g++", "-std=c++11", ".cc"),
}


@pytest.mark.parametrize("language", COMPILERS)
def test_header_compiles_and_agrees(language: str, tmp_path: Path) -> None:
    compiler, standard, suffix = COMPILERS[language]
    need(compiler, "/usr/include/stdio.h")
    (tmp_path / "task_diag.h").write_text(header())
    lines = [
        '#include "task_diag.h"',
        '#include "task_diag.h"',
        "#include <stdio.h>",
        "int main(void) {",
    ]
    wanted = []
    for group in ALL:
        lines.append(f'printf("%d\\n", (int)sizeof(struct {group.cname}));')
        wanted.append(group.size)
        for item in group.fields:
            where = f"struct {group.cname}, {item.name}"
            lines.append(f'printf("%d\\n", (int)offsetof({where}));')
            wanted.append(item.offset)
    for show in Show:
        lines.append(f'printf("%llu\\n", TASK_DIAG_SHOW_{show.name});')
        wanted.append(int(show))
    for state in State:
        lines.append(f'printf("%d\\n", (int)TASK_DIAG_STATE_{state.name});')
        wanted.append(int(state))
    for flag in VmaFlag:
        lines.append(f'printf("%d\\n", (int)TASK_DIAG_VMA_F_{flag.name});')
        wanted.append(int(flag))
    lines += ['printf("%d\\n", TASK_DIAG_RESPONSE);', "return 0; }", ""]
    wanted.append(abi.RESPONSE)
    source = tmp_path / f"check{suffix}"
    source.write_text("\n".join(lines))
    program = tmp_path / "check"
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-long-long"]
    subprocess.run([compiler, standard, *strict, "-o", program, source], check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in found.split()] == wanted
