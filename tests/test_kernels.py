"""The table in docs/kernels.md is true of the running kernel."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from conftest import open_engine
from taskdiag.abi import Show

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "kernels.md"


def table() -> dict[str, tuple[int, int] | None]:
    """The version since which each group is served by BPF, None for never."""
    rows = re.findall(r"^\| ([A-Z_]+) \| ([\d.]+|never) \| (.*)\|$", DOCUMENT.read_text(), re.M)
    return {group: None if since == "never" else version(since) for group, since, _ in rows}


def version(release: str) -> tuple[int, int]:
    """(6, 12) of "6.12.43+deb12-cloud-amd64"."""
    match = re.match(r"(\d+)\.(\d+)", release)
    assert match is not None, release
    return int(match[1]), int(match[2])


def test_every_group_has_its_row() -> None:
    assert list(table()) == [show.name for show in Show]


def test_what_is_not_always_served_has_a_reason() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| ([\d.]+|never) \| (.*)\|$", DOCUMENT.read_text(), re.M)
    oldest = min(filter(None, table().values()))
    for group, since, reason in rows:
        needed = since == "never" or version(since) > oldest
        assert bool(reason.strip()) == needed, group


def test_the_table_is_what_the_engine_says_of_this_kernel() -> None:
    open_engine("kernel")
    from taskdiag import kernel

    running = version(platform.release())
    expected = {
        group: "bpf" if since is not None and running >= since else "procfs"
        for group, since in table().items()
    }
    assert kernel.served_by() == expected


@pytest.mark.parametrize(
    ("release", "expected"), [("6.1.0-50-cloud-amd64", (6, 1)), ("6.12.9+deb12", (6, 12))]
)
def test_versions_are_compared_as_numbers(release: str, expected: tuple[int, int]) -> None:
    assert version(release) == expected
