"""The time per task on hosts of different sizes, which should not depend on the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contender import Contender, Iterator, note
from .host import Host
from .measure import alternate
from .peers import BuildError
from .population import Population

__all__ = ("SIZES", "TARGET", "measure")

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
#: The longest time per task may be this many times the shortest.
TARGET = 1.2

#: How many tasks to read in total for each size: small sizes are read more often.
_TASKS = 300_000


def measure(host: Host, sizes: Sequence[int], runs: int) -> dict[str, Any]:
    """Measure at each size, in one population that grows.

    The C iterator shows what the kernel's own walk costs at that size.
    """
    contenders: list[Contender] = [
        host.worker.contender("taskdiag.stream('base')", "stream", engine="kernel", show="base")
    ]
    try:
        contenders.append(Iterator("C iterator, base", *host.toolbox.iterator(), "base"))
    except BuildError as error:
        note(f"growth: without the C iterator: {error}")
    points = []
    try:
        with Population(host.toolbox) as people:
            for size in sizes:
                people.grow(size)
                tasks = host.worker.ask("stream", engine="kernel", show="base")["bytes"] // 76
                several = max(runs, min(_TASKS // size, 40) if runs > 1 else 1)
                found = alternate(contenders, several)
                points.append(
                    {
                        "tasks": tasks,
                        "per_task": [samples.median / tasks for samples in found],
                        "samples": [samples.as_json() for samples in found],
                    }
                )
    finally:
        for contender in contenders[1:]:
            if isinstance(contender, Iterator):
                contender.close()
    ratios = [
        max(point["per_task"][index] for point in points)
        / min(point["per_task"][index] for point in points)
        for index in range(len(contenders))
    ]
    return {
        "labels": [contender.label for contender in contenders],
        "points": points,
        "ratio": ratios[0],
        "ratios": ratios,
        "target": TARGET,
        "met": ratios[0] <= TARGET,
    }
