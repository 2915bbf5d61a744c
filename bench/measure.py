"""Measuring in pairs: whatever the host does meanwhile, it does to both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from .contender import Contender, Taken

__all__ = ("Samples", "alternate", "pair")

#: A job that has taken this long (seconds) makes do with three runs.
_PATIENCE = 60.0
_FEWEST = 3


class Samples:
    """What a contender took, run by run, in seconds."""

    def __init__(self, label: str, runs: Sequence[Taken]) -> None:
        self.label = label
        self.seconds = [run.wall for run in runs]
        self.cpu = [run.cpu for run in runs]

    @property
    def median(self) -> float:
        """The run in the middle."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Median, spread (fastest and slowest run) and every run; processor time as well."""
        return {
            "label": self.label,
            "median": self.median,
            "spread": [min(self.seconds), max(self.seconds)],
            "seconds": self.seconds,
            "cpu_median": statistics.median(self.cpu),
            "cpu": self.cpu,
        }


def alternate(contenders: Sequence[Contender], runs: int) -> list[Samples]:
    """Warm up, then let all take turns, in changing order, ``runs`` times."""
    for contender in contenders:
        contender.run()
    found: list[list[Taken]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    start = time.monotonic()
    for done in range(runs):
        if done >= _FEWEST and time.monotonic() - start > _PATIENCE:
            break
        for index in order:
            found[index].append(contenders[index].run())
        order.reverse()
    return [
        Samples(contender.label, taken) for contender, taken in zip(contenders, found, strict=True)
    ]


def pair(ours: Contender, peer: Contender, runs: int) -> dict[str, Any]:
    """Measure two; ``ratio`` is how many times the peer's median is ours.

    ``cpu_ratio`` is that of processor time, which others on the host disturb less;
    ``ratio_spread`` is the smallest and the largest ratio between two runs side by side.
    """
    mine, theirs = alternate((ours, peer), runs)
    ratios = [b / a for a, b in zip(mine.seconds, theirs.seconds, strict=True)]
    return {
        "ours": mine.as_json(),
        "peer": theirs.as_json(),
        "ratio": theirs.median / mine.median,
        "cpu_ratio": _ratio(statistics.median(theirs.cpu), statistics.median(mine.cpu)),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def _ratio(a: float, b: float) -> float | None:
    """None where the clock is too coarse to tell."""
    return a / b if b else None
