"""The Brain's shell on a real ring: closes arm, crossings signal, a handler's failed assertion halts trading and not reading."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.brain import Brain, Decider
from src.bus import EventBus, Topic
from src.clock import clock_at, monotonic_ns
from src.counters import Counters
from src.features import SETUP_DTYPE
from src.journal import Journal, Reader
from src.market_state import MarketState
from src.models import Candle, Side, Signal
from src.ring_buffer import SLOTS_MIN, TIME, Ring
from tests.markets import MINUTE, T0, state_of

SETUP_MS = 5 * MINUTE


class OneBuy:
    """A strategy that proposes a buy 1 below the last close, with a stop 1 below that."""

    name = "teacher"

    def __init__(self, confidence: float) -> None:
        self.confidence = confidence

    def propose(self, state: MarketState, closed: Any, costs: Any) -> Any:
        rows = np.zeros(len(closed), SETUP_DTYPE)
        for row, i in zip(rows, closed, strict=True):
            price = state.candles(int(i), SETUP_MS)[-1][4]
            row["id"], row["symbol"], row["side"], row["price"] = 7, i, 1, price
            row["entry"], row["stop"], row["target"] = price - 1.0, price - 2.0, price
            row["score"] = row["confidence"] = self.confidence
            row["armed_ms"] = row["first_ms"] = T0 + SETUP_MS
            row["expires_ms"], row["limit_ms"] = T0 + 100 * SETUP_MS, 24 * SETUP_MS
        return rows

    def statistics(self) -> dict[str, int]:
        return {}


class Rig:
    def __init__(self, folder: Path, confidence: float) -> None:
        self.ring = Ring.create(SLOTS_MIN)
        self.counters = Counters.create()
        self.errors: list[Exception] = []
        self.failures: list[BaseException] = []
        self.halts: list[Exception] = []
        self.bus = EventBus(lambda topic, handler, error: self.errors.append(error))
        self.journal = Journal(folder)
        decider = Decider(OneBuy(confidence), 0.55, 0.0005, 0.0001)
        self.brain = Brain(self.ring, state_of(1, setup_ms=SETUP_MS), decider, self.bus, self.counters.block("brain"), clock_at(T0, 1.0),
                           self.journal)  # fmt: skip

    def trade(self, time_ms: int, price: float) -> None:
        self.ring.write_candle(0, time_ms, price, price, price, price, 1.0, received_ns=monotonic_ns())
        self.ring.notify()

    def time(self, time_ms: int) -> None:
        self.ring.write_candle(0, time_ms, 0.0, 0.0, 0.0, 0.0, 0.0, kind=TIME)

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0.001)
            if self.ring.pending_count() == 0:
                return
        raise AssertionError("the ring was not emptied")

    async def cross(self) -> None:
        """A bar closes at 10, and the market falls through 9."""
        self.brain.start(self.failures.append, self.halts.append)
        self.trade(T0, 10.0)
        self.time(T0 + SETUP_MS)
        self.trade(T0 + SETUP_MS, 9.5)
        self.trade(T0 + SETUP_MS + 1000, 8.9)
        await self.settle()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    rigs: list[Rig] = []

    def make(confidence: float = 0.7) -> Rig:
        rigs.append(Rig(tmp_path, confidence))
        return rigs[-1]

    yield make
    for one in rigs:
        one.journal.close()
        one.counters.close()
        one.ring.close()


async def test_a_crossed_level_becomes_a_signal_with_all_it_needs(rig: Any) -> None:
    one, heard = rig(), []
    one.bus.subscribe(Topic.SIGNAL_GENERATED, heard.append)
    await one.cross()
    one.brain.stop()
    (signal,) = heard
    assert isinstance(signal, Signal)
    assert (signal.symbol, signal.side, signal.stop, signal.target, signal.source) == ("S0USDT", Side.BUY, 8.0, 10.0, "teacher")
    assert signal.entry == 8.9, "the market jumped over the level"
    assert signal.limit_ms == T0 + SETUP_MS + 1000 + 24 * SETUP_MS and signal.confidence == pytest.approx(0.7)
    assert 0 < signal.received_ns <= monotonic_ns()
    assert one.counters.get("brain", "signals") == 1 and one.counters.get("brain", "setups") == 1 and not one.failures


async def test_too_little_confidence_is_no_signal(rig: Any) -> None:
    one, heard = rig(0.55), []
    one.bus.subscribe(Topic.SIGNAL_GENERATED, heard.append)
    await one.cross()
    one.brain.stop()
    assert heard == [] and one.counters.get("brain", "signals") == 0


async def test_a_closed_bar_is_told_as_a_pooled_candle(rig: Any) -> None:
    one, seen = rig(), []
    one.bus.subscribe(Topic.CANDLE_CLOSED, lambda candle: seen.append((type(candle), candle.to_dict())))
    await one.cross()
    one.brain.stop()
    assert seen == [(Candle, {"symbol": "S0USDT", "time_ms": T0, "open": 10.0, "high": 10.0, "low": 10.0, "close": 10.0, "volume": 1.0})]
    pooled = Candle.acquire("X", 1, (1.0, 1.0, 1.0, 1.0), 0.0)
    assert pooled.symbol == "X", "the candle went back to the pool and is used again"


async def test_ticks_are_told_only_when_somebody_listens(rig: Any) -> None:
    one, batches = rig(), []
    assert not one.bus.wanted(Topic.TICK_UPDATE)
    one.bus.subscribe(Topic.TICK_UPDATE, batches.append)
    await one.cross()
    one.brain.stop()
    assert sum(b.consumed for b in batches) == 4


async def test_a_failed_assertion_in_trading_halts_trading_and_reading_goes_on(rig: Any) -> None:
    one = rig()

    def broken(signal: Signal) -> None:
        raise AssertionError("slots do not add up")

    one.bus.subscribe(Topic.SIGNAL_GENERATED, broken)
    await one.cross()
    one.trade(T0 + SETUP_MS + 2000, 9.1)
    await one.settle()
    one.brain.stop()
    assert [str(e) for e in one.halts] == ["slots do not add up"] and len(one.errors) == 1 and not one.failures
    assert one.brain.quote_of("S0USDT").last == 9.1


async def test_what_became_of_a_setup_is_written_for_the_student(rig: Any, tmp_path: Path) -> None:
    one = rig()
    await one.cross()
    one.trade(T0 + SETUP_MS + 2000, 7.5)
    await one.settle()
    one.brain.stop()
    rows = Reader(tmp_path).rows("SELECT symbol, side, result, length(features) FROM outcomes")
    assert rows and rows[0][:3] == ("S0USDT", 1, -1) and rows[0][3] % 8 == 0


async def test_a_second_writer_ends_the_reading(rig: Any) -> None:
    one = rig()
    await one.cross()
    one.trade(T0 + SETUP_MS + 2000, 9.0)
    one.ring.words[64 + 16 * (5 - 1)] ^= np.uint64(1)
    for _ in range(200):
        await asyncio.sleep(0.001)
        if one.failures:
            break
    assert len(one.failures) == 1
    one.trade(T0 + SETUP_MS + 3000, 9.0)
    await asyncio.sleep(0.01)
    assert one.ring.pending_count() >= 1
