"""What is asked of the kernel before the first program, compared with other sources."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import missing, need, open_engine
from taskdiag.kernel import KernelEngine, mm, probe
from taskdiag.kernel.facts import Facts

pytestmark = pytest.mark.root


@pytest.fixture
def engine() -> KernelEngine:
    """A new engine for each test."""
    open_engine("kernel")
    return KernelEngine()


def test_the_pid_namespace_is_that_of_this_process(engine: KernelEngine) -> None:
    level, inode = engine.programs.ask(probe.pid_namespace(engine.facts))
    assert inode == os.stat("/proc/self/ns/pid").st_ino
    status = Path("/proc/self/status").read_text()
    numbers = re.search(r"^NSpid:(.*)$", status, re.M)
    assert numbers is not None
    # The mounted /proc may be that of an outer namespace, which shows more levels.
    assert level >= len(numbers[1].split()) - 1


def test_levels_count_the_namespaces_from_the_host(engine: KernelEngine) -> None:
    need("mount", "unshare")
    own, _ = engine.programs.ask(probe.pid_namespace(engine.facts))
    script = (
        "from taskdiag.kernel import KernelEngine, probe; import os\n"
        "e = KernelEngine()\n"
        "level, inode = e.programs.ask(probe.pid_namespace(e.facts))\n"
        "print(level, inode, os.stat('/proc/self/ns/pid').st_ino)\n"
    )
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    for depth in (1, 2):
        command = [*unshare * depth, sys.executable, "-c", script]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if "unshare" in result.stderr:
            missing(f"pid namespaces cannot be made here: {result.stderr.strip()}")
        assert result.returncode == 0, result.stderr
        level, inode, expected = map(int, result.stdout.split())
        assert (level, inode) == (own + depth, expected)


def test_special_mappings_are_told_by_an_address_of_the_kernel(engine: KernelEngine) -> None:
    if "[vdso]" not in Path("/proc/self/maps").read_text():
        missing("this process has no vdso")
    from taskdiag.kernel import vma

    if vma.missing(engine.facts):
        pytest.skip(f"this kernel lacks {vma.missing(engine.facts)}")
    (first,) = engine.programs.ask(probe.special_ops(engine.facts))
    (second,) = engine.programs.ask(probe.special_ops(engine.facts))
    assert first == second
    assert first >> 48 == 0xFFFF
    assert first % 8 == 0
    symbols = Path("/proc/kallsyms").read_text()
    found = re.search(r"^(\w+) \w special_mapping_vmops$", symbols, re.M)
    if found is not None and int(found[1], 16):
        assert first == int(found[1], 16)


def test_names_of_mappings_do_not_need_the_main_thread_or_a_vdso(engine: KernelEngine) -> None:
    """The probe of a thread whose main thread has exited, and one that finds nothing."""
    from taskdiag.kernel import vma

    if vma.missing(engine.facts):
        pytest.skip(f"this kernel lacks {vma.missing(engine.facts)}")
    script = (
        "import ctypes, os, sys, threading, time\n"
        "from taskdiag import Dump, Request, Show\n"
        "from taskdiag.kernel import KernelEngine\n"
        "def ask():\n"
        "    stat = f'/proc/self/task/{os.getpid()}/stat'\n"
        "    while ') Z ' not in open(stat).read(): time.sleep(0.01)\n"
        "    engine = KernelEngine()\n"
        "    engine.host.special_ops = int(sys.argv[1])\n"
        "    chunks = engine.stream(Request(Show.VMA, Dump.ONE, int(sys.argv[3])))\n"
        "    sys.stdout.buffer.write(b''.join(chunks))\n"
        "    sys.stdout.flush()\n"
        "    os._exit(0)\n"
        "threading.Thread(target=ask).start()\n"
        "ctypes.CDLL(None).syscall(ctypes.c_long(int(sys.argv[2])), 0)\n"
    )
    number = {"x86_64": 60, "aarch64": 93, "riscv64": 93}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of exit(2) is not known on this machine")
    names = re.compile(rb"\[(?:heap|stack|vdso)\]")
    # A process with so few mappings that procfs need not complete the answer.
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat"], stdin=pipe, stdout=pipe, bufsize=0) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        target.stdin.write(b"ready\n")
        assert target.stdout.read(6) == b"ready\n"
        shown = sorted(names.findall(Path(f"/proc/{target.pid}/maps").read_bytes()))
        without = [name for name in shown if name != b"[vdso]"]
        for special_ops, expected in ((0, shown), (2**64 - 1, without)):
            result = subprocess.run(
                [sys.executable, "-c", script, str(special_ops), str(number), str(target.pid)],
                capture_output=True,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            assert sorted(names.findall(result.stdout)) == expected


def test_every_possible_cpu_has_an_area_of_its_own(engine: KernelEngine) -> None:
    if not engine.facts.has_member("bpf_array", "pptrs"):
        pytest.skip("this kernel's arrays have no pptrs")
    cpus = mm.possible_cpus()
    base, *areas = engine.programs.ask(probe.per_cpu_areas(engine.facts, cpus))
    assert base
    assert len(areas) == cpus
    distances = [area - base & 0xFFFFFFFFFFFFFFFF for area in areas if area]
    assert len(distances) == len(set(distances)) == _counted("/sys/devices/system/cpu/possible")
    # Each probe has its own map, but __per_cpu_offset[] is always the same.
    base, *areas = engine.programs.ask(probe.per_cpu_areas(engine.facts, cpus))
    assert [area - base & 0xFFFFFFFFFFFFFFFF for area in areas if area] == distances


def _counted(path: str) -> int:
    count = 0
    for part in Path(path).read_text().strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def test_possible_cpus_is_one_more_than_the_highest() -> None:
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    assert mm.possible_cpus() == int(re.split(r"[-,]", text)[-1]) + 1


def test_probes_leave_no_descriptor(engine: KernelEngine) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        engine.programs.ask(probe.pid_namespace(engine.facts))
        engine.programs.ask(probe.per_cpu_areas(engine.facts, mm.possible_cpus()))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_probes_need_no_more_than_the_facts() -> None:
    facts = Facts.live()
    assert probe.pid_namespace(facts).code.maps == []
    assert {name for _, name in probe.per_cpu_areas(facts, 2).code.maps} == {probe.PERCPU_MAP}
