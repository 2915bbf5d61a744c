"""The documents are true: examples run, commands work, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import examples
import taskdiag
from conftest import missing, need
from taskdiag.cli import COMMANDS
from test_environments import UNPRIVILEGED, execute, interpreter

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], key=lambda path: (path.parent != ROOT, path)
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PROJECT = (ROOT / "pyproject.toml").read_text()
USERS = ("us", "a user without privileges")


class Block:
    """A fenced block of a page."""

    def __init__(self, page: str, line: int, language: str, text: str) -> None:
        self.page = page
        self.line = line
        self.language = language
        self.text = text

    def __repr__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    """The fenced and the indented blocks of a page; the latter have the language "sh"."""
    text = (ROOT / page).read_text()
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.M | re.S):
        line = text.count("\n", 0, found.start()) + 1
        inner = re.sub(f"^{found[1]}", "", found[3], flags=re.M)
        yield Block(page, line, found[2], inner)
    plain = re.sub(
        r"^( *)```.*?^ *```$", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S
    )
    for found in re.finditer(r"(?<=\n\n)(?: {4}(?:sudo|make|\.venv|taskdiag)\b.*\n)+", plain):
        yield Block(page, plain.count("\n", 0, found.start()) + 1, "sh", found[0])


BLOCKS = [block for page in NAMES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def run(who: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run a program in Python, as ``us`` or as somebody else."""
    if who != "us":
        if os.geteuid() != 0:
            pytest.skip("this test becomes another user, so it needs root")
        # The code is handed over as text: other users may not be able to read the checkout.
        return execute((*UNPRIVILEGED, interpreter(UNPRIVILEGED), "-W", "error", "-c", code))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


# --- Examples -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", examples.modules())
def test_examples_of_docstrings(module: str) -> None:
    found = examples.of_module(module)
    assert not found.failed, "".join(found.failed)
    # The service is not expected to run; BPF is.
    withheld = [text for text in found.withheld if "no service at" not in text]
    if withheld:
        missing(withheld[0])


def test_examples_of_docstrings_as_a_user() -> None:
    done = run("a user without privileges", (ROOT / "tests/examples.py").read_text())
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(">>> 1 + 1\n3\n>>> nosuch\n4\n")
    assert len(re.findall("^Failed example", "".join(examples.of_page(page).failed), re.M)) == 2
    page.write_text(">>> taskdiag.Show.BASE\n<Show.BASE: ...>\n")
    assert not examples.of_page(page).failed


@pytest.mark.parametrize("page", NAMES)
def test_examples_of_pages(page: str) -> None:
    found = examples.of_page(ROOT / page)
    assert not found.failed, "".join(found.failed)


@pytest.mark.parametrize("who", USERS)
@pytest.mark.parametrize("block", PYTHON, ids=repr)
def test_programs_of_pages(block: Block, who: str) -> None:
    done = run(who, block.text)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # A comment behind print() says what it prints.
    for said in re.findall(r"^ *print\(error\)  # (no process .*)$", block.text, re.M):
        assert any(line.startswith(said) for line in done.stdout.splitlines())


# --- Commands -----------------------------------------------------------------------------


def shown() -> Iterator[tuple[Block, str, list[str]]]:
    """Every ``$ command`` of the pages, with the output that is shown for it."""
    for block in BLOCKS:
        for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
            command, *output = part.strip().splitlines()
            yield block, command, output


SHOWN = list(shown())


