"""The server: connections in, descriptors out.

One thread waits for all sockets and pipes and knows who is connected; workers read the
requests, in turns of users (`workers`), and make the answers.  Where one iterator of the
kernel is the whole answer, the client gets just that and reads it by itself; else a
pipe (`streams`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from array import array
from collections import deque

from ..errors import AccessDenied, TaskdiagError
from ..request import Request
from .backend import Backend, errno_of
from .protocol import MOST_REQUEST, reply
from .sockets import Listener, notify
from .streams import Slots, Stream
from .workers import WorkerPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from ..kernel.identity import Identity
    from .backend import Lease

__all__ = ("Limits", "Server")

_SO_PEERSEC = 31
_EVENTS = 256
#: Connections taken in at once, before those that are in have their turn.
_ACCEPTS = 64
_ONCE = select.EPOLLONESHOT


class Limits:
    """How much of everything there may be, in all and for one user.

    Seconds: ``idle`` is how long a connection may be silent, ``unsent`` how long a client
    may leave replies lying; ``unread`` how long an answer may lie in its pipe while
    others wait for a pipe, and ``forgotten`` in any case.
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
        """Stay within what descriptors this process may have, as many as it can get."""
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


class _Connection:
    """A client: who it is, and what it waits for."""

    __slots__ = ("busy", "identity", "pending", "refusal", "since", "socket", "user")

    def __init__(self, sock: socket.socket, user: Hashable) -> None:
        self.socket = sock
        self.user = user
        self.identity: Identity | None = None
        self.refusal = 0
        self.busy = False
        #: A reply that did not go out yet, and the descriptor to go with it.
        self.pending: tuple[bytes, int] | None = None
        self.since = time.monotonic()


class _Job:
    """A stream, who pays for it, and what to give back at its end."""

    __slots__ = ("lease", "stream", "user")

    def __init__(self, stream: Stream, lease: Lease, user: Hashable) -> None:
        self.stream = stream
        self.lease = lease
        self.user = user


