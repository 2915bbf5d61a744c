"""The listening socket, and systemd's socket activation and notification.

The protocols of sd_listen_fds(3) and sd_notify(3) are small enough to do without libsystemd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from ..errors import EngineUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ("Listener", "activated", "notify")

_FIRST_FD = 3
_BACKLOG = 4096


class Listener:
    """The socket that clients connect to; `close` removes it if it is ours.

    ``path`` must be in a directory that only root may write to.  Raises EngineUnavailable
    if another service answers there, or something else is in the way.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode: int | None = None
        self.socket = activated(os.environ)
        if self.socket is not None:
            self.path = str(self.socket.getsockname())
            return
        _refuse_living(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Create it under another name and rename it: no client ever finds a socket that is not
        # ready, and a stale one is replaced atomically.
        new = f"{path}.{os.getpid()}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            self.socket.bind(new)
            os.chmod(new, 0o666)
            self.socket.listen(_BACKLOG)
            self._inode = os.stat(new).st_ino
            os.rename(new, path)
        except OSError as error:
            self.socket.close()
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise EngineUnavailable(
                error.errno, f"cannot listen at {path}: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """Remove the socket, unless it was replaced by another one."""
        if self.socket is None:
            return
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)
        self.socket.close()
        self.socket = None


def _refuse_living(path: str) -> None:
    """Raises EngineUnavailable unless there is nothing at ``path``, or a socket left behind."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise EngineUnavailable(error.errno, f"cannot listen at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(kind):
        raise EngineUnavailable(errno.EEXIST, f"cannot listen at {path}: it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.setblocking(False)
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                why = "another kind of service answers there"
            else:
                why = "another service answers there"
        else:
            why = "another service answers there"
    raise EngineUnavailable(errno.EADDRINUSE, f"cannot listen at {path}: {why}")


def activated(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that systemd listens on for us, None if it does not.

    Raises EngineUnavailable if what it handed over cannot be used.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or not int(count):
        return None
    os.set_inheritable(_FIRST_FD, False)
    try:
        sock = socket.socket(fileno=_FIRST_FD)
    except OSError as error:
        raise EngineUnavailable(
            error.errno, f"systemd's descriptor cannot be used: {error.strerror}"
        ) from None
    if int(count) != 1 or sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        raise EngineUnavailable(
            errno.EINVAL, "systemd must listen on one socket, with ListenSequentialPacket="
        )
    return sock


def notify(state: str) -> None:
    """Notify systemd of our state, such as "READY=1", if it has asked for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(address)
        sock.sendall(state.encode())
