"""What workers do: read requests, make answers, send replies.

If one iterator of the kernel is the whole answer, the client gets its descriptor and reads it
directly; otherwise it gets a pipe that workers fill (`streams`).
"""

from __future__ import annotations

import errno
import socket
import time
from array import array

from ..errors import TaskdiagError
from ..request import Request
from .connections import close_fd
from .protocol import MOST_REQUEST, errno_of, reply
from .streams import Slots, Stream
from .workers import WorkerPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Protocol

    from .backend import Backend, Lease
    from .connections import Connection
    from .limits import Limits
    from .log import Complaints

    class Loop(Protocol):
        """The main thread, which waits for sockets and pipes."""

        def wait_for_client(self, connection: Connection) -> None:
            """Wait until the client can be read from, or a pending reply be sent."""

        def drop(self, connection: Connection) -> None:
            """Close a connection that the caller had."""

        def wait_for_reader(self, job: Job) -> None:
            """Wait until there is room in the pipe of a job."""


__all__ = ("Answering", "Job")


class Job:
    """An answer that goes through a pipe, with the user it is charged to and what it holds."""

    __slots__ = ("lease", "stream", "user")

    def __init__(self, stream: Stream, lease: Lease, user: Hashable) -> None:
        self.stream = stream
        self.lease = lease
        self.user = user


class Answering:
    """The workers, from `serve` and `resend` for connections, `go_on` for pipes."""

    def __init__(
        self, backend: Backend, limits: Limits, complaints: Complaints, loop: Loop
    ) -> None:
        self._backend = backend
        self._complaints = complaints
        self._loop = loop
        self._slots = Slots(limits.streams, limits.streams_each)
        self._workers = WorkerPool(limits.workers, limits.workers_each)

    def holds_up(self, user: Hashable) -> bool:
        """Whether a request that waits for a pipe could use one of this user's."""
        return self._slots.holds_up(user)

    def serve(self, connection: Connection) -> None:
        """Have the next request of a connection read and answered."""
        self._add(connection, lambda: self._serve(connection))

    def resend(self, connection: Connection) -> None:
        """Have a reply sent that could not be sent before."""
        self._add(connection, lambda: self._send(connection))

    def go_on(self, job: Job) -> None:
        """Have more of an answer written."""
        self._workers.add(job.user, lambda: self._write(job))

    def end(self, timeout: float) -> bool:
        """Let workers finish what they are doing; False if one did not in time."""
        return self._workers.end(timeout)

    def end_job(self, job: Job) -> None:
        """Free what an answer holds.  If it was not written to its end, it is cut off."""
        job.stream.close()
        job.lease.close()
        self._slots.free(job.user)

    def _add(self, connection: Connection, work: Callable[[], None]) -> None:
        """Let a worker do something for a connection; a failure ends only this connection."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                self._complaints.log(f"internal error: {type(error).__name__}: {error}")
                self._loop.drop(connection)

        self._workers.add(connection.user, run)

    def _serve(self, connection: Connection) -> None:
        try:
            data, _, flags, _ = connection.socket.recvmsg(MOST_REQUEST)
        except BlockingIOError:
            self._done(connection)
            return
        except OSError:
            self._loop.drop(connection)
            return
        if not data:
            self._loop.drop(connection)
        elif connection.identity is None:
            self._reply(connection, data, connection.refusal)
        elif flags & socket.MSG_TRUNC:
            self._reply(connection, data, errno.EMSGSIZE)
        else:
            self._answer(connection, data, self._backend.lease(connection.identity))

    def _answer(self, connection: Connection, data: bytes, lease: Lease) -> None:
        fd: int | None = None
        try:
            request = Request.decode(data)
            fd = lease.open(request)
        except (TaskdiagError, OSError) as error:
            lease.close()
            self._refuse(connection, data, error)
            return
        except BaseException:
            lease.close()
            raise
        if fd is not None:
            lease.close()
            self._reply(connection, data, 0, fd)
            return

        def begin() -> None:
            self._begin(connection, data, request, lease)

        # This is called by any thread that frees a slot, so it only queues the work.
        self._slots.take(connection.user, lambda: self._add(connection, begin))

    def _begin(self, connection: Connection, data: bytes, request: Request, lease: Lease) -> None:
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
            self._refuse(connection, data, error)
            return
        job = Job(stream, lease, connection.user)
        reader, stream.reader = stream.reader, -1
        try:
            self._reply(connection, data, 0, reader)
        finally:
            self._settle(job, more)

    def _write(self, job: Job) -> None:
        try:
            more = job.stream.step()
        except BrokenPipeError:
            more = False
        except Exception as error:
            self._complaints.log(f"an answer failed: {error}")
            more = False
        self._settle(job, more)

    def _settle(self, job: Job, more: bool | None) -> None:
        """What comes after a step of a stream: another, a wait for its reader, or the end."""
        if more:
            self.go_on(job)
        elif more is None:
            self._loop.wait_for_reader(job)
        else:
            self.end_job(job)

    def _refuse(self, connection: Connection, data: bytes, error: Exception) -> None:
        code = errno_of(error)
        if code in (errno.EIO, errno.EAGAIN):
            self._complaints.log(f"cannot answer: {error}")
        self._reply(connection, data, code)

    def _reply(self, connection: Connection, data: bytes, code: int, fd: int = -1) -> None:
        """Send a reply to the request ``data``, with a descriptor that is closed afterwards."""
        connection.pending = (reply(code, data), fd)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        assert connection.pending is not None
        message, fd = connection.pending
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))] if fd >= 0 else []
        try:
            connection.socket.sendmsg([message], extra)
        except BlockingIOError:
            self._done(connection)
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._complaints.log("too many descriptors are on their way")
            self._loop.drop(connection)
            return
        connection.pending = None
        close_fd(fd)
        self._done(connection)

    def _done(self, connection: Connection) -> None:
        connection.since = time.monotonic()
        connection.busy = False
        self._loop.wait_for_client(connection)
