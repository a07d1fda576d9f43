"""How holes are found, filled, given up and told: with a real table, a venue of plain lists, and no network."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from src.clock import monotonic_ns
from src.conflate import CONTRARY_MAX, TRADE_ROW, Conflator, staging, trade_key
from src.error_handler import AegisError, Rejected, Retryable
from src.gaps import PAGE_ROWS, Gaps
from src.ring_buffer import BACKFILLED, GAP, HEALED, TRADE, Ring
from src.venue.messages import AggTrade

T0 = 1_763_600_000_000
DEADLINE_S = 10.0


class World:
    """Two symbols, their streams, the venue's memory, and what was told."""

    def __init__(self, trades_max: int) -> None:
        self.ring = Ring.create()
        self.conflator = Conflator([1.0, 1.0], self.ring, 1024)
        self.conflator.set_limit(T0 + 10**9)
        self.gaps = Gaps(self, ["BTCUSDT", "ETHUSDT"], self.fetch, trades_max)
        self.stream = self.streams = 1
        self.time_ms = T0
        self.venue: dict[str, list[int]] = {"BTCUSDT": [], "ETHUSDT": []}
        self.asked: list[tuple[str, int, int]] = []
        self.errors: list[AegisError] = []
        self.answers: list[list[AggTrade]] = []
        self.hook: Callable[[], None] = lambda: None
        self.told: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()
        self.memory, self.staged = staging()

    async def fetch(self, symbol: str, first: int, limit: int) -> list[AggTrade]:
        self.asked.append((symbol, first, limit))
        self.news.set()
        if self.errors:
            raise self.errors.pop(0)
        if self.answers:
            return self.answers.pop(0)
        rows = [AggTrade(symbol, a, "100", "1", a, a, T0, False) for a in self.venue[symbol] if a >= first][:limit]
        self.hook()
        return rows

    def stream_of(self, symbol: int) -> int:
        return self.stream

    def fell_ill(self, symbol: int) -> None:
        self.told.append(("ill", symbol))

    def got_well(self, symbol: int, first: int, last: int, unfilled: int) -> None:
        self.told.append(("well", symbol, first, last, unfilled))
        self.conflator.healed(symbol, first, last, unfilled, 1)
        self.news.set()

    def follow_up(self, status: int, now_ns: int) -> None:
        assert status >= 0

    def live(self, identity: int, symbol: int = 0) -> None:
        """A trade on the stream."""
        TRADE_ROW.pack_into(self.memory, 0, trade_key(symbol), self.time_ms, 100.0, 1.0, 0, identity, identity, identity)
        self.conflator.flush(self.staged, 1, 1)
        for row in self.conflator.holes():
            self.gaps.shown(*row, monotonic_ns())

    def cut(self, symbol: int = 0) -> None:
        self.stream = 0
        self.conflator.doubt(symbol, 1)
        last_id = int(self.conflator.symbols[symbol]["last_id"])
        self.gaps.open(symbol, last_id + 1 if last_id else 0, None, monotonic_ns())

    def back(self) -> None:
        self.stream = self.streams = self.streams + 1
        self.gaps.stream_is_back([0, 1], monotonic_ns())

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def ids(self, symbol: int = 0) -> Counter[int]:
        """How often each id is in the ring."""
        found: Counter[int] = Counter()
        for slot in self.slots:
            if slot["kind"] == TRADE and slot["sym"] == symbol:
                found.update(range(int(slot["first_id"]), int(slot["last_id"]) + 1))
        return found

    def read(self) -> World:
        self.slots = self.ring.read_new(1 << 20)
        return self


@asynccontextmanager
async def world(trades_max: int = 10_000) -> AsyncIterator[World]:
    one = World(trades_max)
    task = asyncio.create_task(one.gaps.run())
    try:
        yield one
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        one.ring.close()


def well(w: World) -> list[tuple[Any, ...]]:
    return [told for told in w.told if told[0] == "well"]


async def test_a_hole_is_fetched_written_and_told() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2, 3, 4]
        w.live(1)
        w.live(4)
        await w.until(lambda: well(w))
        assert w.told == [("ill", 0), ("well", 0, 2, 3, 0)]
        assert w.asked == [("BTCUSDT", 2, 2)]
        assert w.read().ids() == {1: 1, 2: 1, 3: 1, 4: 1}
        assert [(s["kind"], s["flags"]) for s in w.slots] == [(TRADE, 0), (GAP, 0), (TRADE, 0), (TRADE, BACKFILLED), (HEALED, 0)]
        assert len(w.gaps) == 0


async def test_two_holes_of_a_symbol_are_one_illness() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = list(range(1, 9))
        for identity in (1, 3, 6):
            w.live(identity)
        await w.until(lambda: well(w))
        assert w.told == [("ill", 0), ("well", 0, 2, 5, 0)]
        assert w.read().ids() == dict.fromkeys(range(1, 7), 1)


