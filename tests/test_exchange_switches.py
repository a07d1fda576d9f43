"""Open questions of the protocol: what each switch of the local exchange changes, seen both ways."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from src.exchange.errors import ApiError
from src.exchange.limits import MINUTE_MS, Limiter
from src.exchange.options import Limits, Switches
from tests.test_exchange_core import refused
from tests.test_exchange_fake import Desk
from tests.test_exchange_streams import lively
from tests.test_exchange_wire import Client, exchange, options, short

BOTH = [True, False]
LIMIT = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010", "price": "59000"}
MARKET = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}


def test_every_switch_is_tried_here() -> None:
    tried = Path(__file__).read_text()
    assert [f.name for f in fields(Switches) if f"{f.name}=" not in tried] == []


# ------------------------------------------------------------------ the user stream


async def first_event(client: Client, where: str, route: str = "/private") -> str:
    """What a socket there hears first of an order at market; silence where it hears nothing before another socket has heard all."""
    key = await client.listen_key()
    socket = await client.socket(client.ready.rest.replace("http", "ws") + route + where.format(key=key))
    witness = await client.user_stream()
    await client.good("POST", "v1/order", **MARKET)
    await witness.until(lambda e: e["e"] == "ORDER_TRADE_UPDATE" and e["o"]["X"] == "FILLED")
    heard = asyncio.ensure_future(socket.next())
    await asyncio.wait([heard], timeout=0.2)
    if heard.done():
        return short(heard.result())
    heard.cancel()
    return "silence"


@pytest.mark.parametrize("delivers", BOTH)
async def test_a_key_in_the_path(delivers: bool) -> None:
    async with exchange(options(switches=Switches(key_in_path_delivers=delivers))) as client:
        assert await first_event(client, "/ws/{key}") == ("ORDER_TRADE_UPDATE NEW" if delivers else "silence")


@pytest.mark.parametrize("required", BOTH)
async def test_a_key_without_names_of_events(required: bool) -> None:
    async with exchange(options(switches=Switches(events_required=required))) as client:
        assert await first_event(client, "/ws?listenKey={key}") == ("silence" if required else "ORDER_TRADE_UPDATE NEW")
        assert await first_event(client, "/ws?listenKey={key}&events=ACCOUNT_UPDATE") == "ACCOUNT_UPDATE ORDER"


@pytest.mark.parametrize("route", ["", "/public", "/market"])
@pytest.mark.parametrize("place", ["/ws?listenKey={key}&events=ORDER_TRADE_UPDATE", "/stream?listenKey={key}&events=ORDER_TRADE_UPDATE", "/ws/{key}"])
async def test_users_hear_of_themselves_on_the_private_route_alone(route: str, place: str) -> None:
    async with exchange(options(switches=Switches(key_in_path_delivers=True))) as client:
        assert await first_event(client, place, route) == "silence"


@pytest.mark.parametrize("place", ["/ws?listenKey={key}&events=ORDER_TRADE_UPDATE", "/ws/{key}"])
async def test_on_the_demo_venue_a_socket_without_a_route_hears_its_user_too(place: str) -> None:
    async with exchange(options(switches=Switches(unrouted_delivers_all=True, key_in_path_delivers=True))) as client:
        assert await first_event(client, place, "") == "ORDER_TRADE_UPDATE NEW"
        assert await first_event(client, place, "/market") == "silence"


# ------------------------------------------------------------------ what a socket may hear


@pytest.mark.parametrize(
    ("route", "switches", "heard"),
    [
        ("", Switches(), {"btcusdt@bookTicker"}),
        ("", Switches(unrouted_delivers_all=True), {"btcusdt@bookTicker", "btcusdt@aggTrade"}),
        ("/market", Switches(), {"btcusdt@aggTrade"}),
        ("/market", Switches(mixed_routes_deliver=True), {"btcusdt@bookTicker", "btcusdt@aggTrade"}),
        ("/public", Switches(unrouted_delivers_all=True), {"btcusdt@bookTicker"}),
    ],
)
async def test_a_socket_hears_its_route(route: str, switches: Switches, heard: set[str]) -> None:
    async with exchange(options(speed=20.0, switches=switches), lively()) as client:
        base = client.ready.rest.replace("http", "ws") + route
        socket = await client.socket(f"{base}/stream?streams=btcusdt@aggTrade/btcusdt@bookTicker")
        assert {(await socket.next())["stream"] for _ in range(20)} == heard


# ------------------------------------------------------------------ orders


@pytest.mark.parametrize("needs", BOTH)
def test_closing_a_position_that_is_not_there_yet(needs: bool) -> None:
    desk = Desk(switches=Switches(close_position_needs_position=needs))
    if needs:
        assert refused(desk.stop, "SELL", "59000", timeInForce="GTE_GTC") == -4509
        assert refused(desk.stop, "SELL", "59000") == -2022
    else:
        assert desk.stop("SELL", "59000").open
    desk.check()


@pytest.mark.parametrize("survives", BOTH)
def test_a_plain_closing_order_when_its_position_ends(survives: bool) -> None:
    desk = Desk(switches=Switches(gtc_close_position_survives=survives))
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000")
    desk.order("SELL", "MARKET", "0.1")
    assert stop.status == ("NEW" if survives else "EXPIRED")


@pytest.mark.parametrize("account_wide", BOTH)
def test_a_client_id_on_two_symbols(account_wide: bool) -> None:
    desk = Desk(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), switches=Switches(client_id_unique_per_account=account_wide))
    desk.limit("BUY", "0.1", "59000", newClientOrderId="mine")
    assert refused(desk.limit, "BUY", "0.1", "59000", newClientOrderId="mine") == -4116
    other: dict[str, Any] = {"symbol": "ETHUSDT", "newClientOrderId": "mine"}
    if account_wide:
        assert refused(desk.limit, "BUY", "0.1", "2900", **other) == -4116
    else:
        assert desk.limit("BUY", "0.1", "2900", **other).open


@pytest.mark.parametrize("shown", BOTH)
async def test_what_a_tried_order_is_answered(shown: bool) -> None:
    async with exchange(options(switches=Switches(order_test_body=shown))) as client:
        answer = await client.good("POST", "v1/order/test", **LIMIT)
        assert {k: answer[k] for k in ("symbol", "side", "price", "status")} == {
            "symbol": "BTCUSDT", "side": "BUY", "price": "59000", "status": "NEW"} if shown else answer == {}  # fmt: skip
        assert await client.good("GET", "v1/openOrders") == []


@pytest.mark.parametrize("first", BOTH)
def test_which_is_told_first_of_a_stop_that_triggers(first: bool) -> None:
    desk = Desk(switches=Switches(triggered_before_new=first))
    desk.order("BUY", "MARKET", "0.1")
    desk.stop("SELL", "59000")
    desk.said()
    desk.trade("58990", after_ms=50)
    desk.run(50)
    told = [word for word in desk.said() if word in ("ORDER_TRADE_UPDATE NEW", "ALGO_UPDATE TRIGGERED")]
    assert told == ["ALGO_UPDATE TRIGGERED", "ORDER_TRADE_UPDATE NEW"][:: 1 if first else -1]


@pytest.mark.parametrize(("everywhere", "mode"), [(True, "EXPIRE_MAKER"), (False, "NONE")])
async def test_self_trade_prevention_that_is_not_named(everywhere: bool, mode: str) -> None:
    async with exchange(options(switches=Switches(stp_default_everywhere=everywhere))) as client:
        single = await client.good("POST", "v1/order", **LIMIT)
        batch = await client.good("POST", "v1/batchOrders", batchOrders=json.dumps([LIMIT, LIMIT | {"selfTradePreventionMode": "EXPIRE_BOTH"}]))
        algo = await client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="BTCUSDT", side="BUY", type="STOP_MARKET",
                                 triggerPrice="70000", quantity="0.010")  # fmt: skip
        said = [row["selfTradePreventionMode"] for row in (single, *batch, algo)]
        assert said == ["EXPIRE_MAKER", mode, "EXPIRE_BOTH", mode]


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize("array", BOTH)
async def test_the_brackets_of_one_symbol(array: bool) -> None:
    async with exchange(options(switches=Switches(bracket_as_array=array))) as client:
        answer = await client.good("GET", "v1/leverageBracket", symbol="BTCUSDT")
        row = answer[0] if array else answer
        assert isinstance(answer, list) is array and row["symbol"] == "BTCUSDT" and row["brackets"]


@pytest.mark.parametrize("up", BOTH)
async def test_the_last_digit_of_the_margin_of_open_orders(up: bool) -> None:
    async with exchange(options(switches=Switches(open_order_margin_rounds_up=up))) as client:
        await client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=7)
        await client.good("POST", "v1/order", **LIMIT)  # 590 USDT; a seventh is 84.285714 285…
        margin = "84.28571429" if up else "84.28571428"
        account = await client.good("GET", "v3/account")
        assert account["totalOpenOrderInitialMargin"] == margin
        assert account["availableBalance"] == str(Decimal("10000.00000000") - Decimal(margin))


@pytest.mark.parametrize("up", BOTH)
def test_an_order_that_fits_but_for_the_last_digit(up: bool) -> None:
    desk = Desk(balance="84.28571428", switches=Switches(open_order_margin_rounds_up=up))
    desk.account.change_setting(0).leverage = 7
    if up:
        assert refused(desk.limit, "BUY", "0.010", "59000") == -2019
    else:
        assert desk.limit("BUY", "0.010", "59000").open


# ------------------------------------------------------------------ requests and limits


@pytest.mark.parametrize("accepted", BOTH)
async def test_a_signature_over_what_the_bytes_decode_to(accepted: bool) -> None:
    async with exchange(options(switches=Switches(decoded_signature_accepted=accepted))) as client:
        plain = f"symbol=BTCUSDT&origClientOrderId=a/b:c&timestamp={client.clock.market_ms()}"
        sent = plain.replace("/", "%2F").replace(":", "%3A")
        _, body = await client.raw("GET", f"/fapi/v1/order?{sent}&signature={client.sign(plain)}", headers={"X-MBX-APIKEY": client.key})
        assert body["code"] == (-2013 if accepted else -1022)


@pytest.mark.parametrize("sent", BOTH)
async def test_retry_after_comes_or_does_not(sent: bool) -> None:
    async with exchange(options(limits=Limits(weight_per_minute=1), switches=Switches(retry_after=sent))) as client:
        statuses = set()
        for _ in range(24):
            status, _ = await client.raw("GET", "/fapi/v1/ping")
            statuses.add(status)
            told_s = client.headers.get("Retry-After")
            assert (told_s is not None) is (sent and status != 200)
            assert told_s is None or 0 < int(told_s) <= (61 if status == 429 else 121)
        assert statuses == {200, 429, 418}


@pytest.mark.parametrize("slide", BOTH)
def test_windows_of_orders_slide_or_begin_on_the_clock(slide: bool) -> None:
    limiter = Limiter(Limits(orders_per_10s=2, orders_per_minute=100), Switches(order_windows_slide=slide, retry_after=True), accounts=1)

    def refused_s(wall_ms: int) -> int | None:
        try:
            limiter.count_orders(0, wall_ms)
        except ApiError as refusal:
            assert refusal.code == -1015
            return refusal.retry_after_s
        return None

    at = 7 * MINUTE_MS + 9000
    assert refused_s(at) is refused_s(at + 500) is None
    assert refused_s(at + 900) == (10 if slide else 1)
    assert refused_s(at + 1100) == (9 if slide else None)
    assert refused_s(at + 10_100) is None


@pytest.mark.parametrize("status", [429, 400])
async def test_the_status_of_too_many_orders(status: int) -> None:
    async with exchange(options(limits=Limits(orders_per_10s=1), switches=Switches(order_limit_status=status))) as client:
        await client.good("POST", "v1/order", **LIMIT)
        answered, body = await client.signed("POST", "v1/order", **LIMIT)
        assert (answered, body["code"]) == (status, -1015)


@pytest.mark.parametrize("status", [408, 504])
async def test_the_status_of_a_timeout(status: int) -> None:
    async with exchange(options(switches=Switches(timeout_status=status))) as client:
        socket = await client.socket(client.ready.ws_api)
        for kind in ("timeout_before", "timeout_after"):
            await client.control("fault", door="POST v1/order", kind=kind)
            answered, body = await client.signed("POST", "v1/order", **LIMIT)
            assert (answered, body["code"]) == (status, -1007)
            await client.control("fault", door="time", kind=kind)
            assert (await socket.ask({"id": 1, "method": "time"}))["status"] == status
            await client.control("fault", door="POST v1/order", kind=kind, status=502)
            assert (await client.signed("POST", "v1/order", **LIMIT))[0] == 502


@pytest.mark.parametrize("shared", BOTH)
async def test_the_ws_api_uses_weight_of_rest_or_its_own(shared: bool) -> None:
    async with exchange(options(switches=Switches(ws_api_weight_shared=shared))) as client:
        socket = await client.socket(client.ready.ws_api)
        limits = (await socket.ask({"id": 1, "method": "ping"}))["rateLimits"]
        assert [row["count"] for row in limits] == [6]
        await client.get("v1/ping")
        assert int(client.headers["x-mbx-used-weight-1m"]) == (7 if shared else 1)
