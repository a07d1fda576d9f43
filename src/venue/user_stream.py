"""The user stream: what happened to our orders, positions and balances, as the venue pushes it.

Invariants:

* ``on_event`` is called synchronously, in the order of arrival, with our words only;
* there is no replay: after every (re)connection ``on_state(True)`` comes first, and the owner must reconcile by REST before it trusts;
* the listen key is renewed every 20 minutes and replaced when it is gone; the connection is replaced before the venue's 24 h cut;
* silence is no proof of health: the owner compares with REST and calls ``restart`` where they differ;
* unknown events and rubbish are counted, never fatal; the listen key is in no log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from src.clock import monotonic_ns, unseeded
from src.config import proxy_for, tls_for
from src.error_handler import AegisError, Retryable, Throttle, hide, lifecycle, warn
from src.venue.errors import LISTEN_KEY_GONE, code_of, from_transport, to_error
from src.venue.governor import Priority
from src.venue.rest import Rest
from src.venue.user_events import EVENTS, KeyExpired, UnknownEvent, UserEvent, decode_event

LISTEN_KEY_PATH = "/fapi/v1/listenKey"
KEEP_ALIVE_S = 20 * 60.0
KEEP_ALIVE_RETRY_S = 60.0
LIFETIME_S = 23 * 3600.0
CONNECT_S = 10.0
PING_S = 20.0
BACKOFF_S_MAX = 10.0
STABLE_S = 10.0
"""A connection that lived shorter than this counts as a failed attempt."""
FRAME_MAX = 4 * 1024 * 1024
QUEUE_MAX = 1024


class UserStream:
    """One per account. ``private_url``: up to ``/private``. ``on_fault(error)``: an attempt to get a key or to connect failed; the attempts
    go on, but a Fatal one will not get better. ``asset``: whose balance is the wallet. Callbacks must not block."""

    def __init__(self, rest: Rest, private_url: str, *, on_event: Callable[[UserEvent], None], on_state: Callable[[bool], None],
                 on_fault: Callable[[AegisError], None] = lambda error: None, asset: str = "USDT", keep_alive_s: float = KEEP_ALIVE_S,
                 lifetime_s: float = LIFETIME_S) -> None:
        self._rest = rest
        self._url = private_url.rstrip("/")
        self._on_event = on_event
        self._on_state = on_state
        self._on_fault = on_fault
        self._asset = asset
        self._keep_alive_s = keep_alive_s
        self._lifetime_s = lifetime_s
        self._chance = unseeded()
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self._complaints = Throttle(60.0)
        self._last_event_ns = 0
        self._counts = dict.fromkeys(("events", "ignored", "unknown", "rubbish", "connects", "losses", "renewals", "keys", "keep_alives"),
                                     0)
        self.is_up = False

    def start(self) -> asyncio.Task[None]:
        """Begin to connect, and keep connected until ``close``. The task ends by itself only with an exception of a callback."""
        assert self._task is None, "started twice"
        self._task = asyncio.get_running_loop().create_task(self._keep_connected(), name="user-stream")
        return self._task

    async def close(self) -> None:
        """Disconnect. The listen key is left to expire: another copy of the program may be using it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def restart(self, reason: str) -> None:
        """Replace the connection: the owner saw that it misses events."""
        warn("User stream is replaced", reason=reason)
        if self._socket is not None:
            self._socket.transport.abort()

    def statistics(self) -> dict[str, int | float]:
        age_s = (monotonic_ns() - self._last_event_ns) / 1e9 if self._last_event_ns else -1.0
        return {**self._counts, "up": int(self.is_up), "last_event_age_s": age_s}

    # -- one connection after the other ----------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            start_ns = monotonic_ns()
            pause_s = 0.0
            try:
                await self._one_connection()
            except AegisError as error:
                self._on_fault(error)
                if failures in (0, 10) or failures % 100 == 99:
                    warn(f"User stream: {error}", attempts=failures + 1)
                pause_s = float(error.fields.get("retry_after_s") or 0.0)
            failures = 0 if monotonic_ns() - start_ns > STABLE_S * 1e9 else failures + 1
            backoff_s = min(BACKOFF_S_MAX, 0.1 * 2.0 ** min(failures, 10)) * self._chance.uniform(0.5, 1.0)
            await asyncio.sleep(max(pause_s, backoff_s))

    async def _one_connection(self) -> None:
        """From a fresh key to the end of the socket. Returns when it has to be replaced; raises AegisError where it could not be made."""
        key = await self._listen_key()
        socket = await self._open(key)
        self._socket = socket
        self._counts["connects"] += 1
        keep_alive = asyncio.create_task(self._keep_alive(key, socket), name="listen-key")
        try:
            self._set_state(True)
            await self._read(socket)
        finally:
            keep_alive.cancel()
            self._socket = None
            self._set_state(False)
            socket.transport.abort()
            await asyncio.wait([keep_alive])

    async def _listen_key(self) -> str:
        answer = await self._rest.send("POST", LISTEN_KEY_PATH, weight=1, signed=False, priority=Priority.PROTECT)
        key = answer.get("listenKey") if isinstance(answer, dict) else None
        if not isinstance(key, str) or not key:
            raise Retryable("the venue's answer holds no listen key", status=200, code=0)
        hide([key])
        self._counts["keys"] += 1
        return key

    async def _open(self, key: str) -> ClientConnection:
        url = f"{self._url}/ws?listenKey={key}&events={'/'.join(EVENTS)}"
        tls: dict[str, Any] = {"ssl": context} if (context := tls_for(url)) else {}
        try:
            return await connect(url, compression=None, proxy=proxy_for(url), open_timeout=CONNECT_S, ping_interval=PING_S, ping_timeout=PING_S,
                                 close_timeout=1.0, max_size=FRAME_MAX, max_queue=QUEUE_MAX, user_agent_header=None, **tls)
        except InvalidStatus as error:
            raise to_error(error.response.status_code, 0, _text(error.response.body), write=False) from error
        except (WebSocketException, OSError, TimeoutError) as error:
            raise from_transport(error, sent=False, write=False) from error

    async def _read(self, socket: ClientConnection) -> None:
        """Events until the socket ends, the key expires, or the connection is old."""
        with suppress(ConnectionClosed):
            try:
                async with asyncio.timeout(self._lifetime_s * self._chance.uniform(0.97, 1.0)):
                    while self._received(await socket.recv(decode=False)):
                        pass
                return
            except TimeoutError:
                self._counts["renewals"] += 1
                return
        self._counts["losses"] += 1

    def _received(self, frame: bytes) -> bool:
        """Tell the owner of one frame. False where the connection is of no more use."""
        try:
            event = decode_event(frame, self._asset)
        except UnknownEvent as error:
            self._counts["unknown"] += 1
            self._complain(f"User stream: unknown event {error}")
            return True
        except (msgspec.DecodeError, ValueError) as error:
            self._counts["rubbish"] += 1
            self._complain(f"User stream: a frame that cannot be read ({type(error).__name__}: {error})")
            return True
        self._last_event_ns = monotonic_ns()
        if isinstance(event, KeyExpired):
            warn("User stream: the listen key expired, connecting again")
            return False
        if event is None:
            self._counts["ignored"] += 1
        else:
            self._counts["events"] += 1
            self._on_event(event)
        return True

    async def _keep_alive(self, key: str, socket: ClientConnection) -> None:
        """Extend the key's life; where it is gone, end the socket, so that a new one is made with a new key."""
        pause_s = self._keep_alive_s
        while True:
            await asyncio.sleep(pause_s * self._chance.uniform(0.95, 1.0))
            try:
                answer = await self._rest.send("PUT", LISTEN_KEY_PATH, weight=1, signed=False, priority=Priority.PROTECT)
            except AegisError as error:
                if code_of(error) == LISTEN_KEY_GONE:
                    socket.transport.abort()
                    return
                warn(f"User stream: the listen key was not renewed: {error}")
                pause_s = min(KEEP_ALIVE_RETRY_S, self._keep_alive_s)
                continue
            self._counts["keep_alives"] += 1
            pause_s = self._keep_alive_s
            if isinstance(answer, dict) and answer.get("listenKey", key) != key:
                socket.transport.abort()
                return

    # -- small things ----------------------------------------------------------------------------------------------------------------

    def _set_state(self, up: bool) -> None:
        self.is_up = up
        if up:
            lifecycle("User stream connected")
        self._on_state(up)

    def _complain(self, text: str) -> None:
        if self._complaints.due(monotonic_ns()):
            warn(text)


def _text(body: bytes | bytearray | memoryview | None) -> str:
    return bytes(body or b"")[:400].decode("utf-8", "replace")
