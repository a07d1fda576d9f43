"""Setups while they wait and while they run: armed levels, crossings, virtual trades and their outcomes.

Invariants
  * A setup is EMPTY -> ARMED -> ENTERED -> EMPTY. It fires at most once, and only from a live slot of a tradable symbol without a gap,
    before it expires and not beyond its stop; a crossing that may not fire is counted missed and ends the setup.
  * Every fired setup ends in one outcome: time, stop or target, looked at in this order within one slot. In the slot of the crossing
    only the stop is looked at: whether the target came before or after the entry cannot be known.
  * ``alarm_low``, ``alarm_high``, ``alarm_ms`` of a symbol bound where anything changes, so a slot inside them costs three comparisons.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from src.bars import NEVER_MS, SETUPS_MAX, Market
from src.features import FEATURE_COUNT, SETUP_DTYPE
from src.indicators import Int, Records, Row, kernel

ARMED_MAX = 4
FIRED_MAX, OUTCOMES_MAX = 64, 1_024
WON, LOST, TIMED_OUT = np.int64(1), np.int64(-1), np.int64(0)
"""Results of an outcome: target, stop, time."""
EMPTY, ARMED, ENTERED = 0, 1, 2
"""States of a setup: its row is free, its level waits to be crossed, its virtual trade runs."""

FIRED_DTYPE = np.dtype([
    ("row", "i8"), ("symbol", "i8"), ("side", "i8"), ("id", "i8"), ("price", "f8"), ("last", "f8"), ("time_ms", "i8"),
    ("received_ns", "i8"), ("bid", "f8"), ("ask", "f8"), ("setup", SETUP_DTYPE),
])
"""``row``: of ``setups[symbol]``. ``price``: the entry level, or the slot's open where the market jumped over it. ``last``: the slot's
close. ``setup``: the whole setup as it fired, ``entered_ms`` included."""

OUTCOME_DTYPE = np.dtype([
    ("id", "i8"), ("symbol", "i8"), ("kind", "i8"), ("side", "i8"), ("armed_ms", "i8"), ("entered_ms", "i8"), ("ended_ms", "i8"),
    ("entered_price", "f8"), ("exit_price", "f8"), ("stop", "f8"), ("target", "f8"), ("result", "i8"), ("gross_r", "f8"),
    ("cost_share", "f8"), ("score", "f8"), ("confidence", "f8"), ("features", "f8", (FEATURE_COUNT,)),
])
"""``result``: +1 target, -1 stop, 0 time. ``gross_r``: profit in stop distances before costs; net = gross_r - cost_share."""

CROSSING_DTYPE = np.dtype([("time_ms", "i8"), ("received_ns", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"),
                           ("price", "f8"), ("live", "i8")])
"""The slot that rang an alarm. ``live``: 1 when it may fire."""


@kernel
def set_alarms(row: Row, setups: Records) -> None:
    """The nearest prices and time at which any setup of the symbol (SYMBOL_DTYPE row, its setups) changes state."""
    row.alarm_low, row.alarm_high, row.alarm_ms = -np.inf, np.inf, NEVER_MS
    for k in range(SETUPS_MAX):
        setup = setups[k]
        if setup.state == EMPTY:
            continue
        below = setup.side > 0
        if setup.state == ARMED:
            row.alarm_ms = min(row.alarm_ms, setup.expires_ms)
            if below:
                row.alarm_low = max(row.alarm_low, setup.entry)
            else:
                row.alarm_high = min(row.alarm_high, setup.entry)
        else:
            row.alarm_ms = min(row.alarm_ms, setup.entered_ms + setup.limit_ms)
            row.alarm_low = max(row.alarm_low, setup.stop if below else setup.target)
            row.alarm_high = min(row.alarm_high, setup.target if below else setup.stop)


@kernel
def end_virtual(m: Market, setup: Row, exit_price: float, ended_ms: Int, result: Int) -> None:
    """One outcome row for an entered setup; its row is free again."""
    out = m.outcomes[m.tally[0].outcomes]
    m.tally[0].outcomes += 1
    if result > 0:
        m.tally[0].targets += 1
    elif result < 0:
        m.tally[0].stops += 1
    else:
        m.tally[0].timed_out += 1
    out.id, out.symbol, out.kind, out.side, out.armed_ms = setup.id, setup.symbol, setup.kind, setup.side, setup.armed_ms
    out.entered_ms, out.ended_ms, out.entered_price, out.exit_price = setup.entered_ms, ended_ms, setup.entered_price, exit_price
    out.stop, out.target, out.result = setup.stop, setup.target, result
    out.gross_r = (exit_price - setup.entered_price) / (setup.entry - setup.stop)
    out.cost_share, out.score, out.confidence = setup.cost_share, setup.score, setup.confidence
    for j in range(FEATURE_COUNT):
        out.features[j] = setup.features[j]
    setup.state = EMPTY


@kernel
def fire_setup(m: Market, setup: Row, k: Int, slot: Row) -> None:
    """A level was crossed while it counted: one fired row, and the virtual trade begins."""
    row = m.symbols[setup.symbol]
    setup.state, setup.entered_ms, setup.entered_price = ENTERED, slot.time_ms, slot.price
    out = m.fired[m.tally[0].fired]
    m.tally[0].fired += 1
    m.tally[0].fired_total += 1
    out.row, out.symbol, out.side, out.id, out.price, out.last = k, setup.symbol, setup.side, setup.id, slot.price, slot.close
    out.time_ms, out.received_ns, out.bid, out.ask = slot.time_ms, slot.received_ns, row.bid, row.ask
    out.setup = setup


@kernel
def cross_armed(m: Market, setup: Row, k: Int, slot: Row) -> None:
    """What the slot does to an armed setup (row ``k``): nothing, fired (and perhaps stopped at once), missed or expired."""
    side = setup.side
    if slot.time_ms >= setup.expires_ms:
        setup.state = EMPTY
        m.tally[0].expired += 1
        return
    extreme = slot.low if side > 0 else slot.high
    if side * (extreme - setup.entry) > 0.0:
        return
    slot.price = min(slot.open, setup.entry) if side > 0 else max(slot.open, setup.entry)
    if slot.live == 0 or side * (slot.price - setup.stop) <= 0.0:
        setup.state = EMPTY
        m.tally[0].missed += 1
        return
    fire_setup(m, setup, k, slot)
    if side * (extreme - setup.stop) <= 0.0:
        end_virtual(m, setup, setup.stop, slot.time_ms, LOST)


@kernel
def follow_entered(m: Market, setup: Row, slot: Row) -> None:
    """What the slot does to the virtual trade of an entered setup. Time is looked at first, then the stop, then the target."""
    side = setup.side
    against, along = (slot.low, slot.high) if side > 0 else (slot.high, slot.low)
    if slot.time_ms < setup.entered_ms:
        return
    if slot.time_ms >= setup.entered_ms + setup.limit_ms:
        end_virtual(m, setup, slot.open, slot.time_ms, TIMED_OUT)
    elif side * (against - setup.stop) <= 0.0:
        end_virtual(m, setup, min(slot.open, setup.stop) if side > 0 else max(slot.open, setup.stop), slot.time_ms, LOST)
    elif side * (along - setup.target) >= 0.0:
        end_virtual(m, setup, setup.target, slot.time_ms, WON)


@kernel
def cross_levels(m: Market, i: Int, slot: Row) -> None:
    """Every setup of symbol ``i`` against a slot that rang its alarm."""
    for k in range(SETUPS_MAX):
        setup = m.setups[i, k]
        if setup.state == ENTERED:
            follow_entered(m, setup, slot)
        elif setup.state == ARMED:
            cross_armed(m, setup, k, slot)
    set_alarms(m.symbols[i], m.setups[i])


@kernel
def in_order(proposals: Records, closed: Any) -> bool:
    """Whether the proposals are grouped by symbol in the order of ``closed``."""
    n = 0
    for p in range(len(proposals)):
        while n < len(closed) and proposals[p].symbol != closed[n]:
            n += 1
    return bool(n < len(closed) or len(proposals) == 0)


@kernel
def place_setups(m: Market, proposals: Any, closed: Any) -> Int:
    """Withdraw what was armed for the ``closed`` symbols and arm ``proposals`` instead (SETUP_DTYPE, in the order of ``closed``).

    Replacement rule: of a symbol's proposals the ARMED_MAX of highest confidence are armed, the others are counted crowded. Where no
    row is free the oldest virtual trade gives up its own, counted evicted. A proposal that was armed before keeps ``first_ms``. Armed
    proposals get ``state`` ARMED in place. Returns how many.
    """
    placed = last = 0
    for n in range(len(closed)):
        setups, first = m.setups[closed[n]], last
        while last < len(proposals) and proposals[last].symbol == closed[n]:
            proposals[last].state = EMPTY
            last += 1
        for k in range(SETUPS_MAX):
            setup = setups[k]
            if setup.state == ARMED:
                setup.state = EMPTY
                m.tally[0].withdrawn += 1
                for p in range(first, last):
                    if proposals[p].id == setup.id:
                        proposals[p].first_ms = setup.first_ms
        for _ in range(ARMED_MAX):
            best = -1
            for p in range(first, last):
                if proposals[p].state == EMPTY and (best < 0 or proposals[p].confidence > proposals[best].confidence):
                    best = p
            if best >= 0:
                proposals[best].state = ARMED
                setups[free_row(m, setups)] = proposals[best]
                placed += 1
        m.tally[0].crowded += max(0, last - first - ARMED_MAX)
        set_alarms(m.symbols[closed[n]], setups)
    m.tally[0].armed += placed
    return placed


@kernel
def free_row(m: Market, setups: Records) -> Int:
    """A row for a new setup: an empty one, else that of the virtual trade entered first."""
    best = -1
    for k in range(SETUPS_MAX):
        setup = setups[k]
        if setup.state == EMPTY:
            return k
        if setup.state == ENTERED and (best < 0 or setup.entered_ms < setups[best].entered_ms):
            best = k
    m.tally[0].evicted += 1
    return best
