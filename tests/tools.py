"""The programs and libraries that some tests use, and the Debian package of each.

The package itself needs none of them, so a test whose tool is not installed is skipped:
see `conftest.need`.  Run as a program, this prints the packages that are missing here:

    apt-get install $(python3 tests/tools.py)
"""

from __future__ import annotations

import ctypes
import os
import shutil

__all__ = ("PACKAGES", "find", "found", "hint", "missing_packages")

#: Package names by tool.  A name with a slash is a file, one with ".so." a shared library;
#: every other is a program.  Several packages are one tool's names in different releases.
PACKAGES = {
    "/usr/include/bpf/libbpf.h": ("libbpf-dev",),
    "/usr/include/linux/bpf.h": ("linux-libc-dev",),
    "/usr/include/stdio.h": ("libc6-dev",),
    "bash": ("bash",),
    "bpftool": ("bpftool",),
    "busybox": ("busybox-static",),
    "clang": ("clang",),
    "cpio": ("cpio",),
    "fusermount3": ("fuse3",),
    "g++": ("g++",),
    "gcc": ("gcc",),
    "locale": ("libc-bin",),
    "libfuse.so.2": ("libfuse2", "libfuse2t64"),
    "libfuse3.so": ("libfuse3-3", "libfuse3-4"),
    "mount": ("mount",),
    "ps": ("procps",),
    "qemu-system-x86_64": ("qemu-system-x86",),
    "setpriv": ("util-linux",),
    "strace": ("strace",),
    "systemd-analyze": ("systemd",),
    "top": ("procps",),
    "unshare": ("util-linux",),
}
#: File names of a library that has had more than one.
_SONAMES = {"libfuse3.so": ("libfuse3.so.3", "libfuse3.so.4")}
#: Searched besides PATH, which often has no sbin.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(tool: str) -> str | None:
    """The path of a program, or None."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    return shutil.which(tool, path=path)


def found(tool: str) -> bool:
    """Whether a program, library or file is installed."""
    if tool.startswith("/"):
        return os.path.exists(tool)
    if ".so" not in tool:
        return find(tool) is not None
    for name in _SONAMES.get(tool, (tool,)):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def hint(tool: str) -> str:
    """What to say of a tool that is not installed."""
    return f"{tool} is not installed (Debian package {' or '.join(PACKAGES[tool])})"


def missing_packages() -> list[str]:
    """A package for each tool that is not installed: the one that Debian 12 has."""
    return sorted({packages[0] for tool, packages in PACKAGES.items() if not found(tool)})


if __name__ == "__main__":
    print(*missing_packages())
