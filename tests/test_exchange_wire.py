"""A client of the wire for the exchange's tests, and a first look at a running server: doors, headers, clock, order of user events."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from yarl import URL

from src.clock import Clock, epoch_ms
from src.exchange.market import Market
from src.exchange.options import Account, ExchangeOptions, Limits
from src.exchange.server import Ready, build, serve
from tests.test_exchange_fake import T0, FakeMarket

KEY, SECRET = "key", "secret"
DEADLINE_S = 8.0
ROOMY = Limits(weight_per_minute=100_000, messages_per_second=1000)


def options(**given: Any) -> ExchangeOptions:
    words: dict[str, Any] = {"market": "replay", "accounts": (Account(KEY, SECRET, Decimal(10_000)),), "control": True, "limits": ROOMY}
    return ExchangeOptions(**(words | given))


class Client:
    """Signs and sends; REST answers come as ``(status, body)``, with the headers of the last one kept."""

    def __init__(self, session: aiohttp.ClientSession, ready: Ready) -> None:
        self.session = session
        self.ready = ready
        self.clock: Clock = ready.clock
        self.headers: dict[str, str] = {}
        self.key, self.secret = KEY, SECRET

    def sign(self, payload: str) -> str:
        return hmac.new(self.secret.encode(), payload.encode(), hashlib.sha256).hexdigest()

    async def raw(self, method: str, path: str, **words: Any) -> tuple[int, Any]:
        async with self.session.request(method, URL(self.ready.rest + path, encoded=True), **words) as answer:
            self.headers = dict(answer.headers)
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def get(self, path: str, **params: Any) -> Any:
        """A public answer that must be good."""
        status, body = await self.raw("GET", "/fapi/" + path + ("?" + urlencode(params) if params else ""))
        assert status == 200, body
        return body

    async def signed(self, method: str, path: str, **params: Any) -> tuple[int, Any]:
        params.setdefault("timestamp", self.clock.market_ms())
        query = urlencode(params)
        url = f"/fapi/{path}?{query}&signature={self.sign(query)}"
        return await self.raw(method, url, headers={"X-MBX-APIKEY": self.key})

    async def good(self, method: str, path: str, **params: Any) -> Any:
        status, body = await self.signed(method, path, **params)
        assert status == 200, body
        return body

    async def code(self, method: str, path: str, **params: Any) -> int:
        """The code of a refusal."""
        status, body = await self.signed(method, path, **params)
        assert status >= 400, body
        return int(body["code"])

    async def control(self, action: str, **body: Any) -> Any:
        status, answer = await self.raw("POST", "/control/" + action, json=body)
        assert status == 200, answer
        return answer

    async def books(self) -> Any:
        return (await self.raw("GET", "/control/books"))[1][self.key]

    async def listen_key(self) -> str:
        _, body = await self.raw("POST", "/fapi/v1/listenKey", headers={"X-MBX-APIKEY": self.key})
        return str(body["listenKey"])

    async def user_stream(self, events: str = "ORDER_TRADE_UPDATE/ACCOUNT_UPDATE/ALGO_UPDATE/TRADE_LITE/ACCOUNT_CONFIG_UPDATE") -> Socket:
        return await self.socket(f"{self.ready.private}/ws?listenKey={await self.listen_key()}&events={events}")

    async def socket(self, url: str) -> Socket:
        return Socket(await self.session.ws_connect(url, autoping=False, max_msg_size=0))


class Socket:
    """A WebSocket with deadlines."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def frame(self) -> aiohttp.WSMessage:
        return await asyncio.wait_for(self.socket.receive(), DEADLINE_S)

    async def next(self) -> Any:
        """The next text message."""
        message = await self.frame()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return json.loads(message.data)

    async def ask(self, message: Any) -> Any:
        """Send, and the first answer that is not a market or user event."""
        await self.send(message)
        while True:
            answer = await self.next()
            if not (isinstance(answer, dict) and ("e" in answer or "stream" in answer)):
                return answer

    async def until(self, wanted: Any) -> list[Any]:
        """Messages up to and with the first one that ``wanted`` accepts."""
        got = [await self.next()]
        while not wanted(got[-1]):
            got.append(await self.next())
        return got


