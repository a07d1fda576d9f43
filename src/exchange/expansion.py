"""Candles into trades and trades into candles, in whole ticks and steps.

A candle (BAR_DTYPE) becomes ``count`` aggregate trades that give it back exactly: open, high, low, close, volume, taker volume and
number of single trades. All chance is drawn from (key of the symbol, open time of the candle) by a counter, so any candle can be
expanded alone, in any order, with the same result. High or low first is the toss of a fair coin that knows nothing of the close. Trades
lie one in each of ``count`` equal parts of the candle's time; a bid and an ask stand around every trade.

A fair coin visits the far extreme more often than a free walk would, so within a candle moves revert a little (between the halves of a
minute the correlation is about −0.13, worth about 1 basis point, a tenth of the fees); beyond the candle nothing of it is left.

A candle must have least_count ≤ count ≤ trades ≤ volume and 0 ≤ taker volume ≤ volume, which ``settle`` sees to, and low ≤ open,
close ≤ high, which its source sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from src.compiler import njit

Trades = NDArray[np.void]
Klines = NDArray[np.void]
Bars = NDArray[np.void]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TRADE_DTYPE = np.dtype([
    ("time_ms", "i8"), ("symbol", "u2"), ("price", "i8"), ("qty", "i8"), ("buyer_is_maker", "u1"), ("agg_id", "i8"), ("first_id", "i8"),
    ("last_id", "i8"), ("bid", "i8"), ("ask", "i8"), ("bid_qty", "i8"), ("ask_qty", "i8"),
], align=True)

KLINE_DTYPE = np.dtype([
    ("open_ms", "i8"), ("open", "i8"), ("high", "i8"), ("low", "i8"), ("close", "i8"), ("volume", "i8"), ("taker_volume", "i8"),
    ("trades", "i8"), ("quote_volume", "f8"), ("taker_quote_volume", "f8"),
])
"""While inside a market quote volumes count ticks × steps; ``Market.klines`` hands them out in quote asset."""

BAR_DTYPE = np.dtype([
    ("open_ms", "i8"), ("open", "i4"), ("high", "i4"), ("low", "i4"), ("close", "i4"), ("volume", "i8"), ("taker_volume", "i8"),
    ("agg_base", "i8"), ("raw_base", "i8"), ("count", "i4"), ("trades", "i4"),
])
"""A candle to be expanded: ``count`` aggregate trades from id ``agg_base``, of ``trades`` single ones from id ``raw_base``."""

PRICE_TICKS_MAX = 2**31 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_DRAWS = 3
"""Random words of a trade: its step, its side and size, its time and book. Words 0 to 3 belong to the candle and come before them."""
_UNIT = 1.0 / 9007199254740992.0
_LOW_21 = np.uint64(0x1FFFFF)
_LOW_32 = np.uint64(0xFFFFFFFF)
_UNIT_21 = 1.0 / 2097152.0
_UNIT_32 = 1.0 / 4294967296.0
_LEAN = 0.22
"""A rising trade is a taker's purchase with odds 0.72 : 0.28 where a flat one has 0.5 : 0.5."""


@dataclass(frozen=True, slots=True)
class Grain:
    """How one symbol's candles are expanded. ``key``: its seed. ``spread_bps``: ask − bid in a quiet candle; a wide one adds 0.5 % of
    its range. ``depth_steps``: typical quantity at the top of the book."""

    key: int
    spread_bps: float
    depth_steps: float


def key_of(seed: int, symbol: str, purpose: str) -> int:
    """64 bits out of a seed, a symbol's name and what they are for: one symbol's chance does not depend on which others are listed."""
    return int.from_bytes(blake2b(f"{seed}/{symbol}/{purpose}".encode(), digest_size=8).digest(), "little")


def count_by_liquidity(quote_per_minute: float) -> int:
    """Aggregate trades in a usual minute: 30 at 10 thousand USDT a minute and below, 90 at 10 million and above."""
    return int(np.clip(30 + 20 * np.log10(max(quote_per_minute, 1.0) / 1e4), 30, 90))


