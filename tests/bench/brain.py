"""The Brain's kernels: slots consumed, candles with everything on, structure, 300 closes at once, and one slot's way through.

Markets are seeded random walks. References: the plain-Python twin of the tests on the same slots, and LightGBM's own predict.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from src.clock import monotonic_ns
from src.features import FEATURE_COUNT, FEATURE_NAMES
from src.market_state import MarketState
from src.ring_buffer import SLOT_DTYPE, TIME, TRADE, Ring
from src.smc import scan
from src.student import Card, Student
from src.teacher import Teacher, arm, warm_up
from tests.bench import Row, ns_per_op, percentile, row
from tests.markets import MINUTE, T0, Slots, random_bars, slots_of_bars
from tests.markets import run as consume_all
from tests.oracle_market import TwinMarket

SYMBOLS = 300
SETUP_MS, CONTEXT_MS = 15 * MINUTE, 240 * MINUTE


def _state(symbols: int = SYMBOLS) -> MarketState:
    return MarketState(tuple(f"S{i}USDT" for i in range(symbols)), np.ones(symbols), candle_ms=MINUTE, setup_ms=SETUP_MS, context_ms=CONTEXT_MS)


def _armer(state: MarketState, judge: Student | None = None) -> Any:
    teacher, costs = Teacher(), np.full(len(state.symbols), 0.0004)
    return lambda closed: arm(state, closed, strategy=teacher, costs=costs, judge=judge)


def _trades(n: int, symbols: int) -> Slots:
    """Single trades of random symbols, 200 a second of market time, and a TIME slot each minute."""
    rng = np.random.default_rng(5)
    out = np.zeros(n, SLOT_DTYPE)
    sym = rng.integers(0, symbols, n)
    steps = rng.normal(0.0, 0.0001, n)
    order = np.argsort(sym, kind="stable")
    price = np.empty(n)
    for part in np.split(order, np.cumsum(np.bincount(sym, minlength=symbols))[:-1]):
        price[part] = 100.0 * np.exp(np.cumsum(steps[part]))
    out["kind"], out["sym"], out["volume"], out["trade_count"], out["received_ns"] = TRADE, sym, 1.0, 1, 1
    out["time_ms"] = out["last_time_ms"] = T0 + np.arange(n) * 5
    out["first_id"] = out["last_id"] = np.arange(n)
    for name in ("open", "high", "low", "close"):
        out[name] = price
    minutes = np.flatnonzero(np.diff(out["time_ms"] // MINUTE)) + 1
    out["kind"][minutes], out["time_ms"][minutes] = TIME, out["time_ms"][minutes] // MINUTE * MINUTE
    return out


def _student() -> Student:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4_000, FEATURE_COUNT))
    parameters = {"objective": "binary", "num_leaves": 15, "verbosity": -1, "num_threads": 1, "seed": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, (x[:, 0] + rng.normal(size=4_000) > 0).astype(int)), num_boost_round=200)
    return Student(booster, Card(features=FEATURE_NAMES, feature_hash="", model_sha256="0" * 64))


def _twin_rate(slots: Slots) -> float:
    """Million slots a second of the plain-Python twin, which knows candles and setups, but neither indicators nor structure."""
    twin = TwinMarket(SYMBOLS, MINUTE, SETUP_MS, lambda i, end_ms, close: [])
    start = monotonic_ns()
    for slot in slots:
        twin.take(slot)
    return len(slots) / (monotonic_ns() - start) * 1e3


def _rate(slots: Slots, symbols: int, *, rounds: int = 3) -> float:
    """Million slots a second through the full brain: candles, indicators, structure, setups armed, fired and followed."""
    figures = []
    for _ in range(rounds):
        state = _state(symbols)
        start = monotonic_ns()
        consume_all(state, slots, _armer(state))
        figures.append(len(slots) / (monotonic_ns() - start) * 1e3)
    return statistics.median(figures)


def _through_the_ring(slots: Slots) -> float:
    """Million slots a second consumed from the ring in place (writing is not timed)."""
    ring, state, spent = Ring.create(), _state(), 0
    place = _armer(state)
    for start in range(0, len(slots), ring.capacity):
        ring.write_slots(slots[start : start + ring.capacity])
        more, began = True, monotonic_ns()
        while more:
            batch = state.consume(ring, limit=ring.capacity)
            more = batch.more
            if len(batch.closed):
                place(batch.closed)
        spent += monotonic_ns() - began
    ring.close()
    return len(slots) / spent * 1e3


def _closes(judge: Student | None) -> tuple[list[float], list[float], int]:
    """(milliseconds to close 300 setup bars, milliseconds to propose, judge and arm, setups armed) over many closes."""
    state = _state()
    bars = [random_bars(200 * 15, 100 + i, volatility=0.001) for i in range(SYMBOLS)]
    slots = slots_of_bars(bars)
    place = _armer(state, judge)
    closing, arming, armed, position, more = [], [], 0, 0, True
    while more:
        start = monotonic_ns()
        batch = state.consume_array(slots, position, limit=SYMBOLS + 1)
        middle = monotonic_ns()
        position, more = position + batch.consumed, batch.more
        if len(batch.closed):
            armed += len(place(batch.closed))
            if position > len(slots) // 2:
                closing.append((middle - start) / 1e6)
                arming.append((monotonic_ns() - middle) / 1e6)
    return closing, arming, armed


def _one_slot() -> list[float]:
    """Microseconds of ``consume`` with one trade waiting, as the Brain calls it in a quiet market."""
    ring, state = Ring.create(), _state()
    figures = []
    for k in range(20_000):
        ring.write_candle(k % SYMBOLS, T0 + k, 100.0, 100.0, 100.0, 100.0, 1.0)
        start = monotonic_ns()
        state.consume(ring, now_ns=start)
        figures.append((monotonic_ns() - start) / 1e3)
    ring.close()
    return figures[1_000:]


def _drop(result: object) -> None:
    """For timing a call whose result nobody wants."""


def run() -> Iterator[Row]:
    """A row for each figure."""
    start = monotonic_ns()
    warm_up()
    yield row("brain", "warm-up (from cache, or cold)", "s", (monotonic_ns() - start) / 1e9)
    trades = _trades(3_000_000, SYMBOLS)
    twin = _twin_rate(trades[:100_000])
    name = "plain-Python twin"
    yield row("brain", "trades, 300 symbols, full brain", "million slots/s", _rate(trades, SYMBOLS), reference=name, reference_value=twin)
    yield row("brain", "trades through the ring, in place", "million slots/s", _through_the_ring(trades), reference=name, reference_value=twin)
    candles = slots_of_bars([random_bars(4_000, i, volatility=0.001) for i in range(SYMBOLS)])
    twin = _twin_rate(candles[:100_000])
    yield row("brain", "1-minute candles, 300 symbols, full brain", "million candles/s", _rate(candles, SYMBOLS), reference=name,
              reference_value=twin)
    candles = slots_of_bars([random_bars(400_000, 1, volatility=0.001)])
    yield row("brain", "1-minute candles, 1 symbol, full brain", "million candles/s", _rate(candles, 1), reference=name, reference_value=twin)
    bars = random_bars(300_000, 9)
    scan(bars[:300], MINUTE)
    yield row("brain", "structure and indicators of one series", "million bars/s", 1e3 / ns_per_op(lambda: _drop(scan(bars, MINUTE)), len(bars)))
    yield from _closing_rows()
    figures = _one_slot()
    yield row("brain", "consume one waiting trade, p50", "us", percentile(figures, 0.5))
    yield row("brain", "consume one waiting trade, p99", "us", percentile(figures, 0.99))


def _closing_rows() -> Iterator[Row]:
    student = _student()
    rows: npt.NDArray[np.float64] = np.random.default_rng(2).normal(size=(SYMBOLS, FEATURE_COUNT))
    predict_ms = ns_per_op(lambda: _drop(student.predict(rows)), 1) / 1e6
    for judge, case in ((None, "teacher"), (student, "student of 200 trees")):
        closing, arming, armed = _closes(judge)
        both = [a + b for a, b in zip(closing, arming, strict=True)]
        yield row("brain", f"300 closes at once, {case}: closed, proposed, scored, armed, p50", "ms", percentile(both, 0.5),
                  reference="LightGBM predict, 300 rows", reference_value=predict_ms)
        yield row("brain", f"300 closes at once, {case}: p99", "ms", percentile(both, 0.99))
        yield row("brain", f"300 closes at once, {case}: setups armed a close", "setups", armed / 200)
    one = rows[:1]
    yield row("brain", "one setup scored by the student", "us", ns_per_op(lambda: _drop(student.predict(one)), 1) / 1e3)


