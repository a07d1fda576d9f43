"""One market-data connection: frames of a route decoded, staged as rows, and flushed once per socket read.

The frames of a read are read by one kernel (``wire``), in order; what it declines is decoded by itself, in its place.

Invariants
  * Nothing that a server sends ends the process: what cannot be used is rubbish, counted by kind by the receiver.
  * Everything that comes in one read is flushed in that read (so pings are answered here: the library would swallow the read's last frame).
  * A frame longer than a control frame may be, and whole, is a message. (Asking the library for a frame's kind takes longer than reading it.)
  * A held link keeps its frames and lets them in later, in their order.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgspec
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport

from src.clock import monotonic_ns
from src.conflate import MARK_ROW, QUOTE_ROW, ROW_BYTES, ROWS_MAX, TRADE_ROW, Staged, staging
from src.error_handler import failure, info
from src.venue.messages import AggTrade, ContractInfo, MarkPrice, decode_market, decode_public
from src.wire import frames_in, names_table, read_rows, scratch, text_of

FRAME_BYTES_MAX = 16 * 1024 * 1024
HELD_FRAMES_MAX = 200_000
CONTROL_BYTES_MAX = 125
RUBBISH = (msgspec.DecodeError, KeyError, ValueError, OverflowError, RecursionError, struct.error)


class Route(Enum):
    MARKET = "market"
    PUBLIC = "public"


class Carrier(Protocol):
    """Whose connection it is. ``keys``, ``mark_keys``: symbol → first word of its rows; ``keys`` is another mapping when it has changed.
    ``mark_ns``: when a mark price last came."""

    mark_ns: int

    @property
    def route(self) -> Route: ...

    @property
    def keys(self) -> Mapping[str, int]: ...

    @property
    def mark_keys(self) -> Mapping[str, int]: ...


class Receiver(Protocol):
    """Where links deliver. ``carrier`` is what the link was made for."""

    frames: int

    def flush(self, carrier: Any, staged: Staged, rows: int, received_ns: int, event_ms: int) -> None:
        """Rows of one read; ``event_ms``: event time of the last."""

    def bad(self, error: Exception, size: int) -> None:
        """Rubbish of that many bytes."""

    def contract(self, event: ContractInfo) -> None:
        """A contract changed its status or its delivery date, or is new."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Stands for a market event that is kept for later: neither data nor an answer that anyone waits for."""

    data: None = None
    id: int = 0
    code: None = None


_KEPT = _Kept()


