"""python-binance: AsyncClient and BinanceSocketManager, by the URL constants of their classes.

``AsyncClient.create`` pings the spot API first, so the client is made by its constructor.
"""

from __future__ import annotations

import asyncio
from typing import Any

from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException
from telling import SYMBOL, Heard, below, given, jump, tell


def client(exchange: dict[str, str]) -> tuple[Any, Any]:
    """Everything of other products leads to an address of the local exchange where nothing answers, so that no request can leave."""
    for owner in (AsyncClient, BinanceSocketManager):
        for name in dir(owner):
            if name.endswith("_URL"):
                setattr(owner, name, exchange["rest"] + "/elsewhere")
    AsyncClient.FUTURES_URL = exchange["rest"] + "/fapi"
    AsyncClient.FUTURES_DATA_URL = exchange["rest"] + "/futures/data"
    AsyncClient.WS_FUTURES_URL = exchange["ws_api"]
    BinanceSocketManager.FSTREAM_URL = exchange["base"] + "/"
    c = AsyncClient(exchange["key"], exchange["secret"])
    return c, BinanceSocketManager(c)


async def look(c: Any) -> float:
    tell("ping", answer=await c.futures_ping())
    info = await c.futures_exchange_info()
    tell("markets", symbols={s["symbol"]: {f["filterType"]: f for f in s["filters"]} for s in info["symbols"]}, limits=info["rateLimits"])
    tell("time", server=(await c.futures_time())["serverTime"])
    tell("balance", rows=await c.futures_account_balance())
    tell("mode", **await c.futures_get_position_mode())
    tell("leverage", answer=await c.futures_change_leverage(symbol=SYMBOL, leverage=20))
    tell("margin", answer=await c.futures_change_margin_type(symbol=SYMBOL, marginType="ISOLATED"))
    tell("configuration", rows=await c.futures_symbol_config(symbol=SYMBOL))
    tell("brackets", rows=await c.futures_leverage_bracket(symbol=SYMBOL))
    tell("fee", **await c.futures_commission_rate(symbol=SYMBOL))
    tell("book", **await c.futures_order_book(symbol=SYMBOL, limit=5))
    tell("candles", rows=await c.futures_klines(symbol=SYMBOL, interval="1m", limit=3))
    tell("past candles", rows=await c.futures_historical_klines(SYMBOL, "1m", "5 minutes ago UTC"))
    tell("trades", rows=await c.futures_aggregate_trades(symbol=SYMBOL, limit=5))
    tell("mark", **await c.futures_mark_price(symbol=SYMBOL))
    tell("open interest", rows=await c.futures_open_interest_hist(symbol=SYMBOL, period="5m", limit=2))
    return float((await c.futures_orderbook_ticker(symbol=SYMBOL))["bidPrice"])


async def streams(sockets: Any) -> None:
    """The first frame of each kind, on its route."""

    async def one(name: str, socket: Any) -> None:
        async with socket as open_socket, asyncio.timeout(20):
            tell(name, frame=await open_socket.recv())

    await asyncio.gather(
        one("stream: trades", sockets.aggtrade_futures_socket(SYMBOL)),
        one("stream: candles", sockets.kline_futures_socket(SYMBOL)),
        one("stream: top", sockets.symbol_ticker_futures_socket(SYMBOL)),
        one("stream: tops", sockets.all_ticker_futures_socket()),
        one("stream: depth", sockets.futures_depth_socket(SYMBOL)),
        one("stream: retail depth", sockets.futures_rpi_depth_socket(SYMBOL)),
        one("stream: tickers", sockets.futures_ticker_socket()),
        one("stream: several", sockets.futures_multiplex_socket(["btcusdt@markPrice@1s"])),
    )


async def hear(socket: Any, heard: Heard) -> None:
    while True:
        heard.add(await socket.recv())


def order_event(order_id: int, status: str) -> Any:
    return lambda e: e["e"] == "ORDER_TRADE_UPDATE" and e["o"]["i"] == order_id and e["o"]["X"] == status


