"""The initramfs: a cpio archive with everything that the tests need, at the same paths as here.

The archive is in the "newc" format of the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.  It is written uncompressed,
since qemu copies it into the guest faster than the guest could unpack it.  It comes in
two parts, which the kernel unpacks one after the other: the base (interpreter,
libraries, programs), which is cached, and the checkout, which is packed again every time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from .errors import HarnessError

__all__ = ("MODULES", "Archive", "base", "checkout")

#: The directory of the modules in the guest; each has the release of its kernel as name.
MODULES = "/opt/modules"

#: Distributions that the tests import; their requirements are added.
DISTRIBUTIONS = ("taskdiag", "pytest", "hypothesis", "psutil", "pyroute2")

#: Programs that the tests run, if this host has them; busybox provides the others.
PROGRAMS = (
    *("sh", "ps", "setpriv", "unshare", "nsenter", "mount", "umount", "sleep", "cat", "env"),
    *("head", "true", "prlimit", "chrt", "nice", "newuidmap", "capsh", "bash", "tail"),
)

#: Parts of the standard library that no test imports; they would add megabytes to each boot.
NOT_NEEDED = frozenset(
    [
        *("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo"),
        *("ensurepip", "lib2to3", "pydoc_data", "_tkinter", "_sqlite3", "_dbm", "_gdbm"),
    ]
)

USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
tester:x:1000:1000:tester:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

GROUPS = """\
root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
tester:x:1000:
nogroup:x:65534:
"""

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /opt/busybox
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin:/opt/busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
chmod 1777 /tmp /var/tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ip link set lo up
hostname taskdiag
. /etc/guest
"""


class Archive:
    """A writer of cpio archives in the newc format.

    Parent directories are made as needed and are readable by everyone, because the tests run
    some programs as users who may not enter root's home.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._names: set[str] = set()

    def close(self) -> None:
        """Write the trailer; the archive's length is then a multiple of 512."""
        self._entry("TRAILER!!!", 0, b"", 0)
        self._file.write(bytes(-self._file.tell() % 512))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and its parents."""
        if self._new(path):
            self._entry(path, stat.S_IFDIR | mode, b"", 0)

    def file(self, path: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """Add a regular file, owned by root."""
        if self._new(path):
            self._entry(path, stat.S_IFREG | mode, content, mtime)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        if self._new(path):
            self._entry(path, stat.S_IFLNK | 0o777, os.fsencode(target), 0)

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a character device; the console must exist before anything is mounted."""
        if self._new(path):
            self._entry(path, stat.S_IFCHR | mode, b"", 0, (major, minor))

    def copy(self, path: Path) -> None:
        """Add a file of this host, and the symbolic links on its path."""
        parts = Path(os.path.normpath(path)).parts
        place = parts[0]
        for index, part in enumerate(parts[1:], 2):
            place = os.path.join(place, part)
            if os.path.islink(place):
                target = os.readlink(place)
                self.link(place, target)
                self.copy(Path(os.path.dirname(place), target, *parts[index:]))
                return
        info = os.stat(place)
        executable = 0o111 if info.st_mode & 0o111 else 0
        # Python compares the modification time to decide whether a .pyc is up to date.
        self.file(place, Path(place).read_bytes(), 0o644 | executable, int(info.st_mtime))

    def _new(self, path: str) -> bool:
        if path in self._names or path == "/":
            return False
        self._names.add(path)
        self.directory(os.path.dirname(path))
        return True

    def _entry(
        self, path: str, mode: int, content: bytes, mtime: int, device: tuple[int, int] = (0, 0)
    ) -> None:
        name = os.fsencode(path.lstrip("/")) + b"\0"
        fields = (
            *(len(self._names), mode, 0, 0, 1, mtime & 0xFFFFFFFF, len(content)),
            *(0, 0, *device, len(name), 0),
        )
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._file.write(head + bytes(-len(head) % 4))
        self._file.write(content + bytes(-len(content) % 4))


