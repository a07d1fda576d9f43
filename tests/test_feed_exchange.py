"""The Feed against the local exchange: sockets and streams that go mute, wrong URLs, and a day on which everything goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest

from src.clock import Clock, seeded
from src.counters import Counters
from src.exchange.options import ExchangeOptions
from src.exchange.server import Ready, serve
from src.feed import FeedOptions, run_feed, warm_up
from src.market_state import MarketState
from src.models import SymbolRules
from src.ring_buffer import GAP, HEALED, STATE, TIME, TRADE, Ring
from src.sockets import Patience
from src.venue.governor import Governor
from src.venue.queries import klines, symbol_rules
from src.venue.rest import Rest
from tests.test_feed import whole_when_tradable

MINUTE = 60_000
SPEED = 60.0
NAMES = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
QUICK = Patience(connect_s=2.0, overlap_s=0.3, silent_s=1.5, mute_s=1.0, lag_s=0.3, backoff_s=(0.05, 0.3))
DEADLINE_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """No test waits for kernels longer than its deadline."""
    warm_up()


class Tape:
    """The Brain's end of the ring: every slot that is not a quote or a mark and, with a ``history``, the Brain's own market."""

    def __init__(self, ring: Ring, steps: npt.NDArray[np.float64], history: int) -> None:
        self.ring = ring
        self.parts: list[npt.NDArray[np.void]] = []
        self.time_ms = 0
        self.state: MarketState | None = None
        if history:
            self.state = MarketState(NAMES, steps, candle_ms=MINUTE, setup_ms=5 * MINUTE, context_ms=30 * MINUTE, history=history)
            self.state.warm_up()
        self.gapped: dict[int, bool] = {}
        self.able: dict[int, bool] = {}
        self.gaps = self.unfilled = 0
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(ring.wake_fd, self.wake)
        self.wake()

    def wake(self) -> None:
        self.ring.unpark()
        while not self.ring.park():
            self._take(self.ring.read_new(1 << 20))
        self._news.set()

    def _take(self, slots: npt.NDArray[np.void]) -> None:
        position, more = 0, len(slots) > 0 and self.state is not None
        while more:
            assert self.state is not None
            batch = self.state.consume_array(slots, position)
            position, more = position + batch.consumed, batch.more
        kept = slots[np.isin(slots["kind"], (TRADE, GAP, HEALED, STATE, TIME))]
        self.parts.append(kept)
        for slot in kept[kept["kind"] != TRADE]:
            if slot["kind"] == TIME:
                self.time_ms = int(slot["time_ms"])
            elif slot["kind"] == STATE:
                self.able[int(slot["sym"])] = slot["open"] == 1.0
            else:
                self.gapped[int(slot["sym"])] = slot["kind"] == GAP
                self.gaps += slot["kind"] == GAP
                self.unfilled += int(slot["open"]) if slot["kind"] == HEALED else 0

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ring.wake_fd)

    async def until(self, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def slots(self) -> npt.NDArray[np.void]:
        return np.concatenate(self.parts)


Candle = tuple[float, ...]


def candles_of(slots: npt.NDArray[np.void], symbol: int) -> dict[int, Candle]:
    """Minute → open, high, low, close, volume, trades, taker volume, by sorting what was written of it by id."""
    minutes: dict[int, list[Any]] = defaultdict(list)
    for slot in slots[(slots["kind"] == TRADE) & (slots["sym"] == symbol)]:
        minutes[int(slot["time_ms"]) // MINUTE * MINUTE].append(slot)
    return {
        minute: (min(rows, key=lambda slot: slot["first_id"])["open"], max(slot["high"] for slot in rows), min(slot["low"] for slot in rows),
                 max(rows, key=lambda slot: slot["last_id"])["close"], sum(slot["volume"] for slot in rows),
                 float(sum(int(slot["trade_count"]) for slot in rows)), sum(slot["taker_buy_volume"] for slot in rows))
        for minute, rows in minutes.items()}  # fmt: skip


@dataclass
class Scene:
    """``done``: what befell the venue, by name."""

    venue: Ready
    tape: Tape
    rest: Rest
    table: tuple[SymbolRules, ...]
    counters: Counters
    session: aiohttp.ClientSession
    done: Counter[str] = field(default_factory=Counter)

    @property
    def clock(self) -> Clock:
        return self.venue.clock

    def get(self, name: str) -> int:
        return int(self.counters.get("feed", name))

    async def control(self, action: str, **body: Any) -> None:
        async with self.session.post(f"{self.venue.rest}/control/{action}", json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def until_counted(self, name: str, at_least: int = 1) -> None:
        """Counters are written once a second."""
        async with asyncio.timeout(DEADLINE_S):
            while self.get(name) < at_least:
                await asyncio.sleep(0.02)

    def sound(self) -> bool:
        """Every symbol flows, and no gap is open."""
        return all(self.tape.able.get(i) and not self.tape.gapped.get(i) for i in range(len(self.table)))

    async def sender(self, begin: int, symbol: int, minutes: int) -> dict[int, Candle]:
        """The same candles from the exchange's own log, volumes in steps."""
        rows = await klines(self.rest, NAMES[symbol], "1m", start_ms=begin, limit=minutes)
        step = float(self.table[symbol].step)
        return {int(row[0]): (*row[1:5], float(round(row[5] / step)), row[6], float(round(row[7] / step))) for row in rows.tolist()}


