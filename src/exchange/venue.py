"""The shell around the core: it has the clock, hands requests to the core after their latency, and carries what comes out to books,
waiting requests and streams, in this order: nothing is told before it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from src.clock import MS, Clock, monotonic_ns
from src.error_handler import Fatal, lifecycle
from src.exchange.auth import Keyring
from src.exchange.candles import Days
from src.exchange.core import NEVER, Core
from src.exchange.digits import Wording
from src.exchange.faults import Faults
from src.exchange.limits import Limiter
from src.exchange.listen_keys import ListenKeys
from src.exchange.options import ExchangeOptions
from src.exchange.shown import ShownBooks
from src.exchange.state import Changes, UserEvent

TICK_S = 0.006


class Shut(NamedTuple):
    """What every door answers while the venue is closed to all."""

    status: int
    body: bytes
    content_type: str


class Audience(Protocol):
    """Who hears of market and users."""

    def market(self, trades: NDArray[np.void]) -> None: ...

    def users(self, events: list[UserEvent]) -> None: ...

    def flush(self) -> None: ...


class Writer(Protocol):
    """Who keeps the books."""

    def write(self, changes: Changes) -> None: ...

    def beat(self) -> None: ...


class Venue:
    """One running exchange. ``listen`` is given the streams before :meth:`start`."""

    def __init__(self, options: ExchangeOptions, core: Core, clock: Clock, books: Writer | None) -> None:
        self.options = options
        self.core = core
        self.state = core.state
        self.clock = clock
        self.words = Wording(core.market.symbols)
        self.days = Days(core.market)
        self.shown = ShownBooks(core.state.quotes)
        self.keyring = Keyring(options.accounts)
        self.limiter = Limiter(options.limits, options.switches, len(options.accounts))
        shared = options.switches.ws_api_weight_shared
        self.ws_limiter = self.limiter if shared else Limiter(options.limits, options.switches, len(options.accounts))
        self.listen_keys = ListenKeys(options.limits.listen_key_life_s)
        self.latency_ms = options.latency_ms
        self.faults = Faults(options.switches.timeout_status)
        self.shut: Shut | None = None
        self.skew_ms = 0
        self._books = books
        self._audience: Audience | None = None
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._ended = False
        self.failed: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def listen(self, audience: Audience) -> None:
        self._audience = audience

    # ------------------------------------------------------------------ time

    def now_ms(self) -> int:
        return self.clock.market_ms()

    def told_ms(self) -> int:
        """What the venue says it is: the clock that requests are judged by."""
        return self.clock.market_ms() + self.skew_ms

    def lag_ms(self, door: str) -> int:
        """How far behind the present this door reads; market time."""
        return int(1000 * self.faults.lag_s(door) * self.clock.speed) if self.faults else 0

    def wall_ms(self) -> int:
        """Milliseconds that run in real seconds and start at the market's t0: what rate limits are counted in."""
        return self.clock.t0_ms + (monotonic_ns() - self.clock.m0_ns) // MS

    def start(self) -> None:
        self._arm(0.0)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future in self._futures.values():
            future.cancel()

    def _arm(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = loop.time() + delay_s
        self._timer = loop.call_at(self._wakes_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.step()
        except Exception as error:  # the end of the exchange's one chore: the server stops on it
            self.failed = error
            self.on_failure()
            return
        due = self.core.next_due_ms
        self._arm(min(TICK_S, self.clock.wall_s_until(due)) if due != NEVER else TICK_S)

    # ------------------------------------------------------------------ work

    def step(self) -> None:
        """Bring the core to the present and carry out what comes of it."""
        outcome = self.core.advance(max(self.now_ms(), self.core.now_ms))
        self._keep()
        if self._audience is not None:
            if outcome.events:
                self._audience.users(outcome.events)
            self._audience.market(outcome.trades)
            self._audience.flush()
        for answer in outcome.answers:
            future = self._futures.pop(answer.ticket, None)
            if future is not None and not future.done():
                if answer.refusal is not None:
                    future.set_exception(answer.refusal)
                else:
                    future.set_result(answer.value)
        end_ms = self.core.market.end_ms
        if end_ms is not None and not self._ended and self.core.now_ms >= end_ms:
            self._ended = True
            lifecycle("the recorded market has ended: no more trades, everything else goes on", market_ms=end_ms)

    async def at_book(self, call: Callable[[], Any]) -> Any:
        """Run a call when a request sent now reaches the book; its value, or its refusal."""
        due = self.now_ms() + self.latency_ms
        ticket = self.core.schedule(due, call)
        future = asyncio.get_running_loop().create_future()
        self._futures[ticket] = future
        wait_s = self.clock.wall_s_until(due)
        if asyncio.get_running_loop().time() + wait_s < self._wakes_at:
            self._arm(wait_s)
        return await future

    def at_once(self, call: Callable[[], Any]) -> Any:
        """Run a call that changes an account now, with its events told at once."""
        self.step()
        value = call()
        self._keep()
        events, _ = self.core.take_output()
        if events and self._audience is not None:
            self._audience.users(events)
            self._audience.flush()
        return value

    def beat(self) -> None:
        """Once a second of wall time: the books keep the time."""
        if self._books is not None and self.failed is None:
            try:
                self._books.beat()
            except Fatal as error:
                self.failed = error
                self.on_failure()

    def _keep(self) -> None:
        changes = self.state.changes
        if changes:
            if self._books is not None:
                self._books.write(changes)
            changes.clear()
