"""The book behind the top: recorded where it was recorded, else a stated model.

The top of the book is the market's own. Behind it stand the recorded levels, or in the model one level every half basis point (at least
one tick), the k-th with ``1 + k/2`` times the larger of the size shown on top and a size worth 20,000 of the quote. Nothing stands deeper
than ``LEVELS``. What one of our orders took stays taken until the market moves that book again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

LEVELS = 1000
GAP_DIVISOR = 20_000


class Top(NamedTuple):
    """One side of a book as the model needs it: ticks, steps, and the steps that are worth 20,000 quote. ``ladder``: levels as recorded."""

    ticks: int
    steps: int
    typical_steps: int
    ladder: tuple[tuple[int, int], ...] | None = None


def levels(top: Top, direction: int, count: int = LEVELS) -> Iterator[tuple[int, int]]:
    """``(ticks, steps)`` from the top outwards. ``direction`` is +1 for asks, -1 for bids. Prices stay positive."""
    yield top.ticks, top.steps
    if top.ladder is not None:
        yield from islice((level for level in top.ladder if (level[0] - top.ticks) * direction > 0), count - 1)
        return
    gap = max(1, top.ticks // GAP_DIVISOR)
    base = max(top.steps, top.typical_steps, 1)
    for k in range(1, count):
        ticks = top.ticks + direction * gap * k
        if ticks <= 0:
            return
        yield ticks, base + base * k // 2


def walk(top: Top, direction: int, taken: int, want: int, limit: int | None) -> list[tuple[int, int]]:
    """What an order of ``want`` steps gets: ``(ticks, steps)`` pieces. ``taken`` is gone from the front; ``limit`` is the worst price."""
    pieces: list[tuple[int, int]] = []
    for ticks, steps in levels(top, direction):
        if limit is not None and (ticks - limit) * direction > 0:
            break
        free = max(0, steps - taken)
        taken = max(0, taken - steps)
        if free:
            got = min(free, want)
            pieces.append((ticks, got))
            want -= got
            if not want:
                break
    return pieces


def queue_ahead(top: Top, direction: int, ticks: int) -> int:
    """The steps in front of an order that joins at ``ticks`` on the side whose top is given. ``direction`` is -1 for bids."""
    behind = (ticks - top.ticks) * direction
    if behind < 0:
        return 0
    if behind == 0:
        return top.steps
    if top.ladder is not None:
        return next((steps for at, steps in top.ladder if at == ticks), 0)
    gap = max(1, top.ticks // GAP_DIVISOR)
    base = max(top.steps, top.typical_steps, 1)
    return base + base * -(-behind // gap) // 2
