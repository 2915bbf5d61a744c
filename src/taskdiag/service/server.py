"""The server: a main thread that waits for sockets and pipes, and passes work to workers.

It accepts connections, identifies their clients, and is the only one to close them; workers
(`answering`) read the requests and make the answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections import deque

from ..errors import AccessDenied
from .answering import Answering
from .backend import Backend
from .connections import Connection, Connections
from .limits import Limits
from .log import Complaints, log
from .protocol import MOST_REQUEST, reply
from .sockets import Listener, notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .answering import Job

__all__ = ("Limits", "Server")

_SO_PEERSEC = 31
_EVENTS = 256
#: Connections taken in at once, before those that are in are served again.
_ACCEPTS = 64
_ONCE = select.EPOLLONESHOT
#: Seconds that workers have to finish when the service ends.
_PATIENCE = 0.5


class Server:
    """Serves the socket at ``path`` until it is told to stop.

    Raises EngineUnavailable if the kernel engine does not work here, or the socket cannot be
    made.
    """

    def __init__(self, path: str, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.limits.fit()
        self.backend = Backend()
        self.listener = Listener(path)
        assert self.listener.socket is not None
        self._listening = self.listener.socket
        self._listening.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listening, select.EPOLLIN)
        self._connections = Connections(self.limits)
        self._jobs: dict[int, Job] = {}
        # Requests of workers to close a connection, which only this thread may do.
        self._posts: deque[Callable[[], None]] = deque()
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        self._epoll.register(self._bell[0], select.EPOLLIN)
        self._complaints = Complaints()
        self._answering: Answering | None = None
        self._stopping = False
        self._swept = time.monotonic()

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit status."""
        self._answering = Answering(self.backend, self.limits, self._complaints, self)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.set_wakeup_fd(self._bell[1].fileno(), warn_on_full_buffer=False)
        log(f"listening at {self.listener.path}")
        notify("READY=1")
        try:
            while not self._stopping:
                self._turn(self._answering)
        finally:
            notify("STOPPING=1")
            self._end(self._answering)
        return 0

    def stop(self) -> None:
        """Make `run` return; may be called from any thread."""
        self._stopping = True
        self._ring()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _turn(self, answering: Answering) -> None:
        """Wait until something happens, and deal with it."""
        accept = False
        for fd, events in self._epoll.poll(1.0, _EVENTS):
            connection = self._connections.get(fd)
            if fd == self._listening.fileno():
                accept = True
            elif fd == self._bell[0].fileno():
                with contextlib.suppress(BlockingIOError):
                    while self._bell[0].recv(4096):
                        pass
            elif fd in self._jobs:
                job = self._jobs.pop(fd)
                self._epoll.unregister(fd)
                answering.go_on(job)
            elif connection is not None and not connection.busy:
                self._ready(answering, connection, events)
        while self._posts:
            self._posts.popleft()()
        now = time.monotonic()
        if now - self._swept > 1:
            self._swept = now
            self._connections.close_silent(now)
            self._end_unread(answering, now)
        # Last, so that no descriptor's number is reused while an event above is about it.
        if accept:
            self._accept()

    def _ready(self, answering: Answering, connection: Connection, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._connections.close(connection)
            return
        connection.busy = True
        if connection.pending is None:
            answering.serve(connection)
        else:
            answering.resend(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # Only waiting helps, and it must not take a whole CPU.
                    self._complaints.log(f"cannot accept: {error.strerror}")
                    time.sleep(0.01)
                    return
                continue
            sock.setblocking(False)
            try:
                self._admit(sock)
            except Exception as error:
                sock.close()
                self._complaints.log(f"cannot tell who is connected: {error}")

    def _admit(self, sock: socket.socket) -> None:
        """Identify the client, and check whether its user may have one more connection."""
        try:
            label = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERSEC, 4096)
        except OSError:
            label = b""
        identity, refusal = None, 0
        user: Hashable = ("refused",)
        try:
            identity = self.backend.identify(sock.fileno(), label)
            user = identity.user
        except AccessDenied as error:
            refusal = error.errno or errno.EACCES
            self._complaints.log(f"refused a client: {error.strerror}")
        if not self._connections.make_room(user):
            with contextlib.suppress(OSError):
                sock.recv(MOST_REQUEST)
            with contextlib.suppress(OSError):
                sock.send(reply(errno.EAGAIN, b""))
            sock.close()
            return
        # Replies that are not read soon take no memory; they wait in `Connection.pending`.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self._connections.add(Connection(sock, user, identity, refusal))
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | _ONCE)

    def _end_unread(self, answering: Answering, now: float) -> None:
        """End the answers that nobody reads."""
        # First the one that has not been read for longest.  Each that ends lets another one
        # start, and no more end than others wait for.
        for fd, job in sorted(self._jobs.items(), key=lambda item: item[1].stream.progress):
            waited_for = answering.holds_up(job.user)
            limit = self.limits.unread if waited_for else self.limits.forgotten
            if now - job.stream.progress > limit:
                del self._jobs[fd]
                self._epoll.unregister(fd)
                answering.end_job(job)
                self._complaints.log(f"ended an answer that was not read for {limit:.0f} s")

    def _end(self, answering: Answering) -> None:
        """Stop serving.  Answers that are being written end in the middle of a message."""
        self.listener.close()
        if not answering.end(_PATIENCE):
            # A worker is blocked in the kernel; the end of the process frees everything.
            os._exit(0)
        for job in list(self._jobs.values()):
            job.stream.close()
        self._connections.close_all()
        self._epoll.close()
        signal.set_wakeup_fd(-1)
        for end in self._bell:
            end.close()
        self.backend.close()

    # --- Called by workers ------------------------------------------------------------

    def wait_for_client(self, connection: Connection) -> None:
        """Wait until the client can be read from, or a pending reply be sent."""
        events = select.EPOLLIN | select.EPOLLRDHUP | _ONCE
        if connection.pending is not None:
            events = select.EPOLLOUT | _ONCE
        self._epoll.modify(connection.socket, events)

    def drop(self, connection: Connection) -> None:
        """Close a connection that the caller had."""

        def close() -> None:
            connection.busy = False
            self._connections.close(connection)

        self._post(close)

    def wait_for_reader(self, job: Job) -> None:
        """Wait until there is room in the pipe of a job."""

        def watch() -> None:
            self._jobs[job.stream.writer] = job
            self._epoll.register(job.stream.writer, select.EPOLLOUT)

        self._post(watch)

    def _post(self, what: Callable[[], None]) -> None:
        self._posts.append(what)
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell[1].send(b".")
