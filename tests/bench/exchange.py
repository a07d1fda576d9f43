"""The local exchange: order round trips over REST and WS API, frames fanned out to one and to four clients, the matching core alone.

The exchange runs in a process of its own with latency 0 and its books closed; clients run here, on uvloop, over loopback. References of
the same run: an aiohttp server and a ``websockets`` server that echo, a ``websockets`` server that broadcasts the same frames, and an order
book without checks, ledger and events.
"""

from __future__ import annotations

import asyncio
import heapq
import hmac
import json
import multiprocessing
import os
import selectors
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from hashlib import sha256
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import numpy as np
import uvloop
import websockets
from aiohttp import web
from numpy.typing import NDArray

from src.clock import SECOND_NS, Clock, monotonic_ns
from src.exchange.core import Core
from src.exchange.entry import OrderEntry
from src.exchange.jumps import JumpingMarket
from src.exchange.market import KLINE_DTYPE, TRADE_DTYPE, Market
from src.exchange.options import Account, ExchangeOptions, Limits
from src.exchange.orders import PositionSide, Side
from src.exchange.server import Ready, serve
from src.exchange.symbols import SymbolSpec, scaled_universe, spec
from tests.bench import Row, ns_per_op, percentile, row

SPAWN = multiprocessing.get_context("spawn")
KEY, SECRET = "key", "secret"
ROOMY = Limits(weight_per_minute=10**9, orders_per_10s=10**9, orders_per_minute=10**9, open_orders_per_symbol=10**6, messages_per_second=10**6,
               send_buffer_bytes=1 << 31)  # fmt: skip
ROUND_TRIPS, WARM_UP = 2000, 200
SYMBOLS = 300
FRAMES = 900_000
OFFERED_PER_MS = 900
"""Trades in a market millisecond: more than can be sent, so that what is measured is flat out."""
QUIET_MS = 4000
"""Before the first of them: time to subscribe."""
CORE_ORDERS = 1000
MARK = b'"aggTrade",'


