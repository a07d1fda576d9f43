"""The conflation kernels against a plain-Python twin, and the rules of the table one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.conflate import (
    BACKLOG,
    CONTRARY_MAX,
    HOLES,
    MARK_ROW,
    QUOTE_ROW,
    ROW_BYTES,
    ROWS_MAX,
    TRADE_ROW,
    Conflator,
    _whole_steps,
    mark_key,
    quote_key,
    staging,
    trade_key,
)
from src.ring_buffer import BACKFILLED, GAP, HEALED, MARK, QUOTE, STATE, TIME, TRADE, Ring

T0 = 1_763_600_000_000
STEPS = (0.001, 1.0, 1e-8, 10.0)


class Bench:
    """A conflator with rows to stage by name."""

    def __init__(self, records: int = 1024, slots: int = 10_000) -> None:
        self.ring = Ring.create(slots)
        self.conflator = Conflator(STEPS, self.ring, records)
        self.conflator.set_limit(T0 + 10**9)
        self.memory, self.staged = staging()
        self.rows = 0
        self.received_ns = 1

    def _stage(self, packer, *row) -> None:
        packer.pack_into(self.memory, self.rows * ROW_BYTES, *row)
        self.rows += 1
        if self.rows == ROWS_MAX:
            self.flush()

    def trade(self, identity, time_ms=T0, price=100.0, qty=1.0, *, symbol=0, maker=False, filled=False, first=1, last=1) -> None:
        self._stage(TRADE_ROW, trade_key(symbol, filled), time_ms, price, qty, maker, identity, first, last)

    def quote(self, time_ms=T0, bid=99.0, ask=101.0, bid_qty=1.0, ask_qty=2.0, *, symbol=0) -> None:
        self._stage(QUOTE_ROW, quote_key(symbol), time_ms, bid, ask, bid_qty, ask_qty)

    def mark(self, time_ms=T0, mark=100.0, index=100.0, rate=0.0001, due_ms=float(T0), *, symbol=0) -> None:
        self._stage(MARK_ROW, mark_key(symbol), time_ms, mark, index, rate, due_ms)

    def flush(self) -> int:
        rows, self.rows = self.rows, 0
        return self.conflator.flush(self.staged, rows, self.received_ns)

    def slots(self):
        self.flush()
        return self.ring.read_new(1 << 20)

    def tally(self, name: str) -> int:
        return int(self.conflator.tally[name])


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.ring.close()


@pytest.fixture
def small() -> Iterator[Bench]:
    """A ring that is full already, and a table of 1,024 records."""
    bench = Bench()
    while bench.ring.write_candle(3, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        pass
    yield bench
    bench.ring.close()


def test_one_trade_is_one_slot_whose_prices_are_equal(bench: Bench) -> None:
    bench.received_ns = 77
    bench.trade(5, T0 + 3, 100.5, 0.125, first=10, last=12)
    (slot,) = bench.slots()
    assert (slot["kind"], slot["flags"], slot["sym"], slot["received_ns"]) == (TRADE, 0, 0, 77)
    assert slot["open"] == slot["high"] == slot["low"] == slot["close"] == 100.5
    assert (slot["volume"], slot["taker_buy_volume"], slot["quote_volume"]) == (125, 125, 100.5 * 125)
    assert (slot["first_id"], slot["last_id"], slot["trade_count"]) == (5, 5, 3)
    assert slot["time_ms"] == slot["last_time_ms"] == T0 + 3


def test_trades_of_one_second_and_one_read_are_one_slot_and_seconds_are_not_mixed(bench: Bench) -> None:
    for identity, (offset, price) in enumerate([(0, 10.0), (400, 12.0), (999, 9.0), (1000, 11.0), (1001, 8.0)], 1):
        bench.trade(identity, T0 + offset, price, maker=identity == 2)
    first, second = bench.slots()
    assert [first[name] for name in ("open", "high", "low", "close")] == [10, 12, 9, 9]
    assert (first["first_id"], first["last_id"], first["volume"], first["taker_buy_volume"]) == (1, 3, 3000, 2000)
    assert (first["time_ms"], first["last_time_ms"]) == (T0, T0 + 999)
    assert (second["open"], second["close"], second["first_id"], second["time_ms"]) == (11, 8, 4, T0 + 1000)
    assert bench.tally("conflated") == 3


def test_a_fragment_that_was_written_is_never_extended(bench: Bench) -> None:
    bench.trade(1)
    assert len(bench.slots()) == 1
    bench.trade(2)
    (slot,) = bench.slots()
    assert (slot["first_id"], slot["last_id"], slot["volume"]) == (2, 2, 1000)


def test_a_quote_that_is_pending_is_replaced_and_an_older_one_is_dropped(bench: Bench) -> None:
    bench.quote(T0 + 1, 99, 101)
    bench.quote(T0 + 2, 98, 102, 0.005, 0.0105)
    bench.quote(T0 + 1, 50, 51)
    (slot,) = bench.slots()
    assert slot["kind"] == QUOTE
    assert [slot[name] for name in ("time_ms", "open", "high", "low", "close")] == [T0 + 2, 98, 102, 5, 10]
    assert bench.tally("stale") == 1
    bench.quote(T0 + 1)
    assert len(bench.slots()) == 0


def test_a_mark_carries_index_rate_and_next_funding(bench: Bench) -> None:
    bench.mark(T0, 100.0, 99.9, -0.0005, float(T0 + 3600_000), symbol=2)
    (slot,) = bench.slots()
    assert (slot["kind"], slot["sym"]) == (MARK, 2)
    assert [slot[name] for name in ("open", "high", "low", "close")] == [100.0, 99.9, -0.0005, T0 + 3600_000]


@pytest.mark.parametrize(("price", "qty", "time_ms", "identity"), [
    (0.0, 1.0, T0, 1), (-1.0, 1.0, T0, 1), (float("nan"), 1.0, T0, 1), (float("inf"), 1.0, T0, 1), (1e13, 1.0, T0, 1),
    (1.0, 0.0, T0, 1), (1.0, -1.0, T0, 1), (1.0, float("nan"), T0, 1), (1.0, float("inf"), T0, 1), (1.0, 0.0015, T0, 1),
    (1.0, 0.0001, T0, 1), (1.0, 1.0, 0, 1), (1.0, 1.0, -5, 1), (1.0, 1.0, T0 + 10**9 + 1, 1), (1.0, 1.0, T0, 0), (1.0, 1.0, T0, -7),
])
def test_an_impossible_trade_is_counted_and_not_written(bench: Bench, price: float, qty: float, time_ms: int, identity: int) -> None:
    bench.trade(identity, time_ms, price, qty)
    assert len(bench.slots()) == 0
    assert bench.tally("bad_values") == 1
    bench.trade(1)
    assert len(bench.slots()) == 1, "and it leaves no trace in the ids"


@pytest.mark.parametrize("row", [(T0, 0.0, 1.0), (T0, 2.0, 1.0), (T0, float("nan"), 1.0), (T0, 1.0, float("inf")), (0, 1.0, 2.0),
                                 (T0, 1.0, 2.0, -1.0), (T0, 1.0, 2.0, 1.0, float("nan"))])
def test_an_impossible_quote_is_counted_and_not_written(bench: Bench, row: tuple[float, ...]) -> None:
    bench.quote(*row)
    assert len(bench.slots()) == 0
    assert bench.tally("bad_values") == 1


def test_an_aggregate_of_impossibly_many_trades_is_counted_and_not_written(bench: Bench) -> None:
    bench.trade(1, first=1, last=1 << 62)
    assert len(bench.slots()) == 0
    assert bench.tally("bad_values") == 1


def test_duplicates_are_dropped_and_counted(bench: Bench) -> None:
    for identity in (1, 2, 2, 1, 3):
        bench.trade(identity)
    (slot,) = bench.slots()
    assert (slot["volume"], slot["last_id"]) == (3000, 3)
    assert bench.tally("duplicates") == 2


def test_a_hole_writes_gap_before_the_trade_that_shows_it(bench: Bench) -> None:
    bench.trade(1)
    bench.trade(5)
    assert bench.flush() & HOLES
    assert bench.conflator.holes() == [(0, 2, 4)]
    before, gap, after = bench.slots()
    assert (before["last_id"], after["first_id"]) == (1, 5)
    assert (gap["kind"], gap["sym"], gap["first_id"], gap["last_id"]) == (GAP, 0, 2, 4)
    bench.trade(6)
    assert not bench.flush() & HOLES


def test_a_back_filled_trade_is_flagged_and_kept_apart_from_live_ones(bench: Bench) -> None:
    bench.trade(1)
    bench.trade(4)
    bench.trade(2, filled=True)
    bench.trade(3, filled=True)
    bench.trade(5)
    kinds = [(slot["kind"], slot["flags"], slot["first_id"], slot["last_id"]) for slot in bench.slots()]
    assert kinds == [(TRADE, 0, 1, 1), (GAP, 0, 2, 3), (TRADE, 0, 4, 5), (TRADE, BACKFILLED, 2, 3)]
    assert bench.conflator.symbols[0]["last_id"] == 5


def test_a_cut_stream_is_in_doubt_until_a_trade_shows_what_was_missed(bench: Bench) -> None:
    bench.trade(1)
    bench.trade(1, symbol=1)
    bench.flush()
    assert bench.conflator.doubt(0, 9)
    assert bench.conflator.doubt(0, 9), "twice is once"
    assert bench.conflator.doubt(1, 9)
    assert bench.conflator.doubt(2, 9)
    bench.trade(2)
    bench.trade(4, symbol=1)
    assert bench.flush() & HOLES
    assert bench.conflator.holes() == [(0, 2, 1), (1, 2, 3)]
    kinds = [(slot["kind"], slot["sym"], slot["first_id"], slot["last_id"]) for slot in bench.slots()]
    assert kinds == [(TRADE, 0, 1, 1), (TRADE, 1, 1, 1), (GAP, 0, 2, 0), (GAP, 1, 2, 0), (GAP, 2, 0, 0), (TRADE, 0, 2, 2), (GAP, 1, 2, 3),
                     (TRADE, 1, 4, 4)]  # of symbol 2 no id is known yet


def test_a_stream_cut_before_its_first_trade_is_in_doubt_too(bench: Bench) -> None:
    assert bench.conflator.doubt(0, 9)
    bench.trade(8)
    assert bench.flush() & HOLES
    assert bench.conflator.holes() == [(0, 8, 7)]
    assert [(slot["kind"], slot["first_id"], slot["last_id"]) for slot in bench.slots()] == [(GAP, 0, 0), (TRADE, 8, 8)]


def test_a_stream_is_in_doubt_though_there_is_no_room_to_say_so(small: Bench) -> None:
    """Or a trade that follows on would not tell that nothing is missing, and REST would give it a second time."""
    small.trade(1)
    small.flush()
    while small.conflator.state(3, True, 8):
        small.quote(symbol=3)
    assert not small.conflator.doubt(0, 9)
    small.ring.read_new(1 << 20)
    small.conflator.drain()
    small.trade(2)
    assert small.flush() & HOLES
    assert small.conflator.holes() == [(0, 2, 1)]


def test_trades_that_rest_gave_first_are_duplicates_however_many_a_stream_that_lags_shows(bench: Bench) -> None:
    bench.trade(1, T0)
    bench.flush()
    bench.conflator.doubt(0, 9)
    lot = range(2, 3 * CONTRARY_MAX)
    for identity in lot:
        bench.trade(identity, T0 + identity, filled=True)
    bench.flush()
    bench.conflator.caught_up(0, lot[-1])
    for identity in (*lot, lot[-1] + 1):
        bench.trade(identity, T0 + identity)
    slots = [slot for slot in bench.slots() if slot["kind"] == TRADE]
    assert sum(slot["volume"] for slot in slots) * STEPS[0] == pytest.approx(3 * CONTRARY_MAX)
    assert (bench.tally("resets"), bench.tally("duplicates")) == (0, len(lot))


def test_what_rest_has_caught_up_with_is_not_missing(bench: Bench) -> None:
    bench.trade(1)
    bench.flush()
    bench.conflator.doubt(0, 9)
    bench.trade(2, filled=True)
    bench.flush()
    bench.conflator.caught_up(0, 2)
    bench.trade(3)
    assert not bench.flush() & HOLES


def test_gap_and_heal_end_the_fragment_before_them(small: Bench) -> None:
    small.trade(1)
    small.flush()
    assert small.conflator.healed(0, 1, 1, 0, 9)
    small.trade(2)
    small.flush()
    small.ring.read_new(1 << 20)
    assert [slot["kind"] for slot in small.slots()] == [TRADE, HEALED, TRADE]


def test_a_venue_that_counts_anew_is_believed_after_some_trades(bench: Bench) -> None:
    bench.trade(1_000_000, T0)
    for n in range(CONTRARY_MAX + 3):
        bench.trade(1 + n, T0 + 10 + n)
    bench.slots()
    assert bench.tally("resets") == 1
    assert bench.conflator.symbols[0]["last_id"] == CONTRARY_MAX + 3
    assert bench.tally("trades") == 5


@pytest.mark.parametrize("first", [1, 500])
def test_trades_that_were_not_believed_while_the_venue_began_to_count_anew_are_missing(bench: Bench, first: int) -> None:
    bench.trade(1_000_000, T0)
    for n in range(CONTRARY_MAX + 3):
        bench.trade(first + n, T0 + 10 + n)
    assert bench.flush() & HOLES
    assert bench.conflator.holes() == [(0, first, first + CONTRARY_MAX - 2)]
    gap = next(slot for slot in bench.slots() if slot["kind"] == GAP)
    assert (gap["first_id"], gap["last_id"]) == (first, first + CONTRARY_MAX - 2)


def test_one_rubbish_id_does_not_silence_a_symbol(bench: Bench) -> None:
    bench.trade(10, T0)
    bench.trade(10 + 10**12, T0 + 1)
    bench.trade(11, T0 + 2)
    (slot,) = bench.slots()
    assert (slot["first_id"], slot["last_id"]) == (10, 11)
    assert bench.tally("bad_values") == 1


def test_a_trade_behind_time_is_late_and_still_written(bench: Bench) -> None:
    assert bench.conflator.time(T0 + 1000, 9)
    bench.trade(1, T0 + 999)
    bench.trade(2, T0 + 1000)
    assert [slot["kind"] for slot in bench.slots()] == [TIME, TRADE, TRADE]
    assert bench.tally("late") == 1


def test_state_and_heal_carry_their_words(bench: Bench) -> None:
    bench.conflator.state(3, True, 8)
    bench.conflator.state(3, False, 8)
    bench.conflator.healed(2, 5, 9, 1, 8)
    on, off, healed = bench.slots()
    assert (on["kind"], on["sym"], on["open"], off["open"]) == (STATE, 3, 1.0, 0.0)
    assert (healed["kind"], healed["sym"], healed["first_id"], healed["last_id"], healed["open"]) == (HEALED, 2, 5, 9, 1.0)


def test_a_state_says_when_the_contract_ends_and_whether_more_is_to_come(bench: Bench) -> None:
    bench.conflator.state(1, False, 8, leave_ms=T0 + 7)
    bench.conflator.state(1, False, 8, streamed=False)
    leaving, dropped = bench.slots()
    assert (leaving["spare_a"], leaving["spare_b"], dropped["spare_a"], dropped["spare_b"]) == (T0 + 7, 0.0, 0.0, 1.0)


def test_single_trades_that_no_aggregate_holds_are_counted_where_ids_are_known(bench: Bench) -> None:
    """Ten raw trades are missing between aggregates 2 and 3; before aggregate 6 nobody knows, since aggregates are missing too."""
    for identity, first, last in ((1, 100, 104), (2, 105, 105), (3, 116, 116), (6, 200, 200), (7, 201, 202)):
        bench.trade(identity, first=first, last=last)
    trades = [slot for slot in bench.slots() if slot["kind"] == TRADE]
    assert [(slot["first_id"], slot["last_id"], slot["spare_a"]) for slot in trades] == [(1, 3, 10.0), (6, 7, 0.0)]
    assert bench.tally("strange") == 10


def test_a_symbol_that_is_forgotten_is_in_a_gap_and_begins_anew_with_whatever_comes(bench: Bench) -> None:
    bench.trade(5)
    bench.flush()
    assert bench.conflator.forget(0, 9)
    bench.trade(900)
    bench.trade(901)
    kinds = [(slot["kind"], slot["first_id"], slot["last_id"]) for slot in bench.slots()]
    assert kinds == [(TRADE, 5, 5), (GAP, 6, 0), (TRADE, 900, 901)] and bench.tally("gaps") == 0


def test_a_spare_row_becomes_a_symbol() -> None:
    ring = Ring.create(10_000)
    conflator = Conflator([1.0], ring, 1024, spare=1)
    conflator.set_limit(T0 + 10**9)
    memory, staged = staging()
    assert conflator.add(0.01) == 1
    TRADE_ROW.pack_into(memory, 0, trade_key(1), T0, 5.0, 0.25, 0, 1, 1, 1)
    conflator.flush(staged, 1, 1)
    (slot,) = ring.read_new(10)
    assert (slot["sym"], slot["volume"]) == (1, 25)
    with pytest.raises(AssertionError):
        conflator.add(1.0)
    ring.close()


def test_a_full_ring_keeps_conflating_and_everything_comes_later_in_order(small: Bench) -> None:
    for second in range(3):
        for n in range(4):
            small.trade(second * 4 + n + 1, T0 + second * 1000 + n)
            small.quote(T0 + second * 1000 + n)
            assert small.flush() & BACKLOG
        assert small.conflator.time(T0 + second * 1000, 9)
    assert small.conflator.pending == 3 + 1 + 3
    assert small.tally("ring_full") > 0
    small.ring.read_new(1 << 20)
    slots = small.slots()
    assert [(slot["kind"], slot["volume"]) for slot in slots] == [
        (TRADE, 4000), (QUOTE, 0), (TIME, 0), (TRADE, 4000), (TIME, 0), (TRADE, 4000), (TIME, 0)]
    assert [slot["time_ms"] for slot in slots if slot["kind"] == QUOTE] == [T0 + 2003], "a quote is always the newest one"
    assert small.conflator.pending == 0


def test_a_full_table_merges_seconds_into_minutes_and_loses_no_volume(small: Bench) -> None:
    start = T0 // 60_000 * 60_000
    seconds = 3 * 1024
    for second in range(seconds):
        small.trade(second + 1, start + second * 1000, 100.0 + second % 7)
        small.flush()
        small.conflator.time(start + second * 1000, 9)
    assert small.tally("compactions") > 0
    assert small.tally("lost") == 0
    small.ring.read_new(1 << 20)
    slots = small.slots()
    trades = slots[slots["kind"] == TRADE]
    assert trades["volume"].sum() == seconds * 1000
    assert (trades["first_id"][1:] == trades["last_id"][:-1] + 1).all(), "in id order, without a hole"
    assert (trades["time_ms"] // 60_000 == trades["last_time_ms"] // 60_000).all(), "no fragment crosses a minute"
    written = 0.0
    for slot in slots:
        assert slot["kind"] == TRADE or slot["time_ms"] <= written + 60_000
        written = slot["last_time_ms"] if slot["kind"] == TRADE else written


def test_merging_never_blurs_candles_that_are_shorter_than_a_minute(small: Bench) -> None:
    start = T0 // 60_000 * 60_000
    small.conflator.merge_into(5_000)
    for second in range(2_000):
        small.trade(second + 1, start + second * 1000)
        small.flush()
    assert small.tally("compactions") > 0
    small.ring.read_new(1 << 20)
    slots = small.slots()
    assert len(slots) < 1_500
    assert (slots["time_ms"] // 5_000 == slots["last_time_ms"] // 5_000).all()
    assert slots["volume"].sum() == 2_000 * 1000


def test_time_never_overtakes_the_trades_it_speaks_for(small: Bench) -> None:
    start = T0 // 60_000 * 60_000
    for second in range(2048):
        for symbol in range(2):
            small.trade(second + 1, start + second * 1000 + 500, symbol=symbol, qty=10.0)
        small.flush()
        small.conflator.time(start + (second + 1) * 1000, 9)
    small.ring.read_new(1 << 20)
    told = 0.0
    for slot in small.slots():
        if slot["kind"] == TIME:
            told = slot["time_ms"]
        else:
            assert slot["last_time_ms"] >= told
    assert told == start + 2048 * 1000, "the newest TIME survives"


def test_what_finds_no_room_at_all_is_seen_as_a_hole_later(small: Bench) -> None:
    minute = T0 // 60_000 * 60_000
    small.conflator.set_limit(T0 + 10**12)
    identity = 0
    while not small.tally("lost"):
        identity += 1
        small.trade(identity, minute + identity * 60_000)
        small.flush()
    assert small.conflator.symbols[0]["last_id"] == identity - 1
    assert small.conflator.pending < 1024, "room for what is not a trade is kept"
    assert small.conflator.time(minute + identity * 60_000, 9)
    small.ring.read_new(1 << 20)
    small.flush()
    small.trade(identity + 1, minute + identity * 60_000 + 1)
    assert small.flush() & HOLES
    assert small.conflator.holes() == [(0, identity, identity)]


def twin(trades: list[tuple[int, int, int, float, int, bool]]) -> dict[tuple[int, int], tuple[float, ...]]:
    """The oracle: (symbol, second) → open, high, low, close, volume, taker-buy volume, count; whole-number arithmetic."""
    groups: dict[tuple[int, int], list[tuple[float, int, bool]]] = defaultdict(list)
    for symbol, _, time_ms, price, steps, maker in trades:
        groups[symbol, time_ms // 1000].append((price, steps, maker))
    return {key: (rows[0][0], max(r[0] for r in rows), min(r[0] for r in rows), rows[-1][0], sum(r[1] for r in rows),
                  sum(r[1] for r in rows if not r[2]), len(rows)) for key, rows in groups.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900), st.integers(1, 10**6), st.integers(1, 10**9), st.booleans(),
                          st.sampled_from("..... fr")), min_size=1, max_size=120))
def test_any_cut_into_reads_gives_the_same_candles_to_the_last_step(rows) -> None:
    """Fragments of the ring, merged by second, equal the twin's candles, wherever the reads were cut and whenever the ring was full."""
    bench = Bench()
    ids, clocks, trades, read = defaultdict(int), defaultdict(lambda: T0), [], []
    for symbol, ahead, cents, steps, maker, action in rows:
        ids[symbol] += 1
        clocks[symbol] += ahead
        qty = float(str(Decimal(steps) * Decimal(str(STEPS[symbol]))))
        trades.append((symbol, ids[symbol], clocks[symbol], cents / 100, steps, maker))
        bench.trade(ids[symbol], clocks[symbol], cents / 100, qty, symbol=symbol, maker=maker)
        if action == "f":
            bench.flush()
        elif action == "r":
            read.extend(bench.slots())
    read.extend(bench.slots())
    assert bench.tally("bad_values") == 0
    merged: dict[tuple[int, int], list] = {}
    for slot in read:
        key = (int(slot["sym"]), int(slot["time_ms"]) // 1000)
        assert slot["time_ms"] // 1000 == slot["last_time_ms"] // 1000
        have = merged.setdefault(key, [slot["open"], slot["high"], slot["low"], 0.0, 0.0, 0.0, 0])
        have[1], have[2], have[3] = max(have[1], slot["high"]), min(have[2], slot["low"]), slot["close"]
        have[4] += slot["volume"]
        have[5] += slot["taker_buy_volume"]
        have[6] += slot["trade_count"]
    bench.ring.close()
    assert {key: tuple(map(float, value)) for key, value in merged.items()} == {
        key: tuple(map(float, value)) for key, value in twin(trades).items()}


@given(steps=st.integers(1, 10**12), step=st.sampled_from(["0.001", "0.1", "1", "10", "1e-8", "0.01", "1000", "1e-5"]))
@settings(max_examples=200, deadline=None)
def test_every_quantity_on_the_grid_is_its_whole_number_of_steps(steps: int, step: str) -> None:
    qty = float(str(Decimal(steps) * Decimal(step)))
    if qty < 1e15:
        assert _whole_steps.py_func(qty, float(step)) == steps


def test_ring_positions_rise_by_one(bench: Bench) -> None:
    for n in range(1, 5000):
        bench.trade(n, T0 + n * 1000)
        if n % 97 == 0:
            bench.flush()
    slots = bench.slots()
    assert len(slots) == 4999
    assert (np.diff(slots["seq"].astype(np.int64)) == 1).all()
