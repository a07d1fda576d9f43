"""A market whose every trade the test decides, and the test that it is a market."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.exchange.market import KLINE_DTYPE, TRADE_DTYPE, Market
from src.exchange.symbols import SymbolSpec, spec

T0 = 1_795_146_000_000  # a whole hour, and no hour of funding


class FakeMarket:
    """Quiet symbols that trade once a second at a fixed price; the test puts trades of its own between."""

    def __init__(self, *prices: tuple[str, str], open_ms: int = T0, seconds: int = 60, top_steps: int = 1000) -> None:
        self._symbols = tuple(spec(name) for name, _ in prices)
        self.start_ms, self.open_ms, self.end_ms = open_ms - 3_600_000, open_ms, None
        self._rows: list[tuple[int, ...]] = []
        self._ids = [0] * len(prices)
        self._steps = top_steps
        for t in range(-60, seconds):
            for i, (_, price) in enumerate(prices):
                self.put(i, open_ms + t * 1000, price)

    @property
    def symbols(self) -> tuple[SymbolSpec, ...]:
        return self._symbols

    def put(self, symbol: int, time_ms: int, price: str, steps: int = 10, *, maker: bool = True, bid: str = "", ask: str = "",
            top: int = 0) -> None:  # fmt: skip
        """One trade. Without ``bid`` and ``ask`` the book stands one tick to each side."""
        tick = self._symbols[symbol].tick
        ticks = int(Decimal(price) / tick)
        b = int(Decimal(bid) / tick) if bid else ticks - 1
        a = int(Decimal(ask) / tick) if ask else ticks + 1
        self._ids[symbol] += 1
        n = self._ids[symbol]
        shown = top or self._steps
        self._rows.append((time_ms, symbol, ticks, steps, maker, n, n, n, b, a, shown, shown))
        self._array: NDArray[Any] | None = None

    def _all(self) -> NDArray[Any]:
        if self._array is None:
            rows = np.zeros(len(self._rows), TRADE_DTYPE)
            names = (
                "time_ms",
                "symbol",
                "price",
                "qty",
                "buyer_is_maker",
                "agg_id",
                "first_id",
                "last_id",
                "bid",
                "ask",
                "bid_qty",
                "ask_qty",
            )
            for name, column in zip(names, zip(*self._rows, strict=True), strict=True):
                rows[name] = column
            self._array = rows[np.argsort(rows["time_ms"], kind="stable")]
        return self._array

    def trades(self, from_ms: int, to_ms: int) -> NDArray[Any]:
        rows = self._all()
        return rows[(rows["time_ms"] >= from_ms) & (rows["time_ms"] < to_ms)]

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[Any]:  # fmt: skip
        rows = self._all()
        rows = rows[rows["symbol"] == symbol_index]
        if to_ms is not None:
            rows = rows[rows["time_ms"] < to_ms]
        if from_id is not None:
            return rows[rows["agg_id"] >= from_id][:limit]
        if from_ms is not None:
            return rows[rows["time_ms"] >= from_ms][:limit]
        return rows[-limit:]

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[Any]:
        rows = self._all()
        rows = rows[(rows["symbol"] == symbol_index) & (rows["time_ms"] < now_ms)]
        opens = rows["time_ms"] // interval_ms * interval_ms
        out = []
        for start in np.unique(opens[(opens >= from_ms) & (opens <= to_ms)]):
            bar = rows[opens == start]
            price, qty = bar["price"], bar["qty"]
            taker = int(qty[bar["buyer_is_maker"] == 0].sum())
            out.append((start, price[0], price.max(), price.min(), price[-1], qty.sum(), taker, len(bar), float((price * qty).sum()), 0.0))
        return np.array(out, KLINE_DTYPE)

    def resume_state(self) -> dict[str, Any]:
        return {}


def test_the_fake_is_a_market_and_shows_no_future() -> None:
    market: Market = FakeMarket(("BTCUSDT", "60000"))
    assert len(market.trades(T0, T0 + 10_000)) == 10
    assert market.agg_trades(0, to_ms=T0, limit=1)["time_ms"][0] < T0
    assert market.klines(0, 60_000, T0, T0, T0 + 5_000)["trades"][0] == 5
