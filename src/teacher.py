"""The rule book: which retests are worth a setup, where its prices lie, and how good it looks, from 0 to 1.

Invariants
  * What is armed at a close is a function of what is known at that close: the setups of a symbol are proposed anew from its structure,
    so a restart with the same history arms the same setups with the same ids, scores and features.
  * A zone is traded at its first retest only: touched once, by whichever print, it proposes nothing more.
  * A setup whose round trip costs more than COST_SHARE_MAX of its stop distance is refused ("costs"). Every refusal has a name and is
    counted.
  * A user's own strategy is any object with ``name`` and ``propose``: everything after it is the same.

Setup: entry at the zone's retest level, stop beyond its far side by BUFFER_ATR, target at ``target_r`` stop distances, time limit.
Score: the weighted mean of the parts, each from 0 to 1 (``RULES`` says what they reward; weights add up to 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from src.bars import Market
from src.features import CONTEXT, PARTS_MAX, SETUP, SETUP_DTYPE, matrix, range_position, write_features
from src.indicators import Floats, Int, Records, Row, kernel
from src.kernel_cache import Progress, silently
from src.market_state import MarketState
from src.setups import EMPTY
from src.smc import FVG, ZONES_PER_KIND

Setups = npt.NDArray[np.void]
Symbols = npt.NDArray[np.int64]

COST_SHARE_MAX = 0.20
BUFFER_ATR, REACH_ATR, TIGHT_ATR, WIDE_ATR, TWIN_ATR = 0.15, 3.0, 0.5, 4.0, 0.25
"""In ATR: stop beyond the zone; how far an entry may be from the close; the tightest and the widest stop; entries nearer than this are one
idea."""
LIMIT_BARS = 24
"""Setup bars until a position is closed by time."""
CONFIDENCE_MIN = 0.55
"""Above it an entry is allowed; the weights are set so that of a driftless random walk's setups a third to a half are above."""

RULES = (
    ("context", 0.20, "the larger time frame trends the same way"),
    ("trend", 0.12, "the last break of structure went the same way"),
    ("displacement", 0.16, "the move that made the zone was large, in ATR"),
    ("imbalance", 0.10, "the leg left a fair value gap"),
    ("sweep", 0.10, "liquidity on the other side was swept before"),
    ("location", 0.14, "buys lie in the discount, sells in the premium half of the dealing range"),
    ("freshness", 0.10, "the zone is young"),
    ("momentum", 0.08, "RSI is not stretched against the entry"),
)
"""The rule book: part, weight, what it rewards."""
WEIGHTS = np.array([weight for _, weight, _ in RULES])
PART_NAMES = tuple(name for name, _, _ in RULES)
assert len(RULES) <= PARTS_MAX and abs(WEIGHTS.sum() - 1.0) < 1e-9, "the weights of the rule book add up to 1"

REFUSALS = ("gapped", "warming", "passed", "far", "touched", "tight", "wide", "costs", "twin")
"""Why a zone proposed nothing: history has a hole; too little history; price is already beyond the entry; the entry is out of reach; the
open bar has been there; the stop lies within the noise of a bar; the stop is too wide; costs; a better setup of the same side lies next to it."""
_GAPPED, _WARMING, _PASSED, _FAR, _TOUCHED, _TIGHT, _WIDE, _COSTS, _TWIN, _NONE = range(10)
_ID_SYMBOL, _ID_ZONE = 5, 21
"""An id is known second << 21 | symbol << 5 | zone place: the same after a restart, unique as long as a zone lives."""


class Plan(NamedTuple):
    """What the kernel needs beside the market: stop distances to the target, the time limit in ms, and per symbol the round trip cost as
    a fraction of the price."""

    target_r: float
    limit_ms: int
    costs: Floats


@kernel
def clip01(x: float) -> float:
    return min(1.0, max(0.0, x))


