"""The venue's REST door: signs, sends, measures, and turns every foreign error into one of ours.

Invariants:

* a write is sent once: never again after a byte may have left, except after -1021, which says that it was not executed (an entry not even
  then: its signal is old). The HTTP library may repeat a DELETE or PUT on a kept connection that the venue had closed; what we send by
  these, cancels and renewals, may be repeated;
* reads are tried again on ``Retryable``, a bounded number of times, with jitter;
* no request leaves without leave of the governor; answers are bounded in size and time;
* nothing but ``AegisError`` (and cancellation) comes out of here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from src.clock import MS, Clock, monotonic_ns, unseeded
from src.config import proxy_for, tls_for
from src.error_handler import AegisError, Fatal, Retryable
from src.venue.errors import CLOCK_SKEW, code_of, from_transport, header_s, is_throttle, say_wait, to_error
from src.venue.governor import Governor, Priority, Ticket
from src.venue.orders import reduces
from src.venue.signing import Credentials, Params, encode_query

BODY_MAX = 64 * 1024 * 1024
READ_TRIES = 4
READ_WAIT_S = 90.0
"""A read waits so long for leave of the governor; a write no longer than its own time-out, since it would be stale."""
_PLACES = frozenset({"/fapi/v1/order", "/fapi/v1/algoOrder"})
RECV_WINDOW_MS = 5000
CLOCK_HEADER = "x-sim-clock"
_BACKOFF_S = (0.2, 0.5, 1.0)
_RETRY_AFTER_S_MAX = 2.0
"""A read waits itself only this long for the venue; a longer pause is the caller's business."""

Decode = Callable[[bytes], Any]
plain: Decode = msgspec.json.decode


class _Refusal(msgspec.Struct):
    code: int = 0
    msg: str = ""


_refusal = msgspec.json.Decoder(_Refusal, strict=False).decode


class _Time(msgspec.Struct, rename="camel"):
    server_time: int


_time = msgspec.json.Decoder(_Time).decode


