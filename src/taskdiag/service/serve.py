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

    where, name = os.path.split(file)
    where = os.path.abspath(where or ".")
    clear(where)
    if not name or not os.path.isdir(where):
        raise RequestError(f"--file needs MOUNTPOINT/NAME, which {file!r} is not")
    if os.listdir(where):
        raise RequestError(f"--file needs an empty directory to mount on, which {where!r} is not")
    process = FileProcess(where, name)
    try:
        server = Server(path or socket_path())
        process.watch(server.stop)
        return server.run() or process.status()
    finally:
        process.end()