class DenseMarket:
    """Symbols that trade all at once for a while, and are quiet before and after. Implements ``market.Market``."""

    def __init__(self, names: tuple[str, ...], count: int, open_ms: int) -> None:
        self.symbols: tuple[SymbolSpec, ...] = tuple(map(spec, names))
        self.start_ms, self.open_ms, self.end_ms = open_ms - 60_000, open_ms, None
        n, number = len(names), np.arange(count)
        rows = np.zeros(n + count, TRADE_DTYPE)
        rows["symbol"] = np.r_[np.arange(n), number % n]
        rows["time_ms"] = np.r_[np.full(n, open_ms - 1000), open_ms + QUIET_MS + number // OFFERED_PER_MS]
        rows["agg_id"] = rows["first_id"] = rows["last_id"] = np.r_[np.ones(n), 2 + number // n]
        rows["price"] = 600_000 + np.r_[np.zeros(n), number // n % 50]
        rows["qty"] = 1 + np.r_[np.zeros(n), number % 997]
        rows["buyer_is_maker"] = rows["qty"] & 1
        rows["bid"], rows["ask"] = rows["price"] - 1, rows["price"] + 1
        rows["bid_qty"] = rows["ask_qty"] = 1_000_000
        self._rows, self._times = rows, np.ascontiguousarray(rows["time_ms"])

    def trades(self, from_ms: int, to_ms: int) -> NDArray[np.void]:
        a, b = np.searchsorted(self._times, (from_ms, to_ms))
        return self._rows[a:b]

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[np.void]:  # fmt: skip
        return self._rows[symbol_index : symbol_index + 1]

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[np.void]:
        return np.empty(0, KLINE_DTYPE)

    def marks(self) -> None:
        return None

    def resume_state(self) -> dict[str, Any]:
        return {}


# --- the servers, each in a process of its own -------------------------------------------------------------------------------------------


def _exchange(pipe: Connection, names: tuple[str, ...], count: int) -> None:
    async def run() -> None:
        market: Market = DenseMarket(names, count, 1_795_146_000_000)
        options = ExchangeOptions(market="replay", latency_ms=0, accounts=(Account(KEY, SECRET, Decimal(10_000_000)),), limits=ROOMY)
        await serve(options, pipe.send, asyncio.Event(), market)

    uvloop.run(run())


def _echo_http(pipe: Connection) -> None:
    async def run() -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=await request.read() or request.query_string.encode(), content_type="application/json")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()

    uvloop.run(run())


def _echo_ws(pipe: Connection) -> None:
    async def run() -> None:
        async def echo(connection: websockets.ServerConnection) -> None:
            async for message in connection:
                await connection.send(message)

        async with websockets.serve(echo, "127.0.0.1", 0, compression=None) as server:
            pipe.send(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
            await asyncio.Event().wait()

    uvloop.run(run())


def _broadcast(pipe: Connection, clients: int, count: int) -> None:
    """The same frames, built beforehand, to so many clients as soon as they are all there."""

    async def run() -> None:
        here: set[websockets.ServerConnection] = set()
        complete, done = asyncio.Event(), asyncio.Event()

        async def hold(connection: websockets.ServerConnection) -> None:
            here.add(connection)
            if len(here) == clients:
                complete.set()
            await done.wait()

        async with websockets.serve(hold, "127.0.0.1", 0, compression=None, write_limit=1 << 30) as server:
            pipe.send(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
            await complete.wait()
            texts = [_frame_like(n) for n in range(1000)]
            for n in range(count):
                websockets.broadcast(here, texts[n % 1000])
                if n % 1000 == 0:
                    await asyncio.sleep(0)
            await asyncio.Event().wait()

    uvloop.run(run())


def _frame_like(number: int) -> str:
    return (f'{{"stream":"btcusdt@aggTrade","data":{{"e":"aggTrade","E":1795146004000,"s":"BTCUSDT","a":{number},"p":"60000.10","q":"0.123","nq":'
            f'"0.123","f":{number},"l":{number},"T":1795146004000,"m":true,"st":1}}}}')  # fmt: skip


@asynccontextmanager
async def _running(target: Callable[..., None], *words: Any) -> AsyncIterator[Any]:
    """What the process says once it answers; the process is ended at the end."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(there, *words), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(here.recv)
    finally:
        process.kill()
        process.join()


# --- round trips -------------------------------------------------------------------------------------------------------------------------


async def _timed(ask: Callable[[int], Awaitable[None]]) -> list[float]:
    """Milliseconds of each round trip, one after the other."""
    figures = []
    for n in range(WARM_UP + ROUND_TRIPS):
        start = monotonic_ns()
        await ask(n)
        figures.append((monotonic_ns() - start) / 1e6)
    return figures[WARM_UP:]


def _order(clock: Clock, n: int) -> dict[str, Any]:
    return {"symbol": "BTCUSDT", "side": "BUY" if n % 2 else "SELL", "type": "MARKET", "quantity": "0.01", "newClientOrderId": f"b-{n}",
            "timestamp": clock.market_ms()}  # fmt: skip


def _sign(payload: str) -> str:
    return hmac.new(SECRET.encode(), payload.encode(), sha256).hexdigest()


async def _rest(session: aiohttp.ClientSession, ready: Ready) -> list[float]:
    async def ask(n: int) -> None:
        query = urlencode(_order(ready.clock, n))
        url = f"{ready.rest}/fapi/v1/order?{query}&signature={_sign(query)}"
        async with session.post(url, headers={"X-MBX-APIKEY": KEY}) as answer:
            body = await answer.json()
            assert "orderId" in body, body

    return await _timed(ask)


async def _rest_reference(session: aiohttp.ClientSession, url: str) -> list[float]:
    async def ask(n: int) -> None:
        query = urlencode(_order(Clock(0, 0), n))
        async with session.post(f"{url}/fapi/v1/order?{query}&signature={_sign(query)}", headers={"X-MBX-APIKEY": KEY}) as answer:
            await answer.read()

    return await _timed(ask)


async def _ws_api(session: aiohttp.ClientSession, url: str, clock: Clock) -> list[float]:
    async with session.ws_connect(url, compress=0) as connection:

        async def ask(n: int) -> None:
            params = _order(clock, n) | {"apiKey": KEY}
            params["signature"] = _sign("&".join(f"{k}={params[k]}" for k in sorted(params)))
            await connection.send_str(json.dumps({"id": n, "method": "order.place", "params": params}))
            answer = json.loads((await connection.receive()).data)
            assert answer.get("status", 200) == 200, answer

        return await _timed(ask)


async def _round_trips() -> list[Row]:
    async with aiohttp.ClientSession() as session:
        async with _running(_exchange, ("BTCUSDT", "ETHUSDT"), 0) as ready:
            rest, ws_api = await _rest(session, ready), await _ws_api(session, ready.ws_api, ready.clock)
        async with _running(_echo_http) as url:
            rest_echo = await _rest_reference(session, url)
        async with _running(_echo_ws) as url:
            ws_echo = await _ws_api(session, url, Clock(0, 0))
    rows = []
    for case, figures, name, reference in (("REST order round trip", rest, "aiohttp echo", rest_echo),
                                           ("WS-API order round trip", ws_api, "websockets echo", ws_echo)):  # fmt: skip
        for label, part in (("p50", 0.5), ("p99", 0.99)):
            rows.append(row("exchange", f"{case}, {label}", "ms", percentile(figures, part), reference=name,
                            reference_value=percentile(reference, part)))  # fmt: skip
    return rows


# --- frames ------------------------------------------------------------------------------------------------------------------------------


def _open(url: str, path: str) -> socket.socket:
    """A bare WebSocket, read as bytes: the client shall cost nothing."""
    place = urlsplit(url)
    found = socket.create_connection((place.hostname or "", place.port or 0))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    head = f"GET {place.path}{path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    found.sendall((head + "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += found.recv(1)
    return found


def _drain(sockets: list[socket.socket], each: int) -> float:
    """Wall seconds from the first frame to the last, all clients together."""
    selector = selectors.DefaultSelector()
    left = {}
    for one in sockets:
        selector.register(one, selectors.EVENT_READ)
        left[one] = each
    first, tails, buffer = 0, dict.fromkeys(sockets, b""), bytearray(4 << 20)
    while left:
        for key, _ in selector.select(30):
            one: Any = key.fileobj
            size = one.recv_into(buffer)
            assert size, "the exchange has cut the client off"
            first = first or monotonic_ns()
            data = tails[one] + bytes(memoryview(buffer)[:size])
            left[one] -= data.count(MARK)
            tails[one] = data[-(len(MARK) - 1) :]
            if left[one] <= 0:
                selector.unregister(one)
                del left[one]
    return (monotonic_ns() - first) / SECOND_NS


async def _frames(clients: int) -> Row:
    names, each = scaled_universe(SYMBOLS), FRAMES // clients
    streams = "/".join(f"{name.lower()}@aggTrade" for name in names)
    async with _running(_exchange, names, each) as ready:
        sockets = [_open(ready.market, f"/stream?streams={streams}") for _ in range(clients)]
        took_s = await asyncio.to_thread(_drain, sockets, each)
    async with _running(_broadcast, clients, each // 4) as url:
        sockets = [_open(url, "/") for _ in range(clients)]
        reference_s = await asyncio.to_thread(_drain, sockets, each // 4)
    people = "1 client" if clients == 1 else f"{clients} clients together"
    return row("exchange", f"frames to {people}", "frames_per_s", clients * each / took_s, reference="websockets broadcast",
               reference_value=clients * (each // 4) / reference_s)  # fmt: skip


# --- the core ----------------------------------------------------------------------------------------------------------------------------


def _core() -> Iterator[Row]:
    market = DenseMarket(("BTCUSDT",), 0, 1_795_146_000_000)
    core = Core(ExchangeOptions(accounts=(Account(KEY, SECRET, Decimal(10_000_000)),), limits=ROOMY), JumpingMarket(market), market.open_ms)
    core.open_accounts()
    core.look_back()
    account = core.state.accounts[0]

    def taken() -> None:
        for n in range(CORE_ORDERS):
            side = Side.BUY if n % 2 else Side.SELL
            core.placing.place(account, OrderEntry(0, side, "MARKET", PositionSide.BOTH, "GTC", Decimal("0.01"), Decimal(0)))
            core.take_output()
        core.state.changes.clear()

    def rested() -> None:
        for _ in range(CORE_ORDERS):
            order = core.placing.place(account, OrderEntry(0, Side.BUY, "LIMIT", PositionSide.BOTH, "GTC", Decimal("0.01"), Decimal(59_000)))
            core.placing.cancel(account, 0, order.id, "")
            core.take_output()
        core.state.changes.clear()

    bare = _bare_book()
    for case, work in (("core alone, market orders filled", taken), ("core alone, limit orders placed and cancelled", rested)):
        figure = ns_per_op(work, CORE_ORDERS, repetitions=5)
        yield row("exchange", case, "orders_per_s", SECOND_NS / figure, reference="heap and dict, no checks, no ledger", reference_value=bare)


def _bare_book() -> float:
    def work() -> None:
        heap: list[tuple[int, int]] = []
        orders: dict[int, dict[str, Any]] = {}
        for n in range(CORE_ORDERS):
            orders[n] = {"id": n, "price": Decimal(59_000), "qty": Decimal("0.01"), "status": "NEW"}
            heapq.heappush(heap, (n % 50, n))
        while heap:
            orders[heapq.heappop(heap)[1]]["status"] = "FILLED"

    return SECOND_NS / ns_per_op(work, CORE_ORDERS)


def run() -> Iterator[Row]:
    os.environ.setdefault("PYTHONHASHSEED", "0")
    yield from _core()
    yield from uvloop.run(_round_trips())
    for clients in (1, 4):
        yield uvloop.run(_frames(clients))
