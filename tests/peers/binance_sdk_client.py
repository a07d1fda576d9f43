"""Binance's own SDK: REST, streams and the WebSocket API, by ``base_path`` and ``stream_url`` of its configurations.

Its models are strict about types and know every field that the venue promises, so a step also tells how an answer differs from them:
``-name`` is a field that did not come, ``+name`` one that the models do not know.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from binance_common.configuration import ConfigurationRestAPI, ConfigurationWebSocketAPI, ConfigurationWebSocketStreams
from binance_sdk_derivatives_trading_usds_futures.derivatives_trading_usds_futures import DerivativesTradingUsdsFutures
from telling import SYMBOL, Heard, below, given, jump, tell

logging.getLogger().setLevel(logging.ERROR)


def shape(model: Any, path: str = "") -> set[str]:
    """How a model differs from its declaration, all the way down."""
    if isinstance(model, list):
        return set().union(*(shape(one, f"{path}[].") for one in model)) if model else set()
    if not hasattr(model, "model_fields_set"):
        return set()
    if hasattr(model, "actual_instance"):
        return shape(model.actual_instance, path) if model.actual_instance is not None else {f"{path}nothing fits"}
    found = {f"{path}+{name}" for name in getattr(model, "additional_properties", {})}
    for name, field in type(model).model_fields.items():
        value, known = getattr(model, name), field.alias or name
        if name == "root":
            found |= shape(value, path)
        elif name != "additional_properties":
            found |= {f"{path}-{known}"} if value is None else shape(value, f"{path}{known}" + ("" if isinstance(value, list) else "."))
    return found


def plain(model: Any) -> Any:
    """The data of a model in the venue's names."""
    model = getattr(model, "actual_instance", None) or model
    model = getattr(model, "root", model)
    if isinstance(model, list):
        return [plain(one) for one in model]
    return model.to_dict() if hasattr(model, "to_dict") else model


class Rest:
    """Asks, and tells what came."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def ask(self, name: str, step: str = "", /, **params: Any) -> Any:
        data = getattr(self._api, name)(**params).data()
        tell(step or name, shape=sorted(shape(data)), data=plain(data))
        return plain(data)

    def refused(self, step: str, name: str, /, **params: Any) -> None:
        try:
            getattr(self._api, name)(**params)
        except Exception as error:
            tell(step, kind=type(error).__name__, args=list(error.args), code=getattr(error, "status_code", None))


def look(rest: Rest) -> float:
    for name in ("check_server_time", "exchange_information", "futures_account_configuration", "get_current_position_mode", "trading_schedule"):
        rest.ask(name)
    for name in ("account_information_v2", "account_information_v3", "futures_account_balance_v2", "futures_account_balance_v3"):
        rest.ask(name)
    for name in ("order_book", "recent_trades_list", "compressed_aggregate_trades_list"):
        rest.ask(name, symbol=SYMBOL, limit=5)
    for name in ("mark_price", "ticker24hr_price_change_statistics", "symbol_price_ticker_v2", "open_interest", "user_commission_rate",
                 "notional_and_leverage_brackets", "adl_risk"):  # fmt: skip
        rest.ask(name, symbol=SYMBOL)
    rest.ask("get_funding_rate_history", symbol=SYMBOL, limit=2)
    rest.ask("kline_candlestick_data", symbol=SYMBOL, interval="1m", limit=2)
    rest.ask("continuous_contract_kline_candlestick_data", pair=SYMBOL, contract_type="PERPETUAL", interval="1m", limit=2)
    rest.ask("long_short_ratio", symbol=SYMBOL, period="5m", limit=2)
    rest.ask("change_initial_leverage", symbol=SYMBOL, leverage=20)
    rest.ask("change_margin_type", symbol=SYMBOL, margin_type="ISOLATED")
    rest.refused("margin type as it is", "change_margin_type", symbol=SYMBOL, margin_type="ISOLATED")
    rest.ask("symbol_configuration", symbol=SYMBOL)
    return float(rest.ask("symbol_order_book_ticker", symbol=SYMBOL)["bidPrice"])


async def listen(streams: Any, key: str) -> tuple[dict[str, Heard], Heard]:
    """Streams of all three routes; each subscription has a pause of the SDK's own."""
    heard: dict[str, Heard] = {}

    async def subscribe(name: str, **params: Any) -> Heard:
        news = heard[name] = Heard()
        handle = await getattr(streams, name)(**params)
        handle.on("message", news.add)
        return news

    user = await subscribe("user_data", listenKey=key)
    await subscribe("kline_candlestick_streams", symbol="btcusdt", interval="1m")
    await subscribe("aggregate_trade_streams", symbol="btcusdt")
    await subscribe("mark_price_stream", symbol="btcusdt", update_speed="1s")
    await subscribe("all_market_tickers_streams")
    await subscribe("diff_book_depth_streams", symbol="btcusdt", update_speed="100ms")
    await subscribe("individual_symbol_book_ticker_streams", symbol="btcusdt")
    await subscribe("all_book_tickers_stream")
    await subscribe("rpi_diff_book_depth_streams", symbol="btcusdt")
    return heard, user


