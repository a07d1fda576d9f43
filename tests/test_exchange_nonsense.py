"""Clients that were never right: whatever bytes come, by whichever door, the answer is the venue's, or an end by the protocol's rules.

Each seed does one thing at every door: plausible requests with something wrong, bodies, frames, messages of the WS API, bytes that are no
HTTP and no WebSocket. After it the exchange answers as before, and its log holds no error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from src.clock import seeded
from src.exchange.rest import ENDPOINTS
from src.exchange.ws_api import METHODS, SESSION_METHODS
from tests.test_exchange_fuzz import NAMES, ROOMY, VALUES
from tests.test_exchange_wire import DEADLINE_S, KEY, Client, exchange, options

GOOD = {
    "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010", "price": "59000.0", "limit": "5",
    "interval": "1m", "pair": "BTCUSDT", "contractType": "PERPETUAL", "period": "5m", "leverage": "20", "marginType": "CROSSED", "orderId": "1",
    "algoType": "CONDITIONAL", "triggerPrice": "70000", "countdownTime": "1000", "dualSidePosition": "false", "multiAssetsMargin": "false",
    "amount": "1", "feeBurn": "true", "algoId": "1", "batchOrders": "[]", "orderIdList": "[1]", "fromId": "1", "startTime": "1",
}  # fmt: skip
STREAMS = [
    "btcusdt@aggTrade", "btcusdt@depth5@100ms", "!ticker@arr", "ethusdt@kline_1m", "btcusdt@depth", "nope@nope", "", "@", "!", "btcusdt@depth0@0ms",
    "btcusdt@kline_", "btcusdt_perpetual@continuousKline_1s", "usd@assetIndex", "btcusdt@bookTicker@1s", "é@aggTrade", "a" * 300,
]  # fmt: skip
CONTROLS = ["price", "mute", "mute_stream", "flood", "rubbish", "symbol", "latency", "transfer", "fault", "chaos", "clear_faults", "books", "faults"]


class Fuzz:
    """One client's mischief. Every method is one door; it returns when that has been answered."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client = client
        self.rng = seeded(seed)

    def value(self) -> Any:
        """Anything JSON can hold."""
        rng = self.rng
        return rng.choice((
            lambda: rng.choice(VALUES), lambda: rng.choice(list(GOOD.values())), lambda: rng.randrange(-(2**70), 2**70), rng.random, lambda: None,
            lambda: rng.random() < 0.5, lambda: [rng.choice(VALUES)] * rng.randrange(4), lambda: {rng.choice(NAMES): rng.choice(VALUES)},
            lambda: "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(rng.randrange(20))), lambda: float("1e308"), lambda: STREAMS,
        ))()  # fmt: skip

    def params(self) -> dict[str, str]:
        """Plausible ones, with a few that are wrong, missing or too many."""
        rng = self.rng
        found = {name: GOOD[name] for name in rng.sample(sorted(GOOD), rng.randrange(len(GOOD)))} | {"timestamp": str(self.client.clock.market_ms())}
        for _ in range(rng.randrange(3)):
            found[rng.choice(NAMES)] = rng.choice(VALUES)
        if rng.random() < 0.2:
            found.pop(rng.choice(sorted(found)))
        return found

    def spoilt(self, data: bytes) -> bytes:
        """Some bytes are others, fewer or more."""
        rng, out = self.rng, bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(out) + 1)
            out[at:at + rng.randrange(3)] = rng.choice((rng.randbytes(rng.randrange(4)), b"%", b"&", b"=", b'"', b"\\u0000", b"\x00", b"[[", b"}"))
        return bytes(out)

    # ------------------------------------------------------------------ REST

    async def rest(self) -> None:
        rng = self.rng
        method, path = rng.choice(sorted(ENDPOINTS))
        query = urlencode(self.params(), errors="surrogatepass")
        if rng.random() < 0.3:
            query = "".join(chr(b) for b in self.spoilt(query.encode()) if 32 < b < 127 and b not in b'#"<>\\^`{|} ')
        cut = rng.randrange(len(query) + 1) if method != "GET" and rng.random() < 0.5 else len(query)
        in_url, body = query[:cut], query[cut:]
        if rng.random() < 0.9:
            in_url += f"{'&' if in_url else ''}signature={self.client.sign(in_url + body)}"
        where = ("" if path.startswith("/") else "/fapi/") + path
        key = KEY if rng.random() < 0.9 else rng.choice(("x", "k" * 64, "!"))
        headers = {"X-MBX-APIKEY": key, "Content-Type": "application/x-www-form-urlencoded"}
        async with asyncio.timeout(DEADLINE_S):
            status, answer = await self.client.raw(method, f"{where}?{in_url}", data=body.encode() or None, headers=headers)
        assert status < 500, (method, path, in_url, body, answer)
        assert status == 200 or answer["code"] < 0, (method, path, answer)

    async def body(self) -> None:
        """Bodies that are no form."""
        rng = self.rng
        data = rng.choice((lambda: rng.randbytes(rng.randrange(300)), lambda: json.dumps(self.params()).encode(), lambda: b"[" * 5000))()
        kind = rng.choice(("application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain; charset=no"))
        path = rng.choice(("v1/order", "v1/batchOrders", "v1/algoOrder", "v1/leverage", "v1/listenKey"))
        async with asyncio.timeout(DEADLINE_S):
            status, answer = await self.client.raw("POST", f"/fapi/{path}", data=data, headers={"X-MBX-APIKEY": KEY, "Content-Type": kind})
        assert status < 500 and (status == 200 or answer["code"] < 0), (path, data, answer)

    async def control(self) -> None:
        rng = self.rng
        known = {"symbol": "BTCUSDT", "price": "60000", "route": "market", "on": False, "copies": 1, "texts": [], "key": KEY, "amount": "1",
                 "kind": "slow", "door": "nothing", "stream": STREAMS[0], "latency_ms": 0, "status": "TRADING",
                 "seed": 1, "every_s": 1000.0}  # fmt: skip
        wrong = {name: known[name] for name in rng.sample(sorted(known), 8)} | {rng.choice(sorted(known)): self.value()}
        async with asyncio.timeout(DEADLINE_S):
            status, answer = await self.client.raw(rng.choice(("POST", "GET")), f"/control/{rng.choice(CONTROLS)}", json=wrong)
            assert status in (200, 400), (wrong, answer)
            await self.client.control("clear_faults")
            await self.client.control("latency", latency_ms=0)

    # ------------------------------------------------------------------ sockets

    async def messages(self) -> None:
        """On the streams: each is answered, or ends the connection with 1008."""
        rng = self.rng
        base = self.client.ready.rest.replace("http", "ws") + rng.choice(("", "/market", "/public", "/private")) + rng.choice(("/ws", "/stream"))
        socket = await self.client.socket(base)
        for number in range(4):
            message = {"method": rng.choice(("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY", self.value())),
                       "params": rng.choice((rng.sample(STREAMS, 5), ["combined"], ["combined", True], self.value())),
                       "id": rng.choice((number, self.value()))}  # fmt: skip
            text = json.dumps(message)
            if rng.random() < 0.4:
                text = self.spoilt(text.encode()).decode("utf-8", "replace")
            if not await self._answered(socket, text):
                return
        await socket.socket.close()

    async def requests(self) -> None:
        """On the WS API."""
        rng = self.rng
        socket = await self.client.socket(self.client.ready.ws_api)
        for number in range(4):
            params: dict[str, Any] = {**self.params(), "apiKey": KEY}
            params["timestamp"] = self.client.clock.market_ms()
            if rng.random() < 0.3:
                params[rng.choice(NAMES)] = self.value()
            with suppress(TypeError):
                params["signature"] = self.client.sign("&".join(f"{k}={params[k]}" for k in sorted(params)).encode("utf-8", "replace").decode())
            method = rng.choice((*sorted(METHODS), *SESSION_METHODS, "nonsense"))
            message: dict[str, Any] = {"id": rng.choice((number, "x", None, self.value())), "method": method, "params": params}
            text = json.dumps(message)
            if rng.random() < 0.3:
                text = self.spoilt(text.encode()).decode("utf-8", "replace")
            if not await self._answered(socket, text):
                return
        await socket.socket.close()

    @staticmethod
    async def _answered(socket: Any, text: str) -> bool:
        """False where the connection has ended as the protocol has it."""
        await socket.send(text)
        while True:
            message = await socket.frame()
            if message.type is not aiohttp.WSMsgType.TEXT:
                assert message.type is aiohttp.WSMsgType.CLOSE and message.data in (1007, 1008, 1009), (text, message)
                return False
            answer = json.loads(message.data)
            if isinstance(answer, dict) and not ("e" in answer or "stream" in answer):
                assert answer.get("status", 200) < 500, (text, answer)
                return True

    # ------------------------------------------------------------------ bytes

    async def bytes(self) -> None:
        """No HTTP, or half of it: an answer or an end, and no waiting for more than there is."""
        rng = self.rng
        post = b"POST /fapi/v1/order HTTP/1.1\r\nHost: x\r\n"
        start = rng.choice((b"GET /fapi/v1/time HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /market/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
                            post + b"Content-Length: 5\r\n\r\nabcde", post + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                            rng.randbytes(rng.randrange(1, 200))))  # fmt: skip
        await self._raw(self.spoilt(start))

    async def frames(self) -> None:
        """Frames that break the WebSocket protocol after a handshake that does not."""
        rng = self.rng
        path = rng.choice(("/market/ws", "/public/stream", "/private/ws", "/ws-fapi/v1"))
        hello = f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" \
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"  # fmt: skip
        payload, flags = rng.randbytes(rng.randrange(130)), rng.choice((0x80, 0x00))
        size = bytes((flags | len(payload),)) if len(payload) < 126 else bytes((flags | 126, 0, len(payload)))
        frame = rng.choice((
            rng.randbytes(1) + size + rng.randbytes(4) + payload, rng.randbytes(rng.randrange(1, 40)), b"\x81\xff" + b"\x7f" * 8,
            b"\x88\x80" + rng.randbytes(4), b"\x01\x83\x00\x00\x00\x00abc\x01\x83\x00\x00\x00\x00abc",
        ))  # fmt: skip
        await self._raw(hello.encode() + frame)

    async def _raw(self, data: bytes) -> None:
        host, _, port = self.client.ready.rest.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                with suppress(ConnectionError):
                    answer = await reader.read()
                    assert b"Traceback" not in answer
        finally:
            writer.close()


