"""The WebSocket API: signed requests on one socket, answers matched by id. This is the way orders take.

Invariants:

* ``call`` is synchronous: when it returns, the signed bytes have been handed to the socket (TLS on uvloop flushes them at the end of the
  current turn of the loop);
* nothing is ever sent twice. No connection: ``Retryable`` is raised and nothing was sent. Connection lost or time over after the send:
  a write ends ``Unknown``, a read ``Retryable``;
* every call ends: by its answer, its time-out or the loss of its connection. What arrives later is counted, and told to ``on_late``;
* the connection is renewed before the venue's 24 h cut: a new one first, then the old one ends once its calls have;
* dialling weighs too: it waits for leave of the governor, and where it is refused for too many requests, everybody waits;
* server pings are answered, and a peer that is silent is pinged; one that stays silent is dropped.

With an Ed25519 key the session logs on once, and calls then need no signature.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import picows

from src.clock import Clock, monotonic_ns, unseeded
from src.config import proxy_for, tls_for
from src.error_handler import AegisError, Retryable, Unknown, lifecycle, warn
from src.venue.errors import from_transport, is_throttle, say_wait, to_error
from src.venue.governor import Governor, Priority
from src.venue.orders import reduces
from src.venue.signing import Credentials

IN_FLIGHT_MAX = 512
FRAME_MAX = 4 * 1024 * 1024
LATE_MAX = 1024
LIFETIME_S = 23 * 3600.0
HANDSHAKE_WEIGHT = 5
CONNECT_S = 10.0
PING_IDLE_S = 15.0
PONG_WITHIN_S = 10.0
BACKOFF_S_MAX = 10.0
STABLE_S = 10.0
"""A connection that lived shorter than this counts as a failed attempt."""

Result = dict[str, Any]
METHODS: dict[str, tuple[int, bool]] = {
    # weight, and whether it can change something at the venue
    "order.place": (0, True), "order.modify": (0, True), "order.cancel": (1, True), "order.status": (1, False),
    "algoOrder.place": (0, True), "algoOrder.cancel": (1, True), "session.logon": (2, False), "session.status": (2, False),
    "v2/account.balance": (5, False), "v2/account.status": (5, False), "v2/account.position": (5, False),
    "userDataStream.start": (1, False), "userDataStream.ping": (1, False), "userDataStream.stop": (1, False),
}
_PLACES = frozenset({"order.place", "order.modify", "algoOrder.place"})


class _Hint(msgspec.Struct):
    retryAfter: int | None = None


class _Refusal(msgspec.Struct):
    code: int = 0
    msg: str = ""
    data: _Hint | None = None


class _RateLimit(msgspec.Struct):
    rateLimitType: str
    interval: str
    intervalNum: int = 1
    count: int = 0


class _Answer(msgspec.Struct):
    id: int | str | None = None
    status: int = 0
    result: Any = None
    error: _Refusal | None = None
    rateLimits: list[_RateLimit] = []


_TEXT, _CONTINUATION, _CLOSE = picows.WSMsgType.TEXT, picows.WSMsgType.CONTINUATION, picows.WSMsgType.CLOSE
_decode = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


class _Call:
    """One request that waits for its answer."""

    __slots__ = ("future", "method", "params", "sent_ns", "timer", "write")

    def __init__(self, method: str, params: Mapping[str, Any], future: asyncio.Future[Result], write: bool) -> None:
        self.method = method
        self.params = params
        self.future = future
        self.write = write
        self.sent_ns = monotonic_ns()
        self.timer: asyncio.TimerHandle | None = None

    def end(self, outcome: Result | AegisError) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.future.done():
            return
        if isinstance(outcome, AegisError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class _Connection(picows.WSListener):
    """One socket, and the calls that were sent over it."""

    def __init__(self, owner: WsApi) -> None:
        self.owner = owner
        self.transport: picows.WSTransport | None = None
        self.pending: dict[int, _Call] = {}
        self.lost = asyncio.Event()
        self.logged_on = False
        self.retiring = False
        self._parts = bytearray()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self.owner._opened(self)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind in (_TEXT, _CONTINUATION):
            self._received(frame)
        elif kind == _CLOSE:
            self.end()

    def _received(self, frame: picows.WSFrame) -> None:
        if frame.fin and not self._parts:
            self.owner._answered(self, frame.get_payload_as_memoryview())
            return
        self._parts += frame.get_payload_as_memoryview()
        if frame.fin or len(self._parts) > FRAME_MAX:
            whole, self._parts = self._parts, bytearray()
            self.owner._answered(self, whole)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.lost.set()
        self.owner._disconnected(self)

    @property
    def usable(self) -> bool:
        transport = self.transport
        return transport is not None and not (transport.is_disconnected or transport.is_close_frame_sent or self.lost.is_set())

    def close_when_idle(self) -> None:
        self.retiring = True
        if not self.pending:
            self.end()

    def end(self) -> None:
        assert self.transport is not None
        self.transport.send_close(picows.WSCloseCode.OK)
        self.transport.disconnect()


class WsApi:
    """One per process. ``offset_ms``: venue time − market time (``Rest.offset_ms``). Callbacks are synchronous and must not block.

    ``on_state(up)``: calls are possible, or no longer. ``on_fault(error)``: an attempt to connect or to log on failed (the attempts go on;
    a Fatal one will not get better), or the venue refused without naming a call. ``on_late(method, params, outcome)``: the answer to a
    write that had ended Unknown by time-out: evidence.
    """

    def __init__(self, url: str, *, clock: Clock, credentials: Credentials, offset_ms: Callable[[], int], governor: Governor | None = None,
                 on_state: Callable[[bool], None] = lambda up: None, on_fault: Callable[[AegisError], None] = lambda error: None,
                 on_late: Callable[[str, Mapping[str, Any], Result | AegisError], None] = lambda method, params, outcome: None,
                 lifetime_s: float = LIFETIME_S) -> None:
        self._url = url
        self._clock = clock
        self._credentials = credentials
        self._offset_ms = offset_ms
        self._governor = governor
        self._on_state = on_state
        self._on_fault = on_fault
        self._on_late = on_late
        self._lifetime_s = lifetime_s
        self._chance = unseeded()
        self._connection: _Connection | None = None
        self._open: set[_Connection] = set()
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_id = 0
        self._late: OrderedDict[int, _Call] = OrderedDict()
        self._counts = dict.fromkeys(("calls", "answers", "refusals", "timeouts", "late", "unmatched", "rubbish", "connects", "losses",
                                      "renewals"), 0)
        self.last_latency_ms = 0.0

    # -- for the owner ---------------------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        """Begin to connect, and keep connected until ``close``. The task ends by itself only with an exception of a callback."""
        assert self._task is None, "started twice"
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._keep_connected(), name="ws-api")
        return self._task

    async def close(self) -> None:
        """Disconnect; calls in flight end as if the connection had been lost."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for connection in list(self._open):
            assert connection.transport is not None
            connection.transport.send_close(picows.WSCloseCode.OK)
            connection.transport.disconnect(graceful=False)
            await connection.lost.wait()

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.usable

    @property
    def in_flight(self) -> int:
        return len(self._connection.pending) if self._connection is not None else 0

    def call(self, method: str, params: Mapping[str, Any], *, timeout_s: float = 5.0, recv_window_ms: int = 5000) -> asyncio.Future[Result]:
        """Send one request now. The future holds the venue's ``result``, or raises AegisError.

        Raises Retryable itself where nothing was sent: not connected, too much in flight, or no leave of the governor.
        """
        connection = self._connection
        if connection is None or not connection.usable:
            raise Retryable(f"the WebSocket API is not connected: {method} was not sent", status=0, code=0, sent=False)
        if len(connection.pending) >= IN_FLIGHT_MAX:
            raise Retryable(f"{IN_FLIGHT_MAX} requests are in flight: {method} was not sent", status=0, code=0, sent=False)
        weight, write = METHODS[method]
        if self._governor is not None:
            self._ask_leave(self._governor, method, weight, params)
        return self._send(connection, method, write, params, timeout_s, recv_window_ms)

    def statistics(self) -> dict[str, int | float]:
        return {**self._counts, "in_flight": self.in_flight, "up": int(self.is_up), "latency_ms": self.last_latency_ms}

    # -- sending ---------------------------------------------------------------------------------------------------------------------

    def _ask_leave(self, governor: Governor, method: str, weight: int, params: Mapping[str, Any]) -> None:
        adding = method in _PLACES and not reduces(params)
        ticket = governor.take_now(weight, Priority.TRADE if adding else Priority.PROTECT)
        if ticket is None:
            raise Retryable(f"no request weight left: {method} was not sent", status=0, code=0, sent=False, held_back=True)
        governor.answered(ticket, {})  # these answers bring their figures along, if at all
        if method in _PLACES and not governor.try_order(reducing=not adding):
            raise Retryable(f"too many orders in this window: {method} was not sent", status=0, code=0, sent=False, held_back=True)

    def _send(self, connection: _Connection, method: str, write: bool, params: Mapping[str, Any], timeout_s: float,
              recv_window_ms: int) -> asyncio.Future[Result]:
        loop = self._loop
        assert loop is not None and connection.transport is not None
        self._next_id += 1
        number = self._next_id
        body = {"recvWindow": recv_window_ms, **params, "timestamp": self._clock.market_ms() + self._offset_ms()}
        if not connection.logged_on:
            body["apiKey"] = self._credentials.key
            body["signature"] = self._credentials.sign_ws(body)
        call = _Call(method, params, loop.create_future(), write)
        connection.pending[number] = call
        connection.transport.send(_TEXT, _encode({"id": number, "method": method, "params": body}))
        call.timer = loop.call_later(timeout_s, self._timed_out, connection, number, timeout_s)
        self._counts["calls"] += 1
        return call.future

    def _timed_out(self, connection: _Connection, number: int, timeout_s: float) -> None:
        call = connection.pending.pop(number, None)
        if call is None:
            return
        self._counts["timeouts"] += 1
        self._late[number] = call
        if len(self._late) > LATE_MAX:
            self._late.popitem(last=False)
        text = f"no answer to {call.method} within {timeout_s:g} s"
        call.end(Unknown(f"{text}: it may have been executed", status=0, code=0) if call.write else Retryable(text, status=0, code=0))
        if connection.retiring:
            connection.close_when_idle()

    # -- receiving -------------------------------------------------------------------------------------------------------------------

    def _answered(self, connection: _Connection, payload: memoryview | bytearray) -> None:
        try:
            answer = _decode(payload)
        except msgspec.DecodeError:
            self._counts["rubbish"] += 1
            return
        if self._governor is not None:
            self._learn(self._governor, answer)
        call = connection.pending.pop(answer.id, None) if isinstance(answer.id, int) else None
        if call is None:
            self._not_awaited(answer)
            return
        self._counts["answers"] += 1
        self.last_latency_ms = (monotonic_ns() - call.sent_ns) / 1e6
        call.end(self._outcome(answer, call.write))
        if connection.retiring:
            connection.close_when_idle()

    def _outcome(self, answer: _Answer, write: bool) -> Result | AegisError:
        if answer.status == 200 and answer.error is None:
            return answer.result if isinstance(answer.result, dict) else {"result": answer.result}
        self._counts["refusals"] += 1
        refusal = answer.error or _Refusal()
        error = to_error(answer.status, refusal.code, refusal.msg, write=write)
        if refusal.data is not None and refusal.data.retryAfter is not None:
            error.fields.pop("retry_after_s", None)
            error.fields["banned_until_ms"] = refusal.data.retryAfter
        return self._throttled(error)

    def _throttled(self, error: AegisError) -> AegisError:
        """Where it is about too many requests, nobody of this process goes on sending."""
        say_wait(error, self._clock, self._offset_ms())
        if self._governor is not None and is_throttle(error):
            self._governor.throttled(error)
        return error

    def _not_awaited(self, answer: _Answer) -> None:
        """Late, double, or addressed to nobody (a revoked key is told that way)."""
        call = self._late.pop(answer.id, None) if isinstance(answer.id, int) else None
        if call is not None:
            self._counts["late"] += 1
            if call.write:
                self._on_late(call.method, call.params, self._outcome(answer, True))
            return
        self._counts["unmatched"] += 1
        if answer.id is None and answer.error is not None:
            self._on_fault(to_error(answer.status, answer.error.code, answer.error.msg, write=False))

    def _learn(self, governor: Governor, answer: _Answer) -> None:
        for limit in answer.rateLimits:
            governor.learn(limit.rateLimitType, limit.interval, limit.intervalNum, limit.count)

    # -- connecting ------------------------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                fresh = await self._connect()
            except AegisError as error:
                failures += 1
                if failures in (1, 10) or failures % 100 == 0:
                    warn(f"WebSocket API: {error}", attempts=failures)
                self._on_fault(error)
                await asyncio.sleep(max(self._pause_s(failures), float(error.fields.get("retry_after_s") or 0.0)))
                continue
            start_ns = monotonic_ns()
            self._adopt(fresh)
            try:
                async with asyncio.timeout(self._lifetime_s * self._chance.uniform(0.97, 1.0)):
                    await fresh.lost.wait()
            except TimeoutError:
                self._counts["renewals"] += 1
                failures = 0
            else:
                failures = 0 if monotonic_ns() - start_ns > STABLE_S * 1e9 else failures + 1
                await asyncio.sleep(self._pause_s(failures))

    def _pause_s(self, failures: int) -> float:
        return min(BACKOFF_S_MAX, 0.1 * 2.0 ** min(failures, 10)) * self._chance.uniform(0.5, 1.0)

    async def _connect(self) -> _Connection:
        """A connection that is open and, with an Ed25519 key, logged on."""
        if self._governor is not None:
            self._governor.answered(await self._governor.acquire(HANDSHAKE_WEIGHT, Priority.PROTECT), {})
        try:
            async with asyncio.timeout(CONNECT_S):
                _, listener = await picows.ws_connect(
                    lambda: _Connection(self), self._url, websocket_handshake_timeout=CONNECT_S * 0.8, max_redirects=0,
                    enable_auto_ping=True, auto_ping_idle_timeout=PING_IDLE_S, auto_ping_reply_timeout=PONG_WITHIN_S,
                    max_frame_size=FRAME_MAX, proxy=proxy_for(self._url), ssl_context=tls_for(self._url))
                if listener is None:
                    raise picows.WSError("closed during the handshake")  # which the library takes for a connection that was made
        except picows.WSHandshakeError as error:
            status = int(error.response.status) if error.response is not None else 0
            if not status:
                raise from_transport(error, sent=False, write=False) from error
            raise self._throttled(to_error(status, 0, (error.raw_body or b"").decode("utf-8", "replace"), write=False)) from error
        except (OSError, TimeoutError, picows.WSError) as error:
            raise from_transport(error, sent=False, write=False) from error
        connection: _Connection = listener  # type: ignore[assignment]
        if self._credentials.is_ed25519:
            await self._log_on(connection)
        return connection

    async def _log_on(self, connection: _Connection) -> None:
        try:
            await self._send(connection, "session.logon", False, {}, CONNECT_S, 5000)
        except AegisError:
            connection.close_when_idle()
            raise
        connection.logged_on = True

    def _opened(self, connection: _Connection) -> None:
        """Also reached by an attempt that was given up meanwhile."""
        self._open.add(connection)
        if self._closed:
            connection.end()

    def _adopt(self, fresh: _Connection) -> None:
        if not fresh.usable:
            return
        old, self._connection = self._connection, fresh
        self._counts["connects"] += 1
        if old is not None:
            old.close_when_idle()
            return
        lifecycle("WebSocket API connected", session="logged on" if fresh.logged_on else "each call is signed")
        self._on_state(True)

    def _disconnected(self, connection: _Connection) -> None:
        """Every call that waits on this connection ends now: nobody will answer it."""
        self._open.discard(connection)
        pending, connection.pending = connection.pending, {}
        if connection is self._connection:
            self._connection = None
            self._counts["losses"] += 1
            self._on_state(False)
        for call in pending.values():
            cut = ConnectionResetError(f"connection lost before the answer to {call.method}")
            call.end(from_transport(cut, sent=True, write=call.write))
