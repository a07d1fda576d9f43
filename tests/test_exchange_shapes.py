"""What clients that we did not write have taught: words they send, and fields that their models expect or do not know."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.test_exchange_wire import Client, exchange

ORDER = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "59000", "quantity": "0.01"}
STOP = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET", "triggerPrice": "59000", "closePosition": "true"}
TRAILING = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "TRAILING_STOP_MARKET", "callbackRate": "1", "quantity": "0.1"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with exchange() as found:
        yield found


async def test_control_messages_may_carry_text_as_their_id(client: Client) -> None:
    """Binance's own client sends a UUID."""
    socket = await client.socket(client.ready.market + "/stream")
    asked = {"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade"], "id": "be2af4f1-7e9b"}
    assert await socket.ask(asked) == {"result": None, "id": "be2af4f1-7e9b"}
    assert (await socket.ask({"method": "LIST_SUBSCRIPTIONS", "id": [1]}))["code"] == 2


async def test_rate_limits_switched_off_are_part_of_what_was_signed(client: Client) -> None:
    """ccxt signs ``returnRateLimits`` with the rest."""
    socket = await client.socket(client.ready.ws_api)
    params: dict[str, Any] = {"apiKey": client.key, "returnRateLimits": False, "timestamp": client.clock.market_ms()}
    text = "&".join(f"{k}={'false' if v is False else v}" for k, v in params.items())
    params["signature"] = hmac.new(client.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    answer = await socket.ask({"id": "1", "method": "v2/account.balance", "params": params})
    assert answer["status"] == 200 and "rateLimits" not in answer


@pytest.mark.parametrize("name", ["orderIdList", "orderidlist"])
async def test_lists_of_orders_are_known_by_two_spellings(client: Client, name: str) -> None:
    """ccxt and python-binance send small letters, and the venue takes them."""
    made = await client.good("POST", "v1/order", **ORDER)
    gone = await client.good("DELETE", "v1/batchOrders", symbol="BTCUSDT", **{name: json.dumps([made["orderId"]])})
    assert [row["status"] for row in gone] == ["CANCELED"]
    await client.good("POST", "v1/order", newClientOrderId="a", **ORDER)
    gone = await client.good("DELETE", "v1/batchOrders", symbol="BTCUSDT", origclientorderidlist='["a"]')
    assert [row["status"] for row in gone] == ["CANCELED"]


async def test_moved_margin_is_answered_as_a_number(client: Client) -> None:
    await client.good("POST", "v1/marginType", symbol="BTCUSDT", marginType="ISOLATED")
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    assert (await client.good("POST", "v1/positionMargin", symbol="BTCUSDT", amount="5.5", type=1))["amount"] == 5.5


async def test_only_the_list_of_all_orders_has_pairs(client: Client) -> None:
    made = await client.good("POST", "v1/order", **ORDER)
    for path in ("v1/order", "v1/openOrder"):
        row = await client.good("GET", path, symbol="BTCUSDT", orderId=made["orderId"])
        assert not {"pair", "cumBase", "cumQty"} & row.keys() and row["cumQuote"] == "0"
    assert not {"pair", "cumBase"} & (await client.good("GET", "v1/openOrders"))[0].keys()
    assert {"pair", "cumBase"} < (await client.good("GET", "v1/allOrders", symbol="BTCUSDT"))[0].keys()


async def test_algo_orders_are_told_in_three_shapes(client: Client) -> None:
    """Trailing fields when placing a trailing order, those of a pair of exits in lists, what an order came to once it is there."""
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    placed = await client.good("POST", "v1/algoOrder", **STOP)
    assert not {"activatePrice", "callbackRate"} & placed.keys() and placed["icebergQuantity"] is None
    assert (await client.good("POST", "v1/algoOrder", **TRAILING, reduceOnly="true"))["callbackRate"] == "1"
    row = await client.good("GET", "v1/algoOrder", algoId=placed["algoId"])
    assert row["actualOrderId"] == "" and not {"actualType", "actualQty", "tpPrice", "failReason"} & row.keys()
    listed = (await client.good("GET", "v1/openAlgoOrders"))[0]
    assert {"tpTriggerPrice", "tpPrice", "slTriggerPrice", "slPrice", "tpOrderType", "actualOrderId"} < listed.keys()
    user = await client.user_stream()
    await client.control("price", symbol="BTCUSDT", price="58900")
    await user.until(lambda e: e["e"] == "ALGO_UPDATE" and e["o"]["X"] == "FINISHED" and e["o"]["aid"] == placed["algoId"])
    row = await client.good("GET", "v1/algoOrder", algoId=placed["algoId"])
    assert (row["actualType"], row["actualQty"]) == ("MARKET", "0.100")


async def test_all_algo_orders_are_read_page_by_page(client: Client) -> None:
    words = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "BUY", "type": "STOP_MARKET", "quantity": "0.01"}
    ids = [(await client.good("POST", "v1/algoOrder", **words, triggerPrice=str(61000 + n)))["algoId"] for n in range(3)]

    async def page(**where: Any) -> list[int]:
        return [row["algoId"] for row in await client.good("GET", "v1/allAlgoOrders", symbol="BTCUSDT", limit=2, **where)]

    assert await page() == ids[1:]
    assert await page(algoId=ids[0]) == await page(startTime=client.clock.t0_ms) == ids[:2]
    assert await page(algoId=ids[1] + 1) == ids[2:]


