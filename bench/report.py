"""The results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import machine

__all__ = ("TIMES", "report", "seconds", "verdict")


#: Separates a factor from its unit.
TIMES = " \N{MULTIPLICATION SIGN}"


def seconds(value: float) -> str:
    """A time in a suitable unit.

    >>> seconds(0.0421), seconds(3.1e-07)
    ('42.1 ms', '310 ns')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def verdict(result: dict[str, Any]) -> str:
    """The target, and whether it was met."""
    if result["target"] is None:
        return "-"
    how = "at most" if result.get("at_most") else "at least"
    return f"{how} {result['target']:g}: {'met' if result['met'] else 'NOT MET'}"


def report(results: dict[str, Any]) -> str:
    """All results."""
    parts = [machine.sentence(results["machine"])]
    if results["jobs"]:
        parts.append(_jobs(results["jobs"]))
    if results.get("growth"):
        parts.append(_growth(results["growth"]))
    if results.get("groups"):
        parts.append(_groups(results["groups"]))
    if results.get("syscalls"):
        parts.append(_syscalls(results["syscalls"]))
    if results["skipped"]:
        parts.append(_table(("left out", "why"), [tuple(row) for row in results["skipped"]]))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, with numbers aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            number = index and rows and rows[0][index][:1].isdigit()
            cells.append(cell.rjust(width) if number else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _spread(samples: dict[str, Any]) -> str:
    return " to ".join(seconds(value) for value in samples["spread"])


def _jobs(jobs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for job in jobs:
        size = f"{job['tasks']:,}" + (f"{TIMES} {job['threads']}" if job["threads"] > 1 else "")
        low, high = job["ratio_spread"]
        rows.append(
            (
                job["name"], size,
                seconds(job["ours"]["median"]), _spread(job["ours"]),
                seconds(job["peer"]["median"]), _spread(job["peer"]), job["peer"]["label"],
                f"{job['ratio']:.2f}", f"{low:.2f} to {high:.2f}",
                "-" if job["cpu_ratio"] is None else f"{job['cpu_ratio']:.2f}", verdict(job),
            )
        )  # fmt: skip
    head = (
        "job", "tasks", "taskdiag", "spread", "peer", "spread", "which",
        "ratio", "spread", "CPU ratio", "target",
    )  # fmt: skip
    return _table(head, rows)


def _growth(growth: dict[str, Any]) -> str:
    rows = [
        (f"{point['tasks']:,}", *(seconds(value) for value in point["per_task"]))
        for point in growth["points"]
    ]
    table = _table(("tasks", *(f"per task, {label}" for label in growth["labels"])), rows)
    ratios = ", ".join(
        f"{label} {ratio:.2f}"
        for label, ratio in zip(growth["labels"], growth["ratios"], strict=True)
    )
    target = verdict({**growth, "at_most": True})
    return f"growth: most by least: {ratios} ({target})\n{table}"


def _groups(groups: dict[str, Any]) -> str:
    rows = [
        (
            row["group"], seconds(row["per_task"]), f"{row['by_base']:.2f}", seconds(row["cost"]),
            "-" if row["beside_base"] is None else seconds(row["beside_base"]),
        )
        for row in groups["rows"]
    ]  # fmt: skip
    rows.append(("all", seconds(groups["all"]), "", "", ""))
    rows.append(("sum of costs", seconds(groups["sum_of_costs"]), "", "", ""))
    head = ("group", "per task", "by BASE", "cost alone", "cost beside BASE")
    target = verdict({**groups, "at_most": True})
    return (
        f"groups, {groups['tasks']:,} tasks: all together by the sum of each alone: "
        f"{groups['ratio']:.2f} ({target})\n{_table(head, rows)}"
    )


def _syscalls(found: dict[str, Any]) -> str:
    rows = [
        (
            row["label"], f"{row['calls']:,}", f"{row['start']:,}", f"{row['beyond_start']:,}",
            f"{row.get('bytes_read', 0):,}", f"{row.get('bytes_written', 0):,}",
        )
        for row in found["rows"]
    ]  # fmt: skip
    head = ("job", "calls", "of these start-up", "beyond", "bytes read", "bytes written")
    target = verdict({**found, "at_most": True})
    return (
        f"system calls, {found['tasks']:,} tasks ({target}; task_diag in 2016 with 30,000: "
        f"/proc 180,785, task_diag 717)\n{_table(head, rows)}"
    )
