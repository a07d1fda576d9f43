"""A market that a test can make jump: from the moment of a jump on, every later price is shifted by a number of ticks.

Without jumps everything is the source's own, untouched. A candle that contains a jump keeps its open, takes the shift at its close, and
reaches from the lower of both to the higher.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from src.exchange.market import Market, Played
from src.exchange.marks import Marks
from src.exchange.symbols import SymbolSpec


class JumpingMarket:
    """A :class:`Market` with jumps."""

    def __init__(self, source: Market) -> None:
        self._source = source
        self.recorded = source if isinstance(source, Played) else None
        """Where raw frames are played."""
        self.jumps: list[tuple[int, int, int]] = []

    @property
    def symbols(self) -> tuple[SymbolSpec, ...]:
        return self._source.symbols

    @property
    def start_ms(self) -> int:
        return self._source.start_ms

    @property
    def open_ms(self) -> int:
        return self._source.open_ms

    @property
    def end_ms(self) -> int | None:
        return self._source.end_ms

    def jump(self, symbol: int, at_ms: int, ticks: int) -> None:
        """ValueError: raw frames are played, whose prices are what they are."""
        if self.recorded is not None:
            raise ValueError("the market is a recording's raw frames: its prices cannot be moved")
        self.jumps.append((symbol, at_ms, ticks))

    def marks(self) -> Marks | None:
        return self._source.marks()

    def trades(self, from_ms: int, to_ms: int) -> NDArray[np.void]:
        return self.catch_up(self._source.trades(from_ms, to_ms), 0)

    def catch_up(self, rows: NDArray[np.void], since: int) -> NDArray[np.void]:
        """Rows that were handed out when there were ``since`` jumps, with the later ones in them too."""
        return self._shift(rows, rows["symbol"], since) if len(self.jumps) > since and len(rows) else rows

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[np.void]:  # fmt: skip
        rows = self._source.agg_trades(symbol_index, from_ms=from_ms, to_ms=to_ms, from_id=from_id, limit=limit)
        return self.catch_up(rows, 0)

    def _shift(self, rows: NDArray[np.void], symbols: NDArray[np.uint16], since: int) -> NDArray[np.void]:
        rows = rows.copy()
        for symbol, at_ms, ticks in self.jumps[since:]:
            later = (symbols == symbol) & (rows["time_ms"] >= at_ms)
            for name in ("price", "bid", "ask"):
                seen = later & (rows[name] > 0)  # a side that nobody sees stays unseen
                rows[name][seen] = np.maximum(1, rows[name][seen] + ticks)
        return rows

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[np.void]:
        rows = self._source.klines(symbol_index, interval_ms, from_ms, to_ms, now_ms)
        mine = [(at, ticks) for symbol, at, ticks in self.jumps if symbol == symbol_index]
        if not mine or not len(rows):
            return rows
        rows = rows.copy()
        for at_ms, ticks in mine:
            after = rows["open_ms"] >= at_ms
            for name in ("open", "high", "low", "close"):
                rows[name][after] = np.maximum(1, rows[name][after] + ticks)
            within = (rows["open_ms"] < at_ms) & (rows["open_ms"] + interval_ms > at_ms)
            rows["close"][within] = np.maximum(1, rows["close"][within] + ticks)
            rows["high"][within] += max(0, ticks)
            rows["low"][within] = np.maximum(1, rows["low"][within] + min(0, ticks))
        return rows