DOORS: tuple[Callable[[Fuzz], Any], ...] = (
    Fuzz.rest, Fuzz.rest, Fuzz.rest, Fuzz.body, Fuzz.control, Fuzz.messages, Fuzz.requests, Fuzz.bytes, Fuzz.frames,
)  # fmt: skip


async def bother(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    async with exchange(options(limits=ROOMY, latency_ms=0)) as client:
        for seed in seeds:
            fuzz = Fuzz(client, seed)
            for door in DOORS:
                try:
                    await door(fuzz)
                except TimeoutError:
                    raise AssertionError(f"seed {seed}: {door.__name__} was never answered") from None
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}: {door.__name__}: {error}") from None
            errors = [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]
            assert not errors, f"seed {seed}: {errors[0].getMessage()} {errors[0].exc_text or errors[0].exc_info}"
        await client.get("v1/ping")
        assert (await client.books())["wallet"]


async def test_nonsense_at_every_door_is_answered_and_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    await bother(range(100), caplog)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
async def test_five_thousand_seeds_of_nonsense(part: int, caplog: pytest.LogCaptureFixture) -> None:
    each = int(os.environ.get("FUZZ_SEEDS", "5200")) // 4
    await bother(range(1000 + part * each, 1000 + (part + 1) * each), caplog)
