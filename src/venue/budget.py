"""One request budget for all processes: each shows what it has used in the counters, and each counts what the others show.

The venue counts weight by IP address. A window is a minute of ``Clock.unscaled_ms``, the venue's clock at speed 1.
"""

from __future__ import annotations

from src.clock import Clock
from src.counters import Block, Counters
from src.venue.governor import Governor

MINUTE_MS = 60_000


def shared_governor(clock: Clock, counters: Counters, block: Block) -> Governor:
    """A governor that leaves room for what the other processes have used in this minute."""

    def others() -> int:
        minute = clock.unscaled_ms() // MINUTE_MS
        own = block.get("weight_used") if block.get("weight_minute") == minute else 0
        return max(0, counters.weight_used(minute) - int(own))

    return Governor(clock.unscaled_ms, others=others)


def show_use(governor: Governor, clock: Clock, block: Block) -> None:
    """Write this process's use into its counters; after requests, or once a second."""
    block.set("weight_minute", clock.unscaled_ms() // MINUTE_MS)
    block.set("weight_used", governor.own_1m)
    blocked_ms = int(governor.blocked_s() * 1000)
    block.set("banned_until_ms", clock.unscaled_ms() + blocked_ms if blocked_ms else 0)
