"""The market that both sources share: merges the trades of all symbols, answers for ids and candles, and hides what lies ahead.

A *source* knows one symbol at a time, in whole bars (``bar_ms``). Here its bars become one stream in time order, a bar of all symbols at
once, and the latest of these are kept, so that a reader who walks in small steps pays for each bar once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from src.error_handler import Fatal
from src.exchange.expansion import (
    BAR_DTYPE,
    KLINE_DTYPE,
    TRADE_DTYPE,
    Bars,
    Grain,
    Ints,
    Klines,
    Trades,
    as_klines,
    candles_of,
    expand,
    fill_flat,
    merge_candles,
)
from src.exchange.marks import Marks
from src.exchange.symbols import SymbolSpec

DAY_MS = 86_400_000
INTERVAL_MIN_MS = 1_000
EXACT_QUOTE_MAX_MS = 900_000
"""Up to this interval a candle's quote volume is summed over its trades; above, over volume × (O+H+L+C)/4 of its parts (within 0.01 %),
since expanding months of trades for a statistic would hold up the venue."""
BLOCKS_KEPT = 2
AGG_LIMIT_MAX = 1_000


class Source(Protocol):
    """One symbol at a time; ``from_ms`` and ``to_ms`` are whole multiples of ``bar_ms`` here."""

    @property
    def bar_ms(self) -> int: ...

    def span(self, index: int) -> tuple[int, int | None]:
        """When the symbol's first bar opens and its last one ends (None: never)."""
        ...

    def trades(self, index: int, from_ms: int, to_ms: int) -> Trades: ...

    def candles(self, index: int, from_ms: int, to_ms: int, *, exact_quote: bool) -> Klines:
        """Whole bars with from_ms ≤ open < to_ms that hold trades."""
        ...

    def opening_of_id(self, index: int, agg_id: int, before_ms: int) -> int | None:
        """When the bar opens that holds the first trade with an id of ``agg_id`` or above; None: none such before ``before_ms``."""
        ...

    def last_close(self, index: int, before_ms: int) -> int | None:
        """The last price (ticks) before ``before_ms``, if there was one."""
        ...

    def prepare(self, now_ms: int) -> None:
        """Do a small piece of the work that will be needed soon."""
        ...


class BarSource(Protocol):
    """Where candles to be expanded come from; all in BAR_DTYPE, settled."""

    @property
    def bar_ms(self) -> int: ...

    def span(self, index: int) -> tuple[int, int | None]: ...

    def bars(self, index: int, from_ms: int, to_ms: int) -> Bars: ...

    def opening_of_id(self, index: int, agg_id: int, before_ms: int) -> int | None: ...

    def last_close(self, index: int, before_ms: int) -> int | None: ...

    def prepare(self, now_ms: int) -> None: ...


class ExpandedSource:
    """A source whose trades are made from candles. ``grains``: one for each symbol."""

    __slots__ = ("_bars", "_grains", "bar_ms", "last_close", "opening_of_id", "prepare", "span")

    def __init__(self, bars: BarSource, grains: list[Grain]) -> None:
        self.bar_ms = bars.bar_ms
        self._bars = bars
        self._grains = grains
        self.span = bars.span
        self.opening_of_id = bars.opening_of_id
        self.last_close = bars.last_close
        self.prepare = bars.prepare

    def trades(self, index: int, from_ms: int, to_ms: int) -> Trades:
        return expand(self._bars.bars(index, from_ms, to_ms), self._grains[index], self.bar_ms, index)

    def candles(self, index: int, from_ms: int, to_ms: int, *, exact_quote: bool) -> Klines:
        return as_klines(self._bars.bars(index, from_ms, to_ms), self._grains[index], exact_quote=exact_quote)


def no_bars() -> Bars:
    return np.empty(0, BAR_DTYPE)


@dataclass(frozen=True, slots=True)
class Block:
    """The trades of all symbols within one bar in time order, their times beside, and where in it each symbol's are (symbol by symbol)."""

    merged: Trades
    times: Ints
    places: NDArray[np.int32]
    offsets: Ints

    def of(self, index: int) -> Trades:
        return self.merged[self.places[self.offsets[index] : self.offsets[index + 1]]]


@dataclass(frozen=True, slots=True)
class Opening:
    """When a market's history starts, its live trading opens, and its path ends (ms; None: never)."""

    start_ms: int
    open_ms: int
    end_ms: int | None


