"""The parsers of /proc files on good, hostile and broken bytes."""

from __future__ import annotations

import os
import signal
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskdiag.abi import VMA, VMA_STAT, VmaFlag
from taskdiag.netlink import pack_vma
from taskdiag.procfs import comm, maps, plan, reader, stat, status
from taskdiag.procfs.reader import Directory, Malformed, Vanished, is_whole, open_procfs
from taskdiag.procfs.records import Records, heads_of

#: Whatever a task may be called: at most 15 bytes, no NUL.
NAMES = st.binary(max_size=15).map(lambda name: name.replace(b"\0", b""))


def one_sentence(error: Malformed) -> None:
    """What a user is told must not be steered by the bytes that were read."""
    assert str(error).isprintable()


# --- stat -----------------------------------------------------------------


@given(NAMES, st.lists(st.integers(-(2**63), 2**64 - 1), min_size=49, max_size=60))
@example(b"a) R 1 (", [0] * 49)
@example(b") ", [1] * 49)
def test_stat_of_any_name(name: bytes, numbers: list[int]) -> None:
    line = b"42 (" + name + b") S " + b" ".join(b"%d" % number for number in numbers) + b"\n"
    fields = stat.parse(line)
    assert fields[:3] == [b"42", name, b"S"]
    assert [int(field) for field in fields[3:]] == numbers


@given(st.binary(max_size=200))
@example(b"1 (a) S 1 2")
@example(b"1 (a S " + b"0 " * 60)
def test_stat_of_anything(data: bytes) -> None:
    try:
        fields = stat.parse(data)
    except Malformed as error:
        one_sentence(error)
    else:
        assert len(fields) >= stat.FIELDS


# --- status ---------------------------------------------------------------

ORDER = ["Name", "Umask", "State", "Tgid", "Uid", "VmPeak", "VmSize", "VmRSS", "Threads", "CapInh"]
FULL = (
    b"Name:\tx\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nUid:\t1\t2\t3\t4\n"
    b"VmPeak:\t    9 kB\nVmSize:\t    8 kB\nVmRSS:\t       5 kB\nThreads:\t3\nCapInh:\t00ff\n"
)
ZOMBIE = b"Name:\tx\nState:\tZ (zombie)\nTgid:\t7\nUid:\t1\t2\t3\t4\nThreads:\t1\nCapInh:\t00ff\n"
WANTED = [("Uid", 2), ("Name", 0), ("VmRSS", 0), ("State", 0), ("Uid", 0), ("CapInh", 0)]


def both(data: bytes, wanted: list[tuple[str, int]]) -> tuple[bytes | None, ...]:
    """What the compiled parser finds, which is what the slow one finds."""
    fast = status.compile_parser(ORDER, wanted)(data)
    assert fast == status.parse_lines(data, wanted, status.mm_keys(ORDER))
    return fast


def test_status_with_and_without_memory() -> None:
    assert both(FULL, WANTED) == (b"3", b"x", b"5", b"S", b"1", b"00ff")
    assert both(ZOMBIE, WANTED) == (b"3", b"x", None, b"Z", b"1", b"00ff")
    assert both(FULL, [*WANTED[:3], status.MM, status.THREADS])[-2:] == (b"8", b"3")
    assert both(ZOMBIE, [*WANTED[:3], status.MM, status.THREADS])[-2:] == (None, b"1")


def test_status_in_another_order_and_with_new_lines() -> None:
    lines = FULL.splitlines(keepends=True)
    changed = b"".join([*reversed(lines), b"Newest:\t1\n"])
    assert both(changed, WANTED) == both(FULL, WANTED)


@pytest.mark.parametrize("without", ["Uid", "State", "CapInh"])
def test_status_without_a_line(without: str) -> None:
    data = b"".join(
        line for line in FULL.splitlines(keepends=True) if not line.startswith(without.encode())
    )
    with pytest.raises(Malformed, match=without):
        both(data, WANTED)


@given(NAMES, NAMES)
def test_status_name_cannot_pose_as_lines(name: bytes, more: bytes) -> None:
    """A name is escaped, so whatever it says stays on its line."""
    shown = (name + b"\nUid:\t9" + more)[:15].replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    found = both(FULL.replace(b"Name:\tx", b"Name:\t" + shown), WANTED)
    assert found[0] == b"3"
    assert status.unescape(found[1] or b"") == (name + b"\nUid:\t9" + more)[:15]


