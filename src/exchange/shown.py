"""Books as clients are shown them: what a depth stream has told and what REST answers beside it are one and the same book.

A book that somebody follows by changes stands still between its refreshes, a tenth of a second apart; each refresh says which prices have
changed. So a client that applies every change to a snapshot holds exactly this book. Books that nobody follows are made when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from src.exchange import depth
from src.exchange.quotes import Quotes

LEVELS_MAX = 200
"""A side, of a book that is followed."""
Side = dict[int, int]


class Shown(NamedTuple):
    """Ticks to steps, from the best outwards; ``update`` and ``time_ms`` of what was last known."""

    bids: Side
    asks: Side
    update: int
    time_ms: int


class Changed(NamedTuple):
    """Prices, in ticks, whose size is another, or which are gone."""

    bids: set[int]
    asks: set[int]


class ShownBooks:
    """The books of all symbols."""

    def __init__(self, quotes: Quotes) -> None:
        self._quotes = quotes
        self.followed: dict[int, Shown] = {}

    def follow(self, symbols: Iterable[int]) -> None:
        """These and no others are followed from now on."""
        self.followed = {s: self.followed.get(s) or self.present(s, LEVELS_MAX) for s in symbols}

    def refresh(self, symbol: int) -> Changed:
        """Bring a followed book to the present."""
        old, quotes = self.followed[symbol], self._quotes
        if quotes.update(symbol) == old.update or not quotes.seen(symbol):
            return Changed(set(), set())
        new = self.followed[symbol] = self.present(symbol, LEVELS_MAX)
        return Changed(_changed(old.bids, new.bids), _changed(old.asks, new.asks))

    def of(self, symbol: int, limit: int) -> Shown:
        """At most so many levels a side: as followed, or as it is."""
        return self.followed.get(symbol) or self.present(symbol, limit)

    def present(self, symbol: int, limit: int) -> Shown:
        quotes = self._quotes
        if not quotes.seen(symbol):
            return Shown({}, {}, quotes.update(symbol), int(quotes.time_ms[symbol]))
        bids = dict(islice(depth.levels(quotes.bids(symbol), -1), limit))
        asks = dict(islice(depth.levels(quotes.asks(symbol), 1), limit))
        return Shown(bids, asks, quotes.update(symbol), int(quotes.time_ms[symbol]))


def _changed(old: Side, new: Side) -> set[int]:
    return {ticks for ticks, _ in old.items() ^ new.items()}
