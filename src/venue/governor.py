"""Request weight and order counts: how much may be sent, by whom first, and when again.

The venue counts weight per address in fixed minutes of its own clock, and orders per account in ten seconds and a minute; whether these
windows slide nobody says, so ours do.
Invariants:

* what protects a position comes before what trades, and that before data: each may fill the minute only up to its own ceiling;
* the venue's word (``x-mbx-used-weight-1m``, 429, 418) outranks our count; nothing at all is sent while a ban (418) lasts, and after a 429
  only what protects and weighs nothing, which is the placing of stops and exits;
* the waiting queue is bounded: the least important waits first in line to be refused, with ``Retryable``;
* a request is counted when it is let through, whether or not an answer comes; of one that is not, the error says ``held_back``: the venue
  has not been asked.

Time is whatever ``window_ms`` shows, running at ``speed``: the venue's minutes. The local exchange counts in minutes of wall time from t0
(``Clock.unscaled_ms``), which is the same as market time wherever that is not accelerated. Waiting is wall time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from src.error_handler import AegisError, Retryable
from src.venue.errors import TOO_MANY_ORDERS, code_of

MINUTE_MS = 60_000
TEN_SECONDS_MS = 10_000
ORDERS_PAUSE_MS = 5_000
"""After -1015, of which nobody says when it ends: half a window."""
WAITING_MAX = 256


class Priority(IntEnum):
    """Who goes first, and which part of the minute's limit each may fill."""

    PROTECT = 0
    """Stops, exits, cancels, and the look-ups that settle them."""
    TRADE = 1
    """Entries and reconciliation."""
    DATA = 2
    """Candles, back-fill, universe, reports."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From ``exchangeInfo``; the defaults are production's."""

    weight_1m: int = 2400
    orders_10s: int = 300
    orders_1m: int = 1200


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to send one request; hand it back with the answer's headers."""

    weight: int
    minute: int


class Window:
    """A count in the current fixed window of ``span_ms``."""

    __slots__ = ("_index", "_span_ms", "count")

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._index = -1
        self.count = 0

    def roll(self, now_ms: int) -> bool:
        """Start a new window where one has begun. True if so."""
        index = now_ms // self._span_ms
        if index == self._index:
            return False
        self._index, self.count = index, 0
        return True


class Sliding:
    """What was counted within the last ``span_ms``: enough wherever the venue's own windows begin, and if they slide."""

    __slots__ = ("_span_ms", "_taken", "count")

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._taken: deque[tuple[int, int]] = deque()
        self.count = 0

    def roll(self, now_ms: int) -> None:
        """Forget what is too old."""
        while self._taken and self._taken[0][0] <= now_ms - self._span_ms:
            self.count -= self._taken.popleft()[1]

    def add(self, count: int, now_ms: int) -> None:
        self._taken.append((now_ms, count))
        self.count += count


