"""The only reader of time and the only source of chance.

*Market time* (candles, funding, cooldown, cadences) = ``t0 + speed * (CLOCK_MONOTONIC - m0)``. CLOCK_MONOTONIC is one for the whole
machine, so processes that were handed the same three numbers agree to the nanosecond. *Wall time* (network timeouts, back-off, pings,
liveness, latencies, the naked bound) is CLOCK_MONOTONIC itself and is never scaled.

Nobody else imports ``time``, ``random`` or ``secrets``, or asks ``datetime`` for now.
"""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime

MS = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND_NS = 1_000_000_000
SPEED_MAX = 60.0
"""Faster than this, signed requests miss the venue's recvWindow on a busy machine."""


def monotonic_ns() -> int:
    """Wall time for measuring: nanoseconds of CLOCK_MONOTONIC, the same in every process of this machine."""
    return time.monotonic_ns()


def epoch_ms() -> int:
    """Milliseconds since 1970 by the machine's own clock. Only for choosing t0 and for stamping log lines and files."""
    return time.time_ns() // MS


@dataclass(frozen=True, slots=True)
class Clock:
    """Market time. Handed by value to every process; two clocks with equal fields show equal times.

    ``t0_ms``: market time at ``m0_ns`` (milliseconds since 1970). ``m0_ns``: CLOCK_MONOTONIC at that moment. ``speed``: market seconds
    in a wall second, at most 60, and 1 outside ``sim``.
    """

    t0_ms: int
    m0_ns: int
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.speed <= SPEED_MAX:
            raise ValueError(f"speed is {self.speed}, and must be above 0 and at most {SPEED_MAX:g}")

    def market_ms(self) -> int:
        return self.market_ms_at(time.monotonic_ns())

    def market_ms_at(self, monotonic: int) -> int:
        """Market time at a moment of CLOCK_MONOTONIC (nanoseconds)."""
        return self.t0_ms + int(self.speed * (monotonic - self.m0_ns)) // MS

    def unscaled_ms(self) -> int:
        """Wall time on the run's calendar: ``t0`` at ``m0``, never faster than the wall. Request limits of the local exchange run by it."""
        return self.t0_ms + (time.monotonic_ns() - self.m0_ns) // MS

    def wall_s(self, market_ms: float) -> float:
        """How many wall seconds a span of market time takes."""
        return market_ms / 1000.0 / self.speed

    def wall_s_until(self, market_ms: float) -> float:
        """Wall seconds from now until that market time; never negative."""
        return max(0.0, self.wall_s(market_ms - self.market_ms()))


def real_clock() -> Clock:
    """Market time is the machine's time: every mode but ``sim``."""
    return Clock(epoch_ms(), time.monotonic_ns(), 1.0)


def clock_at(t0_ms: int, speed: float) -> Clock:
    """A clock that shows ``t0_ms`` now and runs at ``speed``."""
    return Clock(t0_ms, time.monotonic_ns(), speed)


def iso(ms: float) -> str:
    """``2026-11-20T03:42:00.123Z`` for milliseconds since 1970."""
    return datetime.fromtimestamp(ms / 1000.0, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(ms) % 1000:03d}Z"


def parse_utc(text: str) -> int:
    """Milliseconds since 1970 of ``2025-05-05`` or ``2025-05-05T14:30``, in UTC unless it names an offset. ValueError: anything else."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def utc_day(ms: float) -> int:
    """Whole days since 1970 in UTC."""
    return int(ms // 86_400_000)


def seeded(seed: int | str) -> random.Random:
    """Chance that repeats: the same seed gives the same numbers."""
    return random.Random(seed)


def unseeded() -> random.Random:
    """Chance that does not repeat, for jitter."""
    return random.Random(secrets.randbits(64))


def token(nbytes: int = 16) -> str:
    """An unguessable hexadecimal string, for keys and ids."""
    return secrets.token_hex(nbytes)