def short(event: dict[str, Any]) -> str:
    body = event.get("o") or event.get("a") or {}
    detail = {"ORDER_TRADE_UPDATE": body.get("x"), "ALGO_UPDATE": body.get("X"), "ACCOUNT_UPDATE": body.get("m")}.get(event["e"])
    return event["e"] + (f" {detail}" if detail else "")


@asynccontextmanager
async def exchange(given: ExchangeOptions | None = None, market: Market | None = None) -> AsyncIterator[Client]:
    """A running exchange on a fake market (two quiet symbols) or over a venue that the options name, and a client of it."""
    over_venue = given is not None and given.venue is not None
    source = None if over_venue else market or FakeMarket(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), seconds=600)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    started: asyncio.Future[Ready] = loop.create_future()
    task = asyncio.create_task(serve(given or options(), started.set_result, stop, source))
    await asyncio.wait({task, started}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, started.result())
    finally:
        stop.set()
        await asyncio.wait_for(task, DEADLINE_S)


# ------------------------------------------------------------------ a first look


async def test_every_answer_carries_weight_and_the_run_s_clock() -> None:
    async with exchange() as client:
        before = (await client.get("v1/time"))["serverTime"]
        t0, m0, speed = client.headers["x-sim-clock"].split(",")
        assert Clock(int(t0), int(m0), float(speed)) == client.clock
        assert int(client.headers["x-mbx-used-weight-1m"]) == 1
        await client.get("v1/aggTrades", symbol="BTCUSDT")
        assert int(client.headers["x-mbx-used-weight-1m"]) == 21
        assert re.fullmatch(r"\d+ms", client.headers["x-response-time"]) and client.headers["Server"] == "nginx"
        assert 0 <= client.clock.market_ms() - before < 5000
        assert (await client.raw("GET", "/fapi/v1/balance"))[0] == 404
        await client.signed("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")
        assert client.headers["x-mbx-order-count-10s"] == client.headers["x-mbx-order-count-1m"] == "1"


