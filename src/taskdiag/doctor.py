"""What works on this host for this user, and how to get more.

    >>> for finding in examine():
    ...     print(finding.status, finding.check, finding.text)
    info kernel Linux ...
    ...
    ok engine procfs works...

Nothing is guessed that can be tried: programs are loaded, and engines are asked about this
process.
"""

from __future__ import annotations

import errno
import os

from . import capability
from .abi import Dump, Show
from .capability import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE
from .errors import EngineUnavailable, NoSuchProcess, RequestError, TaskdiagError, one_line
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
_GET_CAPS = "run as root or with these capabilities, or have root start taskdiag serve"


class Finding:
    """One line of what was found.

    ``status`` is "ok", "limited" (works, but not fully), "missing" (does not work) or
    "info".  ``remedy`` says what would help, "" if nothing has to.  ``answers`` is the name
    of the engine that will answer requests, in the finding about that engine; else None.
    """

    __slots__ = ("answers", "check", "remedy", "status", "text")

    def __init__(
        self, status: str, check: str, text: str, remedy: str = "", answers: str | None = None
    ) -> None:
        self.status = status
        self.check = check
        self.text = one_line(text)
        self.remedy = remedy
        self.answers = answers

    def __repr__(self) -> str:
        return f"Finding({self.status!r}, {self.check!r}, {self.text!r}, {self.remedy!r})"


def examine(engine: str | None = None) -> Iterator[Finding]:
    """Yield all findings.  Raises nothing.

    ``engine`` is what was given as ``--engine``; without it ``TASKDIAG_ENGINE`` counts.
    """
    # A user whom the service answers does not need what the kernel engine needs.
    served = _trial("service") is None
    yield kernel()
    facts, found = btf()
    yield found
    yield from namespaces(served)
    yield from capabilities(served)
    yield from seccomp()
    yield from security()
    yield from sysctls()
    loads = program(facts)
    if served and loads.status == "missing":
        loads = Finding("info", loads.check, f"{loads.text}; the service loads its own")
    yield loads
    if facts is not None:
        works = loads.status == "ok"
        yield from groups(facts, works, served)
        if works:
            yield from first_process(facts)
    yield from proc()
    yield from engines(engine)


def engine_of(findings: list[Finding]) -> str | None:
    """The engine that will answer according to the findings, None if none will."""
    return next((found.answers for found in findings if found.answers), None)


# --- The host ----------------------------------------------------------------------


def kernel() -> Finding:
    """Which kernel is running."""
    name = os.uname()
    return Finding("info", "kernel", f"{name.sysname} {name.release} on {name.machine}")


def btf() -> tuple[Facts | None, Finding]:
    """Whether the kernel describes its data structures (BTF), and the description."""
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
            "confidentiality: programs may not read kernel memory",
            "boot with lockdown=integrity or none",
        )
    else:
        mode = text.partition("[")[2].partition("]")[0] or text
        yield Finding("ok", "lockdown", f"{mode}: programs may read kernel memory")
    text = _read(f"{_SECURITY}/lsm")
    if text is not None:
        strict = [name for name in text.split(",") if name in ("selinux", "apparmor", "smack")]
        more = f"; {', '.join(strict)} may refuse what capabilities allow" if strict else ""
        yield Finding("info", "lsm", text + more)


def sysctls() -> Iterator[Finding]:
    """Settings that matter to BPF."""
    value = _read(f"{_SYSCTL}/kernel/unprivileged_bpf_disabled")
    if value is not None:
        name = f"kernel.unprivileged_bpf_disabled = {value}"
        yield Finding("info", "sysctl", f"{name}; iterators need capabilities in any case")
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
    """Whether /proc is mounted, and which tasks it shows."""
    try:
        shown = os.readlink(f"{_PROC}/self")
    except OSError:
        text = "/proc is not mounted: the procfs engine and groups that need it do not work"
        yield Finding("missing", "proc", text, "mount -t proc proc /proc")
        return
    if shown != str(os.getpid()):
        text = "/proc shows another pid namespace than that of this process"
        yield Finding("limited", "proc", text, "mount -t proc proc /proc")
        return
    options = _proc_options()
    hides = next((word for word in options if word.startswith("hidepid=")), "hidepid=0")
    level = hides.partition("=")[2]
    if level in ("0", "off"):
        yield Finding("ok", "proc", "/proc is mounted and shows this pid namespace")
    elif _has(CAP_SYS_PTRACE):
        yield Finding("ok", "proc", f"/proc is mounted with {hides}, but CAP_SYS_PTRACE sees all")
    else:
        text = f"/proc is mounted with {hides}: it shows only tasks of this user"
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


