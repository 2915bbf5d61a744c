"""Running the service: the socket, and the file beside it."""

from __future__ import annotations

import os

from ..errors import RequestError
from .protocol import socket_path

__all__ = ("serve",)


def serve(path: str | None, file: str | None) -> int:
    """Serve until told to stop; the exit status.

    ``path`` is that of the socket, ``file`` that of the file, if there is to be one.
    Raises RequestError, EngineUnavailable, OSError.
    """
    if file is None:
        from .server import Server

        return Server(path or socket_path()).run()
    from .file import FileProcess, clear
    from .server import Server

    where, name = os.path.split(os.path.abspath(file))
    clear(where)
    if not name or not os.path.isdir(where):
        raise RequestError(f"--file needs MOUNTPOINT/NAME, and {where!r} is no directory")
    process = FileProcess(where, name)
    try:
        server = Server(path or socket_path())
        process.watch(server.stop)
        return server.run() or process.status()
    finally:
        process.end()
