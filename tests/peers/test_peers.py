"""Clients that nobody here wrote work on the local exchange: each trades in its own environment, and what it made of the exchange is checked.

ccxt, the venue's own SDK and python-binance, at the versions pinned beside this file. PEER_VENVS names a folder to keep their environments in.
"""

from __future__ import annotations

import json
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.peers.homes import HERE, home

pytestmark = pytest.mark.slow

SCRIPT_S = 180.0
names_no_events = pytest.mark.parametrize("running", [("events_required=0",)], indirect=True, ids=["events come unnamed"])
D = Decimal
MAKER, TAKER = D("0.0002"), D("0.0005")
DAY_MS = 86_400_000


def told(peer: str, folder: Path, running: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run a peer's script to its end: {step: what it saw}."""
    python = home(peer, folder)
    script = subprocess.run([str(python), str(HERE / f"{peer}_client.py"), json.dumps(running)], capture_output=True, text=True, timeout=SCRIPT_S)
    lines = [json.loads(line) for line in script.stdout.splitlines()]
    last = lines[-1]["step"] if lines else "the start"
    assert script.returncode == 0, f"{peer} failed after {last}:\n{script.stderr}"
    steps = {line.pop("step"): line for line in lines}
    assert len(steps) == len(lines), "a step was told twice"
    return steps


def fee(price: Any, qty: str, rate: Decimal) -> Decimal:
    return D(str(price)) * D(qty) * rate


def near(price: Any, wanted: Any) -> bool:
    """Within half a percent: the market moves on while a client works."""
    return abs(D(str(price)) / D(str(wanted)) - 1) < D("0.005")


def is_book(bids: list[list[Any]], asks: list[list[Any]], levels: int) -> bool:
    bid, ask = ([D(str(price)) for price, _ in side] for side in (bids, asks))
    sizes = all(D(str(size)) > 0 for _, size in bids + asks)
    return len(bid) == len(ask) == levels and bid == sorted(bid, reverse=True) and ask == sorted(ask) and bid[0] < ask[0] and sizes


def balanced(trades: list[dict[str, Any]], wallet: str) -> bool:
    """The wallet is what was paid in, made and paid in fees, to the last digit."""
    return D(wallet) == 10_000 + sum(D(t["realizedPnl"]) - D(t["commission"]) for t in trades)


def values(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


# --- ccxt ------------------------------------------------------------------------------------------------------------------------------


@names_no_events
def test_ccxt_trades_and_watches(homes_folder: Path, running: dict[str, Any]) -> None:
    seen = told("ccxt", homes_folder, running)
    ccxt_looks(seen)
    ccxt_trades(seen)
    ccxt_stops(seen)
    ccxt_watches(seen)
    ccxt_asks_over_ws(seen)


def ccxt_looks(seen: dict[str, dict[str, Any]]) -> None:
    market = seen["markets"]
    assert market["names"] == ["BTC/USDT:USDT", "ETH/USDT:USDT"]
    assert values(market, "id", "linear", "active", "contractSize", "taker", "maker") == ("BTCUSDT", True, True, 1.0, 0.0005, 0.0002)
    assert values(market["precision"], "amount", "price") == (0.001, 0.1)
    assert (market["limits"]["amount"]["min"], market["limits"]["cost"]["min"]) == (0.001, 50.0)
    assert abs(seen["time"]["ahead_ms"]) < 1000
    assert seen["balance"] == {"free": 10_000.0, "used": 0.0, "total": 10_000.0}
    assert seen["mode"] == {"hedged": False}
    assert values(seen["leverage"]["answer"], "symbol", "leverage") == ("BTCUSDT", 20) and seen["leverage"]["margin"]["code"] == 200
    assert seen["leverages"] == {"marginMode": "isolated", "longLeverage": 20}
    assert seen["tiers"]["first"] == {"maxNotional": 300_000.0, "maintenanceMarginRate": 0.004, "maxLeverage": 150.0}
    assert seen["fee"] == {"maker": 0.0002, "taker": 0.0005}
    assert is_book(seen["book"]["bids"], seen["book"]["asks"], 20) and seen["book"]["nonce"] > 0
    opens = [row[0] for row in seen["candles"]["rows"]]
    assert opens == [opens[0], opens[0] + 60_000, opens[0] + 120_000] and opens[0] % 60_000 == 0
    assert len(seen["first candle"]["rows"]) == 1 and seen["first candle"]["rows"][0][0] < opens[0] - DAY_MS
    ids = [int(t["id"]) for t in seen["trades"]["rows"]]
    assert ids == list(range(ids[0], ids[0] + 5)) and {t["side"] for t in seen["trades"]["rows"]} <= {"buy", "sell"}
    assert seen["ticker"]["low"] <= seen["ticker"]["last"] <= seen["ticker"]["high"]
    assert abs(seen["funding"]["fundingRate"]) < 0.001 and near(seen["funding"]["markPrice"], seen["ticker"]["last"])
    assert seen["funding"]["fundingTimestamp"] % (8 * 3_600_000) == 0


def ccxt_trades(seen: dict[str, dict[str, Any]]) -> None:
    order, heard = seen["market order"]["order"], seen["market order heard"]
    price = order["average"]
    assert values(order, "symbol", "type", "side", "amount", "filled", "status") == ("BTC/USDT:USDT", "market", "buy", 0.01, 0.01, "closed")
    assert near(price, seen["book"]["asks"][0][0])
    assert values(seen["market order"]["answer"], "id", "filled", "average") == (order["id"], 0.01, None), "no average price since July 2026"
    paid = fee(price, "0.01", TAKER)
    assert values(heard["order"], "id", "status", "average", "filled") == (order["id"], "closed", price, 0.01)
    assert values(heard["trade"], "price", "amount", "side", "takerOrMaker") == (price, 0.01, "buy", "taker")
    assert heard["trade"]["fee"] == {"currency": "USDT", "cost": float(paid)}
    assert heard["balance"]["total"] == float(10_000 - paid)
    assert heard["position"] == {"entryPrice": price, "contracts": 0.01, "side": "long", "marginMode": "isolated"}
    [position] = seen["positions"]["rows"]
    assert values(position, "symbol", "side", "contracts", "entryPrice", "marginMode") == ("BTC/USDT:USDT", "long", 0.01, price, "isolated")
    assert near(position["initialMargin"], price * 0.01 / 20) and price * 0.94 < position["liquidationPrice"] < price * 0.96
    placed, changed, gone = seen["limit order"], seen["modified"], seen["canceled"]
    number = placed["answer"]["id"]
    assert values(placed["answer"], "type", "status", "amount", "filled") == ("limit", "open", 0.01, 0.0) and placed["open"] == [number]
    assert changed["order"] == changed["answer"]
    assert values(changed["order"], "id", "status", "amount") == (number, "open", 0.02) and changed["order"]["price"] < placed["answer"]["price"]
    assert values(gone["answer"], "id", "status") == (number, "canceled") and gone["open"] == []
    assert seen["batch"]["found"] == [["open", None], ["rejected", -2022]]
    assert seen["batch canceled"]["statuses"] == ["canceled"] and seen["batch canceled"]["all"]["code"] == 200
    # ccxt knows the venue's errors by its host, so here they are no more than ExchangeError
    assert '"code":-4164' in seen["too small"]["text"] and '"code":-2019' in seen["too large"]["text"]


def ccxt_stops(seen: dict[str, dict[str, Any]]) -> None:
    algo = seen["algo orders"]
    assert values(algo["answer"], "status", "side", "amount", "reduceOnly") == ("open", "sell", 0.02, True)
    assert algo["open"] == algo["ids"] and seen["algo canceled"]["order"]["status"] == "canceled"
    filled = seen["limit order filled"]
    assert values(filled["trade"], "price", "amount", "takerOrMaker") == (filled["wanted"], 0.01, "maker")
    assert filled["trade"]["fee"]["cost"] == float(fee(filled["wanted"], "0.01", MAKER))
    stopped = seen["stopped"]
    assert values(stopped["algo"], "id", "status", "filled") == (algo["answer"]["id"], "closed", 0.02)
    assert values(stopped["order"], "status", "filled", "reduceOnly") == ("closed", 0.02, True)
    assert near(stopped["order"]["average"], stopped["wanted"]) and stopped["position"] == [] and stopped["at_rest"]["status"] == "closed"
    rows = seen["my trades"]["rows"]
    assert [values(t, "side", "qty", "maker") for t in rows] == [("BUY", "0.010", False), ("BUY", "0.010", True), ("SELL", "0.020", False)]
    assert balanced(rows, seen["ledger"]["wallet"])
    signed = sum(D(str(r["amount"])) * (1 if r["direction"] == "in" else -1) for r in seen["ledger"]["rows"])
    assert signed == D(seen["ledger"]["wallet"])
    assert [r["type"] for r in seen["ledger"]["rows"]] == ["transfer", "commission", "commission", "trade", "commission"]


def ccxt_watches(seen: dict[str, dict[str, Any]]) -> None:
    assert is_book(seen["watched book"]["bids"], seen["watched book"]["asks"], 20) and seen["watched book"]["nonce"] >= seen["book"]["nonce"]
    assert all(int(t["id"]) > 0 and near(t["price"], seen["ticker"]["last"]) for t in seen["watched trades"]["rows"])
    candle, rest = seen["watched candles"]["rows"][-1], {row[0]: row for row in seen["watched candles"]["rest"]}
    assert candle[:2] == rest[candle[0]][:2], "the open candle opens alike on both sides"
    assert seen["watched ticker"]["low"] <= seen["watched ticker"]["last"] <= seen["watched ticker"]["high"]
    assert seen["watched top"]["bid"] < seen["watched top"]["ask"] and seen["watched top"]["bidVolume"] > 0
    assert near(seen["watched mark"]["markPrice"], seen["watched top"]["bid"])


def ccxt_asks_over_ws(seen: dict[str, dict[str, Any]]) -> None:
    assert is_book(seen["ws book"]["bids"], seen["ws book"]["asks"], 5)
    assert seen["ws balance"]["total"] == float(seen["ledger"]["wallet"])
    order = seen["ws order"]
    assert {order[name]["id"] for name in ("placed", "changed", "found", "gone")} == {order["placed"]["id"]}
    assert values(order["found"], "amount", "price", "status") == (0.02, order["wanted"], "open") and order["changed"]["amount"] == 0.02
    assert (order["placed"]["amount"], order["gone"]["status"]) == (0.01, "canceled")
    assert seen["ws positions"]["rows"] == [{"symbol": "BTC/USDT:USDT", "contracts": 0.01, "side": "long"}]
    assert seen["ws algo"]["open"] == [seen["ws algo"]["id"]]


# --- Binance's own SDK -----------------------------------------------------------------------------------------------------------------

TRAILING = {"-activatePrice", "-priceRate"}
"""What only the order of a trailing stop has."""
BATCH = {"-code", "-msg"}
"""What only a refused item has."""
DIFFERS: dict[str, set[str]] = {
    "notional_and_leverage_brackets": {"-notionalCoef"},
    "symbol_order_book_ticker": {"+lastUpdateId"},
    "query_order": TRAILING,
    "current_all_open_orders": TRAILING,
    "cancel_order": TRAILING,
    "modify_multiple_orders": BATCH | {"-modifyId"},
    "cancel_multiple_orders": BATCH | TRAILING,
    "trailing stop": {"-icebergQuantity"},
    "new_algo_order": {"-activatePrice", "-callbackRate", "-icebergQuantity"},
    "current_all_algo_open_orders": {"-icebergQuantity"},
    "after: query_all_algo_orders": {"-icebergQuantity"},
    "after: all_orders": TRAILING,
    "ws query_order": TRAILING,
    "ws modify_order": {"-modifyId"},
    "ws cancel_order": TRAILING,
    "ws new_algo_order": {"-icebergQuantity"},
}
"""Where an answer differs from the SDK's models, as the venue's does: null, only in some cases, or not known to the SDK yet."""
EVENT_DIFFERS = {
    "ORDER_TRADE_UPDATE": {"o.-AP", "o.-cr", "o.-M"},
    "ALGO_UPDATE": {"o.-act", "o.-ap", "o.-aq"},
    "ACCOUNT_UPDATE": {"a.-S"},
    "TRADE_LITE": set(),
}
"""Fields of trailing stops, of changes, of what has reached the book, and of funding."""


def test_the_venues_own_sdk_finds_what_its_models_promise(homes_folder: Path, running: dict[str, Any]) -> None:
    seen = told("binance_sdk", homes_folder, running)
    sdk_shapes(seen)
    sdk_looks(seen)
    sdk_trades(seen)
    sdk_hedges(seen)
    sdk_listens(seen)
    sdk_asks_over_ws(seen, running["ed_key"])


def sdk_shapes(seen: dict[str, dict[str, Any]]) -> None:
    """Every field with the type that the SDK's models demand, none missing and none too many, but for those listed."""
    untold = {"exchange_information", "place_multiple_orders"}
    shapes = {step: {name.rpartition(".")[2] for name in row["shape"]} for step, row in seen.items() if "shape" in row and step not in untold}
    assert len(shapes) > 60
    for step, differs in shapes.items():
        assert differs == DIFFERS.get(step, set()), step
    info = {name for name in seen["exchange_information"]["shape"] if "filters" not in name}
    assert info == {"+futuresType", "symbols[].+maxMoveOrderLimit", "symbols[].+permissionSets", "symbols[].-settlePlan"}


def sdk_looks(seen: dict[str, dict[str, Any]]) -> None:
    data = {step: row["data"] for step, row in seen.items() if "data" in row}
    assert [s["symbol"] for s in data["exchange_information"]["symbols"]] == ["BTCUSDT", "ETHUSDT"]
    assert data["account_information_v3"]["totalWalletBalance"] == data["futures_account_balance_v3"][0]["balance"] == "10000.00000000"
    assert data["get_current_position_mode"] == {"dualSidePosition": False}
    assert is_book(data["order_book"]["bids"], data["order_book"]["asks"], 5)
    last, bid = data["ticker24hr_price_change_statistics"]["lastPrice"], data["symbol_order_book_ticker"]["bidPrice"]
    assert near(last, bid) and near(data["mark_price"]["markPrice"], bid)
    aggregated, single = data["compressed_aggregate_trades_list"], data["recent_trades_list"]
    assert {t["l"] for t in aggregated} & {t["id"] for t in single} and len(single) == 5
    assert data["kline_candlestick_data"][0] == data["continuous_contract_kline_candlestick_data"][0] and len(data["kline_candlestick_data"][0]) == 12
    assert values(data["change_initial_leverage"], "symbol", "leverage") == ("BTCUSDT", 20) and data["change_margin_type"]["code"] == 200
    assert values(seen["margin type as it is"], "kind", "code") == ("BadRequestError", -4046)
    assert values(data["symbol_configuration"][0], "marginType", "leverage") == ("ISOLATED", 20)


def sdk_trades(seen: dict[str, dict[str, Any]]) -> None:
    data = {step: row["data"] for step, row in seen.items() if "data" in row}
    answer, order = data["market order"], data["query_order"]
    price = order["avgPrice"]
    assert values(answer, "status", "executedQty", "side", "type") == ("FILLED", "0.010", "BUY", "MARKET")
    assert near(price, data["symbol_order_book_ticker"]["askPrice"]) and D(order["cumQuote"]) == D(price) * D("0.01")
    for position in (data["position_information_v2"][0], data["position_information_v3"][0]):
        assert values(position, "symbol", "positionAmt", "entryPrice") == ("BTCUSDT", "0.010", price)
    placed, changed, gone = data["limit order"], data["modify_order"], data["cancel_order"]
    assert {o["orderId"] for o in (placed, changed, gone, *data["current_all_open_orders"])} == {placed["orderId"]}
    assert values(changed, "status", "origQty", "modifyId") == ("NEW", "0.02", 77) and gone["status"] == "CANCELED"
    [history] = data["get_order_modify_history"]
    assert values(history["amendment"]["origQty"], "before", "after") == ("0.01", "0.02") and history["amendment"]["modifyId"] == 77
    good, bad = data["place_multiple_orders"]
    assert good["status"] == "NEW" and bad["code"] == -1111
    assert data["modify_multiple_orders"][0]["origQty"] == "0.03" and data["cancel_multiple_orders"][0]["status"] == "CANCELED"
    assert values(seen["too small"], "kind", "code") == ("BadRequestError", -4164)
    assert data["trailing stop"]["callbackRate"] == "5" and values(data["cancel_algo_order"], "code", "msg") == ("200", "success")
    near_stop = data["new_algo_order"]
    assert [a["algoId"] for a in data["current_all_algo_open_orders"]] == [near_stop["algoId"]]
    assert {a["algoId"]: a["algoStatus"] for a in data["after: query_all_algo_orders"]} == {
        data["cancel_algo_order"]["algoId"]: "CANCELED", near_stop["algoId"]: "FINISHED"}  # fmt: skip
    assert data["after: position_information_v3"] == []
    assert balanced(data["after: account_trade_list"], data["after: account_information_v3"]["totalWalletBalance"])
    income = sum(D(row["income"]) for row in data["after: get_income_history"])
    assert D(data["after: account_information_v3"]["totalWalletBalance"]) == 10_000 + income


def sdk_hedges(seen: dict[str, dict[str, Any]]) -> None:
    data = {step: row["data"] for step, row in seen.items() if "data" in row}
    orders = {step: row for step, row in data.items() if step.startswith("hedge: ") and "status" in row}
    assert {step: values(row, "status", "positionSide", "executedQty") for step, row in orders.items()} == {
        "hedge: BUY LONG": ("FILLED", "LONG", "0.020"), "hedge: SELL SHORT": ("FILLED", "SHORT", "0.010"),
        "hedge: SELL LONG": ("FILLED", "LONG", "0.005"), "hedge: close LONG": ("FILLED", "LONG", "0.015"),
        "hedge: close SHORT": ("FILLED", "SHORT", "0.010"),
    }  # fmt: skip
    assert {p["positionSide"]: p["positionAmt"] for p in data["hedge: positions"]} == {"LONG": "0.015", "SHORT": "-0.010"}
    refusals = {"hedge: more than there is": -2024, "hedge: no side": -4061, "hedge: mode with positions": -4068,
                "post-only that crosses": -5022, "all or nothing": -5021}  # fmt: skip
    assert {step: seen[step]["code"] for step in refusals} == refusals
    assert data["change_position_mode"]["code"] == data["one-way again"]["code"] == 200
    assert values(data["at once or not"], "status", "executedQty") == ("EXPIRED", "0")
    assert data["cancel_all_open_orders"]["code"] == 200 and data["auto_cancel_all_open_orders"]["countdownTime"] == "0"


def sdk_listens(seen: dict[str, dict[str, Any]]) -> None:
    data = {step: row["data"] for step, row in seen.items() if "data" in row}
    events = seen["market order heard"]["events"]
    for event in events + seen["stopped heard"]["events"]:
        known = EVENT_DIFFERS[event["data"].get("e") or kind_of(event["data"])]
        assert set(event["shape"]) <= known
    order = data["query_order"]
    told_of = [e["data"] for e in events]
    assert [kind_of(e) for e in told_of] == ["ORDER_TRADE_UPDATE", "TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE"]
    new, lite, account, fill = told_of
    paid = fee(order["avgPrice"], "0.01", TAKER)
    assert values(new["o"], "x", "X", "i") == ("NEW", "NEW", order["orderId"])
    assert D(lite["L"]) == D(order["avgPrice"]) and lite["t"] == fill["o"]["t"]
    assert D(account["a"]["B"][0]["wb"]) == 10_000 - paid
    assert values(account["a"]["P"][0], "s", "pa", "ep") == ("BTCUSDT", "0.010", order["avgPrice"]) and account["a"]["m"] == "ORDER"
    assert values(fill["o"], "x", "X", "ap", "m") == ("TRADE", "FILLED", order["avgPrice"], False) and D(fill["o"]["n"]) == paid
    stop, rows = data["new_algo_order"], [e["data"] for e in seen["stopped heard"]["events"]]
    states = [e["o"]["X"] for e in rows if kind_of(e) == "ALGO_UPDATE" and e["o"]["aid"] == stop["algoId"]]
    assert states[-3:] == ["TRIGGERING", "TRIGGERED", "FINISHED"]
    out = [e["o"] for e in rows if kind_of(e) == "ORDER_TRADE_UPDATE" and e["o"]["c"] == stop["clientAlgoId"]]
    assert [o["X"] for o in out] == ["NEW", "FILLED"] and out[-1]["R"] is True and near(out[-1]["ap"], seen["stopped heard"]["wanted"])
    candle = data["kline_candlestick_streams"]["k"]
    assert {row[0]: row[1] for row in data["kline_candlestick_data"]}.get(candle["t"], candle["o"]) == candle["o"]
    assert [row["pu"] for row in seen["depth chain"]["rows"][1:]] == [row["u"] for row in seen["depth chain"]["rows"][:-1]]
    assert D(data["individual_symbol_book_ticker_streams"]["b"]) < D(data["individual_symbol_book_ticker_streams"]["a"])
    assert data["all_book_tickers_stream"]["s"] in ("BTCUSDT", "ETHUSDT")
    assert {row["e"] for row in data["all_market_tickers_streams"]} == {"24hrTicker"}


def kind_of(event: dict[str, Any]) -> str:
    """The SDK's models drop the name of a user event."""
    if "a" in event:
        return "ACCOUNT_UPDATE"
    if "o" in event:
        return "ALGO_UPDATE" if "aid" in event["o"] else "ORDER_TRADE_UPDATE"
    return "TRADE_LITE"


def sdk_asks_over_ws(seen: dict[str, dict[str, Any]], key: str) -> None:
    assert seen["ws session.logon"]["data"]["result"]["apiKey"] == key
    result = {step.removeprefix("ws "): row["data"]["result"] for step, row in seen.items() if step.startswith("ws ")}
    assert result["account_information_v2"]["totalWalletBalance"] == "10000.00000000"
    assert D(result["symbol_order_book_ticker"]["bidPrice"]) < D(result["symbol_order_book_ticker"]["askPrice"])
    order = result["new_order"]["orderId"]
    assert {result[name]["orderId"] for name in ("query_order", "modify_order", "cancel_order")} == {order}
    assert (result["query_order"]["status"], result["modify_order"]["origQty"], result["cancel_order"]["status"]) == ("NEW", "0.02", "CANCELED")
    assert result["new_algo_order"]["algoStatus"] == "NEW" and result["cancel_algo_order"]["algoId"] == result["new_algo_order"]["algoId"]
    assert result["position_information_v2"] == []
    assert seen["ws new_order"]["limits"] == ["ORDERS", "ORDERS", "REQUEST_WEIGHT"] and seen["ws query_order"]["limits"] == ["REQUEST_WEIGHT"]


# --- python-binance --------------------------------------------------------------------------------------------------------------------


@names_no_events
def test_python_binance_trades_and_listens(homes_folder: Path, running: dict[str, Any]) -> None:
    seen = told("python_binance", homes_folder, running)
    python_binance_looks(seen)
    python_binance_trades(seen)
    python_binance_listens(seen)


def python_binance_looks(seen: dict[str, dict[str, Any]]) -> None:
    assert seen["ping"]["answer"] == {} and list(seen["markets"]["symbols"]) == ["BTCUSDT", "ETHUSDT"]
    filters = seen["markets"]["symbols"]["BTCUSDT"]
    assert (filters["PRICE_FILTER"]["tickSize"], filters["LOT_SIZE"]["stepSize"], filters["MIN_NOTIONAL"]["notional"]) == ("0.10", "0.001", "50")
    assert [row["limit"] for row in seen["markets"]["limits"]] == [2400, 1200, 300]
    assert seen["balance"]["rows"][0]["balance"] == "10000.00000000" and seen["mode"] == {"dualSidePosition": False}
    assert seen["leverage"]["answer"]["leverage"] == 20 and seen["margin"]["answer"]["code"] == 200
    assert values(seen["configuration"]["rows"][0], "marginType", "leverage") == ("ISOLATED", 20)
    assert seen["brackets"]["rows"][0]["brackets"][0]["initialLeverage"] == 150 and seen["fee"]["takerCommissionRate"] == "0.000500"
    assert is_book(seen["book"]["bids"], seen["book"]["asks"], 5)
    past = [row[0] for row in seen["past candles"]["rows"]]
    assert past == list(range(past[0], past[-1] + 1, 60_000)) and 4 <= len(past) <= 6
    ids = [row["a"] for row in seen["trades"]["rows"]]
    assert ids == list(range(ids[0], ids[0] + 5)) and near(seen["mark"]["markPrice"], seen["book"]["bids"][0][0])
    assert len(seen["open interest"]["rows"]) == 2


def python_binance_trades(seen: dict[str, dict[str, Any]]) -> None:
    assert seen["test order"]["answer"] == {}
    order, price = seen["market order"]["order"], seen["market order"]["order"]["avgPrice"]
    assert values(order, "status", "executedQty", "side") == ("FILLED", "0.010", "BUY") and near(price, seen["book"]["asks"][0][0])
    assert values(seen["market order"]["answer"], "status", "executedQty") == ("FILLED", "0.010") and "avgPrice" not in seen["market order"]["answer"]
    assert [values(p, "symbol", "positionAmt", "entryPrice") for p in seen["positions"]["rows"]] == [("BTCUSDT", "0.010", price)]
    for step in ("limit order", "ws order"):
        row = seen[step]
        found = row["found"][0] if isinstance(row["found"], list) else row["found"]
        assert {o["orderId"] for o in (row["placed"], row["changed"], found, row["gone"])} == {row["placed"]["orderId"]}
        assert [o["status"] for o in (row["placed"], row["changed"], found, row["gone"])] == ["NEW", "NEW", "NEW", "CANCELED"]
        assert [o["origQty"] for o in (row["placed"], row["changed"], found)] == ["0.01", "0.02", "0.02"]
    assert seen["limit order"]["told"] == ["NEW", "AMENDMENT", "CANCELED"]
    assert seen["batch"]["statuses"] == ["NEW", "NEW"] and seen["batch canceled"]["statuses"] == ["CANCELED", "CANCELED"]
    algo = seen["algo orders"]
    assert [a["algoId"] for a in algo["open"]] == sorted([algo["near"]["algoId"], algo["far"]["algoId"]])
    assert seen["algo canceled"]["answer"]["code"] == "200" and seen["algo canceled"]["found"]["algoStatus"] == "CANCELED"
    assert values(seen["too small"], "code", "status") == (-4164, 400)
    after = seen["after"]
    assert after["positions"] == [] and balanced(after["trades"], after["account"]["totalWalletBalance"])
    assert D(after["account"]["totalWalletBalance"]) == sum(D(row["income"]) for row in after["income"])
    assert [o["status"] for o in after["orders"]] == ["FILLED", "CANCELED", "CANCELED", "CANCELED", "FILLED"]
    assert seen["ws account"]["totalWalletBalance"] == after["account"]["totalWalletBalance"]
    assert is_book(seen["ws book"]["bids"], seen["ws book"]["asks"], 5)
    assert seen["ws algo"]["placed"]["algoStatus"] == "NEW" and seen["ws algo"]["gone"]["code"] == "200"


def python_binance_listens(seen: dict[str, dict[str, Any]]) -> None:
    events, price = seen["market order heard"]["events"], seen["market order"]["order"]["avgPrice"]
    assert [e["e"] for e in events] == ["ORDER_TRADE_UPDATE", "TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE"]
    assert values(events[3]["o"], "x", "X", "ap") == ("TRADE", "FILLED", price) and D(events[3]["o"]["n"]) == fee(price, "0.01", TAKER)
    assert D(events[2]["a"]["B"][0]["wb"]) == 10_000 - fee(price, "0.01", TAKER) and events[2]["a"]["P"][0]["pa"] == "0.010"
    stopped = seen["stopped heard"]
    assert stopped["told"] == ["NEW", "TRIGGERING", "TRIGGERED", "FINISHED"]
    assert values(stopped["fill"]["o"], "X", "R", "S") == ("FILLED", True, "SELL") and near(stopped["fill"]["o"]["ap"], stopped["wanted"])
    frames = {step.removeprefix("stream: "): row["frame"] for step, row in seen.items() if step.startswith("stream: ")}
    names = {what: frame.get("stream") for what, frame in frames.items()}
    assert names == {
        "trades": "btcusdt@aggTrade", "candles": None, "top": "btcusdt@bookTicker", "tops": "!bookTicker", "depth": "btcusdt@depth10",
        "retail depth": "btcusdt@rpiDepth@500ms", "tickers": "!ticker@arr", "several": "btcusdt@markPrice@1s",
    }  # fmt: skip
    opens = {row[0]: row[1] for row in seen["candles"]["rows"]}
    candle = frames["candles"]["k"]
    assert opens.get(candle["t"], candle["o"]) == candle["o"] and candle["i"] == "1m"
    assert is_book(frames["depth"]["data"]["b"], frames["depth"]["data"]["a"], 10)
    assert near(frames["trades"]["data"]["p"], frames["top"]["data"]["b"]) and near(frames["several"]["data"]["p"], frames["top"]["data"]["b"])