async def tell_markets(heard: dict[str, Heard]) -> None:
    for name, news in heard.items():
        if name != "user_data":
            first = await news.first(lambda _: True)
            tell(name, shape=sorted(shape(first)), data=plain(first))
    depth = heard["diff_book_depth_streams"]
    await depth.first(lambda _: len(depth.events) > 2)
    tell("depth chain", rows=[{k: plain(e)[k] for k in ("U", "u", "pu")} for e in depth.events[:3]])


def order_event(order_id: int, status: str) -> Any:
    def wanted(event: Any) -> bool:
        body = plain(event)
        return bool(body.get("o") and body["o"].get("i") == order_id and body["o"]["X"] == status)

    return wanted


async def trade(rest: Rest, user: Heard, exchange: dict[str, str], bid: float) -> None:
    bought = rest.ask("new_order", "market order", symbol=SYMBOL, side="BUY", type="MARKET", quantity=0.01, new_order_resp_type="RESULT")
    await user.first(order_event(bought["orderId"], "FILLED"))
    tell("market order heard", events=[{"shape": sorted(shape(e)), "data": plain(e)} for e in user.events])
    rest.ask("query_order", symbol=SYMBOL, order_id=bought["orderId"])
    rest.ask("position_information_v2", symbol=SYMBOL)
    rest.ask("position_information_v3", symbol=SYMBOL)
    limit = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "time_in_force": "GTC"}
    placed = rest.ask("new_order", "limit order", **limit, quantity=0.01, price=below(bid, 2))
    rest.ask("modify_order", symbol=SYMBOL, side="BUY", quantity=0.02, price=below(bid, 3), order_id=placed["orderId"], modify_id=77)
    rest.ask("current_all_open_orders", symbol=SYMBOL)
    rest.ask("get_order_modify_history", symbol=SYMBOL, order_id=placed["orderId"])
    rest.ask("cancel_order", symbol=SYMBOL, order_id=placed["orderId"])
    one = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    rows = [one | {"quantity": "0.01", "price": str(below(bid, 2))}, one | {"quantity": "0.0001", "price": str(below(bid, 2))}]
    batch = rest.ask("place_multiple_orders", batch_orders=rows)
    change = {"orderId": batch[0]["orderId"], "symbol": SYMBOL, "side": "BUY", "quantity": "0.03", "price": str(below(bid, 2))}
    rest.ask("modify_multiple_orders", batch_orders=[change])
    rest.ask("cancel_multiple_orders", symbol=SYMBOL, order_id_list=[batch[0]["orderId"]])
    rest.refused("too small", "new_order", **limit, quantity=0.001, price=40_000.0)
    stop = {"algo_type": "CONDITIONAL", "symbol": SYMBOL, "side": "SELL", "quantity": 0.01, "reduce_only": "true"}
    away = rest.ask("new_algo_order", "trailing stop", **stop, type="TRAILING_STOP_MARKET", callback_rate=5)
    rest.ask("cancel_algo_order", algo_id=away["algoId"])
    near = rest.ask("new_algo_order", **stop, type="STOP_MARKET", trigger_price=below(bid, 2))
    rest.ask("current_all_algo_open_orders")
    before = len(user.events)
    jump(exchange, below(bid, 3))
    await user.first(lambda e: (plain(e).get("o") or {}).get("aid") == near["algoId"] and plain(e)["o"]["X"] == "FINISHED")
    tell("stopped heard", wanted=below(bid, 3), events=[{"shape": sorted(shape(e)), "data": plain(e)} for e in user.events[before:]])
    for name in ("query_all_algo_orders", "all_orders", "account_trade_list", "get_income_history", "position_information_v3"):
        rest.ask(name, f"after: {name}", symbol=SYMBOL)
    rest.ask("account_information_v3", "after: account_information_v3")


