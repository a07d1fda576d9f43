"""The user stream against a small venue on loopback: it connects, says so, tells every event in order, and comes back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from websockets.asyncio.server import ServerConnection, serve

from src.clock import real_clock
from src.error_handler import AegisError, Fatal, redact
from src.models import AlgoUpdate
from src.venue.governor import Governor
from src.venue.rest import Rest
from src.venue.signing import Credentials
from src.venue.user_events import EVENTS, UserEvent
from src.venue.user_stream import UserStream

ALGO = {"caid": "aegis-x-2-s", "aid": 1, "o": "STOP_MARKET", "s": "BTCUSDT", "S": "SELL", "X": "NEW", "tp": "90000", "cp": True}


def algo_frame(number: int) -> str:
    return json.dumps({"e": "ALGO_UPDATE", "T": number, "E": number, "o": {**ALGO, "aid": number}})


class Venue:
    """Gives listen keys over HTTP and holds the sockets open."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.paths: list[str] = []
        self.sockets: list[ServerConnection] = []
        self.refuse: dict[str, tuple[int, int, str]] = {}
        self.rest_url = self.ws_url = ""
        self.called = asyncio.Event()

    async def listen_key(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.query_string))
        self.called.set()
        if request.method in self.refuse:
            status, code, msg = self.refuse[request.method]
            return web.json_response({"code": code, "msg": msg}, status=status)
        if request.method == "POST":
            self.keys.append(f"listen-key-number-{len(self.keys)}-of-many")
        return web.json_response({"listenKey": self.keys[-1]})

    async def put(self, times: int) -> None:
        """Until that many renewals have arrived."""
        async with asyncio.timeout(5):
            while sum(method == "PUT" for method, _ in self.calls) < times:
                self.called.clear()
                await self.called.wait()

    async def stream(self, ws: ServerConnection) -> None:
        assert ws.request is not None
        self.paths.append(ws.request.path)
        self.sockets.append(ws)
        await ws.wait_closed()


class Stream:
    """A UserStream with ears."""

    def __init__(self, venue: Venue, **options: Any) -> None:
        clock = real_clock()
        self.heard: list[bool | UserEvent] = []
        self.faults: list[AegisError] = []
        self.changed = asyncio.Event()
        self.rest = Rest(venue.rest_url, clock=clock, governor=Governor(clock.market_ms), credentials=Credentials("the-key", "s"))
        self.stream = UserStream(self.rest, venue.ws_url, on_event=self.hear, on_state=self.hear, on_fault=self.fault, **options)
        self.task = self.stream.start()

    def hear(self, what: bool | UserEvent) -> None:
        self.heard.append(what)
        self.changed.set()

    def fault(self, error: AegisError) -> None:
        self.faults.append(error)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def close(self) -> None:
        await self.stream.close()
        await self.rest.close()


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    made = Venue()
    app = web.Application()
    app.router.add_route("*", "/fapi/v1/listenKey", made.listen_key)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = await serve(made.stream, "127.0.0.1", 0)
    made.rest_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    made.ws_url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/private"
    yield made
    server.close()
    await server.wait_closed()
    await runner.cleanup()


@pytest.fixture
async def stream(venue: Venue) -> AsyncIterator[Stream]:
    made = Stream(venue)
    await made.until(lambda: made.heard == [True])
    yield made
    await made.close()


async def test_it_asks_for_a_key_without_a_signature_and_names_every_event(venue: Venue, stream: Stream) -> None:
    assert venue.calls == [("POST", "")]
    assert venue.paths == [f"/private/ws?listenKey={venue.keys[0]}&events={'/'.join(EVENTS)}"]


async def test_events_arrive_in_order_and_rubbish_between_them_harms_nothing(venue: Venue, stream: Stream) -> None:
    for frame in (algo_frame(1), "rubbish", '{"e":"NEWS_OF_2027"}', b"\xff", algo_frame(2), '{"e":"TRADE_LITE"}', algo_frame(3)):
        await venue.sockets[0].send(frame)
    await stream.until(lambda: len(stream.heard) == 4)
    assert [e.algo_id for e in stream.heard if isinstance(e, AlgoUpdate)] == [1, 2, 3]
    counts = stream.stream.statistics()
    assert (counts["events"], counts["unknown"], counts["rubbish"], counts["ignored"]) == (3, 1, 2, 1) and counts["up"] == 1


async def test_a_cut_is_told_and_followed_by_a_new_connection(venue: Venue, stream: Stream) -> None:
    venue.sockets[0].transport.abort()
    await stream.until(lambda: stream.heard == [True, False, True])
    await venue.sockets[1].send(algo_frame(9))
    await stream.until(lambda: len(stream.heard) == 4)
    assert len(venue.paths) == 2


async def test_an_expired_key_is_replaced_although_the_socket_stays_open(venue: Venue, stream: Stream) -> None:
    await venue.sockets[0].send('{"e":"listenKeyExpired","E":1,"listenKey":"x"}')
    await stream.until(lambda: stream.heard == [True, False, True])
    assert len(venue.keys) == 2 and venue.keys[1] in venue.paths[1]


async def test_the_key_is_kept_alive(venue: Venue) -> None:
    stream = Stream(venue, keep_alive_s=0.01)
    await venue.put(2)
    assert len(venue.keys) == 1 and stream.heard == [True]
    await stream.close()


async def test_a_key_that_is_gone_is_replaced(venue: Venue) -> None:
    venue.refuse["PUT"] = (400, -1125, "This listenKey does not exist.")
    stream = Stream(venue, keep_alive_s=0.01)
    await stream.until(lambda: stream.heard[:3] == [True, False, True])
    assert len(venue.keys) >= 2
    await stream.close()


async def test_a_failed_renewal_is_no_reason_to_drop_the_stream(venue: Venue) -> None:
    venue.refuse["PUT"] = (503, -1008, "Request throttled by system-level protection.")
    stream = Stream(venue, keep_alive_s=0.01)
    await venue.put(3)
    assert stream.heard == [True]
    await stream.close()


async def test_the_connection_is_renewed_before_it_is_old(venue: Venue) -> None:
    stream = Stream(venue, lifetime_s=0.05)
    await stream.until(lambda: stream.heard[:3] == [True, False, True])
    assert stream.stream.statistics()["renewals"] >= 1
    await stream.close()


async def test_the_owner_can_replace_a_stream_that_misses_events(venue: Venue, stream: Stream) -> None:
    stream.stream.restart("an order was filled and nothing came")
    await stream.until(lambda: stream.heard == [True, False, True])


async def test_a_bad_key_reaches_the_owner(venue: Venue) -> None:
    venue.refuse["POST"] = (401, -2015, "Invalid API-key, IP, or permissions for action.")
    stream = Stream(venue)
    await stream.until(lambda: len(stream.faults) >= 2)
    assert isinstance(stream.faults[0], Fatal) and stream.heard == []
    await stream.close()


async def test_an_exception_of_the_owner_ends_the_task_for_the_owner_to_see(venue: Venue) -> None:
    stream = Stream(venue)
    await stream.until(lambda: stream.heard == [True])

    def bug(_: UserEvent) -> None:
        raise AssertionError("a bug")

    stream.stream._on_event = bug
    await venue.sockets[0].send(algo_frame(1))
    with pytest.raises(AssertionError, match="a bug"):
        async with asyncio.timeout(5):
            await stream.task
    assert stream.heard == [True, False]
    await stream.close()


async def test_the_listen_key_is_masked_in_logs(venue: Venue, stream: Stream) -> None:
    assert venue.keys[0] not in redact(f"GET /private/ws/{venue.keys[0]}")
