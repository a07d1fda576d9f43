"""Candles in the venue's intervals, out of the market's (which end at one day), and the rolling 24 hours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.exchange.digits import Wording
from src.exchange.jumps import JumpingMarket

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MONDAY_MS = 4 * DAY_MS  # the first Monday after the epoch

INTERVALS: dict[str, int] = {
    "1m": MINUTE_MS, "3m": 3 * MINUTE_MS, "5m": 5 * MINUTE_MS, "15m": 15 * MINUTE_MS, "30m": 30 * MINUTE_MS, "1h": HOUR_MS,
    "2h": 2 * HOUR_MS, "4h": 4 * HOUR_MS, "6h": 6 * HOUR_MS, "8h": 8 * HOUR_MS, "12h": 12 * HOUR_MS, "1d": DAY_MS, "3d": 3 * DAY_MS,
    "1w": 7 * DAY_MS, "1M": 31 * DAY_MS,
}  # fmt: skip
"""Lengths; 1M stands for a calendar month and is at most this long."""


def open_of(interval: str, at_ms: int) -> int:
    """When the candle that contains a moment opens."""
    if interval == "1M":
        day = datetime.fromtimestamp(at_ms / 1000, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp() * 1000)
    if interval == "1w":
        return (at_ms - MONDAY_MS) // (7 * DAY_MS) * 7 * DAY_MS + MONDAY_MS
    length = length_of(interval)
    return at_ms // length * length


def length_of(interval: str) -> int:
    return 1000 if interval == "1s" else INTERVALS[interval]


def close_of(interval: str, open_ms: int) -> int:
    """The last millisecond of the candle."""
    if interval == "1M":
        return open_of("1M", open_ms + 32 * DAY_MS) - 1
    return open_ms + length_of(interval) - 1


def candles(market: JumpingMarket, symbol: int, interval: str, *, from_ms: int, to_ms: int, now_ms: int) -> NDArray[np.void]:
    """Candles with ``from_ms <= open <= to_ms``, made of trades before now."""
    length = length_of(interval)
    if length <= DAY_MS:
        return market.klines(symbol, length, from_ms, to_ms, now_ms)
    days = market.klines(symbol, DAY_MS, open_of(interval, from_ms), min(to_ms + length, now_ms), now_ms)
    groups: dict[int, list[Any]] = {}
    for day in days:
        groups.setdefault(open_of(interval, int(day["open_ms"])), []).append(day)
    merged = [_merge(open_ms, np.array(rows, days.dtype)) for open_ms, rows in groups.items() if from_ms <= open_ms <= to_ms]
    return np.array(merged, days.dtype)


def _merge(open_ms: int, rows: NDArray[np.void]) -> tuple[Any, ...]:
    sums = (rows[name].sum() for name in ("volume", "taker_volume", "trades", "quote_volume", "taker_quote_volume"))
    return (open_ms, rows["open"][0], rows["high"].max(), rows["low"].min(), rows["close"][-1], *sums)


def rest_rows(words: Wording, symbol: int, interval: str, rows: NDArray[np.void]) -> list[list[Any]]:
    """Twelve elements a candle, as REST answers them."""
    price, qty = words.price[symbol], words.qty[symbol]
    return [
        [
            o,
            price(op),
            price(hi),
            price(lo),
            price(cl),
            qty(vol),
            close_of(interval, o),
            f"{quote:.8f}",
            n,
            qty(taker),
            f"{taker_quote:.8f}",
            "0",
        ]
        for o, op, hi, lo, cl, vol, taker, n, quote, taker_quote in rows.tolist()
    ]


class Day(NamedTuple):
    """A rolling day in ticks, steps and quote."""

    open_ms: int
    open: int
    high: int
    low: int
    last: int
    volume: int
    quote: float
    trades: int
    first_id: int
    last_id: int


class Days:
    """The rolling 24 hours of every symbol, to the hour: 23 whole hours, which move on by what is new, and the open one."""

    def __init__(self, market: JumpingMarket) -> None:
        self._market = market
        self._whole: dict[int, tuple[int, NDArray[np.void]]] = {}

    def rolling(self, symbol: int, now_ms: int) -> Day | None:
        """The day up to now; None before the first trade."""
        hour = now_ms // HOUR_MS * HOUR_MS
        kept = self._whole.get(symbol)
        if kept is None or kept[0] != hour:
            kept = self._whole[symbol] = (hour, self._moved(symbol, hour, kept, now_ms))
        rows = np.concatenate((kept[1], self._market.klines(symbol, HOUR_MS, hour, hour, now_ms)))
        if not len(rows):
            return None
        last = self._market.agg_trades(symbol, to_ms=now_ms, limit=1)
        last_id = int(last["last_id"][-1]) if len(last) else 0
        count = int(rows["trades"].sum())
        return Day(
            open_ms=hour - 23 * HOUR_MS, open=int(rows["open"][0]), high=int(rows["high"].max()), low=int(rows["low"].min()),
            last=int(rows["close"][-1]), volume=int(rows["volume"].sum()), quote=float(rows["quote_volume"].sum()), trades=count,
            first_id=last_id - count + 1, last_id=last_id,
        )  # fmt: skip

    def _moved(self, symbol: int, hour: int, kept: tuple[int, NDArray[np.void]] | None, now_ms: int) -> NDArray[np.void]:
        """The 23 whole hours before ``hour``. Of those kept the last one is read again: it may have been read before all of it was seen."""
        first = hour - 23 * HOUR_MS
        if kept is None or kept[0] > hour:
            return self._market.klines(symbol, HOUR_MS, first, hour - 1, now_ms)
        since = max(first, kept[0] - HOUR_MS)
        old = kept[1][(kept[1]["open_ms"] >= first) & (kept[1]["open_ms"] < since)]
        return np.concatenate((old, self._market.klines(symbol, HOUR_MS, since, hour - 1, now_ms)))
