"""Benchmarks: they measure and print, each figure beside a reference taken in the same run, and never assert time.

A benchmark is a module in this folder with a docstring, whose first line says what it measures, and ``run()``, which yields a row for each
figure. ``python -m tests.bench`` lists them, ``python -m tests.bench ring bus`` runs some; each row is printed as one JSON object a line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from src.clock import monotonic_ns

Row = dict[str, Any]
REPETITIONS = 7
SHORT_REPETITIONS = 41


def row(bench: str, case: str, metric: str, value: float, *, reference: str = "", reference_value: float | None = None) -> Row:
    """One figure. ``metric`` ends in its unit; ``reference`` names what ``reference_value`` was measured on, in the same metric."""
    return {"bench": bench, "case": case, "metric": metric, "value": _rounded(value),
            "reference": reference, "reference_value": None if reference_value is None else _rounded(reference_value)}


def ns_per_op(operation: Callable[[], None], operations: int, *, before: Callable[[], None] = lambda: None,
              repetitions: int = REPETITIONS) -> float:
    """Median over repetitions of one call's nanoseconds divided by ``operations``. ``before`` is not timed; a first round warms up.

    With ``repetitions=SHORT_REPETITIONS`` for what takes less than a millisecond: most of those run between two turns of the scheduler,
    and the median is the operation's own time on a busy machine too.
    """
    figures = []
    for _ in range(repetitions + 1):
        before()
        start = monotonic_ns()
        operation()
        figures.append((monotonic_ns() - start) / operations)
    return statistics.median(figures[1:])


def percentile(figures: list[float], part: float) -> float:
    """``part`` from 0 to 1."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
