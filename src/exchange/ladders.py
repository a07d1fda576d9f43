"""Books as they really were: recorded depth snapshots and changes, brought to the moment that is asked for.

A book counts from its snapshot on, as long as each change follows the one before (``pu``); after a break it is unknown until the next
snapshot. Prices are ticks, sizes steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Level = tuple[int, int]
Ladder = tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What a snapshot or a diff says. ``before``: the last id it follows, -1 for a snapshot. Size 0 removes a level."""

    at_ms: int
    first: int
    last: int
    before: int
    bids: Sequence[Level]
    asks: Sequence[Level]


@dataclass(slots=True)
class Book:
    """One symbol's book while it is built. ``update`` 0: it is not known."""

    update: int = 0
    synced: bool = False
    bids: dict[int, int] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)

    def take(self, change: Change) -> None:
        if change.before < 0:
            self.bids, self.asks = dict(change.bids), dict(change.asks)
            self.update, self.synced = change.last, False
        elif self.update and change.last >= self.update:
            follows = change.before == self.update if self.synced else change.first <= self.update
            if not follows:
                self.update = 0
                return
            for side, levels in ((self.bids, change.bids), (self.asks, change.asks)):
                for ticks, steps in levels:
                    if steps:
                        side[ticks] = steps
                    else:
                        side.pop(ticks, None)
            self.update, self.synced = change.last, True

    def best(self) -> tuple[int, int, int, int] | None:
        """Best bid and ask with their sizes, where both are known and do not cross."""
        if not (self.update and self.bids and self.asks):
            return None
        bid, ask = max(self.bids), min(self.asks)
        return (bid, ask, self.bids[bid], self.asks[ask]) if bid < ask else None


class Ladders:
    """The books of all symbols at the present, which ``now_ms`` tells and which never goes back."""

    def __init__(self, changes: list[list[Change]]) -> None:
        self._changes = changes
        self._times = [[c.at_ms for c in mine] for mine in changes]
        self._books = [Book() for _ in changes]
        self._taken = [0] * len(changes)
        self._sorted: list[tuple[Ladder, Ladder] | None] = [None] * len(changes)
        self.now_ms: Callable[[], int] = lambda: 0

    def of(self, symbol: int) -> tuple[Ladder, Ladder] | None:
        """Bids and asks from the best outwards; None where the book is not known."""
        upto, taken = bisect_right(self._times[symbol], self.now_ms()), self._taken[symbol]
        book = self._books[symbol]
        if upto > taken:
            for change in self._changes[symbol][taken:upto]:
                book.take(change)
            self._taken[symbol], self._sorted[symbol] = upto, None
        if not book.update:
            return None
        if self._sorted[symbol] is None:
            self._sorted[symbol] = (tuple(sorted(book.bids.items(), reverse=True)), tuple(sorted(book.asks.items())))
        return self._sorted[symbol]
