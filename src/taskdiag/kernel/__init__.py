"""The kernel engine: requests compiled to BPF iterators that the running kernel answers."""

from __future__ import annotations

from .engine import KernelEngine

__all__ = ("KernelEngine", "served_by")


def served_by() -> dict[str, str]:
    """Return how each group is served on the running kernel: its name to "bpf" or "procfs".

    >>> served_by()["VMA_STAT"]
    'procfs'

    This is about the features of the kernel, not about the privileges of this user;
    `compile.missing_features` gives the reasons.  Raises EngineUnavailable if the kernel has no
    BTF.
    """
    from .compile import missing_features
    from .facts import Facts

    groups = missing_features(Facts.live()).items()
    return {str(show.name): "procfs" if why else "bpf" for show, why in groups}