def hedge(rest: Rest, bid: float) -> None:
    """Both sides of one contract at a time, and the manners of limit orders."""
    rest.ask("change_position_mode", dual_side_position="true")
    market = {"symbol": SYMBOL, "type": "MARKET", "new_order_resp_type": "RESULT"}
    for side, position_side, quantity in (("BUY", "LONG", 0.02), ("SELL", "SHORT", 0.01), ("SELL", "LONG", 0.005)):
        rest.ask("new_order", f"hedge: {side} {position_side}", **market, side=side, position_side=position_side, quantity=quantity)
    rest.refused("hedge: more than there is", "new_order", **market, side="SELL", position_side="LONG", quantity=0.02)
    rest.refused("hedge: no side", "new_order", **market, side="BUY", quantity=0.01)
    rest.refused("hedge: mode with positions", "change_position_mode", dual_side_position="false")
    rest.ask("position_information_v3", "hedge: positions", symbol=SYMBOL)
    for side, position_side, quantity in (("SELL", "LONG", 0.015), ("BUY", "SHORT", 0.01)):
        rest.ask("new_order", f"hedge: close {position_side}", **market, side=side, position_side=position_side, quantity=quantity)
    rest.ask("change_position_mode", "one-way again", dual_side_position="false")
    limit = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "quantity": 0.01}
    rest.refused("post-only that crosses", "new_order", **limit, time_in_force="GTX", price=below(bid, 1))
    rest.refused("all or nothing", "new_order", **limit, time_in_force="FOK", price=below(bid, 7))
    rest.ask("new_order", "at once or not", **limit, time_in_force="IOC", price=below(bid, 7), new_order_resp_type="RESULT")
    rest.ask("cancel_all_open_orders", symbol=SYMBOL)
    rest.ask("auto_cancel_all_open_orders", symbol=SYMBOL, countdown_time=0)


async def ask(api: Any, bid: float) -> None:
    """The WebSocket API with an Ed25519 key, logged on."""
    logon = await api.send_signed_message({"method": "session.logon", "params": {}}, signer=api.signer, api_key=True, session_logon=True)
    tell("ws session.logon", data=logon.data())

    async def call(name: str, **params: Any) -> Any:
        answer = await getattr(api, name)(**params)
        data = plain(answer.data())
        tell(f"ws {name}", shape=sorted(shape(answer.data())), data=data, limits=[r.rateLimitType for r in answer.rate_limits])
        return data["result"]

    for name in ("account_information", "account_information_v2", "futures_account_balance_v2"):
        await call(name)
    for name in ("symbol_order_book_ticker", "symbol_price_ticker"):
        await call(name, symbol=SYMBOL)
    order = (await call("new_order", symbol=SYMBOL, side="BUY", type="LIMIT", time_in_force="GTC", quantity=0.01, price=below(bid, 8)))["orderId"]
    await call("query_order", symbol=SYMBOL, order_id=order)
    await call("modify_order", symbol=SYMBOL, side="BUY", quantity=0.02, price=below(bid, 9), order_id=order)
    await call("cancel_order", symbol=SYMBOL, order_id=order)
    algo = await call("new_algo_order", algo_type="CONDITIONAL", symbol=SYMBOL, side="SELL", type="STOP_MARKET", quantity=0.01,
                      trigger_price=below(bid, 9), reduce_only="true")  # fmt: skip
    await call("cancel_algo_order", algo_id=algo["algoId"])
    await call("position_information_v2", symbol=SYMBOL)


async def main() -> None:
    exchange = given()
    client = DerivativesTradingUsdsFutures(
        ConfigurationRestAPI(api_key=exchange["key"], api_secret=exchange["secret"], base_path=exchange["rest"]),
        ConfigurationWebSocketAPI(api_key=exchange["ed_key"], private_key=exchange["ed_secret"], stream_url=exchange["ws_api"]),
        ConfigurationWebSocketStreams(stream_url=exchange["base"]),
    )
    rest, streams, api = Rest(client.rest_api), client.websocket_streams, client.websocket_api
    bid = look(rest)
    await streams.create_connection()
    try:
        key = rest.ask("start_user_data_stream")["listenKey"]
        heard, user = await listen(streams, key)
        rest.ask("keepalive_user_data_stream")
        await tell_markets(heard)
        await trade(rest, user, exchange, bid)
        hedge(rest, bid)
    finally:
        await streams.close_connection(close_session=True)
    await api.create_connection()
    try:
        await ask(api, bid)
    finally:
        await api.close_connection(close_session=True)


asyncio.run(main())
