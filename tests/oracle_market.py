"""Plain-Python twin of src/bars.py, src/setups.py and the slot loop of src/market_state.py: one slot at a time, dictionaries and lists.

Candles are built by sorting the fragments of each minute, not by merging them as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from src.ring_buffer import BACKFILLED, GAP, HEALED, QUOTE, STATE, TIME, TRADE

ARMED_MAX, ROWS_MAX = 4, 12
Setup = dict[str, Any]
Candle = tuple[float, ...]


@dataclass
class Symbol:
    open_ms: int = -1
    fragments: list[Any] = field(default_factory=list)
    close: float = 0.0
    gapped: bool = False
    tradable: bool = True
    bid: float = 0.0
    candles: list[Candle] = field(default_factory=list)
    tainted: list[bool] = field(default_factory=list)
    setup_bars: list[Candle] = field(default_factory=list)
    setup_first_ms: int = -1
    setups: list[Setup] = field(default_factory=list)


class TwinMarket:
    """``propose(i, bar_end_ms, close)`` gives the setups to arm at a close, as dictionaries."""

    def __init__(self, symbols: int, candle_ms: int, setup_ms: int, propose: Callable[[int, int, float], list[Setup]]) -> None:
        self.symbols = [Symbol() for _ in range(symbols)]
        self.candle_ms, self.setup_ms = candle_ms, setup_ms
        self.propose = propose
        self.fired: list[tuple[Any, ...]] = []
        self.outcomes: list[tuple[Any, ...]] = []
        self.counts = dict.fromkeys(("late", "flat", "missed", "crowded", "seam"), 0)

    def take(self, slot: Any) -> None:
        kind, i = int(slot["kind"]), int(slot["sym"])
        symbol = self.symbols[i]
        if kind == TIME:
            for j in range(len(self.symbols)):
                self._close_until(j, int(slot["time_ms"]))
        elif kind == TRADE:
            self._trade(i, symbol, slot)
        elif kind == QUOTE:
            symbol.bid = float(slot["open"])
        elif kind == GAP:
            symbol.gapped = True
        elif kind == HEALED:
            symbol.gapped = False
        elif kind == STATE:
            symbol.tradable = slot["open"] == 1.0

    def _trade(self, i: int, symbol: Symbol, slot: Any) -> None:
        time_ms = int(slot["time_ms"])
        if symbol.open_ms < 0:
            symbol.open_ms = time_ms - time_ms % self.candle_ms
            symbol.setup_first_ms = symbol.open_ms
        if time_ms < symbol.open_ms:
            self.counts["late"] += 1
            return
        self._close_until(i, time_ms)
        symbol.fragments.append((time_ms, slot["first_id"], slot["last_time_ms"], slot["last_id"], len(symbol.fragments), slot.copy()))
        self._cross(symbol, slot, time_ms)

    def _close_until(self, i: int, time_ms: int) -> None:
        symbol = self.symbols[i]
        while 0 <= symbol.open_ms <= time_ms - self.candle_ms:
            self._close(i, symbol)

    def _close(self, i: int, symbol: Symbol) -> None:
        candle: Candle
        if symbol.fragments:
            slots = [f[-1] for f in symbol.fragments]
            first = min(symbol.fragments, key=lambda f: (f[0], f[1], f[4]))[-1]
            last = max(symbol.fragments, key=lambda f: (f[2], f[3], f[4]))[-1]
            candle = (symbol.open_ms, float(first["open"]), max(float(s["high"]) for s in slots), min(float(s["low"]) for s in slots),
                      float(last["close"]), sum(float(s["volume"]) for s in slots), sum(int(s["trade_count"]) for s in slots),
                      sum(float(s["taker_buy_volume"]) for s in slots))  # fmt: skip
        else:
            self.counts["flat"] += 1
            candle = (symbol.open_ms, *[symbol.close] * 4, 0.0, 0, 0.0)
        symbol.candles.append(candle)
        symbol.tainted.append(symbol.gapped)
        symbol.close, symbol.fragments = candle[4], []
        symbol.open_ms += self.candle_ms
        if symbol.open_ms % self.setup_ms == 0:
            self._close_setup(i, symbol)

    def _close_setup(self, i: int, symbol: Symbol) -> None:
        start = symbol.open_ms - self.setup_ms
        parts = [c for c in symbol.candles if c[0] >= start]
        tainted = any(t for c, t in zip(symbol.candles, symbol.tainted, strict=True) if c[0] >= start) or symbol.setup_first_ms > start
        symbol.setup_bars.append((start, parts[0][1], max(c[2] for c in parts), min(c[3] for c in parts), parts[-1][4],
                                  sum(c[5] for c in parts), sum(c[6] for c in parts), sum(c[7] for c in parts)))  # fmt: skip
        symbol.setups = [s for s in symbol.setups if s["state"] == "entered"]
        if tainted or symbol.gapped:
            return
        proposals = sorted(self.propose(i, symbol.open_ms, symbol.close), key=lambda s: -s["confidence"])
        self.counts["crowded"] += max(0, len(proposals) - ARMED_MAX)
        for setup in proposals[:ARMED_MAX]:
            if len(symbol.setups) == ROWS_MAX:
                symbol.setups.remove(min((s for s in symbol.setups if s["state"] == "entered"), key=lambda s: s["entered_ms"]))
            symbol.setups.append({**setup, "state": "armed"})

    def _cross(self, symbol: Symbol, slot: Any, time_ms: int) -> None:
        for setup in list(symbol.setups):
            if setup["state"] == "entered":
                self._follow(symbol, setup, slot, time_ms)
            else:
                self._enter(symbol, setup, slot, time_ms)

    def _enter(self, symbol: Symbol, setup: Setup, slot: Any, time_ms: int) -> None:
        side, entry, stop = setup["side"], setup["entry"], setup["stop"]
        reached = float(slot["low"] if side > 0 else slot["high"])
        if side * (reached - entry) > 0:
            return
        price = side * min(side * float(slot["open"]), side * entry)
        live = not symbol.gapped and symbol.tradable and not int(slot["flags"]) & BACKFILLED
        if not live or side * (price - stop) <= 0:
            self.counts["missed"] += 1
            symbol.setups.remove(setup)
            return
        setup.update(state="entered", entered_ms=time_ms, entered_price=price)
        self.fired.append((setup["id"], time_ms, price, float(slot["close"]), int(slot["received_ns"]), symbol.bid))
        if side * (reached - stop) <= 0:
            self._end(symbol, setup, stop, time_ms, -1)

    def _follow(self, symbol: Symbol, setup: Setup, slot: Any, time_ms: int) -> None:
        side, stop, target, opened = setup["side"], setup["stop"], setup["target"], float(slot["open"])
        against, along = (slot["low"], slot["high"]) if side > 0 else (slot["high"], slot["low"])
        if time_ms < setup["entered_ms"]:
            return
        if time_ms >= setup["entered_ms"] + setup["limit_ms"]:
            self._end(symbol, setup, opened, time_ms, 0)
        elif side * (float(against) - stop) <= 0:
            self._end(symbol, setup, side * min(side * opened, side * stop), time_ms, -1)
        elif side * (float(along) - target) >= 0:
            self._end(symbol, setup, target, time_ms, 1)

    def _end(self, symbol: Symbol, setup: Setup, price: float, time_ms: int, result: int) -> None:
        self.outcomes.append((setup["id"], time_ms, price, result))
        symbol.setups.remove(setup)
