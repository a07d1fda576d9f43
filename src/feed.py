"""The Feed: the venue's market streams into the ring, and nothing else. It decides nothing about trading.

Streams are spread over sockets by route: ``/market`` carries aggregate trades and mark prices, ``/public`` best quotes. Symbols may begin
and end while it runs; each has a place in the table that is never another's.

Invariants
  * No trade is lost unseen: missing ids become GAP, are fetched by REST, written flagged in id order, and then HEALED. When a symbol's
    socket is cut, the symbol is in a gap whose end is unknown (``last_id`` 0) until a trade or REST shows what was missed. So is a symbol that
    begins while the Feed runs, until its stream is asked for: what it traded before is in history alone.
  * TIME(t) is written only while each market socket is live and after each has shown an event at or after t, the grace has passed, and no
    gap is younger than ``gap_hold_s``. It speaks for the symbols that are not in a gap: a gap that lasts does not stop the others.
  * Rubbish is counted by kind and never stops the Feed. Venue times are bounded by the clock, so no frame drags TIME into the future. Where
    trades are beyond that, the venue's clock is asked for, since a machine that slept is behind for good.
  * Market time serves for the grace and for bounds; back-off, mute and deadlines are wall time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from src.clock import SECOND_NS, Clock, monotonic_ns
from src.conflate import (
    BACKLOG,
    HOLES,
    MINUTE_MS,
    RECORDS_DEFAULT,
    SECOND_MS,
    Conflator,
    Staged,
    mark_key,
    quote_key,
    trade_key,
)
from src.counters import READY, Block, Counters
from src.error_handler import AegisError, Throttle, warn
from src.gaps import Fetch, Gaps
from src.kernel_cache import Progress, silently
from src.links import Route
from src.market_universe import Standing, standing
from src.models import SymbolRules
from src.ring_buffer import Ring
from src.silence import Probe, Silence
from src.sockets import MARKS, MakeLink, Patience, Shard, SocketEvent, SocketState, Streams, make_link
from src.venue.answers import Book, Price
from src.venue.budget import shared_governor, show_use
from src.venue.messages import AggTrade, ContractInfo
from src.venue.queries import agg_trades, books, prices
from src.venue.rest import Rest
from src.wire import compile_reading

GRACE_WALL_S_MIN = 0.020
SETTLE_S = 0.005
"""A market socket that was quiet for this long has nothing unread."""
DRAIN_EVERY_S = 0.002
TICK_S = 1.0
SKEW_MS = 60_000
"""How far, in market time, a venue time may be ahead of our clock."""
TIME_SLOTS_MAX = 120
"""After a long silence: minutes that get a TIME of their own."""
LOG_EVERY_S = 60.0
BAD_VALUES = ("KeyError", "ValueError", "OverflowError", "error")
"""Errors that mean an impossible number or an unknown symbol in a frame of the right shape (``error`` is struct's)."""


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """``market_url``, ``public_url``: routed stream bases, without ``/stream``. ``symbols``: the table; a symbol's index is its place.
    ``spare``: places for symbols that begin later.

    ``candle_ms``: the reader's candles, which no merging blurs. ``close_grace_ms``: market time, and never less than 20 ms of wall time.
    ``gap_hold_s``: wall time. ``backfill_max``: trades of one hole that are fetched. ``records``: size of the table that holds what the ring
    has no room for (a power of two). ``make_link``, ``make_conflator``: what links and table are made by; a recorder puts its own there.
    """

    market_url: str
    public_url: str
    rest_url: str
    clock: Clock
    symbols: tuple[SymbolRules, ...]
    spare: int = 0
    close_grace_ms: int = 250
    candle_ms: int = MINUTE_MS
    streams_per_socket: int = 200
    gap_hold_s: float = 10.0
    backfill_max: int = 10_000
    patience: Patience = Patience()
    records: int = RECORDS_DEFAULT
    make_link: MakeLink = make_link
    make_conflator: Callable[[Sequence[float], Ring, int, int], Conflator] = Conflator


Beside = Callable[["Feed"], Coroutine[Any, Any, None]]


class Feed:
    """All shards, the table, TIME and the counters of one process. Everything runs on one event loop."""

    def __init__(self, options: FeedOptions, ring: Ring, block: Block, fetch: Fetch, probe: Probe) -> None:
        self.options = options
        self.rules = list(options.symbols)
        self.place = {rules.symbol: index for index, rules in enumerate(self.rules)}
        self.conflator = options.make_conflator([float(rules.step) for rules in self.rules], ring, options.records, options.spare)
        self.conflator.merge_into(min(MINUTE_MS, options.candle_ms))
        self.shards = [Shard(self, streams, options.patience, options.make_link) for streams in plan(options)]
        self.market = [shard for shard in self.shards if shard.route is Route.MARKET]
        self.names = [rules.symbol for rules in self.rules]
        self.gaps = Gaps(self, self.names, fetch, options.backfill_max)
        self.kinds: Counter[str] = Counter()
        self.frames = self.reconnects = self.gaps_found = self.gaps_healed = self.unfilled = 0
        self.silence = Silence(self, options.clock, options.patience, probe, block.add)
        self._shard_of = {index: shard for shard in self.market for index in shard.members}
        self._block = block
        self._ready: Callable[[], None] | None = None
        self._owed: deque[Callable[[], bool]] = deque()
        capacity = len(self.rules) + options.spare
        self.streamed = np.arange(capacity) < len(self.rules)
        self._stands = [standing(rules) for rules in self.rules]
        self._said = [(-1, 0, True)] * len(self.rules)
        """What STATE last said of each symbol: tradable (-1: nothing), when it ends, whether it is streamed."""
        self._group: asyncio.TaskGroup | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.on_contract: Callable[[ContractInfo], None] = lambda event: None
        self.on_doubt: Callable[[], None] = lambda: None
        """Trades came that are off the grid which we know: the venue may have changed it."""
        self.measure: Callable[[], Awaitable[int]] | None = None
        """Venue time − market time, in ms. Raises AegisError."""
        self._off_grid = self._ahead = self._behind_ms = 0
        self._measuring = Throttle(LOG_EVERY_S)
        self._market_rows = self._second = self._due_ms = self._written_ms = 0
        self._draining = self._stopped = False
        self._last_frame_ns = 0
        self._overflow_log = Throttle(LOG_EVERY_S)
        self._rubbish_log = Throttle(LOG_EVERY_S)
        speed = options.clock.speed
        self._grace_ms = max(float(options.close_grace_ms), GRACE_WALL_S_MIN * 1000.0 * speed)
        self._ahead_ms = SKEW_MS + int(2 * TICK_S * 1000.0 * speed)
        self._limit_ms = 0
        self._bound_time()

    async def run(self, on_ready: Callable[[], None], stop: asyncio.Event, beside: Beside | None = None) -> None:
        """Until ``stop`` is set. ``on_ready``: each socket is subscribed for the first time. ``beside``: makes one more task of ours. Raises
        what a task fails with."""
        self._ready = on_ready
        try:
            async with asyncio.TaskGroup() as self._group:
                chores = (self.gaps.run(), self.silence.run(), self._tick(), *([beside(self)] if beside else ()))
                for work in (*(shard.run() for shard in self.shards), *chores):
                    self.spawn(work)
                await stop.wait()
                for task in self._tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopped = True
            for shard in self.shards:
                if shard.link is not None:
                    shard.link.hang_up()
            self._count(monotonic_ns())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """One more task of the Feed, ended with it; its error is the Feed's."""
        assert self._group is not None, "tasks begin while the Feed runs"
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(self._group.create_task(work))

    # data

    def flush(self, shard: Shard, staged: Staged, rows: int, received_ns: int, event_ms: int) -> None:
        """Rows of one socket read, ``event_ms`` the event time of the last. Nothing is written once the Feed has stopped."""
        if self._stopped:
            return
        status = self.conflator.flush(staged, rows, received_ns)
        self.frames += rows
        self._last_frame_ns = received_ns
        if status:
            self.follow_up(status, received_ns)
        if shard.route is Route.MARKET:
            self._market_rows += rows
            if shard.event_ms < event_ms <= self._limit_ms:
                before, shard.event_ms = shard.event_ms, event_ms
                if before // SECOND_MS != event_ms // SECOND_MS:
                    self._new_second()

    def follow_up(self, status: int, now_ns: int) -> None:
        """What a flush left to do: report holes, come back when the ring may have room."""
        if status & HOLES:
            for symbol, first, last in self.conflator.holes():
                self.gaps.shown(symbol, first, last, now_ns)
        if status & BACKLOG:
            self._come_back(now_ns)

    def _come_back(self, now_ns: int) -> None:
        if self._overflow_log.due(now_ns):
            tally = self.conflator.tally
            warn("⚠️ RingBuffer Overflow!", pending=self.conflator.pending, ring_full=int(tally["ring_full"]),
                 conflated=int(tally["conflated"]), lost=int(tally["lost"]))
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_later(DRAIN_EVERY_S, self._drain)

    def _drain(self) -> None:
        self._draining = False
        if not self._stopped:
            self.follow_up(self.conflator.drain(), monotonic_ns())

    def bad(self, error: Exception, size: int) -> None:
        """Rubbish, counted by kind: what is not JSON or not of the venue's shape is a bad frame, the rest (BAD_VALUES) a bad value."""
        self.kinds[type(error).__name__] += 1
        if self._rubbish_log.due(monotonic_ns()):
            warn("rubbish in a market stream", error=str(error)[:200], bytes=size, seen=dict(self.kinds))

    # time

    def _new_second(self) -> None:
        """Once every market socket has shown an event of a new second, what came before is complete after the grace."""
        second = min(shard.event_ms for shard in self.market) // SECOND_MS * SECOND_MS
        if second > self._second:
            self._second = second
            asyncio.get_running_loop().call_later(self.options.clock.wall_s(self._grace_ms), self._time_due, second, -1)

    def _time_due(self, second: int, rows_then: int) -> None:
        """The grace is over. If frames may still be unread (we lag), wait until the streams themselves are past it, or quiet."""
        if rows_then == self._market_rows or min(shard.event_ms for shard in self.market) >= second + self._grace_ms:
            self._due_ms = max(self._due_ms, second)
            self._write_time()
        else:
            asyncio.get_running_loop().call_later(SETTLE_S, self._time_due, second, self._market_rows)

    def _write_time(self) -> None:
        """TIME for what is due, unless we know too little; the minutes on the way get one each."""
        now_ns = monotonic_ns()
        if self._stopped or self._due_ms <= self._written_ms or self._owed or not all(shard.flowing for shard in self.market):
            return
        if self.gaps.young(now_ns - int(self.options.gap_hold_s * SECOND_NS)):
            return
        first = max(self._written_ms, self._due_ms - TIME_SLOTS_MAX * MINUTE_MS) // MINUTE_MS * MINUTE_MS + MINUTE_MS
        minutes = range(first, self._due_ms, MINUTE_MS) if self._written_ms else ()
        for time_ms in (*minutes, self._due_ms):
            if not self.conflator.time(time_ms, now_ns):
                return
            self._written_ms = time_ms
        if self.conflator.pending:
            self._come_back(now_ns)

    def _bound_time(self) -> None:
        self._limit_ms = self.options.clock.market_ms() + self._behind_ms + self._ahead_ms
        self.conflator.set_limit(self._limit_ms)

    def contract(self, event: ContractInfo) -> None:
        """The venue tells of a contract, ours or not."""
        self.on_contract(event)

    # sockets and symbols

    def subscribed(self, shard: Shard) -> None:
        if shard.route is Route.MARKET and shard not in self.market:
            self.market.append(shard)  # from now on TIME waits for it too
        if shard.gapped:
            shard.on(SocketEvent.HOLED)
        self.gaps.stream_is_back(shard.members if shard.route is Route.MARKET else (), monotonic_ns())
        if self._ready is not None and all(other.flowing for other in self.shards):
            ready, self._ready = self._ready, None
            self._block.set("state", READY)
            ready()

    def cut(self, shard: Shard) -> None:
        """From here on nothing is known of the shard's trades. (Before the first TIME no candle has closed without one.)"""
        self.reconnects += 1
        if shard.route is not Route.MARKET:
            return
        now_ns = monotonic_ns()
        for index in shard.members:
            if self._written_ms or self.conflator.symbols[index]["last_id"]:
                self.missed(index, now_ns)

    def missed(self, index: int, now_ns: int) -> None:
        """Trades of this symbol may be missing from the last one on, or from the start."""
        last_id = int(self.conflator.symbols[index]["last_id"])
        self._owe(partial(self.conflator.doubt, index, now_ns))
        self.gaps.open(index, last_id + 1 if last_id else 0, None, now_ns)

    def stream_of(self, symbol: int) -> int:
        return self._shard_of[symbol].since_ns(symbol)

    def fell_ill(self, symbol: int) -> None:
        shard = self._shard_of[symbol]
        self.gaps_found += 1
        shard.gapped += 1
        if shard.gapped == 1 and shard.state is not SocketState.IDLE:
            shard.on(SocketEvent.HOLED)

    def got_well(self, symbol: int, first: int, last: int, unfilled: int) -> None:
        self.gaps_healed += 1
        self.unfilled += unfilled
        self._owe(partial(self.conflator.healed, symbol, first, last, unfilled, monotonic_ns()))
        self._well(self._shard_of[symbol])
        self._write_time()

    def _well(self, shard: Shard) -> None:
        shard.gapped -= 1
        if not shard.gapped:
            shard.on(SocketEvent.HEALED)

    def begin(self, index: int, rules: SymbolRules) -> None:
        """This symbol is streamed from now on: in a place of its own, or in the one that it had. Sockets that flow are not dialled anew."""
        assert not (index < len(self.rules) and self.streamed[index]), f"{rules.symbol} is streamed already"
        if index == len(self.rules):
            self.conflator.add(float(rules.step))
            self.rules.append(rules)
            self.names.append(rules.symbol)
            self._stands.append(standing(rules))
            self._said.append((-1, 0, True))
        self.conflator.begin(index)
        self.rules[index], self._stands[index], self.place[rules.symbol] = rules, standing(rules), index
        self.streamed[index] = True
        for route in Route:
            self._carry(route, index, rules.symbol)
        self.missed(index, monotonic_ns())

    def _carry(self, route: Route, index: int, symbol: str) -> None:
        """On the first socket of that route with room, or on a new one."""
        for shard in self.shards:
            if shard.route is Route.MARKET:
                shard.mark_keys[symbol] = mark_key(index)
        market = route is Route.MARKET
        roomy = [s for s in self.shards if s.route is route and s.size < self.options.streams_per_socket]
        if roomy:
            shard = roomy[0]
            shard.add(index, stream_name(route, symbol), symbol, trade_key(index) if market else quote_key(index))
        else:
            streams = streams_of(self.options, route, {symbol: index}, {symbol: mark_key(index)})
            shard = Shard(self, streams, self.options.patience, self.options.make_link)
            self.shards.append(shard)
            self.spawn(shard.run())
        if market:
            self._shard_of[index] = shard

    def end(self, index: int) -> None:
        """This symbol is not streamed any more."""
        self.streamed[index] = False
        for shard in self.shards:
            if index in shard.stream:
                shard.remove(index)
            if shard.ticks and shard.name_of(MARKS) == mark_stream(self.names[index]) and self.streamed.any():
                another = int(self.streamed.argmax())
                shard.mark_keys[self.names[another]] = mark_key(another)
                shard.tick_by(mark_stream(self.names[another]))
        if self.gaps.forget(index):
            self._well(self._shard_of[index])
        self._owe(partial(self.conflator.forget, index, monotonic_ns()))
        self._write_states(monotonic_ns())

    def standing_of(self, index: int) -> Standing:
        return self._stands[index]

    def stand(self, index: int, stands: Standing) -> None:
        """Whether the symbol may be entered, and when its contract ends."""
        if stands != self._stands[index]:
            self._stands[index] = stands
            self._write_states(monotonic_ns())

    def _owe(self, write: Callable[[], bool]) -> None:
        """Write now; without room later, in order, and before any TIME."""
        if self._owed or not write():
            self._owed.append(write)
        if self.conflator.pending:
            self._come_back(monotonic_ns())

    # once a second

    async def _tick(self) -> None:
        while True:
            self._every_second(monotonic_ns())
            await asyncio.sleep(TICK_S)

    def _every_second(self, now_ns: int) -> None:
        self._bound_time()
        while self._owed and self._owed[0]():
            self._owed.popleft()
        self.silence.tick(now_ns)
        for shard in self.shards:
            if (asked := shard.send_requests()) and shard.route is Route.MARKET:
                self.gaps.stream_is_back(asked, now_ns)
        self._suspect(now_ns)
        self._write_states(now_ns)
        self._write_time()
        self._count(now_ns)

    def _suspect(self, now_ns: int) -> None:
        """Trades that are refused again and again may be right, and we wrong: about the grid, or about the time."""
        off_grid, ahead = int(self.conflator.tally["off_grid"]), int(self.conflator.tally["ahead"])
        if off_grid > self._off_grid:
            self.on_doubt()
        if ahead > self._ahead and self.measure is not None and self._measuring.due(now_ns):
            self.spawn(self._set_right(self.measure))
        self._off_grid, self._ahead = off_grid, ahead

    async def _set_right(self, measure: Callable[[], Awaitable[int]]) -> None:
        try:
            self._behind_ms = max(0, await measure())
        except AegisError as error:
            warn(f"trades come from the future, and the venue does not say what time it is: {error}")
            return
        self._bound_time()
        if self._behind_ms > SKEW_MS:
            warn("this machine's clock is behind the venue's: set it right and start anew", seconds=self._behind_ms // 1000)

    def _write_states(self, now_ns: int) -> None:
        """STATE where it changed: tradable once both streams have shown data, neither has fallen silent, and the venue's word allows it."""
        rows = self.conflator.symbols[:len(self.rules)]
        flows = ((rows["trade_ns"] > 0) & (rows["quote_ns"] > 0)).tolist()
        silent = {index for shard in self.shards for index in shard.silent}
        for index, stands in enumerate(self._stands):
            said, streamed = self._said[index], bool(self.streamed[index])
            able = stands.tradable and streamed and index not in silent
            now = (1 if able and flows[index] else said[0] if able else 0, stands.leave_ms, streamed)
            if now != said:
                self._said[index] = now
                self._owe(partial(self.conflator.state, index, now[0] == 1, now_ns, leave_ms=stands.leave_ms, streamed=streamed))

    def _count(self, now_ns: int) -> None:
        """Our figures into the shared block, and the heart-beat."""
        tally, block = self.conflator.tally, self._block
        for name in ("trades", "quotes", "marks", "late", "duplicates", "stale", "lost", "ring_full", "conflated"):
            block.set(name, int(tally[name]))
        values = sum(self.kinds[name] for name in BAD_VALUES)
        counted = {
            "bad_values": int(tally["bad_values"]) + values, "bad_frames": self.kinds.total() - values, "frames": self.frames,
            "gaps": self.gaps_found, "healed": self.gaps_healed, "unfilled": self.unfilled, "reconnects": self.reconnects,
            "sockets_live": sum(shard.flowing for shard in self.shards), "sockets_wanted": len(self.shards),
            "last_frame_ns": self._last_frame_ns, "symbols": int(self.streamed.sum()),
        }  # fmt: skip
        for name, value in counted.items():
            block.set(name, value)
        block.beat(now_ns)


def stream_name(route: Route, symbol: str) -> str:
    return f"{symbol.lower()}@{'aggTrade' if route is Route.MARKET else 'bookTicker'}"


def mark_stream(symbol: str) -> str:
    return f"{symbol.lower()}@markPrice@1s"


def streams_of(options: FeedOptions, route: Route, part: dict[str, int], marks: dict[str, int], *, first: bool = False) -> Streams:
    """A socket for these symbols. The first market socket has all mark prices and the contracts' news; the others one symbol's mark price,
    so that each shows time passing."""
    names = {stream_name(route, symbol): index for symbol, index in part.items()}
    if route is Route.PUBLIC:
        return Streams(route, f"{options.public_url}/stream", names, (), {s: quote_key(i) for s, i in part.items()}, {})
    extra = ("!markPrice@arr@1s", "!contractInfo") if first else (mark_stream(next(iter(part))),)
    return Streams(route, f"{options.market_url}/stream", names, extra, {s: trade_key(i) for s, i in part.items()}, marks)


def plan(options: FeedOptions) -> list[Streams]:
    """Which socket carries what at first."""
    places, per = {rules.symbol: index for index, rules in enumerate(options.symbols)}, options.streams_per_socket
    assert 3 <= per <= 1024, "the venue takes at most 1,024 streams on a socket"
    marks = {symbol: mark_key(index) for symbol, index in places.items()}
    symbols, streams = list(places), []
    starts = [0, *range(per - 2, len(symbols), per - 1)]
    for start, stop in zip(starts, [*starts[1:], len(symbols)], strict=True):
        part = {symbol: places[symbol] for symbol in symbols[start:stop]}
        streams.append(streams_of(options, Route.MARKET, part, marks, first=start == 0))
    for start in range(0, len(symbols), per):
        part = {symbol: places[symbol] for symbol in symbols[start:start + per]}
        streams.append(streams_of(options, Route.PUBLIC, part, marks))
    return streams


async def run_feed(options: FeedOptions, ring: Ring, counters: Counters, on_ready: Callable[[], None], stop: asyncio.Event,
                   beside: Beside | None = None) -> None:  # fmt: skip
    """The Feed's process until ``stop`` is set. Raises Halt for a second writer of the ring; nothing that the venue does ends it."""
    clock, block = options.clock, counters.block("feed")
    governor = shared_governor(clock, counters, block)
    rest = Rest(options.rest_url, clock=clock, governor=governor)

    async def fetch(symbol: str, from_id: int, limit: int) -> Sequence[AggTrade]:
        rows = await agg_trades(rest, symbol, from_id=from_id, limit=limit)
        show_use(governor, clock, block)
        return rows

    async def probe(route: Route) -> Mapping[str, Price] | Mapping[str, Book]:
        rows = await (prices(rest) if route is Route.MARKET else books(rest))
        show_use(governor, clock, block)
        return rows

    feed = Feed(options, ring, block, fetch, probe)
    feed.measure = rest.sync_time
    try:
        await feed.run(on_ready, stop, beside)
    finally:
        await rest.close()


def warm_up(progress: Progress = silently) -> None:
    """Compile the kernels, or load them from the cache."""
    ring = Ring.create()
    try:
        conflator = Conflator([1.0], ring, 1024)
        progress("the Feed's frames")
        compile_reading()
        progress("the Feed's slots")
        conflator.drain()
        progress("the Feed's clock")
        conflator.time(1, 1)
    finally:
        ring.close()
