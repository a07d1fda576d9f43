"""Smart-money structure, bar by bar: pivots, breaks, order blocks, fair value gaps, liquidity sweeps and the dealing range.

Invariants
  * Causal: what is written when bar t closes depends on bars 0 … t. An event carries ``origin`` (open of the bar it speaks of), ``known``
    (close of the bar that made it certain) and ``end`` (close of the bar that ended it, 0 until then). Nothing is moved, and nothing but
    ``end`` is written later.
  * Bounded: a symbol keeps ZONES_PER_KIND zones of each kind, LEVELS_PER_SIDE untaken pivots a side, and a log of the last events.
    Full stores give up a dead entry first, then a touched one, then the oldest.
  * Constant time a bar: every step looks at fixed windows, but for the leg of a break, which is at most LEG_BARS_MAX bars.

Definitions, for the upper side (the lower one is the mirror image; ``side`` +1 buys or highs, -1 sells or lows)
  * Pivot high: a high above the PIVOT_LEFT highs before it and not below the PIVOT_RIGHT highs after it: known PIVOT_RIGHT bars late.
  * Break: the first close above the last confirmed pivot high. Against the trend it is a change of character (CHOCH), otherwise a break
    of structure (BOS). The trend is the side of the last break.
  * Order block: of the leg between the broken pivot and the break, the down candle with the lowest low (the lowest candle where the leg
    has none). Made at the break, broken by a close beyond its far side.
  * Fair value gap: low(t) > high(t - 2), known when bar t closes; filled when price has been through all of it. Gaps below GAP_MIN_ATR
    are noise and not kept.
  * Sweep: a high above an untaken pivot high and a close back below it. Any trade beyond a pivot takes it.
  * Dealing range: the last confirmed pivot low and high, each stretched by what price did since.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from src.indicators import (
    BAR_COLUMNS,
    CLOSE,
    HIGH,
    INDICATOR_DTYPE,
    LOW,
    OPEN,
    OPEN_MS,
    VOLUME,
    Floats,
    Int,
    Records,
    Row,
    advance_indicators,
    kernel,
)

PIVOT_LEFT, PIVOT_RIGHT = 3, 3
LEG_BARS_MAX = 120
ZONE_BARS_MAX, SWEEP_BARS_MAX = 150, 20
"""Zones older than this many bars end."""
GAP_MIN_ATR = 0.2
SWEEP_NEAR_BARS = 5
"""A block counts as swept-before when the sweep happened at most this many bars before its candle."""
ZONES_PER_KIND, LEVELS_PER_SIDE, EVENTS_MAX = 8, 8, 64

BLOCK, FVG, SWEEP = np.int64(1), np.int64(2), np.int64(3)
"""Kinds of zones. (Typed, since Numba compiles a kernel anew for every plain int it is called with.)"""
EVENT_PIVOT, EVENT_BOS, EVENT_CHOCH, EVENT_BLOCK, EVENT_FVG, EVENT_SWEEP = (np.int64(k) for k in range(1, 7))
EVENT_NAMES = ("", "pivot", "BOS", "CHoCH", "order block", "fair value gap", "sweep")
UPPER, LOWER = 0, 1
"""Index into the two-sided fields of STRUCTURE_DTYPE: highs, lows."""

ZONE_DTYPE = np.dtype([
    ("kind", "i8"), ("side", "i8"), ("alive", "i8"), ("near", "f8"), ("deep", "f8"), ("entry", "f8"), ("far", "f8"),
    ("origin_ms", "i8"), ("known_ms", "i8"), ("touched_ms", "i8"), ("end_ms", "i8"), ("known_bar", "i8"), ("leg_bars", "i8"),
    ("fill", "f8"), ("displacement", "f8"), ("volume_ratio", "f8"), ("choch", "i8"), ("imbalance", "i8"), ("swept", "i8"),
    ("event", "i8"),
])
"""``near``: the edge that price meets first, ``deep`` the other. ``entry``: where a retest trades (a block's near edge, the middle of a
gap, the swept level). ``far``: beyond it the idea was wrong. ``fill``: how much of it was traded through, 0 to 1. ``displacement``: the
move that made it, in ATR. ``event``: serial of its event."""

LEVEL_DTYPE = np.dtype([("alive", "i8"), ("price", "f8"), ("known_ms", "i8"), ("event", "i8")])
EVENT_DTYPE = np.dtype([
    ("serial", "i8"), ("kind", "i8"), ("side", "i8"), ("origin_ms", "i8"), ("known_ms", "i8"), ("end_ms", "i8"), ("near", "f8"),
    ("deep", "f8"),
])

STRUCTURE_DTYPE = np.dtype([
    ("bars", "i8"), ("now_ms", "i8"), ("trend", "i8"), ("serial", "i8"), ("break_bar", "i8"), ("break_choch", "i8"),
    ("atr", "f8"), ("volume_mean", "f8"),
    ("pivot_price", "f8", (2,)), ("pivot_ms", "i8", (2,)), ("pivot_bar", "i8", (2,)), ("pivot_open", "i8", (2,)),
    ("range_price", "f8", (2,)), ("swept_bar", "i8", (2,)),
    ("zones", ZONE_DTYPE, (3 * ZONES_PER_KIND,)), ("levels", LEVEL_DTYPE, (2 * LEVELS_PER_SIDE,)), ("events", EVENT_DTYPE, (EVENTS_MAX,)),
])
"""One time frame of one symbol. ``bars``: how many were seen; bar b lies in the history at b modulo its length. ``now_ms``: close of the
newest bar. ``atr``, ``volume_mean``: as of it, NaN while unknown. Two-sided fields are [UPPER], [LOWER]. ``pivot_open``: 1 while the last
confirmed pivot may still be broken. ``swept_bar``: 1 + bar of the last sweep of that side, 0 none."""


@kernel
def bar_at(bars: Floats, bar: Int) -> Floats:
    """The eight columns of bar number ``bar`` (from 0); it must be among the last ``len(bars)`` bars."""
    row: Floats = bars[bar % len(bars)]
    return row


@kernel
def log_event(s: Row, kind: Int, side: Int, origin_ms: Int, edges: tuple[float, float]) -> Int:
    """Append to the log; ``edges``: near and deep. Returns its serial, from 1. Breaks end as they happen."""
    s.serial += 1
    event = s.events[s.serial % EVENTS_MAX]
    event.serial, event.kind, event.side = s.serial, kind, side
    event.origin_ms, event.known_ms, event.near, event.deep = origin_ms, s.now_ms, edges[0], edges[1]
    event.end_ms = s.now_ms if kind in (EVENT_BOS, EVENT_CHOCH) else 0
    return s.serial


@kernel
def end_event(s: Row, serial: Int) -> None:
    """Write ``end`` where the log still holds that event."""
    event = s.events[serial % EVENTS_MAX]
    if event.serial == serial:
        event.end_ms = s.now_ms


@kernel
def take_zone(s: Row, kind: Int) -> Row:
    """A place for a new zone of that kind: a dead one, else a touched one, else the oldest, whose event ends here."""
    first = (kind - 1) * ZONES_PER_KIND
    best, best_rank = first, np.int64(1) << 62
    for k in range(first, first + ZONES_PER_KIND):
        zone = s.zones[k]
        rank = zone.known_ms
        if zone.alive == 0:
            rank = -(np.int64(1) << 61)
        elif zone.touched_ms > 0:
            rank -= np.int64(1) << 60
        if rank < best_rank:
            best, best_rank = k, rank
    zone = s.zones[best]
    if zone.alive == 1:
        end_event(s, zone.event)
    return zone


@kernel
def open_zone(s: Row, kind: Int, side: Int, origin_ms: Int, edges: tuple[float, float]) -> Row:
    """Begin a zone in the place that its kind can best spare. The caller fills in ``entry``, ``far`` and what it knows of the leg."""
    zone = take_zone(s, kind)
    zone.kind, zone.side, zone.alive, zone.near, zone.deep = kind, side, 1, edges[0], edges[1]
    zone.origin_ms, zone.known_ms, zone.known_bar = origin_ms, s.now_ms, s.bars
    zone.touched_ms, zone.end_ms, zone.fill, zone.leg_bars = 0, 0, 0.0, 1
    zone.choch, zone.imbalance, zone.swept = 0, 0, 0
    zone.event = log_event(s, EVENT_BLOCK + kind - BLOCK, side, origin_ms, edges)
    return zone


@kernel
def update_zones(s: Row, bar: Floats) -> None:
    """What one more bar does to the zones known before it: touched, filled, broken, too old."""
    for k in range(3 * ZONES_PER_KIND):
        zone = s.zones[k]
        if zone.alive == 0:
            continue
        side = zone.side
        extreme = bar[LOW] if side > 0 else bar[HIGH]
        if zone.touched_ms == 0 and side * (extreme - zone.entry) <= 0.0:
            zone.touched_ms = s.now_ms
        depth = side * (zone.near - zone.deep)
        if depth > 0.0:
            zone.fill = max(zone.fill, min(1.0, side * (zone.near - extreme) / depth))
        over = side * (extreme - zone.deep) <= 0.0 if zone.kind == FVG else side * (bar[CLOSE] - zone.far) < 0.0
        if over or s.bars - zone.known_bar >= (SWEEP_BARS_MAX if zone.kind == SWEEP else ZONE_BARS_MAX):
            zone.alive, zone.end_ms = 0, s.now_ms
            end_event(s, zone.event)


@kernel
def take_levels(s: Row, bar: Floats) -> None:
    """Pivots that this bar traded beyond are taken; where it closed back inside, the outermost of them makes a sweep."""
    for k in range(2):
        side = 1 - 2 * k
        extreme = bar[HIGH] if side > 0 else bar[LOW]
        outermost, found = 0.0, False
        for j in range(k * LEVELS_PER_SIDE, (k + 1) * LEVELS_PER_SIDE):
            level = s.levels[j]
            if level.alive == 1 and side * (extreme - level.price) > 0.0:
                level.alive = 0
                end_event(s, level.event)
                if side * (bar[CLOSE] - level.price) < 0.0 and (not found or side * (level.price - outermost) > 0.0):
                    outermost, found = level.price, True
        if found:
            s.swept_bar[k] = s.bars + 1
            zone = open_zone(s, SWEEP, -side, np.int64(bar[OPEN_MS]), (outermost, extreme))
            zone.entry, zone.far, zone.swept = outermost, extreme, 1
            zone.displacement = side * (extreme - bar[CLOSE]) / s.atr
            zone.volume_ratio = bar[VOLUME] / s.volume_mean if s.volume_mean > 0.0 else 1.0


@kernel
def find_block(s: Row, bars: Floats, side: Int, first: Int) -> tuple[Int, float]:
    """(bar of the order block, extreme of the leg) among bars ``first`` … the one before the newest."""
    last = s.bars
    block, candle, leg_price = -1, last - 1, bar_at(bars, last)[LOW if side > 0 else HIGH]
    block_price = candle_price = 0.0
    for b in range(first, last):
        bar = bar_at(bars, b)
        extreme = bar[LOW] if side > 0 else bar[HIGH]
        if side * (extreme - leg_price) < 0.0:
            leg_price = extreme
        if b == first or side * (extreme - candle_price) < 0.0:
            candle, candle_price = b, extreme
        opposite = side * (bar[CLOSE] - bar[OPEN]) < 0.0
        if opposite and (block < 0 or side * (extreme - block_price) <= 0.0):
            block, block_price = b, extreme
    return block if block >= 0 else candle, leg_price


@kernel
def make_block(s: Row, bars: Floats, k: Int) -> None:
    """The order block behind a break of pivot ``k`` by the newest bar. A candle that already is a living block makes no second one."""
    side, last = 1 - 2 * k, s.bars
    first = max(s.pivot_bar[k] + 1, last - LEG_BARS_MAX)
    at, leg_price = find_block(s, bars, side, first)
    candle, bar = bar_at(bars, at), bar_at(bars, last)
    origin_ms = np.int64(candle[OPEN_MS])
    for j in range(ZONES_PER_KIND):
        other = s.zones[j]
        if other.alive == 1 and other.side == side and other.origin_ms == origin_ms:
            return
    near, deep = (candle[HIGH], candle[LOW]) if side > 0 else (candle[LOW], candle[HIGH])
    zone = open_zone(s, BLOCK, side, origin_ms, (near, deep))
    zone.entry, zone.far = near, deep
    zone.leg_bars, zone.choch = last - at, s.break_choch
    zone.displacement = side * (bar[CLOSE] - leg_price) / s.atr
    zone.volume_ratio = bar[VOLUME] / s.volume_mean if s.volume_mean > 0.0 else 1.0
    zone.swept = 1 if s.swept_bar[1 - k] > at + 1 - SWEEP_NEAR_BARS and s.swept_bar[1 - k] > 0 else 0
    for b in range(at + 2, last + 1):
        gap = bar_at(bars, b)[LOW] - bar_at(bars, b - 2)[HIGH] if side > 0 else bar_at(bars, b - 2)[LOW] - bar_at(bars, b)[HIGH]
        if gap > 0.0:
            zone.imbalance = 1
    if side * (bar[CLOSE] - near) <= 0.0:
        zone.touched_ms = s.now_ms


@kernel
def break_structure(s: Row, bars: Floats) -> None:
    """A close beyond the last confirmed pivot: BOS or CHOCH, and its order block."""
    close = bar_at(bars, s.bars)[CLOSE]
    for k in range(2):
        side = 1 - 2 * k
        if s.pivot_open[k] == 1 and side * (close - s.pivot_price[k]) > 0.0:
            s.break_choch = 1 if s.trend == -side else 0
            s.trend, s.break_bar, s.pivot_open[k] = side, s.bars, 0
            kind = EVENT_CHOCH if s.break_choch == 1 else EVENT_BOS
            log_event(s, kind, side, s.pivot_ms[k], (s.pivot_price[k], close))
            make_block(s, bars, k)


@kernel
def find_gap(s: Row, bars: Floats) -> None:
    """A gap between the newest bar and the one two before it."""
    if s.bars < 2:
        return
    first, middle, bar = bar_at(bars, s.bars - 2), bar_at(bars, s.bars - 1), bar_at(bars, s.bars)
    if bar[LOW] > first[HIGH]:
        side, near, deep, far = 1, bar[LOW], first[HIGH], min(first[LOW], middle[LOW])
    elif bar[HIGH] < first[LOW]:
        side, near, deep, far = -1, bar[HIGH], first[LOW], max(first[HIGH], middle[HIGH])
    else:
        return
    if side * (near - deep) < GAP_MIN_ATR * s.atr:
        return
    zone = open_zone(s, FVG, side, np.int64(middle[OPEN_MS]), (near, deep))
    zone.entry, zone.far, zone.imbalance, zone.leg_bars = 0.5 * (near + deep), far, 1, 2
    zone.displacement = side * (bar[CLOSE] - far) / s.atr
    zone.volume_ratio = middle[VOLUME] / s.volume_mean if s.volume_mean > 0.0 else 1.0
    zone.choch = s.break_choch if s.break_bar >= s.bars - 2 and s.trend == side else 0
    swept = s.swept_bar[LOWER if side > 0 else UPPER]
    zone.swept = 1 if swept > s.bars - 1 - SWEEP_NEAR_BARS and swept > 0 else 0


@kernel
def confirm_pivots(s: Row, bars: Floats) -> None:
    """The bar PIVOT_RIGHT before the newest, if it is a pivot now; and the dealing range."""
    bar = bar_at(bars, s.bars)
    at = s.bars - PIVOT_RIGHT
    for k in range(2):
        side, column = 1 - 2 * k, HIGH if k == UPPER else LOW
        if s.pivot_ms[k] > 0 and side * (bar[column] - s.range_price[k]) > 0.0:
            s.range_price[k] = bar[column]
        if at < PIVOT_LEFT:
            continue
        price = bar_at(bars, at)[column]
        found = True
        for b in range(at - PIVOT_LEFT, at):
            found = found and side * (price - bar_at(bars, b)[column]) > 0.0
        for b in range(at + 1, s.bars + 1):
            found = found and side * (price - bar_at(bars, b)[column]) >= 0.0
        if found:
            origin_ms = np.int64(bar_at(bars, at)[OPEN_MS])
            s.pivot_price[k], s.pivot_ms[k], s.pivot_bar[k], s.pivot_open[k], s.range_price[k] = price, origin_ms, at, 1, price
            keep_level(s, k, log_event(s, EVENT_PIVOT, side, origin_ms, (price, price)))


@kernel
def keep_level(s: Row, k: Int, serial: Int) -> None:
    """The last confirmed pivot of side ``k`` becomes liquidity, in the place of a taken level or of the oldest."""
    best = k * LEVELS_PER_SIDE
    for j in range(best, (k + 1) * LEVELS_PER_SIDE):
        level, kept = s.levels[j], s.levels[best]
        if level.alive < kept.alive or (level.alive == kept.alive and level.known_ms < kept.known_ms):
            best = j
    level = s.levels[best]
    level.alive, level.price, level.known_ms, level.event = 1, s.pivot_price[k], s.now_ms, serial


@kernel
def advance_structure(s: Row, bars: Floats, now_ms: Int) -> None:
    """Take the bar that was just written to the history at ``s.bars``; ``now_ms`` is its close. ``s.atr``, ``s.volume_mean`` are set."""
    bar = bar_at(bars, s.bars)
    s.now_ms = now_ms
    update_zones(s, bar)
    take_levels(s, bar)
    break_structure(s, bars)
    find_gap(s, bars)
    confirm_pivots(s, bars)
    s.bars += 1


SCAN_DTYPE = np.dtype([("indicators", INDICATOR_DTYPE), ("structure", STRUCTURE_DTYPE), ("interval_ms", "i8"), ("period", "i8")])


@kernel
def scan_bars(state: Row, bars: Floats, history: Floats, events: Records) -> None:
    """Take closed bars into a SCAN_DTYPE record, with a ``history`` of its own; every event also goes to ``events`` at its serial."""
    s, now = state.structure, state.indicators
    for b in range(len(bars)):
        history[s.bars % len(history)] = bars[b]
        advance_indicators(now, bars[b], state.period, state.period)
        s.atr, s.volume_mean = now.atr, now.volume_mean
        advance_structure(s, history, np.int64(bars[b, OPEN_MS]) + state.interval_ms)
        if len(events) > 0:
            for k in range(EVENTS_MAX):
                event = s.events[k]
                if event.serial > 0:
                    events[event.serial - 1] = event


def scan(bars: Floats, interval_ms: int, *, events: int = 0) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """(SCAN_DTYPE array of one, events) after a series of (n, 8) bars; ``events``: how many of them there is room for."""
    state, log = np.zeros(1, SCAN_DTYPE), np.zeros(events, EVENT_DTYPE)
    state["interval_ms"], state["period"] = interval_ms, 14
    scan_bars(state[0], np.ascontiguousarray(bars, np.float64), np.zeros((256, BAR_COLUMNS)), log)
    return state, log[log["serial"] > 0]
