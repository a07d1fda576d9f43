"""Queries: the venue's bodies become our words, and what is asked is what the venue expects."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from src.error_handler import Fatal, Rejected, Retryable
from src.models import Account, AlgoUpdate, OrderStatus, OrderUpdate, PositionUpdate, Side, SymbolRules
from src.venue import answers, queries
from src.venue.answers import Bracket, Income, SymbolConfig
from src.venue.governor import Governor, Limits
from src.venue.rest import Rest
from src.venue.signing import Credentials
from tests.test_venue_rest import Venue, venue

__all__ = ["venue"]
D = Decimal
KEY = "k" * 64


@pytest.fixture
async def rest(venue: Venue) -> AsyncIterator[Rest]:
    made = Rest(venue.url, clock=venue.clock, governor=Governor(venue.clock.market_ms), credentials=Credentials(KEY, "secret"))
    yield made
    await made.close()


def by_path(venue: Venue, bodies: dict[str, Any]) -> None:
    """Answer each path with its body; a tuple is (status, code, text); a list of lists of pages is answered one by one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = bodies[request.path]
        if isinstance(body, tuple):
            return web.json_response({"code": body[1], "msg": body[2]}, status=body[0])
        if isinstance(body, Pages):
            body = body.pop(0)
        return web.Response(text=body if isinstance(body, str) else json.dumps(body), content_type="application/json")

    venue.script(answer)


class Pages(list[Any]):
    """Bodies for one path, one a request."""