@kernel
def score_setup(setup: Row, frame: Row, above: Row, zone: Row) -> None:
    """Fill ``parts`` (order of RULES) and ``score``."""
    side, parts, s = setup.side, setup.parts, frame.structure
    rsi, place = side * (frame.indicators.rsi - 50.0), range_position(s, side, setup.entry)
    mean = above.indicators.close - above.indicators.ema_fast
    parts[0] = 0.5 + 0.25 * side * above.structure.trend + (0.25 if side * mean > 0.0 else (-0.25 if side * mean < 0.0 else 0.0))
    parts[1] = 0.5 + 0.5 * side * s.trend
    parts[2] = clip01((zone.displacement - 1.0) / 3.0)
    parts[3] = clip01(abs(zone.near - zone.deep) / setup.atr) if zone.kind == FVG else zone.imbalance
    parts[4] = zone.swept
    parts[5] = clip01(1.0 - place) if place == place else 0.5
    parts[6] = np.exp(-(s.bars - 1 - zone.known_bar) / 12.0)
    parts[7] = clip01(1.0 - abs(rsi - 5.0) / 20.0)
    score = 0.0
    for j in range(len(WEIGHTS)):
        score += WEIGHTS[j] * parts[j]
    setup.score = setup.confidence = score


@kernel
def refuse_zone(setup: Row, candle: Row, open_bar: Row) -> Int:
    """Why this setup is not proposed now, by place in REFUSALS, or _NONE. ``candle``, ``open_bar``: of the base and the setup frame."""
    side = setup.side
    distance, risk = side * (setup.price - setup.entry), side * (setup.entry - setup.stop)
    if distance <= 0.0:
        return _PASSED
    if distance > REACH_ATR * setup.atr:
        return _FAR
    for bar in (candle, open_bar):
        if bar.parts > 0 and side * ((bar.low if side > 0 else bar.high) - setup.entry) <= 0.0:
            return _TOUCHED
    if risk < TIGHT_ATR * setup.atr:
        return _TIGHT
    if risk > WIDE_ATR * setup.atr:
        return _WIDE
    if not setup.cost_share <= COST_SHARE_MAX:
        return _COSTS
    return _NONE


@kernel
def draw_setup(setup: Row, zone: Row, i: Int, frame: Row, plan: Plan) -> None:
    """The prices, times and id of the setup that zone would make."""
    side, now, s = zone.side, frame.indicators, frame.structure
    setup.symbol, setup.state, setup.kind, setup.side, setup.entry = i, EMPTY, zone.kind, side, zone.entry
    setup.price, setup.atr = now.close, now.atr
    setup.stop = zone.far - side * BUFFER_ATR * now.atr
    risk = side * (setup.entry - setup.stop)
    setup.target = setup.entry + side * plan.target_r * risk
    setup.cost_share = plan.costs[i] * setup.entry / risk if risk > 0.0 else np.inf
    setup.known_ms, setup.first_ms, setup.armed_ms, setup.expires_ms = zone.known_ms, s.now_ms, s.now_ms, s.now_ms + frame.interval_ms
    setup.limit_ms, setup.entered_ms, setup.entered_price = plan.limit_ms, 0, 0.0


@kernel
def drop_twins(rows: Records, first: Int, last: Int) -> Int:
    """Of setups of one side with entries within TWIN_ATR, in ``rows[first:last]``, keep the best score. Returns the new last."""
    keep = first
    for p in range(first, last):
        setup, better = rows[p], False
        for q in range(first, last):
            other = rows[q]
            near = other.side == setup.side and abs(other.entry - setup.entry) < TWIN_ATR * setup.atr
            if p != q and near and (other.score > setup.score or (other.score == setup.score and q < p)):
                better = True
        setup.state = 1 if better else 0
    for p in range(first, last):
        if rows[p].state == 0:
            if p != keep:
                rows[keep] = rows[p]
            keep += 1
    return keep


