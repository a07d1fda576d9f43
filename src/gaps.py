"""Missing aggregate trades: which symbols have holes, and the one task that fetches what is in them.

A symbol falls ill when ids are missing or its socket is cut, and is well again when its last hole is filled; both are told to the ``Ward``,
which writes them into the ring. A *hole* is a run of missing ids; its end is unknown (``last`` None) after a cut, until a live trade shows
it or REST, asked after the stream is back, has nothing newer. Where no id is known yet (``first`` 0) nothing can be asked for: such a hole
ends when the stream is back, and counts as one that is not filled, so that history is read.

Invariants
  * A trade is written once: an answer's rows count only inside the hole as it is when the answer comes, live trades bound holes, and what
    REST has shown is no news when a stream that lags shows it too.
  * What the venue does not have, or gives in a form that cannot be taken, is counted as unfilled, never waited for without end. Request
    weight is the governor's business.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from src.clock import SECOND_NS, monotonic_ns
from src.conflate import HOLE_MAX, ROW_BYTES, ROWS_MAX, TRADE_ROW, Conflator, staging, trade_key
from src.error_handler import AegisError, Rejected, info, warn
from src.venue.messages import AggTrade

PAGE_ROWS = 1000
"""What the venue gives at most in one answer."""
TRIES = 5
"""So often is a hole asked for whose trades the venue does not show (its reads lag behind its streams)."""
RETRY_S = (0.25, 30.0)
RUBBISH = (ValueError, OverflowError, struct.error)
"""What a number raises that cannot be one of a trade."""


Fetch = Callable[[str, int, int], Awaitable[Sequence[AggTrade]]]
"""(symbol, from id, limit) → rows in id order. Raises AegisError."""


class Ward(Protocol):
    """Who is told, and who knows the streams."""

    conflator: Conflator

    def stream_of(self, symbol: int) -> int:
        """Since when the symbol's trades are carried without a break that we know of, as a stamp; 0 while they are not."""

    def fell_ill(self, symbol: int) -> None:
        """The symbol's first hole opened."""

    def got_well(self, symbol: int, first: int, last: int, unfilled: int) -> None:
        """Its last hole is closed. first..last were in doubt; ``unfilled`` of them could not be had."""

    def follow_up(self, status: int, now_ns: int) -> None:
        """What ``Conflator.flush`` returned."""


@dataclass(slots=True, eq=False)
class Hole:
    """Missing ids first..last; ``last`` None while the end is unknown, ``first`` 0 where the beginning is."""

    first: int
    last: int | None
    since_ns: int
    unfilled: int = 0
    pages: int = 0
    failures: int = 0
    due_ns: int = 0

    @property
    def missing(self) -> int:
        """At least so many."""
        return 0 if self.last is None else self.last - self.first + 1


@dataclass(slots=True)
class Ailment:
    """A symbol with holes from id ``start`` on. Its holes are disjoint and ascend; only the last may be open."""

    start: int
    holes: deque[Hole]
    unfilled: int = 0


