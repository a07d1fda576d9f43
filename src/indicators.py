"""Wilder's RSI and ATR and the exponential mean: one bar at a time in constant time, and whole series at once.

Invariants
  * A value depends on the bars up to and including its own and on nothing later; it is NaN until it is known.
  * The series form walks the same steps as the live form, so both give the same bits.
  * Bars are rows of eight f64, the columns ``OPEN_MS`` … ``TAKER_VOLUME``, oldest first. Prices are above 0.

Definitions (J. Welles Wilder, New Concepts in Technical Trading Systems, 1978), period n
  * change_k = close_k - close_(k-1). Mean gain and loss: the plain means of the first n changes, then (mean * (n - 1) + x) / n.
    RSI = 100 * gain / (gain + loss), 50 where both are 0. Known after n + 1 bars.
  * true range = max(high, previous close) - min(low, previous close); of the first bar high - low. ATR: the plain mean of the first n,
    then as above. Known after n bars.
  * EMA: mean += 2 / (n + 1) * (x - mean), starting at the first x. Known at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from src.compiler import njit

Floats = npt.NDArray[np.float64]
Int = Any
"""Positions, counts and times in kernels: int64. Numba checks them."""
Records = Any
"""A structured array; its dtype stands beside its name where it is made."""
Row = Any
"""One record of a structured array: Numba reads and writes its fields in place."""

kernel = njit(cache=True, error_model="numpy")
"""How every kernel on this side is compiled: kept on disk, and x / 0 is inf or NaN as in NumPy."""

OPEN_MS, OPEN, HIGH, LOW, CLOSE, VOLUME, TRADES, TAKER_VOLUME = 0, 1, 2, 3, 4, 5, 6, 7
BAR_COLUMNS = 8
"""Columns of a bar: milliseconds, prices, volumes in steps, number of trades."""

EMA_FAST, EMA_SLOW, ATR_SLOW, FLOW_MEAN = 20, 50, 100, 20
"""Periods in bars that are not settings: the two means of closes, the long true range, and the means of volume and taker share."""

INDICATOR_DTYPE = np.dtype([
    ("bars", "i8"), ("close", "f8"), ("gain", "f8"), ("loss", "f8"), ("rsi", "f8"), ("true_range_mean", "f8"), ("atr", "f8"),
    ("atr_slow", "f8"), ("ema_fast", "f8"), ("ema_slow", "f8"), ("volume_mean", "f8"), ("taker_share", "f8"),
])
"""One time frame of one symbol. ``bars``: how many were seen. ``taker_share``: mean of (taker buys - taker sells) / volume, -1 to 1;
a bar without volume, or whose taker volume is NaN (not recorded), counts as 0."""


@kernel
def wilder(mean: float, x: float, count: int, period: int) -> float:
    """The mean after the ``count``-th value: a plain mean up to ``period`` values, Wilder's smoothing from then on."""
    n = min(count, period)
    return mean + (x - mean) / n


@kernel
def advance_rsi(row: Row, close: float, period: int) -> None:
    """Take one close into ``gain``, ``loss``, ``rsi``. Before ``bars`` and ``close`` are moved on."""
    if row.bars > 0:
        change = close - row.close
        row.gain = wilder(row.gain, max(change, 0.0), row.bars, period)
        row.loss = wilder(row.loss, max(-change, 0.0), row.bars, period)
    both = row.gain + row.loss
    if row.bars < period:
        row.rsi = np.nan
    else:
        row.rsi = 100.0 * row.gain / both if both > 0.0 else 50.0


@kernel
def advance_atr(row: Row, high: float, low: float, period: int) -> None:
    """Take one bar into ``atr`` and ``atr_slow``. Before ``bars`` and ``close`` are moved on."""
    true_range = high - low if row.bars == 0 else max(high, row.close) - min(low, row.close)
    count = row.bars + 1
    row.true_range_mean = wilder(row.true_range_mean, true_range, count, period)
    row.atr = row.true_range_mean if count >= period else np.nan
    row.atr_slow = wilder(row.atr_slow, true_range, count, ATR_SLOW)


@kernel
def advance_ema(mean: float, x: float, period: int) -> float:
    """The mean after one more value; the first value is handed in as both."""
    return mean + 2.0 / (period + 1.0) * (x - mean)


@kernel
def advance_indicators(row: Row, bar: Floats, rsi_period: int, atr_period: int) -> None:
    """Take one closed bar (eight columns) into an INDICATOR_DTYPE row."""
    close, volume = bar[CLOSE], bar[VOLUME]
    advance_rsi(row, close, rsi_period)
    advance_atr(row, bar[HIGH], bar[LOW], atr_period)
    known = volume > 0.0 and bar[TAKER_VOLUME] >= 0.0
    share = (2.0 * bar[TAKER_VOLUME] - volume) / volume if known else 0.0
    if row.bars == 0:
        row.ema_fast = row.ema_slow = close
        row.volume_mean, row.taker_share = volume, share
    row.ema_fast = advance_ema(row.ema_fast, close, EMA_FAST)
    row.ema_slow = advance_ema(row.ema_slow, close, EMA_SLOW)
    row.volume_mean = advance_ema(row.volume_mean, volume, FLOW_MEAN)
    row.taker_share = advance_ema(row.taker_share, share, FLOW_MEAN)
    row.close = close
    row.bars += 1


@kernel
def indicator_series(bars: Floats, rsi_period: int, atr_period: int, rows: Any) -> None:
    """``rows[k]`` (INDICATOR_DTYPE, as many as bars) = the state once bar k has closed."""
    for k in range(len(bars)):
        if k > 0:
            rows[k] = rows[k - 1]
        advance_indicators(rows[k], bars[k], rsi_period, atr_period)


def series(bars: Floats, *, rsi_period: int = 14, atr_period: int = 14) -> npt.NDArray[np.void]:
    """Every indicator at every bar of an (n, 8) array, as n INDICATOR_DTYPE rows."""
    rows = np.zeros(len(bars), INDICATOR_DTYPE)
    indicator_series(np.ascontiguousarray(bars, np.float64), rsi_period, atr_period, rows)
    return rows
