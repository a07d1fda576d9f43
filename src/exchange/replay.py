"""A recorded market, played again: shifted by whole days so that its live part opens within the day before now.

Recorded trades pass through one for one: price, quantity, side, order and ids; a bid and an ask stand one tick apart, at and beside the
last trade. Recorded candles are expanded into trades that give them back exactly; where the file has no trade counts or taker volumes,
three single trades an aggregate one and a seeded taker share around one half stand in. A symbol trades within its own span only; minutes
that are missing are silent.

The first part is history: of trades, a fifth of the span; of candles half, but not less than 500 quarter hours where a day remains after
them, and not more than 60 days.

A symbol's filters are the venue's where the recorded prices and volumes fit them, else they are derived from the recording's own digits,
which is said in a life-cycle line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from src.clock import iso, parse_utc
from src.data import Candles, Recording, TradeRows, load_recording
from src.error_handler import Fatal, lifecycle
from src.exchange.expansion import (
    BAR_DTYPE,
    KLINE_DTYPE,
    PRICE_TICKS_MAX,
    TRADE_DTYPE,
    Bars,
    Floats,
    Grain,
    Ints,
    Klines,
    Trades,
    count_by_liquidity,
    key_of,
    settle,
    spread_by_liquidity,
)
from src.exchange.path import DAY_MS, ExpandedSource, Opening, PathMarket, Source, check_resume
from src.exchange.symbols import TABLE, UNIVERSE_MAX, SymbolSpec, derived_spec

MINUTE_MS = 60_000
PATH_VERSION = 1
COUNT_MAX = 3_600
"""Aggregate trades in one recorded candle, however long."""
TRADES_HISTORY_SHARE = 0.2
HISTORY_MIN_MS = 500 * 15 * MINUTE_MS
HISTORY_MAX_MS = 60 * DAY_MS
DIGITS_MAX = 10
DEPTH_SHARE = 0.05
"""Usual quantity at the top of the book, as a share of a usual minute's volume."""
_WHOLE = 1e-3
"""How far from a whole number of ticks or steps a recorded number may be."""
_VOLUME_MAX = 2**53


def _fits(values: Floats, unit: float, largest: int) -> bool:
    scaled = values / unit
    whole = np.rint(scaled)
    is_written = np.abs(scaled - whole).max(initial=0.0) < _WHOLE and not np.any((values > 0) & (whole == 0))
    return bool(scaled.max(initial=0.0) <= largest and is_written)


def _digits_of(values: tuple[Floats, ...], largest: int) -> int | None:
    """The fewest digits after the point that write all values; None: they carry noise."""
    return next((d for d in range(DIGITS_MAX + 1) if all(_fits(v, 10.0**-d, largest) for v in values)), None)


def choose_spec(symbol: str, prices: tuple[Floats, ...], volume: Floats) -> SymbolSpec:
    """The venue's own filters where the recorded numbers fit them, else filters out of the recording's digits."""
    known = TABLE.get(symbol)
    if (known is not None and all(_fits(p, float(known.tick), PRICE_TICKS_MAX) for p in prices)
            and _fits(volume, float(known.step), _VOLUME_MAX)):
        return known
    price_digits = _digits_of(prices, PRICE_TICKS_MAX)
    if price_digits is None:
        top = max(float(p.max()) for p in prices)
        price_digits = int(min(DIGITS_MAX, np.floor(np.log10(PRICE_TICKS_MAX / top))))
        if price_digits < 0:
            raise Fatal(f"SIM_DATA: {symbol} has a price of {top:g}; prices up to {PRICE_TICKS_MAX:,} can be replayed", setting="SIM_DATA")
    return derived_spec(symbol, price=float(np.median(prices[-1])), price_digits=price_digits,
                        quantity_digits=_digits_of((volume,), _VOLUME_MAX))


def _whole(values: Floats, unit: float) -> Ints:
    found: Ints = np.rint(values / unit).astype(np.int64)
    return found


