"""The connections to the socket: whose they are, and how many there may be."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Hashable

    from ..kernel.identity import Identity
    from .limits import Limits

__all__ = ("Connection", "Connections", "close_fd")


class Connection:
    """The connection of a client.

    If it has no ``identity``, its requests are answered with the errno ``refusal``.
    """

    __slots__ = ("busy", "identity", "pending", "refusal", "since", "socket", "user")

    def __init__(
        self, sock: socket.socket, user: Hashable, identity: Identity | None, refusal: int
    ) -> None:
        self.socket = sock
        self.user = user
        self.identity = identity
        self.refusal = refusal
        #: Whether a worker has it.
        self.busy = False
        #: A reply that could not be sent yet, and the descriptor to go with it or -1.
        self.pending: tuple[bytes, int] | None = None
        #: When it was last heard of.
        self.since = time.monotonic()


class Connections:
    """All connections, by descriptor.  For the main thread alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all: dict[int, Connection] = {}
        self._held: dict[Hashable, int] = {}

    def get(self, fd: int) -> Connection | None:
        """The connection with that descriptor."""
        return self._all.get(fd)

    def make_room(self, user: Hashable) -> bool:
        """Whether the user may have one more.

        When there are too many in all, the user who has the most of them loses one.
        """
        held = self._held.get(user, 0)
        if held >= self._limits.connections_each:
            return False
        if len(self._all) < self._limits.connections:
            return True
        heaviest = max(self._held, key=lambda one: self._held[one])
        if self._held[heaviest] <= held + 1:
            return False
        for connection in self._all.values():
            if connection.user == heaviest and not connection.busy:
                self.close(connection)
                return True
        return False

    def add(self, connection: Connection) -> None:
        """Add a connection."""
        self._all[connection.socket.fileno()] = connection
        self._held[connection.user] = self._held.get(connection.user, 0) + 1

    def close(self, connection: Connection) -> None:
        """Remove a connection that no worker has."""
        if self._all.pop(connection.socket.fileno(), None) is None:
            return
        self._held[connection.user] -= 1
        if not self._held[connection.user]:
            del self._held[connection.user]
        if connection.pending is not None:
            close_fd(connection.pending[1])
            connection.pending = None
        connection.socket.close()

    def close_silent(self, now: float) -> None:
        """Close connections that send no requests, or do not receive their replies."""
        for connection in list(self._all.values()):
            sent = connection.pending is None
            limit = self._limits.idle if sent else self._limits.unsent
            if not connection.busy and now - connection.since > limit:
                self.close(connection)

    def close_all(self) -> None:
        """Close all connections."""
        for connection in list(self._all.values()):
            self.close(connection)


def close_fd(fd: int) -> None:
    """Close a descriptor, if it is one."""
    if fd >= 0:
        os.close(fd)