async def test_assets_of_the_new_account_are_leaner(client: Client) -> None:
    assert "marginAvailable" in (await client.good("GET", "v2/account"))["assets"][0]
    assert "marginAvailable" not in (await client.good("GET", "v3/account"))["assets"][0]


async def test_brackets_name_a_coefficient_only_where_it_is_not_one(client: Client) -> None:
    assert all(set(row) == {"symbol", "brackets"} for row in await client.good("GET", "v1/leverageBracket"))


async def test_a_changed_order_s_event_bears_the_change_s_id(client: Client) -> None:
    user = await client.user_stream()
    made = await client.good("POST", "v1/order", **ORDER)
    change = {"symbol": "BTCUSDT", "side": "BUY", "orderId": made["orderId"], "quantity": "0.02"}
    await client.good("PUT", "v1/order", **change, price="58000", modifyId=77)
    events = await user.until(lambda e: e.get("o", {}).get("x") == "AMENDMENT")
    assert events[-1]["o"]["M"] == "77" and "M" not in events[0]["o"]
    await client.good("PUT", "v1/order", **change, price="57000")
    assert "M" not in (await user.until(lambda e: e.get("o", {}).get("x") == "AMENDMENT"))[-1]["o"]


async def test_the_order_of_a_trailing_stop_tells_its_callback(client: Client) -> None:
    user = await client.user_stream()
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    await client.good("POST", "v1/algoOrder", **TRAILING)
    await client.control("price", symbol="BTCUSDT", price="59000")
    filled = (await user.until(lambda e: e.get("o", {}).get("x") == "TRADE" and e["o"]["ot"] == "TRAILING_STOP_MARKET"))[-1]["o"]
    assert filled["cr"] == "1" and filled["AP"] == "0"


async def test_candle_frames_do_not_name_a_kind_of_symbol(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws/btcusdt@kline_1m")
    frame = (await socket.until(lambda m: m.get("e") == "kline"))[-1]
    assert set(frame) == {"e", "E", "s", "k"}


async def test_candles_asked_for_from_the_beginning_of_time_begin_with_the_first(client: Client) -> None:
    everything = await client.get("v1/klines", symbol="BTCUSDT", interval="1m", limit=1500)
    first = await client.get("v1/klines", symbol="BTCUSDT", interval="1m", startTime=0, endTime=client.clock.market_ms(), limit=1)
    assert [row[0] for row in first] == [everything[0][0]] == [client.clock.t0_ms - 60_000]
    days = await client.get("v1/klines", symbol="BTCUSDT", interval="1d", startTime=0, limit=5)
    assert len(days) == 1 and days[0][0] <= client.clock.t0_ms < days[0][6]
    assert await client.get("v1/klines", symbol="BTCUSDT", interval="1m", startTime=0, endTime=1000, limit=5) == []
