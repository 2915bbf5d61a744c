"""The cache of answers about types: what it keeps, and what it must not trust."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import missing, open_engine
from taskdiag.errors import EngineUnavailable
from taskdiag.kernel import cache as cache_module
from taskdiag.kernel.btf import VMLINUX, Btf, BtfError, NotFound
from taskdiag.kernel.btf_build import BtfBuilder
from taskdiag.kernel.cache import BIGGEST, Cache, directory
from taskdiag.kernel.facts import Facts, build_id, identify
from taskdiag.kernel.member import Member


def small_blob() -> bytes:
    b = BtfBuilder()
    i32 = b.integer("int", 4, signed=True)
    signal_struct = b.struct("signal_struct", 8, [("nr_threads", i32, 32)])
    task = b.struct("task_struct", 16, [("pid", i32, 0), ("signal", b.ptr(signal_struct), 64)])
    b.enum("pid_type", [("PIDTYPE_PID", 0), ("PIDTYPE_SID", 3)])
    b.func("bpf_iter_task", b.func_proto(i32, [("task", b.ptr(task))]))
    return b.blob()


def small_btf() -> Btf:
    return Btf(small_blob())


class Source:
    """Returns BTF, and counts how often it is called."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self) -> Btf:
        self.loads += 1
        return small_btf()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "taskdiag"
    path.mkdir(0o700)
    return path


def fill(folder: Path) -> Path:
    """Write one file; returns its path."""
    assert Cache("kernel", str(folder)).write("key", b"payload")
    (name,) = folder.iterdir()
    return name


def believed(folder: Path) -> bytes | None:
    return Cache("kernel", str(folder)).read("key")


# -- answers ---------------------------------------------------------------------------------


def ask_everything(facts: Facts) -> list[object]:
    answers: list[object] = [
        facts.type_id("func", "bpf_iter_task"),
        facts.size("struct task_struct"),
        facts.enumerator("PIDTYPE_SID"),
        facts.member("struct task_struct", "pid"),
        facts.path("task_struct", "signal->nr_threads"),
        facts.func_proto("bpf_iter_task"),
        facts.has("struct", "task_struct"),
        facts.has("struct", "nothing"),
        facts.has_member("task_struct", "signal->nr_threads"),
        facts.has_member("task_struct", "signal->nothing"),
        facts.has_enumerator("PIDTYPE_PID"),
        facts.has_enumerator("NOTHING"),
    ]
    for question in (
        lambda: facts.member("struct task_struct", "signa"),
        lambda: facts.type_id("func", "nothing"),
        lambda: facts.enumerator("NOTHING"),
    ):
        with pytest.raises(NotFound) as caught:
            question()
        answers.append(str(caught.value))
    return answers


def test_the_second_start_reads_no_btf(folder: Path) -> None:
    source = Source()
    first = Facts(Cache("kernel", str(folder)), source)
    answers = ask_everything(first)
    assert answers[4] == small_btf().path("task_struct", "signal->nr_threads")
    assert answers[7:10] == [False, True, False]
    assert "similar names: signal" in str(answers[12])
    assert source.loads == 1
    first.save()

    second = Facts(Cache("kernel", str(folder)), source)
    assert ask_everything(second) == answers
    assert source.loads == 1


def test_without_a_cache_the_answers_are_the_same(folder: Path) -> None:
    with_cache = ask_everything(Facts(Cache("kernel", str(folder)), Source()))
    assert ask_everything(Facts(Cache("kernel", None), Source())) == with_cache


def test_invalid_questions_are_not_kept(folder: Path) -> None:
    facts = Facts(Cache("kernel", str(folder)), Source())
    for path in ("a\tb", "a\nb", "ä", "signal..x", "pid->x"):
        with pytest.raises(BtfError):
            facts.path("task_struct", path)
    for type in ("x\ty", "x\n=1", "ä", "x" * 10000):
        with pytest.raises(NotFound):
            facts.size(f"struct {type}")
    facts.save()
    assert not list(folder.iterdir())


def test_answers_of_two_processes_are_both_kept(folder: Path) -> None:
    source = Source()
    one = Facts(Cache("kernel", str(folder)), source)
    two = Facts(Cache("kernel", str(folder)), source)
    one.enumerator("PIDTYPE_SID")
    two.enumerator("PIDTYPE_PID")
    one.save()
    two.save()
    loads = source.loads
    later = Facts(Cache("kernel", str(folder)), source)
    assert (later.enumerator("PIDTYPE_SID"), later.enumerator("PIDTYPE_PID")) == (3, 0)
    assert source.loads == loads