def filters(**replaced: dict[str, Any]) -> list[dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {
        "PRICE_FILTER": {"minPrice": "556.80", "maxPrice": "4529764", "tickSize": "0.10"},
        "LOT_SIZE": {"minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
        "MARKET_LOT_SIZE": {"minQty": "0.001", "maxQty": "120", "stepSize": "0.001"},
        "MAX_NUM_ORDERS": {"limit": 200}, "MIN_NOTIONAL": {"notional": "50"},
        "PERCENT_PRICE": {"multiplierUp": "1.0500", "multiplierDown": "0.9500", "multiplierDecimal": "4"}}
    return [{"filterType": name, **body} for name, body in (made | replaced).items() if body]


def symbol(name: str, **more: Any) -> dict[str, Any]:
    return {"symbol": name, "pair": name, "contractType": "PERPETUAL", "status": "TRADING", "quoteAsset": "USDT", "pricePrecision": 2,
            "quantityPrecision": 3, "onboardDate": 1569398400000, "deliveryDate": 4133404800000, "filters": filters(), **more}


async def test_rules_come_from_filters_and_limits_reach_the_governor(venue: Venue, rest: Rest) -> None:
    limits = [{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
              {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100}]
    odd = symbol("ODD", filters=filters(LOT_SIZE={}))
    switched_off = symbol("OFF", filters=filters(PRICE_FILTER={"tickSize": "0"}, PERCENT_PRICE={}, MARKET_LOT_SIZE={}))
    by_path(venue, {"/fapi/v1/exchangeInfo": {"rateLimits": limits, "symbols": [symbol("BTCUSDT"), odd, switched_off], "assets": []}})
    rules, found = await queries.symbol_rules(rest)
    assert rules["BTCUSDT"] == SymbolRules("BTCUSDT", D("0.10"), D("0.001"), D("0.001"), D(1000), D(120), D(50), D("1.05"), D("0.95"),
                                           onboard_ms=1569398400000)
    assert "ODD" not in rules and rules["OFF"].tick == D("0.01") and rules["OFF"].market_max_qty == 1000 and rules["OFF"].band_down == 0
    assert found == Limits(6000, 100, 1200) and rest.governor.statistics()["limit_1m"] == 6000


async def test_volumes_are_by_symbol(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/ticker/24hr": [{"symbol": "BTCUSDT", "quoteVolume": "5276362532.17", "volume": "1", "count": 3}]})
    assert await queries.volumes_24h(rest) == {"BTCUSDT": D("5276362532.17")}


ROW = [1796000000000, "91234.50", "91300", "91200.1", "91250", "12.345", 1796000059999, "1126000.1", 321, "6.1", "556000", "0"]


async def test_candles_become_a_table_of_eight_columns(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/klines": [ROW, ROW], "/fapi/v1/continuousKlines": []})
    table = await queries.klines(rest, "BTCUSDT", "1m", start_ms=5, end_ms=9, limit=1500)
    assert table.shape == (2, 8) and table[0].tolist() == [1796000000000.0, 91234.5, 91300.0, 91200.1, 91250.0, 12.345, 321.0, 6.1]
    assert (await queries.klines(rest, "BTCUSDT", "1s", limit=10)).shape == (0, 8)
    assert [path for _, path, _ in venue.seen] == [
        "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1500&startTime=5&endTime=9",
        "/fapi/v1/continuousKlines?pair=BTCUSDT&contractType=PERPETUAL&interval=1s&limit=10"]


CANDLES = ['[[1,"x"]]', '[[1,"1","1","1","nan","1",1,"1",1,"1"]]', '[[1,"1","1","inf","1","1",1,"1",1,"1"]]', "{}", "<html>", ""]


@pytest.mark.parametrize("body", CANDLES)
def test_a_candle_that_is_none_raises(body: str) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        answers.kline_table(body.encode())


async def test_candles_that_cannot_be_read_are_an_error_of_ours(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/klines": "<html>"})
    with pytest.raises(Retryable, match="cannot be read"):
        await queries.klines(rest, "BTCUSDT", "1m")


async def test_aggregate_trades_are_those_of_the_stream(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/aggTrades": [{"a": 26129, "p": "0.01633102", "q": "4.70443515", "nq": "0", "f": 27781, "l": 27782,
                                            "T": 1498793709153, "m": True}]})
    (trade,) = await queries.agg_trades(rest, "BTCUSDT", from_id=26129, limit=10)
    assert (trade.s, trade.a, trade.p, trade.m, trade.E) == ("BTCUSDT", 26129, "0.01633102", True, 0)
    assert venue.seen[0][1] == "/fapi/v1/aggTrades?symbol=BTCUSDT&limit=10&fromId=26129"


POSITION = {"symbol": "BTCUSDT", "positionSide": "BOTH", "positionAmt": "-0.020", "entryPrice": "91234.5", "breakEvenPrice": "91200",
            "markPrice": "91000", "unRealizedProfit": "4.69", "liquidationPrice": "0", "isolatedMargin": "100", "isolatedWallet": "95.31",
            "notional": "-1820", "marginAsset": "USDT", "updateTime": 1796000000000}


async def test_the_account_is_wallet_and_what_is_held(venue: Venue, rest: Rest) -> None:
    assets = [{"asset": "BNB", "walletBalance": "1", "unrealizedProfit": "0"},
              {"asset": "USDT", "walletBalance": "10000.5", "unrealizedProfit": "4.69"}]
    by_path(venue, {"/fapi/v3/account": {"totalWalletBalance": "1", "assets": assets, "positions": []},
                    "/fapi/v3/positionRisk": [POSITION, POSITION | {"symbol": "ETHUSDT", "positionAmt": "0.000"}]})
    account = await queries.account(rest)
    position = PositionUpdate("BTCUSDT", D("-0.020"), D("91234.5"), D("4.69"), True, "BOTH", 1796000000000)
    assert account == Account(D("10000.5"), D("4.69"), (position,), account.as_of_ms) and account.equity == D("10005.19")
    assert (await queries.account(rest, "BNFCR")).wallet == 0


ORDER = {"orderId": 8389765999999999999, "symbol": "BTCUSDT", "status": "EXPIRED", "clientOrderId": "aegis-1-2-e", "price": "91000", "avgPrice": "0",
         "origQty": "0.020", "executedQty": "0.010", "cumQuote": "910", "timeInForce": "IOC", "type": "LIMIT", "reduceOnly": False,
         "closePosition": False, "side": "BUY", "positionSide": "BOTH", "time": 1, "updateTime": 1796000000001}
ALGO = {"algoId": 2148719, "clientAlgoId": "aegis-1-3-s", "algoType": "CONDITIONAL", "orderType": "STOP_MARKET", "symbol": "BTCUSDT",
        "side": "SELL", "algoStatus": "FINISHED", "triggerPrice": "90000.0", "price": "0", "quantity": "0", "closePosition": True,
        "reduceOnly": True, "createTime": 1, "updateTime": 5, "actualOrderId": "12", "actualQty": "0.020", "icebergQuantity": None}


async def test_orders_and_conditional_orders_are_read_by_their_client_id(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/order": ORDER, "/fapi/v1/openOrders": [ORDER], "/fapi/v1/algoOrder": ALGO,
                    "/fapi/v1/openAlgoOrders": [ALGO | {"actualQty": "", "algoStatus": "NEW", "triggerPrice": ""}]})
    order = await queries.order(rest, "BTCUSDT", "aegis-1-2-e")
    assert order == OrderUpdate("BTCUSDT", "aegis-1-2-e", 8389765999999999999, Side.BUY, OrderStatus.EXPIRED, D("0.020"), D("0.010"), 1796000000001)
    algo = await queries.algo_order(rest, "aegis-1-3-s")
    assert algo == AlgoUpdate("BTCUSDT", "aegis-1-3-s", 2148719, Side.SELL, "STOP_MARKET", OrderStatus.FINISHED, D("90000.0"), True, 5, D("0.020"))
    assert await queries.open_orders(rest, "BTCUSDT") == [order]
    (standing,) = await queries.open_algo_orders(rest)
    assert standing.status is OrderStatus.NEW and standing.executed == 0 and standing.trigger_price == 0


async def test_an_order_that_the_venue_does_not_know_is_none(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/order": (400, -2013, "Order does not exist."), "/fapi/v1/algoOrder": (400, -2013, "Order does not exist.")})
    assert await queries.order(rest, "BTCUSDT", "x") is None and await queries.algo_order(rest, "x") is None
    by_path(venue, {"/fapi/v1/order": (400, -1121, "Invalid symbol.")})
    with pytest.raises(Rejected):
        await queries.order(rest, "NOPE", "x")


def trade(number: int) -> dict[str, Any]:
    return {"symbol": "BTCUSDT", "id": number, "orderId": 5, "side": "BUY", "price": "91000", "qty": "0.01", "realizedPnl": "0", "quoteQty": "910",
            "commission": "0.455", "commissionAsset": "USDT", "maker": False, "buyer": True, "time": number, "positionSide": "BOTH"}


async def test_fills_are_followed_over_pages_by_trade_id(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/userTrades": Pages([[trade(n) for n in range(1000)], [trade(1000)]])})
    fills = await queries.user_trades(rest, "BTCUSDT", order_id=5, start_ms=7)
    assert [f.trade_id for f in fills] == list(range(1001)) and fills[0].client_id == "" and fills[0].commission == D("0.455")
    first, second = (path.split("?")[1].split("&recvWindow")[0] for _, path, _ in venue.seen)
    assert first == "symbol=BTCUSDT&limit=1000&orderId=5&startTime=7" and second == "symbol=BTCUSDT&limit=1000&orderId=5&fromId=1000"


def row(number: int, kind: str = "COMMISSION", **more: Any) -> dict[str, Any]:
    return {"symbol": "BTCUSDT", "incomeType": kind, "income": "-0.5", "asset": "USDT", "info": "", "time": number, "tranId": number,
            "tradeId": "7", **more}


async def test_the_statement_is_followed_over_pages_and_no_row_counts_twice(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/income": Pages([[row(n) for n in range(1000)], [row(999), row(1000, "FUNDING_FEE", tradeId="", symbol=None)]])})
    rows = await queries.income(rest, 0, 10**6)
    assert len(rows) == 1001 and rows[-1] == Income("FUNDING_FEE", D("-0.5"), "USDT", "", 1000, 1000, 0)
    assert "startTime=999&" in venue.seen[1][1]


async def test_a_statement_that_does_not_move_on_ends(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/income": [row(n) | {"time": 5} for n in range(1000)]})
    assert len(await queries.income(rest, 0, 10)) == 1000 and len(venue.seen) == 2


@pytest.mark.parametrize("as_array", [True, False])
async def test_brackets_come_as_array_or_object(venue: Venue, rest: Rest, as_array: bool) -> None:
    steps = [{"bracket": 2, "initialLeverage": 100, "notionalCap": 800000, "notionalFloor": 300000, "maintMarginRatio": 0.005, "cum": 300.0},
             {"bracket": 1, "initialLeverage": 150, "notionalCap": 300000, "notionalFloor": 0, "maintMarginRatio": 0.004, "cum": 0.0}]
    body = {"symbol": "BTCUSDT", "notionalCoef": 1.5, "brackets": steps}
    by_path(venue, {"/fapi/v1/leverageBracket": [body] if as_array else body})
    table = (await queries.brackets(rest, "BTCUSDT"))["BTCUSDT"]
    assert table == [Bracket(D(0), D(300000), D("0.004"), D(0), 150), Bracket(D(300000), D(800000), D("0.005"), D(300), 100)]
    assert await queries.maintenance_rates(rest) == {"BTCUSDT": D("0.004")}


async def test_configuration_and_fees_are_read(venue: Venue, rest: Rest) -> None:
    by_path(venue, {
        "/fapi/v1/symbolConfig": [{"symbol": "BTCUSDT", "marginType": "ISOLATED", "leverage": 10, "maxNotionalValue": "70000000"}],
        "/fapi/v1/commissionRate": {"symbol": "BTCUSDT", "makerCommissionRate": "0.0002", "takerCommissionRate": "0.0005"},
        "/fapi/v1/positionSide/dual": {"dualSidePosition": False}, "/fapi/v1/multiAssetsMargin": {"multiAssetsMargin": True},
        "/fapi/v1/leverage": {"leverage": 21, "maxNotionalValue": "1000000", "symbol": "BTCUSDT"}})
    assert await queries.symbol_config(rest, "BTCUSDT") == {"BTCUSDT": SymbolConfig(True, 10, D(70000000))}
    assert await queries.commission_rate(rest, "BTCUSDT") == (D("0.0002"), D("0.0005"))
    assert not await queries.position_mode(rest) and await queries.multi_assets(rest)
    assert await queries.set_leverage(rest, "BTCUSDT", 21) == 21


async def test_a_setting_that_is_set_already_is_fine(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/marginType": (400, -4046, "No need to change margin type."),
                    "/fapi/v1/positionSide/dual": (400, -4059, "No need to change position side.")})
    await queries.set_isolated(rest, "BTCUSDT")
    await queries.set_one_way(rest)
    by_path(venue, {"/fapi/v1/marginType": (400, -4048, "Margin type cannot be changed if there exists position.")})
    with pytest.raises(Rejected):
        await queries.set_isolated(rest, "BTCUSDT")


CONFIG = {"feeTier": 0, "canTrade": True, "canDeposit": True, "canWithdraw": True, "dualSidePosition": False, "multiAssetsMargin": False}


async def test_good_keys_on_a_good_account_pass(venue: Venue, rest: Rest) -> None:
    by_path(venue, {"/fapi/v1/accountConfig": CONFIG})
    assert (await queries.validate_binance_keys(rest)).can_trade


BAD_ACCOUNTS = [(CONFIG | {"dualSidePosition": True}, "one-way mode"), (CONFIG | {"multiAssetsMargin": True}, "single-asset mode"),
                (CONFIG | {"canTrade": False}, "enable futures trading"), ((401, -2015, "Invalid API-key, IP, or permissions."), "address"),
                ((400, -1022, "Signature for this request is not valid."), "secret")]


@pytest.mark.parametrize(("body", "advice"), BAD_ACCOUNTS)
async def test_a_bad_account_is_fatal_and_says_what_to_change(venue: Venue, rest: Rest, body: Any, advice: str) -> None:
    by_path(venue, {"/fapi/v1/accountConfig": body})
    with pytest.raises(Fatal, match=advice):
        await queries.validate_binance_keys(rest)


@pytest.mark.parametrize("key", ["", "short", f"'{'k' * 62}'", "k" * 63 + " ", "ключ" * 16])
async def test_a_key_that_cannot_be_one_is_told_before_anything_is_sent(venue: Venue, key: str) -> None:
    rest = Rest(venue.url, clock=venue.clock, governor=Governor(venue.clock.market_ms), credentials=Credentials(key, "secret"))
    with pytest.raises(Fatal, match="BINANCE_API_KEY"):
        await queries.validate_binance_keys(rest)
    assert venue.seen == []
    await rest.close()


def test_the_recorded_exchange_info_is_read_whole(recorded_data: Path) -> None:
    rules, limits = answers.exchange_info((recorded_data / "exchangeInfo.json").read_bytes())
    assert len(rules) == 625 and limits == Limits(2400, 300, 1200)
    assert rules["BTCUSDT"].tick == D("0.10") and rules["BTCUSDT"].status != "SETTLING" and "币安人生USDT" in rules
    assert all(r.tick > 0 and r.step > 0 and r.market_max_qty <= r.max_qty for r in rules.values())


def test_the_recorded_brackets_obey_their_recurrence(recorded_data: Path) -> None:
    for table in answers.bracket_table((recorded_data / "leverageBracket.json").read_bytes()).values():
        for below, above in pairwise(table):
            assert abs(above.cum - (above.floor * (above.rate - below.rate) + below.cum)) < D("0.01")
