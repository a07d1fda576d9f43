"""Figures that the venue publishes, and what queries list of an account: liquidations, changes, moved margin, the queue for deleveraging."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from tests.test_exchange_shapes import ORDER
from tests.test_exchange_wire import Client, exchange, options

STATISTICS = ("openInterestHist", "topLongShortAccountRatio", "topLongShortPositionRatio", "globalLongShortAccountRatio", "takerlongshortRatio")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with exchange() as found:
        yield found


async def test_old_trades_are_found_by_id_and_need_a_key(client: Client) -> None:
    assert (await client.raw("GET", "/fapi/v1/historicalTrades?symbol=BTCUSDT"))[1]["code"] == -2014
    headers = {"X-MBX-APIKEY": client.key}
    last = (await client.raw("GET", "/fapi/v1/historicalTrades?symbol=BTCUSDT&limit=20", headers=headers))[1]
    found = (await client.raw("GET", f"/fapi/v1/historicalTrades?symbol=BTCUSDT&fromId={last[5]['id']}&limit=3", headers=headers))[1]
    assert found == last[5:8] and len(last) == 20
    assert int(client.headers["x-mbx-used-weight-1m"]) >= 400


@pytest.mark.parametrize("name", STATISTICS)
async def test_statistics_come_in_whole_periods_and_cost_no_weight(client: Client, name: str) -> None:
    status, rows = await client.raw("GET", f"/futures/data/{name}?symbol=BTCUSDT&period=5m&limit=4")
    stamps = [row["timestamp"] for row in rows]
    assert status == 200 and 1 <= len(rows) <= 4 and stamps == sorted(stamps) and all(t % 300_000 == 0 for t in stamps)
    assert "x-mbx-used-weight-1m" not in client.headers
    assert (await client.raw("GET", f"/futures/data/{name}?symbol=BTCUSDT&period=7m"))[1]["code"] == -1130


async def test_there_is_one_asset_and_its_index_is_one(client: Client) -> None:
    rows = await client.get("v1/assetIndex")
    assert {r["symbol"]: Decimal(r["index"]) for r in rows} == {"USDTUSD": 1, "BTCUSD": 60000, "ETHUSD": 3000}
    one, among_all = await client.get("v1/assetIndex", symbol="BTCUSD"), next(r for r in rows if r["symbol"] == "BTCUSD")
    assert one == among_all | {"time": one["time"]} and one["time"] >= among_all["time"]
    assert (await client.raw("GET", "/fapi/v1/assetIndex?symbol=NOUSD"))[1]["code"] == -1121


async def test_changes_of_an_order_are_listed_newest_first(client: Client) -> None:
    made = await client.good("POST", "v1/order", **ORDER)
    for price, words in (("58000", {"modifyId": 5}), ("57000", {})):
        await client.good("PUT", "v1/order", symbol="BTCUSDT", side="BUY", orderId=made["orderId"], quantity="0.02", price=price, **words)
    rows = await client.good("GET", "v1/orderAmendment", symbol="BTCUSDT", orderId=made["orderId"])
    assert [r["amendment"]["price"] for r in rows] == [{"before": "58000", "after": "57000"}, {"before": "59000", "after": "58000"}]
    assert [(r["amendment"]["count"], r["amendment"].get("modifyId")) for r in rows] == [(2, None), (1, 5)]
    assert await client.code("GET", "v1/orderAmendment", symbol="BTCUSDT") == -1102


async def test_moved_margin_and_the_queue_for_deleveraging(client: Client) -> None:
    await client.good("POST", "v1/marginType", symbol="BTCUSDT", marginType="ISOLATED")
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    await client.good("POST", "v1/positionMargin", symbol="BTCUSDT", amount="20", type=1)
    await client.good("POST", "v1/positionMargin", symbol="BTCUSDT", amount="5", type=2)
    rows = await client.good("GET", "v1/positionMargin/history", symbol="BTCUSDT")
    assert [(r["type"], Decimal(r["amount"]), r["positionSide"]) for r in rows] == [(1, 20, "BOTH"), (2, 5, "BOTH")]
    assert len(await client.good("GET", "v1/positionMargin/history", symbol="BTCUSDT", type=2)) == 1
    assert (await client.good("GET", "v1/adlQuantile"))[0]["adlQuantile"] == {"LONG": 0, "SHORT": 0, "BOTH": 0}
    await client.control("price", symbol="BTCUSDT", price="63500")
    assert (await client.good("GET", "v1/adlQuantile", symbol="BTCUSDT"))[0]["adlQuantile"]["BOTH"] == 3
    assert (await client.good("GET", "v3/positionRisk"))[0]["adl"] == 3


async def test_liquidations_are_listed_apart(client: Client) -> None:
    await client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=100)
    await client.good("POST", "v1/marginType", symbol="BTCUSDT", marginType="ISOLATED")
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    assert await client.good("GET", "v1/forceOrders") == []
    await client.control("price", symbol="BTCUSDT", price="59000")
    row = (await client.good("GET", "v1/forceOrders", autoCloseType="LIQUIDATION"))[0]
    assert row["clientOrderId"].startswith("autoclose-") and (row["side"], row["status"], row["origType"]) == ("SELL", "FILLED", "LIMIT")
    assert await client.good("GET", "v1/forceOrders", autoCloseType="ADL") == []
    assert Decimal((await client.get("v1/insuranceBalance", symbol="BTCUSDT"))["assets"][0]["marginBalance"]) != 1_000_000_000


async def test_switches_are_kept_over_a_restart(tmp_path: object) -> None:
    async with exchange(options(books_dir=str(tmp_path))) as client:
        assert await client.good("GET", "v1/feeBurn") == {"feeBurn": False}
        await client.good("POST", "v1/feeBurn", feeBurn="true")
        made = await client.good("POST", "v1/order", **ORDER)
        await client.good("PUT", "v1/order", symbol="BTCUSDT", side="BUY", orderId=made["orderId"], quantity="0.02", price="58000")
    async with exchange(options(books_dir=str(tmp_path))) as client:
        assert await client.good("GET", "v1/feeBurn") == {"feeBurn": True} and (await client.good("GET", "v2/account"))["feeBurn"]
        rows = await client.good("GET", "v1/orderAmendment", symbol="BTCUSDT", orderId=made["orderId"])
        assert [r["orderId"] for r in rows] == [made["orderId"]]


async def test_what_has_no_counterpart_here_says_so_in_the_venue_s_shapes(client: Client) -> None:
    assert await client.get("v1/indexInfo") == []
    assert {s["sessions"][0]["type"] for s in (await client.get("v1/tradingSchedule"))["marketSchedules"].values()} == {"NO_TRADING"}
    assert {r["adlRisk"] for r in await client.get("v1/symbolAdlRisk")} == {"low"}
    assert (await client.get("v1/constituents", symbol="BTCUSDT"))["constituents"][0]["weight"] == "1.00000000"
    candles = await client.get("v1/premiumIndexKlines", symbol="BTCUSDT", interval="1m")
    assert {price for row in candles for price in row[1:5]} == {"0.00000000"}
    assert (await client.good("GET", "v1/apiTradingStatus"))["indicators"] == {}
    assert (await client.good("POST", "v1/stock/contract"))["code"] == 200
    assert (await client.get("v1/rpiDepth", symbol="BTCUSDT"))["bids"]
    assert (await client.raw("GET", "/futures/data/delivery-price?pair=BTCUSDT"))[1] == []
    assert (await client.raw("GET", "/futures/data/basis?pair=BTCUSDT&contractType=PERPETUAL&period=5m"))[1][0]["basis"] == "0.0"
