"""What a setup is, and the numbers that describe it to rule book and model.

Invariants
  * A feature reads only what was known at the close it is armed at: closed bars, confirmed structure, the setup's own prices.
  * ``FEATURE_NAMES`` is an interface: trained models carry its hash. A change of meaning raises ``FEATURE_VERSION``.
  * Sides are mirrored: a buy in a market and a sell in the same market upside down have equal features, but for ``side``.
  * What is not known yet is NaN, never a guess.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from src.indicators import CLOSE, Floats, Int, Row, kernel
from src.smc import LEVELS_PER_SIDE, LOWER, UPPER, bar_at

BASE, SETUP, CONTEXT = 0, 1, 2
"""Time frames, the first index of every array: the candles everything is built from, those setups live on, and the larger picture."""
FRAMES = 3

FEATURE_VERSION = 1
FEATURE_NAMES = (
    "kind", "side", "trend", "context_trend", "mean_gap", "context_mean_gap", "rsi", "context_rsi", "range_position",
    "context_range_position", "displacement", "leg_bars", "choch", "imbalance", "swept", "volume_ratio", "age_bars", "distance",
    "stop_distance", "stop_percent", "cost_share", "zone_height", "volatility_percent", "volatility_ratio", "momentum", "taker_share",
    "headroom", "break_age_bars", "hour",
)
FEATURE_COUNT = len(FEATURE_NAMES)
MOMENTUM_BARS = 5
HEADROOM_MAX = 10.0
PARTS_MAX = 8
"""Parts of a score that a setup has room for."""

SETUP_DTYPE = np.dtype([
    ("id", "i8"), ("symbol", "i8"), ("state", "i8"), ("kind", "i8"), ("side", "i8"), ("entry", "f8"), ("stop", "f8"), ("target", "f8"),
    ("price", "f8"), ("atr", "f8"), ("cost_share", "f8"), ("score", "f8"), ("confidence", "f8"), ("known_ms", "i8"), ("first_ms", "i8"),
    ("armed_ms", "i8"), ("expires_ms", "i8"), ("limit_ms", "i8"), ("entered_ms", "i8"), ("entered_price", "f8"),
    ("parts", "f8", (PARTS_MAX,)), ("features", "f8", (FEATURE_COUNT,)),
])
"""``side`` +1 buy, -1 sell. ``price``, ``atr``: at arming. ``cost_share``: round trip / stop distance. ``known_ms``: when its zone was
known, ``first_ms``: first armed, ``armed_ms``: last armed, at a close. ``expires_ms``: not fired from here on. ``limit_ms``: how long a
position may last, a span. ``entered_ms``, ``entered_price``: where its level was crossed (0 before)."""


def feature_hash(names: tuple[str, ...] = FEATURE_NAMES) -> str:
    """16 hexadecimal digits over version, names and order."""
    return hashlib.sha256(f"{FEATURE_VERSION}:{','.join(names)}".encode()).hexdigest()[:16]


@kernel
def range_position(s: Row, side: Int, price: float) -> float:
    """Where the price lies in the dealing range: for a buy 0 is the low and 1 the high, for a sell the other way. NaN without a range."""
    if s.pivot_ms[UPPER] == 0 or s.pivot_ms[LOWER] == 0:
        return np.nan
    high, low = s.range_price[UPPER], s.range_price[LOWER]
    if high <= low:
        return np.nan
    return float((price - low if side > 0 else high - price) / (high - low))


@kernel
def headroom(s: Row, side: Int, entry: float, risk: float) -> float:
    """Stop distances from the entry to the nearest untaken pivot in the way of the target; at most HEADROOM_MAX."""
    k = UPPER if side > 0 else LOWER
    room = HEADROOM_MAX
    for j in range(k * LEVELS_PER_SIDE, (k + 1) * LEVELS_PER_SIDE):
        level = s.levels[j]
        ahead = side * (level.price - entry)
        if level.alive == 1 and ahead > 0.0:
            room = min(room, ahead / risk)
    return float(room)


@kernel
def write_features(frame: Row, above: Row, bars: Floats, zone: Row, setup: Row) -> None:
    """Fill ``setup.features`` (order of FEATURE_NAMES) from what the setup frame, the context frame and the zone know now.

    ``bars``: history of the setup frame."""
    side, out, now, context, s = setup.side, setup.features, frame.indicators, above.indicators, frame.structure
    atr = now.atr
    risk = side * (setup.entry - setup.stop)
    out[0] = setup.kind
    out[1] = side
    out[2] = side * s.trend
    out[3] = side * above.structure.trend
    out[4] = side * (now.ema_fast - now.ema_slow) / atr
    out[5] = side * (context.close - context.ema_fast) / context.atr if context.bars > 0 and context.atr > 0.0 else np.nan
    out[6] = side * (now.rsi - 50.0) / 50.0
    out[7] = side * (context.rsi - 50.0) / 50.0 if context.bars > 0 else np.nan
    out[8] = range_position(s, side, setup.entry)
    out[9] = range_position(above.structure, side, setup.entry)
    out[10] = zone.displacement
    out[11] = zone.leg_bars
    out[12] = zone.choch
    out[13] = zone.imbalance
    out[14] = zone.swept
    out[15] = zone.volume_ratio
    out[16] = s.bars - 1 - zone.known_bar
    out[17] = side * (setup.price - setup.entry) / atr
    out[18] = risk / atr
    out[19] = 100.0 * risk / setup.entry
    out[20] = setup.cost_share
    out[21] = abs(zone.near - zone.deep) / atr
    out[22] = 100.0 * atr / setup.price
    out[23] = atr / now.atr_slow
    out[24] = side * (setup.price - bar_at(bars, s.bars - 1 - MOMENTUM_BARS)[CLOSE]) / atr if s.bars > MOMENTUM_BARS else np.nan
    out[25] = side * now.taker_share
    out[26] = headroom(s, side, setup.entry, risk)
    out[27] = s.bars - 1 - s.break_bar if s.trend != 0 else np.nan
    out[28] = (setup.armed_ms // 3_600_000) % 24


def matrix(setups: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """The features of SETUP_DTYPE (or outcome) rows as (n, FEATURE_COUNT)."""
    return np.ascontiguousarray(setups["features"], np.float64)
