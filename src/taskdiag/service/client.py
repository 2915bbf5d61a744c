"""The service engine: the client of the local service.

Every command of a user without privileges imports this module, so it imports as little as
possible itself (the socket module alone takes milliseconds).
"""

from __future__ import annotations

import _socket
import errno
import os
from struct import Struct

from ..errors import EngineUnavailable
from ..netlink import rechunk
from ..readahead import readahead
from .protocol import error_of, reply_error, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..request import Request

__all__ = ("ServiceEngine",)

_READ = 1 << 16
#: Seconds to wait for a reply.  There is no limit for reading the answer.
_PATIENCE = 60
_FD = Struct("=i")


class ServiceEngine:
    """Answers requests by asking the taskdiag service of this host.

    >>> engine = ServiceEngine("/run/taskdiag.sock")
    >>> sum(len(chunk) for chunk in engine.stream(Request(Show.BASE))) > 0
    True

    An answer shows the tasks that the caller may see with the credentials that it has when
    `stream` is called.  ``path`` is the path of the socket, by default ``TASKDIAG_SOCKET`` or
    /run/taskdiag.sock.

    Raises EngineUnavailable if there is no socket.
    """

    name = "service"

    def __init__(self, path: str | None = None, *, read_ahead: bool = False) -> None:
        self._read_ahead = read_ahead
        self._path = path or socket_path()
        try:
            os.stat(self._path)
        except OSError as error:
            raise EngineUnavailable(
                error.errno, f"no service at {self._path}: {error.strerror}"
            ) from None

    def stream(self, request: Request) -> Iterator[bytes]:
        """The answer, in chunks of whole processes.

        The service has accepted the request before this returns, so its refusals are raised
        here: NoSuchProcess, RequestError, AccessDenied, and EngineUnavailable if there is no
        service, or it is too busy or does not serve this client.  Later, EngineUnavailable is
        raised only if the service ends before the answer is complete.
        """
        chunks = _chunks(self._ask(request))
        return readahead(chunks) if self._read_ahead else chunks

    def _ask(self, request: Request) -> int:
        """The descriptor to read the answer from."""
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
            try:
                sock.settimeout(_PATIENCE)
                sock.connect(self._path)
                sock.send(request.encode())
                data, extra, _, _ = sock.recvmsg(
                    256, _socket.CMSG_SPACE(_FD.size), _socket.MSG_CMSG_CLOEXEC
                )
            finally:
                sock.close()
        except OSError as error:
            raise EngineUnavailable(
                error.errno, f"no answer from the service at {self._path}: {_why(error)}"
            ) from None
        fd = _descriptor(extra)
        try:
            code = reply_error(data)
        except ValueError:
            what = "closed the connection" if not data else "does not speak our protocol"
            code, why = errno.EPROTO, f"the service at {self._path} {what}"
        else:
            why = f"the service at {self._path} refuses: {os.strerror(code)}"
            if not code and fd < 0:
                # As much as a full table of descriptors lets through.
                code, why = errno.EMFILE, "the service's answer could not be received"
        if not code:
            return fd
        if fd >= 0:
            os.close(fd)
        raise error_of(code, why, request.pid)


def _why(error: OSError) -> str:
    return error.strerror or "it takes too long"


def _descriptor(extra: list[tuple[int, int, bytes]]) -> int:
    """The descriptor that came with a message, -1 if none did."""
    for level, kind, data in extra:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) >= _FD.size:
            return int(_FD.unpack_from(data)[0])
    return -1


def _chunks(fd: int) -> Iterator[bytes]:
    def read() -> bytes:
        while True:
            try:
                return os.read(fd, _READ)
            except BlockingIOError:
                # After a million tasks without output the kernel returns EAGAIN.
                continue

    try:
        # The service holds back the end of a message until there is more.
        yield from rechunk(
            read,
            EngineUnavailable(
                errno.EPIPE,
                "the service broke off its answer: it ended, or nobody read the answer for long",
            ),
        )
    finally:
        os.close(fd)