@asynccontextmanager
async def scene(history: int = 0, routed: bool = True, **changes: Any) -> AsyncIterator[Scene]:
    """A local exchange at 60 times the speed, three symbols on two market sockets and one public one."""
    stop, feed_stop, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    exchange = asyncio.create_task(serve(ExchangeOptions(symbols=NAMES, speed=SPEED, control=True), started.set_result, stop))
    venue = await started
    rest = Rest(venue.rest, clock=venue.clock, governor=Governor(venue.clock.unscaled_ms))
    found, _ = await symbol_rules(rest)
    table = tuple(found[name] for name in NAMES)
    ring, counters = Ring.create(), Counters.create()
    tape = Tape(ring, np.array([float(one.step) for one in table]), history)
    market_url = venue.market if routed else "ws" + venue.rest.removeprefix("http")
    options = FeedOptions(market_url, venue.public, venue.rest, venue.clock, table, streams_per_socket=3, patience=QUICK)
    feed = asyncio.create_task(run_feed(replace(options, **changes), ring, counters, ready.set, feed_stop))
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(DEADLINE_S):
            await ready.wait()
        try:
            yield Scene(venue, tape, rest, table, counters, session)
            assert not feed.done()
        finally:
            for task, event in ((feed, feed_stop), (exchange, stop)):
                event.set()
                await task
            await rest.close()
            tape.close()
            ring.close()
            counters.close()


# --- silence ---------------------------------------------------------------------------------------------------------------------------