def bash(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    need("bash")
    return subprocess.run(
        ["bash", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=120, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which ``taskdiag`` is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "taskdiag"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/bin/taskdiag" "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def shape(value: object) -> object:
    """The names in a JSON value, without what they hold."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return type(value).__name__


def alike(wanted: str, got: list[str]) -> bool:
    """Whether a line that is shown is like one of those that were printed."""
    if wanted.startswith("{"):
        return any(
            line.startswith("{") and shape(json.loads(line)) == shape(json.loads(wanted))
            for line in got
        )
    if wanted.startswith("taskdiag: "):
        return wanted in got
    words = wanted.split()
    if words and all(word.isupper() or word == "%CPU" for word in words):
        return any(line.split() == words for line in got)
    return True


@pytest.mark.parametrize(("block", "line", "output"), SHOWN, ids=[repr(one[0]) for one in SHOWN])
def test_commands_that_are_shown(block: Block, line: str, output: list[str], commands: str) -> None:
    if "--engine kernel" in line:
        from conftest import open_engine

        open_engine("kernel")
    if "explain" in line and not os.path.exists("/sys/kernel/btf/vmlinux"):
        missing("this kernel has no BTF")
    done = bash(
        "-c",
        f"{line}\nexit ${{PIPESTATUS[0]}}",
        env={"PATH": commands, "LANG": "C.UTF-8", "COLUMNS": "200"},
    )
    got = done.stdout.splitlines()
    assert "Traceback" not in done.stdout
    for wanted in output:
        assert alike(wanted, got), (wanted, got[:5])
    refused = any(wanted.startswith("taskdiag: ") for wanted in output)
    assert (done.returncode == 2) == refused


def lines_of_shell() -> Iterator[tuple[str, str]]:
    """Every line that readers are told to type: page and line."""
    for block in BLOCKS:
        if block.language == "sh":
            yield from ((block.page, line) for line in block.text.splitlines() if line.strip())
        elif not block.language:
            for line in block.text.splitlines():
                if re.match(r"(\$ |sudo |make |taskdiag |python3 |\.venv/|cc )", line):
                    yield block.page, line.removeprefix("$ ")
    for page in NAMES:
        text = re.sub(r"^( *)```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", text):
            if re.match(r"(sudo |make [a-z]|taskdiag |python3 |pipx |uv |\.venv/)", code):
                yield page, code


SHELL = sorted(set(lines_of_shell()))


@pytest.mark.parametrize(("page", "line"), SHELL)
def test_commands_in_the_text(page: str, line: str) -> None:
    """What cannot be run here names nothing that does not exist."""
    # Placeholders: options that may be left out, alternatives, what goes on.
    if not re.search(r"[\[<|…]|\.\.\.", line):
        done = bash("-n", "-c", line)
        assert done.returncode == 0, done.stdout
    targets = re.findall(r"^([a-z-]+|\$\(VENV\)/\.\w+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^|&& |sudo )make ([a-z.][\w./-]*)", line.strip()):
        assert target.replace(".venv/", "$(VENV)/") in targets, target
    for command in re.findall(r"(?<![\w/.-])taskdiag (?:--engine \w+ )?([a-z]+)\b", line):
        if not re.search(r"(install|enable|disable|list|now) .*taskdiag", line):
            assert command in COMMANDS, command
    assert not re.search(r"(?<![\w./-])python ", line), "Debian has no command named python"
    for extra in re.findall(r"\[(\w+)\]'", line):
        assert re.search(rf"^{extra} = \[", PROJECT, re.M), extra


def test_the_shell_examples_are_found() -> None:
    """None of the tests above passes because nothing was found."""
    assert len(PYTHON) >= 2
    assert {"README.md", "CONTRIBUTING.md"} <= {block.page for block, _, _ in SHOWN}
    lines = [line for _, line in SHELL]
    for wanted in ("make test", "pipx install .", "sudo systemctl daemon-reload"):
        assert any(wanted in line for line in lines), wanted


# --- Names --------------------------------------------------------------------------------


def test_links() -> None:
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if ":" in path:
                continue
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(other), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.M):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


#: Folders of the checkout; what starts with one of them in a page is a file of ours.
_OURS = ("src/", "tests/", "docs/", "bench/", "bin/", "examples/", "kernels/", "packaging/")


@pytest.mark.parametrize("page", NAMES)
def test_files(page: str) -> None:
    """Files that a page names exist: from the checkout's root, or below the package."""
    # What was renamed stays in the changelog under the name it had.
    if page == "CHANGELOG.md":
        return
    for code in re.findall(r"`([^`\n]+)`", (ROOT / page).read_text()):
        for word in code.split():
            name = word.partition("::")[0].strip("'\",:;()")
            if "*" in name or name.startswith("/"):
                continue
            if name.startswith(_OURS):
                assert (ROOT / name).exists(), name
            elif re.fullmatch(r"[a-z_]+/[a-z_]+\.py", name):
                assert (ROOT / "src/taskdiag" / name).exists() or (ROOT / name).exists(), name


def test_modules() -> None:
    """The table of modules in the architecture has every top-level one."""
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`taskdiag\.(\w+)`", text))
    there = {
        path.stem for path in (ROOT / "src/taskdiag").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists())
        and not path.name.startswith("__")
    }  # fmt: skip
    assert there <= named


def test_groups() -> None:
    """The README lists every group."""
    text = (ROOT / "README.md").read_text()
    listed = re.search(r"^Groups are (.*?);", text, re.M | re.S)
    assert listed
    there = {str(show.name).lower() for show in taskdiag.Show}
    assert there <= set(re.findall(r"`(\w+)`", listed[1]))


def test_the_version_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{taskdiag.__version__}]" in text


def test_what_is_installed_as_the_command() -> None:
    """A script file, which pipx and uv expose as they expose entry points."""
    assert '\nscript-files = ["bin/taskdiag"]\n' in PROJECT
    assert (ROOT / "bin/taskdiag").read_text().startswith("#!/usr/bin/env python3\n")


def test_examples_in_c_compile(tmp_path: Path, commands: str) -> None:
    """By the command lines of the page about the protocol."""
    need("gcc", "/usr/include/stdio.h")
    environment = {"PATH": commands, "TMPDIR": str(tmp_path)}
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = [
        line for page, line in SHELL if page == "docs/protocol.md" and re.search(r"\bcc ", line)
    ]
    assert lines
    for line in lines:
        # Running the client takes a service.
        build = re.sub(r" && \./.*", "", line)
        done = bash("-c", build, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout
