"""The REST door against a small server on loopback: what is sent, what is sent again, and what every failure becomes."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from src.clock import Clock, clock_at, monotonic_ns, real_clock
from src.error_handler import AegisError, Fatal, Rejected, Retryable, Unknown
from src.venue.governor import Governor, Limits, Priority
from src.venue.rest import Rest, clock_of, fetch_clock
from src.venue.signing import Credentials

SECRET = "a-secret-of-no-worth"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Venue:
    """Answers every path with the next of its scripted answers (the last one for ever), and remembers the raw requests."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ahead_ms = 0
        self.time: object = None
        self.seen: list[tuple[str, str, str]] = []
        self.answers: list[Handler] = []
        self.url = ""
        self.arrived = asyncio.Event()

    def script(self, *answers: Handler) -> None:
        self.answers = list(answers)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/fapi/v1/time":
            return web.json_response({"serverTime": self.clock.market_ms() + self.ahead_ms} if self.time is None else self.time)
        self.arrived.set()
        self.seen.append((request.method, request.raw_path, request.headers.get("x-mbx-apikey", "")))
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


def says(status: int, body: Any, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=headers)
        return web.json_response(body, status=status, headers=headers)

    return answer


async def cuts(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stays_silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"orderId":')
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    made = Venue(real_clock())
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield made
    await runner.cleanup()


@pytest.fixture
async def rest(venue: Venue) -> AsyncIterator[Rest]:
    made = Rest(venue.url, clock=venue.clock, governor=Governor(venue.clock.market_ms), credentials=Credentials("the-key", SECRET))
    yield made
    await made.close()


async def test_an_unsigned_read_carries_no_signature(venue: Venue, rest: Rest) -> None:
    venue.script(says(200, [1, 2]))
    assert await rest.get("/fapi/v1/depth", {"symbol": "币USDT", "limit": 5}, weight=2) == [1, 2]
    assert venue.seen == [("GET", "/fapi/v1/depth?symbol=%E5%B8%81USDT&limit=5", "the-key")]


async def test_a_signed_write_is_signed_over_exactly_the_bytes_sent(venue: Venue, rest: Rest) -> None:
    venue.script(says(200, {"orderId": 1}))
    await rest.send("POST", "/fapi/v1/order", [("symbol", "BTCUSDT"), ("newClientOrderId", "a/b:c")], recv_window_ms=1500)
    method, raw_path, key = venue.seen[0]
    payload, signature = raw_path.split("?")[1].split("&signature=")
    assert (method, key) == ("POST", "the-key")
    assert payload.startswith("symbol=BTCUSDT&newClientOrderId=a%2Fb%3Ac&recvWindow=1500&timestamp=")
    assert signature == hmac.digest(SECRET.encode(), payload.encode(), "sha256").hex()


async def test_a_signed_call_without_a_key_is_fatal(venue: Venue) -> None:
    rest = Rest(venue.url, clock=venue.clock, governor=Governor(venue.clock.market_ms))
    with pytest.raises(Fatal, match="none is set"):
        await rest.get("/fapi/v3/account", weight=5, signed=True)
    assert venue.seen == []


async def test_a_read_is_tried_again_after_a_passing_failure(venue: Venue, rest: Rest) -> None:
    venue.script(says(503, "Service Unavailable."), cuts, says(200, {"ok": 1}))
    assert await rest.get("/fapi/v1/x", weight=1) == {"ok": 1}
    assert len(venue.seen) == 3


async def test_a_read_gives_up_after_a_bounded_number_of_attempts(venue: Venue, rest: Rest) -> None:
    venue.script(says(500, {"code": -1001, "msg": "Internal error"}))
    with pytest.raises(Retryable, match="-1001"):
        await rest.get("/fapi/v1/x", weight=1)
    assert len(venue.seen) == 4


async def test_a_read_does_not_sit_out_a_long_ban(venue: Venue, rest: Rest) -> None:
    venue.script(says(418, {"code": -1003, "msg": f"IP banned until {venue.clock.market_ms() + 600_000}."}))
    with pytest.raises(Retryable) as caught:
        await rest.get("/fapi/v1/x", weight=1)
    assert caught.value.fields["banned_until_ms"] > venue.clock.market_ms() and len(venue.seen) == 1
    with pytest.raises(Retryable, match="takes no requests"):
        await rest.send("POST", "/fapi/v1/order", priority=Priority.PROTECT)
    assert len(venue.seen) == 1


async def test_the_end_of_a_ban_is_told_in_market_time_and_waited_for_in_wall_time(venue: Venue) -> None:
    """No Retry-After: a market that runs 60 times as fast is not banned 60 times as long."""
    clock = Clock(1_796_000_000_000, monotonic_ns() - 600 * 1_000_000_000, 60.0)
    rest = Rest(venue.url, clock=clock, governor=Governor(clock.unscaled_ms), credentials=Credentials("the-key", SECRET))
    rest.offset_ms = 30_000
    venue.script(says(418, {"code": -1003, "msg": f"IP banned until {rest.timestamp() + 120 * 60_000}."}))
    with pytest.raises(Retryable) as caught:
        await rest.get("/fapi/v1/x", weight=1)
    assert caught.value.fields["retry_after_s"] == pytest.approx(120, abs=2)
    assert rest.governor.blocked_s() == pytest.approx(120, abs=2)
    await rest.close()


async def test_a_refusal_of_a_read_is_not_tried_again(venue: Venue, rest: Rest) -> None:
    venue.script(says(400, {"code": -1121, "msg": "Invalid symbol."}))
    with pytest.raises(Rejected) as caught:
        await rest.get("/fapi/v1/x", weight=1)
    assert caught.value.code == -1121 and len(venue.seen) == 1


WRITES = [
    (cuts, Unknown),
    (breaks_off, Unknown),
    (stays_silent, Unknown),
    (says(200, "{\"orderId\":"), Unknown),
    (says(200, ""), Unknown),
    (says(202, ""), Unknown),
    (says(503, {"code": 0, "msg": "Unknown error, please check your request or try again later."}), Unknown),
    (says(408, {"code": -1007, "msg": "Timeout waiting for response from backend server."}), Unknown),
    (says(502, "<html>Bad Gateway</html>"), Unknown),
    (says(503, {"code": -1008, "msg": "Request throttled by system-level protection."}), Retryable),
    (says(429, {"code": -1015, "msg": "Too many new orders."}), Retryable),
    (says(400, {"code": -2019, "msg": "Margin is insufficient."}), Rejected),
    (says(401, {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}), Fatal),
    (says(301, ""), Rejected),
]


@pytest.mark.parametrize(("answer", "kind"), WRITES, ids=[f"{i}-{kind.__name__}" for i, (_, kind) in enumerate(WRITES)])
async def test_a_write_reaches_the_venue_once_whatever_happens(venue: Venue, rest: Rest, answer: Handler, kind: type[Exception]) -> None:
    venue.script(answer)
    with pytest.raises(kind):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"}, timeout_s=0.3)
    assert len(venue.seen) == 1


async def test_a_write_on_a_kept_connection_that_was_cut_is_not_sent_again(venue: Venue, rest: Rest) -> None:
    venue.script(says(200, {}), cuts)
    await rest.get("/fapi/v1/ping", weight=1)
    with pytest.raises(Unknown):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    assert len(venue.seen) == 2


async def test_a_write_that_finds_nobody_has_sent_nothing() -> None:
    clock = real_clock()
    rest = Rest("http://127.0.0.1:1", clock=clock, governor=Governor(clock.market_ms), credentials=Credentials("k", SECRET))
    with pytest.raises(Retryable, match="nothing was sent"):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    await rest.close()


async def test_an_order_that_would_wait_too_long_for_leave_is_not_sent(venue: Venue, rest: Rest) -> None:
    venue.script(says(429, {"code": -1003, "msg": "Too many requests."}, **{"Retry-After": "30"}), says(200, {"orderId": 1}))
    with pytest.raises(Retryable):
        await rest.get("/fapi/v1/x", weight=1)
    with pytest.raises(Retryable, match="takes no requests"):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    assert await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT", "reduceOnly": "true"}, priority=Priority.PROTECT) == {"orderId": 1}
    assert len(venue.seen) == 2


async def test_orders_beyond_the_venues_count_are_not_sent(venue: Venue) -> None:
    venue.script(says(200, {"orderId": 1}))
    rest = Rest(venue.url, clock=venue.clock, governor=Governor(lambda: 0, limits=Limits(2400, 2, 100), share=0.5), credentials=Credentials("k", "s"))
    await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    with pytest.raises(Retryable, match="too many orders"):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    await rest.send("POST", "/fapi/v1/algoOrder", {"symbol": "BTCUSDT", "closePosition": "true"}, priority=Priority.PROTECT)
    assert len(venue.seen) == 2
    await rest.close()


async def test_a_clock_that_is_off_is_corrected_and_the_order_sent_once_more(venue: Venue, rest: Rest) -> None:
    venue.ahead_ms = 7000
    skewed = says(400, {"code": -1021, "msg": "Timestamp for this request is outside of the recvWindow."})
    venue.script(skewed, says(200, {"orderId": 5}))
    assert await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"}) == {"orderId": 5}
    first, second = (int(raw.split("timestamp=")[1].split("&")[0]) for _, raw, _ in venue.seen)
    assert second - first >= 6900 and abs(rest.offset_ms - 7000) < 100
    venue.script(skewed)
    with pytest.raises(Retryable, match="-1021"):
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    assert len(venue.seen) == 4


async def test_the_offset_is_measured_at_the_middle_of_the_call(venue: Venue, rest: Rest) -> None:
    venue.ahead_ms = -1500
    assert abs(await rest.sync_time() + 1500) < 50
    assert abs(rest.timestamp() - venue.clock.market_ms() + 1500) < 50


@pytest.mark.parametrize("body", [{"time": 1}, [], {"serverTime": None}])
async def test_a_time_that_is_none_is_an_error_of_the_venue(venue: Venue, rest: Rest, body: object) -> None:
    venue.time = body
    with pytest.raises(AegisError):
        await rest.sync_time()


async def test_used_weight_is_learnt_from_every_answer(venue: Venue, rest: Rest) -> None:
    venue.script(says(400, {"code": -1121, "msg": "Invalid symbol."}, **{"X-MBX-USED-WEIGHT-1M": "1234"}))
    with pytest.raises(Rejected):
        await rest.get("/fapi/v1/x", weight=1)
    assert rest.governor.statistics()["used_1m"] == 1234


async def test_no_text_of_an_error_shows_the_signature(venue: Venue, rest: Rest) -> None:
    venue.script(cuts)
    with pytest.raises(Unknown) as caught:
        await rest.send("POST", "/fapi/v1/order", {"symbol": "BTCUSDT"})
    assert "signature" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_session_that_was_handed_in_stays_open(venue: Venue) -> None:
    venue.script(says(200, {}))
    async with aiohttp.ClientSession() as session:
        rest = Rest(venue.url, clock=venue.clock, governor=Governor(venue.clock.market_ms), session=session)
        await rest.get("/fapi/v1/ping", weight=1)
        await rest.close()
        assert not session.closed


async def test_the_clock_of_a_local_exchange_is_adopted(venue: Venue) -> None:
    clock = clock_at(1_796_000_000_000, 60)
    venue.script(says(200, {}, **{"x-sim-clock": f"{clock.t0_ms},{clock.m0_ns},{clock.speed}"}))
    assert await fetch_clock(venue.url) == clock
    venue.script(says(200, {}))
    assert await fetch_clock(venue.url) is None


@pytest.mark.parametrize("header", ["", "1,2", "a,b,c", "1,2,61", "1,2,0"])
def test_a_clock_header_that_is_none_is_fatal(header: str) -> None:
    with pytest.raises(Fatal, match="x-sim-clock"):
        clock_of(header)


async def test_a_cancelled_call_leaves_the_door_usable(venue: Venue, rest: Rest) -> None:
    venue.script(stays_silent, says(200, {}))
    task = asyncio.create_task(rest.get("/fapi/v1/x", weight=1))
    async with asyncio.timeout(5):
        await venue.arrived.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await rest.get("/fapi/v1/x", weight=1) == {}
