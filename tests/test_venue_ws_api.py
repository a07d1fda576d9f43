"""The WebSocket API against small servers on loopback: one send per call, one end per call, and no end that claims too much."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from src.clock import real_clock
from src.error_handler import AegisError, Fatal, Rejected, Retryable, Unknown
from src.venue.errors import to_error
from src.venue.governor import Governor, Limits
from src.venue.signing import Credentials
from src.venue.ws_api import WsApi

SECRET = "a-secret-of-no-worth"
ORDER = {"symbol": "BTCUSDT", "side": "BUY", "newClientOrderId": "aegis-a/b"}
Handler = Callable[["Venue", ServerConnection, dict[str, Any]], Awaitable[None]]


async def answers(_: "Venue", ws: ServerConnection, request: dict[str, Any]) -> None:
    await ws.send(json.dumps({"id": request["id"], "status": 200, "result": {"orderId": 7, "method": request["method"]}}))


async def cuts(_: "Venue", ws: ServerConnection, request: dict[str, Any]) -> None:
    ws.transport.abort()


async def is_silent(_: "Venue", ws: ServerConnection, request: dict[str, Any]) -> None:
    return


def refuses(status: int, code: int, msg: str, **more: Any) -> Handler:
    async def handler(_: "Venue", ws: ServerConnection, request: dict[str, Any]) -> None:
        await ws.send(json.dumps({"id": request["id"], "status": status, "error": {"code": code, "msg": msg, **more}}))

    return handler


class Venue:
    """Remembers what it was sent; answers as it is told to."""

    def __init__(self) -> None:
        self.handler: Handler = answers
        self.seen: list[dict[str, Any]] = []
        self.sockets: list[ServerConnection] = []
        self.arrived = asyncio.Event()
        self.renewed = asyncio.Event()
        self.refuse_handshake: HTTPStatus | None = None
        self.handshakes = 0
        self.url = ""

    async def serve(self, ws: ServerConnection) -> None:
        self.sockets.append(ws)
        if len(self.sockets) > 1:
            self.renewed.set()
        async for text in ws:
            request = json.loads(text)
            self.seen.append(request)
            self.arrived.set()
            await self.handler(self, ws, request)

    def handshake(self, _: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        if self.refuse_handshake is None:
            return None
        return Response(self.refuse_handshake.value, "no", Headers({"Connection": "close", "Content-Length": "0"}), b"")


class Api:
    """A WsApi with ears."""

    def __init__(self, url: str, **options: Any) -> None:
        self.states: list[bool] = []
        self.faults: list[AegisError] = []
        self.late: list[tuple[str, Any, Any]] = []
        self.changed = asyncio.Event()
        options = {"credentials": Credentials("the-key", SECRET), **options}
        self.ws = WsApi(url, clock=real_clock(), offset_ms=lambda: 0, on_state=self.state, on_fault=self.fault, on_late=self.lates,
                        **options)

    def state(self, up: bool) -> None:
        self.states.append(up)
        self.changed.set()

    def fault(self, error: AegisError) -> None:
        self.faults.append(error)
        self.changed.set()

    def lates(self, method: str, params: Any, outcome: Any) -> None:
        self.late.append((method, params, outcome))
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    made = Venue()
    server: Server = await serve(made.serve, "127.0.0.1", 0, process_request=made.handshake, compression=None)
    made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws-fapi/v1"
    yield made
    server.close()
    await server.wait_closed()


@pytest.fixture
async def api(venue: Venue) -> AsyncIterator[Api]:
    made = Api(venue.url)
    made.ws.start()
    await made.until(lambda: made.ws.is_up)
    yield made
    await made.ws.close()


async def test_a_call_is_signed_over_its_sorted_parameters_and_answered_by_id(venue: Venue, api: Api) -> None:
    assert await api.ws.call("order.place", ORDER, recv_window_ms=1500) == {"orderId": 7, "method": "order.place"}
    params = venue.seen[0]["params"]
    signature = params.pop("signature")
    payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
    assert signature == hmac.digest(SECRET.encode(), payload.encode(), "sha256").hex()
    assert params["recvWindow"] == 1500 and isinstance(params["timestamp"], int) and params["apiKey"] == "the-key"


async def test_answers_in_another_order_reach_their_own_calls(venue: Venue, api: Api) -> None:
    held: list[dict[str, Any]] = []

    async def reverse(_: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        held.append(request)
        if len(held) == 3:
            for r in reversed(held):
                await ws.send(json.dumps({"id": r["id"], "status": 200, "result": {"symbol": r["params"]["symbol"]}}))

    venue.handler = reverse
    calls = [api.ws.call("order.place", {"symbol": name}) for name in ("A", "B", "C")]
    assert [(await call)["symbol"] for call in calls] == ["A", "B", "C"]


def test_the_bytes_are_on_the_socket_before_call_returns() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    received = threading.Event()

    def peer() -> None:
        connection, _ = listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        key = head.lower().split(b"sec-websocket-key:")[1].split(b"\r\n")[0].strip()
        original = head[head.lower().index(key):][:len(key)]
        accept = base64.b64encode(hashlib.sha1(original + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        if connection.recv(65536):
            received.set()

    thread = threading.Thread(target=peer, daemon=True)
    thread.start()

    async def scenario() -> bool:
        api = Api(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
        api.ws.start()
        await api.until(lambda: api.ws.is_up)
        future = api.ws.call("order.place", ORDER)
        arrived = received.wait(5)  # the loop is blocked here: only what was sent already can arrive
        await api.ws.close()
        with contextlib.suppress(Unknown):
            await future
        return arrived

    assert asyncio.run(scenario())
    thread.join(5)
    listener.close()


REFUSALS = [
    (400, -2019, "Margin is insufficient.", Rejected),
    (400, -1021, "Timestamp for this request is outside of the recvWindow.", Retryable),
    (503, -1008, "Request throttled by system-level protection.", Retryable),
    (503, 0, "Unknown error, please check your request or try again later.", Unknown),
    (408, -1007, "Timeout waiting for response from backend server.", Unknown),
    (500, -1000, "An unknown error occurred while processing the request.", Unknown),
    (401, -2015, "Invalid API-key, IP, or permissions for action.", Fatal),
]


@pytest.mark.parametrize(("status", "code", "text", "kind"), REFUSALS, ids=[str(r[1]) for r in REFUSALS])
async def test_a_refusal_becomes_its_reaction(venue: Venue, api: Api, status: int, code: int, text: str, kind: type[AegisError]) -> None:
    venue.handler = refuses(status, code, text)
    with pytest.raises(kind):
        await api.ws.call("order.place", ORDER)
    assert len(venue.seen) == 1 and api.ws.in_flight == 0


async def test_a_connection_lost_after_the_send_makes_a_write_unknown_and_a_read_retryable(venue: Venue, api: Api) -> None:
    venue.handler = is_silent
    write, read = api.ws.call("order.place", ORDER), api.ws.call("order.status", ORDER)
    async with asyncio.timeout(5):
        await venue.arrived.wait()
    venue.sockets[0].transport.abort()
    with pytest.raises(Unknown, match=r"order\.place"):
        await write
    with pytest.raises(Retryable):
        await read


async def test_after_a_loss_it_connects_again_and_sends_nothing_again(venue: Venue, api: Api) -> None:
    venue.handler = cuts
    with pytest.raises(Unknown):
        await api.ws.call("order.place", ORDER)
    assert not api.ws.is_up
    venue.handler = answers
    await api.until(lambda: api.ws.is_up)
    assert api.states == [True, False, True] and len(venue.seen) == 1
    assert await api.ws.call("order.cancel", ORDER)


async def test_without_a_connection_nothing_is_sent_and_the_error_says_so() -> None:
    api = Api("ws://127.0.0.1:1/")
    api.ws.start()
    await api.until(lambda: len(api.faults) >= 1)
    with pytest.raises(Retryable, match="was not sent"):
        api.ws.call("order.place", ORDER)
    assert isinstance(api.faults[0], Retryable) and api.states == []
    await api.ws.close()


async def test_no_answer_in_time_is_unknown_and_a_late_answer_is_told_as_evidence(venue: Venue, api: Api) -> None:
    release = asyncio.Event()

    async def waits(v: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        await release.wait()
        await refuses(400, -2019, "Margin is insufficient.")(v, ws, request)
        await answers(v, ws, request)

    venue.handler = waits
    with pytest.raises(Unknown, match="no answer"):
        await api.ws.call("order.place", ORDER, timeout_s=0.02)
    release.set()
    await api.until(lambda: len(api.late) == 1)
    method, params, outcome = api.late[0]
    assert (method, params["newClientOrderId"]) == ("order.place", "aegis-a/b") and isinstance(outcome, Rejected) and outcome.code == -2019
    venue.handler = answers
    await api.ws.call("order.status", ORDER)
    assert api.ws.statistics()["late"] == 1 and api.ws.statistics()["unmatched"] == 1


async def test_rubbish_is_counted_and_harms_no_call(venue: Venue, api: Api) -> None:
    async def rubbish(v: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        for frame in ("", "{", "[]", "null", '{"id":{}}', '{"id":1,"status":"x"}', "\u0000", b"\xff\xfe", '{"id":999999,"status":200}'):
            await ws.send(frame)
        await answers(v, ws, request)

    venue.handler = rubbish
    assert (await api.ws.call("order.place", ORDER))["orderId"] == 7
    assert api.ws.statistics()["rubbish"] == 7 and api.ws.statistics()["unmatched"] == 1 and api.ws.is_up


async def test_an_answer_in_fragments_is_put_together(venue: Venue, api: Api) -> None:
    async def fragments(_: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        text = json.dumps({"id": request["id"], "status": 200, "result": {"orderId": 9}})
        await ws.send([text[:10], text[10:20], text[20:]])

    venue.handler = fragments
    assert (await api.ws.call("order.place", ORDER))["orderId"] == 9


async def test_the_connection_is_renewed_without_a_gap_and_calls_in_flight_are_still_answered(venue: Venue) -> None:
    release = asyncio.Event()

    async def waits(v: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        await release.wait()
        await answers(v, ws, request)

    venue.handler = waits
    api = Api(venue.url, lifetime_s=0.05)
    api.ws.start()
    await api.until(lambda: api.ws.is_up)
    call = api.ws.call("order.place", ORDER)
    async with asyncio.timeout(5):
        await venue.renewed.wait()
    assert api.states == [True] and not call.done()
    release.set()
    assert (await call)["orderId"] == 7
    async with asyncio.timeout(5):
        await venue.sockets[0].wait_closed()
    await api.ws.close()
    assert api.states == [True, False]


async def test_a_close_by_the_server_is_followed_by_a_new_connection(venue: Venue, api: Api) -> None:
    await venue.sockets[0].close(1001, "going away")
    await api.until(lambda: api.states == [True, False, True])


async def test_the_servers_pings_are_answered(venue: Venue, api: Api) -> None:
    pong = await venue.sockets[0].ping(b"are you there")
    async with asyncio.timeout(5):
        await pong


def ed25519_credentials() -> Credentials:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return Credentials("the-key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


async def test_with_an_ed25519_key_the_session_logs_on_and_calls_carry_no_signature(venue: Venue) -> None:
    api = Api(venue.url, credentials=ed25519_credentials())
    api.ws.start()
    await api.until(lambda: api.ws.is_up)
    await api.ws.call("order.place", ORDER)
    logon, order = venue.seen
    assert logon["method"] == "session.logon" and {"apiKey", "signature", "timestamp"} <= logon["params"].keys()
    assert "signature" not in order["params"] and "apiKey" not in order["params"] and "timestamp" in order["params"]
    await api.ws.close()


async def test_a_refused_logon_is_a_fault_and_never_up(venue: Venue) -> None:
    venue.handler = refuses(401, -2015, "Invalid API-key, IP, or permissions for action.")
    api = Api(venue.url, credentials=ed25519_credentials())
    api.ws.start()
    await api.until(lambda: len(api.faults) >= 1)
    assert isinstance(api.faults[0], Fatal) and not api.ws.is_up and api.states == []
    await api.ws.close()


@pytest.mark.parametrize(("status", "kind"), [(HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS, Fatal), (HTTPStatus.TOO_MANY_REQUESTS, Retryable)])
async def test_a_refused_handshake_is_a_fault_with_its_reaction(venue: Venue, status: HTTPStatus, kind: type[AegisError]) -> None:
    venue.refuse_handshake = status
    api = Api(venue.url)
    api.ws.start()
    await api.until(lambda: len(api.faults) >= 1)
    assert isinstance(api.faults[0], kind)
    await api.ws.close()


@pytest.mark.parametrize(("status", "blocked_s"), [(HTTPStatus.TOO_MANY_REQUESTS, 30), (HTTPStatus.IM_A_TEAPOT, 120)])
async def test_a_handshake_that_is_refused_for_too_many_requests_is_repeated_when_requests_are_taken_again(
    venue: Venue, status: HTTPStatus, blocked_s: float
) -> None:
    """It weighs too, and who goes on is banned."""
    venue.refuse_handshake = status
    governor = Governor(lambda: 30_000)
    api = Api(venue.url, governor=governor)
    api.ws.start()
    await api.until(lambda: len(api.faults) >= 1)
    assert governor.blocked_s() == blocked_s and governor.own_1m == 5
    async with asyncio.timeout(5):
        while status == HTTPStatus.TOO_MANY_REQUESTS and not governor.statistics()["waiting"]:
            await asyncio.sleep(0.01)
    assert venue.handshakes == 1
    await api.ws.close()


async def test_a_revoked_key_is_told_without_an_id_and_reaches_the_owner(venue: Venue, api: Api) -> None:
    await venue.sockets[0].send(json.dumps({"id": None, "status": 401, "error": {"code": -2015, "msg": "Invalid API-key"}}))
    await api.until(lambda: len(api.faults) == 1)
    assert isinstance(api.faults[0], Fatal)


async def test_the_governor_refuses_before_anything_is_sent_and_learns_from_answers(venue: Venue) -> None:
    async def tells(_: Venue, ws: ServerConnection, request: dict[str, Any]) -> None:
        limits = [{"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 10, "count": 8}]
        await ws.send(json.dumps({"id": request["id"], "status": 200, "result": {}, "rateLimits": limits}))

    venue.handler = tells
    api = Api(venue.url, governor=Governor(lambda: 0, limits=Limits(2400, 10, 100)))
    api.ws.start()
    await api.until(lambda: api.ws.is_up)
    await api.ws.call("order.place", ORDER)
    with pytest.raises(Retryable, match="was not sent"):
        api.ws.call("order.place", ORDER)
    await api.ws.call("order.place", {**ORDER, "reduceOnly": "true"})
    await api.ws.call("algoOrder.place", {"symbol": "BTCUSDT", "closePosition": "true"})
    assert len(venue.seen) == 3
    await api.ws.close()


async def test_while_the_venue_takes_no_requests_it_is_not_dialled(venue: Venue) -> None:
    governor = Governor(lambda: 30_000)
    governor.throttled(to_error(418, -1003, "Way too many requests", write=False, retry_after_s=600.0))
    api = Api(venue.url, governor=governor)
    api.ws.start()
    await api.until(lambda: len(api.faults) >= 1)
    assert api.faults[0].fields["retry_after_s"] > 500 and venue.handshakes == 0
    await api.ws.close()


async def test_the_end_of_a_ban_in_an_answer_is_waited_for_in_wall_time(venue: Venue) -> None:
    governor = Governor(lambda: 0)
    until_ms = real_clock().market_ms() + 100_000
    venue.handler = refuses(418, -1003, "Way too many requests", data={"serverTime": 1, "retryAfter": until_ms})
    api = Api(venue.url, governor=governor)
    api.ws.start()
    await api.until(lambda: api.ws.is_up)
    with pytest.raises(Retryable):
        await api.ws.call("order.status", ORDER)
    assert governor.blocked_s() == pytest.approx(100, abs=2)
    await api.ws.close()


async def test_close_ends_every_call_and_every_socket(venue: Venue, api: Api) -> None:
    venue.handler = is_silent
    call = api.ws.call("order.place", ORDER)
    async with asyncio.timeout(5):
        await venue.arrived.wait()
        await api.ws.close()
        with pytest.raises(Unknown):
            await call
        await venue.sockets[0].wait_closed()
    assert not api.ws.is_up


async def test_a_server_that_hangs_up_during_the_handshake_is_a_fault_and_dialled_again() -> None:
    """The library calls such a connection made, and never tells its listener of it."""
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        api = Api(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws-fapi/v1")
        api.ws.start()
        await api.until(lambda: len(api.faults) >= 2)
        assert all(isinstance(fault, Retryable) for fault in api.faults) and not any(api.states)
        await api.ws.close()
