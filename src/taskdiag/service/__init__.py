"""The service: the kernel engine's answers for every user, each limited to what they may see.

`ServiceEngine` is the client, and all that is imported here; ``taskdiag serve`` runs
`server` and `file`.  The protocol is described in docs/protocol.md, and what makes it
safe in docs/security.md.
"""

from __future__ import annotations

from .client import ServiceEngine

__all__ = ("ServiceEngine",)
