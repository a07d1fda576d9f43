"""The Brain's market against a plain-Python twin, batch by batch, through the ring, from history and on recorded candles."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from src.bars import GAPPED, LATE, PARTIAL, SEEDED, STRANGE
from src.error_handler import Fatal, Halt, Rejected
from src.features import SETUP_DTYPE
from src.market_state import Batch, MarketState
from src.ring_buffer import GAP, HEALED, MARK, QUOTE, SLOTS_MIN, STATE, TIME, Ring
from src.teacher import CONFIDENCE_MIN, Teacher, arm
from tests.markets import MINUTE, T0, random_bars, random_trades, run, slots_of, slots_of_bars, state_of
from tests.oracle_market import TwinMarket

SETUP_MS = 5 * MINUTE
Setups = npt.NDArray[np.void]


def _levels(i: int, end_ms: int, close: float) -> list[dict[str, Any]]:
    """Six setups around a close, some of them crossed soon, some never, two of them crowded out."""
    rng = np.random.default_rng(end_ms // MINUTE * 10 + i)
    setups = []
    for k in range(6):
        side = 1 if k % 2 == 0 else -1
        entry = close * (1 - side * rng.uniform(0.0002, 0.004))
        risk = close * rng.uniform(0.0005, 0.003)
        setups.append({
            "id": end_ms * 100 + i * 10 + k, "side": side, "entry": entry, "stop": entry - side * risk, "target": entry + side * risk,
            "confidence": float(rng.random()), "limit_ms": int(rng.integers(5, 200)) * 1_000})
    return setups


def _placer(state: MarketState) -> Any:
    """Arms ``_levels`` for the closed symbols, as a strategy would."""

    def place(closed: npt.NDArray[np.int64]) -> None:
        rows: list[Any] = []
        for i in closed.tolist():
            end_ms, close = int(state.candles(i, SETUP_MS)[-1, 0]) + SETUP_MS, float(state.candles(i, SETUP_MS)[-1, 4])
            if state.market.symbols["armable"][i] and not state.market.symbols["gapped"][i]:
                for setup in _levels(i, end_ms, close):
                    row = np.zeros(1, SETUP_DTYPE)
                    row["symbol"], row["expires_ms"] = i, end_ms + SETUP_MS
                    for name, value in setup.items():
                        row[name] = value
                    rows.append(row)
        state.place(np.concatenate(rows) if rows else np.empty(0, SETUP_DTYPE), closed)

    return place


def _with_news(slots: npt.NDArray[np.void], seed: int) -> npt.NDArray[np.void]:
    """Quotes, gaps with their healing, and halts of trading, strewn between trades."""
    rng = np.random.default_rng(seed)
    out: list[Any] = []
    gapped, halted = -1, -1
    for k, slot in enumerate(slots):
        if k % 40 == 0:
            price = 100.0
            quote = {"kind": QUOTE, "sym": int(rng.integers(3)), "time_ms": slot["time_ms"], "open": price + k, "high": price + k + 1}
            out.append(slots_of([quote])[0])
        if k % 531 == 530:
            gapped = int(rng.integers(3))
            out.append(slots_of([{"kind": GAP, "sym": gapped, "first_id": 1, "last_id": 2}])[0])
        if k % 531 == 180 and gapped >= 0:
            out.append(slots_of([{"kind": HEALED, "sym": gapped}])[0])
        if k % 911 == 910:
            halted = int(rng.integers(3))
            out.append(slots_of([{"kind": STATE, "sym": halted, "open": 0.0}])[0])
        if k % 911 == 300 and halted >= 0:
            out.append(slots_of([{"kind": STATE, "sym": halted, "open": 1.0}])[0])
        out.append(slot)
    return np.array(out, dtype=slots.dtype)


def _facts(batches: list[Batch]) -> tuple[list[Any], list[Any]]:
    fired = [f[["id", "time_ms", "price", "last", "received_ns", "bid"]].item() for b in batches for f in b.fired]
    outcomes = [o[["id", "ended_ms", "exit_price", "result"]].item() for b in batches for o in b.outcomes]
    return fired, outcomes


@pytest.fixture(scope="module")
def busy() -> npt.NDArray[np.void]:
    return _with_news(random_trades(11), 12)


@pytest.fixture(scope="module")
def twin(busy: npt.NDArray[np.void]) -> TwinMarket:
    market = TwinMarket(3, MINUTE, SETUP_MS, _levels)
    for slot in busy:
        market.take(slot)
    return market


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.create(SLOTS_MIN)
    yield ring
    ring.close()


def test_candles_setups_and_outcomes_equal_the_twins(busy: npt.NDArray[np.void], twin: TwinMarket) -> None:
    state = state_of()
    fired, outcomes = _facts(run(state, busy, _placer(state)))
    for i, symbol in enumerate(twin.symbols):
        np.testing.assert_array_equal(state.candles(i, MINUTE), np.array(symbol.candles))
        np.testing.assert_array_equal(state.candles(i, SETUP_MS), np.array(symbol.setup_bars))
    assert fired == twin.fired and len(fired) > 50
    assert sorted(outcomes) == sorted(twin.outcomes) and {o[3] for o in outcomes} == {-1, 0, 1}
    counts = state.statistics()
    assert {name: counts[name] for name in twin.counts} == twin.counts and min(counts["late"], counts["missed"], counts["crowded"]) > 0


@pytest.mark.parametrize("limit", [1, 7, 100_000])
def test_nothing_depends_on_how_slots_are_cut_into_batches(busy: npt.NDArray[np.void], twin: TwinMarket, ring: Ring, limit: int) -> None:
    state = state_of()
    place, batches = _placer(state), []
    for start in range(0, len(busy), 5_000):
        assert ring.write_slots(busy[start : start + 5_000]) == len(busy[start : start + 5_000])
        more = True
        while more:
            batch = state.consume(ring, limit=limit)
            batches.append(batch)
            more = batch.more
            if len(batch.closed):
                place(batch.closed)
    assert _facts(batches) == (twin.fired, _facts(run(whole := state_of(), busy, _placer(whole)))[1])
    assert state.market.bars.tobytes() == whole.market.bars.tobytes() and ring.pending_count() == 0
    assert sum(b.consumed for b in batches) == len(busy)


def test_missing_minutes_close_flat_with_no_volume() -> None:
    state = state_of(1)
    run(state, slots_of([{"time_ms": T0 + 5, "price": 10.0}, {"time_ms": T0 + 9, "price": 12.0}, {"kind": TIME, "time_ms": T0 + 4 * MINUTE}]))
    rows = state.candles(0, MINUTE)
    assert rows[:, 1:6].tolist() == [[10, 12, 10, 12, 2], *[[12, 12, 12, 12, 0]] * 3]


def test_a_time_slot_before_the_end_closes_nothing() -> None:
    state = state_of(2)
    batches = run(state, slots_of([{"time_ms": T0, "price": 10.0}, {"kind": TIME, "time_ms": T0 + MINUTE - 1}]))
    assert len(state.candles(0, MINUTE)) == 0 and sum(b.base_closed for b in batches) == 0


def test_the_slot_that_closes_a_setup_bar_is_kept_until_setups_are_armed(ring: Ring) -> None:
    state = state_of(1)
    ring.write_slots(slots_of([{"time_ms": T0, "price": 10.0}, {"time_ms": T0 + 12 * MINUTE, "price": 5.0}]))
    first = state.consume(ring)
    assert (first.consumed, first.closed.tolist(), first.more) == (1, [0], True) and ring.pending_count() == 1
    setup = np.zeros(1, SETUP_DTYPE)
    setup["side"], setup["entry"], setup["stop"], setup["target"], setup["id"], setup["limit_ms"] = 1, 8.0, 4.0, 12.0, 77, MINUTE
    setup["expires_ms"] = T0 + 60 * MINUTE
    second = state.consume(ring)
    assert (second.consumed, second.closed.tolist(), second.more) == (0, [0], True)
    state.place(setup, second.closed)
    third = state.consume(ring)
    assert third.fired["id"].tolist() == [77] and third.fired["price"].tolist() == [5.0] and not third.more
    assert third.fired["setup"]["entered_ms"].tolist() == [T0 + 12 * MINUTE]


def test_a_batch_ends_with_the_slot_that_fires_so_its_quote_is_of_that_moment() -> None:
    state = _armed(entry=9.0, stop=8.0, target=10.0)
    t = T0 + SETUP_MS
    slots = slots_of([{"kind": QUOTE, "time_ms": t, "open": 8.9, "high": 9.1}, {"time_ms": t + 1_000, "price": 9.0, "received_ns": 5},
                      {"kind": QUOTE, "time_ms": t + 2_000, "open": 1.0, "high": 2.0}])  # fmt: skip
    batch = state.consume_array(slots, 0)
    assert (batch.consumed, batch.more, batch.fired["bid"][0], batch.fired["ask"][0]) == (2, True, 8.9, 9.1)
    quote = state.quote(0, t + 1_500)
    assert (quote.bid, quote.ask, quote.last, quote.quote_age_ms, quote.trade_age_ms, quote.tradable) == (8.9, 9.1, 9.0, 1_500, 500, True)


def _armed(*, entry: float, stop: float, target: float, side: int = 1) -> MarketState:
    """A state of one symbol whose first setup bar closed at 10, with one setup armed."""
    state = state_of(1)

    def place(closed: npt.NDArray[np.int64]) -> None:
        row = np.zeros(1, SETUP_DTYPE)
        row["id"], row["side"], row["entry"], row["stop"], row["target"] = 1, side, entry, stop, target
        row["expires_ms"], row["limit_ms"] = T0 + 2 * SETUP_MS, 3 * MINUTE
        state.place(row, closed)

    run(state, slots_of([{"time_ms": T0, "price": 10.0}, {"kind": TIME, "time_ms": T0 + SETUP_MS}]), place)
    return state


AFTER = T0 + SETUP_MS
CROSSINGS: tuple[tuple[str, list[dict[str, Any]], list[int], str], ...] = (
    ("touched exactly", [{"price": 9.0}], [1], ""),
    ("not reached", [{"price": 9.01}], [], ""),
    ("by a back-filled print", [{"price": 9.0, "flags": 1}], [], "missed"),
    ("while gapped", [{"kind": GAP}, {"price": 9.0}], [], "missed"),
    ("after healing", [{"kind": GAP}, {"kind": HEALED}, {"price": 9.0}], [1], ""),
    ("while not tradable", [{"kind": STATE, "open": 0.0}, {"price": 9.0}], [], "missed"),
    ("jumped over the stop", [{"price": 7.9}], [], "missed"),
    ("twice", [{"price": 9.0}, {"price": 9.5}, {"price": 9.0}], [1], ""),
    ("entered and stopped in one slot", [{"open": 9.5, "high": 9.5, "low": 7.5, "close": 8.5}], [1], "stops"),
    ("target in the entry slot does not count", [{"open": 9.5, "high": 10.5, "low": 9.0, "close": 9.5}], [1], ""),
    ("stop and target in one slot is the stop", [{"price": 9.0}, {"open": 9.5, "high": 10.5, "low": 7.5, "close": 9.5}], [1], "stops"),
    ("target", [{"price": 9.0}, {"price": 10.0}], [1], "targets"),
    ("time", [{"price": 9.0}, {"price": 9.5, "time_ms": AFTER + 4 * MINUTE}], [1], "timed_out"),
    ("expired", [{"price": 9.5, "time_ms": AFTER + SETUP_MS}, {"price": 9.0, "time_ms": AFTER + SETUP_MS}], [], "expired"),
)


@pytest.mark.parametrize("name, rows, fired, counted", CROSSINGS, ids=[c[0] for c in CROSSINGS])
def test_what_a_crossing_does(name: str, rows: list[dict[str, Any]], fired: list[int], counted: str) -> None:
    state = _armed(entry=9.0, stop=8.0, target=10.0)
    batches = run(state, slots_of([{"time_ms": AFTER + 1_000 * k, **row} for k, row in enumerate(rows)]))
    assert [int(f["id"]) for b in batches for f in b.fired] == fired
    totals = state.statistics()
    assert not counted or totals[counted] == 1
    outcomes = [o for b in batches for o in b.outcomes]
    assert len(outcomes) == (1 if counted in ("stops", "targets", "timed_out") else 0)
    if counted == "targets":
        assert outcomes[0]["gross_r"] == 1.0


def test_a_bar_with_a_candle_closed_while_gapped_arms_nothing_and_asks_for_history() -> None:
    state = state_of(1)
    seen = []
    rows: list[dict[str, Any]] = [{"time_ms": T0, "price": 10.0}, {"kind": GAP}, {"kind": TIME, "time_ms": T0 + MINUTE}, {"kind": HEALED}]
    run(state, slots_of(rows))
    assert state.tainted() == [0]
    run(state, slots_of([{"kind": TIME, "time_ms": T0 + SETUP_MS}]), lambda closed: seen.append(int(state.market.symbols["armable"][0])))
    run(state, slots_of([{"kind": TIME, "time_ms": T0 + 2 * SETUP_MS}]), lambda closed: seen.append(int(state.market.symbols["armable"][0])))
    assert seen == [0, 1] and state.tainted() == [0], "the closed bar is wrong until history has corrected it"
    bars = random_bars(2 * SETUP_MS // MINUTE + 1, 1)
    state.seed(0, _fold(bars[:-1], SETUP_MS // MINUTE), bars)
    assert state.tainted() == []


def test_what_may_be_wrong_with_a_candle_is_kept_beside_it() -> None:
    """Minute 0 is incomplete at the start, 1 gets a late print, 2 closes in a gap, 3 has trades that no aggregate holds, 4 is whole."""
    state = state_of(1)
    rows: list[dict[str, Any]] = [{"time_ms": T0 + n * MINUTE, "price": 10.0} for n in range(3)]
    rows += [{"time_ms": T0 + MINUTE + 5, "price": 11.0}, {"kind": GAP}, {"time_ms": T0 + 3 * MINUTE, "price": 10.0, "spare_a": 2.0}]
    rows += [{"kind": HEALED}, {"time_ms": T0 + 4 * MINUTE, "price": 10.0}, {"kind": TIME, "time_ms": T0 + 5 * MINUTE}]
    run(state, slots_of(rows))
    assert state.flaws(0).tolist() == [PARTIAL, LATE, GAPPED, STRANGE, 0]
    assert state.statistics()["late"] == 1
    bars = random_bars(3, 1)
    state.seed(0, np.empty((0, 8)), bars)
    assert state.flaws(0).tolist() == [SEEDED, SEEDED, GAPPED, STRANGE, 0], "what is newer than history keeps its own"


def test_a_late_print_from_before_all_history_marks_nothing() -> None:
    state = state_of(1, history=200)
    run(state, slots_of([{"time_ms": T0 + n * MINUTE, "price": 10.0} for n in range(300)]))
    run(state, slots_of([{"time_ms": T0 + n * MINUTE, "price": 10.0} for n in (-5, 50, 150)]))
    assert np.flatnonzero(state.flaws(0) & LATE).tolist() == [51] and state.statistics()["late"] == 3


def test_a_symbol_that_comes_later_has_its_own_row() -> None:
    state = MarketState(("AUSDT",), np.ones(1), candle_ms=MINUTE, setup_ms=SETUP_MS, context_ms=SETUP_MS, spare=1)
    assert state.add("BUSDT", 0.5) == 1 and state.symbols == ("AUSDT", "BUSDT")
    run(state, slots_of([{"sym": n, "time_ms": T0, "price": 10.0 + n} for n in (0, 1)] + [{"kind": TIME, "time_ms": T0 + MINUTE}]))
    assert [state.candles(n, MINUTE)[0, 1] for n in (0, 1)] == [10.0, 11.0]
    with pytest.raises(AssertionError):
        state.add("CUSDT", 1.0)


def test_state_tells_when_a_contract_ends_and_that_nothing_more_comes() -> None:
    state = state_of(1)
    run(state, slots_of([{"kind": STATE, "open": 0.0, "spare_a": T0 + 5.0}]))
    assert state.market.symbols["leave_ms"][0] == T0 + 5 and not state.quote(0, T0).tradable
    state.doubt(0)
    assert state.tainted() == [0]
    run(state, slots_of([{"kind": STATE, "open": 0.0, "spare_b": 1.0}]))
    assert state.market.symbols["leave_ms"][0] == 0 and state.tainted() == [], "history of what is not streamed is nobody's business"


def test_a_gap_healed_within_its_candle_does_no_harm() -> None:
    state = state_of(1)
    rows: list[dict[str, Any]] = [{"time_ms": T0, "price": 10.0}, {"kind": GAP}, {"time_ms": T0 + 900, "price": 8.0, "flags": 1}, {"kind": HEALED}]
    run(state, slots_of([*rows, {"kind": TIME, "time_ms": T0 + MINUTE}]))
    assert state.tainted() == [] and state.candles(0, MINUTE)[0, 3] == 8.0 and state.statistics()["backfilled"] == 1


def test_open_and_close_follow_venue_time_and_trade_id_not_arrival() -> None:
    state = state_of(1)
    rows = [{"time_ms": T0 + 5, "price": 2.0, "first_id": 7, "last_id": 7}, {"time_ms": T0 + 5, "price": 3.0, "first_id": 8, "last_id": 8},
            {"time_ms": T0 + 5, "price": 1.0, "first_id": 6, "last_id": 6}]  # fmt: skip
    run(state, slots_of([*rows, {"kind": TIME, "time_ms": T0 + MINUTE}]))
    assert state.candles(0, MINUTE)[0, [1, 4]].tolist() == [1.0, 3.0]


def test_marks_funding_and_unknown_slots() -> None:
    state = state_of(1)
    mark = {"kind": MARK, "time_ms": T0, "open": 10.0, "high": 10.1, "low": 0.0001, "close": T0 + 5}
    run(state, slots_of([mark, {"kind": 99}, {"sym": 40, "time_ms": T0, "price": 1.0}]))
    row = state.market.symbols[0]
    assert (row["mark"], row["index"], row["funding"], row["funding_ms"]) == (10.0, 10.1, 0.0001, T0 + 5)
    assert state.statistics()["unknown"] == 2 and state.quote(0, T0 + 9).mark_age_ms == 9


def test_a_wrong_sequence_number_halts(ring: Ring) -> None:
    state = state_of(1)
    ring.write_slots(slots_of([{"time_ms": T0, "price": 10.0}] * 3))
    ring.words[64 + 16] += np.uint64(5)
    with pytest.raises(Halt, match="second writer"):
        state.consume(ring)
    assert ring.statistics()["seq_errors"] == 1 and ring.statistics()["released"] == 1


def test_lag_is_the_age_of_the_oldest_and_newest_slot(ring: Ring) -> None:
    state = state_of(1)
    ring.write_slots(slots_of([{"time_ms": T0, "price": 10.0, "received_ns": 100}, {"time_ms": T0, "price": 10.0, "received_ns": 160}]))
    batch = state.consume(ring, now_ns=200)
    assert (batch.lag_ns_max, batch.lag_ns_min) == (100, 40)


def test_intervals_that_do_not_nest_are_fatal() -> None:
    for candle, setup, context in ((1_500, 3_000, 6_000), (MINUTE, 90_000, 180_000), (MINUTE, SETUP_MS, 7 * SETUP_MS)):
        with pytest.raises(Fatal, match="do not nest"):
            state_of(1, candle_ms=candle, setup_ms=setup, context_ms=context)


# --- history ---------------------------------------------------------------------------------------------------------------------------

def _fold(bars: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """Bars of n bars each; the last may be incomplete, as the venue gives it."""
    groups = [bars[k : k + n] for k in range(0, len(bars), n)]
    return np.array([(g[0, 0], g[0, 1], g[:, 2].max(), g[:, 3].min(), g[-1, 4], *g[:, 5:].sum(0)) for g in groups])


def test_a_seeded_state_continues_as_if_it_had_seen_the_trades() -> None:
    bars = random_bars(1_000, 3)
    cut = 843
    whole, seeded = state_of(1), state_of(1)
    run(whole, slots_of_bars([bars]))
    seeded.seed(0, _fold(bars[: cut + 1], 5), bars[: cut + 1], _fold(bars[: cut + 1], 30))
    assert seeded.open_candle(0)["open_ms"] == bars[cut, 0] and seeded.open_candle(0)["partial"] == 1
    run(seeded, slots_of_bars([bars[cut - 3 :]]))
    for interval in (MINUTE, SETUP_MS, 6 * SETUP_MS):
        np.testing.assert_array_equal(whole.candles(0, interval), seeded.candles(0, interval))
    ours, theirs = whole.market.frames[:, 0], seeded.market.frames[:, 0]
    for name in ("indicators", "structure", "open_bar"):
        assert ours[name][1:].tobytes() == theirs[name][1:].tobytes(), name
    assert seeded.statistics()["seam"] == 1 and seeded.statistics()["late"] == 2


def test_setups_armed_after_a_restart_are_those_of_a_daemon_that_never_stopped() -> None:
    bars = random_bars(1_200, 21, volatility=0.004)
    cut, costs = 1_003, np.full(1, 0.0001)
    whole, seeded, teacher = state_of(1), state_of(1), Teacher()
    slots = slots_of_bars([bars])
    run(whole, slots[: 2 * cut], lambda closed: arm(whole, closed, strategy=teacher, costs=costs))
    seeded.seed(0, _fold(bars[:cut], 5), bars[:cut], _fold(bars[:cut], 30), until_ms=int(bars[cut, 0]))
    armed = arm(seeded, np.zeros(1, np.int64), strategy=teacher, costs=costs)
    kept = whole.market.setups[0]
    kept = kept[kept["state"] == 1]
    assert len(armed) > 0
    for name in ("id", "entry", "stop", "target", "score", "armed_ms", "expires_ms"):
        assert sorted(armed[name].tolist()) == sorted(kept[name].tolist()), name


def test_the_seam_is_proven_by_a_time_slot_from_before_it() -> None:
    bars = random_bars(20, 4)
    state = state_of(1)
    state.seed(0, _fold(bars[:10], 5), bars)
    run(state, slots_of([{"kind": TIME, "time_ms": int(bars[-1, 0])}]))
    assert state.open_candle(0)["partial"] == 0


def test_history_of_a_live_symbol_keeps_its_open_candle() -> None:
    bars = random_bars(60, 5)
    state = state_of(1)
    run(state, slots_of_bars([bars])[:-1])
    before = state.open_candle(0)
    state.seed(0, _fold(bars[:40], 5), bars[:41])
    assert state.open_candle(0) == before
    np.testing.assert_array_equal(state.candles(0, MINUTE), bars[:-1])


def test_history_with_a_hole_before_the_ring_taints_the_open_setup_bar() -> None:
    bars = random_bars(20, 6)
    state = state_of(1)
    state.seed(0, _fold(bars[:15], 5), bars[17:])
    assert state.market.frames["open_bar"]["tainted"][1, 0] and state.tainted() == []


def test_history_that_ends_before_the_live_candle_is_asked_for_again() -> None:
    bars = random_bars(20, 6)
    state = state_of(1)
    run(state, slots_of_bars([bars[18:]])[:-1])
    state.seed(0, _fold(bars[:15], 5), bars[:17])
    assert state.tainted() == [0] and state.candles(0, MINUTE)[16:18, 5].tolist() == [0.0, 0.0]
    state.seed(0, _fold(bars[:15], 5), bars[:19])
    assert state.tainted() == [] and state.open_candle(0)["open_ms"] == bars[19, 0]
    np.testing.assert_array_equal(state.candles(0, MINUTE), bars[:19])


@pytest.mark.parametrize("spoil", [lambda b: b[::-1], lambda b: b + np.eye(1, 8), lambda b: b * [[1.0, 0.0, *[1.0] * 6]]])
def test_history_that_is_no_history_is_rejected(spoil: Any) -> None:
    with pytest.raises(Rejected, match="history of S0USDT"):
        state_of(1).seed(0, np.empty((0, 8)), spoil(random_bars(5, 1)))


# --- recorded candles ------------------------------------------------------------------------------------------------------------------

FIRST_MS = 1_746_835_200_000
"""2025-05-10: a midnight from which most symbols are whole."""


def _recorded(folder: Path, days: int) -> tuple[list[str], list[npt.NDArray[np.float64]]]:
    table = pq.read_table(folder / "klines" / "binance_um_1m_2025-05_2025-06.parquet")
    names, bars = [], []
    for name in sorted(set(table["symbol"].to_pylist())):
        rows = table.filter(pc.equal(table["symbol"], name)).sort_by("ts_ms")
        values = np.column_stack([rows[c].to_numpy().astype(float) for c in ("ts_ms", "open", "high", "low", "close", "volume")])
        keep = values[values[:, 0] >= FIRST_MS][: days * 1_440]
        if len(keep) == days * 1_440 and keep[0, 0] == FIRST_MS:
            names.append(name)
            bars.append(np.c_[keep[:, :5], np.rint(keep[:, 5]), np.ones(len(keep)), np.floor(keep[:, 5] / 2)])
    return names, bars


def test_recorded_minutes_become_the_candles_they_were(recorded_data: Path) -> None:
    names, bars = _recorded(recorded_data, 14)
    state = MarketState(tuple(names), np.ones(len(names)), candle_ms=MINUTE, setup_ms=15 * MINUTE, context_ms=240 * MINUTE, history=2_000)
    teacher, costs = Teacher(), np.full(len(names), 0.0012)
    batches = run(state, slots_of_bars(bars), lambda closed: arm(state, closed, strategy=teacher, costs=costs))
    for i, rows in enumerate(bars):
        np.testing.assert_array_equal(state.candles(i, 15 * MINUTE), _fold(rows, 15)[-2_000:])
    fired = np.concatenate([b.fired for b in batches])
    outcomes = np.concatenate([b.outcomes for b in batches])
    share = float((fired["setup"]["confidence"] > CONFIDENCE_MIN).mean())
    net = outcomes["gross_r"] - outcomes["cost_share"]
    print(f"\n{len(names)} symbols, 14 days: {len(fired)} setups fired, {share:.0%} above {CONFIDENCE_MIN}, net {net.mean():+.3f} R, "
          f"above {CONFIDENCE_MIN}: {net[outcomes['confidence'] > CONFIDENCE_MIN].mean():+.3f} R, refused {teacher.statistics()}")
    assert 0.2 < share < 0.6


@pytest.mark.parametrize(("unfilled", "listed"), [(0.0, []), (3.0, [0])])
def test_a_gap_that_could_not_be_filled_asks_for_history(unfilled: float, listed: list[int]) -> None:
    state = state_of(1, setup_ms=SETUP_MS)
    run(state, slots_of([{"time_ms": T0, "price": 10.0}, {"kind": TIME, "time_ms": T0 + SETUP_MS}, {"time_ms": T0 + SETUP_MS, "price": 10.0}]))
    run(state, slots_of([{"kind": GAP}, {"kind": HEALED, "open": unfilled}, {"kind": TIME, "time_ms": T0 + SETUP_MS + MINUTE}]))
    assert state.tainted() == listed


def test_the_first_close_of_all_symbols_waits_for_no_memory() -> None:
    """Pages that nobody has written are cleared at the first touch: with 300 symbols that would hold up the first close by tens of ms."""
    state = state_of(300)
    state.warm_up()
    first = slots_of([{"sym": i, "time_ms": T0, "price": 10.0} for i in range(300)])
    close = slots_of([{"kind": TIME, "time_ms": T0 + 5 * MINUTE}])
    state.consume_array(first, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert state.consume_array(close, 0).base_closed == 1_500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8
