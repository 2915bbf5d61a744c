"""The choice of an engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import open_engine
from taskdiag import EngineUnavailable, Request, RequestError, Show, engine
from taskdiag.engine import Auto, choose


class Deaf:
    """An engine that finds out that it cannot work only when it is asked."""

    name = "deaf"

    def stream(self, request: Request) -> Iterator[bytes]:
        raise EngineUnavailable("not today")


class Talking:
    name = "talking"

    def stream(self, request: Request) -> Iterator[bytes]:
        return iter([b"an answer"])


def test_an_unknown_name() -> None:
    with pytest.raises(RequestError, match="choose from auto, kernel, service, procfs"):
        choose("netlink")


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKDIAG_ENGINE", "procfs")
    assert choose().name == "procfs"
    assert choose("auto").name == "auto"
    monkeypatch.setenv("TASKDIAG_ENGINE", "nosuch")
    with pytest.raises(RequestError, match="'nosuch'"):
        choose()


def test_the_next_engine_answers_where_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"kernel": Deaf(), "service": Deaf(), "procfs": Talking()}
    monkeypatch.setattr(engine, "_open", lambda name, *_: made[name])
    assert list(Auto().stream(Request())) == [b"an answer"]


def test_who_gave_up_privileges_does_not_keep_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "may_load_bpf", lambda: False)
    with pytest.raises(EngineUnavailable, match="CAP_BPF"):
        choose("kernel")


def test_the_kernel_engine_by_name_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine("kernel")
    from taskdiag.kernel import engine as kernel

    lacking = {**dict.fromkeys(Show, ""), Show.CRED: "a helper (9.9)"}
    monkeypatch.setattr(kernel, "missing_features", lambda *_, **__: lacking)
    with pytest.raises(EngineUnavailable, match=r"cannot serve cred by BPF: it lacks a helper"):
        choose("kernel").stream(Request(Show.BASE | Show.CRED))
    assert list(choose("auto").stream(Request(Show.BASE | Show.CRED)))
