"""Debian's kernels, fetched with a private apt and unpacked without being installed."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from .errors import HarnessError

__all__ = ("KERNELS", "KEYRING", "MIRROR", "MODULE", "Kernel", "cached", "fetch")

#: The series that are tested, oldest first.
KERNELS = ("6.1", "6.12")

MIRROR = os.environ.get("TASKDIAG_DEBIAN_MIRROR", "http://deb.debian.org")

#: 6.1 is bookworm's own kernel; 6.12 comes from bookworm-backports and bookworm-security.
SOURCES = """\
Types: deb
URIs: {mirror}/debian
Suites: bookworm bookworm-backports
Components: main
Signed-By: {keyring}

Types: deb
URIs: {mirror}/debian-security
Suites: bookworm-security
Components: main
Signed-By: {keyring}
"""

#: Debian's kernels have overlayfs as a module.
MODULE = "overlay.ko"

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Kernel:
    """A kernel image in the cache, with its series and release."""

    def __init__(self, series: str, release: str, image: Path) -> None:
        self.series = series
        self.release = release
        self.image = image


def fetch(series: Iterable[str], cache: Path, *, refresh: bool = False) -> list[Kernel]:
    """The newest cloud kernel of each series, from the cache if it is there.

    >>> [kernel.release for kernel in fetch(["6.1"], Path(".cache/kernels"))]
    ['6.1.0-50-cloud-amd64']

    ``refresh`` asks the mirror again for what is in the cache.  Raises HarnessError
    when the mirror cannot be reached or has no such kernel.
    """
    wanted = list(series)
    apt = None
    found = []
    for name in wanted:
        kernel = None if refresh else cached(name, cache)
        if kernel is None:
            apt = apt or _Apt(cache / "apt")
            kernel = _download(apt, name, cache)
        found.append(kernel)
    return found


def cached(series: str, cache: Path) -> Kernel | None:
    """The kernel of a series in the cache, or None."""
    images = sorted((cache / series).glob("vmlinuz-*"))
    if not images:
        return None
    return Kernel(series, images[-1].name.removeprefix("vmlinuz-"), images[-1])


def _download(apt: _Apt, series: str, cache: Path) -> Kernel:
    package = apt.newest(series)
    size = apt.size(package)
    print(f"kernels: fetching {package}, {size / 1e6:.0f} MB", flush=True)
    archive = apt.download(package)
    folder = cache / series
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    image = _unpack(archive, folder)
    archive.unlink()
    return Kernel(series, image.name.removeprefix("vmlinuz-"), image)


def _unpack(package: Path, folder: Path) -> Path:
    """Extract /boot/vmlinuz-* from a .deb, and the only module that tests need, overlayfs."""
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", os.fspath(package)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    image = None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if name in (MODULE, f"{MODULE}.xz"):
                    module = tar.extractfile(member)
                    assert module is not None
                    content = module.read()
                    packed = name.endswith(".xz")
                    (folder / MODULE).write_bytes(lzma.decompress(content) if packed else content)
                if not (member.isfile() and name.startswith("vmlinuz-")):
                    continue
                source = tar.extractfile(member)
                assert source is not None
                image = folder / name
                # Rename it when it is complete, so that no partial file is cached.
                partial = folder / f".{name}"
                partial.write_bytes(source.read())
                partial.rename(image)
    finally:
        process.stdout.close()
        status = process.wait()
    if image is None or status:
        raise HarnessError(f"{package.name} holds no vmlinuz")
    return image


class _Apt:
    """apt with its own sources, lists and cache; those of this host are not changed."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        sources = self.root / "debian.sources"
        sources.write_text(SOURCES.format(mirror=MIRROR, keyring=KEYRING))
        status = self.root / "status"
        status.touch()
        self.options = [
            option
            for setting in (
                f"Dir::Etc::SourceList={sources}",
                "Dir::Etc::SourceParts=/dev/null",
                "Dir::Etc::PreferencesParts=/dev/null",
                f"Dir::State::Lists={self.root / 'lists'}",
                f"Dir::State::Status={status}",
                f"Dir::Cache={self.root / 'cache'}",
                "APT::Architecture=amd64",
                "APT::Sandbox::User=",
                "Acquire::Languages=none",
                "Acquire::Retries=3",
            )
            for option in ("-o", setting)
        ]
        # Ignore errors about suites that no longer exist: only missing packages matter.
        self.complaint = self._run("apt-get", "update").stderr.strip()

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *self.options, *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )

    def newest(self, series: str) -> str:
        pattern = re.compile(rf"linux-image-{re.escape(series)}\.\d[^ ]*-cloud-amd64")
        names = self._run("apt-cache", "pkgnames", f"linux-image-{series}.").stdout.split()
        matches = [name for name in names if pattern.fullmatch(name)]
        if not matches:
            raise HarnessError(
                f"no cloud kernel {series} at {MIRROR}" + self.complaint.replace("\n", "; ")
            )
        return max(matches, key=_natural)

    def size(self, package: str) -> int:
        """The bytes to be fetched for a package, 0 if that is not known."""
        said = self._run("apt-cache", "show", "--no-all-versions", package).stdout
        found = re.search(r"^Size: ([0-9]+)$", said, re.MULTILINE)
        return int(found[1]) if found else 0

    def download(self, package: str) -> Path:
        for old in self.root.glob("*.deb"):
            old.unlink()
        result = self._run("apt-get", "download", package)
        files = list(self.root.glob("*.deb"))
        if result.returncode or not files:
            raise HarnessError(f"cannot download {package}: {result.stderr.strip()}")
        return files[0]


def _natural(name: str) -> list[int]:
    """A sort key that puts 6.12.100 after 6.12.95."""
    return [int(number) for number in re.findall(r"\d+", name)]
