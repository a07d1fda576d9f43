"""What the core knows of the market: last price, top of book and mark price of every symbol, as arrays with a row a symbol.

The mark price (and the index price, which is the same here) starts at the last price and moves an eighth of the way towards it once a
market second, in whole units of 1e-8. Funding rates are a fixed function of symbol and settlement time. A market with a venue behind it
tells both itself (``told``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.exchange.depth import Top
from src.exchange.ladders import Ladders
from src.exchange.marks import Marks
from src.exchange.orders import E8
from src.exchange.symbols import SymbolSpec

HOUR_MS = 3_600_000
TYPICAL_NOTIONAL = Decimal(20_000)
IDS_A_MOVE = 16
"""Ids of books are not contiguous on the venue: a movement takes so many, and which of them a frame names is nobody's business."""


class Print(NamedTuple):
    """One trade of the market with the top of the book after it, in ticks and steps. ``PRINT_FIELDS`` are its columns, in order."""

    time_ms: int
    symbol: int
    ticks: int
    steps: int
    buyer_is_maker: int
    bid: int
    ask: int
    bid_steps: int
    ask_steps: int


QUOTE = 2
"""In ``buyer_is_maker``: no trade (``qty`` 0), the top of the book has moved. ``bid`` and ``ask`` 0: nobody sees the book just now."""
PRINT_FIELDS = ["time_ms", "symbol", "price", "qty", "buyer_is_maker", "bid", "ask", "bid_qty", "ask_qty"]


class Quotes:
    """State of the market at one moment. Prices in ticks and sizes in steps, but marks in units of 1e-8."""

    def __init__(self, specs: Sequence[SymbolSpec]) -> None:
        n = len(specs)
        self.specs = specs
        self.last = np.zeros(n, np.int64)
        self.bid = np.zeros(n, np.int64)
        self.ask = np.zeros(n, np.int64)
        self.bid_qty = np.zeros(n, np.int64)
        self.ask_qty = np.zeros(n, np.int64)
        self.last_qty = np.zeros(n, np.int64)
        self.time_ms = np.zeros(n, np.int64)
        self.traded_ms = np.zeros(n, np.int64)
        self.agg_id = np.zeros(n, np.int64)
        self.moves = np.zeros(n, np.int64)
        self.taken_bid = np.zeros(n, np.int64)
        self.taken_ask = np.zeros(n, np.int64)
        self.mark_e8 = np.zeros(n, np.int64)
        self.told: Marks | None = None
        self.ladders: Ladders | None = None
        self._jumped_e8 = np.zeros(n, np.int64)
        self._tick_e8 = np.array([int(s.tick / E8) for s in specs], np.int64)

    def take(self, trades: NDArray) -> None:
        """Take a batch, sorted by time: the last row of each symbol is what stands."""
        sym = trades["symbol"]
        for name, field in (("last", "price"), ("bid", "bid"), ("ask", "ask"), ("bid_qty", "bid_qty"), ("ask_qty", "ask_qty"),
                            ("last_qty", "qty"), ("time_ms", "time_ms"), ("agg_id", "agg_id")):  # fmt: skip
            getattr(self, name)[sym] = trades[field]
        real = trades["qty"] > 0
        self.traded_ms[sym[real]] = trades["time_ms"][real]
        self.taken_bid[sym] = 0
        self.taken_ask[sym] = 0
        if self.told is not None or self.ladders is not None:
            np.add.at(self.moves, sym[trades["qty"] == 0], 1)
        fresh = self.mark_e8 == 0
        if fresh.any():
            self.reset_marks(np.flatnonzero(fresh))

    def reset_marks(self, symbols: NDArray) -> None:
        self.mark_e8[symbols] = self.last[symbols] * self._tick_e8[symbols]
        self._hear()

    def second(self) -> None:
        """A market second has passed: marks move towards the last prices, where nobody tells them."""
        self.mark_e8 += (self.last * self._tick_e8 - self.mark_e8) // 8
        self._hear()
        if self.ladders is not None:
            self.ladders.keep_up()

    def _hear(self) -> None:
        if self.told is not None:
            self.mark_e8 = np.where(self.told.mark_e8 > 0, self.told.mark_e8 + self._jumped_e8, self.mark_e8)

    def shift(self, symbol: int, ticks: int) -> None:
        """The whole market of a symbol jumps."""
        for side in (self.last, self.bid, self.ask):
            side[symbol] += ticks
        self.moves[symbol] += 1
        self.mark_e8[symbol] += ticks * self._tick_e8[symbol]
        self._jumped_e8[symbol] += ticks * self._tick_e8[symbol]

    def known(self, symbol: int) -> bool:
        """Whether this symbol has traded at all."""
        return bool(self.last[symbol])

    def seen(self, symbol: int) -> bool:
        """Whether the top of its book is known; a market with a venue behind it may be cut off."""
        return bool(self.bid[symbol] and self.ask[symbol])

    def update(self, symbol: int) -> int:
        """Rises by at least one with every trade and every movement of the book; where that was recorded, its own id."""
        recorded = self.ladders.update(symbol) if self.ladders is not None else 0
        return recorded or int(self.agg_id[symbol] + self.moves[symbol]) * IDS_A_MOVE

    def mark(self, symbol: int) -> Decimal:
        return int(self.mark_e8[symbol]) * E8

    def price(self, symbol: int, ticks: int) -> Decimal:
        return ticks * self.specs[symbol].tick

    def last_price(self, symbol: int) -> Decimal:
        return int(self.last[symbol]) * self.specs[symbol].tick

    def typical_steps(self, symbol: int) -> int:
        price = self.last_price(symbol)
        return int(TYPICAL_NOTIONAL / price / self.specs[symbol].step) if price else 1

    def bids(self, symbol: int) -> Top:
        ladders = self.ladders.of(symbol) if self.ladders is not None else None
        return Top(int(self.bid[symbol]), int(self.bid_qty[symbol]), self.typical_steps(symbol), ladders and ladders[0])

    def asks(self, symbol: int) -> Top:
        ladders = self.ladders.of(symbol) if self.ladders is not None else None
        return Top(int(self.ask[symbol]), int(self.ask_qty[symbol]), self.typical_steps(symbol), ladders and ladders[1])

    def funding_rate(self, symbol: int, at_ms: int) -> Decimal:
        """The rate settled at ``at_ms``."""
        return self.told.rate(symbol, at_ms) if self.told is not None else funding_rate(self.specs[symbol].symbol, at_ms)

    def settles(self, symbol: int, at_ms: int) -> bool:
        """Whether funding is settled at ``at_ms``, a whole hour."""
        if self.told is not None:
            return self.told.settles(symbol, at_ms)
        return at_ms % (self.specs[symbol].funding_interval_hours * HOUR_MS) == 0

    def next_funding_ms(self, symbol: int, now_ms: int) -> int:
        """The next settlement after now."""
        told = self.told.due_ms(symbol) if self.told is not None else 0
        return told if told > now_ms else next_funding_ms(self.specs[symbol], now_ms)


def funding_rate(symbol: str, at_ms: int) -> Decimal:
    """The made-up rate settled at ``at_ms``: between -0.03 % and 0.03 %, the same in every run."""
    digest = hashlib.blake2b(f"{symbol}:{at_ms}".encode(), digest_size=4).digest()
    return Decimal(int.from_bytes(digest, "big") % 60_001 - 30_000) * E8


def next_funding_ms(spec: SymbolSpec, now_ms: int) -> int:
    """The next settlement strictly after now."""
    every = spec.funding_interval_hours * HOUR_MS
    return (now_ms // every + 1) * every