@given(st.binary(max_size=300))
@example(FULL[:60])
@example(b"Name:")
def test_status_of_anything(data: bytes) -> None:
    try:
        assert len(both(data, WANTED)) == len(WANTED)
    except Malformed as error:
        one_sentence(error)


def test_status_of_this_kernel_never_needs_the_slow_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("/proc/self/status", "rb") as file:
        sample = file.read()
    order = status.keys(sample)
    wanted = [("CapBnd", 0), ("VmSwap", 0), ("NSsid", 0), status.MM, status.THREADS]
    parse = status.compile_parser(order, wanted)
    monkeypatch.setattr(status, "parse_lines", lambda *_: pytest.fail("fell back"))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with open(f"/proc/{pid}/status", "rb") as file:
            gone = parse(file.read())
    finally:
        os.waitpid(pid, 0)
    assert None not in parse(sample)
    assert gone[1] is None
    assert gone[3] is None
    assert gone[4] == b"1"


# --- maps and smaps -------------------------------------------------------


def line_of(values: tuple[int, int, bytes, int, int, int, int, bytes]) -> bytes:
    """A line as fs/proc/task_mmu.c writes it."""
    start, end, perms, pgoff, major, minor, inode, name = values
    head = b"%08x-%08x %s %08x %02x:%02x %d " % (start, end, perms, pgoff, major, minor, inode)
    return head.ljust(73) + name if name else head


ADDRESSES = st.integers(0, 2**64 - 1)
MAPPINGS = st.tuples(
    ADDRESSES, ADDRESSES, st.sampled_from(sorted(maps._COLUMN)), ADDRESSES,
    st.integers(0, 4095), st.integers(0, 2**20 - 1), ADDRESSES,
    st.binary(max_size=60).map(lambda tail: b"/" + tail.replace(b"\0", b"").replace(b"\n", b""))
    | st.sampled_from([b"", b"[heap]", b"[anon:a b]"]),
)  # fmt: skip


@given(st.lists(MAPPINGS, max_size=5))
def test_maps(mappings: list[tuple[int, int, bytes, int, int, int, int, bytes]]) -> None:
    found = by_line(b"".join(line_of(values) + b"\n" for values in mappings))
    assert found == [
        ((*values[:2], maps.perms_of(values[2]), *values[3:]), b"") for values in mappings
    ]


@given(st.binary(max_size=200))
@example(b"1-2 r--p 0 0:0 0")
@example(b"1-2 r--p 0 0:0 0\n\n")
@example(b"ff-2 rwzp 0 0:0 0 \n")
@example(b"Rss: 5 kB\n")
def test_maps_and_smaps_of_anything(data: bytes) -> None:
    for make in (Records(), Records(plan.statistics)):
        try:
            for record in make(data, None):
                assert len(record) >= VMA.size
        except Malformed as error:
            one_sentence(error)


def test_numbers_beyond_their_fields() -> None:
    line = b"1" + b"0" * 16 + b"-2 r--p 0 0:0 0 \n"
    with pytest.raises(Malformed):
        Records()(line, None)


def test_smaps() -> None:
    name = b"/Rss: 77 kB VmFlags: wr"
    data = (
        line_of((0x1000, 0x2000, b"r--p", 0, 8, 1, 5, name))
        + b"\nSize:   4 kB\nRss:    4 kB\nPss:    2 kB\nPss_Dirty:  1 kB\nShared_Clean:   4 kB\n"
        + b"AnonHugePages:  0 kB\nTHPeligible:  0\nVmFlags: rd mr sd zz \n"
        + line_of((0x2000, 0x3000, b"rw-s", 0, 0, 0, 0, b""))
        + b"\nRss:    8 kB\n"
    )
    (first, numbers), (second, _) = maps.parse_smaps(data, plan.statistics)
    assert first[2] == VmaFlag.READ | VmaFlag.MAYREAD | VmaFlag.SOFTDIRTY
    assert first[7] == name
    assert VMA_STAT.struct.unpack(numbers) == (4096, 4096, 0, 0, 0, 0, 0, 0, 0, 2048 << 12)
    assert second[2] == VmaFlag.READ | VmaFlag.WRITE | VmaFlag.SHARED | VmaFlag.MAYSHARE