def spread_by_liquidity(quote_per_minute: float) -> float:
    """Basis points between bid and ask: 4 at 10 thousand USDT a minute, 0.4 at a million, at most 8. One tick where that is more."""
    return float(min(8.0, 4.0 * np.sqrt(1e4 / max(quote_per_minute, 1.0))))


def least_count(bars: Bars) -> Ints:
    """The fewest trades that can draw each candle: first, last, and one for each extreme that is neither."""
    o, h, low, c = (bars[name].astype(np.int64) for name in ("open", "high", "low", "close"))
    inner = ((h != o) & (h != c)).astype(np.int64) + ((low != o) & (low != c))
    mixed = (bars["taker_volume"] > 0) & (bars["taker_volume"] < bars["volume"])
    need: Ints = np.where(h == low, np.where(mixed, 2, 1), 2 + inner)
    return need


def settle(bars: Bars, agg_base: int, raw_base: int) -> int:
    """Make candles expandable in place and number their trades from the two bases; how many had their volume raised.

    A candle without volume and without range stays silent (count 0); one with a range but too little volume for its points is raised to it.
    """
    silent = (bars["volume"] <= 0) & (bars["high"] == bars["low"])
    bars["taker_volume"] = np.clip(bars["taker_volume"], 0, bars["volume"])
    need = np.where(silent, 0, least_count(bars))
    raised = int(np.count_nonzero(bars["volume"] < need))
    bars["volume"] = np.maximum(bars["volume"], need)
    bars["count"] = np.where(silent, 0, np.clip(np.minimum(bars["count"], bars["volume"]), need, None))
    bars["trades"] = np.where(silent, 0, np.clip(np.minimum(bars["trades"], bars["volume"]), bars["count"], None))
    for base, name, start in (("agg_base", "count", agg_base), ("raw_base", "trades", raw_base)):
        ends = np.cumsum(bars[name], dtype=np.int64)
        bars[base] = start + ends - bars[name]
    return raised


@njit(cache=True, nogil=True)
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _word(state: np.uint64, index: int) -> np.uint64:
    """The index-th random word of a candle (splitmix64 as a counter)."""
    return _mix(state + np.uint64(index + 1) * _GOLDEN)


@njit(cache=True, nogil=True)
def _unit(word: np.uint64) -> float:
    return float(word >> np.uint64(11)) * _UNIT


@njit(cache=True, nogil=True)
def _normal(word: np.uint64) -> float:
    """Mean 0, variance 1, at most ±3: the sum of three uniforms."""
    total = (word & _LOW_21) + ((word >> np.uint64(21)) & _LOW_21) + ((word >> np.uint64(42)) & _LOW_21)
    return (float(total) * _UNIT_21 - 1.5) * 2.0


@njit(cache=True, nogil=True)
def _bridge(price: Ints, free: Floats, start: int, end: int, low: int, high: int) -> None:
    """Fill price[start + 1 : end]: the free walk bent to meet both ends, reflected into [low, high]."""
    begin = float(price[start])
    slope = (price[end] - begin - (free[end] - free[start])) / (end - start)
    for i in range(start + 1, end):
        x = begin + (free[i] - free[start]) + slope * (i - start)
        x = 2.0 * high - x if x > high else x
        x = 2.0 * low - x if x < low else x
        price[i] = min(int(x + 0.5), high)