class Server:
    """Serves the socket at ``path`` until it is told to stop.

    Raises EngineUnavailable where the kernel engine does not work, or the socket cannot
    be made.
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
        self._connections: dict[int, _Connection] = {}
        self._users: dict[Hashable, int] = {}
        self._jobs: dict[int, _Job] = {}
        # What workers leave for the main thread, which alone closes what it waits for.
        self._posts: deque[Callable[[], None]] = deque()
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        self._epoll.register(self._bell[0], select.EPOLLIN)
        self._slots = Slots(self.limits.streams, self.limits.streams_each)
        self._stopping = False
        self._swept = time.monotonic()
        self._workers: WorkerPool | None = None
        self._silent_until = 0.0

    # --- The main thread ------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit status."""
        self._workers = WorkerPool(self.limits.workers, self.limits.workers_each)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.set_wakeup_fd(self._bell[1].fileno(), warn_on_full_buffer=False)
        log(f"listening at {self.listener.path}")
        notify("READY=1")
        try:
            while not self._stopping:
                self._turn()
        finally:
            notify("STOPPING=1")
            self._end()
        return 0

    def stop(self) -> None:
        """Make `run` return; may be called from any thread."""
        self._stopping = True
        self._ring()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        accept = False
        for fd, events in self._epoll.poll(1.0, _EVENTS):
            if fd == self._listening.fileno():
                accept = True
            elif fd == self._bell[0].fileno():
                with contextlib.suppress(BlockingIOError):
                    while self._bell[0].recv(4096):
                        pass
            elif fd in self._jobs:
                self._stream_ready(self._jobs[fd])
            elif fd in self._connections:
                self._connection_ready(self._connections[fd], events)
        while self._posts:
            self._posts.popleft()()
        now = time.monotonic()
        if now - self._swept > 1:
            self._swept = now
            self._sweep(now)
        # Last, so that no number is given again that an event above was about.
        if accept:
            self._accept()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell[1].send(b".")

    def _post(self, what: Callable[[], None]) -> None:
        self._posts.append(what)
        self._ring()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # Only time helps; and it must not take all of ours.
                    self._complain(f"cannot accept: {error.strerror}")
                    time.sleep(0.01)
                    return
                continue
            sock.setblocking(False)
            try:
                self._admit(sock)
            except Exception as error:
                sock.close()
                self._complain(f"cannot tell who is connected: {error}")

    def _admit(self, sock: socket.socket) -> None:
        """Find out who is connected, and whether there is room for one more of them."""
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
            self._complain(f"refused a client: {error.strerror}")
        if not self._room(user):
            with contextlib.suppress(OSError):
                sock.recv(MOST_REQUEST)
            with contextlib.suppress(OSError):
                sock.send(reply(errno.EAGAIN, b""))
            sock.close()
            return
        # Replies that are not read soon hold up whoever they are for, and take no memory.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        connection = _Connection(sock, user)
        connection.identity, connection.refusal = identity, refusal
        self._connections[sock.fileno()] = connection
        self._users[user] = self._users.get(user, 0) + 1
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | _ONCE)

    def _room(self, user: Hashable) -> bool:
        """Whether the user may have one more connection; at the cost of who has the most."""
        held = self._users.get(user, 0)
        if held >= self.limits.connections_each:
            return False
        if len(self._connections) < self.limits.connections:
            return True
        heaviest = max(self._users, key=lambda one: self._users[one])
        if self._users[heaviest] <= held + 1:
            return False
        for connection in self._connections.values():
            if connection.user == heaviest and not connection.busy:
                self._close(connection)
                return True
        return False

    def _connection_ready(self, connection: _Connection, events: int) -> None:
        assert self._workers is not None
        if connection.busy:
            return
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._close(connection)
            return
        connection.busy = True
        work = self._send_again if connection.pending is not None else self._serve
        self._workers.add(connection.user, lambda: self._guarded(work, connection))

    def _stream_ready(self, job: _Job) -> None:
        assert self._workers is not None
        del self._jobs[job.stream.writer]
        self._epoll.unregister(job.stream.writer)
        self._workers.add(job.user, lambda: self._go_on(job))

    def _close(self, connection: _Connection) -> None:
        """Forget a connection that no worker is at."""
        fd = connection.socket.fileno()
        if self._connections.pop(fd, None) is None:
            return
        self._users[connection.user] -= 1
        if not self._users[connection.user]:
            del self._users[connection.user]
        if connection.pending is not None:
            _close_fd(connection.pending[1])
            connection.pending = None
        connection.socket.close()

    def _sweep(self, now: float) -> None:
        """Close what nobody seems to be interested in any more."""
        for connection in list(self._connections.values()):
            limit = self.limits.idle if connection.pending is None else self.limits.unsent
            if not connection.busy and now - connection.since > limit:
                self._close(connection)
        # The one that was not read for longest first: each that ends lets another start, and
        # only as many end as are waited for.
        for fd, job in sorted(self._jobs.items(), key=lambda item: item[1].stream.progress):
            waited_for = self._slots.holds_up(job.user)
            limit = self.limits.unread if waited_for else self.limits.forgotten
            if now - job.stream.progress > limit:
                del self._jobs[fd]
                self._epoll.unregister(fd)
                self._end_job(job)
                self._complain(f"ended an answer that was not read for {limit:.0f} s")

    def _end(self) -> None:
        """Stop serving: what is being written is cut off, and looks so."""
        self.listener.close()
        done = self._workers is None or self._workers.end(0.5)
        if not done:
            # A worker is held up in the kernel; the end of the process frees everything.
            os._exit(0)
        for job in list(self._jobs.values()):
            job.stream.close()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()
        signal.set_wakeup_fd(-1)
        for end in self._bell:
            end.close()
        self.backend.close()

    def _complain(self, what: str) -> None:
        """Log something that strangers can bring about, but not more than once a second."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + 1
            log(what)

    # --- The workers -----------------------------------------------------------------

    def _guarded(self, work: Callable[[_Connection], None], connection: _Connection) -> None:
        """Do something for a connection; whatever goes wrong is the end of that one only."""
        try:
            work(connection)
        except Exception as error:
            self._complain(f"internal error: {type(error).__name__}: {error}")
            self._drop(connection)

    def _serve(self, connection: _Connection) -> None:
        """Read one request and see to it."""
        try:
            data, _, flags, _ = connection.socket.recvmsg(MOST_REQUEST)
        except BlockingIOError:
            self._rearm(connection)
            return
        except OSError:
            self._drop(connection)
            return
        if not data:
            self._drop(connection)
            return
        if connection.identity is None:
            self._reply(connection, data, connection.refusal)
            return
        if flags & socket.MSG_TRUNC:
            self._reply(connection, data, errno.EMSGSIZE)
            return
        lease = self.backend.lease(connection.identity)
        fd: int | None = None
        try:
            request = Request.decode(data)
            fd = lease.open(request)
        except (TaskdiagError, OSError) as error:
            self._failed(error)
            lease.close()
            self._reply(connection, data, errno_of(error))
            return
        except BaseException:
            lease.close()
            raise
        if fd is not None:
            lease.close()
            self._reply(connection, data, 0, fd)
            return
        self._slots.take(connection.user, lambda: self._stream(connection, data, request, lease))

    def _stream(self, connection: _Connection, data: bytes, request: Request, lease: Lease) -> None:
        """Called with a slot, by whoever had it to give: leave the work to a worker."""
        assert self._workers is not None
        self._workers.add(
            connection.user,
            lambda: self._guarded(
                lambda _: self._begin(connection, data, request, lease), connection
            ),
        )

    def _begin(self, connection: _Connection, data: bytes, request: Request, lease: Lease) -> None:
        """Make the beginning of an answer, and hand out the pipe."""
        stream = None
        try:
            stream = Stream(lease.stream(request))
            more = stream.step()
        except BaseException as error:
            if stream is not None:
                stream.close()
            lease.close()
            self._slots.free(connection.user)
            if not isinstance(error, (TaskdiagError, OSError)):
                raise
            self._failed(error)
            self._reply(connection, data, errno_of(error))
            return
        job = _Job(stream, lease, connection.user)
        reader, stream.reader = stream.reader, -1
        try:
            self._reply(connection, data, 0, reader)
        finally:
            self._settle(job, more)

    def _go_on(self, job: _Job) -> None:
        try:
            more = job.stream.step()
        except BrokenPipeError:
            more = False
        except Exception as error:
            self._complain(f"an answer failed: {error}")
            more = False
        self._settle(job, more)

    def _settle(self, job: _Job, more: bool | None) -> None:
        """What comes next for a stream: waiting for its reader, another turn, the end."""
        assert self._workers is not None
        if more:
            self._workers.add(job.user, lambda: self._go_on(job))
        elif more is None:
            self._post(lambda: self._watch(job))
        else:
            self._end_job(job)

    def _watch(self, job: _Job) -> None:
        self._jobs[job.stream.writer] = job
        self._epoll.register(job.stream.writer, select.EPOLLOUT)

    def _end_job(self, job: _Job) -> None:
        job.stream.close()
        job.lease.close()
        self._slots.free(job.user)

    def _failed(self, error: Exception) -> None:
        if errno_of(error) in (errno.EIO, errno.EAGAIN):
            self._complain(f"cannot answer: {error}")

    def _reply(self, connection: _Connection, data: bytes, code: int, fd: int = -1) -> None:
        """Send a reply, with a descriptor that is closed here in any case."""
        connection.pending = (reply(code, data), fd)
        self._send_again(connection)

    def _send_again(self, connection: _Connection) -> None:
        assert connection.pending is not None
        message, fd = connection.pending
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))] if fd >= 0 else []
        try:
            connection.socket.sendmsg([message], extra)
        except BlockingIOError:
            self._rearm(connection)
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._complain("too many descriptors are on their way")
            self._drop(connection)
            return
        connection.pending = None
        _close_fd(fd)
        self._rearm(connection)

    def _rearm(self, connection: _Connection) -> None:
        """Wait for the connection again."""
        connection.since = time.monotonic()
        events = select.EPOLLIN | select.EPOLLRDHUP | _ONCE
        if connection.pending is not None:
            events = select.EPOLLOUT | _ONCE
        connection.busy = False
        self._epoll.modify(connection.socket, events)

    def _drop(self, connection: _Connection) -> None:
        def close() -> None:
            connection.busy = False
            self._close(connection)

        self._post(close)


def _close_fd(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def log(message: str) -> None:
    """One line on standard error, without a stranger's control characters."""
    from ..terminal import clean

    line = clean(os.fsencode(f"taskdiag serve: {message}")) + b"\n"
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line)
