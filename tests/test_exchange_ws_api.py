"""The WebSocket API: envelopes, signatures over sorted parameters, sessions, limits, and the same refusals as REST."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from src.exchange.options import Account, Limits
from tests.test_exchange_wire import KEY, Client, Socket, exchange, options

ORDER: dict[str, Any] = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.1"}


def signed(client: Client, params: dict[str, Any]) -> dict[str, Any]:
    whole = {"apiKey": KEY, "timestamp": client.clock.market_ms()} | params
    whole["signature"] = client.sign("&".join(f"{k}={whole[k]}" for k in sorted(whole)))
    return whole


@pytest.fixture
async def client() -> Any:
    async with exchange() as client:
        yield client


async def call(socket: Socket, method: str, params: dict[str, Any] | None = None) -> Any:
    answer = await socket.ask({"id": "a", "method": method, "params": params or {}})
    assert answer["id"] == "a"
    return answer


async def test_an_order_is_acknowledged_and_counted(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    answer = await call(socket, "order.place", signed(client, ORDER | {"newClientOrderId": "ws-1"}))
    assert (answer["status"], answer["result"]["status"], answer["result"]["clientOrderId"]) == (200, "NEW", "ws-1")
    counts = {(r["rateLimitType"], r["interval"]): r["count"] for r in answer["rateLimits"]}
    assert counts[("ORDERS", "SECOND")] == counts[("ORDERS", "MINUTE")] == 1
    status = await call(socket, "order.status", signed(client, {"symbol": "BTCUSDT", "origClientOrderId": "ws-1"}))
    assert status["result"]["status"] == "FILLED"


@pytest.mark.parametrize(
    ("method", "params", "status", "code"),
    [
        ("order.place", ORDER | {"type": "STOP_MARKET"}, 400, -4120),
        ("order.place", ORDER | {"quantity": "x"}, 400, -1100),
        ("order.cancel", {"symbol": "BTCUSDT", "orderId": 5}, 400, -2011),
        ("order.modify", {"symbol": "BTCUSDT", "side": "BUY", "orderId": 5, "price": "59000", "quantity": "1"}, 400, -2013),
        ("algoOrder.cancel", {"algoId": 5}, 400, -2011),
        ("order.status", {"symbol": "BTCUSDT", "orderId": 5}, 400, -2013),
        ("no.such", {}, 400, -1020),
    ],
)
async def test_refusals_carry_status_and_code(client: Client, method: str, params: dict[str, Any], status: int, code: int) -> None:
    socket = await client.socket(client.ready.ws_api)
    answer = await call(socket, method, signed(client, params))
    assert (answer["status"], answer["error"]["code"]) == (status, code)


async def test_algo_orders_and_accounts(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    await call(socket, "order.place", signed(client, ORDER))
    algo = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET", "triggerPrice": "59000",
            "closePosition": "true", "timeInForce": "GTE_GTC"}  # fmt: skip
    placed = await call(socket, "algoOrder.place", signed(client, algo))
    assert placed["result"]["algoStatus"] == "NEW"
    gone = await call(socket, "algoOrder.cancel", signed(client, {"algoId": placed["result"]["algoId"]}))
    assert gone["result"]["code"] == "200"
    position = await call(socket, "v2/account.position", signed(client, {}))
    assert position["result"][0]["positionAmt"] == "0.100"
    assert len((await call(socket, "account.position", signed(client, {})))["result"]) == 2
    balance = await call(socket, "v2/account.balance", signed(client, {}))
    assert Decimal(balance["result"][0]["balance"]) < 10_000
    assert (await call(socket, "account.status", signed(client, {})))["result"]["canTrade"] is True
    assert (await call(socket, "ticker.book", {"symbol": "BTCUSDT"}))["result"]["bidPrice"] == "59999.90"
    assert len((await call(socket, "depth", {"symbol": "BTCUSDT", "limit": 5}))["result"]["bids"]) == 5
    assert (await call(socket, "ticker.price"))["result"][1]["price"] == "3000.00"
    key = (await call(socket, "userDataStream.start", {"apiKey": KEY}))["result"]["listenKey"]
    assert (await call(socket, "userDataStream.ping", {"apiKey": KEY}))["result"]["listenKey"] == key
    assert (await call(socket, "userDataStream.stop", {"apiKey": KEY}))["result"] == {}


async def test_the_account_tells_a_little_more_than_over_rest(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    await client.good("POST", "v1/order", **ORDER, newOrderRespType="RESULT")
    position = (await client.good("GET", "v3/positionRisk"))[0]
    old, new = [(await call(socket, method, signed(client, {})))["result"] for method in ("account.status", "v2/account.status")]
    rest_old, rest_new = await client.good("GET", "v2/account"), await client.good("GET", "v3/account")
    assert {p["breakEvenPrice"] for p in old["positions"]} == {"0", position["breakEvenPrice"]} != {"0"}
    assert old["positions"][0].keys() - rest_old["positions"][0].keys() == {"breakEvenPrice"}
    assert new["assets"][0].keys() - rest_new["assets"][0].keys() == {"marginAvailable"}


async def test_signatures_are_checked(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api + "?returnRateLimits=false")
    wrong = signed(client, ORDER) | {"quantity": "0.2"}
    answer = await call(socket, "order.place", wrong)
    assert (answer["error"]["code"], "rateLimits" in answer) == (-1022, False)
    missing = {k: v for k, v in signed(client, ORDER).items() if k != "signature"}
    assert (await call(socket, "order.place", missing))["error"]["code"] == -1102
    assert (await call(socket, "order.place", signed(client, ORDER | {"apiKey": "other"})))["status"] == 401
    assert (await call(socket, "session.logon", signed(client, {})))["error"]["code"] == -4056


async def test_a_session_signs_once() -> None:
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    account = Account(KEY, "ed25519=" + pem.decode(), Decimal(10_000))
    async with exchange(options(accounts=(account,))) as client:
        socket = await client.socket(client.ready.ws_api)
        params = {"apiKey": KEY, "timestamp": client.clock.market_ms()}
        payload = "&".join(f"{k}={params[k]}" for k in sorted(params))
        logon = params | {"signature": base64.b64encode(private.sign(payload.encode())).decode()}
        assert (await call(socket, "session.logon", logon))["result"]["apiKey"] == KEY
        assert (await call(socket, "session.status"))["result"]["authorizedSince"] is not None
        unsigned = ORDER | {"timestamp": client.clock.market_ms()}
        assert (await call(socket, "order.place", unsigned))["status"] == 200
        assert (await call(socket, "session.logout"))["result"]["apiKey"] is None
        assert (await call(socket, "order.place", unsigned))["status"] == 401


async def test_nonsense_is_answered_and_binary_is_not_taken(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    for text in ("", "{", "[]", '{"id":1}', '{"id":1.5,"method":"ping"}', '{"id":[],"method":"ping"}', '{"method":"ping","params":[]}'):
        await socket.send(text)
        assert (await socket.next())["status"] == 400
    assert (await call(socket, "ping"))["result"] == {}
    await socket.socket.send_bytes(b"x")
    assert (await socket.frame()).type is aiohttp.WSMsgType.CLOSE


async def test_pings_and_pongs_are_counted_here_and_messages_are_not(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    assert [(await call(socket, "ping"))["status"] for _ in range(20)] == [200] * 20
    for _ in range(6):
        await socket.socket.ping(b"x")
    kinds = [(await socket.frame()).type for _ in range(6)]
    assert kinds == [aiohttp.WSMsgType.PONG] * 5 + [aiohttp.WSMsgType.CLOSE]


async def test_only_a_pong_that_answers_a_ping_keeps_the_connection() -> None:
    async with exchange(options(limits=Limits(ping_every_s=1.0, pong_within_s=2.0))) as client:
        loud, true = await client.socket(client.ready.ws_api), await client.socket(client.ready.ws_api)
        pings = 0
        while (await loud.frame()).type is aiohttp.WSMsgType.PING and pings < 5:
            await loud.socket.pong(b"I am here")
            await true.socket.pong((await true.frame()).data)
            pings += 1
        assert 1 <= pings < 5
        assert (await call_past_pings(true))["status"] == 200


async def call_past_pings(socket: Socket) -> Any:
    await socket.send({"id": 1, "method": "ping"})
    while (message := await socket.frame()).type is aiohttp.WSMsgType.PING:
        await socket.socket.pong(message.data)
    return json.loads(message.data)
