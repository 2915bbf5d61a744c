"""The command line: ``taskdiag [--engine NAME] COMMAND ...``.

Each command is a module with ``run(args, engine) -> exit status``.  Modules are imported
when their command is called, and options are parsed by hand, because start-up time counts.

An error is one sentence on standard error.  The exit status is 2 for bad usage and 1 for any
other error.  A closed pipe and Ctrl-C kill the command by their signal, as they kill any
other program.
"""

from __future__ import annotations

import os
import sys

from .. import __version__
from ..errors import RequestError, TaskdiagError, nearest, one_line

__all__ = ("COMMANDS", "main")

#: Command to what it does, in the order of the help.
COMMANDS = {
    "ps": "show the process table, with the options and columns of ps(1)",
    "dump": "print tasks as JSON lines, or as the raw stream",
    "decode": "turn a saved stream into JSON lines",
    "doctor": "say what works on this host for this user, and how to get more",
    "explain": "print the BPF program that a request becomes",
    "serve": "answer the requests of every user of this host",
    "abi": "print the interface as a C header",
}

_ENGINES = ("auto", "kernel", "service", "procfs")

_HELP = """\
usage: taskdiag [--engine NAME] COMMAND ...

Ask Linux about processes in one transaction.

commands:
{commands}

options:
  --engine NAME  who answers: auto (the default), kernel, service or procfs;
                 the environment variable TASKDIAG_ENGINE does the same
  -V, --version  print the version
  -h, --help     print this; taskdiag COMMAND --help tells more

exit status: 0 done, 1 failed or nothing found, 2 bad usage
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    >>> main(["--version"])  # which writes "taskdiag 0.1.0" to descriptor 1
    0

    ``argv`` is the command line without the program's name, by default that of the process.
    """
    args = sys.argv[1:] if argv is None else argv
    _occupy_standard_descriptors()
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
        message = getattr(error, "strerror", None) or str(error)
        complain(one_line(message) if hasattr(error, "log") else message)
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
            if engine not in _ENGINES:
                raise RequestError(_no_engine(engine))
        elif arg in ("--version", "-V"):
            _print(f"taskdiag {__version__}\n")
            return 0
        elif arg in ("--help", "-h", "help"):
            table = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
            _print(_HELP.format(commands=table))
            return 0
        elif arg.startswith("-"):
            hint = "did you mean --engine? " if arg.startswith("--eng") else ""
            raise RequestError(f"unknown option {arg!r}: {hint}taskdiag --help lists the options")
        elif arg in COMMANDS:
            return _run(arg, list(rest), engine)
        else:
            raise RequestError(f"unknown command {arg!r}: {nearest(arg, COMMANDS)}")
    raise RequestError("which command? taskdiag --help lists them")


def _run(command: str, args: list[str], engine: str | None) -> int:
    from importlib import import_module

    try:
        status: int = import_module(f".{command}", __name__).run(args, engine)
    except RequestError:
        for at, arg in enumerate(args):
            if arg.startswith("--engine=") or arg == "--engine":
                name = arg[9:] or "".join(args[at + 1 : at + 2])
                right = f"taskdiag --engine {name if name in _ENGINES else 'NAME'} {command}"
                raise RequestError(f"--engine goes before the command: {right}") from None
        raise
    return status


def _no_engine(name: str) -> str:
    if not name or name in COMMANDS:
        return "--engine needs a name: auto, kernel, service or procfs"
    return f"unknown engine {name!r}: {nearest(name, _ENGINES)}"


def _occupy_standard_descriptors() -> None:
    """Make sure that no file we open later becomes standard input, output or error.

    A shell can start us with these closed (``>&-``).  What takes their place can be neither
    read nor written, so using it is an error like using a closed descriptor.
    """
    if sys.__stdin__ and sys.__stdout__ and sys.__stderr__:
        return
    while True:
        fd = os.open("/", os.O_PATH)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def complain(message: str) -> None:
    """Write one sentence to standard error, safe to show on a terminal."""
    from contextlib import suppress

    from ..terminal import clean

    raw = clean(os.fsencode(f"taskdiag: {message}")) + b"\n"
    with suppress(OSError):  # Standard error may be closed too.
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
