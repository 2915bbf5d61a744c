"""Identifying clients, and the engines that answer them."""

from __future__ import annotations

import _thread
import errno
import os

from ..abi import Dump, Show
from ..errors import AccessDenied, EngineUnavailable
from ..kernel import KernelEngine, completion, recheck
from ..kernel.facts import Facts
from ..kernel.identity_reader import Reader
from ..kernel.viewer_root import ViewerRoot
from .confinement import Confinement, landlock_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..kernel.identity import Identity
    from ..request import Request

__all__ = ("Backend", "Lease", "label_of")

# What the kernel engine imports when it is first needed is imported now: the package may
# be replaced on disk by another version while the service runs.
_ = completion, recheck

#: Engines kept, each with the programs of one kind of viewer; and how many for one user.
_ENGINES, _ENGINES_EACH = 128, 8
#: Programs kept by each of them.
_PROGRAMS = 8


class _Shared:
    """One viewer's engine, used by any number of answers at once."""

    def __init__(self, engine: KernelEngine, user: object) -> None:
        self.engine = engine
        self.user = user
        self.leases = 0
        # One iterator is made at a time, or each would need a program of its own.
        self.opening = _thread.allocate_lock()


class Lease:
    """The use of an engine for one identity; `close` it when the answer has been read."""

    def __init__(self, backend: Backend, shared: _Shared, identity: Identity) -> None:
        self._backend = backend
        self._identity = identity
        self._root: ViewerRoot | None = None
        self._shared: _Shared | None = shared
        self._engine = shared.engine
        self._opening = shared.opening

    def open(self, request: Request) -> int | None:
        """A descriptor that the whole answer can be read from; None if it takes a `stream`."""
        if request.strategy not in (Dump.ALL, Dump.ALL_THREAD):
            # Whether there is such a process is only known after reading.
            return None
        with self._opening:
            return self._engine.open(request)

    def stream(self, request: Request) -> Iterator[bytes]:
        """The answer, in chunks of whole processes.

        Raises AccessDenied if it has paths that cannot be given as the client sees them.
        """
        if request.show & Show.VMA and self._root is None:
            self._root = self._backend.root_of(self._identity)
        return self._engine.stream(request, self._root)

    def close(self) -> None:
        """Give the engine back; it is then used for other requests, or freed."""
        if self._root is not None:
            self._root.close()
            self._root = None
        if self._shared is not None:
            self._backend.release(self._shared)
            self._shared = None


class Backend:
    """Identities, and an engine for each kind of viewer.

    Safe to be used from several threads, except for `identify`, which is for one.

    Raises EngineUnavailable if the kernel engine does not work here.
    """

    def __init__(self) -> None:
        self.facts = Facts.live()
        own = KernelEngine(facts=self.facts)
        self._host = own.host
        self._home = own.own.home()
        # What programs depend on in the host is determined now, with our own identity.
        own.prepare(Show.VMA | Show.STATM)
        own.close()
        self._reader = Reader(self.facts, *self._home)
        self._own = self._reader.of_task(os.getpid())
        try:
            self._confinement = Confinement(landlock_word(self._reader))
        except OSError as error:
            raise EngineUnavailable(errno.EACCES, str(error)) from None
        self._engines: dict[object, _Shared] = {}
        self._lock = _thread.allocate_lock()

    def identify(self, fd: int, label: bytes) -> Identity:
        """The peer of a socket, when it connected.

        ``label`` is its security label.  Raises AccessDenied for clients that cannot be
        served.
        """
        return self._checked(self._reader.of_socket(fd), label)

    def identify_task(self, tid: int, uid: int, gid: int, label: bytes) -> Identity:
        """The identity of a thread that waits for us, and must have that fsuid and fsgid.

        Raises AccessDenied, NoSuchProcess.
        """
        found = self._reader.of_task(tid)
        if (found.fsuid, found.fsgid) != (uid, gid):
            raise AccessDenied(errno.EACCES, "another thread has that id by now")
        return self._checked(found, label)

    def _checked(self, identity: Identity, label: bytes) -> Identity:
        why = self._confinement.why(identity, label)
        if why:
            raise AccessDenied(errno.EACCES, f"confined by {why}")
        if not identity.nr:
            # Iterators walk our pid namespace and those below it.
            raise AccessDenied(errno.EACCES, "in a pid namespace outside the service's")
        return identity

    def lease(self, identity: Identity) -> Lease:
        """The use of an engine that answers for an identity."""
        viewer = identity.viewer(self._home)
        key = viewer.key()
        with self._lock:
            shared = self._engines.pop(key, None)
            if shared is None:
                engine = KernelEngine(viewer=viewer, facts=self.facts, host=self._host)
                engine.programs.kept = _PROGRAMS
                shared = _Shared(engine, identity.user)
            # The most recently used is last.
            self._engines[key] = shared
            shared.leases += 1
            self._evict(identity.user)
        return Lease(self, shared, identity)

    def root_of(self, identity: Identity) -> ViewerRoot | None:
        """The client's root directory, None if paths from ours are the same.

        Raises AccessDenied if the client's root cannot be taken on.
        """
        if identity.shares_paths(self._own):
            return None
        return ViewerRoot.of(identity, self._reader)

    def release(self, shared: _Shared) -> None:
        """Called by `Lease.close`."""
        with self._lock:
            shared.leases -= 1
            self._evict(shared.user)

    def _evict(self, user: object) -> None:
        """Free the least recently used engines: this user's, then anyone's."""
        own = [key for key, shared in self._engines.items() if shared.user == user]
        for keys, most in ((own, _ENGINES_EACH), (list(self._engines), _ENGINES)):
            surplus = len(keys) - most
            for key in keys:
                if surplus <= 0:
                    break
                shared = self._engines.get(key)
                if shared is not None and not shared.leases:
                    del self._engines[key]
                    shared.engine.close()
                    surplus -= 1

    def close(self) -> None:
        """Free every program."""
        self._reader.close()
        with self._lock:
            while self._engines:
                self._engines.popitem()[1].engine.close()


def label_of(tid: int) -> bytes:
    """The security label of a thread, b"" if it has none or it cannot be read."""
    try:
        fd = os.open(f"/proc/{tid}/attr/current", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
