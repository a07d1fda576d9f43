"""The control door changes contracts and makes streams misbehave, and a client sees exactly that."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_exchange_streams import LIVELY, lively
from tests.test_exchange_wire import KEY, Client, exchange

DELISTED_MS = 1_900_000_000_000
TRADES = "btcusdt@aggTrade"


@pytest.fixture
async def client() -> Any:
    async with exchange(LIVELY, lively()) as client:
        yield client


async def test_a_contract_that_is_delisted_says_so_and_can_only_be_left(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/stream")
    await socket.ask({"method": "SUBSCRIBE", "params": ["!contractInfo"], "id": 1})
    order = {"symbol": "BTCUSDT", "type": "MARKET", "quantity": "0.010"}
    await client.good("POST", "v1/order", side="BUY", **order)
    assert await client.control("symbol", symbol="BTCUSDT", delivery_ms=DELISTED_MS) == {
        "symbol": "BTCUSDT", "status": "TRADING", "delivery_ms": DELISTED_MS}
    await client.good("POST", "v1/order", side="BUY", **order)
    resting = await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.010", price="59000")
    await client.control("symbol", symbol="BTCUSDT", status="SETTLING")
    assert await client.code("PUT", "v1/order", symbol="BTCUSDT", side="BUY", orderId=resting["orderId"], quantity="0.020", price="59000") == -5024
    assert await client.code("POST", "v1/order", side="BUY", **order) == -4140
    await client.good("POST", "v1/order", side="SELL", reduceOnly="true", **order)
    rows = {row["symbol"]: row for row in (await client.get("v1/exchangeInfo"))["symbols"]}
    assert (rows["BTCUSDT"]["status"], rows["BTCUSDT"]["deliveryDate"]) == ("SETTLING", DELISTED_MS)
    assert rows["ETHUSDT"]["status"] == "TRADING" and rows["ETHUSDT"]["deliveryDate"] > DELISTED_MS
    events = [(await socket.next())["data"] for _ in range(2)]
    assert [(e["e"], e["s"], e["cs"], e["dt"]) for e in events] == [
        ("contractInfo", "BTCUSDT", "TRADING", DELISTED_MS), ("contractInfo", "BTCUSDT", "SETTLING", DELISTED_MS)]


async def test_a_flooded_route_sends_every_frame_so_many_times(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws")
    await client.control("flood", route="market", copies=3)
    await socket.ask({"method": "SUBSCRIBE", "params": [TRADES], "id": 1})
    ids = [(await socket.next())["a"] for _ in range(9)]
    assert ids == [n for n in ids[::3] for _ in range(3)] and len(set(ids)) == 3
    status, _ = await client.raw("POST", "/control/flood", json={"route": "private", "copies": 2})
    assert status == 400


async def test_rubbish_reaches_every_listener_of_its_route(client: Client) -> None:
    market, public = [await client.socket(base + "/ws") for base in (client.ready.market, client.ready.public)]
    for socket in (market, public):
        await socket.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1})
    assert await client.control("rubbish", route="market", texts=["{", "nonsense"]) == {"heard": 1}
    assert [(await market.frame()).data for _ in range(2)] == ["{", "nonsense"]
    assert await public.ask({"method": "LIST_SUBSCRIPTIONS", "id": 2}) == {"result": [], "id": 2}


async def test_one_mute_stream_is_cured_by_subscribing_again(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/stream")
    await socket.ask({"method": "SUBSCRIBE", "params": [TRADES, "!markPrice@arr@1s"], "id": 1})
    await socket.until(lambda m: m.get("stream") == TRADES)
    await client.control("mute_stream", stream=TRADES)
    later = [m["stream"] for m in await socket.until(lambda m: m.get("stream", "").startswith("!"))]
    later += [(await socket.next())["stream"] for _ in range(3)]
    assert later[-3:] == ["!markPrice@arr@1s"] * 3
    for method in ("UNSUBSCRIBE", "SUBSCRIBE"):
        await socket.send({"method": method, "params": [TRADES], "id": 2})
    await socket.until(lambda m: m.get("stream") == TRADES)


async def test_money_comes_and_goes_and_is_told_and_listed(client: Client) -> None:
    user = await client.user_stream()
    assert (await client.control("transfer", key=KEY, amount="250.5"))["wallet"] == "10250.50000000"
    assert (await client.control("transfer", key=KEY, amount="-10250.5"))["wallet"] == "0.00000000"
    told = [(await user.next())["a"] for _ in range(2)]
    assert [(a["m"], a["B"][0]["bc"], a["P"]) for a in told] == [("DEPOSIT", "250.50000000", []), ("WITHDRAW", "-10250.50000000", [])]
    rows = await client.good("GET", "v1/income", incomeType="TRANSFER")
    assert [float(r["income"]) for r in rows] == [10_000, 250.5, -10_250.5]
    for amount in ("-0.01", "NaN", "1e13", "x"):
        status, answer = await client.raw("POST", "/control/transfer", json={"key": KEY, "amount": amount})
        assert status == 400, answer


@pytest.mark.parametrize("price", ["0", "-5", "1e12", "1e400", "Infinity"])
async def test_a_price_that_cannot_be_is_refused(client: Client, price: str) -> None:
    status, answer = await client.raw("POST", "/control/price", json={"symbol": "BTCUSDT", "price": price})
    assert status == 400 and "error" in answer


@pytest.mark.parametrize(("action", "body"), [
    ("symbol", {"delivery_ms": 1e30}), ("symbol", {"delivery_ms": -1}), ("symbol", {"status": "nonsense"}), ("latency", {"latency_ms": 60_001}),
    ("latency", {"latency_ms": 1e18})])  # fmt: skip
async def test_what_nobody_could_live_with_is_refused(client: Client, action: str, body: dict[str, Any]) -> None:
    assert (await client.raw("POST", f"/control/{action}", json={"symbol": "BTCUSDT"} | body))[0] == 400
    await client.get("v1/exchangeInfo")


async def test_a_body_of_endless_depth_is_refused(client: Client) -> None:
    assert (await client.raw("POST", "/control/fault", data='{"a":' * 60_000))[0] == 400