def check_resume(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Fatal, naming the field, where a saved market is not the one this run would open."""
    for field, value in wanted.items():
        if saved.get(field) != value:
            raise Fatal(
                f"the exchange's saved market has {field} {saved.get(field)!r} and this run asks for {value!r}; "
                "run it with the same settings as before, or with an empty STATE_DIR",
                setting="STATE_DIR",
                field=field,
            )


class PathMarket:
    """Implements ``market.Market`` over one source."""

    def __init__(self, source: Source, symbols: tuple[SymbolSpec, ...], opening: Opening, state: dict[str, Any]) -> None:
        self.symbols = symbols
        self.start_ms = opening.start_ms
        self.open_ms = opening.open_ms
        self.end_ms = opening.end_ms
        self._source = source
        self._bar_ms = source.bar_ms
        self._state = state
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._units = [float(s.tick) * float(s.step) for s in symbols]

    def resume_state(self) -> dict[str, Any]:
        return dict(self._state)

    def marks(self) -> Marks | None:
        return None

    def trades(self, from_ms: int, to_ms: int) -> Trades:
        from_ms = max(from_ms, self.start_ms)
        to_ms = to_ms if self.end_ms is None else min(to_ms, self.end_ms)
        if from_ms >= to_ms:
            return np.empty(0, TRADE_DTYPE)
        self._source.prepare(to_ms)
        parts = [self._slice(key, from_ms, to_ms) for key in range(from_ms // self._bar_ms, (to_ms - 1) // self._bar_ms + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _slice(self, key: int, from_ms: int, to_ms: int) -> Trades:
        block = self._block(key)
        first, last = np.searchsorted(block.times, (from_ms, to_ms))
        return block.merged[first:last]

    def _block(self, key: int) -> Block:
        block = self._blocks.get(key)
        if block is None:
            opened = key * self._bar_ms
            each = [self._source.trades(i, opened, opened + self._bar_ms) for i in range(len(self.symbols))]
            by_symbol = np.concatenate(each)
            order = np.argsort(by_symbol["time_ms"], kind="stable")
            merged = by_symbol[order]
            places = np.empty(len(order), np.int32)
            places[order] = np.arange(len(order), dtype=np.int32)
            offsets = np.r_[0, np.cumsum([len(x) for x in each])]
            block = self._blocks[key] = Block(merged, np.ascontiguousarray(merged["time_ms"]), places, offsets)
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return block

    def _trades_of(self, index: int, from_ms: int, to_ms: int) -> Trades:
        """One symbol's trades with from_ms ≤ time < to_ms."""
        if to_ms <= from_ms:
            return np.empty(0, TRADE_DTYPE)
        bar = self._bar_ms
        first, last = from_ms // bar, (to_ms - 1) // bar
        if first == last and first in self._blocks:
            found = self._blocks[first].of(index)
        else:
            found = self._source.trades(index, first * bar, (last + 1) * bar)
        a, b = np.searchsorted(found["time_ms"], (from_ms, to_ms))
        return found[a:b]

    def agg_trades(
        self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None, limit: int = 500
    ) -> Trades:
        first_ms, end_ms = self._source.span(symbol_index)
        limit = min(limit, AGG_LIMIT_MAX)
        ends = [x for x in (to_ms, end_ms, self.end_ms) if x is not None]
        assert ends, "to_ms: the trades of an endless market have no end"
        to = min(ends)
        if from_id is not None:
            opened = self._source.opening_of_id(symbol_index, from_id, to)
            return self._forward(symbol_index, to if opened is None else opened, to, from_id, limit)
        if from_ms is not None:
            return self._forward(symbol_index, max(from_ms, first_ms), to, 0, limit)
        return self._backward(symbol_index, first_ms, to, limit)

    def _forward(self, index: int, from_ms: int, to_ms: int, from_id: int, limit: int) -> Trades:
        parts, got, at, width = [np.empty(0, TRADE_DTYPE)], 0, from_ms, self._bar_ms
        while at < to_ms and got < limit:
            part = self._trades_of(index, at, min(at + width, to_ms))
            part = part[part["agg_id"] >= from_id]
            parts.append(part)
            got, at, width = got + len(part), at + width, min(2 * width, max(DAY_MS, self._bar_ms))
        return np.concatenate(parts)[:limit]

    def _backward(self, index: int, from_ms: int, to_ms: int, limit: int) -> Trades:
        parts, got, at, width = [np.empty(0, TRADE_DTYPE)], 0, to_ms, self._bar_ms
        while at > from_ms and got < limit:
            part = self._trades_of(index, max(at - width, from_ms), at)
            parts.append(part)
            got, at, width = got + len(part), at - width, min(2 * width, max(DAY_MS, self._bar_ms))
        return np.concatenate(parts[::-1])[-limit:]

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> Klines:
        assert INTERVAL_MIN_MS <= interval_ms <= DAY_MS, interval_ms
        begin, end = self._source.span(symbol_index)
        limit = min(x for x in (now_ms, end, self.end_ms) if x is not None)
        first = -(-max(from_ms, begin // interval_ms * interval_ms) // interval_ms) * interval_ms
        last = min(to_ms, limit - 1) // interval_ms * interval_ms
        if first > last:
            return np.empty(0, KLINE_DTYPE)
        found = self._candles(symbol_index, interval_ms, first, min(last + interval_ms, limit))
        started = len(found) > 0 and int(found["open_ms"][0]) == first
        price = int(found["open"][0]) if started else self._last_price(symbol_index, first)
        out = fill_flat(found, interval_ms, first, last, price).copy()
        out["quote_volume"] *= self._units[symbol_index]
        out["taker_quote_volume"] *= self._units[symbol_index]
        return out

    def _candles(self, index: int, interval_ms: int, from_ms: int, to_ms: int) -> Klines:
        """Candles of the trades with from_ms ≤ time < to_ms; out of whole bars as far as they go, of trades where a bar is cut."""
        bar = self._bar_ms
        if interval_ms % bar:
            cuts = [from_ms, *range((from_ms // DAY_MS + 1) * DAY_MS, to_ms, DAY_MS), to_ms]
            return np.concatenate([candles_of(self._trades_of(index, a, b), interval_ms) for a, b in pairwise(cuts)])
        whole_to = to_ms // bar * bar
        whole = self._source.candles(index, from_ms, whole_to, exact_quote=interval_ms <= EXACT_QUOTE_MAX_MS)
        cut = candles_of(self._trades_of(index, whole_to, to_ms), bar)
        return merge_candles(np.concatenate((whole, cut)), interval_ms)

    def _last_price(self, index: int, before_ms: int) -> int | None:
        opened = before_ms // self._bar_ms * self._bar_ms
        inside = self._trades_of(index, opened, before_ms)
        return int(inside["price"][-1]) if len(inside) else self._source.last_close(index, opened)