async def test_the_most_traded_symbol_is_helped_first() -> None:
    async with world() as w:
        w.venue = {"BTCUSDT": [1, 2, 3], "ETHUSDT": [1, 2, 3]}
        for symbol in (1, 0):
            w.live(1, symbol)
            w.live(3, symbol)
        await w.until(lambda: len(well(w)) == 2)
        assert [row[0] for row in w.asked] == ["BTCUSDT", "ETHUSDT"]


async def test_a_refusal_is_tried_again_later() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2, 3]
        w.errors = [Retryable("busy"), Retryable("busy")]
        w.live(1)
        w.live(3)
        await w.until(lambda: well(w))
        assert len(w.asked) == 3


async def test_what_the_venue_rejects_is_unfilled() -> None:
    async with world() as w:
        w.errors = [Rejected("no such symbol", code=-1121)]
        w.live(1)
        w.live(5)
        await w.until(lambda: well(w))
        assert well(w) == [("well", 0, 2, 4, 3)]


async def test_a_venue_that_lags_is_asked_again_and_not_for_ever() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1]
        w.hook = lambda: w.venue["BTCUSDT"].append(2) if len(w.asked) == 2 else None
        w.live(1)
        w.live(3)
        await w.until(lambda: well(w))
        assert well(w) == [("well", 0, 2, 2, 0)]
        assert len(w.asked) == 3


async def test_ids_that_do_not_exist_are_unfilled_at_once() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 5]
        w.live(1)
        w.live(5)
        w.hook = lambda: None
        await w.until(lambda: well(w))
        assert well(w)[0][-1] == 3


async def test_an_open_hole_is_not_asked_for_before_the_stream_is_back() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2, 3]
        w.live(1)
        w.cut()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert w.asked == []
        w.back()
        await w.until(lambda: well(w))
        assert w.read().ids() == {1: 1, 2: 1, 3: 1}
        w.live(4)
        assert len(w.gaps) == 0, "what was caught up with is not missing"


async def test_a_trade_that_follows_on_closes_an_open_hole_without_rest() -> None:
    async with world() as w:
        w.live(1)
        w.cut()
        w.live(2)
        assert well(w) == [("well", 0, 2, 1, 0)]


async def test_an_answer_that_overlaps_with_live_trades_writes_nothing_twice() -> None:
    """While REST answers 2..5, the stream has shown 4 and 5: only 2 and 3 belong into the hole."""
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2, 3, 4, 5]
        w.live(1)
        w.cut()
        w.hook = lambda: [w.live(4), w.live(5)]
        w.back()
        await w.until(lambda: well(w))
        assert w.read().ids() == dict.fromkeys(range(1, 6), 1)


async def test_a_stream_that_lags_behind_a_full_answer_writes_nothing_twice() -> None:
    """REST gave 2..1001, and there is more; only then does the stream show 990 and what follows it."""
    async with world() as w:
        w.venue["BTCUSDT"] = list(range(1, PAGE_ROWS + 4))
        w.live(1)
        w.cut()

        def lag() -> None:
            if len(w.asked) == 2:
                for identity in range(990, PAGE_ROWS + 4):
                    w.live(identity)

        w.hook = lag
        w.back()
        await w.until(lambda: well(w))
        assert w.read().ids() == dict.fromkeys(range(1, PAGE_ROWS + 4), 1)
        assert well(w) == [("well", 0, 2, PAGE_ROWS + 1, 0)]


async def test_a_trade_that_an_answer_holds_twice_or_out_of_order_is_written_once() -> None:
    async with world() as w:
        w.answers = [[AggTrade("BTCUSDT", a, "100", "1", a, a, T0, False) for a in (3, 2, 3)]]
        w.live(1)
        w.live(4)
        await w.until(lambda: well(w))
        assert w.read().ids() == dict.fromkeys(range(1, 5), 1)
        assert well(w) == [("well", 0, 2, 3, 0)]


async def test_what_rest_gives_in_a_form_that_cannot_be_taken_is_unfilled() -> None:
    """No number, a time beyond any, off the grid of steps, not finite: none of it ends the Feed, and none passes for had."""
    async with world() as w:
        rubbish = (("x", "1", T0), ("100", "1", 10**30), ("100", "0.5", T0), ("nan", "1", T0))
        rows = [AggTrade("BTCUSDT", 2 + n, price, qty, 1, 1, time, False) for n, (price, qty, time) in enumerate(rubbish)]
        w.answers = [[*rows, AggTrade("BTCUSDT", 6, "100", "1", 1, 1, T0, False)]]
        w.live(1)
        w.live(7)
        await w.until(lambda: well(w))
        assert well(w) == [("well", 0, 2, 6, 4)]
        assert w.read().ids() == {1: 1, 6: 1, 7: 1}