async def trade(c: Any, exchange: dict[str, str], heard: Heard, bid: float) -> None:
    tell("test order", answer=await c.futures_create_test_order(symbol=SYMBOL, side="BUY", type="MARKET", quantity="0.01"))
    bought = await c.futures_create_order(symbol=SYMBOL, side="BUY", type="MARKET", quantity="0.01", newOrderRespType="RESULT")
    tell("market order", answer=bought, order=await c.futures_get_order(symbol=SYMBOL, orderId=bought["orderId"]))
    await heard.first(order_event(bought["orderId"], "FILLED"))
    tell("market order heard", events=list(heard.events))
    tell("positions", rows=await c.futures_position_information(symbol=SYMBOL))
    limit = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01"}
    placed = await c.futures_create_order(**limit, price=str(below(bid, 2)))
    changed = await c.futures_modify_order(symbol=SYMBOL, side="BUY", orderId=placed["orderId"], quantity="0.02", price=str(below(bid, 3)))
    found = await c.futures_get_open_orders(symbol=SYMBOL)
    gone = await c.futures_cancel_order(symbol=SYMBOL, orderId=placed["orderId"])
    await heard.first(order_event(placed["orderId"], "CANCELED"))
    tell("limit order", placed=placed, changed=changed, found=found, gone=gone,
         told=[e["o"]["x"] for e in heard.events if e["e"] == "ORDER_TRADE_UPDATE" and e["o"]["i"] == placed["orderId"]])  # fmt: skip
    pair = await c.futures_place_batch_order(batchOrders=[limit | {"price": str(below(bid, p))} for p in (2, 3)])
    tell("batch", statuses=[o["status"] for o in pair])
    tell("batch canceled", statuses=[o["status"] for o in await c.futures_cancel_orders(symbol=SYMBOL, orderidlist=[o["orderId"] for o in pair])])
    await stop(c, exchange, heard, bid)
    try:
        await c.futures_create_order(**limit | {"quantity": "0.001"}, price="40000")
    except BinanceAPIException as refusal:
        tell("too small", code=refusal.code, text=refusal.message, status=refusal.status_code)


async def stop(c: Any, exchange: dict[str, str], heard: Heard, bid: float) -> None:
    """``futures_create_order`` takes conditional types to the algo service by itself, under ``stopPrice``."""
    out = {"symbol": SYMBOL, "side": "SELL", "quantity": "0.01", "reduceOnly": "true"}
    near = await c.futures_create_order(**out, type="STOP_MARKET", stopPrice=str(below(bid, 2)))
    far = await c.futures_create_algo_order(**out, type="TAKE_PROFIT_MARKET", triggerPrice=str(below(bid, -9)))
    tell("algo orders", near=near, far=far, open=await c.futures_get_open_algo_orders(symbol=SYMBOL))
    tell("algo canceled", answer=await c.futures_cancel_algo_order(algoId=far["algoId"]), found=await c.futures_get_algo_order(algoId=far["algoId"]))
    jump(exchange, below(bid, 3))
    await heard.first(lambda e: e["e"] == "ALGO_UPDATE" and e["o"]["aid"] == near["algoId"] and e["o"]["X"] == "FINISHED")
    fill = await heard.first(lambda e: e["e"] == "ORDER_TRADE_UPDATE" and e["o"]["c"] == near["clientAlgoId"] and e["o"]["x"] == "TRADE")
    states = [e["o"]["X"] for e in heard.events if e["e"] == "ALGO_UPDATE" and e["o"]["aid"] == near["algoId"]]
    tell("stopped heard", wanted=below(bid, 3), told=states, fill=fill)
    tell("after", positions=await c.futures_position_information(symbol=SYMBOL), trades=await c.futures_account_trades(symbol=SYMBOL),
         income=await c.futures_income_history(), orders=await c.futures_get_all_orders(symbol=SYMBOL),
         account=await c.futures_account())  # fmt: skip


async def ask(c: Any, bid: float) -> None:
    """The WebSocket API, each request signed by itself."""
    tell("ws book", **await c.ws_futures_get_order_book(symbol=SYMBOL, limit=5))
    tell("ws account", **await c.ws_futures_v2_account_status())
    placed = await c.ws_futures_create_order(symbol=SYMBOL, side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.01", price=str(below(bid, 8)))
    changed = await c.ws_futures_edit_order(symbol=SYMBOL, side="BUY", orderId=placed["orderId"], quantity="0.02", price=str(below(bid, 9)))
    found = await c.ws_futures_get_order(symbol=SYMBOL, orderId=placed["orderId"])
    gone = await c.ws_futures_cancel_order(symbol=SYMBOL, orderId=placed["orderId"])
    tell("ws order", placed=placed, changed=changed, found=found, gone=gone)
    algo = await c.ws_futures_create_order(symbol=SYMBOL, side="SELL", type="STOP_MARKET", quantity="0.01", stopPrice=str(below(bid, 9)))
    tell("ws algo", placed=algo, gone=await c.ws_futures_cancel_algo_order(algoId=algo["algoId"]))


async def main() -> None:
    exchange = given()
    c, sockets = client(exchange)
    try:
        bid = await look(c)
        await streams(sockets)
        heard, user = Heard(), sockets.futures_user_socket()
        await user.connect()  # closing it would wait ten seconds for a message more
        ears = asyncio.create_task(hear(user, heard))
        await trade(c, exchange, heard, bid)
        ears.cancel()
        await ask(c, bid)
    finally:
        await c.close_connection()


asyncio.run(main())
