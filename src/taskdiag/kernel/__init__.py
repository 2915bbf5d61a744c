"""The kernel engine: requests compiled to BPF iterators that the running kernel answers."""

from __future__ import annotations

from .engine import KernelEngine

__all__ = ("KernelEngine", "served_by")


def served_by() -> dict[str, str]:
    """Who serves each group on the running kernel: "bpf" or "procfs", by the group's name.

    >>> served_by()["VMA_STAT"]
    'procfs'

    Says what the kernel has, not what this user may do with it; `compile.missing_features` gives
    the reasons.  Raises EngineUnavailable if the kernel has no BTF.
    """
    from .compile import missing_features
    from .facts import Facts

    groups = missing_features(Facts.live()).items()
    return {str(show.name): "procfs" if why else "bpf" for show, why in groups}
