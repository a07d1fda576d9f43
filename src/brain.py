"""The Brain: ring → market state → setups → confidence → signals, and Trade beside it in the same process.

It waits on the ring's eventfd. Each batch of slots may close setup bars (then setups are proposed, judged and armed before the next slot
is looked at) and may fire armed setups (then a signal is published at once, and Trade decides in the same call). Everything slow is
a task: history, leverage, recovery, answers of the venue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.bus import EventBus, Handler, Topic
from src.clock import Clock, monotonic_ns
from src.counters import Block
from src.error_handler import Degraded, Halt, failure, info, warn
from src.features import SETUP
from src.indicators import CLOSE, HIGH, LOW, OPEN, OPEN_MS, VOLUME
from src.journal import Journal
from src.market_state import Batch, MarketState
from src.models import Candle, Quote, Side, Signal, SymbolRules
from src.ring_buffer import Ring
from src.teacher import PART_NAMES, Judge, Strategy, arm, round_trip

BATCHES_MAX = 64
"""After so many batches in one go other work of the loop has its turn."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Who decides. ``student`` None, or not yet: the teacher's score is the confidence. ``fee``, ``slippage``: shares of the price, one way."""

    strategy: Strategy
    min_confidence: float
    fee: float
    slippage: float
    student: Judge | None = None

    @property
    def source(self) -> str:
        return self.student.source if self.student is not None else self.strategy.name


