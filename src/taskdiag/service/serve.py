"""Running the service: the socket, and the file beside it."""

from __future__ import annotations

from .protocol import socket_path

__all__ = ("serve",)


def serve(path: str | None, file: str | None) -> int:
    """Serve until told to stop; the exit status.

    ``path`` is that of the socket, ``file`` that of the file, if there is to be one.
    Raises RequestError, EngineUnavailable, OSError.
    """
    path = path or socket_path()
    if file is None:
        from .server import Server

        return Server(path).run()
    return _with_file(path, file)


def _with_file(path: str, file: str) -> int:
    from .fileprocess import FileProcess
    from .mount import Mountpoint
    from .server import Server

    mountpoint = Mountpoint(file)
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