SMAPS_KEYS = (
    "Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Shared_Clean",
    "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree",
    "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb", "Swap",
    "SwapPss", "Locked",
)  # fmt: skip


def entry_of(
    mapping: tuple[int, int, bytes, int, int, int, int, bytes],
    numbers: dict[str, int],
    flags: bytes,
) -> bytes:
    """An entry of smaps as fs/proc/task_mmu.c writes it."""
    lines = [f"{key}:".ljust(16) + f"{numbers.get(key, 0):8d} kB" for key in SMAPS_KEYS]
    lines += ["THPeligible:    " + f"{numbers.get('THPeligible', 0):8d}"]
    return line_of(mapping) + b"\n" + "\n".join(lines).encode() + b"\nVmFlags: " + flags + b"\n"


def by_line(data: bytes) -> list[tuple[maps.Mapping, bytes]]:
    """The mappings of a maps file, which has no statistics."""
    lines = data.split(b"\n")
    if lines.pop():
        raise Malformed("the file ends in the middle of a line")
    return [(maps.parse_line(line), b"") for line in lines]


def by_lines(data: bytes, smaps: bool) -> list[bytes]:
    """The records that the parser makes that goes line by line."""
    found = maps.parse_smaps(data, plan.statistics) if smaps else by_line(data)
    records = []
    for (start, end, flags, pgoff, major, minor, inode, shown), numbers in found:
        name = exact(start, end, shown)
        try:
            records.append(
                pack_vma(start, end, flags, pgoff, major, minor, inode, 0, name, numbers)
            )
        except struct.error as error:
            raise Malformed(f"out of range: {error}") from None
    return records


def exact(start: int, end: int, shown: bytes) -> bytes:
    """As `maps.exact_name` where a mapping is gone."""
    return shown.replace(b"\\012", b"\n")


@given(st.lists(MAPPINGS, min_size=1, max_size=5), st.lists(MAPPINGS, min_size=1, max_size=5))
@example([(1, 2, b"r--p", 0, 0, 0, 1, b"/a\\012b")], [(1, 2, b"rw-p", 0, 0, 0, 1, b"/a\\012b")])
def test_maps_in_bulk(
    first: list[tuple[int, int, bytes, int, int, int, int, bytes]],
    second: list[tuple[int, int, bytes, int, int, int, int, bytes]],
) -> None:
    records = Records()
    for mappings in (first, second, first):
        data = b"".join(line_of(values) + b"\n" for values in mappings)
        assert records(data, exact) == by_lines(data, smaps=False)


ENTRIES = st.tuples(
    MAPPINGS,
    st.dictionaries(
        st.sampled_from([*SMAPS_KEYS, "THPeligible"]),
        st.integers(0, 99_999_999) | st.sampled_from([99_999_999, 100_000_000, 2**37]),
    ),
    st.sampled_from([b"rd mr ", b"rd wr mr mw me ac sd ", b"", b"zz ?? "]),
)


@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_smaps_in_bulk(
    files: list[
        list[tuple[tuple[int, int, bytes, int, int, int, int, bytes], dict[str, int], bytes]]
    ],
) -> None:
    records = Records(plan.statistics)
    for file in files * 2:
        data = b"".join(entry_of(*entry) for entry in file)
        assert records(data, exact) == by_lines(data, smaps=True)


@given(st.lists(ENTRIES, min_size=1, max_size=6))
def test_flags_without_statistics(
    file: list[tuple[tuple[int, int, bytes, int, int, int, int, bytes], dict[str, int], bytes]],
) -> None:
    data = b"".join(entry_of(*entry) for entry in file)
    found = maps.parse_smaps(data, lambda numbers: b"")
    expected = [
        pack_vma(*mapping[:7], 0, exact(mapping[0], mapping[1], mapping[7]), b"")
        for mapping, _ in found
    ]
    assert Records()(data, exact) == expected
    with pytest.raises(Malformed):
        Records()(data + line_of(file[0][0]) + b"\nRss: 1 kB\n", exact)


