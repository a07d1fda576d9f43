"""ccxt's ``binanceusdm`` with its WebSocket side. URLs by the constructor's ``urls``, as its manual says."""

from __future__ import annotations

import asyncio
from typing import Any

import ccxt.pro as ccxt
from telling import Heard, below, given, jump, tell

PAIR = "BTC/USDT:USDT"


def client(exchange: dict[str, str]) -> Any:
    """Everything of other products leads to an address of the local exchange where nothing answers, so that no request can leave."""
    rest = exchange["rest"]
    api: dict[str, Any] = {name: rest + "/elsewhere" for name, url in ccxt.binanceusdm().urls["api"].items() if isinstance(url, str)}
    api |= {f"fapi{door}{version}": f"{rest}/fapi/{version.lower() or 'v1'}" for door in ("Public", "Private") for version in ("", "V2", "V3")}
    api |= {"fapiData": rest + "/futures/data", "ws": {"linear": exchange["base"] + "/ws", "ws-api": {"linear": exchange["ws_api"]}}}
    options = {"fetchCurrencies": False}  # asks the spot wallet
    return ccxt.binanceusdm({"apiKey": exchange["key"], "secret": exchange["secret"], "urls": {"api": api}, "options": options})


def brief(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


ORDER = ("id", "symbol", "type", "side", "amount", "price", "average", "filled", "remaining", "status", "reduceOnly", "triggerPrice", "fee")


async def look(c: Any) -> float:
    markets = await c.load_markets()
    tell("markets", names=sorted(markets), **brief(markets[PAIR], "id", "linear", "active", "contractSize", "precision", "limits", "taker", "maker"))
    tell("time", ahead_ms=await c.fetch_time() - c.milliseconds())
    tell("balance", **(await c.fetch_balance())["USDT"])
    tell("mode", **brief(await c.fetch_position_mode(PAIR), "hedged"))
    tell("leverage", answer=await c.set_leverage(20, PAIR), margin=await c.set_margin_mode("isolated", PAIR))
    tell("leverages", **brief((await c.fetch_leverages([PAIR]))[PAIR], "marginMode", "longLeverage"))
    tell("tiers", first=brief((await c.fetch_leverage_tiers([PAIR]))[PAIR][0], "maxNotional", "maintenanceMarginRate", "maxLeverage"))
    tell("fee", **brief(await c.fetch_trading_fee(PAIR), "maker", "taker"))
    book = await c.fetch_order_book(PAIR, 20)
    tell("book", bids=book["bids"], asks=book["asks"], nonce=book["nonce"])
    tell("candles", rows=await c.fetch_ohlcv(PAIR, "1m", limit=3))
    tell("first candle", rows=await c.fetch_ohlcv(PAIR, "1m", since=0, limit=1))
    tell("trades", rows=[brief(t, "id", "price", "amount", "side", "timestamp") for t in await c.fetch_trades(PAIR, limit=5)])
    tell("ticker", **brief(await c.fetch_ticker(PAIR), "last", "high", "low", "open"))
    tell("funding", **brief(await c.fetch_funding_rate(PAIR), "fundingRate", "markPrice", "fundingTimestamp"))
    return float(book["bids"][0][0])


def listen(c: Any, tasks: list[asyncio.Task[None]]) -> dict[str, Heard]:
    """All four views of the user stream at once."""
    heard = {name: Heard() for name in ("orders", "my_trades", "balance", "positions")}

    async def watch(name: str) -> None:
        while True:
            news = await getattr(c, f"watch_{name}")()
            for one in news if isinstance(news, list) else [news]:
                heard[name].add(dict(one))

    tasks += [asyncio.create_task(watch(name)) for name in heard]
    return heard


async def connected(c: Any) -> None:
    """All four wait on one socket, the private one."""
    async with asyncio.timeout(20):
        while not any("/private/" in url and client.connection and len(client.futures) >= 4 for url, client in c.clients.items()):
            await asyncio.sleep(0.05)


async def trade(c: Any, exchange: dict[str, str], bid: float) -> None:
    tasks: list[asyncio.Task[None]] = []
    heard = listen(c, tasks)
    await connected(c)
    bought = await c.create_order(PAIR, "market", "buy", 0.01)
    order = await c.fetch_order(bought["id"], PAIR)
    tell("market order", answer=brief(bought, *ORDER), order=brief(order, *ORDER))
    filled = await heard["orders"].first(lambda o: o["id"] == bought["id"] and o["status"] == "closed")
    fill = await heard["my_trades"].first(lambda t: t["order"] == bought["id"])
    position = await heard["positions"].first(lambda p: p["contracts"] == 0.01)
    tell("market order heard", order=brief(filled, *ORDER), trade=brief(fill, "price", "amount", "side", "takerOrMaker", "fee"),
         balance=(await heard["balance"].first(lambda b: True))["USDT"],
         position=brief(position, "entryPrice", "contracts", "side", "marginMode"))  # fmt: skip
    tell("positions", rows=[brief(p, "symbol", "side", "contracts", "entryPrice", "marginMode", "initialMargin", "liquidationPrice")
                            for p in await c.fetch_positions([PAIR])])  # fmt: skip
    await rest_and_change(c, heard, bid)
    await fill_and_stop(c, exchange, heard, bid)
    for task in tasks:
        task.cancel()


async def rest_and_change(c: Any, heard: dict[str, Heard], bid: float) -> None:
    placed = await c.create_order(PAIR, "limit", "buy", 0.01, below(bid, 2))
    tell("limit order", answer=brief(placed, *ORDER), open=[o["id"] for o in await c.fetch_open_orders(PAIR)])
    changed = await c.edit_order(placed["id"], PAIR, "limit", "buy", 0.02, below(bid, 3))
    await heard["orders"].first(lambda o: o["id"] == placed["id"] and o["amount"] == 0.02)
    tell("modified", answer=brief(changed, *ORDER), order=brief(await c.fetch_open_order(placed["id"], PAIR), *ORDER))
    gone = await c.cancel_order(placed["id"], PAIR)
    await heard["orders"].first(lambda o: o["id"] == placed["id"] and o["status"] == "canceled")
    tell("canceled", answer=brief(gone, *ORDER), open=[o["id"] for o in await c.fetch_open_orders(PAIR)])
    order = {"symbol": PAIR, "type": "limit", "side": "buy", "amount": 0.01, "price": below(bid, 2)}
    pair = await c.create_orders([order, order | {"params": {"reduceOnly": True}}])
    tell("batch", found=sorted((o["status"], o["info"].get("code")) for o in pair))
    mine = [o["id"] for o in pair if o["status"] == "open"]
    tell("batch canceled", statuses=[o["status"] for o in await c.cancel_orders(mine, PAIR)], all=(await c.cancel_all_orders(PAIR))[0]["info"])


async def fill_and_stop(c: Any, exchange: dict[str, str], heard: dict[str, Heard], bid: float) -> None:
    resting = await c.create_order(PAIR, "limit", "buy", 0.01, below(bid, 1))
    stop = await c.create_order(PAIR, "STOP_MARKET", "sell", 0.02, None, {"stopPrice": below(bid, 3), "reduceOnly": True})
    other = await c.create_order(PAIR, "TAKE_PROFIT_MARKET", "sell", 0.02, None, {"stopPrice": below(bid, -9), "reduceOnly": True})
    tell("algo orders", answer=brief(stop, *ORDER), open=sorted(o["id"] for o in await c.fetch_open_orders(PAIR, params={"trigger": True})),
         ids=sorted([stop["id"], other["id"]]))  # fmt: skip
    await c.cancel_order(other["id"], PAIR, {"trigger": True})
    tell("algo canceled", order=brief(await c.fetch_order(other["id"], PAIR, {"trigger": True}), *ORDER))
    jump(exchange, below(bid, 2))
    made = await heard["my_trades"].first(lambda t: t["order"] == resting["id"])
    tell("limit order filled", wanted=below(bid, 1), trade=brief(made, "price", "amount", "takerOrMaker", "fee"))
    jump(exchange, below(bid, 4))
    done = await heard["orders"].first(lambda o: o["id"] == stop["id"] and o["status"] == "closed")
    out = await heard["orders"].first(lambda o: o["clientOrderId"] == stop["clientOrderId"] and o["id"] != stop["id"] and o["status"] == "closed")
    tell("stopped", wanted=below(bid, 4), algo=brief(done, *ORDER), order=brief(out, *ORDER), position=await c.fetch_positions([PAIR]),
         at_rest=brief(await c.fetch_order(stop["id"], PAIR, {"trigger": True}), *ORDER))  # fmt: skip
    mine = await c.fetch_my_trades(PAIR)
    tell("my trades", rows=[t["info"] for t in mine])
    tell("ledger", rows=[brief(r, "type", "amount", "direction") for r in await c.fetch_ledger("USDT")],
         wallet=(await c.fetch_balance())["info"]["totalWalletBalance"])  # fmt: skip


async def refused(c: Any) -> None:
    for name, order in {"too small": ("limit", "buy", 0.001, 40_000.0), "too large": ("market", "buy", 100.0, None)}.items():
        try:
            await c.create_order(PAIR, *order)
        except ccxt.BaseError as error:
            tell(name, kind=type(error).__name__, text=str(error))


async def watch(c: Any) -> None:
    """Market streams of both routes."""
    book = await c.watch_order_book(PAIR)
    for _ in range(3):
        book = await c.watch_order_book(PAIR)
    tell("watched book", bids=book["bids"][:20], asks=book["asks"][:20], nonce=book["nonce"])
    single = await c.watch_trades(PAIR)
    tell("watched trades", rows=[brief(t, "id", "price", "amount", "side") for t in single])
    rows = await c.watch_ohlcv(PAIR, "1m")
    tell("watched candles", rows=list(rows), rest=(await c.fetch_ohlcv(PAIR, "1m", limit=2)))
    tell("watched ticker", **brief(await c.watch_ticker(PAIR), "last", "high", "low"))
    tell("watched top", **brief((await c.watch_bids_asks([PAIR]))[PAIR], "bid", "ask", "bidVolume", "askVolume"))
    tell("watched mark", **brief(await c.watch_mark_price(PAIR), "markPrice", "indexPrice"))


async def ask(c: Any, bid: float) -> None:
    """The WebSocket API."""
    book = await c.fetch_order_book_ws(PAIR, 5)
    tell("ws book", bids=book["bids"], asks=book["asks"])
    tell("ws balance", **(await c.fetch_balance_ws())["USDT"])
    placed = await c.create_order_ws(PAIR, "limit", "buy", 0.01, below(bid, 8))
    changed = await c.edit_order_ws(placed["id"], PAIR, "limit", "buy", 0.02, below(bid, 9))
    found = await c.fetch_order_ws(placed["id"], PAIR)
    gone = await c.cancel_order_ws(placed["id"], PAIR)
    rows = {"placed": placed, "changed": changed, "found": found, "gone": gone}
    tell("ws order", wanted=below(bid, 9), **{name: brief(row, *ORDER) for name, row in rows.items()})
    await c.create_order_ws(PAIR, "market", "buy", 0.01)
    tell("ws positions", rows=[brief(p, "symbol", "contracts", "side") for p in await c.fetch_positions_ws([PAIR])])
    algo = await c.create_order_ws(PAIR, "STOP_MARKET", "sell", 0.01, None, {"stopPrice": below(bid, 9), "reduceOnly": True})
    tell("ws algo", open=[o["id"] for o in await c.fetch_open_orders(PAIR, params={"trigger": True})], id=algo["id"])


async def main() -> None:
    exchange = given()
    c = client(exchange)
    try:
        async with asyncio.timeout(90):  # what is watched may stay silent for ever
            bid = await look(c)
            await watch(c)
            await trade(c, exchange, bid)
            await refused(c)
            await ask(c, bid)
    finally:
        await c.close()


asyncio.run(main())