@dataclass(slots=True)
class WeightBudget:
    """Pure: the weight of the current minute. ``others``: what the other processes of this machine have taken in it."""

    limit: int
    share: float
    data_part: float
    others: Callable[[], int]
    own: Window = field(default_factory=lambda: Window(MINUTE_MS))
    seen: int = 0
    pending: int = 0

    def used(self, now_ms: int) -> int:
        """The larger of our own count and the venue's figure plus what it has not answered yet."""
        if self.own.roll(now_ms):
            self.seen = self.pending = 0
        return max(self.own.count + self.others(), self.seen + self.pending)

    def ceiling(self, priority: Priority) -> int:
        if priority is Priority.PROTECT:
            return self.limit
        return int(self.limit * self.share * (self.data_part if priority is Priority.DATA else 1.0))

    def fits(self, weight: int, priority: Priority, now_ms: int) -> bool:
        """A request heavier than its whole ceiling fits into an unused minute only."""
        used = self.used(now_ms)
        return used + weight <= self.ceiling(priority) or (used == 0 and weight <= self.limit)

    def take(self, weight: int, now_ms: int) -> Ticket:
        self.used(now_ms)
        self.own.count += weight
        self.pending += weight
        return Ticket(weight, now_ms // MINUTE_MS)

    def answered(self, ticket: Ticket, used: int, now_ms: int) -> None:
        """``used``: the venue's figure, 0 where it gave none. A figure of a minute that is over says nothing."""
        self.used(now_ms)
        if ticket.minute == now_ms // MINUTE_MS:
            self.pending = max(0, self.pending - ticket.weight)
            self.seen = max(self.seen, used)


class Governor:
    """Async shell around the budget; one per process. ``share``: the part of the venue's limit that we ever use."""

    def __init__(self, window_ms: Callable[[], int], *, speed: float = 1.0, limits: Limits | None = None, share: float = 0.8,
                 data_part: float = 0.7, others: Callable[[], int] = lambda: 0) -> None:
        self._window_ms = window_ms
        self._speed = speed
        self._share = share
        self._limits = limits or Limits()
        self._budget = WeightBudget(self._limits.weight_1m, share, data_part, others)
        self._orders = (Sliding(TEN_SECONDS_MS), Sliding(MINUTE_MS))
        self._full_until_ms = 0
        self._paused_until_ms = 0
        self._banned_until_ms = 0
        self._waiting: list[tuple[int, int, int, asyncio.Future[Ticket]]] = []
        self._order_of_arrival = 0
        self._timer: asyncio.TimerHandle | None = None
        self.refused = 0
        self.bans = 0

    def set_limits(self, limits: Limits) -> None:
        self._limits = limits
        self._budget.limit = limits.weight_1m

    # -- weight ----------------------------------------------------------------------------------------------------------------------

    def take_now(self, weight: int, priority: Priority = Priority.TRADE) -> Ticket | None:
        """Leave to send at once, or None where it would have to wait."""
        self._drop_finished()
        if weight and self._waiting and self._waiting[0][0] <= priority:
            return None
        now_ms = self._window_ms()
        return self._budget.take(weight, now_ms) if self._open(weight, priority, now_ms) else None

    async def acquire(self, weight: int, priority: Priority = Priority.DATA, *, wait_s_max: float = 90.0) -> Ticket:
        """Wait for leave to send. Raises Retryable (with ``retry_after_s``) where it would take longer than ``wait_s_max`` wall seconds,
        or where the queue is full of more important requests."""
        if (ticket := self.take_now(weight, priority)) is not None:
            return ticket
        if (wait_s := self._wait_s()) > wait_s_max:
            self.refused += 1
            raise Retryable(f"the venue takes no requests for another {wait_s:.0f} s", retry_after_s=wait_s, held_back=True)
        future = self._enqueue(weight, priority)
        try:
            async with asyncio.timeout(wait_s_max):
                return await future
        except TimeoutError:
            self.refused += 1
            raise Retryable(f"no request weight left within {wait_s_max:g} s", retry_after_s=self._wait_s(), held_back=True) from None

    def answered(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """The answer to a request: learn the venue's own figures from it."""
        now_ms = self._window_ms()
        self._budget.answered(ticket, _number(headers.get("x-mbx-used-weight-1m")), now_ms)
        self._learn_orders(_number(headers.get("x-mbx-order-count-10s")), _number(headers.get("x-mbx-order-count-1m")), now_ms)

    def learn(self, kind: str, interval: str, interval_num: int, count: int) -> None:
        """One row of ``rateLimits`` in an answer of the WebSocket API."""
        now_ms = self._window_ms()
        if kind == "ORDERS":
            is_10s = interval == "SECOND" and interval_num == 10
            self._learn_orders(count if is_10s else 0, count if interval == "MINUTE" else 0, now_ms)
        elif kind == "REQUEST_WEIGHT" and interval == "MINUTE":
            self._budget.used(now_ms)
            self._budget.seen = max(self._budget.seen, count)

    def throttled(self, error: AegisError) -> None:
        """The venue said 429 or 418: nothing goes out before the time it named, or before the next window."""
        now_ms = self._window_ms()
        if code_of(error) == TOO_MANY_ORDERS:
            self._full_until_ms = now_ms + ORDERS_PAUSE_MS
            return
        until = error.fields.get("banned_until_ms", (now_ms // MINUTE_MS + 1) * MINUTE_MS)
        if (after_s := error.fields.get("retry_after_s")) is not None:
            until = now_ms + int(after_s * 1000 * self._speed)
        self._paused_until_ms = max(self._paused_until_ms, int(until))
        if error.fields.get("status") == 418:
            self._banned_until_ms = max(self._banned_until_ms, int(until))
        self.bans += 1

    @property
    def own_1m(self) -> int:
        """Weight taken by this process in the current minute, for the other processes to read."""
        self._budget.used(self._window_ms())
        return self._budget.own.count

    def blocked_s(self) -> float:
        """Wall seconds until a pause (429) or ban (418) ends; 0 without one."""
        return max(0.0, (self._paused_until_ms - self._window_ms()) / 1000.0 / self._speed)

    @property
    def only_protection(self) -> bool:
        """Whether nothing is let through for now but what protects and weighs nothing."""
        now_ms = self._window_ms()
        return self._open(0, Priority.PROTECT, now_ms) and not self._open(1, Priority.PROTECT, now_ms)

    # -- orders ----------------------------------------------------------------------------------------------------------------------

    def try_order(self, *, reducing: bool, count: int = 1) -> bool:
        """Count ``count`` placements if the windows have room. Entries use our share only, so that what reduces always has some left."""
        now_ms = self._window_ms()
        if now_ms < self._full_until_ms:
            return False
        part = 1.0 if reducing else self._share
        for window, limit in zip(self._orders, (self._limits.orders_10s, self._limits.orders_1m), strict=True):
            window.roll(now_ms)
            if window.count + count > limit * part:
                return False
        for window in self._orders:
            window.add(count, now_ms)
        return True

    def _learn_orders(self, count_10s: int, count_1m: int, now_ms: int) -> None:
        for window, count in zip(self._orders, (count_10s, count_1m), strict=True):
            window.roll(now_ms)
            if count > window.count:  # by another program, or by us before a restart
                window.add(count - window.count, now_ms)

    # -- waiting ---------------------------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int | float]:
        now_ms = self._window_ms()
        return {"used_1m": self._budget.used(now_ms), "own_1m": self._budget.own.count, "limit_1m": self._limits.weight_1m,
                "waiting": len(self._waiting), "refused": self.refused, "bans": self.bans, "blocked_s": self.blocked_s()}

    def _open(self, weight: int, priority: Priority, now_ms: int) -> bool:
        if weight == 0 and priority is Priority.PROTECT:
            return now_ms >= self._banned_until_ms
        return now_ms >= self._paused_until_ms and self._budget.fits(weight, priority, now_ms)

    def _wait_s(self) -> float:
        now_ms = self._window_ms()
        until_ms = max(self._paused_until_ms, (now_ms // MINUTE_MS + 1) * MINUTE_MS)
        return (until_ms - now_ms) / 1000.0 / self._speed

    def _enqueue(self, weight: int, priority: Priority) -> asyncio.Future[Ticket]:
        if len(self._waiting) >= WAITING_MAX:
            self._refuse_least(priority)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ticket] = loop.create_future()
        self._order_of_arrival += 1
        heapq.heappush(self._waiting, (priority, self._order_of_arrival, weight, future))
        self._arm(loop)
        return future

    def _refuse_least(self, priority: Priority) -> None:
        """Make room for a more important request, or refuse the new one."""
        least = max(self._waiting)
        self.refused += 1
        error = Retryable(f"{WAITING_MAX} requests are waiting already", retry_after_s=self._wait_s(), held_back=True)
        if least[0] <= priority:
            raise error
        self._waiting.remove(least)
        heapq.heapify(self._waiting)
        if not least[3].done():
            least[3].set_exception(error)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._wait_s() + 0.01, self._let_through, loop)

    def _drop_finished(self) -> None:
        while self._waiting and self._waiting[0][3].done():
            heapq.heappop(self._waiting)

    def _let_through(self, loop: asyncio.AbstractEventLoop) -> None:
        """Grant in order of importance, then of arrival, as far as the new window goes."""
        self._timer = None
        now_ms = self._window_ms()
        self._drop_finished()
        while self._waiting:
            priority, _, weight, future = self._waiting[0]
            if not self._open(weight, Priority(priority), now_ms):
                self._arm(loop)
                return
            heapq.heappop(self._waiting)
            future.set_result(self._budget.take(weight, now_ms))
            self._drop_finished()


def _number(text: str | None) -> int:
    """A header's figure; 0 where it is missing, not a number, or negative (the demo venue sends −1)."""
    return int(text) if text and text.isdigit() else 0