@njit(cache=True, nogil=True)
def _draw_prices(bar: np.void, state: np.uint64, price: Ints, free: Floats) -> None:
    """price[:count]: from open to close through both extremes, whose order the coin decides."""
    n, o, h, low, c = int(bar["count"]), int(bar["open"]), int(bar["high"]), int(bar["low"]), int(bar["close"])
    price[0] = o
    price[n - 1] = c
    if n < 3:
        return
    high_first = _unit(_word(state, 0)) < 0.5
    first, second = (h, low) if high_first else (low, h)
    pin_first, pin_second = first != o and first != c, second != o and second != c
    a = 1 + int(_unit(_word(state, 1)) * (n - 2))
    b = 1 + int(_unit(_word(state, 2)) * (n - 2))
    sigma = (h - low) / (1.6 * np.sqrt(n))
    free[0] = 0.0
    for i in range(1, n):
        free[i] = free[i - 1] + sigma * _normal(_word(state, 4 + i * _DRAWS))
    if pin_first and pin_second:
        if a == b:
            b = a + 1 if a < n - 2 else a - 1
        a, b = min(a, b), max(a, b)
        price[a] = first
        price[b] = second
        _bridge(price, free, 0, a, low, h)
        _bridge(price, free, a, b, low, h)
        _bridge(price, free, b, n - 1, low, h)
    elif pin_first or pin_second:
        price[a] = first if pin_first else second
        _bridge(price, free, 0, a, low, h)
        _bridge(price, free, a, n - 1, low, h)
    else:
        _bridge(price, free, 0, n - 1, low, h)


@njit(cache=True, nogil=True)
def _draw_sides(bar: np.void, state: np.uint64, price: Ints, sell: Ints, weight: Floats) -> int:
    """sell[:count]: 0 where the taker bought, 1 where he sold; as many purchases as fit the taker volume (their number is returned), on
    rising trades rather than on falling ones. weight[:count]: heavy-tailed sizes."""
    n, taker, maker = int(bar["count"]), int(bar["taker_volume"]), int(bar["volume"] - bar["taker_volume"])
    buys = int(n * (taker / (taker + maker)) + 0.5)
    buys = n if maker == 0 else (0 if taker == 0 else min(max(buys, 1, n - maker), n - 1, taker))
    share = buys / n
    flat, rise = share, share * (0.5 + _LEAN) / (share * (0.5 + _LEAN) + (1.0 - share) * (0.5 - _LEAN))
    fall = share * (0.5 - _LEAN) / (share * (0.5 - _LEAN) + (1.0 - share) * (0.5 + _LEAN))
    found = 0
    for i in range(n):
        word = _word(state, 5 + i * _DRAWS)
        move = price[i] - price[max(i - 1, 0)]
        chance = rise if move > 0 else (fall if move < 0 else flat)
        bought = int(float(word & _LOW_32) * _UNIT_32 < chance)
        found += bought
        sell[i] = 1 - bought
        weight[i] = 1.0 / (0.03 + float(word >> np.uint64(32)) * _UNIT_32)
    i = int(_unit(_word(state, 3)) * n)
    while found != buys:
        turned = int(found < buys)
        if sell[i] == turned:
            sell[i] = 1 - turned
            found += 2 * turned - 1
        i = i + 1 if i + 1 < n else 0
    return buys


@njit(cache=True, nogil=True)
def _draw_quantities(bar: np.void, buys: int, sell: Ints, weight: Floats, qty: Ints) -> None:
    """qty[:count]: at least one step each, by weight, purchases adding up to the taker volume and the rest to the rest."""
    n, taker, maker = int(bar["count"]), int(bar["taker_volume"]), int(bar["volume"] - bar["taker_volume"])
    total_sell, total = 0.0, 0.0
    for i in range(n):
        total += weight[i]
        total_sell += weight[i] * sell[i]
    spare_buy, spare_sell = taker - buys, maker - (n - buys)
    rate_buy = spare_buy / (total - total_sell) if buys else 0.0
    rate_sell = spare_sell / total_sell if buys < n else 0.0
    upto_buy, upto_sell = 0.0, 0.0
    given_buy, given_sell, last_buy, last_sell = 0, 0, 0, 0
    for i in range(n):
        sold = sell[i]
        upto_sell += weight[i] * rate_sell * sold
        upto_buy += weight[i] * rate_buy * (1 - sold)
        whole_sell, whole_buy = min(int(upto_sell), spare_sell), min(int(upto_buy), spare_buy)
        qty[i] = 1 + (whole_sell - given_sell) + (whole_buy - given_buy)
        given_sell, given_buy = whole_sell, whole_buy
        last_sell = i if sold else last_sell
        last_buy = last_buy if sold else i
    qty[last_buy] += spare_buy - given_buy if buys else 0
    qty[last_sell] += spare_sell - given_sell if buys < n else 0


