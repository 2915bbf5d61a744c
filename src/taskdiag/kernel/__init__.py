"""The kernel engine: requests compiled to BPF iterators that the running kernel answers."""

from __future__ import annotations

from .engine import KernelEngine

__all__ = ("KernelEngine",)
