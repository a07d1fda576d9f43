"""The Feed against a small venue of our own on loopback: what it sends is known to the last step, so is what must be in the ring."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from aiohttp import WSMsgType, web

from src.clock import Clock, clock_at
from src.counters import Counters
from src.feed import Feed, FeedOptions, plan, run_feed, warm_up
from src.links import Route
from src.models import SymbolRules
from src.ring_buffer import BACKFILLED, GAP, HEALED, MARK, QUOTE, STATE, TIME, TRADE, Ring
from src.sockets import Patience

T0 = 1_763_600_040_000
"""A whole minute."""
DEADLINE_S = 10.0
QUICK = Patience(connect_s=2.0, overlap_s=0.05, silent_s=1e6, mute_s=1e6, lag_s=0.1, backoff_s=(0.02, 0.1))


def rules(name: str, step: str = "0.001") -> SymbolRules:
    one = Decimal(1)
    return SymbolRules(name, Decimal("0.1"), Decimal(step), one, one, one, one, one, one)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """As the process does before it connects, so that no deadline here waits for a compiler."""
    warm_up()


BTC, ETH, DOGE = rules("BTCUSDT"), rules("ETHUSDT"), rules("DOGEUSDT", "1")


@dataclass(eq=False)
class Client:
    """A connection of the Feed, as the venue sees it."""

    route: str
    socket: web.WebSocketResponse
    names: set[str] = field(default_factory=set)
    requests: list[dict[str, Any]] = field(default_factory=list)


class Venue:
    """Speaks the venue's streams, aggTrades and the two tickers. ``answers``: whether SUBSCRIBE is acknowledged, ``rest``: whether REST works,
    ``mute``: streams that show nothing, ``forgot``: those that show nothing until they are unsubscribed."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.connects: Counter[str] = Counter()
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.asked: list[dict[str, str]] = []
        self.books: dict[str, dict[str, Any]] = {}
        self.probes: Counter[str] = Counter()
        self.time_ms = self.times_asked = 0
        self.mute: set[str] = set()
        self.forgot: set[str] = set()
        self.answers = True
        self.rest = True
        self.deaf = False
        self.changed = asyncio.Condition()
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{route:market|public}/stream", self._stream)
        app.router.add_get("/fapi/v1/aggTrades", self._agg_trades)
        app.router.add_get("/fapi/v2/ticker/price", self._prices)
        app.router.add_get("/fapi/v1/time", self._time)
        app.router.add_get("/fapi/v1/ticker/bookTicker", self._books)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        for client in list(self.clients):
            await client.socket.close()
        await self._runner.cleanup()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        client = Client(request.match_info["route"], socket)
        self.connects[client.route] += 1
        if not self.deaf:
            self.clients.append(client)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await self._control(client, json.loads(message.data))
            else:
                client.requests.append({"control": message.type.name, "data": bytes(message.data)})
            await self._notify()
        if client in self.clients:
            self.clients.remove(client)
        await self._notify()
        return socket

    async def _control(self, client: Client, request: dict[str, Any]) -> None:
        client.requests.append(request)
        change = client.names.update if request["method"] == "SUBSCRIBE" else client.names.difference_update
        change(request["params"])
        if request["method"] == "UNSUBSCRIBE":
            self.forgot.difference_update(request["params"])
        if self.answers:
            await client.socket.send_str(json.dumps({"result": None, "id": request["id"]}))

    async def _agg_trades(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.query))
        await self._notify()
        if not self.rest:
            return web.json_response({"code": -1001, "msg": "Internal error"}, status=503)
        first, limit = int(request.query.get("fromId", 0)), int(request.query.get("limit", 500))
        rows = [row for row in self.history[request.query["symbol"]] if row["a"] >= first][:limit]
        return web.json_response([{key: row[key] for key in ("a", "p", "q", "f", "l", "T", "m")} for row in rows])

    async def _prices(self, request: web.Request) -> web.Response:
        self.probes["market"] += 1
        await self._notify()
        return web.json_response([{"symbol": name, "price": rows[-1]["p"], "time": rows[-1]["T"]} for name, rows in self.history.items()])

    async def _time(self, request: web.Request) -> web.Response:
        self.times_asked += 1
        await self._notify()
        return web.json_response({"serverTime": self.time_ms})

    async def _books(self, request: web.Request) -> web.Response:
        self.probes["public"] += 1
        await self._notify()
        return web.json_response([{"symbol": name, "bidPrice": row["b"], "bidQty": row["B"], "askPrice": row["a"], "askQty": row["A"],
                                   "time": row["T"]} for name, row in self.books.items()])

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S), self.changed:
            await self.changed.wait_for(condition)

    def record(self, symbol: str, identity: int, time_ms: int, price: str = "100.0", qty: str = "0.001", maker: bool = False) -> dict[str, Any]:
        """A trade that happened; REST knows it from now on. Returns it as its stream event."""
        event = {"e": "aggTrade", "E": time_ms + 1, "s": symbol, "a": identity, "p": price, "q": qty, "nq": qty,
                 "f": identity * 2, "l": identity * 2 + 1, "T": time_ms, "m": maker, "st": 1}
        self.history[symbol].append(event)
        return event

    async def send(self, route: str, name: str, data: Any) -> None:
        """To every connection of that route that subscribed to the stream."""
        if name in self.mute | self.forgot:
            return
        text = json.dumps({"stream": name, "data": data})
        for client in list(self.clients):
            if client.route == route and name in client.names:
                with suppress(ConnectionError):
                    await client.socket.send_str(text)

    async def trade(self, symbol: str, identity: int, time_ms: int, price: str = "100.0", qty: str = "0.001", maker: bool = False) -> None:
        await self.send("market", f"{symbol.lower()}@aggTrade", self.record(symbol, identity, time_ms, price, qty, maker))

    async def quote(self, symbol: str, time_ms: int, bid: str = "99.9", ask: str = "100.1") -> None:
        data = {"e": "bookTicker", "u": 1, "s": symbol, "b": bid, "B": "1.5", "a": ask, "A": "2.5", "T": time_ms, "E": time_ms, "st": 1}
        self.books[symbol] = data
        await self.send("public", f"{symbol.lower()}@bookTicker", data)

    async def marks(self, time_ms: int, *symbols: str) -> None:
        """The array of all marks, one of a stranger among them."""
        await self.send("market", "!markPrice@arr@1s", [mark(name, time_ms) for name in (*symbols, "STRANGERUSDT")])

    async def raw(self, route: str, payload: str | bytes) -> None:
        for client in list(self.clients):
            if client.route == route:
                await (client.socket.send_str(payload) if isinstance(payload, str) else client.socket.send_bytes(payload))

    async def cut(self, route: str) -> None:
        """As a network does it: no close frame."""
        for client in [client for client in self.clients if client.route == route]:
            self.clients.remove(client)
            transport = client.socket._req.transport  # type: ignore[union-attr]
            assert transport is not None
            transport.abort()


