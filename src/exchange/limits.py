"""Rate limits in wall time: request weight an address, orders an account, and requests an address where they have no weight. Over the limit:
429, and 418 for who goes on.

Windows of weight and of requests are aligned to the minute of the exchange's own wall time, which at speed 1 is the venue's clock; windows
of orders slide, or are aligned too, by a switch.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from src.exchange.errors import BANNED_TEXT, ApiError
from src.exchange.options import Limits, Switches

MINUTE_MS = 60_000
TEN_SECONDS_MS = 10_000
FIVE_MINUTES_MS = 300_000
STRIKES_TO_BAN = 20
BAN_FIRST_MS = 120_000
BAN_MAX_MS = 3 * 86_400_000


class Pool(Enum):
    """Requests without weight that are counted together."""

    FUNDING = 0
    STATISTICS = 1


class Window:
    """A counter that starts again with each window."""

    __slots__ = ("_span_ms", "_window", "count")

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._window = -1
        self.count = 0

    def roll(self, wall_ms: int) -> bool:
        """True when a new window has begun."""
        window = wall_ms // self._span_ms
        if window == self._window:
            return False
        self._window, self.count = window, 0
        return True

    def add(self, count: int, wall_ms: int) -> None:
        self.count += count

    def next_ms(self, wall_ms: int) -> int:
        """How long until some of it is free again."""
        return self._span_ms - wall_ms % self._span_ms


class Sliding:
    """As :class:`Window`: what was counted within the last span."""

    __slots__ = ("_span_ms", "_taken", "count")

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._taken: deque[tuple[int, int]] = deque()
        self.count = 0

    def roll(self, wall_ms: int) -> bool:
        while self._taken and self._taken[0][0] <= wall_ms - self._span_ms:
            self.count -= self._taken.popleft()[1]
        return False

    def add(self, count: int, wall_ms: int) -> None:
        self.count += count
        self._taken.append((wall_ms, count))

    def next_ms(self, wall_ms: int) -> int:
        return self._taken[0][0] + self._span_ms - wall_ms if self._taken else self._span_ms


class Limiter:
    """Counts for one address (the loopback) and for every account."""

    def __init__(self, limits: Limits, switches: Switches, accounts: int) -> None:
        self._limits = limits
        self._status = switches.order_limit_status
        self._retry_after = switches.retry_after
        self._weight = Window(MINUTE_MS)
        self._pools = {Pool.FUNDING: Window(FIVE_MINUTES_MS), Pool.STATISTICS: Window(FIVE_MINUTES_MS)}
        self._pool_limits = {Pool.FUNDING: limits.funding_requests_per_5min, Pool.STATISTICS: limits.statistics_requests_per_5min}
        kind = Sliding if switches.order_windows_slide else Window
        self._orders = [(kind(TEN_SECONDS_MS), kind(MINUTE_MS)) for _ in range(accounts)]
        self._strikes = 0
        self._banned_until_wall_ms = 0
        self._ordered_until_wall_ms = 0
        self._ban_ms = BAN_FIRST_MS

    def weigh(self, weight: int, wall_ms: int, *, market_ms: int, speed: float) -> None:
        """Count a request's weight, or refuse it. The ban's end is told in market time, as every time on the wire."""
        self._enter(wall_ms, market_ms, speed)
        self._weight.count += weight
        if self._weight.count > self._limits.weight_per_minute:
            raise self._too_many(self._weight, self._limits.weight_per_minute, "minute", wall_ms, market_ms, speed)

    def draw(self, pool: Pool, wall_ms: int, *, market_ms: int, speed: float) -> None:
        """Count a request that has no weight, or refuse it."""
        self._enter(wall_ms, market_ms, speed)
        window, most = self._pools[pool], self._pool_limits[pool]
        window.roll(wall_ms)
        window.count += 1
        if window.count > most:
            raise self._too_many(window, most, "5 minutes", wall_ms, market_ms, speed)

    def _enter(self, wall_ms: int, market_ms: int, speed: float) -> None:
        """Nobody does while banned; a new minute forgives."""
        if wall_ms < self._banned_until_wall_ms:
            raise self._banned(wall_ms, market_ms, speed)
        if self._weight.roll(wall_ms):
            self._strikes = 0

    def _too_many(self, window: Window, most: int, span: str, wall_ms: int, market_ms: int, speed: float) -> ApiError:
        self._strikes += 1
        if self._strikes > STRIKES_TO_BAN:
            self._banned_until_wall_ms = wall_ms + self._ban_ms
            self._ban_ms = min(self._ban_ms * 2, BAN_MAX_MS)
            return self._banned(wall_ms, market_ms, speed)
        return ApiError(-1003, most, span, retry_after_s=self._told_s(window.next_ms(wall_ms)))

    def _banned(self, wall_ms: int, market_ms: int, speed: float) -> ApiError:
        left = self._banned_until_wall_ms - wall_ms
        told_s = self._told_s(left, ordered=wall_ms < self._ordered_until_wall_ms)
        return ApiError(-1003, msg=BANNED_TEXT.format(market_ms + int(left * speed)), status=418, retry_after_s=told_s)

    def _told_s(self, left_ms: int, *, ordered: bool = False) -> int | None:
        """Retry-After, where it is sent."""
        return left_ms // 1000 + 1 if ordered or self._retry_after else None

    def ban(self, wall_ms: int, span_ms: int) -> None:
        """A ban that nobody has earned, for tests; it is told with Retry-After."""
        self._banned_until_wall_ms = self._ordered_until_wall_ms = wall_ms + span_ms

    def pardon(self) -> None:
        self._banned_until_wall_ms = self._ordered_until_wall_ms = self._strikes = 0

    def used_weight(self, wall_ms: int) -> int:
        self._weight.roll(wall_ms)
        return self._weight.count

    def count_orders(self, account: int, wall_ms: int, ten_seconds: int = 1, minute: int = 1) -> None:
        """Count placed orders of an account, or -1015."""
        short, long = self._orders[account]
        short.roll(wall_ms)
        long.roll(wall_ms)
        for window, more, most, span in ((short, ten_seconds, self._limits.orders_per_10s, "10 SECOND"),
                                         (long, minute, self._limits.orders_per_minute, "1 MINUTE")):  # fmt: skip
            if window.count + more > most:
                raise ApiError(-1015, most, span, status=self._status, retry_after_s=self._told_s(window.next_ms(wall_ms)))
        short.add(ten_seconds, wall_ms)
        long.add(minute, wall_ms)

    def order_counts(self, account: int, wall_ms: int) -> tuple[int, int]:
        short, long = self._orders[account]
        short.roll(wall_ms)
        long.roll(wall_ms)
        return short.count, long.count

    def table(self) -> list[dict[str, object]]:
        """rateLimits as exchangeInfo lists them."""
        return [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": self._limits.weight_per_minute},
            *self.order_table(),
        ]

    def order_table(self) -> list[dict[str, object]]:
        return [
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": self._limits.orders_per_minute},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": self._limits.orders_per_10s},
        ]

    def usage(self, account: int | None, wall_ms: int, orders: bool) -> list[dict[str, object]]:
        """rateLimits with counts, as WS API answers carry them."""
        rows: list[dict[str, object]] = [self.table()[0] | {"count": self.used_weight(wall_ms)}]
        if orders and account is not None:
            short, long = self.order_counts(account, wall_ms)
            rows = [row | {"count": short if row["interval"] == "SECOND" else long} for row in self.order_table()] + rows
        return rows
