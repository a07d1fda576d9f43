"""Markets for tests: bars, slots and whole states of seeded random walks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from src.market_state import Batch, MarketState
from src.ring_buffer import SLOT_DTYPE, TIME, TRADE

T0 = 1_700_006_400_000
"""A midnight."""
MINUTE = 60_000
Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.void]


def random_bars(n: int, seed: int, *, interval_ms: int = MINUTE, volatility: float = 0.01, start_ms: int = T0) -> Floats:
    """(n, 8) bars of a random walk from 100, whole volumes, prices on a grid of 0.01 so that ties happen."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, volatility, n)))
    open_ = np.concatenate([[100.0], close[:-1]])
    high = np.maximum(open_, close) * (1 + np.abs(rng.normal(0.0, volatility / 3, n)))
    low = np.minimum(open_, close) * (1 - np.abs(rng.normal(0.0, volatility / 3, n)))
    volume = rng.integers(1, 1_000, n).astype(float)
    prices = np.round(np.c_[open_, high, low, close], 2)
    bars: Floats = np.c_[start_ms + np.arange(n) * float(interval_ms), prices, volume, np.ceil(volume / 10), np.floor(volume * rng.random(n))]
    return bars


def slots_of(rows: list[dict[str, Any]]) -> Slots:
    """SLOT_DTYPE rows from dictionaries; a trade needs ``price`` or its four prices."""
    out = np.zeros(len(rows), SLOT_DTYPE)
    for slot, row in zip(out, rows, strict=True):
        row = {"kind": TRADE, **row}
        price = row.pop("price", None)
        if price is not None:
            row = {"open": price, "high": price, "low": price, "close": price, **row}
        if row["kind"] == TRADE:
            row = {"volume": 1.0, "trade_count": 1, "last_time_ms": row["time_ms"], **row}
        for name, value in row.items():
            slot[name] = value
    return out


def slots_of_bars(bars: list[Floats]) -> Slots:
    """One TRADE slot a bar and symbol, in time order, and a TIME slot at each end: what a replay of candles looks like."""
    n, symbols = len(bars[0]), len(bars)
    out = np.zeros((n, symbols + 1), SLOT_DTYPE)
    interval = bars[0][1, 0] - bars[0][0, 0]
    for i, rows in enumerate(bars):
        part = out[:, i]
        part["kind"], part["sym"], part["received_ns"] = TRADE, i, 1
        part["time_ms"], part["last_time_ms"] = rows[:, 0], rows[:, 0] + interval - 1
        for k, name in enumerate(("open", "high", "low", "close", "volume", "trade_count", "taker_buy_volume"), start=1):
            part[name] = rows[:, k]
    out[:, symbols]["kind"], out[:, symbols]["time_ms"] = TIME, bars[0][:, 0] + interval
    return out.reshape(-1)


def random_trades(seed: int, *, symbols: int = 3, seconds: int = 4_000, volatility: float = 0.0006) -> Slots:
    """Trade fragments of random seconds, TIME slots at each minute, and now and then a gap, back-filled prints and late ones."""
    rng = np.random.default_rng(seed)
    price = np.full(symbols, 100.0)
    rows: list[dict[str, Any]] = []
    ids = [0] * symbols
    for second in range(seconds):
        time_ms = T0 + second * 1_000
        if second % 60 == 0 and second:
            rows.append({"kind": TIME, "time_ms": time_ms})
        for i in rng.permutation(symbols):
            if rng.random() < 0.4:
                path = price[i] * np.exp(np.cumsum(rng.normal(0.0, volatility, 4)))
                price[i], count = path[-1], int(rng.integers(1, 9))
                volume = int(rng.integers(1, 100))
                rows.append({
                    "sym": i, "time_ms": time_ms + int(rng.integers(0, 500)), "last_time_ms": time_ms + 500 + int(rng.integers(0, 500)),
                    "open": path[0], "high": path.max(), "low": path.min(), "close": path[-1], "volume": volume, "received_ns": second + 1,
                    "taker_buy_volume": volume // 2, "trade_count": count, "first_id": ids[i], "last_id": ids[i] + count - 1})
                ids[i] += count
        if rng.random() < 0.01:
            rows.append({"sym": int(rng.integers(symbols)), "time_ms": time_ms - 130_000, "price": 1.0})
        if rng.random() < 0.01 and len(rows) > 50:
            rows.append({**rows[-int(rng.integers(1, 20))], "flags": 1})
    return slots_of([row for row in rows if row.get("kind", TRADE) != TRADE or row["time_ms"] >= T0])


def state_of(symbols: int = 3, *, candle_ms: int = MINUTE, setup_ms: int = 5 * MINUTE, context_ms: int = 30 * MINUTE,
             history: int = 600) -> MarketState:
    names = tuple(f"S{i}USDT" for i in range(symbols))
    return MarketState(names, np.ones(symbols), candle_ms=candle_ms, setup_ms=setup_ms, context_ms=context_ms, history=history)


def run(state: MarketState, slots: Slots, on_closed: Any = None, *, limit: int = 1 << 40) -> list[Batch]:
    """Consume an array of slots to its end; ``on_closed(symbols)`` after each close barrier."""
    batches, position, more = [], 0, True
    while more:
        batch = state.consume_array(slots, position, limit=limit)
        position, more = position + batch.consumed, batch.more
        batches.append(batch)
        if len(batch.closed) and on_closed is not None:
            on_closed(batch.closed)
    return batches
