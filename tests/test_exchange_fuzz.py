"""Nonsense from clients is refused, never mishandled: no 5xx, no broken connection that the protocol does not name, no broken books."""

from __future__ import annotations

import json
import string
from typing import Any

import aiohttp
import pytest

from src.clock import seeded
from src.exchange.errors import ApiError
from src.exchange.options import Limits
from src.exchange.params import Params, parse_pairs
from src.exchange.rest import ENDPOINTS
from tests.test_exchange_wire import KEY, Client, exchange, options

VALUES = [
    "BTCUSDT", "ETHUSDT", "NOPE", "", "0", "-1", "1", "0.1", "1e9", "NaN", "Infinity", "9" * 20, "9" * 400, "0." + "0" * 25 + "1",
    "99999999999999999999.99999999999999999999",
    "-0", "+1", "1_000", "٣", "true", "false", "TRUE", "null", "[]", "{}", '[{"symbol":1}]', "[" * 600, '["a",1]', "[1,2]", "BUY",
    "SELL", "LIMIT", "MARKET", "STOP",
    "STOP_MARKET", "TRAILING_STOP_MARKET", "CONDITIONAL", "GTC", "GTX", "IOC", "FOK", "GTD", "GTE_GTC", "BOTH", "LONG", "SHORT",
    "60000", "59000.1", "1m", "1s", "1M", "1w",
    "3d", "ISOLATED", "CROSSED", "PERPETUAL", "QUEUE", "OPPONENT_5", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "%", "%zz", "%ff", "%00",
    "a" * 900, "\U0001f600", "a&b=c", "x y", "../..", "RESULT", "NONE", "1795146000000", "COMMISSION",
]  # fmt: skip
NAMES = [
    "symbol", "side", "type", "positionSide", "timeInForce", "quantity", "price", "newClientOrderId", "origClientOrderId", "orderId",
    "limit", "startTime", "endTime", "fromId",
    "interval", "pair", "contractType", "leverage", "marginType", "dualSidePosition", "multiAssetsMargin", "amount", "algoType",
    "algoId", "clientAlgoId", "triggerPrice",
    "callbackRate", "activatePrice", "closePosition", "reduceOnly", "priceMatch", "goodTillDate", "newOrderRespType", "batchOrders",
    "orderIdList", "origClientOrderIdList",
    "countdownTime", "recvWindow", "incomeType", "workingType", "selfTradePreventionMode", "modifyId", "priceProtect", "x", "",
]  # fmt: skip
ROOMY = Limits(weight_per_minute=10**9, orders_per_10s=10**9, orders_per_minute=10**9, messages_per_second=10**6)


@pytest.fixture
async def client() -> Any:
    async with exchange(options(limits=ROOMY, latency_ms=0)) as client:
        yield client


def _query(rng: Any) -> str:
    pairs = []
    for _ in range(rng.randrange(1, 8)):
        value = rng.choice(VALUES)
        if rng.random() < 0.1:
            value = "".join(rng.choice(string.printable) for _ in range(rng.randrange(30)))
        raw = value if rng.random() < 0.2 else "".join(c if c.isascii() and c.isalnum() else "".join(f"%{b:02X}" for b in c.encode()) for c in value)
        pairs.append(f"{rng.choice(NAMES)}={raw}")
    text = "&".join(pairs)
    return "".join(c for c in text if c.isprintable() and c not in ' #"<>\\^`{|}' and c.isascii())


async def test_random_requests_get_an_answer_of_the_protocol(client: Client) -> None:
    rng = seeded(5)
    doors = list(ENDPOINTS)
    statuses: dict[int, int] = {}
    for n in range(1200):
        method, path = doors[n % len(doors)]
        query = _query(rng)
        if rng.random() < 0.8:
            query += f"&timestamp={client.clock.market_ms()}"
        if rng.random() < 0.9:
            query += f"&signature={client.sign(query)}"
        status, body = await client.raw(method, f"/fapi/{path}?{query}", headers={"X-MBX-APIKEY": KEY})
        assert status < 500, (method, path, query, body)
        assert status == 200 or body["code"] < 0
        statuses[status] = statuses.get(status, 0) + 1
    assert statuses[200] > 20 and statuses[400] > 500
    books = await client.books()
    assert books["wallet"]


