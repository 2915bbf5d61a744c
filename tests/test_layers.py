"""Imports go one way: the layers are those of the table in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "taskdiag"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.name.startswith("__"))


def layers() -> dict[str, int]:
    """The layer of each module and package below ``taskdiag``, by the table."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = text[text.index("### Layers") :]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.M)
    return {name: int(number) for number, names in rows for name in re.findall(r"\w+", names)}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module or package below ``taskdiag`` that a module imports."""
    package = path.relative_to(SOURCE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package[: len(package) - node.level + 1]
            parts += tuple((node.module or "").split(".")) if node.module else ()
            names = [*parts[:1]] or [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if not name.startswith("__"))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            whole = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            whole += [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "taskdiag" for name in whole), path


def test_every_module_has_a_layer() -> None:
    assert {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in MODULES} == set(
        layers()
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    order = layers()
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for line, name in imported(path):
        assert name == own or order[name] < order[own], f"line {line} imports {name}"