def namespaces(served: bool = False) -> Iterator[Finding]:
    """Namespaces other than the host's first ones."""
    pids, users = _namespace("pid"), _namespace("user")
    if pids is None:
        yield Finding("info", "namespaces", "unknown, because /proc is not mounted")
        return
    if pids != _INIT_PID_NS:
        text = f"pid:[{pids}]: only tasks in it are shown, with their pids in it"
        yield Finding("info", "pid namespace", text)
    if users != _INIT_USER_NS:
        text = f"user:[{users}]: capabilities in it do not count for BPF"
        remedy = "run outside of the user namespace, or mount the socket of the host's service"
        if served:
            yield Finding("info", "user namespace", f"{text}; the service answers instead")
        else:
            yield Finding("limited", "user namespace", text, remedy)


def capabilities(served: bool = False) -> Iterator[Finding]:
    """The capabilities that the kernel engine needs: present or missing.

    With ``served`` there is a service, so the user is not advised to get them.
    """
    caps = capability.effective()
    uid = os.geteuid()
    if caps is None:
        yield Finding("info", "capabilities", f"uid {uid}; unknown, because /proc is not mounted")
        return
    foreign = _namespace("user") not in (None, _INIT_USER_NS)
    for bit, name in _NEEDED:
        present = bool(caps & 1 << bit)
        if foreign:
            state = "present" if present else "missing"
            yield Finding("info", "capability", f"{name}: {state}, in this user namespace only")
        elif present:
            yield Finding("ok", "capability", f"{name}: present")
        elif caps & 1 << CAP_SYS_ADMIN:
            yield Finding("ok", "capability", f"{name}: missing, but CAP_SYS_ADMIN includes it")
        elif served:
            text = f"{name}: missing (uid {uid}); the service answers instead"
            yield Finding("info", "capability", text)
        else:
            text = f"{name}: missing (uid {uid}); the kernel engine needs it"
            yield Finding("missing", "capability", text, _GET_CAPS)
    if caps & 1 << CAP_SYS_PTRACE:
        yield Finding("ok", "capability", "CAP_SYS_PTRACE: present, so every task is shown")
    else:
        text = "CAP_SYS_PTRACE: missing; only tasks that this user may trace are shown"
        yield Finding("info", "capability", text, "run as root to see every task")


def seccomp() -> Iterator[Finding]:
    """Whether a seccomp filter is active."""
    status = _read(f"{_PROC}/thread-self/status") or ""
    if "\nSeccomp:\t2" in status:
        text = "a filter is active, as in most containers; it may refuse bpf(2)"
        yield Finding("info", "seccomp", text)


# --- What works ------------------------------------------------------------------------


def program(facts: Facts | None) -> Finding:
    """Whether a program can be loaded, attached and run."""
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
    """What an error of bpf(2) means, and what would help."""
    number = error.errno or 0
    said = f"the kernel refused to {what}: {errno.errorcode.get(number, number)}"
    if number in (errno.EPERM, errno.EACCES):
        if _namespace("user") not in (None, _INIT_USER_NS):
            text = f"{said}, as it does in every user namespace but the first"
            return text, "run outside of the user namespace"
        if not capability.may_load_bpf():
            return f"{said}: CAP_BPF and CAP_PERFMON are missing", _GET_CAPS
        return (
            f"{said} in spite of the capabilities: seccomp or a security module forbids it",
            "allow bpf(2) in the container's seccomp profile and the module's policy",
        )
    if number == errno.ENOSYS:
        text = f"{said}: it has no bpf(2), or seccomp forbids it"
        return text, "boot a kernel with CONFIG_BPF_SYSCALL=y, or allow bpf(2) in the profile"
    if number == _ENOTSUPP:
        return f"{said}: kernel functions need the JIT", "sysctl net.core.bpf_jit_enable=1"
    if number in (errno.EINVAL, errno.E2BIG):
        return f"{said}: it does not know task iterators", "boot Linux 6.1 or newer"
    return f"{said} ({error.strerror})", ""