class CandleFile:
    """Implements ``path.BarSource`` over recorded candles, their times already shifted."""

    def __init__(self, bar_ms: int, bars: list[Bars]) -> None:
        self.bar_ms = bar_ms
        self._bars = bars
        self._times = [np.ascontiguousarray(b["open_ms"]) for b in bars]

    def span(self, index: int) -> tuple[int, int | None]:
        times = self._times[index]
        return int(times[0]), int(times[-1]) + self.bar_ms

    def bars(self, index: int, from_ms: int, to_ms: int) -> Bars:
        a, b = np.searchsorted(self._times[index], (from_ms, to_ms))
        return self._bars[index][a:b]

    def opening_of_id(self, index: int, agg_id: int, before_ms: int) -> int | None:
        bars = self._bars[index]
        if agg_id >= bars["agg_base"][-1] + bars["count"][-1]:
            return None
        return int(self._times[index][max(0, int(np.searchsorted(bars["agg_base"], agg_id, side="right")) - 1)])

    def last_close(self, index: int, before_ms: int) -> int | None:
        bars = self._bars[index][: np.searchsorted(self._times[index], before_ms)]
        traded = np.flatnonzero(bars["count"])
        return int(bars["close"][traded[-1]]) if len(traded) else None

    def prepare(self, now_ms: int) -> None:
        """Nothing is made later."""


def _to_bars(candles: Candles, symbol: SymbolSpec, bar_ms: int, seed: int) -> tuple[Bars, Grain, int]:
    """Settled bars at the recorded times, how to expand them, and how many candles had to be given more volume than recorded."""
    tick, step = float(symbol.tick), float(symbol.step)
    bars = np.zeros(len(candles.time_ms), BAR_DTYPE)
    bars["open_ms"] = candles.time_ms
    for name in ("open", "high", "low", "close"):
        bars[name] = _whole(getattr(candles, name), tick)
    bars["volume"] = _whole(candles.volume, step)
    if candles.taker_volume is not None:
        bars["taker_volume"] = _whole(candles.taker_volume, step)
    else:
        noise = Generator(Philox(key=key_of(seed, symbol.symbol, "taker"))).standard_normal(len(bars))
        lean = (bars["close"] - bars["open"]) / np.maximum(bars["high"] - bars["low"], 1)
        bars["taker_volume"] = bars["volume"] * np.clip(0.5 + 0.05 * lean + 0.07 * noise, 0.05, 0.95)
    minutes = bar_ms / MINUTE_MS
    active = candles.volume > 0
    usual = float(np.median(candles.volume[active])) if active.any() else step
    quote_per_minute = float(np.median(candles.volume[active] * candles.close[active])) / minutes if active.any() else 1.0
    busy = np.clip(np.sqrt(candles.volume / usual), 0.5, 2.0)
    bars["count"] = np.minimum(count_by_liquidity(quote_per_minute) * minutes * busy, COUNT_MAX)
    bars["trades"] = bars["count"] * 3
    if candles.trades is not None:
        counted = candles.trades > 0
        bars["trades"][counted] = candles.trades[counted]
        bars["count"] = np.minimum(bars["count"], bars["trades"])
    raised = settle(bars, 1, 1)
    depth = max(1.0, DEPTH_SHARE * usual / minutes / step)
    return bars, Grain(key_of(seed, symbol.symbol, "trades"), spread_by_liquidity(quote_per_minute), depth), raised


@dataclass(frozen=True, slots=True)
class _Columns:
    """One symbol's recorded trades in ticks and steps, and its minutes."""

    time_ms: Ints
    price: NDArray[np.int32]
    qty: Ints
    maker: NDArray[np.uint8]
    agg_id: Ints
    first_id: Ints
    last_id: Ints
    minutes: Klines
    depth: float