def mark(symbol: str, time_ms: int) -> dict[str, Any]:
    return {"e": "markPriceUpdate", "E": time_ms, "s": symbol, "p": "100.5", "ap": "1", "i": "100.4", "P": "1", "r": "0.0001",
            "T": T0 + 3600_000, "st": 1}  # fmt: skip


class Reader:
    """The Brain's end of the ring: collects every slot; ``paused`` makes it slow."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.slots: list[np.void] = []
        self.paused = False
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(ring.wake_fd, self.wake)
        self.wake()

    def wake(self) -> None:
        self.ring.unpark()
        while not self.paused and not self.ring.park():
            self.slots.extend(self.ring.read_new(1 << 20))
        self._news.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ring.wake_fd)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def count(self, kind: int, at_least: int = 1) -> list[np.void]:
        await self.until(lambda: len(self.of(kind)) >= at_least)
        return self.of(kind)

    def of(self, kind: int, symbol: int | None = None) -> list[np.void]:
        return [slot for slot in self.slots if slot["kind"] == kind and symbol in (None, slot["sym"])]

    def kinds(self, *kinds: int) -> list[tuple[int, int, int, int]]:
        return [(int(s["kind"]), int(s["flags"]), int(s["first_id"]), int(s["last_id"])) for s in self.slots if s["kind"] in kinds]

    def volume(self, symbol: int = 0) -> dict[int, float]:
        """Steps per minute."""
        minutes: dict[int, float] = defaultdict(float)
        for slot in self.of(TRADE, symbol):
            minutes[int(slot["time_ms"]) // 60_000] += slot["volume"]
        return dict(minutes)


@dataclass
class Scene:
    venue: Venue
    reader: Reader
    ring: Ring
    counters: Counters
    ready: asyncio.Event
    stop: asyncio.Event
    task: asyncio.Task[None]
    clock: Clock

    def get(self, name: str) -> int:
        return int(self.counters.get("feed", name))

    async def until_counted(self, name: str, at_least: int) -> None:
        """Counters are written once a second."""
        async with asyncio.timeout(DEADLINE_S):
            while self.get(name) < at_least:
                await asyncio.sleep(0.02)


Start = Callable[..., Any]


@asynccontextmanager
async def scene(*symbols: SymbolRules, clock: Clock | None = None, wait: bool = True, slots: int = 10_000, beside: Any = None,
                host: str = "127.0.0.1", **changes: Any) -> AsyncIterator[Scene]:  # fmt: skip
    """A venue, and a Feed that has subscribed to it (unless ``wait`` is False). ``beside``: see ``run_feed``. ``host``: what it is called."""
    venue, ring, counters = Venue(), Ring.create(slots), Counters.create()
    await venue.start()
    base, clock = "://" + venue.url.removeprefix("http://").replace("127.0.0.1", host), clock or clock_at(T0, 1.0)
    options = FeedOptions(f"ws{base}/market", f"ws{base}/public", f"http{base}", clock, symbols or (BTC,), patience=QUICK)
    ready, stop = asyncio.Event(), asyncio.Event()
    reader = Reader(ring)
    task = asyncio.create_task(run_feed(replace(options, **changes), ring, counters, ready.set, stop, beside))
    try:
        if wait:
            async with asyncio.timeout(DEADLINE_S):
                await ready.wait()
        yield Scene(venue, reader, ring, counters, ready, stop, task, clock)
        assert not task.done() or task.exception() is None
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(task, return_exceptions=True)
        reader.close()
        await venue.stop()
        ring.close()
        counters.close()


# --- what arrives ----------------------------------------------------------------------------------------------------------------------

async def test_it_subscribes_to_every_stream_of_every_symbol() -> None:
    async with scene(BTC, ETH) as s:
        names = {client.route: client.names for client in s.venue.clients}
        assert names == {"market": {"btcusdt@aggTrade", "ethusdt@aggTrade", "!markPrice@arr@1s", "!contractInfo"},
                         "public": {"btcusdt@bookTicker", "ethusdt@bookTicker"}}


async def test_a_trade_a_quote_and_marks_become_slots() -> None:
    async with scene(BTC, ETH) as s:
        await s.venue.trade("ETHUSDT", 7, T0 + 5, "2000.5", "0.250", maker=True)
        await s.venue.quote("BTCUSDT", T0 + 6)
        await s.venue.marks(T0 + 7, "ETHUSDT", "BTCUSDT")
        (trade,), (quote,), marks = await s.reader.count(TRADE), await s.reader.count(QUOTE), await s.reader.count(MARK, 2)
        assert (trade["sym"], trade["open"], trade["volume"], trade["taker_buy_volume"], trade["first_id"]) == (1, 2000.5, 250, 0, 7)
        assert trade["trade_count"] == 2 and trade["received_ns"] > 0
        assert [quote[name] for name in ("sym", "open", "high", "low", "close")] == [0, 99.9, 100.1, 1500, 2500]
        assert [(mark["sym"], mark["open"], mark["close"]) for mark in marks] == [(1, 100.5, T0 + 3600_000), (0, 100.5, T0 + 3600_000)]


async def test_a_symbol_is_tradable_once_both_its_streams_flow() -> None:
    async with scene(BTC, ETH) as s:
        await s.venue.trade("ETHUSDT", 1, T0)
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.venue.quote("ETHUSDT", T0)
        (state,) = await s.reader.count(STATE)
        assert (state["sym"], state["open"]) == (1, 1.0)


async def test_duplicates_are_dropped() -> None:
    async with scene() as s:
        for identity in (1, 2, 2, 1, 3):
            await s.venue.trade("BTCUSDT", identity, T0 + identity)
        await s.reader.until(lambda: s.reader.volume() == {T0 // 60_000: 3})


RUBBISH = ["", "nonsense", "{", "[]", "42", "null", '{"data":{"e":"aggTrade"}}', '{"data":{"e":"unheard"}}', '{"data":[1,2]}',
           '{"stream":"x","data":{"e":"aggTrade","E":1,"s":"NOBODYUSDT","a":1,"p":"1","q":"1","f":1,"l":1,"T":1,"m":true}}',
           json.dumps({"data": {"e": "aggTrade", "E": T0, "s": "BTCUSDT", "a": 5, "p": "x", "q": "1", "f": 1, "l": 1, "T": T0, "m": True}}),
           json.dumps({"data": {"e": "aggTrade", "E": T0, "s": "BTCUSDT", "a": 2**70, "p": "1", "q": "1", "f": 1, "l": 1, "T": T0, "m": True}}),
           json.dumps({"data": {"e": "aggTrade", "E": T0, "s": "BTCUSDT", "a": 5, "p": "-1", "q": "1", "f": 1, "l": 1, "T": T0, "m": True}}),
           json.dumps({"data": {"e": "aggTrade", "E": T0, "s": "BTCUSDT", "a": 5, "p": "1", "q": "0.0001", "f": 1, "l": 1, "T": T0, "m": True}}),
           json.dumps({"data": {"e": "aggTrade", "E": 9**15, "s": "BTCUSDT", "a": 5, "p": "1", "q": "1", "f": 1, "l": 1, "T": 9**15, "m": True}}),
           b"\x00\xff\xfe", b'{"result":null,"id":1}']


async def test_rubbish_is_counted_by_kind_and_harms_nothing() -> None:
    async with scene() as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        for payload in RUBBISH:
            await s.venue.raw("market", payload)
            await s.venue.raw("public", payload)
        await s.venue.trade("BTCUSDT", 2, T0 + 1)
        await s.reader.until(lambda: s.reader.volume() == {T0 // 60_000: 2})
        await s.until_counted("bad_frames", 1)
        assert s.get("bad_frames") + s.get("bad_values") >= 2 * len(RUBBISH) - 6  # "", acknowledgements and nulls are no news
        assert s.get("bad_values") >= 6
        assert s.get("reconnects") == s.get("gaps") == 0
        assert s.venue.connects == {"market": 1, "public": 1}


async def test_a_ping_is_answered_with_its_payload_and_hides_nothing_that_came_with_it() -> None:
    async with scene() as s:
        (market,) = [client for client in s.venue.clients if client.route == "market"]
        for number, payload in enumerate((b"1763600000000", b"", b"{}"), 1):
            await s.venue.trade("BTCUSDT", number, T0)
            await market.socket.ping(payload)
            await s.venue.until(lambda p=payload: {"control": "PONG", "data": p} in market.requests)
        await s.reader.until(lambda: s.reader.volume() == {T0 // 60_000: 3})


# --- gaps ------------------------------------------------------------------------------------------------------------------------------

async def test_a_hole_is_filled_by_rest_in_id_order_and_then_healed() -> None:
    async with scene(BTC, ETH) as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        for identity in range(2, 6):
            s.venue.record("BTCUSDT", identity, T0 + identity, qty="0.002")
        await s.venue.trade("BTCUSDT", 6, T0 + 10)
        (healed,) = await s.reader.count(HEALED)
        assert s.reader.kinds(TRADE, GAP, HEALED) == [
            (TRADE, 0, 1, 1), (GAP, 0, 2, 5), (TRADE, 0, 6, 6), (TRADE, BACKFILLED, 2, 5), (HEALED, 0, 2, 5)]
        assert healed["open"] == 0, "all of them were had"
        assert s.reader.volume() == {T0 // 60_000: 10}
        assert s.venue.asked == [{"symbol": "BTCUSDT", "fromId": "2", "limit": "4"}]
        await s.until_counted("healed", 1)
        assert s.get("gaps") == 1


async def test_live_trades_flow_while_a_hole_waits_for_rest() -> None:
    async with scene() as s:
        s.venue.rest = False
        await s.venue.trade("BTCUSDT", 1, T0)
        s.venue.record("BTCUSDT", 2, T0)
        for identity in (3, 4, 5):
            await s.venue.trade("BTCUSDT", identity, T0 + identity)
        await s.reader.until(lambda: s.reader.volume() == {T0 // 60_000: 4})
        s.venue.rest = True
        await s.reader.count(HEALED)
        assert s.reader.volume() == {T0 // 60_000: 5}


async def test_trades_the_venue_has_not_got_are_counted_and_not_waited_for() -> None:
    async with scene() as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        s.venue.record("BTCUSDT", 3, T0)
        await s.venue.trade("BTCUSDT", 5, T0)
        (healed,) = await s.reader.count(HEALED)
        assert healed["open"] == 2
        assert s.reader.kinds(TRADE)[-1] == (TRADE, BACKFILLED, 3, 3)


async def test_a_long_hole_is_fetched_page_by_page() -> None:
    async with scene() as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        for identity in range(2, 2502):
            s.venue.record("BTCUSDT", identity, T0 + identity)
        await s.venue.trade("BTCUSDT", 2502, T0 + 3000)
        await s.reader.count(HEALED)
        assert [(row["fromId"], row["limit"]) for row in s.venue.asked] == [("2", "1000"), ("1002", "1000"), ("2002", "500")]
        assert s.reader.volume() == {T0 // 60_000: 2502}


async def test_a_hole_beyond_all_measure_is_not_fetched_but_reported() -> None:
    async with scene() as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.venue.trade("BTCUSDT", 100_002, T0)
        (healed,) = await s.reader.count(HEALED)
        assert (healed["first_id"], healed["last_id"], healed["open"]) == (2, 100_001, 100_000)
        assert s.venue.asked == []


async def test_after_a_cut_every_symbol_is_in_doubt_until_shown_or_asked() -> None:
    """BTC goes on without a hole, ETH missed two trades, DOGE has no trade after the cut and is cleared by REST alone."""
    async with scene(BTC, ETH, DOGE) as s:
        for name in ("BTCUSDT", "ETHUSDT", "DOGEUSDT"):
            await s.venue.trade(name, 1, T0, qty="1")
        await s.reader.count(TRADE, 3)
        s.venue.rest = False
        await s.venue.cut("market")
        gaps = await s.reader.count(GAP, 3)
        assert [(gap["sym"], gap["first_id"], gap["last_id"]) for gap in gaps] == [(0, 2, 0), (1, 2, 0), (2, 2, 0)]
        s.venue.record("ETHUSDT", 2, T0, qty="1")
        s.venue.record("ETHUSDT", 3, T0, qty="1")
        s.venue.record("DOGEUSDT", 2, T0, qty="1")
        await s.venue.until(lambda: sum("btcusdt@aggTrade" in client.names for client in s.venue.clients) == 1)
        await s.venue.trade("BTCUSDT", 2, T0 + 1, qty="1")
        await s.venue.trade("ETHUSDT", 4, T0 + 1, qty="1")
        (first,) = await s.reader.count(HEALED)
        assert first["sym"] == 0, "a trade that follows on heals by itself"
        s.venue.rest = True
        await s.reader.count(HEALED, 3)
        for symbol, steps in ((0, 2000), (1, 4000), (2, 2)):
            assert s.reader.volume(symbol) == {T0 // 60_000: steps}
        await s.venue.trade("DOGEUSDT", 3, T0 + 2, qty="1")
        await s.reader.until(lambda: s.reader.volume(2) == {T0 // 60_000: 3})
        await s.until_counted("healed", 3)
        assert (s.get("gaps"), s.get("reconnects"), s.get("sockets_live")) == (3, 1, 2)


async def test_a_symbol_without_a_trade_so_far_is_in_a_gap_too_when_its_socket_is_cut() -> None:
    """No id is known that could be asked for: history is read instead."""
    async with scene(BTC, ETH, close_grace_ms=0) as s:
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.count(TIME)
        await s.venue.cut("market")
        await s.venue.until(lambda: any("ethusdt@aggTrade" in client.names for client in s.venue.clients))
        s.venue.record("ETHUSDT", 7, T0 + 1500)
        await s.reader.count(HEALED, 2)
        await s.venue.trade("ETHUSDT", 8, T0 + 1501)
        await s.reader.until(lambda: bool(s.reader.of(TRADE, 1)))
        eth = [(int(slot["kind"]), int(slot["first_id"]), int(slot["open"])) for slot in s.reader.slots
               if slot["sym"] == 1 and slot["kind"] in (GAP, HEALED)]
        assert eth == [(GAP, 0, 0), (HEALED, 0, 1)]
        assert all(row["symbol"] == "BTCUSDT" for row in s.venue.asked)


async def test_sockets_cut_again_and_again_lose_nothing() -> None:
    async with scene(BTC, ETH) as s:
        sent, identity = 0, 0
        for _ in range(5):
            for _ in range(20):
                identity += 1
                sent += identity
                for name in ("BTCUSDT", "ETHUSDT"):
                    await s.venue.trade(name, identity, T0 + identity, qty=f"{identity / 1000:.3f}")
            await s.venue.cut("market")
            for _ in range(3):
                identity += 1
                sent += identity
                for name in ("BTCUSDT", "ETHUSDT"):
                    s.venue.record(name, identity, T0 + identity, qty=f"{identity / 1000:.3f}")
            connects = s.venue.connects["market"]
            await s.venue.until(lambda n=connects: s.venue.connects["market"] > n or any(
                "ethusdt@aggTrade" in client.names for client in s.venue.clients))
        await s.reader.until(lambda: s.reader.volume(0) == s.reader.volume(1) == {T0 // 60_000: sent})


# --- TIME ------------------------------------------------------------------------------------------------------------------------------

def times(s: Scene) -> list[int]:
    return [int(slot["time_ms"]) for slot in s.reader.of(TIME)]


async def test_time_follows_the_stream_and_not_the_clock() -> None:
    """The clock is ten minutes ahead; TIME is written for what an event has reached, and for nothing else."""
    async with scene(clock=clock_at(T0 + 600_000, 1.0), close_grace_ms=20) as s:
        await s.venue.trade("BTCUSDT", 1, T0 + 500)
        await s.venue.marks(T0 + 999, "BTCUSDT")
        await s.reader.until(lambda: times(s) == [T0])
        await s.venue.marks(T0 + 1004, "BTCUSDT")
        await s.reader.until(lambda: times(s) == [T0, T0 + 1000])
        await s.venue.trade("BTCUSDT", 2, T0 + 4100)
        await s.reader.until(lambda: times(s) == [T0, T0 + 1000, T0 + 4000])


async def test_time_waits_for_the_grace() -> None:
    async with scene(close_grace_ms=300) as s:
        loop = asyncio.get_running_loop()
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.count(MARK)
        began = loop.time()
        await s.venue.trade("BTCUSDT", 1, T0 + 998)
        await s.reader.count(TIME)
        assert loop.time() - began > 0.25
        assert [slot["kind"] for slot in s.reader.slots if slot["kind"] in (TRADE, TIME)] == [TRADE, TIME]
        assert s.get("late") == 0


async def test_time_is_silent_while_the_market_socket_is_down_and_until_its_gaps_are_healed() -> None:
    async with scene(close_grace_ms=0) as s:
        await s.venue.trade("BTCUSDT", 1, T0 + 10)
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.until(lambda: bool(times(s)) and times(s)[-1] == T0 + 1000)
        s.venue.rest = False
        s.venue.record("BTCUSDT", 2, T0 + 1500)
        await s.venue.cut("market")
        await s.venue.until(lambda: any("!markPrice@arr@1s" in client.names for client in s.venue.clients))
        await s.venue.marks(T0 + 61_000, "BTCUSDT")
        await s.reader.until(lambda: s.reader.of(MARK)[-1]["time_ms"] == T0 + 61_000)
        asked = len(s.venue.asked)
        await s.venue.until(lambda: len(s.venue.asked) > asked + 1)
        assert times(s)[-1] == T0 + 1000
        s.venue.rest = True
        await s.reader.until(lambda: times(s)[-1] == T0 + 61_000)
        order = s.reader.kinds(TRADE, HEALED, TIME)
        assert order.index((HEALED, 0, 2, 2)) > order.index((TRADE, BACKFILLED, 2, 2))
        assert times(s)[-2:] == [T0 + 60_000, T0 + 61_000], "each minute on the way has its own"


async def test_a_gap_that_lasts_does_not_stop_time_for_ever() -> None:
    async with scene(close_grace_ms=0, gap_hold_s=0.3) as s:
        s.venue.rest = False
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.venue.trade("BTCUSDT", 9, T0 + 10)
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.until(lambda: bool(times(s)) and times(s)[-1] == T0 + 1000)
        assert not s.reader.of(HEALED)


async def test_time_waits_for_the_slowest_market_socket() -> None:
    async with scene(BTC, ETH, streams_per_socket=3, close_grace_ms=0) as s:
        assert s.venue.connects == {"market": 2, "public": 1}
        await s.venue.marks(T0 + 5000, "BTCUSDT")
        await s.venue.trade("ETHUSDT", 1, T0 + 2100)
        await s.reader.until(lambda: times(s) == [T0 + 2000])
        await s.venue.trade("ETHUSDT", 2, T0 + 4100)
        await s.reader.until(lambda: times(s) == [T0 + 2000, T0 + 4000])


async def test_rubbish_times_do_not_drag_time_along() -> None:
    async with scene(close_grace_ms=0) as s:
        await s.venue.marks(T0 + 10**9, "BTCUSDT")
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.until(lambda: bool(times(s)))
        assert times(s) == [T0 + 1000]


async def test_a_machine_whose_clock_is_far_behind_takes_the_venues_word_on_the_time() -> None:
    """As after it slept. What was refused until then is a hole, and filled."""
    async with scene(clock=clock_at(T0 - 3_600_000, 1.0), close_grace_ms=0) as s:
        s.venue.time_ms = T0
        await s.venue.trade("BTCUSDT", 1, T0 - 3_600_000)
        await s.venue.trade("BTCUSDT", 2, T0)
        await s.until_counted("bad_values", 1)
        await s.venue.until(lambda: s.venue.times_asked > 0)
        await asyncio.sleep(0.1)
        await s.venue.trade("BTCUSDT", 3, T0 + 1)
        await s.reader.count(HEALED)
        assert s.reader.volume() == {(T0 - 3_600_000) // 60_000: 1, T0 // 60_000: 2}
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.until(lambda: T0 + 1000 in times(s))


async def test_at_high_speed_the_grace_is_never_less_than_20_ms_of_wall_time() -> None:
    async with scene(clock=clock_at(T0, 60.0)) as s:
        loop = asyncio.get_running_loop()
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.count(MARK)
        began = loop.time()
        await s.reader.count(TIME)
        assert loop.time() - began > 0.015


# --- the life of sockets ---------------------------------------------------------------------------------------------------------------

@asynccontextmanager
async def moving(s: Scene, *symbols: SymbolRules, every_s: float = 0.05) -> AsyncIterator[None]:
    """The venue's market moves: a trade, another quote and the marks, again and again, at the clock's time."""
    async def move() -> None:
        identity = 0
        while True:
            identity += 1
            now_ms = s.clock.market_ms()
            for one in symbols:
                await s.venue.quote(one.symbol, now_ms, bid=f"{90 + identity % 9}.5")
                await s.venue.trade(one.symbol, identity, now_ms, qty="1")
                await s.venue.send("market", f"{one.symbol.lower()}@markPrice@1s", mark(one.symbol, now_ms))
            await s.venue.marks(now_ms, *(one.symbol for one in symbols))
            await asyncio.sleep(every_s)

    task = asyncio.create_task(move())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def whole(reader: Reader, symbol: int) -> bool:
    """Whether its last gap is closed."""
    return [slot["kind"] for slot in reader.slots if slot["sym"] == symbol and slot["kind"] in (GAP, HEALED)][-1] == HEALED


def whole_when_tradable(slots: Iterable[Any], symbol: int) -> int:
    """Whenever its reader may trade the symbol, every aggregate trade up to its newest is there, once; how often it changed to that."""
    able = gapped = False
    first = newest = seen = changes = 0
    for slot in slots:
        if slot["sym"] != symbol or slot["kind"] not in (TRADE, GAP, HEALED, STATE):
            continue
        before = able and not gapped
        if slot["kind"] == TRADE:
            first, newest = first or int(slot["first_id"]), max(newest, int(slot["last_id"]))
            seen += int(slot["last_id"]) - int(slot["first_id"]) + 1
        elif slot["kind"] == STATE:
            able = slot["open"] == 1.0
        else:
            gapped = slot["kind"] == GAP
        if able and not gapped:
            assert seen == newest - first + 1
            changes += not before
    return changes


async def test_a_mute_socket_among_several_is_hung_up_and_dialled_again_and_the_others_are_not() -> None:
    async with scene(BTC, ETH, streams_per_socket=3, patience=replace(QUICK, mute_s=0.4)) as s, moving(s, BTC, ETH):
        await s.reader.count(TRADE, 4)
        others = [client for client in s.venue.clients if "btcusdt@aggTrade" not in client.names]
        s.venue.mute = {"btcusdt@aggTrade", "!markPrice@arr@1s"}
        await s.venue.until(lambda: s.venue.connects["market"] == 3)
        s.venue.mute = set()
        (healed,) = await s.reader.count(HEALED)
        assert healed["sym"] == 0 and healed["open"] == 0
        await s.until_counted("reconnects", 1)
        assert all(client in s.venue.clients for client in others)
        assert (s.get("reconnects"), s.get("mute_sockets")) == (1, 1)


@pytest.mark.slow
async def test_a_stream_that_the_venue_has_forgotten_is_asked_for_again_and_its_symbol_does_not_trade_before_it_is_whole() -> None:
    async with scene(BTC, ETH, patience=replace(QUICK, silent_s=0.4)) as s, moving(s, BTC, ETH):
        states = lambda: [slot["open"] for slot in s.reader.of(STATE, 0)]  # noqa: E731
        await s.reader.until(lambda: states() == [1.0])
        s.venue.forgot = {"btcusdt@aggTrade"}
        await s.reader.until(lambda: states() == [1.0, 0.0, 1.0])
        await s.reader.until(lambda: whole(s.reader, 0))
        assert whole_when_tradable(s.reader.slots, 0) > 0
        assert not s.reader.of(GAP, 1) and s.venue.connects == {"market": 1, "public": 1}
        (market,) = [client for client in s.venue.clients if client.route == "market"]
        assert [(r["method"], r["params"]) for r in market.requests[1:]] == [
            ("UNSUBSCRIBE", ["btcusdt@aggTrade"]), ("SUBSCRIBE", ["btcusdt@aggTrade"])]
        assert s.get("mute_streams") == 1


@pytest.mark.slow
async def test_a_stream_that_stays_mute_has_its_socket_dialled_anew_once_and_is_filled_by_rest_while_it_lasts() -> None:
    async with scene(BTC, ETH, patience=replace(QUICK, silent_s=0.4)) as s, moving(s, BTC, ETH):
        await s.reader.until(lambda: len(s.reader.of(STATE)) == 2)
        s.venue.mute = {"ethusdt@aggTrade"}
        await s.venue.until(lambda: s.venue.connects["market"] == 2)
        before = len(s.venue.history["ETHUSDT"])
        await s.reader.until(lambda: any(slot["last_id"] > before + 20 for slot in s.reader.of(TRADE, 1) if slot["flags"] == BACKFILLED))
        assert s.venue.connects == {"market": 2, "public": 1}
        assert s.reader.of(STATE, 1)[-1]["open"] == 0.0
        s.venue.mute = set()
        await s.reader.until(lambda: s.reader.of(STATE, 1)[-1]["open"] == 1.0 and not s.reader.of(TRADE, 1)[-1]["flags"])
        await s.reader.until(lambda: whole(s.reader, 1))
        assert whole_when_tradable(s.reader.slots, 1) > 0


async def test_in_a_silent_market_nothing_is_hung_up_and_no_stream_is_asked_for_again() -> None:
    async with scene(BTC, ETH, patience=replace(QUICK, silent_s=0.2, mute_s=0.1)) as s:
        await s.venue.trade("BTCUSDT", 1, s.clock.market_ms())
        await s.venue.quote("BTCUSDT", s.clock.market_ms())
        await s.venue.until(lambda: min(s.venue.probes["market"], s.venue.probes["public"]) >= 2)
        assert s.venue.connects == {"market": 1, "public": 1}
        assert all(len(client.requests) == 1 for client in s.venue.clients)
        assert not s.reader.of(GAP)


async def test_the_question_waits_for_request_weight_and_without_an_answer_a_mute_socket_is_hung_up() -> None:
    async with scene(patience=replace(QUICK, mute_s=0.2, connect_s=0.3)) as s:
        others = s.counters.block("brain")
        others.set("weight_minute", s.clock.unscaled_ms() // 60_000)
        others.set("weight_used", 2400)
        await s.venue.until(lambda: s.venue.connects["market"] == 2)
        assert not s.venue.probes


async def test_a_socket_whose_time_passed_by_the_marks_of_a_symbol_that_ends_has_those_of_another() -> None:
    """A contract that is gone has no marks any more; without another clock its socket would stop TIME for all."""
    feeds: list[Feed] = []

    async def beside(feed: Feed) -> None:
        feeds.append(feed)

    async with scene(BTC, ETH, streams_per_socket=3, close_grace_ms=0, beside=beside) as s:
        feeds[0].end(1)
        await s.venue.until(lambda: any(client.names == {"btcusdt@markPrice@1s"} for client in s.venue.clients))
        for second in (1000, 2000):
            await s.venue.marks(T0 + second, "BTCUSDT")
            await s.venue.send("market", "btcusdt@markPrice@1s", mark("BTCUSDT", T0 + second))
        await s.reader.until(lambda: T0 + 2000 in times(s))


async def test_a_server_that_never_acknowledges_is_left_and_tried_again() -> None:
    async with scene(wait=False, patience=replace(QUICK, connect_s=0.2)) as s:
        s.venue.answers = False
        await s.venue.until(lambda: s.venue.connects["market"] >= 3)
        assert not s.ready.is_set()
        s.venue.answers = True
        async with asyncio.timeout(DEADLINE_S):
            await s.ready.wait()


async def test_renewal_overlaps_and_makes_neither_hole_nor_duplicate() -> None:
    async with scene(clock=clock_at(T0 + 3600_000, 1.0), patience=replace(QUICK, renew_s=0.3, overlap_s=0.1)) as s:
        identity = 0
        while s.venue.connects["market"] < 4:
            identity += 1
            await s.venue.trade("BTCUSDT", identity, T0 + identity // 10)
            await asyncio.sleep(0)
        await s.reader.until(lambda: sum(s.reader.volume().values()) == identity)
        assert not s.reader.of(GAP)
        assert not any(slot["flags"] for slot in s.reader.slots)
        assert s.get("reconnects") == 0


async def test_stopping_hangs_up_and_leaves_nothing_behind() -> None:
    async with scene() as s:
        s.stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await s.task
        await s.venue.until(lambda: not s.venue.clients)
        assert s.get("heartbeat_ns") > 0


async def test_once_stopped_nothing_is_written_any_more() -> None:
    """The ring may be closed as soon as the Feed returns, although a TIME was due and frames may be on their way."""
    async with scene(close_grace_ms=30) as s:
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.count(MARK)
        s.stop.set()
        await s.task
        s.reader.close()
        written = s.ring.statistics()["written"]
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.06, over.set)
        await s.venue.marks(T0 + 2000, "BTCUSDT")
        await over.wait()
        assert s.ring.statistics()["written"] == written


# --- a flood ---------------------------------------------------------------------------------------------------------------------------

async def test_a_flood_and_a_reader_that_sleeps_lose_no_step() -> None:
    """More slots than ring and table hold while nobody reads; afterwards each minute's volume equals what was sent, to the last step."""
    async with scene(BTC, DOGE, records=8192) as s:
        s.reader.paused = True
        sent: dict[str, dict[int, int]] = {"BTCUSDT": defaultdict(int), "DOGEUSDT": defaultdict(int)}
        market = next(client for client in s.venue.clients if client.route == "market")
        for identity in range(1, 16_001):
            time_ms = T0 - 20_000_000 + identity * 1000
            for name, unit in (("BTCUSDT", 1000), ("DOGEUSDT", 1)):
                steps = identity % 997 + 1
                sent[name][time_ms // 60_000] += steps
                event = s.venue.record(name, identity, time_ms, price=f"{100 + identity % 13}.5", qty=f"{steps / unit:.3f}")
                await market.socket.send_str(json.dumps({"stream": f"{name.lower()}@aggTrade", "data": event}))
        await s.until_counted("trades", 32_000)
        assert s.ring.free_count() == 0 and s.get("ring_full") > 0
        s.reader.paused = False
        s.reader.wake()
        await s.reader.until(lambda: sum(s.reader.volume(1).values()) == sum(sent["DOGEUSDT"].values()))
        for symbol, name in enumerate(sent):
            assert s.reader.volume(symbol) == sent[name]
        assert not s.reader.of(GAP)


# --- what it is made of ----------------------------------------------------------------------------------------------------------------

def test_streams_are_spread_over_sockets_and_each_market_socket_shows_time() -> None:
    symbols = tuple(rules(f"S{n}USDT") for n in range(5))
    options = FeedOptions("ws://m", "ws://p", "http://r", clock_at(T0, 1.0), symbols, streams_per_socket=3)
    streams = plan(options)
    market = [part for part in streams if part.route is Route.MARKET]
    assert [list(part.names.values()) for part in market] == [[0], [1, 2], [3, 4]]
    assert [part.extra for part in market] == [("!markPrice@arr@1s", "!contractInfo"), ("s1usdt@markPrice@1s",), ("s3usdt@markPrice@1s",)]
    assert [len(part.names) for part in streams if part.route is Route.PUBLIC] == [3, 2]
    assert all(len(part.names) + len(part.extra) <= 3 for part in streams)


def test_warm_up_says_what_it_compiles() -> None:
    told: list[str] = []
    warm_up(told.append)
    assert told == ["the Feed's frames", "the Feed's slots", "the Feed's clock"]


def test_a_process_with_the_feed_loads_neither_the_model_nor_the_store() -> None:
    code = "import sys, src.feed; print([m for m in ('lightgbm', 'pyarrow', 'src.trade', 'src.brain') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