@njit(cache=True, nogil=True)
def _expand(bars: Bars, key: np.uint64, bar_ms: int, symbol: int, spread_bps: float, depth: float, out: Trades) -> None:
    widest = 1
    for bar in bars:
        widest = max(widest, bar["count"])
    price, qty, sell, weight = np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest)
    k = 0
    for bar in bars:
        n = int(bar["count"])
        if n == 0:
            continue
        state = _mix(key ^ (np.uint64(bar["open_ms"]) * _GOLDEN))
        _draw_prices(bar, state, price, weight)
        _draw_quantities(bar, _draw_sides(bar, state, price, sell, weight), sell, weight, qty)
        spread = max(1, int(bar["open"] * spread_bps * 1e-4 + 0.5)) + (bar["high"] - bar["low"]) // 200
        raw = int(bar["trades"])
        for i in range(n):
            row = out[k]
            k += 1
            word = _word(state, 6 + i * _DRAWS)
            row["time_ms"] = bar["open_ms"] + int((i + float(word >> np.uint64(43)) * _UNIT_21) * bar_ms / n)
            row["symbol"] = symbol
            row["price"] = price[i]
            row["qty"] = qty[i]
            row["buyer_is_maker"] = sell[i]
            row["agg_id"] = bar["agg_base"] + i
            row["first_id"] = bar["raw_base"] + i * raw // n
            row["last_id"] = bar["raw_base"] + (i + 1) * raw // n - 1
            row["bid"] = max(price[i] - spread * (1 - sell[i]), 1)
            row["ask"] = max(price[i] + spread * sell[i], 2)
            row["bid_qty"] = max(1, int(depth * (0.25 + 1.5 * float(word & _LOW_21) * _UNIT_21)))
            row["ask_qty"] = max(1, int(depth * (0.25 + 1.5 * float((word >> np.uint64(21)) & _LOW_21) * _UNIT_21)))


@njit(cache=True, nogil=True)
def _quotes(bars: Bars, key: np.uint64, out: Klines) -> None:
    widest = 1
    for bar in bars:
        widest = max(widest, bar["count"])
    price, qty, sell, weight = np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest)
    for k in range(len(bars)):
        bar = bars[k]
        state = _mix(key ^ (np.uint64(bar["open_ms"]) * _GOLDEN))
        _draw_prices(bar, state, price, weight)
        _draw_quantities(bar, _draw_sides(bar, state, price, sell, weight), sell, weight, qty)
        quote, taker = 0.0, 0.0
        for i in range(bar["count"]):
            value = float(price[i]) * qty[i]
            quote += value
            taker += value * (1 - sell[i])
        out[k]["quote_volume"] = quote
        out[k]["taker_quote_volume"] = taker


def expand(bars: Bars, grain: Grain, bar_ms: int, symbol: int) -> Trades:
    """The trades of settled candles of one symbol, in time order (TRADE_DTYPE)."""
    out = np.empty(int(bars["count"].sum()), TRADE_DTYPE)
    if len(out):
        _expand(bars, np.uint64(grain.key), bar_ms, symbol, grain.spread_bps, grain.depth_steps, out)
    return out