@given(st.lists(ENTRIES, min_size=2, max_size=4), st.integers(0), st.sampled_from([b"", b"x\n"]))
def test_smaps_with_lines_missing_or_new(
    file: list[tuple[tuple[int, int, bytes, int, int, int, int, bytes], dict[str, int], bytes]],
    at: int,
    new: bytes,
) -> None:
    """Another kernel's layout, even in the middle of a file, is read or refused as line by line."""
    data = b"".join(entry_of(*entry) for entry in file)
    lines = data.splitlines(keepends=True)
    lines[at % len(lines)] = new.replace(b"x", b"New:                   1 kB")
    data = b"".join(lines)
    try:
        right = by_lines(data, smaps=True)
    except Malformed:
        with pytest.raises(Malformed):
            Records(plan.statistics)(data, exact)
    else:
        assert Records(plan.statistics)(data, exact) == right


@given(st.binary(max_size=300), st.booleans())
@example(b"1-2 r--p 0 0:0 0\n", False)
@example(b"-1-2 r--p 0 0:0 0 \n", False)
def test_anything_in_bulk(data: bytes, smaps: bool) -> None:
    try:
        found = Records(plan.statistics if smaps else None)(data, exact)
    except Malformed as error:
        one_sentence(error)
    else:
        assert all(len(record) >= VMA.size for record in found)


@pytest.mark.parametrize("name", ["maps", "smaps"])
def test_every_list_of_mappings_here_in_bulk(name: str) -> None:
    """The kernel's own layout is the one that is fast: nothing but long numbers is left over."""
    records = Records(plan.statistics if name == "smaps" else None)
    slow = seen = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                data = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if not data or len(data) > 1 << 21:
            continue
        if name == "smaps":
            real = records._strict
            strict = []
            records._strict = lambda part, ask, real=real, strict=strict: (  # type: ignore[method-assign]
                strict.append(part) or real(part, ask)
            )
        assert records(data, exact) == by_lines(data, name == "smaps")
        if name == "smaps":
            records._strict = real  # type: ignore[method-assign]
            seen += data.count(b"\nVmFlags:")
            slow += sum(
                part.count(b"\nVmFlags:")
                for part in strict
                if not any(len(line) > 27 for line in part.split(b"\n")[1:] if b" kB" in line)
                and b"\\012" not in part
            )
    if name == "smaps":
        assert seen
        assert slow == 0


def test_every_flag_of_the_abi_has_a_name() -> None:
    found = maps.flags_of(b" ".join(maps._FLAGS))
    assert found == sum(VmaFlag)


def test_an_ambiguous_name_of_a_mapping_that_is_gone() -> None:
    root = open_procfs()
    try:
        with Directory(root, "self") as own:
            assert maps.exact_name(own, "", 1, 2, b"/a\\012b") == b"/a\nb"
    finally:
        os.close(root)


# --- comm -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        (b"kworker/0:1-events", b"kworker/0:1"),
        (b"kworker/12:3H+kblockd", b"kworker/12:3H"),
        (b"kworker/u8:0-ext4-rsv-conversion", b"kworker/u8:0"),
        (b"kworker/u256:10", b"kworker/u256:10"),
    ],
)
def test_workers(shown: bytes, held: bytes) -> None:
    with Directory(0, "nowhere", pinned=False) as directory:
        assert comm.worker_comm(shown, directory) == held


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        (b"kworker/R-rcu_gp", b"kworker/R-rcu_g"),
        (b"kworker/R-nvme", b"kworker/R-nvme"),
        (b"kworker/R-md-md", b"kworker/R-md"),
        (b"kworker/R-md+md", b"kworker/R-md"),
        (b"rcu_gp-rcu_gp", b"rcu_gp"),
        (b"ext4-rsv-conver", b"ext4-rsv-conver"),
    ],
)
def test_rescuers(shown: bytes, held: bytes) -> None:
    assert comm.rescuer_comm(shown) == held


# --- reader ---------------------------------------------------------------


def test_errors_carry_the_path(tmp_path: os.PathLike[str]) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        os.makedirs(os.path.join(tmp_path, "7", "stat"))
        with Directory(root, "7") as directory:
            with pytest.raises(Vanished):
                directory.read("status")
            with pytest.raises(IsADirectoryError) as caught:
                directory.read("stat")
        assert caught.value.filename == "/proc/7/stat"
        with pytest.raises(Vanished):
            Directory(root, "8")
    finally:
        os.close(root)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1 << 17, (1 << 17) + 1, 1 << 21])
