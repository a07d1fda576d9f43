"""Depth streams: the best levels, and changes of a book, which REST's snapshot belongs to (``shown``)."""

from __future__ import annotations

from itertools import islice

import msgspec

from src.exchange import depth
from src.exchange.paced import WALL_PACE_NS, Paced
from src.exchange.quotes import IDS_A_MOVE
from src.exchange.shown import Changed
from src.exchange.streams import PUBLIC, Channel
from src.exchange.venue import Venue

REFRESH_MS = 100
RPI_LEVELS = 200
LEAP = IDS_A_MOVE // 2
"""How far behind the last frame's ``u`` the next one's ``U`` is: only ``pu`` joins them."""


class DepthFeeds:
    """Makes the depth streams of a :class:`Venue`. :meth:`refresh` comes before whatever is built in the same step."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._state = venue.state
        self._diffs: dict[int, list[Paced]] = {}
        self._next_ms = self._next_ns = 0

    def open(self, channel: Channel, symbol: int, levels: str | None, suffix: str | None) -> Paced:
        """A stream of the best ``levels``, or of changes where None."""
        period = int(suffix.removesuffix("ms")) if suffix else 250
        return Paced(channel, PUBLIC, period, self._partial if levels else self._changes, symbol, int(levels or 0))

    def open_rpi(self, channel: Channel, symbol: int) -> Paced:
        return Paced(channel, PUBLIC, 500, self._partial, symbol, RPI_LEVELS)

    def follow(self, paced: list[Paced]) -> None:
        """These are all the paced streams there are now."""
        self._diffs = {}
        for one in paced:
            if one.build == self._changes:
                self._diffs.setdefault(one.symbol, []).append(one)
        shown = self._venue.shown
        shown.follow(self._diffs)
        for symbol, mine in self._diffs.items():
            for one in mine:
                if one.memory is None:  # its first change may be put onto the snapshot of now
                    one.memory, one.update = Changed(set(), set()), shown.followed[symbol].update - LEAP

    def refresh(self, now_ms: int, wall_ns: int) -> None:
        """Bring the books that are followed to the present, where it is time."""
        if not self._diffs or now_ms < self._next_ms or wall_ns < self._next_ns:
            return
        self._next_ms, self._next_ns = (now_ms // REFRESH_MS + 1) * REFRESH_MS, wall_ns + WALL_PACE_NS
        for symbol, mine in self._diffs.items():
            bids, asks = self._venue.shown.refresh(symbol)
            if bids or asks:
                for one in mine:
                    one.memory.bids.update(bids)
                    one.memory.asks.update(asks)

    # ------------------------------------------------------------------ payloads

    def _changes(self, paced: Paced, now: int) -> None:
        """What has changed since the frame before; size 0 removes a level."""
        changed: Changed = paced.memory
        if not (changed.bids or changed.asks):
            return
        shown = self._venue.shown.followed[paced.symbol]
        price, qty = self._venue.words.price[paced.symbol], self._venue.words.qty[paced.symbol]
        sides = [[[price(t), qty(book[t]) if t in book else "0"] for t in sorted(ticks)]
                 for book, ticks in ((shown.bids, changed.bids), (shown.asks, changed.asks))]  # fmt: skip
        paced.memory = Changed(set(), set())
        self._publish(paced, now, shown.time_ms, shown.update, sides)

    def _partial(self, paced: Paced, now: int) -> None:
        quotes, symbol = self._state.quotes, paced.symbol
        update = quotes.update(symbol)
        if not quotes.seen(symbol) or update == paced.update:
            return
        paced.update = paced.update or update - LEAP
        price, qty = self._venue.words.price[symbol], self._venue.words.qty[symbol]
        sides = [[[price(t), qty(s)] for t, s in islice(depth.levels(top, direction), paced.levels)]
                 for top, direction in ((quotes.bids(symbol), -1), (quotes.asks(symbol), 1))]  # fmt: skip
        self._publish(paced, now, int(quotes.time_ms[symbol]), update, sides)

    def _publish(self, paced: Paced, now: int, time_ms: int, update: int, sides: list[list[list[str]]]) -> None:
        before, paced.update = paced.update, update
        name = self._state.specs[paced.symbol].symbol
        body = {"e": "depthUpdate", "E": now, "T": time_ms, "s": name, "ps": name, "U": min(update, before + LEAP), "u": update, "pu": before,
                "b": sides[0], "a": sides[1], "st": 1}  # fmt: skip
        paced.channel.publish(msgspec.json.encode(body))
