"""Reading identities: of a socket's peer, and of a task.

`Reader.of_socket` reads what the kernel recorded about the peer when it connected
(``sk_peer_cred`` and ``sk_peer_pid``, to which the socket holds references).
`Reader.of_task` reads the credentials that a task acts with now.  SO_PEERCRED has no
capabilities, fsuid or user namespace, and in /proc the number may belong to another process
by now.
"""

from __future__ import annotations

import os
from sys import byteorder

from ..errors import EngineUnavailable, NoSuchProcess
from . import bpf
from .identity import decode
from .identity_program import socket_program, task_program
from .viewer import INIT_PID_NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .asm import Code
    from .facts import Facts
    from .identity import Identity

__all__ = ("Reader",)


class Reader:
    """Reads identities; its programs are loaded once.  Freed by `close`.

    ``level`` and ``pid_ns`` are those of this process's pid namespace.  Without ``sockets``
    it can only read tasks, and loads one program less.

    Raises EngineUnavailable if BPF cannot be used, or the kernel keeps credentials in an
    unknown way.
    """

    def __init__(
        self, facts: Facts, level: int = 0, pid_ns: int = INIT_PID_NS, *, sockets: bool = True
    ) -> None:
        self._facts = facts
        self._level = level
        self._pid_ns = pid_ns
        self._fds: list[int] = []
        try:
            self._wanted = self._keep(bpf.create_map(bpf.MAP_TYPE_ARRAY, 4, 8, 1))
            self._socket = -1
            if sockets:
                self._socket = self._load(socket_program(facts, level), "bpf_iter_task_file")
            self._task = self._load(task_program(facts, level), "bpf_iter_task")
        except bpf.BpfError as error:
            self.close()
            if isinstance(error, bpf.VerifierError):
                raise
            raise EngineUnavailable(
                error.errno,
                f"the kernel refused to load a program: {os.strerror(error.errno or 0)}",
            ) from None

    def of_socket(self, fd: int) -> Identity:
        """The peer of a connected socket of this process, as it was when it connected.

        Raises EngineUnavailable if the kernel does not tell.
        """
        bpf.map_update(self._wanted, bytes(4), fd.to_bytes(8, byteorder))
        data = self._run(self._socket, os.getpid())
        if not data:
            raise EngineUnavailable("the kernel did not say who is connected")
        return decode(data, self._level, self._pid_ns)

    def of_task(self, tid: int) -> Identity:
        """The identity that a thread acts with now.  Raises NoSuchProcess."""
        data = self._run(self._task, tid)
        if not data:
            raise NoSuchProcess(tid)
        found = decode(data, self._level, self._pid_ns)
        found.tid = tid
        return found

    def close(self) -> None:
        """Give the programs back."""
        while self._fds:
            os.close(self._fds.pop())

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _load(self, code: Code, target: str) -> int:
        return self._keep(
            bpf.load_program(code, self._facts.type_id("func", target), {"wanted": self._wanted})
        )

    @staticmethod
    def _run(program: int, tid: int) -> bytes:
        link = bpf.create_link(program, tid)
        try:
            fd = bpf.create_iterator(link)
        finally:
            os.close(link)
        try:
            return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
        finally:
            os.close(fd)
