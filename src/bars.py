"""Candles of every symbol on three time frames: how they open, grow, close and fold into the frame above, live and from history.

Invariants
  * A bar closes once, with its indicators and structure, and is never changed afterwards.
  * Open and close of a candle follow venue time and trade id, so the order of arrival changes nothing; volumes are whole steps.
  * A candle without trades is flat at the close before it. What is known to be missing taints the setup bar, and that bar arms nothing.
  * Of each closed base candle it is kept what may be wrong with it (``flaws``), so that a difference from the venue's has a cause.

All arrays of the market are one ``Market``: kernels take it whole and index it [symbol] or [time frame, symbol].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from src.features import BASE, CONTEXT, SETUP
from src.indicators import (
    CLOSE,
    HIGH,
    INDICATOR_DTYPE,
    LOW,
    OPEN,
    OPEN_MS,
    TAKER_VOLUME,
    TRADES,
    VOLUME,
    Floats,
    Int,
    Records,
    Row,
    advance_indicators,
    kernel,
)
from src.ring_buffer import (
    AT_CLOSE,
    AT_FIRST_ID,
    AT_HIGH,
    AT_LAST_ID,
    AT_LAST_TIME_MS,
    AT_LOW,
    AT_OPEN,
    AT_SPARE_A,
    AT_TAKER_BUY_VOLUME,
    AT_TIME_MS,
    AT_TRADE_COUNT,
    AT_VOLUME,
)
from src.smc import STRUCTURE_DTYPE, advance_structure

NEVER_MS = np.int64(1) << 62
SETUPS_MAX = 12
"""Rows for setups of one symbol, armed and entered together."""
GAPPED, LATE, STRANGE, PARTIAL, SEEDED = 1, 2, 4, 8, 16
"""Flaws of a closed base candle, or-ed: it closed while trades were missing; a print came after it; trades happened that no aggregate holds
(insurance fund, deleveraging); trades from before the ring began may be missing; it was read from history and not built here."""

OPEN_BAR_DTYPE = np.dtype([
    ("open_ms", "i8"), ("end_ms", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("volume", "f8"),
    ("taker_volume", "f8"), ("trades", "i8"), ("first_ms", "i8"), ("last_ms", "i8"), ("first_id", "i8"), ("last_id", "i8"),
    ("parts", "i8"), ("tainted", "i8"), ("partial", "i8"), ("strange", "f8"),
])
"""A bar that is still open. ``end_ms`` 0: nothing seen yet. ``parts``: fragments or candles in it. ``tainted``: something is missing, the bar arms
nothing (bit 0: more history may cure it; bit 1: history itself lacks it). ``partial``: 1 while a base candle after ``seed`` may lack
trades from before the ring began."""

SYMBOL_DTYPE = np.dtype([
    ("alarm_low", "f8"), ("alarm_high", "f8"), ("alarm_ms", "i8"), ("last_price", "f8"), ("last_ms", "i8"), ("last_id", "i8"),
    ("gapped", "i8"), ("tradable", "i8"), ("open_bar", OPEN_BAR_DTYPE), ("interval_ms", "i8"), ("bars", "i8"), ("armable", "i8"),
    ("bid", "f8"), ("ask", "f8"), ("bid_qty", "f8"), ("ask_qty", "f8"), ("quote_ms", "i8"), ("quote_ns", "i8"),
    ("mark", "f8"), ("index", "f8"), ("funding", "f8"), ("funding_ms", "i8"), ("mark_ms", "i8"),
    ("leave_ms", "i8"), ("unstreamed", "i8"), ("wrong", "i8"),
])
"""What every trade touches, close together. ``alarm_*``: no setup of the symbol changes while low > alarm_low, high < alarm_high and
time < alarm_ms. ``open_bar``, ``interval_ms``, ``bars``: the base candle, its length, how many closed. ``armable``: the last setup bar may
arm setups. ``leave_ms``: when the contract ends, 0 never. ``unstreamed``: nothing more is to come of it. ``wrong``: a closed bar is not what
the venue has, and history may cure it. Quantities in steps. 0 = not known yet."""

FRAME_DTYPE = np.dtype([
    ("interval_ms", "i8"), ("rsi_period", "i8"), ("atr_period", "i8"), ("open_bar", OPEN_BAR_DTYPE), ("indicators", INDICATOR_DTYPE),
    ("structure", STRUCTURE_DTYPE),
])
"""The setup or context frame of one symbol. ``structure.bars`` counts its closed bars."""

BATCH_FIELDS = ("consumed", "fired", "outcomes", "closed", "base_closed", "error", "oldest_ns", "newest_ns")
TOTAL_FIELDS = (
    "trades", "quotes", "marks", "times", "states", "late", "seam", "backfilled", "flat", "gaps", "healed", "unknown", "setup_bars",
    "armed", "withdrawn", "crowded", "evicted", "fired_total", "missed", "expired", "targets", "stops", "timed_out",
)
TALLY_DTYPE = np.dtype([(name, "i8") for name in BATCH_FIELDS + TOTAL_FIELDS])
"""BATCH_FIELDS speak of the last batch, TOTAL_FIELDS count since the start."""


class Market(NamedTuple):
    """All arrays, as kernels take them, n symbols: ``symbols`` SYMBOL_DTYPE (n), ``frames`` FRAME_DTYPE (FRAMES, n; the base frame's are
    never touched), ``bars`` the closed bars (FRAMES, n, history, 8), ``flaws`` of the closed base candles (n, history), ``setups``
    SETUP_DTYPE (n, SETUPS_MAX); of the batch ``closed`` symbols (n), ``fired`` FIRED_DTYPE, ``outcomes`` OUTCOME_DTYPE, ``crossing``
    CROSSING_DTYPE (1), a scratch; ``tally`` TALLY_DTYPE (1)."""

    symbols: Records
    frames: Records
    bars: Floats
    flaws: npt.NDArray[np.uint8]
    setups: Records
    closed: npt.NDArray[np.int64]
    fired: Records
    outcomes: Records
    crossing: Records
    tally: Records


@kernel
def start_bar(bar: Row, interval_ms: Int, time_ms: Int, price: float) -> None:
    """An empty open bar around ``time_ms``, flat at ``price``."""
    bar.open_ms = time_ms - time_ms % interval_ms
    bar.end_ms = bar.open_ms + interval_ms
    bar.open = bar.high = bar.low = bar.close = price
    bar.volume = bar.taker_volume = bar.strange = 0.0
    bar.trades, bar.first_ms, bar.last_ms, bar.parts, bar.tainted, bar.partial = 0, 0, 0, 0, 0, 0


@kernel
def next_bar(bar: Row, interval_ms: Int) -> None:
    """The empty bar that follows, flat at the close."""
    bar.open_ms = bar.end_ms
    bar.end_ms += interval_ms
    bar.open = bar.high = bar.low = bar.close
    bar.volume = bar.taker_volume = bar.strange = 0.0
    bar.trades, bar.first_ms, bar.last_ms, bar.parts, bar.tainted, bar.partial = 0, 0, 0, 0, 0, 0


@kernel
def write_bar(bar: Row, out: Floats) -> None:
    """Copy an open bar to its eight columns."""
    out[OPEN_MS], out[OPEN], out[HIGH], out[LOW], out[CLOSE] = bar.open_ms, bar.open, bar.high, bar.low, bar.close
    out[VOLUME], out[TRADES], out[TAKER_VOLUME] = bar.volume, bar.trades, bar.taker_volume


@kernel
def fold_bar(bar: Row, upper: Row, interval_ms: Int) -> None:
    """Add the bar that is closing to the open bar one frame up, whose length is ``interval_ms``."""
    if bar.open_ms >= upper.end_ms:
        start_bar(upper, interval_ms, bar.open_ms, bar.open)
        upper.tainted = 1 if bar.open_ms > upper.open_ms else 0
    if bar.open_ms < upper.open_ms:
        return
    if upper.parts == 0:
        upper.open, upper.high, upper.low = bar.open, bar.high, bar.low
    upper.high, upper.low, upper.close = max(upper.high, bar.high), min(upper.low, bar.low), bar.close
    upper.volume += bar.volume
    upper.taker_volume += bar.taker_volume
    upper.trades += bar.trades
    upper.parts += 1
    upper.tainted |= bar.tainted


@kernel
def finish_bar(frame: Row, bars: Floats) -> None:
    """Close the open bar of the setup or context frame: history, indicators, structure, and an empty bar after it."""
    bar, s, now = frame.open_bar, frame.structure, frame.indicators
    closed = bars[s.bars % len(bars)]
    write_bar(bar, closed)
    advance_indicators(now, closed, frame.rsi_period, frame.atr_period)
    s.atr, s.volume_mean = now.atr, now.volume_mean
    advance_structure(s, bars, bar.end_ms)
    next_bar(bar, frame.interval_ms)


@kernel
def finish_base(m: Market, i: Int, flaws: Int) -> None:
    """Close the open base candle of symbol ``i``: history, what may be wrong with it, and an empty candle after it."""
    row, bars = m.symbols[i], m.bars[BASE, i]
    at = row.bars % len(bars)
    write_bar(row.open_bar, bars[at])
    m.flaws[i, at] = flaws
    row.bars += 1
    next_bar(row.open_bar, row.interval_ms)


@kernel
def flaws_of(bar: Row) -> Int:
    """What may be wrong with a candle that closes now."""
    flaws = GAPPED if bar.tainted else 0
    flaws |= STRANGE if bar.strange > 0.0 else 0
    return flaws | (PARTIAL if bar.partial else 0)


@kernel
def note_late(m: Market, i: Int, time_ms: Int) -> None:
    """A print came for a candle of symbol ``i`` that is closed."""
    row = m.symbols[i]
    back = (row.open_bar.open_ms - time_ms + row.interval_ms - 1) // row.interval_ms
    if 0 < back <= min(row.bars, m.flaws.shape[1]):
        m.flaws[i, (row.bars - back) % m.flaws.shape[1]] |= LATE


@kernel
def close_candle(m: Market, i: Int, flaws: Int) -> bool:
    """Close the open base candle of symbol ``i`` and whatever ends with it; ``flaws``: besides its own. True: a setup bar closed."""
    row, setup, tally = m.symbols[i], m.frames[SETUP, i], m.tally[0]
    bar, above = row.open_bar, setup.open_bar
    if bar.parts == 0:
        tally.flat += 1
    tally.base_closed += 1
    bar.tainted |= row.gapped
    fold_bar(bar, above, setup.interval_ms)
    closed = bool(bar.end_ms >= above.end_ms)
    finish_base(m, i, flaws | flaws_of(bar))
    if closed:
        row.armable = 1 if above.tainted == 0 else 0
        row.wrong |= above.tainted & 1
        close_setup_bar(m, i)
        tally.setup_bars += 1
    return closed


@kernel
def close_setup_bar(m: Market, i: Int) -> None:
    """Close the open setup bar of symbol ``i``, and the context bar where that ends with it."""
    setup, context = m.frames[SETUP, i], m.frames[CONTEXT, i]
    fold_bar(setup.open_bar, context.open_bar, context.interval_ms)
    finish_bar(setup, m.bars[SETUP, i])
    if setup.open_bar.open_ms >= context.open_bar.end_ms:
        finish_bar(context, m.bars[CONTEXT, i])


@kernel
def close_until(m: Market, i: Int, time_ms: Int) -> bool:
    """Close candles of symbol ``i`` that end at or before ``time_ms``, up to the first setup bar. True: stopped there, arm first."""
    bar = m.symbols[i].open_bar
    while bar.end_ms <= time_ms:
        if close_candle(m, i, 0):
            m.closed[m.tally[0].closed] = i
            m.tally[0].closed += 1
            return True
    return False


@kernel
def merge_trade(bar: Row, floats: Floats, ids: Any, at: Int) -> None:
    """Add a fragment to the open candle. Open and close follow venue time, then trade id, so arrival order does not matter."""
    first_ms, last_ms = np.int64(floats[at + AT_TIME_MS]), np.int64(floats[at + AT_LAST_TIME_MS])
    first_id, last_id = np.int64(ids[at + AT_FIRST_ID]), np.int64(ids[at + AT_LAST_ID])
    high, low = floats[at + AT_HIGH], floats[at + AT_LOW]
    if bar.parts == 0 or first_ms < bar.first_ms or (first_ms == bar.first_ms and first_id < bar.first_id):
        bar.open, bar.first_ms, bar.first_id = floats[at + AT_OPEN], first_ms, first_id
    if bar.parts == 0 or last_ms > bar.last_ms or (last_ms == bar.last_ms and last_id >= bar.last_id):
        bar.close, bar.last_ms, bar.last_id = floats[at + AT_CLOSE], last_ms, last_id
    bar.high = high if bar.parts == 0 else max(bar.high, high)
    bar.low = low if bar.parts == 0 else min(bar.low, low)
    bar.volume += floats[at + AT_VOLUME]
    bar.taker_volume += floats[at + AT_TAKER_BUY_VOLUME]
    bar.trades += np.int64(ids[at + AT_TRADE_COUNT])
    bar.strange += floats[at + AT_SPARE_A]
    bar.parts += 1


@kernel
def load_bar(bar: Row, interval_ms: Int, values: Floats) -> None:
    """Make the eight columns of a bar of history the open one."""
    start_bar(bar, interval_ms, np.int64(values[OPEN_MS]), values[OPEN])
    bar.high, bar.low, bar.close, bar.volume, bar.taker_volume = values[HIGH], values[LOW], values[CLOSE], values[VOLUME], values[TAKER_VOLUME]
    bar.trades, bar.parts = np.int64(values[TRADES]), 1


@kernel
def replay_history(m: Market, i: Int, context_klines: Floats, setup_klines: Floats) -> None:
    """Closed bars of an empty symbol, oldest first. Setup bars go on into the context bar that is still open."""
    setup, context = m.frames[SETUP, i], m.frames[CONTEXT, i]
    for k in range(len(context_klines)):
        load_bar(context.open_bar, context.interval_ms, context_klines[k])
        finish_bar(context, m.bars[CONTEXT, i])
    for k in range(len(setup_klines)):
        load_bar(setup.open_bar, setup.interval_ms, setup_klines[k])
        close_setup_bar(m, i)
    m.symbols[i].armable = min(1, len(setup_klines))


@kernel
def replay_base(m: Market, i: Int, klines: Floats, flaws: npt.NDArray[np.uint8], edge_ms: Int) -> None:
    """Closed base candles, oldest first, up to ``edge_ms``; those before the open setup bar are already in setup bars.

    What is missing is flat and taints: for good before and among the rows whose ``flaws`` are SEEDED, which are history's, curably after
    them.
    """
    row, above = m.symbols[i], m.frames[SETUP, i].open_bar
    bar, from_ms = row.open_bar, above.open_ms
    if len(klines) == 0 or np.int64(klines[0, OPEN_MS]) > from_ms:
        above.tainted = 2
    known = 0
    while known < len(klines) and flaws[known] == SEEDED:
        known += 1
    for k in range(len(klines) + 1):
        open_ms = np.int64(klines[k, OPEN_MS]) if k < len(klines) else edge_ms
        while 0 < bar.end_ms <= open_ms:
            bar.tainted = 2 if k < known else 1
            if bar.open_ms < from_ms:
                next_bar(bar, row.interval_ms)
            else:
                close_candle(m, i, SEEDED)
        if k < len(klines):
            load_bar(bar, row.interval_ms, klines[k])
            if open_ms >= from_ms:
                close_candle(m, i, flaws[k])
            else:
                finish_base(m, i, flaws[k])
            if above.tainted & 1 and row.gapped == 0 and k < known:
                above.tainted = 2
