"""The results as a chart: a bar for each job shows how many times faster it is than its peer.

It is SVG, and its colours follow the reader's preference for a light or a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any
from xml.sax.saxutils import escape

from . import machine
from .report import TIMES, seconds

__all__ = ("HISTORY", "draw")

#: What the announcements of task_diag reported in 2016: how many times faster than /proc.
HISTORY = (
    ("ps", 10.8),
    ("/proc/PID/stat of every process", 5.0),
    ("perf's fork test", 5.1),
    ("80,000 threads", 8.2),
)

_WIDTH, _LEFT, _RIGHT, _VALUE = 940, 300, 700, 785
_ROW, _BAR = 30, 16
_MOST = 200.0
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200)

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .head { font-weight: 600; }
  .faint { fill: #59636e; font-size: 11.5px; }
  .value { font-weight: 600; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .one { stroke: #59636e; stroke-width: 1; }
  .ours { fill: #0969da; }
  .theirs { fill: #afb8c1; }
  .target { stroke: #bc4c00; stroke-width: 2; }
  .spread { stroke: #1f2328; stroke-width: 1.2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .faint { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .one { stroke: #9198a1; }
    .ours { fill: #4493f8; }
    .theirs { fill: #656c76; }
    .target { stroke: #f0883e; }
    .spread { stroke: #f0f6fc; }
  }
"""


def draw(results: dict[str, Any]) -> str:
    """The jobs that have a peer, and below them what task_diag reported in 2016."""
    jobs = [job for job in results["jobs"] if not job["at_most"]]
    y = 90
    body = [_grid(y, len(jobs), label=True)]
    for job in jobs:
        body += _job(job, y)
        y += _ROW
    y += 44
    body.append(_text(20, y - 16, "For comparison: task_diag against /proc, as of 2016", "head"))
    body.append(_grid(y, len(HISTORY)))
    for name, ratio in HISTORY:
        body += [
            _text(_LEFT - 10, y + 13, name, end=True),
            _bar(y, ratio, "theirs"),
            _text(_VALUE, y + 13, f"{ratio:g}{TIMES}", "value", end=True),
        ]
        y += _ROW
    caption = _wrap(machine.sentence(results["machine"]), 130)
    foot = [_text(20, y + 20 + 16 * index, line, "faint") for index, line in enumerate(caption)]
    height = y + 24 + 16 * len(caption)
    head = [
        _text(20, 28, f"How many times faster than its peer, {_sizes(jobs)}", "title"),
        _text(
            20, 48, "median of runs side by side; thin line: least to most; orange: the goal",
            "faint",
        ),
        _text(_WIDTH - 20, 72, "peer / taskdiag", "faint", end=True),
    ]  # fmt: skip
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img">',
            f"<title>{escape(_summary(jobs))}</title>",
            f"<style>{_STYLE}</style>",
            *head, *body, *foot,
            "</svg>\n",
        ]
    )  # fmt: skip


def _job(job: dict[str, Any], y: float) -> list[str]:
    low, high = job["ratio_spread"]
    label = job["title"]
    if job["threads"] > 1:
        label += f", {job['tasks']:,}{TIMES} {job['threads']}"
    times = f"{seconds(job['peer']['median'])} / {seconds(job['ours']['median'])}"
    told = f"{job['peer']['label']} / {job['ours']['label']}: {times}"
    parts = [
        f"<g><title>{escape(told)}</title>",
        _text(_LEFT - 10, y + 13, label, end=True),
        _bar(y, job["ratio"], "ours"),
        f'<path class="spread" d="M{_at(low):.1f} {y + 8}H{_at(high):.1f}"/>',
        _text(_VALUE, y + 13, f"{job['ratio']:.3g}{TIMES}", "value", end=True),
        _text(_WIDTH - 20, y + 13, times, "faint", end=True),
    ]
    if job["target"]:
        at = _at(job["target"])
        parts.append(f'<path class="target" d="M{at:.1f} {y - 3}V{y + _BAR + 3}"/>')
    return [*parts, "</g>"]


def _sizes(jobs: Sequence[dict[str, Any]]) -> str:
    """The number of processes that most jobs had."""
    plain = [job["tasks"] for job in jobs if job["threads"] == 1]
    return f"{max(plain):,} processes" if plain else "many threads"


def _grid(y: float, rows: int, *, label: bool = False) -> str:
    """The grid lines behind some rows."""
    bottom = y + rows * _ROW - (_ROW - _BAR) + 6
    return "\n".join(_tick(value, y - 8, bottom, label=label) for value in _TICKS)


def _at(ratio: float) -> float:
    """The horizontal position of a ratio, on a logarithmic scale."""
    share = log10(min(max(ratio, 1.0), _MOST)) / log10(_MOST)
    return _LEFT + share * (_RIGHT - _LEFT)


def _bar(y: float, ratio: float, kind: str) -> str:
    width = max(_at(ratio) - _LEFT, 1)
    return f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'


def _tick(value: float, top: float, bottom: float, *, label: bool) -> str:
    at = _at(value)
    kind = "one" if value == 1 else "grid"
    line = f'<path class="{kind}" d="M{at:.1f} {top}V{bottom}"/>'
    if not label:
        return line
    text = f'<text class="faint" x="{at:.1f}" y="{top - 10}" text-anchor="middle">'
    return f"{line}{text}{value}{TIMES}</text>"


def _text(x: float, y: float, text: str, kind: str = "", *, end: bool = False) -> str:
    style = f' class="{kind}"' if kind else ""
    anchor = ' text-anchor="end"' if end else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(text)}</text>'


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _summary(jobs: Sequence[dict[str, Any]]) -> str:
    parts = [f"{job['title']} {job['ratio']:.3g} times" for job in jobs]
    return "How many times faster than its peer: " + "; ".join(parts)