class TradeFile:
    """Implements ``path.Source`` over recorded trades, their times already shifted."""

    bar_ms = MINUTE_MS

    def __init__(self, columns: list[_Columns]) -> None:
        self._columns = columns
        self._opens = [np.ascontiguousarray(c.minutes["open_ms"]) for c in columns]

    def span(self, index: int) -> tuple[int, int | None]:
        times = self._columns[index].time_ms
        return int(times[0]), int(times[-1]) + 1

    def trades(self, index: int, from_ms: int, to_ms: int) -> Trades:
        rows = self._columns[index]
        a, b = np.searchsorted(rows.time_ms, (from_ms, to_ms))
        out = np.empty(b - a, TRADE_DTYPE)
        for name, values in (("time_ms", rows.time_ms), ("price", rows.price), ("qty", rows.qty), ("buyer_is_maker", rows.maker),
                             ("agg_id", rows.agg_id), ("first_id", rows.first_id), ("last_id", rows.last_id)):
            out[name] = values[a:b]
        out["symbol"] = index
        out["bid"] = np.maximum(out["price"] - (1 - out["buyer_is_maker"]), 1)
        out["ask"] = np.maximum(out["price"] + out["buyer_is_maker"], 2)
        for name, salt in (("bid_qty", 1), ("ask_qty", 2)):
            out[name] = np.maximum(rows.depth * (0.25 + 1.5 * _scatter(out["agg_id"], salt)), 1)
        return out

    def candles(self, index: int, from_ms: int, to_ms: int, *, exact_quote: bool) -> Klines:
        a, b = np.searchsorted(self._opens[index], (from_ms, to_ms))
        return self._columns[index].minutes[a:b]

    def opening_of_id(self, index: int, agg_id: int, before_ms: int) -> int | None:
        rows = self._columns[index]
        place = int(np.searchsorted(rows.agg_id, agg_id))
        return int(rows.time_ms[place]) // MINUTE_MS * MINUTE_MS if place < len(rows.agg_id) else None

    def last_close(self, index: int, before_ms: int) -> int | None:
        rows = self._columns[index]
        place = int(np.searchsorted(rows.time_ms, before_ms))
        return int(rows.price[place - 1]) if place else None

    def prepare(self, now_ms: int) -> None:
        """Nothing is made later."""


