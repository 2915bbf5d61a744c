"""Measuring in turns, so that whatever else the host does affects all contenders alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from .contender import Contender, Taken

__all__ = ("Samples", "alternate", "pair")

#: After this many seconds, three runs of a job are enough.
_PATIENCE = 60.0
_FEWEST = 3


class Samples:
    """The times of a contender's runs, in seconds."""

    def __init__(self, label: str, runs: Sequence[Taken]) -> None:
        self.label = label
        self.seconds = [run.wall for run in runs]
        self.cpu = [run.cpu for run in runs]

    @property
    def median(self) -> float:
        """The median of the real times."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """The median, the fastest and slowest run, and every run, in real time and CPU time."""
        return {
            "label": self.label,
            "median": self.median,
            "spread": [min(self.seconds), max(self.seconds)],
            "seconds": self.seconds,
            "cpu_median": statistics.median(self.cpu),
            "cpu": self.cpu,
        }


def alternate(contenders: Sequence[Contender], runs: int) -> list[Samples]:
    """Run each once without measuring, then all in turn, ``runs`` times.

    The order is reversed each time.
    """
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
    """Measure two contenders.  ``ratio`` is the peer's median divided by ours.

    ``cpu_ratio`` is the same of CPU time, which other processes disturb less;
    ``ratio_spread`` is the smallest and the largest ratio of two adjacent runs.
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
    """The quotient, or None if the clock was too coarse to measure the divisor."""
    return a / b if b else None