@kernel
def propose_setups(m: Market, closed: Symbols, plan: Plan, rows: Records, refusals: Symbols) -> Int:
    """Every setup of the ``closed`` symbols to ``rows`` (SETUP_DTYPE), in their order; ``refusals`` counts by REFUSALS. Returns how many.

    ``rows`` has room for all zones of all closed symbols.
    """
    count = 0
    for n in range(len(closed)):
        i, first = closed[n], count
        row, frame, above = m.symbols[i], m.frames[SETUP, i], m.frames[CONTEXT, i]
        if row.gapped == 1 or row.armable == 0:
            refusals[_GAPPED] += 1
            continue
        if not frame.indicators.atr > 0.0 or not frame.indicators.rsi >= 0.0:
            refusals[_WARMING] += 1
            continue
        for k in range(3 * ZONES_PER_KIND):
            zone, setup = frame.structure.zones[k], rows[count]
            if zone.alive == 0 or zone.touched_ms > 0:
                continue
            draw_setup(setup, zone, i, frame, plan)
            setup.id = (zone.known_ms // 1_000) << _ID_ZONE | i << _ID_SYMBOL | k
            why = refuse_zone(setup, row.open_bar, frame.open_bar)
            if why != _NONE:
                refusals[why] += 1
                continue
            write_features(frame, above, m.bars[SETUP, i], zone, setup)
            score_setup(setup, frame, above, zone)
            count += 1
        kept = drop_twins(rows, first, count)
        refusals[_TWIN] += count - kept
        count = kept
    return count


class Strategy(Protocol):
    """Who proposes setups. ``propose`` returns SETUP_DTYPE rows in the order of ``closed``, with prices, times, id, features and score;
    ``costs`` is the round trip of each of all symbols as a fraction of the price. ``statistics``: what it refused, by name."""

    name: str

    def propose(self, state: MarketState, closed: Symbols, costs: Floats) -> Setups: ...

    def statistics(self) -> dict[str, int]: ...


class Judge(Protocol):
    """Who turns features into the probability that the target comes before the stop. ``promoted``: it passed its trials; ``may_trade_live``:
    and its out-of-sample net expectation is positive."""

    source: str

    @property
    def promoted(self) -> bool: ...

    @property
    def may_trade_live(self) -> bool: ...

    def predict(self, features: Floats) -> Floats: ...


class Teacher:
    """The strategy of this module. ``target_r``: stop distances from entry to target. ``limit_bars``: setup bars a position may last."""

    name = "teacher"

    def __init__(self, *, target_r: float = 1.0, limit_bars: int = LIMIT_BARS) -> None:
        self._target_r = float(target_r)
        self._limit_bars = limit_bars
        self._rows = np.empty(0, SETUP_DTYPE)
        self._refusals = np.zeros(len(REFUSALS), np.int64)

    def propose(self, state: MarketState, closed: Symbols, costs: Floats) -> Setups:
        """A view of rows that the next call overwrites."""
        wanted = max(1, len(closed)) * 3 * ZONES_PER_KIND
        if len(self._rows) < wanted:
            self._rows = np.zeros(wanted, SETUP_DTYPE)
        plan = Plan(self._target_r, self._limit_bars * state.intervals[SETUP], costs)
        count = propose_setups(state.market, closed, plan, self._rows, self._refusals)
        return self._rows[:count]

    def statistics(self) -> dict[str, int]:
        """Refusals by name since the start."""
        return dict(zip(REFUSALS, self._refusals.tolist(), strict=True))


def round_trip(state: MarketState, *, fee: float, slippage: float, spread_max: float = 0.01) -> Floats:
    """Cost of entry and exit per symbol, as a fraction of the price: two fees, two slippages, and the spread as last quoted (at most
    ``spread_max``, 0 while there is no quote)."""
    rows = state.market.symbols
    bid, ask = rows["bid"], rows["ask"]
    quoted = (bid > 0.0) & (ask >= bid)
    spread = np.where(quoted, (ask - bid) / np.where(quoted, 0.5 * (ask + bid), 1.0), 0.0)
    return 2.0 * fee + 2.0 * slippage + np.minimum(spread, spread_max)


def arm(state: MarketState, closed: Symbols, *, strategy: Strategy, costs: Floats, judge: Judge | None = None) -> Setups:
    """After a close barrier: propose, judge and arm the setups of the closed symbols. Returns the armed rows (SETUP_DTYPE copies).

    Confidence is the score, or the judge's probability when there is one.
    """
    proposals = strategy.propose(state, closed, costs)
    if judge is not None and len(proposals):
        proposals["confidence"] = judge.predict(matrix(proposals))
    return state.place(proposals, closed)


def warm_up(progress: Progress = silently) -> None:
    """Compile every kernel of the market side, or load it from the cache."""
    state = MarketState(("WARM",), np.ones(1), candle_ms=1_000, setup_ms=1_000, context_ms=1_000, history=160)
    teacher = Teacher()
    closed = np.zeros(1, np.int64)
    steps: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("the Brain's candles", state.warm_up),
        ("the Brain's history", lambda: state.seed(0, *_tiny_history())),
        ("the Brain's setups", lambda: arm(state, closed, strategy=teacher, costs=np.full(1, 0.001))),
    )
    for name, step in steps:
        progress(name)
        step()


def _tiny_history() -> tuple[Floats, Floats, Floats]:
    bars = np.ones((3, 8))
    bars[:, 0] = (1_000.0, 2_000.0, 3_000.0)
    return bars, bars, bars
