"""The cost of each group of attributes, alone and together with others."""

from __future__ import annotations

from typing import Any

from .contender import Contender
from .host import Host
from .measure import alternate

__all__ = ("GROUPS", "TARGET", "TASKS", "measure")

GROUPS = ("base", "cred", "stat", "statm", "cmdline", "vma", "vma_stat", "tty", "sched")
#: The most that all groups together may take, relative to the sum of each alone.
TARGET = 1.1
#: The number of processes to measure with.
TASKS = 10_000

#: A VMA_STAT answer contains the mappings as well, so its cost is what it adds to VMA.
_WITHIN = {"vma_stat": "vma"}


def measure(host: Host, runs: int) -> dict[str, Any]:
    """The time per task without any group, with each alone, with BASE, and with all.

    ``cost`` is what a group adds to an empty message, ``beside_base`` what it adds to one
    with BASE; both in seconds per task.
    """
    asks = {"": 0}
    from taskdiag import Show

    for name in GROUPS:
        asks[name] = int(Show[name.upper()])
        if name != "base":
            asks[f"base,{name}"] = int(Show.BASE | Show[name.upper()])
    asks["all"] = sum(asks[name] for name in GROUPS)
    contenders: list[Contender] = [
        host.worker.contender(name or "none", "stream", engine="kernel", show=show)
        for name, show in asks.items()
    ]
    count = host.worker.ask("stream", engine="kernel", show="base")["bytes"] // 76
    found = dict(zip(asks, alternate(contenders, runs), strict=True))
    each = {name: samples.median / count for name, samples in found.items()}
    rows = []
    for name in GROUPS:
        under = each[_WITHIN.get(name, "")]
        both = each.get(f"base,{name}")
        beside = None if both is None else both - each[_beside(name)]
        rows.append(
            {
                "group": name,
                "per_task": each[name],
                "cost": each[name] - under,
                "beside_base": beside,
                "by_base": each[name] / each["base"],
            }
        )
    alone = each[""] + sum(row["cost"] for row in rows)
    ratio = each["all"] / alone
    return {
        "tasks": count,
        "none": each[""],
        "rows": rows,
        "all": each["all"],
        "sum_of_costs": alone,
        "ratio": ratio,
        "target": TARGET,
        "met": ratio <= TARGET,
        "samples": [samples.as_json() for samples in found.values()],
    }


def _beside(name: str) -> str:
    return f"base,{_WITHIN[name]}" if name in _WITHIN else "base"
