"""Who is confined: told from credentials and labels."""

from __future__ import annotations

import ctypes
import errno

import pytest

from conftest import open_engine
from taskdiag.kernel import KernelEngine
from taskdiag.kernel.identity import Identity
from taskdiag.kernel.identity_reader import Reader
from taskdiag.service import confinement
from taskdiag.service.confinement import Confinement, landlock_word

libc = ctypes.CDLL(None, use_errno=True)


def identity(*words: int) -> Identity:
    found = Identity()
    found.security = words
    return found


@pytest.mark.parametrize(
    "label",
    [
        b"", b"unconfined", b"unconfined\n", b"unconfined\0", b"_",
        b"unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0",
    ],
)  # fmt: skip
def test_unconfined(label: bytes) -> None:
    assert Confinement(None).why(identity(), label) == ""


@pytest.mark.parametrize(
    "label",
    [b"docker-default (enforce)\n", b"system_u:system_r:httpd_t:s0\0", b"Untrusted", b"\xff"],
)
def test_confined(label: bytes) -> None:
    assert Confinement(None).why(identity(), label) == "a security module"


def test_landlocked() -> None:
    assert Confinement(1).why(identity(0, 5), b"") == "Landlock"
    assert Confinement(1).why(identity(5, 0), b"") == ""


@pytest.mark.root
def test_where_landlock_keeps_its_domain() -> None:
    open_engine("kernel")
    engine = KernelEngine()
    reader = Reader(engine.facts, *engine.own.home())
    try:
        ctypes.set_errno(0)
        version = libc.syscall(
            confinement._SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)
        )
        word = landlock_word(reader)
        if version < 1:
            assert ctypes.get_errno() in (errno.ENOSYS, errno.EOPNOTSUPP)
            assert word is None
            return
        assert word is not None
        before, after = confinement._restricted(reader, libc)
        assert not before[word]
        assert after[word]
    finally:
        reader.close()
