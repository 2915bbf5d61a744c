"""The C programs of `bench/c`, compiled when they are needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ("BuildError", "Toolbox")

_SOURCES = Path(__file__).with_name("c")
VMLINUX = Path("/sys/kernel/btf/vmlinux")


class BuildError(Exception):
    """A C program cannot be built on this host; the message says why."""


class Toolbox:
    """Compiles programs into a directory, each once.

    >>> Toolbox(Path("/tmp/tools")).program("read_stat")
    PosixPath('/tmp/tools/read_stat')
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def program(self, name: str, *flags: str) -> Path:
        """The executable built from ``c/NAME.c``.  Raises BuildError."""
        path = self.directory / name
        if not path.exists():
            compiler = _which("gcc libc6-dev", "cc", "gcc", "clang")
            source = _SOURCES / f"{name}.c"
            _run(compiler, "-O2", "-Wall", "-o", str(path), str(source), *flags)
        return path

    def iterator(self) -> tuple[Path, Path]:
        """The C BPF iterator: its loader (libbpf) and its object file (clang).

        Raises BuildError if clang, bpftool, libbpf or the kernel's BTF is missing.
        """
        target = self.directory / "iterator.bpf.o"
        if not target.exists():
            clang = _which("clang", "clang", "clang-19", "clang-16", "clang-15", "clang-14")
            bpftool = _which("bpftool", "bpftool", "/usr/sbin/bpftool")
            if not VMLINUX.exists():
                raise BuildError(f"{VMLINUX} is missing: this kernel was built without BTF")
            types = _run(bpftool, "btf", "dump", "file", str(VMLINUX), "format", "c")
            (self.directory / "vmlinux.h").write_bytes(types)
            _run(
                clang, "-O2", "-g", "-Wall", "-Wno-missing-declarations", "-target", "bpf",
                "-I", str(self.directory), "-c", str(_SOURCES / "iterator.bpf.c"),
                "-o", str(target),
            )  # fmt: skip
        return self.program("iterator", "-lbpf"), target


def _which(package: str, *names: str) -> str:
    """The path of the first of these programs, which are of that Debian package."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"{' or '.join(names)} is not installed: apt-get install {package}")


def _run(*argv: str) -> bytes:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
        raise BuildError(f"{Path(argv[0]).name} failed: {done.stderr.decode()[:500].strip()}")
    return done.stdout
