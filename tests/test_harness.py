"""The tool that runs the tests on other kernels: what it packs, and what it reports."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import need

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))

from kernels import __main__ as command  # noqa: E402
from kernels import requirements  # noqa: E402
from kernels.archive import Archive  # noqa: E402
from kernels.errors import HarnessError  # noqa: E402
from kernels.machine import Machine  # noqa: E402
from kernels.packages import MIRROR, Kernel, _natural, fetch  # noqa: E402


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """The tool catches SIGTERM; the tests' own process should not go on doing so."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose qemu is a program that ends at once: the records are written by hand."""
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kernel = Kernel("6.1", "6.1.0-50-cloud-amd64", tmp_path / "vmlinuz")
    return Machine(kernel, tmp_path / "initramfs", tmp_path, 60)


def run(machine: Machine, *records: dict[str, object]) -> str:
    """The report after those records have come over the wire."""
    machine.records.write_text("".join(json.dumps(record) + "\n" for record in records))
    while machine.poll():
        pass
    return machine.report()


def result(test: str, outcome: str, reason: str = "") -> dict[str, object]:
    return {"event": "result", "test": test, "outcome": outcome, "seconds": 1, "reason": reason}


END: dict[str, object] = {"event": "end", "status": 0}


def test_a_good_run(machine: Machine) -> None:
    report = run(machine, {"event": "boot"}, result("a", "passed"), END)
    assert machine.good
    assert report.startswith("6.1.0-50-cloud-amd64: 1 passed, 0 failed, 0 skipped in ")


def test_skips_are_reported_with_their_reason(machine: Machine) -> None:
    skipped = [result("b", "skipped", "no gcc"), result("c", "skipped", "no gcc")]
    report = run(machine, result("a", "passed"), *skipped, END)
    assert machine.good
    assert "skipped, no gcc:\n    b\n    c" in report


def test_failures_are_reported_and_cannot_write_on_the_terminal(machine: Machine) -> None:
    failed = result("b", "failed", "assert 1 == 2\n\x1b[31mred\x07")
    report = run(machine, result("a", "passed"), failed, {"event": "end", "status": 1})
    assert not machine.good
    assert "FAILED b\n    assert 1 == 2\n    red?" in report


def test_a_failure_while_taking_down_overrules_the_pass(machine: Machine) -> None:
    run(machine, result("a", "passed"), result("a", "failed"), {"event": "end", "status": 1})
    assert not machine.good
    assert machine.count("passed") == 0


def test_a_kernel_that_dies_is_a_failure_that_names_the_test(machine: Machine) -> None:
    machine.console.write_text("[ 9.0] Kernel panic - not syncing\n")
    report = run(machine, result("a", "passed"), {"event": "start", "test": "b"})
    assert not machine.good
    assert "the machine ended before the tests did during b" in report
    assert "console: [ 9.0] Kernel panic" in report


def test_no_test_at_all_is_a_failure(machine: Machine) -> None:
    run(machine, result("a", "skipped", "nothing works"), END)
    assert not machine.good
    assert machine.trouble == "no test has passed"