def as_klines(bars: Bars, grain: Grain, *, exact_quote: bool) -> Klines:
    """Settled candles as KLINE_DTYPE, silent ones left out. Quote volumes: summed over the very trades, or volume × (O+H+L+C)/4."""
    bars = bars[bars["count"] > 0]
    out = np.empty(len(bars), KLINE_DTYPE)
    for name in ("open_ms", "open", "high", "low", "close", "volume", "taker_volume", "trades"):
        out[name] = bars[name]
    if exact_quote and len(bars):
        _quotes(bars, np.uint64(grain.key), out)
        return out
    typical = (out["open"] + out["high"] + out["low"] + out["close"]) / 4.0
    out["quote_volume"] = typical * out["volume"]
    out["taker_quote_volume"] = typical * out["taker_volume"]
    return out


@njit(cache=True, nogil=True)
def _group_trades(trades: Trades, interval_ms: int, out: Klines) -> int:
    k = -1
    for i in range(len(trades)):
        trade = trades[i]
        opened, price, qty = trade["time_ms"] // interval_ms * interval_ms, trade["price"], trade["qty"]
        if k < 0 or out[k]["open_ms"] != opened:
            k += 1
            row = out[k]
            row["open_ms"] = opened
            row["open"] = row["high"] = row["low"] = price
            row["volume"] = row["taker_volume"] = row["trades"] = 0
            row["quote_volume"] = row["taker_quote_volume"] = 0.0
        row = out[k]
        row["high"] = max(row["high"], price)
        row["low"] = min(row["low"], price)
        row["close"] = price
        row["volume"] += qty
        row["trades"] += trade["last_id"] - trade["first_id"] + 1
        row["quote_volume"] += float(price) * qty
        if trade["buyer_is_maker"] == 0:
            row["taker_volume"] += qty
            row["taker_quote_volume"] += float(price) * qty
    return k + 1


def candles_of(trades: Trades, interval_ms: int) -> Klines:
    """Trades of one symbol, in time order, as candles (KLINE_DTYPE); spans without trades are left out."""
    out = np.empty(len(trades), KLINE_DTYPE)
    return out[: _group_trades(trades, interval_ms, out)]


def merge_candles(parts: Klines, interval_ms: int) -> Klines:
    """Shorter candles in time order, none across a boundary, as longer ones; empty spans are left out."""
    if not len(parts):
        return parts
    opened = parts["open_ms"] // interval_ms * interval_ms
    starts = np.flatnonzero(np.r_[True, opened[1:] != opened[:-1]])
    out = np.empty(len(starts), KLINE_DTYPE)
    out["open_ms"] = opened[starts]
    out["open"] = parts["open"][starts]
    out["close"] = parts["close"][np.r_[starts[1:], len(parts)] - 1]
    out["high"] = np.maximum.reduceat(parts["high"], starts)
    out["low"] = np.minimum.reduceat(parts["low"], starts)
    for name in ("volume", "taker_volume", "trades", "quote_volume", "taker_quote_volume"):
        out[name] = np.add.reduceat(parts[name], starts)
    return out


def fill_flat(candles: Klines, interval_ms: int, first_ms: int, last_ms: int, price: int | None) -> Klines:
    """Candles at every open from ``first_ms`` to ``last_ms``: empty spans are flat at the last close, before the first at ``price``.

    Without a ``price`` there is nothing before the first candle.
    """
    if price is None:
        if not len(candles):
            return candles
        first_ms, price = int(candles["open_ms"][0]), 0
    size = max(0, (last_ms - first_ms) // interval_ms + 1)
    if size == len(candles):
        return candles
    out = np.zeros(size, KLINE_DTYPE)
    out["open_ms"] = first_ms + np.arange(size, dtype=np.int64) * interval_ms
    place = (candles["open_ms"] - first_ms) // interval_ms
    source = np.full(size, -1, np.int64)
    source[place] = np.arange(len(candles))
    latest = np.maximum.accumulate(source)
    closes = np.r_[candles["close"], price]
    for name in ("open", "high", "low", "close"):
        out[name] = closes[latest]
    out[place] = candles
    return out
