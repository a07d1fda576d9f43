"""A stream that is built every so often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.exchange.streams import Channel

WALL_PACE_NS = 100_000_000


class Paced:
    """Keeps the market's pace of ``period_ms``, and the wall's of ``WALL_PACE_NS``. ``build`` publishes; ``memory`` is its own."""

    __slots__ = ("_next_ms", "_next_ns", "build", "channel", "levels", "memory", "period_ms", "route", "symbol", "update")

    def __init__(
        self, channel: Channel, route: str, period_ms: int, build: Callable[[Paced, int], None], symbol: int = -1, levels: int = 20
    ) -> None:
        self.channel = channel
        self.route = route
        self.period_ms = period_ms
        self.build = build
        self.symbol = symbol
        self.levels = levels
        self.update = 0
        self.memory: Any = None
        self._next_ms = 0
        self._next_ns = 0

    def due(self, now_ms: int, wall_ns: int) -> bool:
        """Marks keep every market second; whatever else is paced keeps the wall's pace too."""
        if now_ms < self._next_ms or (wall_ns < self._next_ns and "arkPrice" not in self.channel.name):
            return False
        self._next_ms = (now_ms // self.period_ms + 1) * self.period_ms
        self._next_ns = wall_ns + WALL_PACE_NS
        return True