async def test_a_fill_arrives_as_trade_then_account_then_order() -> None:
    async with exchange() as client:
        user = await client.user_stream()
        answer = await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1", newClientOrderId="one")
        assert (answer["status"], answer["executedQty"]) == ("NEW", "0"), "an ACK knows nothing of the fill"
        assert "avgPrice" not in answer and "cumQuote" not in answer
        got = [short(await user.next()) for _ in range(4)]
        assert got == ["ORDER_TRADE_UPDATE NEW", "TRADE_LITE", "ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE TRADE"]
        row = await client.good("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="one")
        assert (row["status"], Decimal(row["avgPrice"])) == ("FILLED", Decimal("60000.1"))


async def test_result_waits_for_the_end_of_the_order() -> None:
    async with exchange() as client:
        answer = await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1", newOrderRespType="RESULT")
        assert (answer["status"], Decimal(answer["cumQty"])) == ("FILLED", Decimal("0.1"))


async def test_the_life_of_a_stop_over_the_wire() -> None:
    async with exchange() as client:
        user = await client.user_stream()
        await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
        stop = await client.good(
            "POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="BTCUSDT", side="SELL", type="STOP_MARKET", triggerPrice="59000",
            closePosition="true", timeInForce="GTE_GTC", clientAlgoId="stop-1",
        )  # fmt: skip
        assert [a["algoId"] for a in await client.good("GET", "v1/openAlgoOrders")] == [stop["algoId"]]
        assert await client.good("GET", "v1/openOrders") == []
        assert await client.code("GET", "v1/order", symbol="BTCUSDT", orderId=stop["algoId"]) == -2013
        assert await client.code("DELETE", "v1/order", symbol="BTCUSDT", orderId=stop["algoId"]) == -2011
        await client.control("price", symbol="BTCUSDT", price="58900")
        events = await user.until(lambda e: short(e) == "ALGO_UPDATE FINISHED")
        assert [short(e) for e in events[4:]] == [
            "ALGO_UPDATE NEW", "ALGO_UPDATE TRIGGERING", "ORDER_TRADE_UPDATE NEW", "ALGO_UPDATE TRIGGERED", "TRADE_LITE",
            "ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE TRADE", "ALGO_UPDATE FINISHED",
        ]  # fmt: skip
        assert events[-1]["o"]["aq"] == "0.100" and events[-1]["o"]["ai"] == str(events[-2]["o"]["i"])
        assert events[-2]["o"]["c"] == "stop-1"
        row = await client.good("GET", "v1/algoOrder", clientAlgoId="stop-1")
        assert (row["algoStatus"], row["actualOrderId"]) == ("FINISHED", events[-1]["o"]["ai"])
        assert (await client.good("GET", "v3/positionRisk")) == []


async def test_account_answers_agree_with_the_books() -> None:
    async with exchange() as client:
        await client.good("POST", "v1/marginType", symbol="ETHUSDT", marginType="ISOLATED")
        await client.good("POST", "v1/order", symbol="ETHUSDT", side="SELL", type="MARKET", quantity="1")
        await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="LIMIT", quantity="0.1", price="59000", timeInForce="GTC")
        books = await client.books()
        v2, v3 = await client.good("GET", "v2/account"), await client.good("GET", "v3/account")
        assert Decimal(v3["totalWalletBalance"]) == Decimal(v2["totalWalletBalance"]) == Decimal(books["wallet"])
        assert {p["symbol"] for p in v3["positions"]} == {"BTCUSDT", "ETHUSDT"}
        assert Decimal(v3["totalOpenOrderInitialMargin"]) == Decimal("295")
        risk = await client.good("GET", "v3/positionRisk", symbol="ETHUSDT")
        assert (risk[0]["positionAmt"], "leverage" in risk[0]) == ("-1.000", False)
        assert (await client.good("GET", "v2/positionRisk", symbol="ETHUSDT"))[0]["marginType"] == "isolated"
        assert (await client.good("GET", "v1/symbolConfig", symbol="ETHUSDT"))[0]["marginType"] == "ISOLATED"
        trades = await client.good("GET", "v1/userTrades", symbol="ETHUSDT")
        income = await client.good("GET", "v1/income")
        assert sum(Decimal(r["income"]) for r in income) == Decimal(books["wallet"])
        assert Decimal(trades[0]["commission"]) == Decimal(books["commission"])
        balance = (await client.good("GET", "v2/balance"))[0]
        assert Decimal(balance["crossWalletBalance"]) < Decimal(balance["balance"])


async def test_batches_answer_each_item_in_its_place() -> None:
    async with exchange() as client:
        good = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "59000", "quantity": "0.01"}
        rows = json.dumps([good | {"newClientOrderId": "a"}, good | {"price": "59000.05"}, good | {"newClientOrderId": "a"}])
        answer = await client.good("POST", "v1/batchOrders", batchOrders=rows)
        assert [r.get("code") or r["status"] for r in answer] == ["NEW", -4014, -4116]
        assert client.headers["x-mbx-order-count-10s"] == "5" and client.headers["x-mbx-order-count-1m"] == "1"
        gone = await client.good("DELETE", "v1/batchOrders", symbol="BTCUSDT", origClientOrderIdList='["a","b"]')
        assert [r.get("code") or r["status"] for r in gone] == ["CANCELED", -2011]
        assert await client.code("POST", "v1/batchOrders", batchOrders=json.dumps([good] * 6)) == -4082
        assert (await client.good("DELETE", "v1/allOpenOrders", symbol="BTCUSDT"))["code"] == 200
        assert (await client.good("POST", "v1/countdownCancelAll", symbol="BTCUSDT", countdownTime=0))["countdownTime"] == "0"


@pytest.mark.parametrize("speed", [1.0, 60.0])
async def test_the_window_of_a_request_is_scaled_with_the_market(speed: float) -> None:
    async with exchange(options(speed=speed)) as client:
        now = client.clock.market_ms()
        assert (await client.signed("GET", "v3/balance", timestamp=now - int(4000 * speed)))[0] == 200
        late = await client.signed("GET", "v3/balance", timestamp=now - int(7000 * speed))
        assert late[1] == {"code": -1021, "msg": "Timestamp for this request is outside of the recvWindow."}
        early = await client.signed("GET", "v3/balance", timestamp=now + int(4000 * speed))
        assert early[1] == {"code": -1021, "msg": "Timestamp for this request was 1000ms ahead of the server's time."}