def groups(facts: Facts, works: bool, served: bool = False) -> Iterator[Finding]:
    """Where each group comes from.

    ``works`` says that programs can be loaded; if they cannot, ``served`` says whether a
    service answers.
    """
    from .kernel.compile import missing_features

    lacking = missing_features(facts)
    for show in Show:
        check = f"group {str(show.name).lower()}"
        why = lacking[show]
        if show == Show.VMA_STAT:
            yield Finding("info", check, f"procfs on every kernel; missing: {why}")
        elif why:
            yield Finding("limited", check, f"procfs; missing: {why}", "boot a newer kernel")
        elif not works and served:
            yield Finding("ok", check, "bpf, through the service")
        elif not works:
            text = "procfs; bpf could serve it if programs could be loaded"
            yield Finding("limited", check, text)
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
    """Whether iterators show process 1, which the kernels of some hosts hide from them.

    If not, the kernel engine and the service get it in another way.
    """
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
        return
    text = "this host hides it from BPF iterators"
    left_out = [name for name in ("kernel", "service") if not _shows_first(name)]
    if left_out:
        text = f"{text}; {' and '.join(left_out)} cannot show it"
        yield Finding("limited", "process 1", text, "use --engine procfs where it matters")
    else:
        yield Finding("info", "process 1", f"{text}; the engines show it all the same")


def _shows_first(name: str) -> bool:
    """Whether an engine shows process 1; true of one that does not work at all."""
    return not isinstance(_trial(name, 1), NoSuchProcess)


def engines(asked: str | None = None) -> Iterator[Finding]:
    """Which engines work, best first, and which of them will answer.

    ``asked`` is what was given as ``--engine``; without it ``TASKDIAG_ENGINE`` counts.
    """
    from .engine import ENGINES, wanted

    try:
        chosen = wanted(asked)
    except RequestError as error:
        remedy = "unset TASKDIAG_ENGINE, or set it to the name of an engine"
        yield Finding("missing", "engine", str(error), remedy)
        chosen = ""
    by = "--engine" if asked else "TASKDIAG_ENGINE"
    found = False
    for name in ENGINES:
        check, problem = f"engine {name}", _trial(name)
        insisted = name == chosen
        if problem is None and (insisted or (chosen == "auto" and not found)):
            found = True
            why = f"{by} asks for" if insisted else "auto chooses"
            yield Finding("ok", check, f"works, and is what {why}", answers=name)
        elif problem is None:
            yield Finding("ok", check, "works")
        elif insisted:
            text = f"{by} asks for it, but it does not work: {_sentence(problem)}"
            remedy = _SERVE if name == "service" else f"let auto choose: without {by}"
            yield Finding("missing", check, text, remedy)
        elif name == "service":
            # Root does not need it.
            spare = found or capability.may_load_bpf()
            remedy = "" if spare else _SERVE
            yield Finding("info" if spare else "missing", check, _sentence(problem), remedy)
        else:
            yield Finding("missing", check, _sentence(problem))


_SERVE = "have root start taskdiag serve"


def _trial(name: str, pid: int | None = None) -> Exception | None:
    """What goes wrong when an engine is asked for a process, by default this one."""
    from .engine import choose

    try:
        for _ in choose(name).stream(Request(Show.BASE, Dump.ONE, pid or os.getpid())):
            pass
    except (TaskdiagError, OSError) as error:
        return error
    return None


# --- Helpers -----------------------------------------------------------------------------


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