class Brain:
    """The ring's reader. ``pump`` is called when the ring has something, and consumes until it is empty."""

    def __init__(self, ring: Ring, market: MarketState, decider: Decider, bus: EventBus, block: Block, clock: Clock, journal: Journal) -> None:
        self._ring = ring
        self.market = market
        self.decider = decider
        self._bus = bus
        self._block = block
        self._clock = clock
        self._journal = journal
        self._index = {symbol: i for i, symbol in enumerate(market.symbols)}
        self._unwritten = 0
        self._stopped = False
        self._caught_up = False
        self._on_halt: Callable[[Exception], None] = lambda error: None
        self._failed: Callable[[BaseException], None] = lambda error: None

    def start(self, on_failure: Callable[[BaseException], None], on_halt: Callable[[Exception], None]) -> None:
        """Read the ring on this loop from now on. ``on_failure``: a second writer or a bug here, after which nothing is read. ``on_halt``: an
        assertion failed where a signal was handled; reading goes on, so that what is held stays priced."""
        self._failed, self._on_halt = on_failure, on_halt
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ring.wake_fd, self.pump)
        loop.call_soon(self.pump)

    def stop(self) -> None:
        self._stopped = True
        asyncio.get_running_loop().remove_reader(self._ring.wake_fd)

    def pump(self) -> None:
        if self._stopped:
            return
        try:
            self._ring.unpark()
            for _ in range(BATCHES_MAX):
                batch = self.market.consume(self._ring, now_ns=monotonic_ns())
                self._take(batch)
                if not batch.more and self._ring.park():
                    self._caught_up = True
                    return
            asyncio.get_running_loop().call_soon(self.pump)
        except Exception as error:  # the reading of the ring ends here
            self.stop()
            self._failed(error)

    def recheck(self) -> None:
        """The slow timer's look at a parked ring: what it finds was a missed wake-up."""
        if self._ring.recheck():
            self._block.add("missed_wakeups")
            self.pump()

    def quote_of(self, symbol: str) -> Quote:
        return self.market.quote(self._index[symbol], self._clock.market_ms())

    @property
    def setups_refused(self) -> int:
        """Proposals that the strategy itself refused, by its own count."""
        return sum(self.decider.strategy.statistics().values())

    def know(self, place: int, rules: SymbolRules) -> None:
        """A symbol that begins now; or new rules of one that is known, which change nothing here."""
        if place == len(self.market.symbols):
            self.market.add(rules.symbol, float(rules.step))
        assert self.market.symbols[place] == rules.symbol, f"place {place} is that of {self.market.symbols[place]}"
        self._index[rules.symbol] = place

    def ending(self, by_ms: int) -> list[str]:
        """Symbols whose contract ends by this market time."""
        leave = self.market.market.symbols["leave_ms"][:len(self.market.symbols)]
        return [self.market.symbols[i] for i in np.flatnonzero((leave > 0) & (leave <= by_ms))]

    def stale_symbols(self, limit_ms: float) -> int:
        """How many symbols that are streamed have shown neither a quote nor a trade for ``limit_ms`` of market time."""
        rows = self.market.market.symbols[:len(self.market.symbols)]
        silent = self._clock.market_ms() - np.maximum(rows["quote_ms"], rows["last_ms"]) > limit_ms
        return int((silent & (rows["unstreamed"] == 0)).sum())

    def _take(self, batch: Batch) -> None:
        block = self._block
        if batch.consumed:
            block.add("slots", batch.consumed)
            block.add("candles", batch.base_closed)
            block.set("last_tick_ns", monotonic_ns())
            block.set("lag_us_last", batch.lag_ns_max // 1000)
            if self._caught_up:  # what waited in the ring while kernels were prepared is not lag
                block.max("lag_us_max", batch.lag_ns_max // 1000)
            if self._bus.wanted(Topic.TICK_UPDATE):
                self._bus.publish(Topic.TICK_UPDATE, batch)
        if len(batch.outcomes):
            self._learn(batch.outcomes)
        for row in batch.fired:
            self._fire(row)
        if len(batch.closed):
            self._arm(batch.closed)

    def arm(self, symbols: list[int]) -> None:
        """After history was read: arm what the last close of these symbols would have armed, so that a restart waits for no bar."""
        if symbols:
            self._arm(np.array(symbols, np.int64))

    def _arm(self, closed: npt.NDArray[np.int64]) -> None:
        """Setup bars closed: propose, judge and arm before anything else is read."""
        decider = self.decider
        costs = round_trip(self.market, fee=decider.fee, slippage=decider.slippage)
        armed = arm(self.market, closed, strategy=decider.strategy, costs=costs, judge=decider.student)
        self._block.add("closes", len(closed))
        self._block.add("setups", len(armed))
        if self._bus.wanted(Topic.CANDLE_CLOSED):
            for i in closed.tolist():
                self._tell_candle(i)
        if len(armed) and self._bus.wanted(Topic.SETUP_ARMED):
            self._bus.publish(Topic.SETUP_ARMED, armed)

    def _tell_candle(self, i: int) -> None:
        """The setup bar that just closed, as a pooled Candle: handlers may use it inside this call only."""
        bar = self.market.candles(i, self.market.intervals[SETUP])[-1]
        prices = (float(bar[OPEN]), float(bar[HIGH]), float(bar[LOW]), float(bar[CLOSE]))
        candle = Candle.acquire(self.market.symbols[i], int(bar[OPEN_MS]), prices, float(bar[VOLUME]))
        try:
            self._bus.publish(Topic.CANDLE_CLOSED, candle)
        finally:
            candle.release()

    def _fire(self, row: Any) -> None:
        """An armed level was crossed."""
        setup = row["setup"]
        confidence = float(setup["confidence"])
        symbol = self.market.symbols[int(row["symbol"])]
        if confidence <= self.decider.min_confidence:
            info(f"{symbol}: a setup fired with too little confidence", confidence=round(confidence, 3))
            return
        signal = Signal(
            setup_id=int(row["id"]), symbol=symbol, side=Side.BUY if row["side"] > 0 else Side.SELL, entry=float(row["price"]),
            stop=float(setup["stop"]), target=float(setup["target"]), limit_ms=int(row["time_ms"] + setup["limit_ms"]),
            confidence=confidence, source=self.decider.source, time_ms=int(row["time_ms"]), received_ns=int(row["received_ns"]),
            bid=float(row["bid"]), ask=float(row["ask"]),
            parts=tuple(zip(PART_NAMES, (round(float(p), 4) for p in setup["parts"]), strict=False)))  # fmt: skip
        self._block.add("signals")
        info(f"signal {signal.side} {symbol} at {signal.entry:g}", confidence=round(confidence, 3))
        try:
            self._bus.publish(Topic.SIGNAL_GENERATED, signal)
        except (Halt, AssertionError) as error:
            self._on_halt(error)

    def _learn(self, outcomes: npt.NDArray[np.void]) -> None:
        """What became of fired setups goes into the journal: the experience that a student learns from."""
        rows = [(int(o["id"]), self.market.symbols[int(o["symbol"])], int(o["kind"]), int(o["side"]), int(o["armed_ms"]), int(o["entered_ms"]),
                 int(o["ended_ms"]), int(o["result"]), float(o["gross_r"]), float(o["cost_share"]), float(o["score"]), float(o["confidence"]),
                 o["features"].tobytes()) for o in outcomes]  # fmt: skip
        try:
            self._journal.outcomes(rows)
        except Degraded as error:
            self._unwritten += len(rows)
            warn(f"{self._unwritten} outcomes are not written: {error}")


def tell_errors(block: Block) -> Callable[[Topic, Handler, Exception], None]:
    """The bus's ``on_error``: a handler's error is logged and counted, and shown in the heartbeat."""

    def on_error(topic: Topic, handler: Handler, error: Exception) -> None:
        block.add("handler_errors")
        failure(f"a handler of {topic} failed ({getattr(handler, '__qualname__', handler)})", error)

    return on_error


def obey(commands: dict[str, Callable[[], None]], message: tuple[str, Any]) -> None:
    """Carry out one message of the Orchestrator's pipe."""
    word, _ = message
    command = commands.get(word)
    if command is None:
        warn(f"unknown command {word!r}")
    else:
        command()
