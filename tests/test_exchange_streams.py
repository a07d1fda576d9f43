"""Stream sockets: routes, control messages with their exact replies, silence where there is nothing, listen keys, slow clients."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from src.clock import clock_at
from src.exchange.options import Limits
from src.exchange.rare_feeds import RareFeeds
from src.exchange.state import UserEvent
from src.exchange.streams import Channel
from src.exchange.venue import Venue
from tests.test_exchange_fake import T0, Desk, FakeMarket
from tests.test_exchange_wire import KEY, Client, exchange, options, short

LIVELY = options(speed=20.0)


def lively() -> FakeMarket:
    """BTCUSDT moves a tick up and down ten times a second for five minutes."""
    market = FakeMarket(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), seconds=300)
    for n in range(3000):
        market.put(0, market.open_ms + n * 100 + 50, "60000.00" if n % 2 else "60000.10")
    return market


@pytest.fixture
async def client() -> Any:
    async with exchange(LIVELY, lively()) as client:
        yield client


CONTROL: list[tuple[str, Any]] = [
    ('{"method":"SUBSCRIBE","params":["ethusdt@nonsense"],"id":1}', '{"result":null,"id":1}'),
    ('{"method":"LIST_SUBSCRIPTIONS","id":3}', '{"result":["ethusdt@nonsense"],"id":3}'),
    ('{"method":"UNSUBSCRIBE","params":["ethusdt@nonsense"],"id":2}', '{"result":null,"id":2}'),
    ('{"method":"GET_PROPERTY","params":["combined"],"id":5}', '{"result":false,"id":5}'),
    ('{"method":"SET_PROPERTY","params":["combined",true],"id":4}', '{"result":null,"id":4}'),
    ('{"method":"GET_PROPERTY","params":["combined"],"id":5}', '{"result":true,"id":5}'),
    ('{"method":"SET_PROPERTY","params":["combined",1],"id":4}', 1),
    ('{"method":"SET_PROPERTY","params":["other",true],"id":4}', 0),
    ('{"method":"SET_PROPERTY","params":[7,true],"id":4}', 2),
    ('{"method":"SET_PROPERTY","params":["combined",true,1],"id":4}', 2),
    ('{"method":"JUMP","id":4}', 2),
    ('{"id":4}', 2),
    ('{"method":"LIST_SUBSCRIPTIONS","id":"x"}', '{"result":[],"id":"x"}'),
    ('{"method":"LIST_SUBSCRIPTIONS","id":{}}', 2),
    ('{"method":"LIST_SUBSCRIPTIONS","id":-1}', 2),
    ('{"method":"LIST_SUBSCRIPTIONS"}', 2),
    ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2),
    ('{"method":"SUBSCRIBE","params":"btcusdt@aggTrade","id":1}', 2),
    ("[]", 2),
    ("nonsense", 3),
    ("", 3),
]  # fmt: skip


async def test_control_messages_are_answered_to_the_letter(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws")
    for message, wanted in CONTROL:
        await socket.send(message)
        text = (await socket.frame()).data
        if isinstance(wanted, str):
            assert text == wanted
        else:
            assert json.loads(text)["code"] == wanted, message


async def test_each_route_carries_its_own_streams_and_is_silent_about_others(client: Client) -> None:
    names = ["btcusdt@aggTrade", "btcusdt@bookTicker", "btcusdt@markPrice@1s", "btcusdt@depth5@100ms", "btcusdt@aggtrade"]
    seen: dict[str, set[str]] = {}
    for route, base in (("market", client.ready.market), ("public", client.ready.public), ("none", client.ready.public[: -len("/public")])):
        socket = await client.socket(base + "/stream")
        assert await socket.ask({"method": "SUBSCRIBE", "params": names, "id": 1}) == {"result": None, "id": 1}
        seen[route] = set()
        while len(seen[route]) < 2:
            seen[route].add((await socket.next())["stream"])
        seen[route] |= {(await socket.next())["stream"] for _ in range(30)}
    assert seen["market"] == {"btcusdt@aggTrade", "btcusdt@markPrice@1s"}
    assert seen["public"] == seen["none"] == {"btcusdt@bookTicker", "btcusdt@depth5@100ms"}


async def test_raw_and_combined_frames(client: Client) -> None:
    raw = await client.socket(client.ready.market + "/ws/btcusdt@aggTrade/ethusdt@aggTrade")
    trade = await raw.next()
    assert trade.keys() == set("eEsapqflTm") | {"nq", "st"}
    assert trade["e"] == "aggTrade" and trade["p"] in ("60000.00", "60000.10", "3000.00")
    combined = await client.socket(client.ready.market + "/stream?streams=btcusdt@kline_1m/!markPrice@arr@1s/btcusdt_perpetual@continuousKline_1s")
    got: dict[str, Any] = {}
    while len(got) < 3:
        message = await combined.next()
        got[message["stream"]] = message["data"]
    assert isinstance(got["!markPrice@arr@1s"], list) and len(got["!markPrice@arr@1s"]) == 2
    assert got["btcusdt@kline_1m"]["k"]["i"] == "1m"
    assert got["btcusdt_perpetual@continuousKline_1s"]["ct"] == "PERPETUAL"


async def test_single_trades_come_on_the_public_route_with_the_id_that_rest_tells(client: Client) -> None:
    socket = await client.socket(client.ready.public + "/ws/btcusdt@trade")
    trade = await socket.next()
    assert trade.keys() == set("eETstpqXm") | {"st"}
    assert (trade["e"], trade["X"], trade["s"], trade["st"]) == ("trade", "MARKET", "BTCUSDT", 1)
    told = {row["id"]: row for row in await client.get("v1/trades", symbol="BTCUSDT", limit=1000)}[trade["t"]]
    assert (told["price"], told["qty"], told["time"], told["isBuyerMaker"]) == (trade["p"], trade["q"], trade["T"], trade["m"])


async def test_the_tops_of_all_books_come_every_five_seconds_where_they_have_changed(client: Client) -> None:
    socket = await client.socket(client.ready.public + "/ws/!bookTicker")
    heard = [await socket.next() for _ in range(4)]
    assert [e["s"] for e in heard] == ["BTCUSDT", "ETHUSDT", "BTCUSDT", "BTCUSDT"], "ETHUSDT stands still"
    assert heard[0].keys() == set("euETsbBaA") | {"ps", "st"}
    assert heard[3]["E"] - heard[2]["E"] >= 4000
    assert len({(e["b"], e["a"], e["u"]) for e in heard if e["s"] == "BTCUSDT"}) == 3


async def test_the_book_with_retail_orders_is_told_as_a_diff_book(client: Client) -> None:
    socket = await client.socket(client.ready.public + "/ws/btcusdt@rpiDepth@500ms")
    first, second = await socket.next(), await socket.next()
    assert first.keys() == {"e", "E", "T", "s", "ps", "U", "u", "pu", "b", "a", "st"} and first["e"] == "depthUpdate"
    assert second["pu"] == first["u"] and second["E"] - first["E"] >= 400


async def test_a_finished_candle_is_sent_once() -> None:
    async with exchange(options(speed=60.0)) as client:
        socket = await client.socket(client.ready.market + "/ws/btcusdt@kline_1m")
        got = await socket.until(lambda m: m["k"]["x"] and m["k"]["t"] > client.clock.t0_ms)
        closed = [m["k"]["t"] for m in got if m["k"]["x"]]
        assert len(closed) == len(set(closed))
        assert got[-1]["k"]["T"] == got[-1]["k"]["t"] + 59_999
        assert got[-1]["E"] > got[-1]["k"]["T"]


async def test_a_diff_book_can_be_kept_from_its_frames(client: Client) -> None:
    socket = await client.socket(client.ready.public + "/ws/btcusdt@depth@100ms")
    first, second = await socket.next(), await socket.next()
    assert second["pu"] == first["u"] and first["U"] <= first["u"]


async def test_both_lists_of_tickers_tell_who_has_traded(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/stream?streams=!miniTicker@arr/!ticker@arr")
    heard = [await socket.next() for _ in range(8)]
    for name, kind in (("!miniTicker@arr", "24hrMiniTicker"), ("!ticker@arr", "24hrTicker")):
        mine = [m["data"] for m in heard if m["stream"] == name]
        assert len(mine) > 2 and all([row["s"] for row in rows] == ["BTCUSDT", "ETHUSDT"] for rows in mine)
        assert {row["e"] for rows in mine for row in rows} == {kind}


async def test_ids_of_books_leap_and_only_pu_joins_frames() -> None:
    """The rule of spot, U one above the last u, finds a hole in every frame here, as on the venue."""
    market = FakeMarket(("BTCUSDT", "60000"), seconds=1)
    for n in range(3000):
        market.put(0, market.open_ms + 50 + n * 100, "60000.00" if n % 2 else "60000.10")
    async with exchange(LIVELY, market) as client:
        depth = await client.socket(client.ready.public + "/ws/btcusdt@depth@100ms")
        frames = [await depth.next() for _ in range(4)]
        assert all(f["pu"] == before["u"] and f["pu"] + 1 < f["U"] <= f["u"] for before, f in pairwise(frames))
        top = await client.socket(client.ready.public + "/ws/btcusdt@bookTicker")
        ids = [(await top.next())["u"] for _ in range(20)]
        assert all(a < b for a, b in pairwise(ids)) and ids != list(range(ids[0], ids[0] + 20))
        book = await client.get("v1/ticker/bookTicker", symbol="BTCUSDT")
        assert book["lastUpdateId"] >= ids[-1] > frames[-1]["u"]


async def test_the_top_may_change_between_two_trades_and_each_change_has_its_id() -> None:
    market = lively()
    market._rows = [(*row[:5], 7, 7, 7, *row[8:]) for row in market._rows]
    async with exchange(LIVELY, market) as client:
        top = await client.socket(client.ready.public + "/ws/btcusdt@bookTicker")
        ids = [(await top.next())["u"] for _ in range(5)]
        assert ids == sorted(set(ids))


async def test_binary_is_answered_with_1008(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws")
    await socket.socket.send_bytes(b"x")
    message = await socket.frame()
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1008, "Invalid request")


async def test_pings_are_answered_with_their_payload(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws")
    await socket.socket.ping(b"hello")
    message = await socket.frame()
    assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"hello")


async def test_the_server_pings_and_cuts_who_does_not_answer() -> None:
    limits = Limits(ping_every_s=1.0, pong_within_s=2.0)
    async with exchange(options(limits=limits)) as client:
        socket = await client.socket(client.ready.market + "/ws")
        kinds = [(await socket.frame()).type]
        while kinds[-1] is aiohttp.WSMsgType.PING:
            kinds.append((await socket.frame()).type)
        assert len(kinds) > 1


async def test_too_many_messages_or_streams_end_the_connection() -> None:
    limits = Limits(messages_per_second=3, streams_per_connection=2)
    async with exchange(options(limits=limits)) as client:
        socket = await client.socket(client.ready.market + "/ws")
        assert (await socket.ask({"method": "SUBSCRIBE", "params": ["a", "b", "c"], "id": 1}))["code"] == 2
        for n in range(5):
            await socket.send({"method": "LIST_SUBSCRIPTIONS", "id": n})
        kinds = [(await socket.frame()).type for _ in range(3)]
        assert kinds[-1] is aiohttp.WSMsgType.CLOSE
        crowded = await client.socket(client.ready.market + "/ws/a/b/c")
        assert (await crowded.frame()).type is aiohttp.WSMsgType.CLOSE


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    market = FakeMarket(("BTCUSDT", "60000"), seconds=2)
    for n in range(60_000):
        market.put(0, market.open_ms + 500 + n // 100, "60000", bid=str(59000 + n % 2), ask="60001")
    limits = Limits(send_buffer_bytes=50_000, weight_per_minute=100_000)
    async with exchange(options(limits=limits, speed=1.0), market) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(client.ready.rest.rsplit(":", 1)[1]))
        head = "GET /market/ws/btcusdt@aggTrade HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write((head + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n").encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        while client.clock.market_ms() < market.open_ms + 1500:
            await client.get("v1/ping")
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        size = 0
        try:
            while data := await asyncio.wait_for(reader.read(1 << 20), 5):
                size += len(data)
        except ConnectionResetError:
            pass
        assert size < 60_000 * 150
        writer.close()


# ------------------------------------------------------------------ listen keys


async def test_a_listen_key_is_one_an_account_and_ends_without_closing_the_socket(client: Client) -> None:
    key = await client.listen_key()
    assert await client.listen_key() == key and len(key) == 64
    headers = {"X-MBX-APIKEY": KEY}
    assert await client.raw("PUT", "/fapi/v1/listenKey", headers=headers) == (200, {"listenKey": key})
    user = await client.socket(f"{client.ready.private}/ws?listenKey={key}&events=listenKeyExpired")
    await client.control("expire_listen_keys")
    assert (await user.next())["e"] == "listenKeyExpired"
    assert await user.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1}) == {"result": [], "id": 1}
    assert (await client.raw("PUT", "/fapi/v1/listenKey", headers=headers))[1]["code"] == -1125
    assert await client.listen_key() != key
    assert (await client.raw("DELETE", "/fapi/v1/listenKey", headers=headers)) == (200, {})
    assert (await client.raw("POST", "/fapi/v1/listenKey"))[1]["code"] == -2014


async def test_only_the_events_asked_for_arrive_and_a_key_in_the_path_is_silent(client: Client) -> None:
    key = await client.listen_key()
    some = await client.socket(f"{client.ready.private}/ws?listenKey={key}&events=ACCOUNT_UPDATE")
    combined = await client.socket(f"{client.ready.private}/stream?listenKey={key}&events=TRADE_LITE")
    path = await client.socket(f"{client.ready.private}/ws/{key}")
    later = await client.socket(f"{client.ready.private}/ws")
    await later.ask({"method": "SUBSCRIBE", "params": [key], "id": 1})
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1")
    assert short(await some.next()) == "ACCOUNT_UPDATE ORDER"
    wrapped = await combined.next()
    assert (wrapped["stream"], wrapped["data"]["e"]) == (key, "TRADE_LITE")
    assert short(await later.next()) == "ORDER_TRADE_UPDATE NEW"
    assert await path.ask({"method": "LIST_SUBSCRIPTIONS", "id": 9}) == {"result": [key], "id": 9}


async def test_streams_can_be_dropped_and_muted_from_the_control_door(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/ws/btcusdt@aggTrade")
    await socket.next()
    await client.control("mute", route="market", on=True)
    await socket.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1})
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(socket.socket.receive(), 0.4)
    assert (await client.control("drop_streams"))["dropped"] >= 1
    again = await client.socket(client.ready.market + "/ws/btcusdt@aggTrade")
    await client.control("mute", route="market", on=False)
    assert (await again.next())["e"] == "aggTrade"


async def test_without_control_there_is_no_control_door() -> None:
    async with exchange(options(control=False)) as client:
        assert (await client.raw("GET", "/control/books"))[0] == 404


# ---- streams of all, and of what is rare


async def test_a_liquidation_is_told_to_all_and_its_user_is_warned_before(client: Client) -> None:
    one = await client.socket(client.ready.market + "/ws/btcusdt@forceOrder")
    every = await client.socket(client.ready.market + "/stream?streams=!forceOrder@arr")
    user = await client.user_stream("MARGIN_CALL/ORDER_TRADE_UPDATE")
    await client.good("POST", "v1/positionSide/dual", dualSidePosition="true")
    await client.good("POST", "v1/marginType", symbol="BTCUSDT", marginType="ISOLATED")
    await client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=100)
    await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", positionSide="LONG", type="MARKET", quantity="0.040")
    await client.control("price", symbol="BTCUSDT", price="59680")
    call = (await user.until(lambda e: e["e"] == "MARGIN_CALL"))[-1]
    assert [(p["s"], p["ps"], p["pa"], p["mt"]) for p in call["p"]] == [("BTCUSDT", "LONG", "0.040", "ISOLATED")]
    assert "cw" not in call and float(call["p"][0]["mm"]) > 0
    await client.control("price", symbol="BTCUSDT", price="58000")
    told, same = await one.next(), (await every.next())["data"]
    assert told["o"] == same["o"] and same["ps"] == "BTCUSDT"
    assert {k: told["o"][k] for k in ("s", "S", "o", "f", "q", "X", "l", "z")} == {
        "s": "BTCUSDT", "S": "SELL", "o": "LIMIT", "f": "IOC", "q": "0.040", "X": "FILLED", "l": "0.040", "z": "0.040"}  # fmt: skip


def test_of_a_second_s_liquidations_the_largest_is_told() -> None:
    desk = Desk()
    feeds = RareFeeds(Venue(options(), desk.core, clock_at(T0, 1.0), None))
    told: list[bytes] = []
    channel = Channel("btcusdt@forceOrder")
    channel.spoil = lambda _channel, payload: told.append(payload)
    paced = feeds.open_forced(channel, 0)
    orders = [{"s": "BTCUSDT", "S": "SELL", "q": q, "p": "1", "ap": "1", "l": q, "z": q, "T": 1, "x": "CALCULATED", "c": f"autoclose-{q}"}
              for q in ("1", "10", "9")]  # fmt: skip
    orders.append(orders[0] | {"q": "99", "c": "adl_autoclose"})
    feeds.hear([UserEvent(0, "ORDER_TRADE_UPDATE", {"o": order}) for order in orders], [paced])
    paced.build(paced, T0)
    paced.build(paced, T0 + 1000)
    assert [json.loads(text)["o"]["q"] for text in told] == ["10"]


async def test_asset_indices_are_of_listed_assets(client: Client) -> None:
    socket = await client.socket(client.ready.market + "/stream?streams=!assetIndex@arr/btcusd@assetIndex/nopeusd@assetIndex")
    got = [await socket.next() for _ in range(4)]
    assert {m["stream"] for m in got} == {"!assetIndex@arr", "btcusd@assetIndex"}
    rows = next(m["data"] for m in got if m["stream"] == "!assetIndex@arr")
    assert [r["s"] for r in rows] == ["USDTUSD", "BTCUSD", "ETHUSD"] and float(rows[1]["B"]) < float(rows[1]["i"]) < float(rows[1]["A"])