def test_a_machine_that_hangs_is_ended(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    slow = Machine(machine.kernel, tmp_path / "initramfs", tmp_path, limit=0.0)
    assert not slow.poll()
    assert slow.trouble == "not finished within 0 s"
    assert slow._process.returncode is not None
    machine.kill()


def test_a_missing_qemu_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(HarnessError, match="qemu-system-x86_64 is missing"):
        Machine(Kernel("6.1", "6.1", tmp_path), tmp_path, tmp_path, 60)


def test_all_that_is_missing_is_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", os.fspath(tmp_path / "bin"))
    monkeypatch.setattr(requirements, "KEYRING", tmp_path / "no keyring")
    assert command.main(["--cache", os.fspath(cache), "-k", "6.12"]) == 1
    said = capsys.readouterr()
    assert said.err == (
        "kernels: qemu-system-x86_64, busybox, apt-get, dpkg-deb and "
        f"{tmp_path}/no keyring are missing; on Debian: apt-get install apt "
        "busybox-static debian-archive-keyring dpkg qemu-system-x86\n"
    )
    # How much, and from where, was said before.
    assert f"will fetch Debian's cloud kernel 6.12 from {MIRROR} into " in said.out
    assert ", about 45 MB " in said.out
    assert not cache.exists()


def test_a_kernel_in_the_cache_needs_no_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1" / "vmlinuz-6.1.0-50-cloud-amd64").write_bytes(b"")
    for name in ("qemu-system-x86_64", "busybox"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert command.main(["--needs", "--cache", os.fspath(tmp_path), "-k", "6.1"]) == 0
    assert "will fetch nothing" in capsys.readouterr().out
    (tmp_path / "busybox").unlink()
    assert command.main(["--needs", "--cache", os.fspath(tmp_path), "-k", "6.1"]) == 1
    assert capsys.readouterr().err == (
        "kernels: busybox is missing; on Debian: apt-get install busybox-static\n"
    )


@pytest.fixture
def has_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host has all that is needed, whether it has or not."""
    monkeypatch.setattr(requirements, "check", lambda *_, **__: None)


@pytest.mark.usefixtures("has_tools")
def test_an_unknown_test_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--cache", os.fspath(tmp_path), "tests/test_nothing.py"]) == 1
    assert capsys.readouterr().err == "kernels: no test file tests/test_nothing.py\n"


@pytest.mark.usefixtures("has_tools")
def test_two_runs_do_not_share_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.main(["--cache", os.fspath(tmp_path)]) == 1
    said = "kernels: another run is using this checkout's machines\n"
    assert capsys.readouterr().err == said


def test_a_cached_kernel_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "6.1").mkdir()
    image = tmp_path / "6.1" / "vmlinuz-6.1.0-50-cloud-amd64"
    image.write_bytes(b"")
    # What a fetch that was cut short leaves behind does not count.
    (tmp_path / "6.1" / ".vmlinuz-6.1.0-99-cloud-amd64").write_bytes(b"")
    (kernel,) = fetch(["6.1"], tmp_path)
    assert (kernel.release, kernel.image) == ("6.1.0-50-cloud-amd64", image)


def test_the_newest_kernel_is_the_one_with_the_greatest_numbers() -> None:
    names = [f"linux-image-6.12.{n}+deb12-cloud-amd64" for n in (95, 100, 9)]
    assert max(names, key=_natural) == names[1]


def test_cpio_reads_what_we_pack(tmp_path: Path) -> None:
    need("cpio")
    source = tmp_path / "source"
    source.mkdir()
    (source / "program").write_bytes(b"#!/bin/sh\n")
    (source / "program").chmod(0o700)
    (source / "link").symlink_to("program")
    (tmp_path / "way").symlink_to("source")
    file = io.BytesIO()
    archive = Archive(file)
    archive.directory("/tmp", 0o1777)
    archive.copy(tmp_path / "way" / "link")
    archive.file("/etc/odd", b"12345")
    archive.close()
    assert len(file.getvalue()) % 512 == 0

    into = tmp_path / "into"
    into.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories", "--no-absolute-filenames"],
        input=file.getvalue(),
        cwd=into,
        check=True,
        capture_output=True,
    )
    assert (into / "etc/odd").read_bytes() == b"12345"
    inside = into / tmp_path.relative_to("/")
    assert os.readlink(inside / "way") == "source"
    assert os.readlink(inside / "source/link") == "program"
    program = inside / "source/program"
    assert program.read_bytes() == b"#!/bin/sh\n"
    # Every user of the guest may run it, whoever owned it here.
    assert program.stat().st_mode & 0o777 == 0o755
    assert inside.stat().st_mode & 0o777 == 0o755