def test_the_size_of_the_file_is_limited(folder: Path) -> None:
    for start in range(0, 5000, 1000):
        facts = Facts(Cache("kernel", str(folder)), Source())
        for number in range(start, start + 1000):
            facts.has("struct", f"s{number}")
        facts.save()
    (file,) = folder.iterdir()
    assert file.stat().st_size < 300_000


@pytest.mark.parametrize(
    "text",
    [
        b"no tab\n",
        b"\xff\xfe\t=\n",
        b"enumerator PIDTYPE_SID\t=many\nmember struct task_struct pid\t=1 2 3\tx\ty\n",
        b"enumerator PIDTYPE_SID\t\nmember struct task_struct pid\tx\n",
        b"enumerator PIDTYPE_SID\t=\nmember struct task_struct pid\t=\t\t\n",
        b"path task_struct signal->nr_threads\t=1\t2\n",
        b"\n",
        b"",
    ],
)
def test_invalid_lines_with_a_right_checksum_are_asked_again(folder: Path, text: bytes) -> None:
    assert Cache("kernel", str(folder)).write("facts", text)
    facts = Facts(Cache("kernel", str(folder)), Source())
    assert facts.enumerator("PIDTYPE_SID") == 3
    assert facts.member("struct task_struct", "pid").size == 4
    assert len(facts.path("task_struct", "signal->nr_threads")) == 2


