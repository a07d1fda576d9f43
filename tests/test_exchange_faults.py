"""Each way in which the venue is known to misbehave can be had on order, over real sockets, and says truly whether it executed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from src.error_handler import Fatal
from src.exchange.command import main, options_of
from src.exchange.faults import RULES_MAX, Faults, Kind, Rule, exempt, parse_rule, read_rules
from src.exchange.mishaps import CHAOS
from src.exchange.params import Params
from tests.test_exchange_streams import LIVELY, lively
from tests.test_exchange_wire import KEY, Client, Socket, exchange, options, short

pytestmark = pytest.mark.slow  # every mishap takes its time

ORDER: dict[str, Any] = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}
STOP: dict[str, Any] = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET", "triggerPrice": "59000",
                        "closePosition": "true", "clientAlgoId": "stop"}  # fmt: skip
TRADES, BOOK = "btcusdt@aggTrade", "btcusdt@bookTicker"


@pytest.fixture
async def client() -> Any:
    async with exchange() as client:
        yield client


@pytest.fixture
async def moving() -> Any:
    async with exchange(LIVELY, lively()) as client:
        yield client


def number(trade: dict[str, Any]) -> int | None:
    """Consecutive in the lively market; None for its trade on the whole second."""
    return trade["E"] // 100 if trade["E"] % 100 == 50 else None


async def numbers(socket: Socket, count: int) -> list[int]:
    got: list[int] = []
    while len(got) < count:
        found = number(await socket.next())
        got += [] if found is None else [found]
    return got


async def silent(socket: Socket, wait_s: float = 0.4) -> bool:
    try:
        await asyncio.wait_for(socket.socket.receive(), wait_s)
    except TimeoutError:
        return True
    return False


# ------------------------------------------------------------------ requests


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


@pytest.mark.parametrize(("kind", "executed"), [("reset_before", False), ("reset_during", True), ("reset_after", True)])
async def test_a_connection_that_breaks(client: Client, kind: str, executed: bool) -> None:
    await client.control("fault", door="POST v1/order", kind=kind)
    await client.control("latency", latency_ms=150)
    with pytest.raises(aiohttp.ClientError):
        await client.signed("POST", "v1/order", **ORDER)
    if kind == "reset_during":
        assert (await client.books())["fills"] == [], "it is still on its way"
    while executed and not (await client.books())["fills"]:
        await asyncio.sleep(0.005)
    assert len((await client.books())["fills"]) == executed


@pytest.mark.parametrize(("kind", "executed"), [("gateway_before", False), ("gateway_after", True)])
async def test_something_in_front_of_the_venue_answers_in_html(client: Client, kind: str, executed: bool) -> None:
    await client.control("fault", door="POST v1/order", kind=kind, status=502)
    status, page = await client.signed("POST", "v1/order", **ORDER)
    assert status == 502 and page.startswith("<html>")
    assert len((await client.books())["fills"]) == executed


async def test_a_query_that_lags(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER, newClientOrderId="x")
    await client.control("fault", door="GET v1/order", kind="stale", count=2)
    codes = [(await client.signed("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="x"))[0] for _ in range(3)]
    assert codes == [400, 400, 200]


async def test_reads_may_stand_still_while_orders_move() -> None:
    """For a while orders are shown as they stood then: what is new is not there, what is gone still is."""
    async with exchange(options(speed=10.0, latency_ms=0)) as client:
        await client.good("POST", "v1/order", **ORDER)
        await client.good("POST", "v1/order", **ORDER | {"type": "LIMIT", "price": "59000", "timeInForce": "GTC", "newClientOrderId": "old"})
        await client.good("POST", "v1/algoOrder", **STOP | {"clientAlgoId": "first"})
        settled = client.clock.market_ms()
        while client.clock.market_ms() < settled + 5_000:
            await asyncio.sleep(0.01)
        for door in ("GET v1/order", "GET v1/openOrders", "GET v1/allOrders", "GET v1/algoOrder", "GET v1/openAlgoOrders", "GET v1/userTrades"):
            await client.control("fault", door=door, kind="lag", delay_s=0.4, count=0)
        for path, name, value in (("v1/order", "origClientOrderId", "old"), ("v1/algoOrder", "clientAlgoId", "first")):
            await client.good("DELETE", path, symbol="BTCUSDT", **{name: value})
        await client.good("POST", "v1/order", **ORDER, newClientOrderId="new")
        await client.good("POST", "v1/algoOrder", **STOP)
        seen = (await client.good("GET", "v1/openOrders"), await client.good("GET", "v1/openAlgoOrders"))
        assert [[o.get("clientOrderId") or o["clientAlgoId"] for o in rows] for rows in seen] == [["old"], ["first"]]
        assert (await client.good("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="old"))["status"] == "NEW"
        assert await client.code("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="new") == -2013
        assert await client.code("GET", "v1/algoOrder", clientAlgoId="stop") == -2013
        assert len(await client.good("GET", "v1/userTrades", symbol="BTCUSDT")) == 1
        while not await client.good("GET", "v1/openAlgoOrders"):
            await asyncio.sleep(0.01)
        await client.control("clear_faults")
        assert (await client.good("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="old"))["status"] == "CANCELED"
        assert [a["clientAlgoId"] for a in await client.good("GET", "v1/openAlgoOrders")] == ["stop"]


async def test_throttling_spares_what_only_reduces(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER)
    await client.control("fault", kind="throttled", count=2)
    await client.good("POST", "v1/order", **ORDER | {"side": "SELL"}, reduceOnly="true")
    await client.good("GET", "v1/openOrders")
    assert await client.code("POST", "v1/order", **ORDER) == await client.code("POST", "v1/order/test", **ORDER) == -1008
    assert exempt(Params({"positionSide": "LONG", "side": "SELL"})) and exempt(Params({"closePosition": "true"}))
    assert not exempt(Params({"positionSide": "LONG", "side": "BUY", "reduceOnly": "true"}))


async def test_too_many_requests_by_decree(client: Client) -> None:
    await client.control("fault", kind="limited", delay_s=7, door="GET v1/ping")
    status, body = await client.raw("GET", "/fapi/v1/ping")
    assert (status, body["code"], client.headers["Retry-After"]) == (429, -1003, "7")


async def test_a_ban_by_decree_holds_at_every_door_and_ends(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    await client.control("fault", kind="banned", for_s=30)
    status, body = await client.raw("GET", "/fapi/v1/ping")
    assert (status, body["code"]) == (418, -1003) and 28 <= int(client.headers["Retry-After"]) <= 31
    until = int("".join(c for c in body["msg"].split("until")[1] if c.isdigit()))
    assert 28_000 < until - client.clock.market_ms() < 31_000
    assert (await socket.ask({"id": 1, "method": "time"}))["status"] == 418
    await client.control("clear_faults")
    await client.get("v1/ping")


@pytest.mark.parametrize(
    ("path", "words", "code"),
    [("v1/leverage", {"symbol": "BTCUSDT", "leverage": 5}, -4028), ("v1/algoOrder", STOP, -2021), ("v1/order", ORDER, -2019)],
)
async def test_what_would_be_good_is_refused(client: Client, path: str, words: dict[str, Any], code: int) -> None:
    await client.good("POST", "v1/order", **ORDER)
    await client.control("fault", kind="refused", door=f"POST {path}", code=code)
    assert await client.code("POST", path, **words) == code
    await client.good("POST", path, **words)


async def test_an_answer_comes_late(client: Client) -> None:
    loop = asyncio.get_running_loop()
    await client.control("fault", kind="slow", door="GET v1/time", delay_s=0.3)
    start = loop.time()
    await client.get("v1/time")
    assert loop.time() - start >= 0.3


async def test_an_answer_is_cut_off_or_holds_more_than_anybody_knows(client: Client) -> None:
    await client.control("fault", kind="cut_answer", door="POST v1/order")
    with pytest.raises(json.JSONDecodeError):
        await client.signed("POST", "v1/order", **ORDER)
    assert len((await client.books())["fills"]) == 1
    await client.control("fault", kind="odd_answer", door="GET v1/time")
    assert (await client.get("v1/time")).keys() == {"serverTime", "zz"}
    await client.control("fault", kind="odd_answer", door="GET v1/premiumIndex")
    assert (await client.get("v1/premiumIndex"))[-1]["zz"] == 1
    socket = await client.socket(client.ready.ws_api)
    await client.control("fault", kind="odd_answer", door="time")
    assert (await socket.ask({"id": 1, "method": "time"}))["zz"]
    await client.control("fault", kind="cut_answer", door="time")
    await socket.send({"id": 2, "method": "time"})
    with pytest.raises(json.JSONDecodeError):
        await socket.next()


async def test_the_ws_api_has_the_same_faults(client: Client) -> None:
    socket = await client.socket(client.ready.ws_api)
    params: dict[str, Any] = ORDER | {"apiKey": KEY, "timestamp": client.clock.market_ms()}
    params["signature"] = client.sign("&".join(f"{k}={params[k]}" for k in sorted(params)))
    await client.control("fault", door="order.place", kind="silent_after")
    await socket.send({"id": 1, "method": "order.place", "params": params})
    await client.control("fault", door="time", kind="timeout_before")
    assert (await socket.ask({"id": 2, "method": "time"}))["status"] == 408
    await client.control("fault", door="time", kind="gateway_before")
    assert (await socket.ask({"id": 3, "method": "time"}))["status"] == 504
    while not (await client.books())["fills"]:
        await asyncio.sleep(0.005)
    await client.control("fault", door="time", kind="reset_before")
    await socket.send({"id": 3, "method": "time"})
    assert (await socket.frame()).type is not aiohttp.WSMsgType.TEXT


# ------------------------------------------------------------------ the whole venue


@pytest.mark.parametrize(("kind", "status"), [("maintenance", 503), ("restricted", 451)])
async def test_a_venue_closed_to_all_answers_at_no_door(client: Client, kind: str, status: int) -> None:
    socket, ws_api = await client.socket(client.ready.market + "/ws"), await client.socket(client.ready.ws_api)
    await client.control("fault", kind=kind, for_s=0.5)
    got, body = await client.raw("GET", "/fapi/v1/ping")
    assert got == status
    assert kind == "maintenance" or "restricted location" in body["msg"]
    assert (await socket.frame()).type is not aiohttp.WSMsgType.TEXT, "who was connected is cut"
    assert (await ws_api.frame()).type is not aiohttp.WSMsgType.TEXT, "at the WS API too"
    for url in (client.ready.market + "/ws", client.ready.ws_api):
        with pytest.raises(aiohttp.WSServerHandshakeError, match=str(status)):
            await client.socket(url)
    while (await client.raw("GET", "/fapi/v1/ping"))[0] != 200:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("skew_s", [-20.0, 20.0])
async def test_the_venue_s_clock_is_another_one(client: Client, skew_s: float) -> None:
    await client.control("fault", kind="clock_skew", size=skew_s)
    told = (await client.get("v1/time"))["serverTime"]
    assert abs(told - client.clock.market_ms() - 1000 * skew_s) < 2000
    assert await client.code("GET", "v3/balance") == -1021
    answer = await client.good("POST", "v1/order", **ORDER, timestamp=told)
    assert answer["status"] == "NEW", "who follows it trades on"
    await client.control("clear_faults")
    await client.good("GET", "v3/balance")


# ------------------------------------------------------------------ the user stream


async def test_user_events_get_lost_doubled_and_late(client: Client) -> None:
    user = await client.user_stream()
    await client.control("fault", door="TRADE_LITE", kind="drop")
    await client.control("fault", door="ACCOUNT_UPDATE", kind="duplicate")
    await client.control("fault", door="ORDER_TRADE_UPDATE", kind="delay", delay_s=0.2)
    await client.good("POST", "v1/order", **ORDER)
    got = [short(await user.next()) for _ in range(4)]
    assert got == ["ACCOUNT_UPDATE ORDER", "ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE TRADE", "ORDER_TRADE_UPDATE NEW"]


async def test_types_of_user_events_overtake_each_other_but_not_themselves(client: Client) -> None:
    user = await client.user_stream()
    await client.control("fault", kind="reorder", count=0, seed=3)
    orders = []
    for _ in range(6):
        await client.good("POST", "v1/order", **ORDER)
        orders.append([short(await user.next()) for _ in range(4)])
    assert len({tuple(o) for o in orders}) > 1
    for got in orders:
        assert got.index("ORDER_TRADE_UPDATE NEW") < got.index("ORDER_TRADE_UPDATE TRADE")
        assert sorted(got) == ["ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE NEW", "ORDER_TRADE_UPDATE TRADE", "TRADE_LITE"]


async def test_user_events_are_lost_by_rate_and_by_seed_and_the_same_seed_is_the_same_loss(client: Client) -> None:
    async def orders_heard() -> list[str]:
        user = await client.user_stream("ORDER_TRADE_UPDATE")
        await client.control("fault", door="ORDER_TRADE_UPDATE", kind="drop", rate=0.5, seed=11)
        for n in range(20):
            await client.good("POST", "v1/order", **ORDER, newClientOrderId=f"order-{n}")
        await client.control("clear_faults")
        await client.good("POST", "v1/order", **ORDER, newClientOrderId="last")
        got = await user.until(lambda m: m["o"]["c"] == "last" and m["o"]["x"] == "TRADE")
        await user.socket.close()
        return [f"{m['o']['c']} {m['o']['x']}" for m in got]

    first = await orders_heard()
    assert 2 + 8 <= len(first) <= 2 + 32
    assert await orders_heard() == first


async def test_the_user_stream_goes_silent_while_it_stays_connected(client: Client) -> None:
    user = await client.user_stream()
    await client.control("fault", kind="mute", door="private", for_s=0.6)
    await client.good("POST", "v1/order", **ORDER)
    assert await silent(user, 0.3)
    again = await client.user_stream()
    while (await client.raw("GET", "/control/faults"))[1]:
        await asyncio.sleep(0.02)
    await client.good("POST", "v1/order", **ORDER)
    assert short(await again.next()) == "ORDER_TRADE_UPDATE NEW"


async def test_a_listen_key_expires_by_script(client: Client) -> None:
    user = await client.user_stream("listenKeyExpired")
    await client.control("fault", kind="expire_listen_keys", after_s=0.2)
    assert (await user.next())["e"] == "listenKeyExpired"


async def test_user_events_of_a_kind_or_with_fields_that_nobody_knows_or_cut_off(client: Client) -> None:
    user = await client.user_stream()
    for kind, event in (("unknown_frame", "TRADE_LITE"), ("unknown_field", "ACCOUNT_UPDATE"), ("malformed", "ORDER_TRADE_UPDATE")):
        await client.control("fault", kind=kind, door=event)
    await client.good("POST", "v1/order", **ORDER)
    with pytest.raises(json.JSONDecodeError):
        await user.next()
    got = [await user.next() for _ in range(4)]
    assert [m["e"] for m in got] == ["neverHeardOf", "TRADE_LITE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE"]
    assert got[2]["zz"]


# ------------------------------------------------------------------ market streams


async def test_a_market_stream_goes_mute_and_stays_connected(moving: Client) -> None:
    market, public = await moving.socket(f"{moving.ready.market}/ws/{TRADES}"), await moving.socket(f"{moving.ready.public}/ws/{BOOK}")
    for socket in (market, public):
        await socket.next()
    await moving.control("fault", kind="mute", door="market", for_s=1.0)
    await market.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1})
    assert await silent(market)
    await public.next()
    await market.next()


async def test_one_stream_of_a_socket_goes_mute(moving: Client) -> None:
    socket = await moving.socket(f"{moving.ready.market}/stream?streams={TRADES}/!markPrice@arr@1s")
    await socket.until(lambda m: m["stream"] == TRADES)
    await moving.control("fault", kind="mute", door=TRADES, for_s=0.5)
    for method in ("UNSUBSCRIBE", "SUBSCRIBE"):
        await socket.ask({"method": method, "params": [TRADES], "id": 2})
    names = [(await socket.next())["stream"] for _ in range(3)]
    assert names == ["!markPrice@arr@1s"] * 3
    await socket.until(lambda m: m["stream"] == TRADES)


async def test_frames_arrive_late_and_in_order(moving: Client) -> None:
    """At speed 20 a trade is due every 5 ms; each comes half a second later, and none overtakes another."""
    await moving.control("fault", kind="slow_frames", door="market", delay_s=0.5)
    socket = await moving.socket(f"{moving.ready.market}/ws/{TRADES}")
    first = await socket.next()
    assert moving.clock.market_ms() - first["E"] > 9_000
    got = await numbers(socket, 50)
    await moving.control("clear_faults")
    got += await numbers(socket, 100)
    assert got == list(range(got[0], got[0] + 150)), "nor when they are quick again"


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("drop", lambda ids: len(set(ids)) == len(ids) and ids[-1] - ids[0] > len(ids)),
        ("duplicate", lambda ids: max(Counter(ids).values()) == 2 and set(ids) == set(range(ids[0], ids[-1] + 1))),
        ("delay", lambda ids: ids != sorted(ids) and len(set(ids)) == len(ids)),
        ("malformed", lambda ids: -1 in ids),
        ("unknown_frame", lambda ids: ids.count(-2) > 5),
        ("unknown_field", lambda ids: -3 in ids),
    ],
)
async def test_market_frames_are_lost_doubled_late_or_rubbish_by_rate(moving: Client, kind: str, wanted: Any) -> None:
    socket = await moving.socket(moving.ready.market + "/ws")
    await moving.control("fault", kind=kind, door=TRADES, rate=0.3, seed=5, delay_s=0.05)
    await socket.ask({"method": "SUBSCRIBE", "params": [TRADES], "id": 1})
    ids: list[int] = []
    while len(ids) < 60:
        message = await socket.frame()
        try:
            body = json.loads(message.data)
        except json.JSONDecodeError:
            ids.append(-1)
            continue
        found = -2 if body["e"] != "aggTrade" else -3 if "zz" in body else number(body)
        ids += [] if found is None else [found]
    assert wanted(ids)
    await moving.control("clear_faults")
    await socket.send({"method": "LIST_SUBSCRIPTIONS", "id": 2})
    while '"result"' not in (await socket.frame()).data:
        pass
    clean = (await numbers(socket, 40))[-20:]
    assert clean == list(range(clean[0], clean[0] + 20))


async def test_a_day_is_over_after_as_long_as_one_likes() -> None:
    """The life of a connection is a limit like others; a cut by script does not wait for it."""
    limits = options_of(["--limit", "connection_life_s=1", "--limit", "messages_per_second=1000"]).limits
    assert limits.connection_life_s == 1.0
    async with exchange(options(limits=limits)) as client:
        for url in (client.ready.market + "/ws", client.ready.private + "/ws", client.ready.ws_api):
            socket = await client.socket(url)
            while (await socket.frame()).type in (aiohttp.WSMsgType.PING, aiohttp.WSMsgType.TEXT):
                pass


async def test_sockets_of_a_route_are_cut_by_script_again_and_again(client: Client) -> None:
    public = await client.socket(client.ready.public + "/ws")
    await client.control("fault", kind="cut", door="market", count=3, delay_s=0.1)
    for _ in range(2):
        socket = await client.socket(client.ready.market + "/ws")
        assert (await socket.frame()).type is not aiohttp.WSMsgType.TEXT
    assert (await public.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1}))["result"] == []


async def test_what_happens_again_and_again_ends_with_its_span_and_keeps_to_its_rate(client: Client) -> None:
    async def struck() -> list[int]:
        return [f["hits"] for f in (await client.raw("GET", "/control/faults"))[1]]

    await client.control("fault", kind="cut", door="market", delay_s=0.05, for_s=0.3)
    await client.control("fault", kind="cut", door="market", delay_s=0.01, rate=0.1, seed=3, count=3)
    await client.control("fault", kind="cut", door="public", delay_s=0.01, after=1000)
    seen = [await struck()]
    while len(seen[-1]) > 1:
        seen.append(await struck())
    assert 1 < max(hits[0] for hits in seen if len(hits) == 3 or hits[0] > 3) <= 7
    assert seen[-1] == [0], "those that pass unharmed are still being counted"


# ------------------------------------------------------------------ conditional orders


async def test_a_stop_that_was_accepted_is_not_there(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER)
    user = await client.user_stream()
    await client.control("fault", kind="lost_stop", door="BTCUSDT")
    answer = await client.good("POST", "v1/algoOrder", **STOP)
    assert answer["algoStatus"] == "NEW" and short(await user.next()) == "ALGO_UPDATE NEW"
    assert await client.good("GET", "v1/openAlgoOrders") == await client.good("GET", "v1/allAlgoOrders", symbol="BTCUSDT") == []
    assert await client.code("GET", "v1/algoOrder", algoId=answer["algoId"]) == -2013
    assert await client.code("DELETE", "v1/algoOrder", algoId=answer["algoId"]) == -2011
    await client.control("price", symbol="BTCUSDT", price="58000")
    await client.good("POST", "v1/algoOrder", **STOP | {"triggerPrice": "57000"})
    assert list((await client.books())["positions"]) == ["BTCUSDT:BOTH"]
    assert [short(await user.next()) for _ in range(1)] == ["ALGO_UPDATE NEW"]


async def test_a_stop_that_rests_vanishes_without_a_word(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER)
    user = await client.user_stream()
    await client.good("POST", "v1/algoOrder", **STOP)
    await user.next()
    await client.control("fault", kind="vanish", door="BTCUSDT", after_s=0.1)
    while await client.good("GET", "v1/openAlgoOrders"):
        await asyncio.sleep(0.01)
    assert await silent(user, 0.2)


async def test_a_stop_is_triggered_and_then_stuck(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER)
    await client.control("fault", kind="stuck_stop")
    await client.good("POST", "v1/algoOrder", **STOP)
    await client.control("price", symbol="BTCUSDT", price="58000")
    await asyncio.sleep(0.1)
    assert (await client.good("GET", "v1/algoOrder", clientAlgoId="stop"))["algoStatus"] == "TRIGGERING"
    assert await client.code("DELETE", "v1/algoOrder", clientAlgoId="stop") == -2011
    assert (await client.books())["positions"]


async def test_a_stop_is_refused_at_its_trigger(client: Client) -> None:
    await client.good("POST", "v1/order", **ORDER)
    user = await client.user_stream("ALGO_UPDATE")
    await client.control("fault", kind="rejected_stop", code=-2019)
    await client.good("POST", "v1/algoOrder", **STOP)
    await client.control("price", symbol="BTCUSDT", price="58000")
    got = await user.until(lambda m: m["o"]["X"] == "REJECTED")
    assert [m["o"]["X"] for m in got] == ["NEW", "TRIGGERING", "REJECTED"]
    assert got[-1]["o"]["rm"] == "Margin is insufficient."
    assert (await client.books())["positions"]


# ------------------------------------------------------------------ contract and market


async def test_a_contract_stops_trading_and_comes_back(moving: Client) -> None:
    socket = await moving.socket(moving.ready.market + "/ws/!contractInfo")
    await moving.control("fault", kind="halt", door="BTCUSDT", for_s=0.5)
    assert await moving.code("POST", "v1/order", **ORDER) == -4140
    assert [(await socket.next())["cs"] for _ in range(2)] == ["SETTLING", "TRADING"]
    await moving.good("POST", "v1/order", **ORDER)


async def standing(client: Client) -> str:
    return str((await client.get("v1/exchangeInfo"))["symbols"][0]["status"])


async def test_halts_overlap_and_the_last_to_end_lets_trade(client: Client) -> None:
    await client.control("fault", kind="halt", door="BTCUSDT", for_s=0.3)
    await client.control("fault", kind="halt", door="BTCUSDT")
    while len((await client.raw("GET", "/control/faults"))[1]) > 1:
        await asyncio.sleep(0.01)
    assert await client.code("POST", "v1/order", **ORDER) == -4140
    await client.control("clear_faults")
    await client.good("POST", "v1/order", **ORDER)


async def test_a_contract_that_ends_while_it_is_halted_stays_ended(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws/!contractInfo")
    await client.control("fault", kind="halt", door="BTCUSDT")
    await client.control("fault", kind="delist", door="BTCUSDT")
    told = await socket.until(lambda m: m["cs"] == "CLOSE")
    assert {m["cs"] for m in told[:-1]} == {"SETTLING"}
    await client.control("clear_faults")
    await client.control("fault", kind="halt", door="BTCUSDT", for_s=0.01)
    await client.control("fault", kind="delist", door="BTCUSDT", delay_s=100)
    assert await client.code("POST", "v1/order", **ORDER) == -4141


async def test_a_contract_is_delisted_and_settled() -> None:
    """Announced by its delivery date; then orders expire, positions are settled at mark, and nothing trades."""
    async with exchange(options(speed=20.0), lively()) as client:
        await client.good("POST", "v1/order", **ORDER)
        await client.good("POST", "v1/order", **ORDER | {"type": "LIMIT", "price": "59000", "timeInForce": "GTC"})
        await client.good("POST", "v1/algoOrder", **STOP)
        user, market = await client.user_stream(), await client.socket(client.ready.market + "/stream?streams=!contractInfo")
        await client.control("fault", kind="delist", door="BTCUSDT", delay_s=0.5)
        announced, closed = (await market.next())["data"], (await market.next())["data"]
        assert announced["cs"] == "TRADING" and announced["dt"] == closed["dt"] <= closed["E"] and closed["cs"] == "CLOSE"
        got = await user.until(lambda m: m["e"] == "ORDER_TRADE_UPDATE" and m["o"]["x"] == "CALCULATED")
        assert [short(m) for m in got] == ["ORDER_TRADE_UPDATE EXPIRED", "ALGO_UPDATE EXPIRED", "ORDER_TRADE_UPDATE NEW", "ACCOUNT_UPDATE ORDER",
                                           "ORDER_TRADE_UPDATE CALCULATED"]  # fmt: skip
        assert got[0]["o"]["er"] == "7" and got[-1]["o"]["c"].startswith("settlement_autoclose-")
        books = await client.books()
        assert books["positions"] == {} and Decimal(books["wallet"]) == Decimal(books["deposits"]) + Decimal(books["realised"]) - Decimal(
            books["commission"])  # fmt: skip
        assert await client.code("POST", "v1/order", **ORDER) == await client.code("POST", "v1/order", **ORDER, reduceOnly="true") == -4141
        trades = await client.socket(f"{client.ready.market}/ws/{TRADES}")
        assert await silent(trades)


async def test_the_price_leaps_over_a_stop(client: Client) -> None:
    """Nothing trades between: the stop fills far below its trigger."""
    await client.good("POST", "v1/order", **ORDER)
    await client.good("POST", "v1/algoOrder", **STOP)
    await client.control("fault", kind="gap", door="BTCUSDT", size=-0.04)
    while (await client.books())["positions"]:
        await asyncio.sleep(0.01)
    fill = (await client.books())["fills"][-1]
    assert Decimal("57500") < Decimal(fill["price"]) < Decimal("57700")


async def test_a_flash_crash_falls_triggers_and_is_gone() -> None:
    async with exchange(options(speed=20.0), lively()) as client:
        await client.good("POST", "v1/order", **ORDER)
        await client.good("POST", "v1/algoOrder", **STOP)
        socket = await client.socket(f"{client.ready.market}/ws/{TRADES}")
        await client.control("fault", kind="flash_crash", door="BTCUSDT", size=-0.1, for_s=1.0)
        prices = [float(m["p"]) for m in await socket.until(lambda m: float(m["p"]) < 54_100)]
        prices += [float(m["p"]) for m in await socket.until(lambda m: float(m["p"]) > 59_900)]
        fill = (await client.books())["fills"][-1]
    assert len({p // 600 for p in prices}) > 8, "step by step"
    assert Decimal("57500") < Decimal(fill["price"]) <= Decimal("59000") and fill["side"] == "SELL"


# ------------------------------------------------------------------ how they are ordered


async def test_faults_are_told_with_how_often_they_struck(client: Client) -> None:
    await client.control("fault", kind="stale", door="GET v1/order", count=5, after=1)
    await client.control("fault", kind="mute", door="market")
    for _ in range(3):
        await client.signed("GET", "v1/order", symbol="BTCUSDT", origClientOrderId="x")
    told = (await client.raw("GET", "/control/faults"))[1]
    assert [(f["kind"], f["hits"]) for f in told] == [("stale", 2), ("mute", 1)]
    await client.control("clear_faults")
    assert (await client.raw("GET", "/control/faults"))[1] == []


async def test_the_price_rises_no_further_than_prices_go(moving: Client) -> None:
    for _ in range(30):
        await moving.control("fault", kind="gap", door="BTCUSDT", size=9)
    assert Decimal((await moving.get("v1/ticker/price", symbol="BTCUSDT"))["price"]) == Decimal("214748364.7")
    socket = await moving.socket(f"{moving.ready.market}/ws/{TRADES}")
    for _ in range(5):
        await socket.next()


@pytest.mark.parametrize(
    "body",
    [{"kind": "unknown_after", "door": "POST v1/oder"}, {"kind": "stale", "door": "order.plaice"}, {"kind": "lost_stop", "door": "btcusdt"},
     {"kind": "cut", "door": "privat"}, {"kind": "halt"}, {"kind": "drop", "for_s": 1e300}, {"kind": "cut", "after_s": 1e300},
     {"kind": "slow", "delay_s": 1e300}, {"kind": "clock_skew", "size": 1e300}, {"kind": "drop", "count": 1 << 70},
     {"kind": "drop", "after": 1 << 70}, {"kind": "nonsense"}, {"kind": "drop", "rate": 2}, {"kind": "drop", "nonsense": 1},
     {"kind": "gap", "door": "NOPEUSDT", "size": 0.1},
     {"kind": "refused", "code": 5}, {"kind": "drop", "count": -1}, {"kind": "slow_frames", "door": "nowhere"}, {}],
)  # fmt: skip
async def test_a_fault_that_makes_no_sense_is_refused_with_its_reason(client: Client, body: dict[str, Any]) -> None:
    status, answer = await client.raw("POST", "/control/fault", json=body)
    assert status == 400 and answer["error"]


def test_a_script_hits_as_often_and_as_late_as_it_says() -> None:
    faults = Faults(408)
    faults.add(Rule(kind=Kind.STALE, door="d", after=2, count=3))
    hits = [faults.take(("d",), {Kind.STALE}) is not None for _ in range(7)]
    assert hits == [False, False, True, True, True, False, False] and not faults
    faults.add(Rule(kind=Kind.DROP, rate=0.25, seed=9))
    seen = [faults.take(("*",), {Kind.DROP}) is not None for _ in range(4000)]
    assert 900 < sum(seen) < 1100
    faults.clear()
    faults.add(Rule(kind=Kind.DROP, rate=0.25, seed=9))
    assert [faults.take(("*",), {Kind.DROP}) is not None for _ in range(4000)] == seen
    faults.clear()
    faults.add(Rule(kind=Kind.DROP, after_s=1000.0))
    assert faults.take(("*",), {Kind.DROP}) is None and faults.left == 1


def test_faults_come_from_the_command_line_and_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = (Rule(kind=Kind.UNKNOWN_AFTER, door="POST v1/order", rate=0.02, seed=7), Rule(kind=Kind.MUTE, door="private", after_s=60, for_s=30))
    file = tmp_path / "faults.json"
    file.write_bytes(msgspec.json.encode(rules))
    words = ("unknown_after,door=POST v1/order,rate=0.02,seed=7", "mute,door=private,after_s=60,for_s=30")
    given = options_of(["--fault", words[0], "--fault", words[1], "--chaos", "5"])
    assert given.faults == rules == read_rules(file.read_bytes()) == options_of(["--faults", str(file)]).faults
    assert given.chaos == 5
    file.write_text('[{"kind": "drop", "rate": 7}]')
    for wrong in (["--fault", "drop,rate=7"], ["--fault", "drop,nonsense"], ["--faults", str(file)], ["--faults", "/nowhere"], ["--limit", "x=1"],
                  ["--limit", "ping_every_s=-1"], ["--chaos", "x"]):  # fmt: skip
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(Fatal):
        read_rules(b"{}")


async def test_faults_given_at_the_start_are_in_force() -> None:
    rules = (parse_rule("unavailable,door=GET v1/ping,count=2"), parse_rule("restricted,after_s=0.3,for_s=0.3"))
    async with exchange(options(faults=rules)) as client:
        assert [(await client.raw("GET", "/fapi/v1/ping"))[0] for _ in range(3)] == [503, 503, 200]
        while (await client.raw("GET", "/fapi/v1/ping"))[0] != 451:
            await asyncio.sleep(0.01)


async def test_chaos_draws_the_same_sequence_from_the_same_seed(caplog: pytest.LogCaptureFixture) -> None:
    drawn: list[list[str]] = []
    for seed in (4, 4, 5):
        async with exchange(LIVELY, lively()) as client:
            await client.control("chaos", seed=seed, every_s=0.02)
            while len([r for r in caplog.records if "chaos" in r.getMessage()]) < 6:
                await asyncio.sleep(0.01)
            await client.control("clear_faults")
        drawn.append([r.getMessage() for r in caplog.records if "chaos" in r.getMessage()][:6])
        caplog.clear()
    assert drawn[0] == drawn[1] != drawn[2]


async def test_one_chaos_at_a_time_until_it_is_cleared_and_none_without_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    async with exchange(LIVELY, lively()) as client:
        for every_s in (0, -1, 1e300):
            assert (await client.raw("POST", "/control/chaos", json={"seed": 1, "every_s": every_s}))[0] == 400
        await client.control("chaos", seed=1, every_s=1000)
        await client.control("chaos", seed=2, every_s=0.02)
        await client.control("chaos", seed=3, every_s=0.02)
        while not any("chaos 3" in r.getMessage() for r in caplog.records):
            await asyncio.sleep(0.01)
    assert not any("chaos 2" in r.getMessage() for r in caplog.records)


async def test_chaos_goes_on_where_there_are_too_many_faults_already(caplog: pytest.LogCaptureFixture) -> None:
    async with exchange(options(faults=(Rule(kind=Kind.DROP, door="nobody@trade", count=0),) * RULES_MAX)) as client:
        await client.control("chaos", seed=1, every_s=0.01)
        while len([r for r in caplog.records if "faults already" in r.getMessage()]) < 3:
            await asyncio.sleep(0.01)


async def test_a_fault_at_the_start_that_names_what_there_is_not_stops_the_exchange() -> None:
    with pytest.raises(Fatal, match="no symbol 'NOPEUSDT'"):
        async with exchange(options(faults=(Rule(kind=Kind.HALT, door="NOPEUSDT"),))):
            pytest.fail("it runs")


def test_what_chaos_draws_from_are_faults() -> None:
    assert {parse_rule(words).kind for words in CHAOS} <= set(Kind)