class Gaps:
    """``symbols``: the table's names. ``trades_max``: trades of one hole that are fetched; the rest of a longer one stays unfilled.

    Work is in the table's order, so that the most traded symbols are well first.
    """

    def __init__(self, ward: Ward, symbols: Sequence[str], fetch: Fetch, trades_max: int) -> None:
        self._ward = ward
        self._symbols = symbols
        self._fetch = fetch
        self._pages_max = max(1, trades_max // PAGE_ROWS)
        self._ailing: dict[int, Ailment] = {}
        self._work = asyncio.Event()
        self._memory, self._staged = staging()

    def __len__(self) -> int:
        return len(self._ailing)

    def __contains__(self, symbol: int) -> bool:
        return symbol in self._ailing

    def young(self, since_ns: int) -> bool:
        """Whether a hole was found, or its stream came back, after that moment."""
        return any(hole.since_ns > since_ns for ailment in self._ailing.values() for hole in ailment.holes)

    def stream_is_back(self, symbols: Sequence[int], now_ns: int) -> None:
        """Their holes can be looked into from now on."""
        for symbol in symbols:
            for hole in self._ailing[symbol].holes if symbol in self._ailing else ():
                hole.since_ns, hole.due_ns = now_ns, 0
        self._work.set()

    def open(self, symbol: int, first: int, last: int | None, now_ns: int) -> None:
        """Ids from ``first`` on are missing (0: nobody knows from where), up to ``last``; None: nobody knows yet."""
        ailment = self._ailing.get(symbol)
        if ailment is None:
            ailment = self._ailing[symbol] = Ailment(first, deque())
            self._ward.fell_ill(symbol)
        if not ailment.holes or ailment.holes[-1].last is not None:
            ailment.holes.append(Hole(first, last, now_ns))
        self._work.set()

    def forget(self, symbol: int) -> bool:
        """Its stream ends: nobody asks for its holes any more. True: it had some."""
        return self._ailing.pop(symbol, None) is not None

    def shown(self, symbol: int, first: int, last: int, now_ns: int) -> None:
        """A live trade came. It shows that first..last are missing before it, or (``last`` < ``first``) that nothing is."""
        ailment = self._ailing.get(symbol)
        hole = ailment.holes[-1] if ailment else None
        if hole is None or hole.last is not None:
            if last >= first:
                self.open(symbol, first, last, now_ns)
            return
        self._work.set()
        if hole.first == 0:
            self._give_up(symbol, hole)
            return
        hole.last, hole.due_ns = last, 0
        if last < hole.first:
            self._close(symbol, hole)
            if last >= first:  # the venue has begun to count anew
                self.open(symbol, first, last, now_ns)

    async def run(self) -> None:
        """For ever: one page after the other."""
        while True:
            self._work.clear()
            symbol, wait_s = self._next(monotonic_ns())
            if symbol >= 0:
                await self._page(symbol, self._ailing[symbol].holes[0])
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for of 3.11 may swallow a cancel
                    await self._work.wait()

    def _next(self, now_ns: int) -> tuple[int, float | None]:
        """The symbol to work on; or -1 and for how many seconds there is nothing to do (None: until woken)."""
        due: list[int] = []
        for symbol, ailment in sorted(self._ailing.items()):
            hole = ailment.holes[0]
            if hole.last is None and not self._ward.stream_of(symbol):
                continue  # what REST says before the stream is back may be out of date when it is
            if hole.due_ns <= now_ns:
                return symbol, None
            due.append(hole.due_ns)
        return -1, (min(due) - now_ns) / SECOND_NS if due else None

    async def _page(self, symbol: int, hole: Hole) -> None:
        """Fetch one page of a hole and write it. What may come later is tried again, what never will is counted."""
        if hole.first == 0 or hole.missing > (self._pages_max - hole.pages) * PAGE_ROWS:
            self._give_up(symbol, hole)
            return
        stream, limit = self._ward.stream_of(symbol), min(PAGE_ROWS, hole.missing or PAGE_ROWS)
        rows: Sequence[AggTrade] = ()
        refusal: AegisError | None = None
        try:
            rows = await self._fetch(self._symbols[symbol], hole.first, limit)
        except AegisError as error:
            refusal = error
        ailment = self._ailing.get(symbol)
        if ailment is None or hole not in ailment.holes:
            return  # closed by a live trade meanwhile
        if refusal is not None:
            self._refused(symbol, hole, refusal)
        elif self._ward.conflator.pending > len(self._ward.conflator.table.own) // 2:
            self._later(hole)  # the ring is full: history can wait
        else:
            found = self._write(symbol, hole, rows)
            self._judge(symbol, hole, rows, not found or len(rows) < limit, stream == self._ward.stream_of(symbol))

    def _refused(self, symbol: int, hole: Hole, error: AegisError) -> None:
        if isinstance(error, Rejected):
            warn("back-fill refused", symbol=self._symbols[symbol], reason=str(error))
            self._give_up(symbol, hole)
        else:
            info("back-fill waits", symbol=self._symbols[symbol], reason=str(error))
            self._later(hole)

    def _write(self, symbol: int, hole: Hole, rows: Sequence[AggTrade]) -> bool:
        """What belongs into the hole, in id order, each id once; the hole becomes that much shorter. False: nothing does."""
        last = hole.first + HOLE_MAX if hole.last is None else hole.last
        found = {row.a: row for row in rows if hole.first <= row.a <= last}
        if not found:
            return False
        conflator, now_ns = self._ward.conflator, monotonic_ns()
        before = int(conflator.tally["trades"])
        wanted = [found[identity] for identity in sorted(found)]
        for start in range(0, len(wanted), ROWS_MAX):
            staged = self._stage(trade_key(symbol, filled=True), wanted[start:start + ROWS_MAX])
            self._ward.follow_up(conflator.flush(self._staged, staged, now_ns), now_ns)
        hole.unfilled += wanted[-1].a - hole.first + 1 - (int(conflator.tally["trades"]) - before)
        hole.first = wanted[-1].a + 1
        hole.pages, hole.failures = hole.pages + 1, 0
        if hole.last is None:
            conflator.filled_to(symbol, hole.first - 1)
        return True

    def _stage(self, key: int, rows: Sequence[AggTrade]) -> int:
        """How many of the rows can be taken, and are staged."""
        staged = 0
        for row in rows:
            with suppress(*RUBBISH):
                TRADE_ROW.pack_into(self._memory, staged * ROW_BYTES, key, row.T, float(row.p), float(row.q), row.m, row.a, row.f, row.l)
                staged += 1
        return staged

    def _judge(self, symbol: int, hole: Hole, rows: Sequence[AggTrade], last_page: bool, same_stream: bool) -> None:
        """Whether the hole is closed now. ``last_page``: the venue has no more than it gave."""
        if hole.last is None:
            if same_stream and (last_page or hole.pages >= self._pages_max):
                self._ward.conflator.caught_up(symbol, hole.first - 1)
                self._close(symbol, hole)
        elif hole.first > hole.last:
            self._close(symbol, hole)
        elif rows and rows[-1].a > hole.last:
            self._give_up(symbol, hole)  # newer ones are there: these never will be
        elif last_page:
            self._later(hole)
            if hole.failures >= TRIES:
                self._give_up(symbol, hole)

    def _later(self, hole: Hole) -> None:
        hole.due_ns = monotonic_ns() + int(min(RETRY_S[1], RETRY_S[0] * 2.0 ** min(hole.failures, 16)) * SECOND_NS)
        hole.failures += 1

    def _give_up(self, symbol: int, hole: Hole) -> None:
        """The venue will not give the rest, at least one trade. An open hole ends where we are: the next live trade shows what is missing."""
        hole.unfilled += max(1, hole.missing)
        if hole.last is None:
            self._ward.conflator.caught_up(symbol, hole.first - 1)
        self._close(symbol, hole)

    def _close(self, symbol: int, hole: Hole) -> None:
        """This hole is done with; with the last one the symbol is well again."""
        ailment = self._ailing[symbol]
        ailment.holes.remove(hole)
        ailment.unfilled += hole.unfilled
        if not ailment.holes:
            del self._ailing[symbol]
            last = hole.last if hole.last is not None else max(0, hole.first - 1)
            self._ward.got_well(symbol, ailment.start, last, ailment.unfilled)
