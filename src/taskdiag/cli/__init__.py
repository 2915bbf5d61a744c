"""The command line: ``taskdiag [--engine NAME] COMMAND ...``.

Options are taken apart by hand and each command is a module that is imported when
it is called: start-up is part of the speed, and a command must not pay for what
others need.  A command module has ``run(args, engine) -> exit status``.

What goes wrong is told in one sentence on standard error; the exit status is 2 for
a request that makes no sense and 1 for anything else.  Whoever closes the pipe, or
presses Ctrl-C, ends the command as the signal ends any other program.
"""

from __future__ import annotations

import os
import sys

from .. import __version__
from ..errors import RequestError, TaskdiagError

__all__ = ("COMMANDS", "main")

#: Command to what it does, in the order of the help.
COMMANDS = {
    "ps": "show the process table, with the options and columns of ps(1)",
    "dump": "print tasks as JSON lines, or as the raw stream",
    "decode": "turn a saved stream into JSON lines",
    "doctor": "say what this host and this user can do, and what to change to get more",
    "explain": "print the program by which the kernel would answer a request",
    "serve": "answer the requests of every user of this host",
    "abi": "print the interface as a C header",
}

_HELP = """\
usage: taskdiag [--engine NAME] COMMAND ...

Ask Linux about processes in one transaction.

commands:
{commands}

options:
  --engine NAME  who answers: auto (default), kernel, service or procfs;
                 TASKDIAG_ENGINE does the same
  --version      print the version
  --help         print this; taskdiag COMMAND --help tells more

exit status: 0 done, 1 failed or nothing found, 2 bad usage
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    >>> main(["--version"])
    taskdiag 0.1.0
    0
    """
    args = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(args)
    except RequestError as error:
        complain(str(error))
        return 2
    except BrokenPipeError:
        return _die("SIGPIPE")
    except KeyboardInterrupt:
        return _die("SIGINT")
    except TaskdiagError as error:
        complain(getattr(error, "strerror", None) or str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        complain(f"{where}{error.strerror or error}")
    return 1


def _dispatch(args: list[str]) -> int:
    engine = None
    rest = iter(args)
    for arg in rest:
        if arg == "--engine" or arg.startswith("--engine="):
            engine = arg[9:] if arg.startswith("--engine=") else next(rest, "")
            if engine not in ("auto", "kernel", "service", "procfs"):
                known = "auto, kernel, service, procfs"
                raise RequestError(f"unknown engine {engine!r}: choose from {known}")
        elif arg == "--version":
            _print(f"taskdiag {__version__}\n")
            return 0
        elif arg in ("--help", "-h", "help"):
            table = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
            _print(_HELP.format(commands=table))
            return 0
        elif arg.startswith("-"):
            raise RequestError(f"unknown option {arg!r}: taskdiag --help lists those known")
        elif arg in COMMANDS:
            from importlib import import_module

            status: int = import_module(f".{arg}", __name__).run(list(rest), engine)
            return status
        else:
            raise RequestError(f"unknown command {arg!r}{_nearest(arg)}")
    raise RequestError("which command? taskdiag --help lists them")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1, 0.4)
    known = f"choose from {', '.join(COMMANDS)}"
    return f": did you mean {near[0]!r}?" if near else f": {known}"


def complain(message: str) -> None:
    """One sentence on standard error, safe to show on a terminal."""
    from contextlib import suppress

    from ..terminal import clean

    raw = clean(os.fsencode(f"taskdiag: {message}")) + b"\n"
    with suppress(OSError):  # Somebody may be left to be told, or nobody.
        os.write(2, raw)


def _print(text: str) -> None:
    from .output import write

    write(text.encode())


def _die(name: str) -> int:
    """End as a signal ends a program that does not catch it, so that the shell knows."""
    import signal

    number = signal.Signals[name]
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number
