"""WebSocket connections as the streams and the WS API need them: whole frames, written once, to clients that may be slow.

A server's frame is not masked, so one frame serves every subscriber: it is built once and handed to the transport as it is. What a
client does not read piles up in its transport, up to a bound; past it the client is cut off.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Collection

from aiohttp import WSMsgType, web

from src.clock import SECOND_NS, monotonic_ns
from src.exchange.options import Limits

MESSAGE_MAX = 1 << 17
GOODBYE_S = 1.0
GOING_AWAY = 1001
TEXT, PING, PONG = 0x81, 0x89, 0x8A
POLICY_VIOLATION = 1008


def frame(payload: bytes, head: int = TEXT) -> bytes:
    """One unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


SHORT_MAX = 1024
HEADS = [frame(bytes(size))[:-size or None].decode("latin-1") for size in range(SHORT_MAX)]
"""What stands before a text of so many ASCII characters, as text: many frames are joined first and become bytes in one go."""


class PerSecond:
    """Counts what comes within a second; ``most`` 0 is without end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._window_ns = self._count = 0

    def too_many(self) -> bool:
        """One more has come."""
        now = monotonic_ns()
        if now - self._window_ns >= SECOND_NS:
            self._window_ns, self._count = now, 0
        self._count += 1
        return bool(self._most) and self._count > self._most


class Connection:
    """One client's socket. ``send`` gathers frames; ``flush`` writes them in one go.

    ``api``: as at the WS API, where messages are not counted, pings and pongs are, and no pong but the answer to a ping keeps the connection.
    """

    def __init__(self, limits: Limits, *, api: bool = False) -> None:
        self._limits = limits
        self._api = api
        self._socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=MESSAGE_MAX, timeout=1.0)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self.lag_s = 0.0
        """What is sent arrives this much later, in order; for tests."""
        self._late: deque[tuple[float, bytes]] = deque()
        self._messages = PerSecond(0 if api else limits.messages_per_second)
        self._controls = PerSecond(limits.pings_per_second if api else 0)
        self._pinged = b""
        self._pong_ns = monotonic_ns()
        self._born_ns = monotonic_ns()

    async def open(self, request: web.Request) -> web.WebSocketResponse:
        await self._socket.prepare(request)
        transport = request.transport
        assert isinstance(transport, asyncio.Transport) or transport is not None
        self._transport = transport  # type: ignore[assignment]
        return self._socket

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing() or self._socket.closed

    def send(self, whole_frame: bytes) -> None:
        self._out.append(whole_frame)

    def send_text(self, payload: bytes) -> None:
        """A message of its own, written at once, after what was gathered."""
        self._out.append(frame(payload))
        self.flush()

    def flush(self) -> None:
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        if self.lag_s or self._late:
            self._send_late(data)
        else:
            self._write(data)

    def _send_late(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._late.append((loop.time() + self.lag_s, data))
        if len(self._late) == 1:
            loop.call_at(self._late[0][0], self._catch_up)

    def _catch_up(self) -> None:
        loop = asyncio.get_running_loop()
        while self._late and self._late[0][0] <= loop.time() + 1e-3:
            self._write(self._late.popleft()[1])
        if self._late:
            loop.call_at(self._late[0][0], self._catch_up)

    def _write(self, data: bytes) -> None:
        if self._transport is None or self.closed:
            return
        if self._transport.get_write_buffer_size() > self._limits.send_buffer_bytes:
            self._transport.abort()
            return
        self._transport.write(data)

    def cut(self) -> None:
        """Drop the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self, code: int, reason: bytes = b"") -> None:
        self.flush()
        await self._socket.close(code=code, message=reason)

    def keep_alive(self, ping: bool) -> None:
        """Ping when asked; cut a client that has not answered for long, or has been here for a day."""
        now = monotonic_ns()
        if now - self._pong_ns > self._limits.pong_within_s * SECOND_NS or now - self._born_ns > self._limits.connection_life_s * SECOND_NS:
            self.cut()
        elif ping:
            self._pinged = str(now // 1_000_000).encode()
            self.send(frame(self._pinged, PING))
            self.flush()

    async def messages(self) -> AsyncIterator[str]:
        """Text messages, until the client goes, sends binary, or sends too many in a second."""
        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                if self._messages.too_many():
                    await self.close(POLICY_VIOLATION, b"Too many requests")
                    return
                yield message.data
            elif message.type in (WSMsgType.PING, WSMsgType.PONG):
                if self._controls.too_many():
                    await self.close(POLICY_VIOLATION, b"Too many requests")
                    return
                self._hear(message.type, bytes(message.data))
            elif message.type is WSMsgType.BINARY:
                await self.close(POLICY_VIOLATION, b"Invalid request")
                return

    def _hear(self, kind: WSMsgType, payload: bytes) -> None:
        """A ping is answered; a pong tells that the client lives."""
        if kind is WSMsgType.PING:
            self.send(frame(payload, PONG))
            self.flush()
        elif payload == self._pinged or not self._api:
            self._pong_ns = monotonic_ns()


async def close_all(connections: Collection[Connection]) -> None:
    """The end, said to all at once; who does not read is cut after a moment."""
    if not connections:
        return
    goodbyes = [asyncio.create_task(connection.close(GOING_AWAY)) for connection in connections]
    await asyncio.wait(goodbyes, timeout=GOODBYE_S)
    for connection, goodbye in zip(connections, goodbyes, strict=True):
        if not goodbye.done():
            connection.cut()
            goodbye.cancel()
    await asyncio.gather(*goodbyes, return_exceptions=True)