class Rest:
    """One per process. ``session``: an own one is made at the first call and closed by ``close`` where none is given."""

    def __init__(self, base_url: str, *, clock: Clock, governor: Governor, credentials: Credentials | None = None,
                 session: aiohttp.ClientSession | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._proxy = proxy_for(self.base_url)
        self.offset_ms = 0
        self.governor = governor
        self._clock = clock
        self.credentials = credentials
        self._session = session
        self._own_session = session is None
        self._chance = unseeded()
        self.calls = 0
        self.retries = 0
        self.failures: dict[str, int] = {}
        self.last_latency_ms = 0.0

    async def close(self) -> None:
        if self._session is not None and self._own_session:
            await self._session.close()
            self._session = None

    def timestamp(self) -> int:
        """Now, by the venue's clock as far as we know it, in milliseconds."""
        return self._clock.market_ms() + self.offset_ms

    async def get(self, path: str, params: Params = (), *, weight: int, signed: bool = False, timeout_s: float = 5.0,
                  priority: Priority = Priority.DATA, decode: Decode = plain) -> Any:
        """Read ``path``; ``decode`` turns the body into values. ``signed``: TRADE and USER_DATA endpoints. Raises AegisError."""
        request = _Request("GET", path, _pairs(params), signed, False, weight, timeout_s, RECV_WINDOW_MS, priority, decode)
        resynced = False
        for attempt in range(READ_TRIES):
            try:
                return await self._once(request)
            except Retryable as error:
                if code_of(error) == CLOCK_SKEW and not resynced:
                    resynced = True
                    await self.sync_time()
                    continue
                if attempt == READ_TRIES - 1 or not await self._pause(attempt, error):
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def send(self, method: str, path: str, params: Params = (), *, weight: int = 0, timeout_s: float = 5.0, signed: bool = True,
                   priority: Priority = Priority.TRADE, recv_window_ms: int = RECV_WINDOW_MS, decode: Decode = plain,
                   now_or_never: bool = False) -> Any:  # fmt: skip
        """A write, sent once. Raises Unknown where it may have been executed. An order that is to protect says ``Priority.PROTECT``.

        ``now_or_never``: it is stale a moment later, so it waits for no leave, and -1021 ends it.
        """
        assert method in ("POST", "PUT", "DELETE"), method
        request = _Request(method, path, _pairs(params), signed, True, weight, timeout_s, recv_window_ms, priority, decode)
        if method == "POST" and path in _PLACES and not self.governor.try_order(reducing=reduces(dict(request.params))):
            raise Retryable("too many orders in this window: it was not sent", status=0, code=0, sent=False, held_back=True)
        try:
            return await self._once(request, wait_s=0.0 if now_or_never else timeout_s)
        except Retryable as error:
            if code_of(error) != CLOCK_SKEW or not signed or now_or_never:
                raise
        await self.sync_time()
        return await self._once(request, wait_s=timeout_s)

    async def sync_time(self, samples: int = 3) -> int:
        """Measure venue time − market time over a few calls and keep the median. Returns it in milliseconds."""
        offsets: list[int] = []
        for _ in range(samples):
            told: _Time = await self.get("/fapi/v1/time", weight=1, priority=Priority.PROTECT, decode=_time)
            half_way_ns = monotonic_ns() - int(self.last_latency_ms * MS / 2)
            offsets.append(told.server_time - self._clock.market_ms_at(half_way_ns))
        self.offset_ms = sorted(offsets)[len(offsets) // 2]
        return self.offset_ms

    def statistics(self) -> dict[str, int | float]:
        return {"calls": self.calls, "retries": self.retries, "latency_ms": self.last_latency_ms, "offset_ms": self.offset_ms,
                **{f"failed_{name}": count for name, count in self.failures.items()}}

    # -- one request -----------------------------------------------------------------------------------------------------------------

    async def _once(self, request: _Request, *, wait_s: float = READ_WAIT_S) -> Any:
        """``wait_s``: how long it may wait for leave of the governor."""
        ticket = await self.governor.acquire(request.weight, request.priority, wait_s_max=wait_s)
        url, headers = self._address(request)
        self.calls += 1
        try:
            return await self._exchange(request, url, headers, ticket)
        except AegisError as error:
            name = type(error).__name__
            self.failures[name] = self.failures.get(name, 0) + 1
            if is_throttle(error):
                say_wait(error, self._clock, self.offset_ms)
                self.governor.throttled(error)
            raise

    def _address(self, request: _Request) -> tuple[URL, dict[str, str]]:
        """Built at the last moment, so that the timestamp is young. The query is final: nothing re-encodes it."""
        headers = {"X-MBX-APIKEY": self.credentials.key} if self.credentials else {}
        if not request.signed:
            query = encode_query(request.params)
        elif self.credentials is None:
            raise Fatal(f"{request.path} needs an API key, and none is set")
        else:
            extra = [("recvWindow", request.recv_window_ms), ("timestamp", self.timestamp())]
            query = self.credentials.sign_query([*request.params, *extra])
        return URL(f"{self.base_url}{request.path}{'?' if query else ''}{query}", encoded=True), headers

    async def _exchange(self, request: _Request, url: URL, headers: dict[str, str], ticket: Ticket) -> Any:
        sent = False
        start = monotonic_ns()
        timeout = aiohttp.ClientTimeout(total=request.timeout_s, connect=request.timeout_s * 0.9)
        try:
            async with self._open().request(request.method, url, headers=headers, timeout=timeout, allow_redirects=False,
                                            proxy=self._proxy, ssl=tls_for(self.base_url) or True) as response:
                sent = True
                self.governor.answered(ticket, response.headers)
                body = await _bounded(response)
                self.last_latency_ms = (monotonic_ns() - start) / MS
                return _value(request, response, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise from_transport(error, sent=sent, write=request.write) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise from_transport(error, sent=True, write=request.write) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32, keepalive_timeout=30, ttl_dns_cache=60))
        return self._session

    async def _pause(self, attempt: int, error: Retryable) -> bool:
        """Wait before the next attempt. False where the venue asks for a pause that is too long to sit out here."""
        asked_s = error.fields.get("retry_after_s")
        if (asked_s is not None and asked_s > _RETRY_AFTER_S_MAX) or self.governor.blocked_s() > _RETRY_AFTER_S_MAX:
            return False
        self.retries += 1
        await asyncio.sleep(max(asked_s or 0.0, _BACKOFF_S[attempt] * self._chance.uniform(0.5, 1.5)))
        return True


class _Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    params: list[tuple[str, Any]]
    signed: bool
    write: bool
    weight: int
    timeout_s: float
    recv_window_ms: int
    priority: Priority
    decode: Decode


def _pairs(params: Params) -> list[tuple[str, Any]]:
    return list(params.items() if isinstance(params, Mapping) else params)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks = bytearray()
    async for chunk in response.content.iter_any():
        chunks += chunk
        if len(chunks) > BODY_MAX:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {BODY_MAX} bytes")
    return bytes(chunks)


def _value(request: _Request, response: aiohttp.ClientResponse, body: bytes) -> Any:
    """The decoded body of a success, else the error it stands for."""
    if response.status == 200:
        try:
            return request.decode(body)
        except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError) as error:
            # No success has such a body, but a write may have been one all the same.
            raise to_error(200, 0, _text(body), write=request.write) from error
    try:
        refusal = _refusal(body)
    except msgspec.DecodeError:
        refusal = _Refusal(0, _text(body))
    raise to_error(response.status, refusal.code, refusal.msg, write=request.write, retry_after_s=header_s(response.headers))


def _text(body: bytes) -> str:
    return body[:400].decode("utf-8", "replace")


async def fetch_clock(base_url: str, timeout_s: float = 5.0) -> Clock | None:
    """The clock of a local exchange, from its header; None where a venue keeps real time. Raises Retryable where nobody answers."""
    try:
        async with (aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
                    session.get(f"{base_url.rstrip('/')}/fapi/v1/ping") as response):
            header = response.headers.get(CLOCK_HEADER)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise from_transport(error, sent=True, write=False) from error
    return clock_of(header) if header else None


def clock_of(header: str) -> Clock:
    """``t0_ms,m0_ns,speed`` → Clock. Raises Fatal where it is not that."""
    try:
        t0_ms, m0_ns, speed = header.split(",")
        return Clock(int(t0_ms), int(m0_ns), float(speed))
    except ValueError as error:
        raise Fatal(f"header {CLOCK_HEADER} is {header!r}, and must be t0_ms,m0_ns,speed") from error
