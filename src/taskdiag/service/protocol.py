"""The messages between client and service, as docs/protocol.md describes them.

A client sends one request as one message.  The reply is one message too: a ``struct
nlmsghdr`` of type NLMSG_ERROR and a ``struct nlmsgerr``.  Its ``error`` is 0 if the answer
can be read from the descriptor that comes with the message, else a negative errno.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from ..abi import NLMSG_ERROR
from ..errors import (
    AccessDenied,
    EngineUnavailable,
    NoSuchProcess,
    RequestError,
    UnsupportedRequest,
)

__all__ = (
    "DEFAULT_SOCKET",
    "MOST_REQUEST",
    "errno_of",
    "error_of",
    "reply",
    "reply_error",
    "socket_path",
)

DEFAULT_SOCKET = "/run/taskdiag.sock"
#: Bytes of the longest request that is read.
MOST_REQUEST = 4096

#: The errno in a reply and the exception of the client; a subclass comes before its base.
_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (NoSuchProcess, errno.ESRCH),
    (UnsupportedRequest, errno.EOPNOTSUPP),
    (RequestError, errno.EINVAL),
    (AccessDenied, errno.EPERM),
)
#: Errors for a lack of descriptors or memory, which clients get as EAGAIN.
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# struct nlmsghdr, then struct nlmsgerr: error and the header of what it is about.
_REPLY = Struct("=IHHIIi16s")


def socket_path() -> str:
    """Where the service listens: ``TASKDIAG_SOCKET``, or the default."""
    return os.environ.get("TASKDIAG_SOCKET") or DEFAULT_SOCKET


def reply(error: int, request: bytes) -> bytes:
    """The reply to a request: 0, or the errno of what is wrong with it.

    >>> len(reply(0, bytes(40)))
    36
    """
    header = request[:16].ljust(16, b"\0")
    return _REPLY.pack(_REPLY.size, NLMSG_ERROR, 0, _seq(header), 0, -error, header)


def reply_error(data: bytes) -> int:
    """The errno that a reply holds, 0 for an answer.  Raises ValueError if it is no reply."""
    if len(data) < _REPLY.size:
        raise ValueError("short reply")
    _, kind, _, _, _, error, _ = _REPLY.unpack_from(data)
    if kind != NLMSG_ERROR or error > 0:
        raise ValueError("no reply")
    return -int(error)


def errno_of(error: Exception) -> int:
    """The errno that a client gets for an error: EIO unless a client may cause it."""
    for kind, code in _ERRNOS:
        if isinstance(error, kind):
            # Of clients that are not served at all it is EACCES.
            return (error.errno or code) if isinstance(error, AccessDenied) else code
    if isinstance(error, OSError) and not isinstance(error, EngineUnavailable):
        return errno.EAGAIN if error.errno in _SCARCE else errno.EIO
    return errno.EIO


def error_of(code: int, why: str, pid: int) -> Exception:
    """The exception for an errno in a reply to a request with that pid."""
    for kind, known in _ERRNOS:
        if code == known:
            if kind is NoSuchProcess:
                return NoSuchProcess(pid)
            return AccessDenied(code, why) if kind is AccessDenied else kind(why)
    return EngineUnavailable(code, why)


def _seq(header: bytes) -> int:
    return int(Struct("=8xI4x").unpack(header)[0])