async def test_a_market_url_without_its_route_is_acknowledged_and_found_mute(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(routed=False) as s:
        await s.until_counted("mute_sockets")
        assert not any(s.tape.able.values())
        assert "market stream is mute from the start: is its URL one of that route?" in caplog.text


@pytest.mark.slow
async def test_a_mute_route_is_dialled_again_until_it_speaks_and_what_it_missed_is_filled() -> None:
    async with scene() as s:
        await s.tape.until(s.sound)
        begin = s.clock.market_ms() // MINUTE * MINUTE + MINUTE
        for route, sockets in (("market", 2), ("public", 1)):
            mute = s.get("mute_sockets")
            await s.control("mute", route=route, on=True)
            await s.until_counted("mute_sockets", mute + sockets)
            await s.control("mute", route=route, on=False)
            end = s.clock.market_ms() // MINUTE * MINUTE
            await s.tape.until(lambda end=end: s.sound() and s.get("sockets_live") == 3 and s.tape.time_ms >= end)
        for i in range(len(NAMES)):
            found, sent = candles_of(s.tape.slots(), i), await s.sender(begin, i, (end - begin) // MINUTE)
            assert {minute: found[minute] for minute in sent} == sent
        assert s.tape.unfilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["aggTrade", "bookTicker"])
async def test_a_mute_stream_is_asked_for_again_without_a_new_connection(kind: str) -> None:
    async with scene() as s:
        await s.tape.until(s.sound)
        await s.control("mute_stream", stream=f"ethusdt@{kind}")
        await s.tape.until(lambda: not s.tape.able[1])
        assert s.tape.able[0] and s.tape.able[2]
        await s.tape.until(s.sound)
        assert (s.get("mute_streams"), s.get("reconnects")) == (1, 0)
        assert all(whole_when_tradable(s.tape.slots(), i) for i in range(len(NAMES)))


@pytest.mark.slow
async def test_a_mute_stream_of_mark_prices_is_asked_for_again() -> None:
    async with scene() as s:
        await s.tape.until(s.sound)
        await s.control("mute_stream", stream="!markPrice@arr@1s")
        await s.until_counted("mute_streams")
        marks = s.get("marks")
        await s.until_counted("marks", marks + 400)
        assert all(s.tape.able.values()) and (s.get("mute_streams"), s.get("reconnects"), s.get("gaps")) == (1, 0, 0)


# --- a day -----------------------------------------------------------------------------------------------------------------------------

RUBBISH = ["", "nonsense", "{", '{"data":{"e":"aggTrade"}}', '{"stream":"x","data":[1,2]}', '{"data":{"e":"aggTrade","E":1,"s":"NOBODYUSDT",'
           '"a":1,"p":"1","q":"1","f":1,"l":1,"T":1,"m":true}}', '{"data":{"e":"bookTicker","u":1,"s":"BTCUSDT","b":"x","B":"1","a":"1",'
           '"A":"1","T":1,"E":1}}']


async def cut(s: Scene, chance: Any) -> None:
    await s.control("drop_streams")


async def mute_route(s: Scene, chance: Any) -> None:
    await s.control("fault", kind="mute", door=chance.choice(["market", "public"]), for_s=chance.uniform(0.5, 4.0))


async def mute_stream(s: Scene, chance: Any) -> None:
    """Until it is unsubscribed; it may not be there just now."""
    stream = f"{chance.choice(NAMES).lower()}@{chance.choice(['aggTrade', 'bookTicker'])}"
    async with s.session.post(f"{s.venue.rest}/control/mute_stream", json={"stream": stream}) as answer:
        assert answer.status in (200, 400)


async def flood(s: Scene, chance: Any) -> None:
    await s.control("flood", route="market", copies=20)
    await asyncio.sleep(1.0)
    await s.control("flood", route="market", copies=1)


async def rubbish(s: Scene, chance: Any) -> None:
    for route in ("market", "public"):
        await s.control("rubbish", route=route, texts=RUBBISH)


async def lose(s: Scene, chance: Any) -> None:
    """Trades that are never sent, one here and one there."""
    await s.control("fault", kind="drop", door=f"{chance.choice(NAMES).lower()}@aggTrade", rate=0.05, for_s=1.0, seed=chance.randrange(1000))


MISHAPS: tuple[Callable[[Scene, Any], Awaitable[None]], ...] = (cut, mute_route, mute_stream, flood, rubbish, lose)


@pytest.mark.parametrize(("minutes", "every_s"), [
    pytest.param(45, 2.5, marks=pytest.mark.slow, id="three quarters of an hour"), pytest.param(1440, 6.0, marks=pytest.mark.soak, id="a day")])
async def test_a_day_of_mishaps_leaves_every_candle_as_the_sender_has_it(minutes: int, every_s: float) -> None:
    """Sockets are cut, muted, flooded, fed rubbish and renewed. The Brain's candles equal the sender's in every minute that is not marked; all
    that was written, back-filled trades among it, equals the sender's in every minute; and no symbol may be traded while it is not whole."""
    chance = seeded(7)
    async with scene(history=2000, patience=replace(QUICK, renew_s=9.0)) as s:
        begin = s.clock.market_ms() // MINUTE * MINUTE + MINUTE
        await s.tape.until(lambda: s.tape.time_ms >= begin and s.sound())
        end = begin + minutes * MINUTE
        while s.clock.market_ms() < end - 8 * MINUTE:
            mishap = MISHAPS[sum(s.done.values()) % len(MISHAPS)]
            s.done[mishap.__name__] += 1
            await mishap(s, chance)
            await asyncio.sleep(every_s * chance.uniform(0.5, 1.5))
        await s.control("clear_faults")
        await s.tape.until(lambda: s.tape.time_ms >= end and s.sound(), DEADLINE_S + 10.0)
        await asyncio.sleep(1.1)  # counters are written once a second
        figures = {name: s.get(name) for name in ("trades", "gaps", "healed", "reconnects", "mute_sockets", "mute_streams", "bad_frames", "probes")}
        assert s.tape.state is not None
        slots, marked = s.tape.slots(), 0
        for i in range(len(NAMES)):
            sent, found = await s.sender(begin, i, minutes), candles_of(slots, i)
            assert len(sent) == minutes
            assert {minute: found.get(minute) for minute in sent} == sent
            brain, flaws = s.tape.state.candles(i, MINUTE), s.tape.state.flaws(i)
            clean = {int(row[0]): tuple(row[1:]) for row, flaw in zip(brain.tolist(), flaws.tolist(), strict=True) if not flaw}
            both = clean.keys() & sent.keys()
            marked += minutes - len(both)
            assert {minute: clean[minute] for minute in both} == {minute: sent[minute] for minute in both}
            assert whole_when_tradable(slots[slots["sym"] == i], i) > 1
        print(figures, {"marked": marked, "of": minutes * len(NAMES), "GAP slots": int(s.tape.gaps), **s.done})
        assert s.tape.unfilled == 0
        assert marked < minutes * len(NAMES) / 3
        assert min(figures.values()) > 0 and figures["gaps"] == figures["healed"]