def test_answers_are_written_when_the_interpreter_ends(folder: Path) -> None:
    code = (
        "from taskdiag.kernel.btf_build import BtfBuilder\n"
        "from taskdiag.kernel.btf import Btf\n"
        "from taskdiag.kernel.cache import Cache\n"
        "from taskdiag.kernel.facts import Facts\n"
        "import sys\n"
        "b = BtfBuilder(); b.integer('int', 4)\n"
        "Facts(Cache('kernel', sys.argv[1]), lambda: Btf(b.blob())).size('int int')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    source = Source()
    assert Facts(Cache("kernel", str(folder)), source).size("int int") == 4
    assert source.loads == 0


def test_a_warm_start_imports_no_parser(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists(VMLINUX):
        pytest.skip("this kernel has no BTF")
    monkeypatch.setenv("TASKDIAG_CACHE", str(folder))
    code = (
        "import sys\n"
        "from taskdiag.kernel.facts import Facts\n"
        "facts = Facts.live()\n"
        "print(facts.member('struct task_struct', 'pid').offset, facts.has('struct', 'nonesuch'))\n"
        "print('taskdiag.kernel.btf' in sys.modules, 'hashlib' in sys.modules)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
        for _ in range(2)
    ]
    cold, warm = (run.decode().split("\n") for run in runs)
    assert cold[0] == warm[0]
    assert cold[1].startswith("True")
    assert warm[1] == "False False"


def test_put_and_get(folder: Path) -> None:
    facts = Facts(Cache("kernel", str(folder)), Source())
    assert facts.get("program") is None
    program = os.urandom(200_000)
    assert facts.put("program", program)
    assert facts.put("text", "words\n")
    again = Facts(Cache("kernel", str(folder)), Source())
    assert again.get("program") == program
    assert again.get("text") == b"words\n"
    assert again.get("facts") is None
    assert Facts(Cache("other kernel", str(folder)), Source()).get("program") is None
    assert not facts.put("big", bytes(BIGGEST + 1))
    assert facts.get("big") is None


# -- files that are not to be trusted -------------------------------------------------------


def test_modes_whatever_the_umask(tmp_path: Path) -> None:
    for number, mask in enumerate((0, 0o022, 0o177, 0o277)):
        where = tmp_path / str(number)
        old = os.umask(mask)
        try:
            written = Cache("kernel", str(where)).write("key", b"payload")
        finally:
            os.umask(old)
        if not written:  # the umask denies access to the directory to its owner too
            assert mask in (0o177, 0o277)
            continue
        assert stat.S_IMODE(where.stat().st_mode) & 0o077 == 0
        (file,) = where.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_every_cut_and_every_flip(folder: Path) -> None:
    file = fill(folder)
    good = file.read_bytes()
    for end in range(len(good)):
        file.write_bytes(good[:end])
        assert believed(folder) is None
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        assert believed(folder) is None
    file.write_bytes(good + b"x")
    assert believed(folder) is None
    file.write_bytes(good)
    assert believed(folder) == b"payload"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(folder: Path, data: bytes) -> None:
    if not list(folder.iterdir()):
        fill(folder)
    (file,) = folder.iterdir()
    file.write_bytes(data)
    assert believed(folder) is None


def test_a_file_of_another_kernel_or_question(folder: Path) -> None:
    file = fill(folder)
    for identity, key in (("kernel", "other"), ("other", "key"), ("kernel\nkey", ""), ("", "key")):
        cache = Cache(identity, str(folder))
        assert cache.read(key) is None
        (folder / cache._name(key)).write_bytes(file.read_bytes())
        assert cache.read(key) is None


def test_a_file_that_others_may_write(folder: Path) -> None:
    file = fill(folder)
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        assert believed(folder) is None
    file.chmod(0o644)
    assert believed(folder) == b"payload"


def test_a_file_of_another_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    file = fill(folder)
    os.chown(file, 65534, 65534)
    assert believed(folder) is None
    assert Cache("kernel", str(folder)).write("key", b"new")  # takes its place
    assert believed(folder) == b"new"
    assert file.stat().st_uid == 0


def test_a_directory_of_another_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give directories away")
    fill(folder)
    os.chown(folder, 65534, 65534)
    assert believed(folder) is None
    assert not Cache("kernel", str(folder)).write("key", b"new")


def test_a_directory_that_others_may_write(folder: Path) -> None:
    fill(folder)
    for mode in (0o770, 0o707, 0o1777):
        folder.chmod(mode)
        assert believed(folder) is None
        assert not Cache("kernel", str(folder)).write("key", b"new")
    folder.chmod(0o755)
    assert believed(folder) == b"payload"


def test_symbolic_links(folder: Path, tmp_path: Path) -> None:
    file = fill(folder)
    target = tmp_path / "target"
    file.rename(target)
    before = target.read_bytes()
    file.symlink_to(target)
    assert believed(folder) is None
    assert Cache("kernel", str(folder)).write("key", b"new")  # replaces the link
    assert not file.is_symlink()
    assert target.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert Cache("kernel", str(link)).read("key") is None
    assert not Cache("kernel", str(link)).write("key", b"new")


def test_what_is_not_a_regular_file(folder: Path) -> None:
    file = fill(folder)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert believed(folder) is None  # and does not wait for a writer
    file.unlink()
    file.mkdir(0o700)
    assert believed(folder) is None
    assert not Cache("kernel", str(folder)).write("key", b"new")
    assert list(folder.iterdir()) == [file]  # no temporary file is left
    file.rmdir()
    os.symlink("/dev/zero", file)
    assert believed(folder) is None


def test_an_oversized_file(folder: Path) -> None:
    file = fill(folder)
    os.truncate(file, 1 << 40)  # sparse
    assert believed(folder) is None


@pytest.mark.parametrize("where", ["/proc/nowhere/taskdiag", "/dev/null", "\0", ""])
def test_places_where_nothing_can_be_written(where: str) -> None:
    cache = Cache("kernel", where)
    assert cache.read("key") is None
    assert not cache.write("key", b"payload")


def test_a_full_disk(folder: Path) -> None:
    """Simulated with RLIMIT_FSIZE: the write stops in the middle."""
    fill(folder)
    code = (
        "import resource, sys\n"
        "from taskdiag.kernel.cache import Cache\n"
        "cache = Cache('kernel', sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "assert not cache.write('key', bytes(50000))\n"
        "assert cache.read('key') == b'payload'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert len(list(folder.iterdir())) == 1
    assert believed(folder) == b"payload"


def test_no_descriptor_is_left_open(folder: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    file = fill(folder)
    believed(folder)
    file.chmod(0o666)
    believed(folder)
    file.unlink()
    believed(folder)
    file.mkdir()
    believed(folder)
    Cache("kernel", str(folder)).write("key", b"x")
    folder.chmod(0o777)
    believed(folder)
    Cache("kernel", str(folder)).write("key", b"x")
    identify_of(folder, b"")
    assert count() == before


WRITER = """
import sys
from taskdiag.kernel.cache import Cache
where, letter = sys.argv[1], sys.argv[2].encode()
cache = Cache("kernel", where)
print("ready", flush=True)
sys.stdin.readline()
for size in range(1, 400):
    assert cache.write("key", letter * (size * 200))
"""


def test_two_writers_and_a_reader(folder: Path) -> None:
    """A reader always finds a complete file of one of the writers."""
    fill(folder)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), letter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for letter in "ab"
    ]
    seen = set()
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        while any(writer.poll() is None for writer in writers):
            data = believed(folder)
            assert data is not None
            assert data == b"payload" or data == data[:1] * len(data)
            seen.add(data[:1])
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen & {b"a", b"b"}
    assert len(list(folder.iterdir())) == 1


def test_a_writer_killed_at_any_moment(folder: Path) -> None:
    for turn in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), "k"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        for _ in range(turn * 10):
            believed(folder)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = believed(folder)
        assert data is None or data == b"k" * len(data)


def test_the_directory_stays_small(folder: Path) -> None:
    foreign = folder / "not-ours"
    foreign.write_bytes(b"")
    os.utime(foreign, (0, 0))
    torn = folder / ".new-1-x"
    torn.write_bytes(b"")
    os.utime(torn, (0, 0))
    old = Cache("old kernel", str(folder))
    for number in range(30):
        assert old.write(f"key {number}", b"x")
    new = Cache("kernel", str(folder))
    for number in range(120):
        assert new.write(f"key {number}", b"x")
        file = folder / new._name(f"key {number}")
        os.utime(file, (10**9 + number, 10**9 + number))
    assert len(list(folder.iterdir())) <= 65
    assert foreign.exists()
    assert not torn.exists()
    assert all(old.read(f"key {number}") is None for number in range(30))
    assert new.read("key 119") == b"x"
    assert new.read("key 0") is None


# -- places ----------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TASKDIAG_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_places_of_users(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(os, "geteuid", lambda: 1000)
    assert directory() is None
    clean.setenv("HOME", "relative")
    assert directory() is None
    clean.setenv("HOME", "/home/u")
    assert directory() == "/home/u/.cache/taskdiag"
    clean.setenv("XDG_CACHE_HOME", "relative")
    assert directory() == "/home/u/.cache/taskdiag"
    clean.setenv("XDG_CACHE_HOME", "/xdg")
    assert directory() == "/xdg/taskdiag"
    clean.setenv("TASKDIAG_CACHE", "/chosen")
    assert directory() == "/chosen"
    clean.setenv("TASKDIAG_CACHE", "")
    assert directory() is None
    clean.setenv("TASKDIAG_CACHE", "relative")
    assert directory() is None


def test_places_of_root(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs directories of root and of others")
    clean.setenv("HOME", "/home/u")  # as sudo may leave it
    assert directory() == "/var/cache/taskdiag"
    tmp_path.chmod(0o755)
    clean.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert directory() == f"{tmp_path}/taskdiag"
    tmp_path.chmod(0o777)
    assert directory() == "/var/cache/taskdiag"
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)  # sudo -E
    assert directory() == "/var/cache/taskdiag"
    clean.setenv("XDG_CACHE_HOME", f"{tmp_path}/missing")
    assert directory() == "/var/cache/taskdiag"


def test_the_directory_is_made(tmp_path: Path) -> None:
    where = tmp_path / ".cache" / "taskdiag"
    assert Cache("kernel", str(where)).read("key") is None
    assert not where.parent.exists()  # reading makes nothing
    assert Cache("kernel", str(where)).write("key", b"payload")
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    assert stat.S_IMODE(where.parent.stat().st_mode) == 0o700


# -- which kernel ------------------------------------------------------------------------------


def note(name: bytes, kind: int, text: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("=III", len(name), len(text), kind) + padded(name) + padded(text)


BUILD = bytes(range(20))
OTHER = note(b"Linux\0", 0x100, b"6.1.0-odd") + note(b"Xen\0", 3, b"x" * 16)


def identify_of(folder: Path, notes: bytes | None, btf: bytes = b"\x9f\xeb" + bytes(98)) -> str:
    (folder / "vmlinux").write_bytes(btf)
    path = folder / "notes"
    path.unlink(missing_ok=True)
    if notes is not None:
        path.write_bytes(notes)
    found = identify(str(folder / "vmlinux"), str(path))
    (folder / "vmlinux").unlink()
    path.unlink(missing_ok=True)
    return found


def test_build_id(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for text, found in (
        (OTHER + note(b"GNU\0", 3, BUILD), BUILD),
        (note(b"GNU\0", 3, BUILD) + OTHER, BUILD),
        (OTHER, None),
        (b"", None),
        (note(b"GNU\0", 3, b""), None),
        (note(b"GNU\0", 3, BUILD)[:-4], None),
        (note(b"GNU\0", 3, BUILD)[:7], None),
        (struct.pack("=III", 2**32 - 1, 2**32 - 1, 3) + b"GNU\0", None),
    ):
        path.write_bytes(text)
        assert build_id(str(path)) == found
    assert build_id(str(tmp_path / "missing")) is None
    assert build_id(str(tmp_path)) is None


def test_identity_differs_when_the_types_do(tmp_path: Path) -> None:
    build = note(b"GNU\0", 3, BUILD)
    blob = b"\x9f\xeb" + bytes(98)
    identities = [
        identify_of(tmp_path, build),
        identify_of(tmp_path, note(b"GNU\0", 3, BUILD[::-1])),
        identify_of(tmp_path, build, blob + b"longer"),
        identify_of(tmp_path, build, blob[:8] + b"\1" + blob[9:]),
        identify_of(tmp_path, None),
        identify_of(tmp_path, None, blob[:50] + b"\1" + blob[51:]),
    ]
    assert len(set(identities)) == len(identities)
    assert identify_of(tmp_path, OTHER) == identities[4]
    assert identify_of(tmp_path, build) == identities[0]


def test_no_btf_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="does not describe its types"):
        Facts.live(str(tmp_path / "vmlinux"))


def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, why in (
        (tmp_path, "Is a directory"),
        (file / "vmlinux", "Not a directory"),
        (loop, "Too many levels of symbolic links"),
    ):
        with pytest.raises(EngineUnavailable, match=f"^cannot read {path}: {why}$"):
            Facts.live(str(path))


@pytest.mark.root
def test_a_file_that_this_user_may_not_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(small_blob())
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(EngineUnavailable, match=f"^cannot read {path}: Permission denied$"):
            Facts.live(str(path))
    finally:
        os.seteuid(0)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda blob: b"",
    "cut in the header": lambda blob: blob[:10],
    "cut in the types": lambda blob: blob[: len(blob) // 3],
    "cut in the strings": lambda blob: blob[:-1],
    "no BTF": lambda blob: b"\x7fELF" + blob[4:],
    "other byte order": lambda blob: blob[1::-1] + blob[2:],
    "an unknown kind": lambda blob: blob[:28] + b"\xff" * 4 + blob[32:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("notes", [None, b""])
def test_questions_about_damaged_btf_name_the_file(
    tmp_path: Path, damage: Callable[[bytes], bytes], notes: bytes | None, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TASKDIAG_CACHE", str(folder))
    path = tmp_path / "vmlinux"
    path.write_bytes(damage(small_blob()))
    if notes is not None:
        (tmp_path / "notes").write_bytes(note(b"GNU\0", 3, BUILD))
    facts = Facts.live(str(path), str(tmp_path / "notes"))
    for question in (
        lambda: facts.member("task_struct", "pid"),
        lambda: facts.has("func", "bpf_iter_task"),
        lambda: facts.has_member("task_struct", "pid"),
        lambda: facts.size("struct task_struct"),
    ):
        with pytest.raises(EngineUnavailable) as caught:
            question()
        assert str(caught.value).startswith(f"cannot use {path}: ")
        assert "\n" not in str(caught.value)
    facts.save()
    assert not list(folder.iterdir())  # nothing was learned


@pytest.mark.root
@pytest.mark.parametrize("damage", ["empty", "cut in the types", "other byte order"])
def test_another_engine_answers_where_btf_is_damaged(tmp_path: Path, damage: str) -> None:
    open_engine("kernel")
    path = tmp_path / "vmlinux"
    path.write_bytes(DAMAGE[damage](Path(VMLINUX).read_bytes()))

    def run(engine: str) -> subprocess.CompletedProcess[str]:
        script = f'mount --bind "$0" {VMLINUX} && exec "$@"'
        command = [sys.executable, "-m", "taskdiag", "--engine", engine, "dump", "--one", "1"]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, str(path), *command],
            env={**os.environ, "TASKDIAG_CACHE": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    result = run("auto")
    if "unshare" in result.stderr or "mount:" in result.stderr:
        missing(f"no file can be mounted here: {result.stderr.strip()}")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout
    result = run("kernel")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"taskdiag: cannot use {VMLINUX}: ")
    assert result.stderr.count("\n") == 1


def test_live_answers_equal_the_btf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists(VMLINUX):
        pytest.skip("this kernel has no BTF")
    monkeypatch.setenv("TASKDIAG_CACHE", str(folder))
    btf = Btf.load()
    paths = ("comm", "signal->pids[PIDTYPE_SID]->numbers[0].nr", "mm->total_vm", "real_cred->uid")
    for _ in range(2):
        facts = Facts.live()
        for path in paths:
            assert facts.path("task_struct", path) == btf.path("task_struct", path)
        assert all(isinstance(m, Member) for m in facts.path("task_struct", "comm"))
        facts.save()
    assert cache_module.directory() == str(folder)