class Link(WSListener):  # type: ignore[misc]
    """A connection's frames, staged and flushed once per read. With ``hold`` they are only kept, to be let in by ``admit``."""

    def __init__(self, sink: Receiver, carrier: Carrier, hold: bool) -> None:
        self._sink = sink
        self._carrier = carrier
        self._keys = carrier.keys
        self._memory, self._staged = staging()
        self._trades = carrier.route is Route.MARKET
        self._names, self._values = names_table(self._keys), scratch()
        self._decoder: Callable[[bytes], Any] = decode_market if carrier.route is Route.MARKET else decode_public
        self._held_back = hold
        self._plain = not hold
        """Whether whole messages may wait for the kernel."""
        self._frames: list[bytes] = []
        self._decode: Callable[[bytes], Any] = self._keep if hold else self._decoder
        self._held: list[bytes] = []
        self._parts: list[bytes] = []
        self._count = 0
        self._received_ns = 0
        self._event_ms = 0
        self._unanswered: set[int] = set()
        self._ids = 0
        self.opened_ns = self.last_frame_ns = monotonic_ns()
        self.transport: WSTransport | None = None
        self.answered = asyncio.Event()
        self.closed = asyncio.Event()
        self.refused = ""

    def take(self, data: Any, received_ns: int) -> None:
        """Stage one event of any kind that the route carries; who calls it flushes."""
        raise NotImplementedError

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if self._plain and frame.fin and len(payload) > CONTROL_BYTES_MAX:
            if not self._frames and not self._count:
                self._received_ns = monotonic_ns()
            self._frames.append(payload)
        else:
            self._read()
            self._slow(transport, frame, payload)
        if frame.last_in_buffer or len(self._frames) == ROWS_MAX:
            self.flush()

    def flush(self) -> None:
        """Everything that waits or is staged goes to the sink."""
        self._read()
        self._deliver()

    def _deliver(self) -> None:
        count, event_ms = self._count, self._event_ms
        if count:
            self._count = self._event_ms = 0
            self.last_frame_ns = self._received_ns
            self._sink.flush(self._carrier, self._staged, count, self._received_ns, event_ms)

    def _read(self) -> None:
        """Stage the frames that wait: by the kernel, but for those that it declines."""
        frames = self._frames
        waiting = len(frames)
        if not waiting:
            return
        self._frames = []
        if self._carrier.keys is not self._keys:
            self._keys = self._carrier.keys
            self._names = names_table(self._keys)
        letters, at, taken = text_of(frames), 0, 0
        plain = frames_in(letters) == waiting
        while taken < waiting:
            if plain:
                at, count, event_ms = read_rows(letters, self._names, self._values, self._staged, self._trades, at, self._count)
                taken, self._count, self._event_ms = taken + count - self._count, count, event_ms or self._event_ms
            if self._count == ROWS_MAX:
                self._deliver()
            elif taken < waiting:
                self._take_bytes(frames[taken], self._received_ns)
                at, taken = at + len(frames[taken]) + 1, taken + 1

    def stage(self, packer: struct.Struct, row: tuple[Any, ...], event_ms: int, received_ns: int) -> None:
        packer.pack_into(self._memory, self._count * ROW_BYTES, *row)
        if self._count == 0:
            self._received_ns = received_ns
        self._event_ms = event_ms
        self._count += 1
        if self._count == ROWS_MAX:
            self._deliver()

    def _slow(self, transport: WSTransport, frame: WSFrame, payload: bytes) -> None:
        """Short messages, control frames, fragments, and everything while the link is held."""
        kind = frame.msg_type
        if kind == WSMsgType.TEXT and frame.fin:
            self._take_bytes(payload, monotonic_ns())
        elif kind in (WSMsgType.TEXT, WSMsgType.CONTINUATION):
            self._fragment(frame, payload)
        elif kind == WSMsgType.PING:
            transport.send_pong(payload)
        elif kind == WSMsgType.CLOSE:
            transport.disconnect()
        elif kind != WSMsgType.PONG:
            self._sink.bad(msgspec.DecodeError("not text"), len(payload))

    def _fragment(self, frame: WSFrame, payload: bytes) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._parts.clear()
        self._parts.append(payload)
        self._plain = False
        if sum(map(len, self._parts)) > FRAME_BYTES_MAX:
            self._parts.clear()
            self._plain = not self._held_back
            self._sink.bad(msgspec.DecodeError("a message of too many bytes"), FRAME_BYTES_MAX)
        elif frame.fin:
            whole = b"".join(self._parts)
            self._parts.clear()
            self._plain = not self._held_back
            self._take_bytes(whole, monotonic_ns())

    def _take_bytes(self, payload: bytes, received_ns: int) -> None:
        try:
            message = self._decode(payload)
            if message.data is None:
                self._answer(message)
            else:
                self.take(message.data, received_ns)
        except RUBBISH as error:
            self._sink.bad(error, len(payload))

    def _answer(self, message: Any) -> None:
        """A control answer. An error does not reliably say what it answers: it ends the link."""
        if message.code is not None and message.code != 0:
            self.refused = f"{message.code} {message.msg}"
            self.answered.set()
        self._unanswered.discard(message.id)
        if not self._unanswered:
            self.answered.set()

    # life

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.flush()
        self.closed.set()
        self.answered.set()

    def subscribe(self, method: str, names: Sequence[str]) -> None:
        """SUBSCRIBE or UNSUBSCRIBE; ``answered`` is set once every such request has been answered."""
        assert self.transport is not None, "subscribed before it was open"
        self._ids += 1
        self._unanswered.add(self._ids)
        self.answered.clear()
        self.transport.send(WSMsgType.TEXT, msgspec.json.encode({"method": method, "params": names, "id": self._ids}))

    def hang_up(self) -> None:
        """Whatever the other side does, the link ends now."""
        if self.transport is not None:
            self.transport.disconnect(graceful=False)

    def _keep(self, payload: bytes) -> Any:
        """In the decoder's place while the link is held: answers pass, market data are kept."""
        message = self._decoder(payload)
        if message.data is None:
            return message
        self._held.append(payload)
        self.last_frame_ns = monotonic_ns()
        if len(self._held) > HELD_FRAMES_MAX:
            self.hang_up()
        return _KEPT

    def admit(self) -> None:
        """Let in what was kept: the older link has ended, and what both delivered is dropped as duplicates."""
        self._held_back, self._plain, self._decode = False, not self._parts, self._decoder
        held, self._held = self._held, []
        for payload in held:
            self._take_bytes(payload, monotonic_ns())
        self.flush()


class MarketLink(Link):
    """``/market``: aggregate trades, mark prices and contract changes."""

    def take(self, data: Any, received_ns: int) -> None:
        if data.__class__ is AggTrade:
            row = (self._carrier.keys[data.s], data.T, float(data.p), float(data.q), data.m, data.a, data.f, data.l)
            self.stage(TRADE_ROW, row, data.E, received_ns)
        elif data.__class__ is MarkPrice:
            self._take_mark(data, received_ns)
        elif data.__class__ is list:
            ours = sum(self._take_mark(mark, received_ns) for mark in data)
            self._sink.frames += 1 - ours  # one frame, whose rows the sink counts as frames
        elif data.__class__ is ContractInfo:
            self._sink.frames += 1
            self._sink.contract(data)

    def _take_mark(self, mark: MarkPrice, received_ns: int) -> bool:
        """All symbols of the venue come in one frame: who is not ours is passed over, and who is rubbish spoils only himself."""
        key = self._carrier.mark_keys.get(mark.s)
        if key is None:
            return False
        try:
            row = (key, mark.E, float(mark.p), float(mark.i), float(mark.r or 0), float(mark.T))
            self.stage(MARK_ROW, row, mark.E, received_ns)
            self._carrier.mark_ns = received_ns
        except RUBBISH as error:
            self._sink.bad(error, 0)
            return False
        return True


class PublicLink(Link):
    """``/public``: best quotes."""

    def take(self, data: Any, received_ns: int) -> None:
        row = (self._carrier.keys[data.s], data.T, float(data.b), float(data.a), float(data.B), float(data.A))
        self.stage(QUOTE_ROW, row, data.E, received_ns)


async def why_ended(link: Link) -> None:
    """Say why a connection ended, where that was no wish of ours. An error of our own is logged and survived: no data can be lost by it."""
    try:
        if link.transport is not None:
            await link.transport.wait_disconnected()
    except (WSError, OSError) as error:
        info("market stream broke", reason=f"{type(error).__name__} {error}")
    except Exception as error:
        failure("a market stream was dropped by a fault of ours", error)
