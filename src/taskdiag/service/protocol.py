"""What client and service say to each other: docs/protocol.md.

A client sends one request as one message.  The reply is one message too: a ``struct
nlmsghdr`` of type NLMSG_ERROR and a ``struct nlmsgerr``.  Its ``error`` is 0 if the answer
can be read from the descriptor that comes with the message, else a negative errno.
"""

from __future__ import annotations

import os
from struct import Struct

from ..abi import NLMSG_ERROR

__all__ = ("DEFAULT_SOCKET", "MOST_REQUEST", "reply", "reply_error", "socket_path")

DEFAULT_SOCKET = "/run/taskdiag.sock"
#: Bytes of the longest request that is read.
MOST_REQUEST = 4096

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


def _seq(header: bytes) -> int:
    return int(Struct("=8xI4x").unpack(header)[0])
