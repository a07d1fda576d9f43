"""The audit: candles that the Brain has built, held against the venue's own klines of the same time, symbol after symbol.

A candle that differs is counted by what is known to be wrong with it, and its symbol is read again from the venue. No decision that was
taken on it changes. One request every ``EVERY_S``, so that 300 symbols take a quarter of an hour and 20 of 2,400 request weight a minute.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count

import numpy as np
import numpy.typing as npt

from src.bars import GAPPED, LATE, PARTIAL, SEEDED, STRANGE
from src.clock import Clock
from src.counters import Block
from src.error_handler import AegisError, Fatal, info, warn
from src.indicators import OPEN_MS, Floats
from src.market_state import MarketState

EVERY_S = 3.0
SETTLED = 2
"""A candle is looked at once so many more have closed: the venue's history lags."""
KLINES_MAX = 500
CAUSES = {"gapped": GAPPED, "late": LATE, "partial": PARTIAL, "strange": STRANGE}
"""The first that applies is the cause. ``strange``: trades that no aggregate holds are in the venue's klines and not in our candles."""
Fetch = Callable[[str, int, int], Awaitable[Floats]]
"""(symbol, from this open time, so many) → klines as ``MarketState.seed`` takes them. Raises AegisError."""


def compare(own: Floats, flaws: npt.NDArray[np.uint8], venue: Floats) -> Counter[str]:
    """How many candles are ``equal``, ``absent`` at the venue, or differ, by cause: a name of CAUSES, or ``unexplained``.

    Rows of both: open_ms, open, high, low, close, volume, trades, taker volume; volumes in steps, so that equal is equal to the last digit.
    """
    theirs = {int(row[OPEN_MS]): row for row in venue}
    found: Counter[str] = Counter()
    for row, flaw in zip(own, flaws.tolist(), strict=True):
        other = theirs.get(int(row[OPEN_MS]))
        found["absent" if other is None else "equal" if np.array_equal(row, other) else _cause(flaw)] += 1
    return found


def _cause(flaw: int) -> str:
    return next((name for name, bit in CAUSES.items() if flaw & bit), "unexplained")


class Auditor:
    """``block``: counts what was found, as ``audit_equal`` and so on."""

    def __init__(self, market: MarketState, fetch: Fetch, clock: Clock, block: Block) -> None:
        self._market = market
        self._fetch = fetch
        self._clock = clock
        self._block = block
        self._looked_at: dict[int, float] = {}
        """Open time of the newest candle that was looked at, by symbol."""

    async def run(self) -> None:
        """For ever. What the venue does not answer is looked at in the next round."""
        for turn in count():
            await asyncio.sleep(EVERY_S)
            i = turn % len(self._market.symbols)
            try:
                await self.audit(i)
            except Fatal:
                raise
            except AegisError as error:
                info(f"candles of {self._market.symbols[i]} are not audited now: {error}")

    async def audit(self, i: int) -> Counter[str]:
        """Look at what this symbol has closed since the last time, seeded candles left out: those are the venue's own."""
        own, flaws = self._settled(i)
        if not len(own):
            return Counter()
        symbol, base_ms = self._market.symbols[i], self._market.intervals[0]
        first, last = int(own[0, OPEN_MS]), int(own[-1, OPEN_MS])
        venue = self._market.in_steps(i, await self._fetch(symbol, first, (last - first) // base_ms + 1))
        found = compare(own, flaws, venue)
        self._looked_at[i] = last
        for name, number in found.items():
            self._block.add(f"audit_{name}", number)
        if differing := {name: n for name, n in found.items() if name not in ("equal", "absent", "strange")}:
            self._market.doubt(i)
            say = info if set(differing) == {"partial"} else warn  # every start has one of those
            say(f"{sum(differing.values())} candles of {symbol} differ from the venue's, and are read again", **differing)
        return found

    def _settled(self, i: int) -> tuple[Floats, npt.NDArray[np.uint8]]:
        base_ms = self._market.intervals[0]
        own, flaws = self._market.candles(i, base_ms), self._market.flaws(i)
        until_ms = self._clock.market_ms() - (1 + SETTLED) * base_ms
        wanted = (own[:, OPEN_MS] > self._looked_at.get(i, 0)) & (own[:, OPEN_MS] <= until_ms) & (flaws & SEEDED == 0)
        places = np.flatnonzero(wanted)
        places = places[own[places, OPEN_MS] < own[places[:1], OPEN_MS].sum() + KLINES_MAX * base_ms]
        return own[places], flaws[places]