async def test_random_bodies_get_an_answer_too(client: Client) -> None:
    rng = seeded(6)
    for _ in range(150):
        body = rng.randbytes(rng.randrange(200))
        status, answer = await client.raw("POST", "/fapi/v1/order", data=body, headers={"X-MBX-APIKEY": KEY})
        assert 400 <= status < 500, answer


async def test_half_valid_orders_never_break_the_books(client: Client) -> None:
    """Every parameter plausible by itself, together mostly not."""
    rng = seeded(7)
    plausible: dict[str, list[str]] = {
        "symbol": ["BTCUSDT", "ETHUSDT"], "side": ["BUY", "SELL"], "type": ["LIMIT", "MARKET"], "quantity": ["0.01", "0.1", "1", "50"],
        "price": ["59990", "60010", "3000", "2999.5"], "timeInForce": ["GTC", "IOC", "FOK", "GTX"], "reduceOnly": ["true", "false"],
        "priceMatch": ["QUEUE", "OPPONENT_5"], "newOrderRespType": ["ACK", "RESULT"], "positionSide": ["BOTH", "LONG"],
        "selfTradePreventionMode": ["NONE", "EXPIRE_TAKER", "EXPIRE_BOTH"],
    }  # fmt: skip
    for _ in range(500):
        params = {k: rng.choice(v) for k, v in plausible.items() if k in ("symbol", "side", "type", "quantity") or rng.random() < 0.4}
        status, body = await client.signed("POST", "v1/order", **params)
        assert status < 500, (params, body)
    books = await client.books()
    income = await client.good("GET", "v1/income", limit=1000)
    assert len(books["fills"]) > 5
    if len(income) < 1000:
        assert sum(float(r["income"]) for r in income) == pytest.approx(float(books["wallet"]))


async def test_random_frames_are_answered_or_end_the_connection_by_the_book(client: Client) -> None:
    rng = seeded(8)
    pieces = ["method", "params", "id", "SUBSCRIBE", "SET_PROPERTY", "combined", "btcusdt@aggTrade", "order.place", "session.logon", "apiKey", KEY]
    values: list[Any] = [*pieces, 1, -1, 1.5, None, True, [], {}, ["btcusdt@aggTrade"], 10**30, "x" * 300, {"apiKey": KEY, "timestamp": 1}]
    for url in (client.ready.market + "/ws", client.ready.private + "/stream", client.ready.ws_api):
        socket = await client.socket(url)
        for _ in range(250):
            if rng.random() < 0.2:
                text = "".join(chr(rng.randrange(32, 0x2FFF)) for _ in range(rng.randrange(60)))
            elif rng.random() < 0.05:
                text = "[" * 30_000
            else:
                text = json.dumps({rng.choice(pieces): rng.choice(values) for _ in range(rng.randrange(5))})
            await socket.send(text)
            while True:
                message = await socket.frame()
                assert message.type is aiohttp.WSMsgType.TEXT, (text, message)
                answer = json.loads(message.data)
                if not (isinstance(answer, dict) and answer.get("e")):
                    break
    await client.get("v1/ping")


@pytest.mark.parametrize(
    "path", ["/", "/fapi", "/fapi/", "/fapi/v9/x", "/public/", "/market/wsx", "/ws/%ff%00", "/stream?streams=%ff", "//fapi//v1/ping", "/%2e%2e/x"]
)
async def test_odd_paths_are_not_found(client: Client, path: str) -> None:
    async with client.session.get(client.ready.rest + path) as answer:
        assert answer.status in (400, 404, 426)


def test_parsing_raises_nothing_but_refusals() -> None:
    rng = seeded(9)
    for _ in range(3000):
        try:
            params = Params(parse_pairs(_query(rng), "".join(chr(rng.randrange(1, 255)) for _ in range(rng.randrange(40)))))
            name = rng.choice(NAMES)
            for get in (params.get, params.need, params.decimal, params.integer, params.flag, params.client_id):
                get(name)
        except ApiError:
            pass