def test_files_of_any_size_come_whole(tmp_path: os.PathLike[str], size: int) -> None:
    content = os.urandom(size)
    with open(os.path.join(tmp_path, "file"), "wb") as file:
        file.write(content)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with Directory(root, ".") as directory:
            assert directory.read("file") == content
            assert b"".join(directory.read_mappings("file")) == content
    finally:
        os.close(root)


@pytest.mark.parametrize("last", [b"", b"Last:"])
@pytest.mark.parametrize("count", [1, 5000, 60000])
def test_long_lists_of_mappings_are_cut_between_entries(
    tmp_path: os.PathLike[str], last: bytes, count: int
) -> None:
    entries = [b"%x-%x /some/file\nLast: rd wr\n" % (at, at) for at in range(count)]
    with open(os.path.join(tmp_path, "file"), "wb") as file:
        file.writelines(entries)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with Directory(root, ".") as directory:
            pieces = list(directory.read_mappings("file", last))
    finally:
        os.close(root)
    assert b"".join(pieces) == b"".join(entries)
    assert all(piece.endswith(b"Last: rd wr\n" if last else b"\n") for piece in pieces)
    assert max(map(len, pieces)) < 1 << 20


VSYSCALL = b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"


@pytest.mark.parametrize("text", [
    b"", VSYSCALL, VSYSCALL + b"Rss: 0 kB\nVmFlags: ex \n",
    b"1000-2000 r--p 0 0:0 0\nVmFlags: rd \n",
    b"1000-2000 r--p 0 0:0 0 /ffffffffff600000-\nVmFlags: rd \n",
])  # fmt: skip
def test_a_list_is_whole_only_after_the_vsyscall_page(text: bytes) -> None:
    """Nothing but the page's whole entry shows it, wherever the text is cut."""
    before = b"1000-2000 r--p 0 0:0 0\nRss: 0 kB\nVmFlags: rd \n"
    whole = text.startswith(VSYSCALL)
    assert is_whole(before + text, b"") == whole
    assert is_whole(before + text, b"VmFlags:") == text.endswith(b"VmFlags: ex \n")
    for size in range(len(text)):
        cut = before + text[:size]
        assert not is_whole(cut, b"VmFlags:")
        assert is_whole(cut, b"") == (whole and cut.endswith(b"\n") and size >= len(VSYSCALL))


def test_the_end_of_a_list_is_seen_in_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the vsyscall page, nothing is read twice; without, the beginning is."""
    calls: list[str] = []
    readv, pread = os.readv, os.pread
    monkeypatch.setattr(reader, "_readv", lambda *a: calls.append("readv") or readv(*a))
    monkeypatch.setattr(os, "pread", lambda *a: calls.append("pread") or pread(*a))
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    root = open_procfs()
    try:
        text = b"".join(Directory(root, str(pid), pinned=False).read_mappings("maps"))
    finally:
        os.close(root)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if b"\nffffffffff600000-" in text:
        assert "pread" not in calls
    else:
        assert calls[-2:] == ["readv", "pread"]


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
        | st.tuples(st.integers(2**44, 2**48 - 1), st.integers(2**44, 2**48 - 1)),
        min_size=1,
        max_size=6,
    )
)
@example([(2**47, 2**48 - 1), (2**47, 2**47 + 1), (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000)])
@example([(2**43, 2**48), (2**47, 2**48 - 1), (1, 2)])
def test_addresses_of_any_width(pairs: list[tuple[int, int]]) -> None:
    shown = [b"%08x-%08x" % pair for pair in pairs]
    assert list(heads_of(shown)) == [struct.pack("=QQ", *pair) for pair in pairs]


def test_an_address_that_is_too_long() -> None:
    for shown in ([b"0" * 17 + b"-1"], [b"1-2", b"0" * 17 + b"-1"], [b"0" * 17 + b"-1", b"1-2"]):
        with pytest.raises(ValueError, match="16 digits"):
            heads_of(shown)


def test_a_directory_stays_with_its_task() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    root = open_procfs()
    try:
        with Directory(root, str(pid)) as directory:
            assert directory.read("stat").startswith(b"%d (" % pid)
            os.waitpid(pid, 0)
            for name in ("stat", "status", "cmdline", "maps"):
                with pytest.raises(Vanished):
                    directory.read(name)
    finally:
        os.close(root)