def _scatter(ids: Ints, salt: int) -> Floats:
    """A number in [0, 1) out of each id."""
    mixed = (ids.astype(np.uint64) * np.uint64(2 * salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    found: Floats = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    return found


def _to_columns(rows: TradeRows, symbol: SymbolSpec) -> _Columns:
    price, qty = _whole(rows.price, float(symbol.tick)), np.maximum(_whole(rows.qty, float(symbol.step)), 1)
    count = np.arange(1, len(price) + 1, dtype=np.int64)
    first = count if rows.first_id is None or rows.last_id is None else rows.first_id
    last = count if rows.first_id is None or rows.last_id is None else rows.last_id
    agg_id = count if rows.agg_id is None else rows.agg_id
    maker = rows.buyer_is_maker
    starts = np.flatnonzero(np.diff(rows.time_ms // MINUTE_MS, prepend=-1))
    minutes = np.empty(len(starts), KLINE_DTYPE)
    minutes["open_ms"] = rows.time_ms[starts] // MINUTE_MS * MINUTE_MS
    minutes["open"], minutes["close"] = price[starts], price[np.r_[starts[1:], len(price)] - 1]
    minutes["high"], minutes["low"] = np.maximum.reduceat(price, starts), np.minimum.reduceat(price, starts)
    value = price.astype(np.float64) * qty
    for name, values in (("volume", qty), ("taker_volume", qty * (maker == 0)), ("trades", last - first + 1), ("quote_volume", value),
                         ("taker_quote_volume", value * (maker == 0))):
        minutes[name] = np.add.reduceat(values, starts)
    depth = max(1.0, DEPTH_SHARE * float(np.median(minutes["volume"])))
    return _Columns(rows.time_ms, price.astype(np.int32), qty, maker, agg_id, first, last, minutes, depth)


def _opening(recording: Recording) -> Opening:
    """History, opening and end in recorded time."""
    every = [rows.time_ms for rows in (recording.candles or recording.trades).values()]
    bar = recording.interval_ms or MINUTE_MS
    start = min(int(t[0]) for t in every) // bar * bar
    end = max(int(t[-1]) for t in every) + (recording.interval_ms or 1)
    span = end - start
    if recording.trades:
        history = int(span * TRADES_HISTORY_SHARE)
    else:
        least = HISTORY_MIN_MS if span >= HISTORY_MIN_MS + DAY_MS else 0
        history = min(max(span // 2, least), HISTORY_MAX_MS)
    return Opening(start, start + history // bar * bar, end)


def _begin_at(opening: Opening, start: str) -> Opening:
    """The same span with live trading from ``start`` on. Fatal where that is not a time inside it."""
    try:
        start_ms = parse_utc(start)
    except ValueError:
        start_ms = -1
    if not opening.start_ms <= start_ms < (opening.end_ms or 0):
        span = f"from {iso(opening.start_ms)[:16]} and before {iso(opening.end_ms or 0)[:16]}"
        raise Fatal(f"SIM_START={start!r} must be a time in UTC {span}, where the recording lies", setting="SIM_START", value=start)
    return replace(opening, open_ms=start_ms // MINUTE_MS * MINUTE_MS)


def open_replay(*, path: str | None, symbols: tuple[str, ...], seed: int, now_ms: int, resume: dict[str, Any] | None,
                start: str = "") -> PathMarket:  # fmt: skip
    """The recording at ``path``, of all its symbols or of those named. Fatal where it cannot be played."""
    recording = load_recording(path or "", symbols=symbols)
    names = symbols or tuple(recording.candles or recording.trades)
    if len(names) > UNIVERSE_MAX:
        raise Fatal(f"SIM_DATA={path} holds {len(names)} symbols and the local exchange lists at most {UNIVERSE_MAX}; name those wanted",
                    setting="SIM_DATA", value=path)
    identity = {"kind": "replay", "path_version": PATH_VERSION, "seed": seed, "symbols": list(names), "recording": recording.identity}
    if resume is not None:
        check_resume(resume, identity)
    recorded = _opening(recording)
    if start:
        recorded = _begin_at(recorded, start)
    shift = (now_ms - recorded.open_ms) // DAY_MS * DAY_MS if resume is None else int(resume["shift_ms"])
    assert recorded.end_ms is not None
    opening = Opening(recorded.start_ms + shift, recorded.open_ms + shift, recorded.end_ms + shift)
    source, specs = _of_candles(recording, names, shift, seed) if recording.candles else _of_trades(recording, names, shift)
    _say_derived(specs)
    return PathMarket(source, specs, opening, {**identity, "shift_ms": shift, "open_ms": opening.open_ms})


def _of_candles(recording: Recording, names: tuple[str, ...], shift: int, seed: int) -> tuple[Source, tuple[SymbolSpec, ...]]:
    specs, bars, grains, raised = [], [], [], 0
    for name in names:
        candles = recording.candles[name]
        symbol = choose_spec(name, (candles.open, candles.high, candles.low, candles.close), candles.volume)
        made, grain, more = _to_bars(candles, symbol, recording.interval_ms, seed)
        made["open_ms"] += shift
        specs.append(symbol)
        bars.append(made)
        grains.append(grain)
        raised += more
    if raised:
        lifecycle(f"🎞️ Replay: {raised} candles have a range but hardly any volume; they were given a step for each price they touch",
                  candles=raised)
    return ExpandedSource(CandleFile(recording.interval_ms, bars), grains), tuple(specs)


def _of_trades(recording: Recording, names: tuple[str, ...], shift: int) -> tuple[Source, tuple[SymbolSpec, ...]]:
    specs, columns = [], []
    for name in names:
        rows = recording.trades[name]
        symbol = choose_spec(name, (rows.price,), rows.qty)
        specs.append(symbol)
        columns.append(_to_columns(replace(rows, time_ms=rows.time_ms + shift), symbol))
    return TradeFile(columns), tuple(specs)


def _say_derived(specs: tuple[SymbolSpec, ...]) -> None:
    derived = [s for s in specs if s.derived]
    if derived:
        shown = ", ".join(f"{s.symbol} (tick {s.tick:f}, step {s.step:f})" for s in derived[:5]) + (" …" if len(derived) > 5 else "")
        lifecycle(f"🎞️ Replay: filters of {len(derived)} of {len(specs)} symbols come from the recording itself: {shown}",
                  derived=len(derived))
