"""A clean installation of taskdiag, as a user has it: an environment with nothing else.

It has what ``pip install`` puts there, the compiled package and the command, without a
package index.  A development environment starts more slowly: an editable installation, and
the .pth files of other packages, add to each start of the interpreter.
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ("Installation",)

ROOT = Path(__file__).resolve().parent.parent


class Installation:
    """An environment in a directory.

    >>> Installation(Path("/tmp/env")).command
    PosixPath('/tmp/env/bin/taskdiag')
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = directory / "bin" / "python"
        self.command = directory / "bin" / "taskdiag"
        base = Path(sys.executable).resolve()
        subprocess.run([str(base), "-I", "-m", "venv", "--without-pip", str(directory)], check=True)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        site = directory / "lib" / version / "site-packages"
        shutil.copytree(
            ROOT / "src" / "taskdiag", site / "taskdiag",
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
        compileall.compile_dir(site, quiet=2)
        self._script()

    def _script(self) -> None:
        """Write the command with this interpreter in its first line, as pip does."""
        lines = (ROOT / "bin" / "taskdiag").read_text().splitlines(keepends=True)
        lines[0] = f"#!{self.python}\n"
        self.command.write_text("".join(lines))
        self.command.chmod(0o755)
