"""Running the service: the socket, and the file beside it."""

from __future__ import annotations

import contextlib
import ctypes

from .protocol import socket_path

__all__ = ("serve",)

_M_ARENA_MAX = -8


def serve(path: str | None, file: str | None) -> int:
    """Serve until told to stop; the exit status.

    ``path`` is that of the socket, ``file`` that of the file, if there is to be one.
    Raises RequestError, EngineUnavailable, OSError.
    """
    path = path or socket_path()
    _use_one_arena()
    if file is None:
        from .server import Server

        return Server(path).run()
    return _with_file(path, file)


def _use_one_arena() -> None:
    """Have all threads allocate from one arena (mallopt(3)).

    With one arena for each thread, which is glibc's default, each keeps the memory of the
    longest answer that its thread ever made.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _with_file(path: str, file: str) -> int:
    from .fileprocess import FileProcess
    from .mount import Mountpoint
    from .server import Server

    mountpoint = Mountpoint(file)
    mountpoint.refuse_above(path)
    mountpoint.prepare()
    try:
        process = FileProcess(mountpoint)
        try:
            server = Server(path)
            process.watch(server.stop)
            return server.run() or process.status()
        finally:
            process.end()
    finally:
        mountpoint.remove()
