"""Each way in which the venue is known to misbehave can be had on order, and says truly whether it executed."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.test_exchange_wire import KEY, Client, exchange, short

ORDER: dict[str, Any] = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}


@pytest.fixture
async def client() -> Any:
    async with exchange() as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "status", "code", "executed"),
    [
        ("unknown_before", 503, -1000, False),
        ("unknown_after", 503, -1000, True),
        ("timeout_before", 408, -1007, False),
        ("timeout_after", 408, -1007, True),
        ("unavailable", 503, -1000, False),
        ("throttled", 503, -1008, False),
        ("internal", 503, -1001, False),
    ],
)
async def test_an_answer_that_does_not_tell_the_truth(client: Client, kind: str, status: int, code: int, executed: bool) -> None:
    await client.control("fault", door="POST v1/order", kind=kind)
    got, body = await client.signed("POST", "v1/order", **ORDER)
    assert (got, body["code"]) == (status, code)
    assert len((await client.books())["fills"]) == executed
    assert (await client.signed("POST", "v1/order", **ORDER))[0] == 200, "once is once"


@pytest.mark.parametrize(("kind", "executed"), [("reset_before", False), ("reset_after", True)])
async def test_a_connection_that_breaks(client: Client, kind: str, executed: bool) -> None:
    await client.control("fault", door="POST v1/order", kind=kind)
    with pytest.raises(aiohttp.ClientError):
        await client.signed("POST", "v1/order", **ORDER)
    assert len((await client.books())["fills"]) == executed


async def test_a_query_that_lags(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER, newClientOrderId="x")
    await client.control("fault", door="GET v1/order", kind="stale", count=2)
    codes = [(await client.signed("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="x"))[0] for _ in range(3)]
    assert codes == [400, 400, 200]


async def test_the_ws_api_has_the_same_faults(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    params: dict[str, Any] = ORDER | {"apiKey": KEY, "timestamp": client.clock.market_ms()}
    params["signature"] = client.sign("&".join(f"{k}={params[k]}" for k in sorted(params)))
    await client.control("fault", door="order.place", kind="silent_after")
    await socket.send({"id": 1, "method": "order.place", "params": params})
    await client.control("fault", door="time", kind="timeout_before")
    assert (await socket.ask({"id": 2, "method": "time"}))["status"] == 408
    while not (await client.books())["fills"]:
        await asyncio.sleep(0.005)
    await client.control("fault", door="time", kind="reset_before")
    await socket.send({"id": 3, "method": "time"})
    assert (await socket.frame()).type is not aiohttp.WSMsgType.TEXT


async def test_user_events_get_lost_doubled_and_late(client: Client) -> None:
    user = await client.user_stream()
    await client.control("fault", door="TRADE_LITE", kind="drop")
    await client.control("fault", door="ACCOUNT_UPDATE", kind="duplicate")
    await client.control("fault", door="ORDER_TRADE_UPDATE", kind="delay", delay_s=0.2)
    await client.good("POST", "v1/order", **ORDER)
    got = [short(await user.next()) for _ in range(4)]
    assert got == ["ACCOUNT_UPDATE ORDER", "ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE TRADE", "ORDER_TRADE_UPDATE NEW"]
