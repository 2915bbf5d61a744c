"""``python -m kernels``: the tests on Debian's kernels under qemu, and a report for each."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import json
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from . import archive, packages, requirements
from .errors import HarnessError
from .machine import MEMORY, Machine

ROOT = Path(__file__).resolve().parent.parent

#: The tests that depend on the kernel.
TESTS = (
    "tests/test_engines.py",
    "tests/test_environments.py",
    "tests/test_kernels.py",
    "tests/test_kernel_engine.py",
    "tests/test_names.py",
    "tests/test_sched.py",
    "tests/test_stacked.py",
    "tests/test_vma.py",
)


def main(arguments: list[str] | None = None) -> int:
    """Fetch, pack, boot and report.  Return 0 if all tests passed on every kernel, else 1.

    Bad usage exits with status 2.
    """
    options = _parser().parse_args(arguments)
    # timeout(1) and CI send SIGTERM: end as after Ctrl-C, so that the machines are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _say_what_is_needed(options)
        if options.needs:
            return 0
        machines = _run(options)
    except HarnessError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for machine in machines:
        print(machine.report())
        if options.slowest:
            print(machine.slowest(options.slowest))
    if options.json:
        reports = [machine.as_json() for machine in machines]
        options.json.write_text(json.dumps(reports, indent=1) + "\n")
    return 0 if all(machine.good for machine in machines) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels",
        description="Run the tests on other kernels, in virtual machines in software.",
        epilog="What follows -- is passed to pytest, as in: python -m kernels -- -k threads",
    )
    parser.add_argument("tests", nargs="*", help=f"test files (without any: {' '.join(TESTS)})")
    parser.add_argument(
        *("-k", "--kernel"),
        action="append",
        choices=packages.KERNELS,
        help="only this series; may be repeated",
    )
    parser.add_argument(
        "--needs",
        action="store_true",
        help="only say what is needed of this host, and what would be fetched; 1 if it lacks any",
    )
    parser.add_argument("--refresh", action="store_true", help="ask for newer packages")
    parser.add_argument("--limit", type=float, default=840, help="seconds in all (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--slowest", type=int, metavar="N", help="name the N slowest tests")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".cache/kernels", help=argparse.SUPPRESS
    )
    return parser


def _say_what_is_needed(options: argparse.Namespace) -> None:
    """Print what is needed, before anything is fetched.

    Raises HarnessError if this host lacks a program.
    """
    series, cache = options.kernel or packages.KERNELS, options.cache
    if options.needs or requirements.to_fetch(series, cache, refresh=options.refresh):
        for line in requirements.describe(series, cache, MEMORY, refresh=options.refresh):
            print(f"kernels: {line}", flush=True)
    requirements.check(series, cache, refresh=options.refresh)


def _run(options: argparse.Namespace) -> list[Machine]:
    begun = time.monotonic()
    options.cache.mkdir(parents=True, exist_ok=True)
    lock = (options.cache / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HarnessError("another run is using this checkout's machines") from None
    with lock:
        return _boot(options, begun)


def _boot(options: argparse.Namespace, begun: float) -> list[Machine]:
    tests, extra = _split(options.tests)
    kernels = packages.fetch(
        options.kernel or packages.KERNELS, options.cache, refresh=options.refresh
    )
    initramfs = _initramfs(options.cache, kernels, [*tests, *extra])
    machines: list[Machine] = []
    try:
        for kernel in kernels:
            left = options.limit - (time.monotonic() - begun)
            machines.append(Machine(kernel, initramfs, options.cache, left))
        _watch(machines)
    finally:
        for machine in machines:
            machine.kill()
    return machines


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate test files, which must exist, from options of pytest."""
    tests = [name for name in arguments if not name.startswith("-") and ".py" in name]
    extra = [name for name in arguments if name not in tests]
    for name in tests:
        if not (ROOT / name.partition("::")[0]).is_file():
            raise HarnessError(f"no test file {name}")
    return tests or [name for name in TESTS if (ROOT / name).is_file()], extra


def _initramfs(cache: Path, kernels: list[packages.Kernel], pytest_arguments: list[str]) -> Path:
    for folder in ("src", "kernels"):
        # Compile here, because the guest is slow.
        compileall.compile_dir(ROOT / folder, quiet=2)
    base = archive.base(cache)
    path = cache / "initramfs.cpio"
    with path.open("wb") as file, base.open("rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)
        modules = {kernel.release: kernel.image.parent / packages.MODULE for kernel in kernels}
        archive.checkout(ROOT, file, _command(pytest_arguments), modules)
    return path


def _command(pytest_arguments: list[str]) -> str:
    """The commands that /init runs after setting up the machine: the tests, then power off."""
    pytest = [
        *(sys.executable, "-m", "pytest", "-p", "kernels.guest", "-p", "no:cacheprovider"),
        *("-o", "faulthandler_timeout=120", "--color=no", *pytest_arguments),
    ]
    return f"""\
cd {shlex.quote(str(ROOT))}
export PYTHONPATH={shlex.quote(f"{ROOT / 'src'}:{ROOT}")}
export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH
export HOME=/root LANG=C.UTF-8 TERM=dumb TASKDIAG_RESULTS=/dev/ttyS1 TASKDIAG_REQUIRE_KERNEL=1
# Hypothesis then sets no deadlines, and tries the same examples every time.
export CI=true
[ -e "{archive.MODULES}/$(uname -r)" ] && insmod "{archive.MODULES}/$(uname -r)"
setsid {shlex.join(pytest)} </dev/null >/dev/console 2>&1
poweroff -f
"""


def _watch(machines: list[Machine]) -> None:
    """Wait for the machines, and show their progress if standard error is a terminal."""
    working = list(machines)
    shown = ""
    while working:
        time.sleep(0.2)
        working = [machine for machine in working if machine.poll()]
        line = "  ".join(
            f"{machine.kernel.series}: {len(machine.results)}/{machine.collected}"
            for machine in machines
        )
        if sys.stderr.isatty() and line != shown:
            shown = line
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