async def test_a_market_that_has_ended_goes_silent_and_the_venue_serves_on() -> None:
    market = FakeMarket(("BTCUSDT", "60000"), seconds=1)
    market.end_ms = market.open_ms + 50
    async with exchange(options(), market) as client:
        while client.clock.market_ms() < market.end_ms + 100:
            await client.get("v1/ping")
        assert (await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01"))["orderId"]


class SlowMarket(FakeMarket):
    """Takes longer to look back than a client may be ahead."""

    def agg_trades(self, symbol_index: int, **span: Any) -> Any:
        threading.Event().wait(0.6)
        return super().agg_trades(symbol_index, **span)


def test_a_start_that_takes_long_leaves_the_clock_right() -> None:
    """A client with the true time would be refused with -1021 otherwise."""
    before = epoch_ms()
    venue = build(options(market="synthetic"), SlowMarket(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), open_ms=before), None, None)
    assert epoch_ms() - before >= 1200 and abs(venue.now_ms() - epoch_ms()) < 200


async def test_a_price_has_the_time_of_its_trade_and_a_book_that_of_the_quote_behind_it() -> None:
    """Who compares streams with REST must not be told of a trade where only the book has moved."""
    market = FakeMarket(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), seconds=0)
    quoted = market.open_ms + 100
    market.put(0, quoted, "60000", 0, bid="59999", ask="60001")
    async with exchange(market=market) as client, asyncio.timeout(DEADLINE_S):
        while (await client.get("v1/ticker/bookTicker", symbol="BTCUSDT"))["time"] != quoted:
            await asyncio.sleep(0.02)
        assert (await client.get("v2/ticker/price", symbol="BTCUSDT"))["time"] == market.open_ms - 1000


async def test_funding_is_charged_at_the_mark_that_its_history_tells() -> None:
    hour = T0 // (8 * 3_600_000) * 8 * 3_600_000 + 8 * 3_600_000
    market = FakeMarket(("BTCUSDT", "60000"), open_ms=hour - 5000, seconds=1)
    for n in range(1, 300):
        market.put(0, hour - 5000 + n * 1000, f"{60000 + 20 * n}")  # the mark follows, far behind
    async with exchange(options(speed=10.0), market) as client:
        user = await client.user_stream()
        await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
        paid = (await user.until(lambda e: e.get("a", {}).get("m") == "FUNDING_FEE"))[-1]["a"]["B"][0]["bc"]
        (row,) = [r for r in await client.get("v1/fundingRate", symbol="BTCUSDT") if r["fundingTime"] == hour]
        assert Decimal(paid) == -(Decimal("0.1") * Decimal(row["markPrice"]) * Decimal(row["fundingRate"])).quantize(Decimal("1e-8"))


async def opened(client: Client, words: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection to the exchange, on which these bytes have been sent."""
    url = URL(client.ready.rest)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(words)
    return reader, writer


@pytest.mark.parametrize("body", [b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
                                  b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"])  # fmt: skip
@pytest.mark.parametrize("path", [b"/fapi/v1/order", b"/control/price"])
async def test_a_body_that_is_not_what_it_announced_is_a_bad_request(path: bytes, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with exchange() as client:
        reader, writer = await opened(client, b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + body)
        assert (await asyncio.wait_for(reader.readline(), DEADLINE_S)).split()[1] == b"400"
        writer.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_clients_that_never_read_do_not_hold_up_the_end() -> None:
    """More than the network takes waits for each of them, and less than what they are cut for."""
    handshake = b"GET /market/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" \
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"  # fmt: skip
    writers = []
    async with exchange(options(limits=replace(ROOMY, send_buffer_bytes=1 << 30))) as client:
        for _ in range(3):
            reader, writer = await opened(client, handshake)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()
            writers.append(writer)
        for _ in range(20):
            assert await client.control("rubbish", route="market", texts=["x" * 900_000]) == {"heard": 3}
    for writer in writers:
        writer.close()