def base(cache: Path) -> Path:
    """The part that seldom changes: interpreter, libraries, packages, programs.

    It is cached under a digest of the names, sizes and times of its files.
    """
    files = sorted(set(_base_files()))
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in files:
        info = path.stat()
        digest.update(f"{path}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    cached = cache / f"base-{digest.hexdigest()[:16]}.cpio"
    if cached.exists():
        return cached
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("base-*.cpio"):
        old.unlink()
    partial = cached.with_suffix(".partial")
    with partial.open("wb") as file:
        archive = Archive(file)
        _skeleton(archive)
        for path in files:
            archive.copy(path)
        archive.close()
    partial.rename(cached)
    return cached


def checkout(
    root: Path, file: BinaryIO, command: str, modules: Mapping[str, Path] | None = None
) -> None:
    """The part that changes: the checkout at ``root``, and the commands for the guest.

    ``modules`` are modules by the release of their kernel; those that do not exist are left out.
    """
    archive = Archive(file)
    for release, module in (modules or {}).items():
        if module.exists():
            archive.file(f"{MODULES}/{release}", module.read_bytes())
    archive.file("/etc/guest", command.encode())
    for name in ("pyproject.toml", "Makefile", "README.md"):
        if (root / name).exists():
            archive.copy(root / name)
    for folder in ("src", "tests", "kernels", "docs", "examples"):
        for path in _tree(root / folder):
            archive.copy(path)
    archive.close()


def _skeleton(archive: Archive) -> None:
    for folder in ("/dev", "/proc", "/sys", "/run", "/root", "/opt/busybox", "/var", "/etc"):
        archive.directory(folder)
    archive.directory("/tmp", 0o1777)
    archive.directory("/var/tmp", 0o1777)
    archive.device("/dev/console", 0o600, 5, 1)
    archive.file("/init", INIT.encode(), 0o755)
    archive.file("/etc/passwd", USERS.encode())
    archive.file("/etc/group", GROUPS.encode())
    archive.file("/etc/hosts", b"127.0.0.1 localhost taskdiag\n")
    busybox = shutil.which("busybox")
    if busybox is None or _libraries([Path(busybox)]):
        raise HarnessError("a static busybox is missing: install busybox-static")
    for folder in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(folder):
            archive.link(folder, os.readlink(folder))
    archive.file(f"{os.path.realpath('/bin')}/busybox", Path(busybox).read_bytes(), 0o755)


def _base_files() -> Iterator[Path]:
    interpreter = Path(sys.executable)
    programs = [Path(path) for path in map(shutil.which, PROGRAMS) if path]
    modules = [*_standard_library(), *_distributions()]
    binaries = [interpreter, *programs, *(path for path in modules if ".so" in path.suffixes)]
    yield from (interpreter, *programs, *modules)
    yield from _libraries(binaries)
    # glibc loads this one at run time when a thread ends, so ldd does not list it.
    yield from _libraries_by_name("libgcc_s.so.1")
    for name in ("python", "python3"):
        alias = interpreter.with_name(name)
        if alias.exists():
            yield alias
    configuration = Path(sys.prefix, "pyvenv.cfg")
    if configuration.exists():
        yield configuration


def _standard_library() -> Iterator[Path]:
    for key in ("stdlib", "platstdlib"):
        folder = sysconfig.get_path(key, vars={"installed_base": sys.base_prefix})
        folder = folder.replace(sys.prefix, sys.base_prefix, 1)
        yield from _tree(Path(folder), NOT_NEEDED)


def _distributions() -> Iterator[Path]:
    pending, seen = list(DISTRIBUTIONS), set()
    while pending:
        name = pending.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            # Required only on other versions of Python, or optional.  If a test needs it, it
            # fails in the guest.
            continue
        for file in distribution.files or ():
            path = Path(os.path.normpath(str(distribution.locate_file(file))))
            if path.is_file() and _wanted(path):
                yield path
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                match = re.match(r"[\w.-]+", requirement)
                pending.extend([match.group()] if match else [])


def _tree(folder: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - skip)
        for name in sorted(files):
            path = Path(place, name)
            if name.partition(".")[0] not in skip and path.is_file() and _wanted(path):
                yield path


def _wanted(path: Path) -> bool:
    """Whether a file is needed: no static libraries, and no .pyc of other interpreters."""
    if path.suffix in (".a", ".o", ".h", ".exe") or path.match("_test*.so"):
        return False
    tag = sys.implementation.cache_tag
    # Either Python's own, or pytest's with rewritten assertions.
    return path.suffix != ".pyc" or f".{tag}.pyc" in path.name or f".{tag}-pytest" in path.name


def _libraries(binaries: Iterable[Path]) -> list[Path]:
    """The shared libraries that the binaries load, including the loader, according to ldd."""
    names = sorted({os.path.realpath(path) for path in binaries})
    result = subprocess.run(["ldd", *names], capture_output=True, text=True, check=False)
    found = set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", result.stdout, re.MULTILINE))
    return [Path(path) for path in sorted(found)]


def _libraries_by_name(name: str) -> Iterator[Path]:
    result = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False)
    for path in re.findall(rf"^\t{re.escape(name)} .*x86-64.* => (/\S+)$", result.stdout, re.M):
        yield Path(path)
