"""Mark prices and funding rates as a venue tells them, for a market that has a venue behind it; a row a symbol, units of 1e-8.

A rate belongs to the settlement it was told for. The one before is kept, so that a settlement whose hour has just passed is not charged
the rate of the next.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from src.exchange.orders import E8

ONE_E8 = 100_000_000


class Marks:
    """What has been told so far. A mark of 0: none yet."""

    def __init__(self, symbols: int) -> None:
        self.mark_e8 = np.zeros(symbols, np.int64)
        self._due_ms = [0] * symbols
        self._rate = [Decimal(0)] * symbols
        self._due_before_ms = [0] * symbols
        self._rate_before = [Decimal(0)] * symbols

    def tell(self, symbol: int, mark: str, rate: str, due_ms: int) -> None:
        """``rate`` is settled at ``due_ms``; empty where the contract has none. ValueError, OverflowError: no numbers."""
        value = round(float(mark) * ONE_E8)
        if value <= 0:
            raise ValueError(f"a mark price of {mark!r}")
        fraction = round(float(rate or 0) * ONE_E8) * E8
        self.mark_e8[symbol] = value
        if due_ms != self._due_ms[symbol]:
            self._due_before_ms[symbol], self._rate_before[symbol] = self._due_ms[symbol], self._rate[symbol]
        self._due_ms[symbol], self._rate[symbol] = due_ms, fraction

    def due_ms(self, symbol: int) -> int:
        """The next settlement, as told last; 0 where nothing was told."""
        return self._due_ms[symbol]

    def settles(self, symbol: int, at_ms: int) -> bool:
        return at_ms in (self._due_ms[symbol], self._due_before_ms[symbol])

    def rate(self, symbol: int, at_ms: int) -> Decimal:
        """The rate settled at ``at_ms``, or the latest one told."""
        return self._rate_before[symbol] if at_ms == self._due_before_ms[symbol] else self._rate[symbol]