async def test_a_newest_trade_of_an_impossible_id_is_not_believed() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2]
        w.answers = [[AggTrade("BTCUSDT", a, "100", "1", 1, 1, T0, False) for a in (2, 10**40)]]
        w.live(1)
        w.cut()
        w.back()
        await w.until(lambda: well(w))
        w.live(3)
        assert w.read().ids() == {1: 1, 2: 1, 3: 1}


async def test_a_rejected_hole_whose_end_is_unknown_does_not_pass_for_filled() -> None:
    async with world() as w:
        w.errors = [Rejected("too far back", code=-1102)]
        w.live(1)
        w.cut()
        w.back()
        await w.until(lambda: well(w))
        assert well(w) == [("well", 0, 2, 1, 1)]


@pytest.mark.parametrize("shown", [False, True])
async def test_where_no_id_is_known_a_gap_ends_with_the_stream_and_is_not_filled(shown: bool) -> None:
    async with world() as w:
        w.cut()
        await asyncio.sleep(0)
        assert 0 in w.gaps
        if shown:
            w.live(8)
        w.back()
        await w.until(lambda: well(w))
        assert [told[-1] for told in well(w)] == [1]
        assert w.asked == []


async def test_what_cannot_be_fetched_for_days_is_still_tried() -> None:
    async with world() as w:
        w.errors = [Retryable("busy")]
        w.live(1)
        w.live(3)
        hole = w.gaps._ailing[0].holes[0]
        hole.failures = 5_000
        await w.until(lambda: w.asked)
        await asyncio.sleep(0)
        assert hole.failures == 5_001


async def test_a_venue_that_begins_to_count_anew_while_a_stream_was_cut_is_filled_from_there() -> None:
    async with world() as w:
        w.live(1_000_000)
        w.cut()
        w.time_ms = T0 + 1
        w.venue["BTCUSDT"] = list(range(5, 5 + CONTRARY_MAX))
        for identity in w.venue["BTCUSDT"]:
            w.live(identity)
        await w.until(lambda: len(well(w)) == 2)
        assert w.read().ids() == {1_000_000: 1, **dict.fromkeys(range(5, 5 + CONTRARY_MAX), 1)}


async def test_an_answer_to_a_hole_that_is_closed_meanwhile_is_thrown_away() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2]
        w.live(1)
        w.cut()
        w.hook = lambda: w.live(2)
        w.back()
        await w.until(lambda: well(w))
        assert w.read().ids() == {1: 1, 2: 1}


async def test_a_stream_cut_again_while_rest_answers_stays_in_doubt() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2]
        w.live(1)
        w.cut()

        def cut_again() -> None:
            w.stream = 0
            w.hook = lambda: None

        w.hook = cut_again
        w.back()
        await w.until(lambda: len(w.asked) == 1)
        await asyncio.sleep(0)
        assert not well(w) and 0 in w.gaps
        w.venue["BTCUSDT"].append(3)
        w.back()
        await w.until(lambda: well(w))
        assert w.read().ids() == {1: 1, 2: 1, 3: 1}


async def test_a_long_absence_is_fetched_up_to_the_limit_and_the_rest_is_unfilled() -> None:
    async with world(trades_max=2000) as w:
        w.venue["BTCUSDT"] = list(range(1, 9000))
        w.live(1)
        w.cut()
        w.back()
        await w.until(lambda: well(w))
        assert well(w) == [("well", 0, 2, 2001, 0)]
        w.live(9000)
        await w.until(lambda: len(well(w)) == 2)
        assert well(w)[1] == ("well", 0, 2002, 8999, 6998)
        assert len(w.asked) == 2


async def test_while_the_table_is_full_history_waits() -> None:
    async with world() as w:
        w.venue["BTCUSDT"] = [1, 2, 3]
        while w.ring.write_candle(1, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            pass
        for number in range(600):
            w.conflator.time(T0 + number, 1)
        w.live(1)
        w.live(3)
        await w.until(lambda: w.asked)
        await asyncio.sleep(0)
        assert not well(w)
        w.ring.read_new(1 << 20)
        w.conflator.drain()
        await w.until(lambda: well(w))


async def test_young_holes_are_known_as_such() -> None:
    async with world() as w:
        before = monotonic_ns()
        assert not w.gaps.young(0)
        w.live(1)
        w.cut()
        assert w.gaps.young(before - 1)
        assert not w.gaps.young(monotonic_ns())
        w.gaps.stream_is_back([0], monotonic_ns() + 10**9)
        assert w.gaps.young(monotonic_ns()), "the wait starts anew when the stream is back"
