"""The limits on what clients can make the service hold."""

from __future__ import annotations

import contextlib
import resource

__all__ = ("Limits",)


class Limits:
    """The limits in all and for one user, and the times after which things are closed.

    Seconds: ``idle`` is how long a connection may be silent, and ``unsent`` how long a client
    may leave replies unread.  An answer in a pipe may stay unread for ``unread`` while others
    wait for a pipe, and for ``forgotten`` in any case.
    """

    __slots__ = (
        "connections", "connections_each", "forgotten", "idle", "streams", "streams_each",
        "unread", "unsent", "workers", "workers_each",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connections = 4096
        self.connections_each = 1024
        self.streams = 128
        self.streams_each = 8
        self.workers = 8
        self.workers_each = 3
        self.idle = 60.0
        self.unsent = 10.0
        self.unread = 5.0
        self.forgotten = 600.0

    def fit(self) -> None:
        """Raise RLIMIT_NOFILE to what the limits need, or lower the limits to what it allows."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self.connections + 8 * self.streams + 2048
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            self.streams = max(4, min(self.streams, soft // 32))
            self.streams_each = min(self.streams_each, self.streams // 2)
            self.connections = max(16, soft // 2)
            self.connections_each = min(self.connections_each, self.connections // 2)
