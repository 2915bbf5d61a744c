"""The service: the kernel engine's answers for everyone, each seeing what is theirs.

`ServiceEngine` is the client, and all that is imported here; ``taskdiag serve`` runs
`server` and `file`.  docs/protocol.md says what they speak, docs/security.md why that
is safe.
"""

from __future__ import annotations

from .client import ServiceEngine

__all__ = ("ServiceEngine",)
