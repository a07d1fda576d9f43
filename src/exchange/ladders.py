"""Books as they really were: recorded depth snapshots and changes, brought to the moment that is asked for.

A book counts from its snapshot on, as long as each change follows the one before (``pu``); after a break it is unknown until the next
snapshot. Prices are ticks, sizes steps. What was recorded is read when its time comes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

Level = tuple[int, int]
Ladder = tuple[Level, ...]
Pairs = list[tuple[str, str]]


class Diff(msgspec.Struct):
    """A change as the venue's stream tells it."""

    U: int
    u: int
    pu: int
    b: Pairs
    a: Pairs


class Whole(msgspec.Struct):
    """A snapshot as REST answers it."""

    lastUpdateId: int
    bids: Pairs
    asks: Pairs


read_diff = msgspec.json.Decoder(Diff).decode
read_whole = msgspec.json.Decoder(Whole).decode


class Told(NamedTuple):
    """One recorded change or snapshot, not yet read; it is known to be one."""

    at_ms: int
    whole: bool
    body: bytes


class Book:
    """One symbol's book while it is built. ``update``: the id of its last change; 0: it is not known."""

    def __init__(self, tick: float, step: float) -> None:
        self._per_tick, self._per_step = 1.0 / tick, 1.0 / step
        self._synced = False
        self.update = 0
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}

    def take(self, told: Told) -> None:
        if told.whole:
            whole = read_whole(told.body)
            self.update, self._synced = whole.lastUpdateId, False
            self.bids, self.asks = dict(self._levels(whole.bids)), dict(self._levels(whole.asks))
        elif self.update:
            self._follow(read_diff(told.body))

    def _follow(self, diff: Diff) -> None:
        if diff.u < self.update:
            return
        follows = diff.pu == self.update if self._synced else self.update >= diff.U
        if not follows:
            self.update = 0
            return
        for side, pairs in ((self.bids, diff.b), (self.asks, diff.a)):
            for ticks, steps in self._levels(pairs):
                if steps:
                    side[ticks] = steps
                else:
                    side.pop(ticks, None)
        self.update, self._synced = diff.u, True

    def _levels(self, pairs: Pairs) -> list[Level]:
        return [(round(float(p) * self._per_tick), round(float(q) * self._per_step)) for p, q in pairs]

    def best(self) -> tuple[int, int, int, int] | None:
        """Best bid and ask with their sizes, where both are known and do not cross."""
        if not (self.update and self.bids and self.asks):
            return None
        bid, ask = max(self.bids), min(self.asks)
        return (bid, ask, self.bids[bid], self.asks[ask]) if bid < ask else None


class Ladders:
    """The books of all symbols at the present, which ``now_ms`` tells and which never goes back."""

    def __init__(self, books: Sequence[Book], told: Sequence[list[Told]]) -> None:
        self._books, self._told = books, told
        self._times = [[t.at_ms for t in mine] for mine in told]
        self._taken = [0] * len(told)
        self._sorted: list[tuple[Ladder, Ladder] | None] = [None] * len(told)
        self.now_ms: Callable[[], int] = lambda: 0

    def keep_up(self) -> None:
        """Read what has come since; asked for once in a while, nothing waits for long."""
        for symbol in range(len(self._told)):
            self._present(symbol)

    def _present(self, symbol: int) -> Book:
        book, taken = self._books[symbol], self._taken[symbol]
        upto = bisect_right(self._times[symbol], self.now_ms())
        for told in self._told[symbol][taken:upto]:
            book.take(told)
        if upto > taken:
            self._taken[symbol], self._sorted[symbol] = upto, None
        return book

    def update(self, symbol: int) -> int:
        """The id of the last change; 0 where the book is not known."""
        return self._present(symbol).update

    def of(self, symbol: int) -> tuple[Ladder, Ladder] | None:
        """Bids and asks from the best outwards; None where the book is not known."""
        book = self._present(symbol)
        if not book.update:
            return None
        if self._sorted[symbol] is None:
            self._sorted[symbol] = (tuple(sorted(book.bids.items(), reverse=True)), tuple(sorted(book.asks.items())))
        return self._sorted[symbol]
