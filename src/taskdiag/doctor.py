"""What this host and this user can do, and what to change to get more.

    >>> for finding in examine():
    ...     print(finding.status, finding.check, finding.text)
    ok kernel Linux 6.18.44 on x86_64
    ok btf /sys/kernel/btf/vmlinux, 5.5 MB
    ...
    ok engine auto is kernel

Everything is tried rather than concluded where it can be: programs are loaded, and
engines asked about this very process.
"""

from __future__ import annotations

import errno
import os

from . import capability
from .abi import Dump, Show
from .capability import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE
from .errors import EngineUnavailable, TaskdiagError
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kernel.facts import Facts

__all__ = ("Finding", "engine_of", "examine")

_PROC = "/proc"
_SECURITY = "/sys/kernel/security"
_SYSCTL = "/proc/sys"
# include/linux/proc_ns.h
_INIT_PID_NS, _INIT_USER_NS = 0xEFFFFFFC, 0xEFFFFFFD
# include/linux/errno.h; what the kernel says of kernel functions without a JIT.
_ENOTSUPP = 524

_NEEDED = ((CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON"))
_GET_CAPS = (
    "run as root, or with AmbientCapabilities=CAP_BPF CAP_PERFMON (systemd), or use a service"
)


class Finding:
    """One line of what was found.

    ``status`` is "ok", "limited" (works, but not fully), "missing" (does not work) or
    "info"; ``remedy`` is what to change to get more, "" if nothing.
    """

    __slots__ = ("check", "remedy", "status", "text")

    def __init__(self, status: str, check: str, text: str, remedy: str = "") -> None:
        self.status = status
        self.check = check
        self.text = _one_line(text)
        self.remedy = remedy

    def __repr__(self) -> str:
        return f"Finding({self.status!r}, {self.check!r}, {self.text!r}, {self.remedy!r})"


def examine() -> Iterator[Finding]:
    """Everything that can be found, one after the other.  Raises nothing."""
    yield kernel()
    facts, found = btf()
    yield found
    yield from namespaces()
    yield from capabilities()
    yield from seccomp()
    yield from security()
    yield from sysctls()
    loads = program(facts)
    yield loads
    if facts is not None:
        works = loads.status == "ok"
        yield from groups(facts, works)
        if works:
            yield from first_process(facts)
    yield from proc()
    yield from engines()


def engine_of(findings: list[Finding]) -> str | None:
    """The engine that ``auto`` chooses according to the findings, None if none works."""
    return next(
        (found.check.partition(" ")[2] for found in findings
         if found.check.startswith("engine ") and found.status == "ok"),
        None,
    )  # fmt: skip


# --- The host ----------------------------------------------------------------------


def kernel() -> Finding:
    """Which kernel is running."""
    name = os.uname()
    return Finding("info", "kernel", f"{name.sysname} {name.release} on {name.machine}")


def btf() -> tuple[Facts | None, Finding]:
    """Whether the kernel says how its structures are laid out, and what it says."""
    from .kernel.facts import VMLINUX, Facts

    try:
        facts = Facts.live()
        facts.type_id("func", "bpf_iter_task")
    except TaskdiagError as error:
        remedy = "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys"
        return None, Finding("missing", "btf", str(error), remedy)
    return facts, Finding("ok", "btf", f"{VMLINUX}, {os.stat(VMLINUX).st_size / 1e6:.1f} MB")


def security() -> Iterator[Finding]:
    """Lockdown and security modules."""
    text = _read(f"{_SECURITY}/lockdown")
    if text is None:
        yield Finding("info", "lockdown", "not there, or securityfs is not mounted")
    elif "[confidentiality]" in text:
        yield Finding(
            "limited",
            "lockdown",
            "confidentiality: programs may not read kernel memory by address",
            "boot with lockdown=integrity or none",
        )
    else:
        mode = text.partition("[")[2].partition("]")[0] or text
        yield Finding("ok", "lockdown", f"{mode}, which allows what programs need")
    text = _read(f"{_SECURITY}/lsm")
    if text is not None:
        strict = [name for name in text.split(",") if name in ("selinux", "apparmor", "smack")]
        more = f"; {', '.join(strict)} may refuse more than capabilities do" if strict else ""
        yield Finding("info", "lsm", text + more)


def sysctls() -> Iterator[Finding]:
    """Settings that matter to BPF."""
    value = _read(f"{_SYSCTL}/kernel/unprivileged_bpf_disabled")
    if value is not None:
        name = f"kernel.unprivileged_bpf_disabled = {value}"
        yield Finding("info", "sysctl", f"{name}; iterators need the capabilities anyway")
    value = _read(f"{_SYSCTL}/net/core/bpf_jit_enable")
    if value == "0":
        yield Finding(
            "limited",
            "sysctl",
            "net.core.bpf_jit_enable = 0: no JIT, so programs cannot call kernel functions",
            "sysctl net.core.bpf_jit_enable=1",
        )
    elif value is not None:
        yield Finding("ok", "sysctl", f"net.core.bpf_jit_enable = {value}")


def proc() -> Iterator[Finding]:
    """Whether /proc is there, whose tasks it shows, and to whom."""
    try:
        shown = os.readlink(f"{_PROC}/self")
    except OSError:
        text = "/proc is not mounted: groups that only procfs serves cannot be had"
        yield Finding("missing", "proc", text, "mount -t proc proc /proc")
        return
    if shown != str(os.getpid()):
        text = "/proc is that of another pid namespace"
        yield Finding("limited", "proc", text, "mount -t proc proc /proc")
        return
    options = _proc_options()
    hides = next((word for word in options if word.startswith("hidepid=")), "hidepid=0")
    level = hides.partition("=")[2]
    if level in ("0", "off"):
        yield Finding("ok", "proc", "/proc is mounted and shows this pid namespace")
    elif _has(CAP_SYS_PTRACE):
        yield Finding("ok", "proc", f"/proc is mounted with {hides}; CAP_SYS_PTRACE sees all")
    else:
        text = f"/proc is mounted with {hides}: procfs shows this user's tasks only"
        yield Finding("info", "proc", text)


def _proc_options() -> list[str]:
    """The options of the file system that is mounted on /proc (proc(5), mountinfo)."""
    found: list[str] = []
    for line in (_read(f"{_PROC}/self/mountinfo") or "").splitlines():
        mount, _, source = line.partition(" - ")
        words, kind = mount.split(" "), source.split(" ")
        if len(words) > 5 and words[4] == _PROC and kind[0] == "proc":
            found = kind[-1].split(",")
    return found


# --- The user ------------------------------------------------------------------------


def namespaces() -> Iterator[Finding]:
    """Which tasks the numbers are about, and where capabilities count."""
    pids, users = _namespace("pid"), _namespace("user")
    if pids is None:
        yield Finding("info", "namespaces", "cannot be told without /proc")
        return
    if pids != _INIT_PID_NS:
        yield Finding("info", "pid namespace", f"pid:[{pids}]: its tasks, under its numbers")
    if users != _INIT_USER_NS:
        yield Finding(
            "limited",
            "user namespace",
            f"user:[{users}]: capabilities in it do not count for BPF",
            "run outside of the user namespace, or let a service there answer",
        )


def capabilities() -> Iterator[Finding]:
    """Of what the engines need: had or missing."""
    caps = capability.effective()
    uid = os.geteuid()
    if caps is None:
        yield Finding("info", "capabilities", f"uid {uid}; cannot be told without /proc")
        return
    foreign = _namespace("user") not in (None, _INIT_USER_NS)
    for bit, name in _NEEDED:
        if foreign:
            held = "had" if caps & 1 << bit else "missing"
            yield Finding("info", "capability", f"{name}: {held}, in this user namespace only")
        elif caps & 1 << bit:
            yield Finding("ok", "capability", f"{name}: had")
        elif caps & 1 << CAP_SYS_ADMIN:
            yield Finding("ok", "capability", f"{name}: missing, but CAP_SYS_ADMIN includes it")
        else:
            text = f"{name}: missing (uid {uid}); the kernel engine needs it"
            yield Finding("missing", "capability", text, _GET_CAPS)
    if caps & 1 << CAP_SYS_PTRACE:
        yield Finding("ok", "capability", "CAP_SYS_PTRACE: had, all tasks can be seen")
    else:
        text = "CAP_SYS_PTRACE: missing; only tasks that this user may trace can be seen"
        yield Finding("info", "capability", text, "run as root to see every task")


def seccomp() -> Iterator[Finding]:
    """Whether a filter stands between this process and its system calls."""
    status = _read(f"{_PROC}/thread-self/status") or ""
    if "\nSeccomp:\t2" in status:
        text = "a filter is active, as in most containers; it may refuse bpf(2)"
        yield Finding("info", "seccomp", text)


# --- What works ------------------------------------------------------------------------


def program(facts: Facts | None) -> Finding:
    """Whether a program can really be loaded, attached and read."""
    if facts is None:
        return Finding("missing", "programs", "not tried without BTF")
    from .kernel import bpf
    from .kernel.asm import R0, Assembler

    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    held: list[int] = []
    try:
        held.append(bpf.load_program(a.assemble(), facts.type_id("func", "bpf_iter_task"), {}))
        held.append(bpf.create_link(held[-1], os.getpid()))
        held.append(bpf.create_iterator(held[-1]))
        os.read(held[-1], 4096)
    except bpf.BpfError as error:
        what = ("load a program", "attach one", "make an iterator")[len(held)]
        return Finding("missing", "programs", *why_not(what, error))
    finally:
        for fd in held:
            os.close(fd)
    return Finding("ok", "programs", "the kernel loads, attaches and runs them")


def why_not(what: str, error: OSError) -> tuple[str, str]:
    """What an error of bpf(2) means here, and what to do about it."""
    number = error.errno or 0
    said = f"the kernel refused to {what}: {errno.errorcode.get(number, number)}"
    if number in (errno.EPERM, errno.EACCES):
        if _namespace("user") not in (None, _INIT_USER_NS):
            return f"{said}, as in every user namespace but the first", "run outside of it"
        if not capability.may_load_bpf():
            return f"{said}, for want of CAP_BPF and CAP_PERFMON", _GET_CAPS
        return (
            f"{said}, though the capabilities seem to be there: seccomp or a security module",
            "allow bpf(2) in the container's seccomp profile and the module's policy",
        )
    if number == errno.ENOSYS:
        return f"{said}: no CONFIG_BPF_SYSCALL, or seccomp hides it", "allow bpf(2)"
    if number == _ENOTSUPP:
        return f"{said}: kernel functions need the JIT", "sysctl net.core.bpf_jit_enable=1"
    if number in (errno.EINVAL, errno.E2BIG):
        return f"{said}: it does not know task iterators", "boot Linux 6.1 or newer"
    return f"{said} ({error.strerror})", ""


def groups(facts: Facts, works: bool) -> Iterator[Finding]:
    """Who serves each group: tried, if ``works`` says that programs can be loaded."""
    from .kernel.compile import missing_features

    lacking = missing_features(facts)
    for show in Show:
        check = f"group {str(show.name).lower()}"
        why = lacking[show]
        if show == Show.VMA_STAT:
            yield Finding("info", check, f"procfs on every kernel, for want of {why}")
        elif why:
            yield Finding("limited", check, f"procfs, for want of {why}", "boot a newer kernel")
        elif not works:
            yield Finding("limited", check, "bpf, once programs can be loaded; procfs until then")
        else:
            yield _try_group(facts, show, check)


def _try_group(facts: Facts, show: Show, check: str) -> Finding:
    from .kernel import KernelEngine

    engine = KernelEngine(insist=True, facts=facts)
    try:
        for _ in engine.stream(Request(show, Dump.ONE, os.getpid())):
            pass
    except TaskdiagError as error:
        return Finding("limited", check, f"not by bpf: {error}")
    finally:
        engine.close()
    return Finding("ok", check, "bpf")


def first_process(facts: Facts) -> Iterator[Finding]:
    """Whether iterators show process 1, which some hardened kernels hide from them."""
    if not _has(CAP_SYS_PTRACE):
        return
    from .kernel import KernelEngine

    engine = KernelEngine(facts=facts)
    try:
        fd = engine.open(Request(Show.BASE, Dump.ONE, 1))
        if fd is None:
            return
        try:
            shown = os.read(fd, 1 << 16)
        finally:
            os.close(fd)
    except (TaskdiagError, OSError):
        return
    finally:
        engine.close()
    if shown:
        yield Finding("ok", "process 1", "shown by iterators")
    else:
        yield Finding("info", "process 1", "hidden from iterators; taken from /proc instead")


def engines() -> Iterator[Finding]:
    """Which engines answer, in the order of choice: the first that does is ``auto``'s."""
    from .engine import ENGINES, choose

    first = True
    for name in ENGINES:
        try:
            for _ in choose(name).stream(Request(Show.BASE, Dump.ONE, os.getpid())):
                pass
        except ImportError:
            yield Finding("missing", f"engine {name}", "this version does not have it")
        except (TaskdiagError, OSError) as error:
            spare = name == "service" and not first
            remedy = "start taskdiag serve as root" if name == "service" and first else ""
            status = "info" if spare else "missing"
            yield Finding(status, f"engine {name}", _sentence(error), remedy)
        else:
            text = "works, and is what auto chooses" if first else "works"
            yield Finding("ok", f"engine {name}", text)
            first = False


# --- Small things ------------------------------------------------------------------------


def _has(bit: int) -> bool:
    caps = capability.effective()
    return os.geteuid() == 0 if caps is None else bool(caps & 1 << bit)


def _namespace(kind: str) -> int | None:
    try:
        return os.stat(f"{_PROC}/self/ns/{kind}").st_ino
    except OSError:
        return None


def _read(path: str) -> str | None:
    try:
        with open(path, "rb", 0) as file:
            return file.read(1 << 16).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _sentence(error: BaseException) -> str:
    if isinstance(error, EngineUnavailable):
        return str(error).removesuffix(": see taskdiag doctor")
    return getattr(error, "strerror", None) or str(error)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Of a verifier's log the last line but its statistics says what was wrong.
    said = [line for line in lines if not line.startswith("processed ")]
    return lines[0] if len(said) < 2 else f"{lines[0]} {said[-1]}"
