"""Mappings that a program cannot name or count by itself: the kernel engine beside procfs."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taskdiag
from conftest import missing, need, open_engine
from population import child
from taskdiag import Show

# In a mount namespace of its own: a program on an overlay, run from there, and its
# mappings by both engines.
OVERLAY = r"""
import json, os, subprocess, sys
import taskdiag
base = sys.argv[1]
def mount(*args):
    subprocess.run(["mount", *args], check=True)
mount("-t", "tmpfs", "none", base)
for name in ("lower", "upper", "work", "merged"):
    os.mkdir(f"{base}/{name}")
subprocess.run(["cp", sys.argv[2], f"{base}/lower/program"], check=True)
layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
mount("-t", "overlay", "overlay", "-o", layers, f"{base}/merged")
process = subprocess.Popen([f"{base}/merged/program", "60"])
try:
    found = {}
    for engine in ("kernel", "procfs"):
        (task,) = taskdiag.dump("vma", pid=process.pid, engine=engine)
        found[engine] = [
            (vma.start, vma.end, vma.pgoff, vma.major, vma.minor, vma.inode, vma.name)
            for vma in task.vmas
        ]
    print(json.dumps(found))
finally:
    process.kill()
    process.wait()
"""


def both(pid: int, show: Show) -> tuple[taskdiag.Task, taskdiag.Task]:
    (kernel,) = taskdiag.dump(show, pid=pid, engine=open_engine("kernel"))
    (procfs,) = taskdiag.dump(show, pid=pid, engine="procfs")
    return kernel, procfs


@pytest.mark.root
def test_files_of_an_overlay_have_the_name_that_their_user_knows(tmp_path: Path) -> None:
    need("mount", "unshare")
    open_engine("kernel")
    if "\toverlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", OVERLAY, tmp_path, shutil.which("sleep") or ""],
        capture_output=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode and b"wrong fs type" in done.stderr:
        pytest.skip("overlayfs cannot be mounted here")
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["kernel"] == found["procfs"]
    assert f"{tmp_path}/merged/program" in {name for *_, name in found["kernel"]}


@pytest.mark.root
def test_more_mappings_than_a_message_of_the_kernel_holds() -> None:
    def setup() -> int:
        # Every other page may be written, so that they do not merge.
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        size = 4000 * mmap.PAGESIZE
        start: int = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE | 0x20, -1, 0)
        for at in range(start, start + size, 2 * mmap.PAGESIZE):
            libc.mprotect(ctypes.c_void_p(at), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
        return start

    with child(setup) as many:
        kernel, procfs = both(many.pid, Show.BASE | Show.CMDLINE | Show.VMA)
    assert kernel.vmas is not None
    assert procfs.vmas is not None
    assert len(kernel.vmas) > 4000
    assert [vma[:2] for vma in kernel.vmas] == [vma[:2] for vma in procfs.vmas]
    assert kernel.cmdline_raw == procfs.cmdline_raw
    assert kernel.base == procfs.base


@pytest.mark.root
def test_arguments_in_a_file_are_not_read(tmp_path: Path) -> None:
    """Else whoever maps a file of a file system of his own there could hold up readers."""
    file = tmp_path / "arguments"
    file.write_bytes(b"not the arguments\0".ljust(1 << 21, b"\0"))

    def setup() -> None:
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start = int(stat[45]) & -mmap.PAGESIZE
        end = (int(stat[46]) + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        fd = os.open(file, os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fixed = mmap.MAP_PRIVATE | 0x10
        if libc.mmap(start, end - start, mmap.PROT_READ, fixed, fd, 0) != start:
            raise OSError(ctypes.get_errno(), "mmap")

    with child(setup) as hostile:
        if Path(f"/proc/{hostile.pid}/cmdline").read_bytes():
            missing("this kernel reads arguments from files")
        kernel, procfs = both(hostile.pid, Show.CMDLINE)
    assert procfs.cmdline_raw == b""
    assert kernel.cmdline_raw == b""
