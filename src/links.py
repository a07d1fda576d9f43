"""One market-data connection: frames of a route decoded, staged as rows, and flushed once per socket read.

The common event of a route takes a quick path, whose numbers are read as floats in one decode; everything else takes the slow one.

Invariants
  * Nothing that a server sends ends the process: what cannot be used is rubbish, counted by kind by the receiver.
  * Everything that comes in one read is flushed in that read (so pings are answered here: the library would swallow the read's last frame).
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

FRAME_BYTES_MAX = 16 * 1024 * 1024
HELD_FRAMES_MAX = 200_000
RUBBISH = (msgspec.DecodeError, KeyError, ValueError, OverflowError, struct.error)


class Route(Enum):
    MARKET = "market"
    PUBLIC = "public"


class Carrier(Protocol):
    """Whose connection it is. ``keys``, ``mark_keys``: symbol → first word of its rows. ``mark_ns``: when a mark price last came."""

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

    def flush(self, carrier: Any, staged: Staged, rows: int, received_ns: int, last: Any) -> None:
        """Rows of one read; ``last`` is the newest event among them."""

    def bad(self, error: Exception, size: int) -> None:
        """Rubbish of that many bytes."""

    def contract(self, event: ContractInfo) -> None:
        """A contract changed its status or its delivery date, or is new."""


class QuickTrade(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="aggTrade"):
    """What the Feed needs of a venue's ``AggTrade``, its numbers read as floats at once: a third faster than text first."""

    s: str
    a: int
    p: float
    q: float
    f: int
    l: int  # noqa: E741  (the venue's letter)
    T: int
    m: bool
    E: int = 0


class QuickQuote(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="bookTicker"):
    """The same of a ``BookTicker``."""

    s: str
    b: float
    B: float
    a: float
    A: float
    T: int
    E: int = 0


class _TradeFrame(msgspec.Struct, frozen=True, gc=False):
    data: QuickTrade


class _QuoteFrame(msgspec.Struct, frozen=True, gc=False):
    data: QuickQuote


quick_trade: Callable[[bytes], Any] = msgspec.json.Decoder(_TradeFrame, strict=False).decode
quick_quote: Callable[[bytes], Any] = msgspec.json.Decoder(_QuoteFrame, strict=False).decode


def _nothing_quick(payload: bytes) -> Any:
    """In the quick decoder's place while a link is held."""
    raise ValueError("held")


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
        self._quick_decoder = quick_trade if carrier.route is Route.MARKET else quick_quote
        self._decoder: Callable[[bytes], Any] = decode_market if carrier.route is Route.MARKET else decode_public
        self._quick = _nothing_quick if hold else self._quick_decoder
        self._decode: Callable[[bytes], Any] = self._keep if hold else self._decoder
        self._held: list[bytes] = []
        self._parts: list[bytes] = []
        self._count = 0
        self._received_ns = 0
        self._last: Any = None
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

    def flush(self) -> None:
        """Everything staged goes to the sink."""
        count = self._count
        if count:
            self._count = 0
            self.last_frame_ns = self._received_ns
            self._sink.flush(self._carrier, self._staged, count, self._received_ns, self._last)

    def stage(self, packer: struct.Struct, row: tuple[Any, ...], data: Any, received_ns: int) -> None:
        packer.pack_into(self._memory, self._count * ROW_BYTES, *row)
        if self._count == 0:
            self._received_ns = received_ns
        self._last = data
        self._count += 1
        if self._count == ROWS_MAX:
            self.flush()

    def slow(self, transport: WSTransport, frame: WSFrame) -> None:
        """What the quick path could not use: other events, answers, control frames, fragments, and what is really rubbish."""
        kind = frame.msg_type
        if kind == WSMsgType.TEXT and frame.fin:
            self._take_bytes(frame.get_payload_as_bytes())
        elif kind in (WSMsgType.TEXT, WSMsgType.CONTINUATION):
            self._fragment(frame)
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CLOSE:
            transport.disconnect()
        elif kind != WSMsgType.PONG:
            self._sink.bad(msgspec.DecodeError("not text"), frame.payload_size)

    def _fragment(self, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._parts.clear()
        self._parts.append(frame.get_payload_as_bytes())
        if sum(map(len, self._parts)) > FRAME_BYTES_MAX:
            self._parts.clear()
            self._sink.bad(msgspec.DecodeError("a message of too many bytes"), FRAME_BYTES_MAX)
        elif frame.fin:
            whole = b"".join(self._parts)
            self._parts.clear()
            self._take_bytes(whole)

    def _take_bytes(self, payload: bytes) -> None:
        try:
            message = self._decode(payload)
            if message.data is None:
                self._answer(message)
            else:
                self.take(message.data, monotonic_ns())
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
        self._quick, self._decode = self._quick_decoder, self._decoder
        held, self._held = self._held, []
        for payload in held:
            self._take_bytes(payload)
        self.flush()


class MarketLink(Link):
    """``/market``: aggregate trades on the quick path, mark prices and contract changes beside it."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        try:
            trade = self._quick(frame.get_payload_as_bytes()).data
            count = self._count
            if count == 0:
                self._received_ns = monotonic_ns()
            TRADE_ROW.pack_into(self._memory, count * ROW_BYTES, self._keys[trade.s], trade.T, trade.p, trade.q, trade.m, trade.a,
                                trade.f, trade.l)
            self._last = trade
            self._count = count + 1
        except RUBBISH:
            self.slow(transport, frame)
        if frame.last_in_buffer or self._count == ROWS_MAX:
            self.flush()

    def take(self, data: Any, received_ns: int) -> None:
        if data.__class__ is AggTrade:
            row = (self._keys[data.s], data.T, float(data.p), float(data.q), data.m, data.a, data.f, data.l)
            self.stage(TRADE_ROW, row, data, received_ns)
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
            self.stage(MARK_ROW, row, mark, received_ns)
            self._carrier.mark_ns = received_ns
        except RUBBISH as error:
            self._sink.bad(error, 0)
            return False
        return True


class PublicLink(Link):
    """``/public``: best quotes."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        try:
            quote = self._quick(frame.get_payload_as_bytes()).data
            count = self._count
            if count == 0:
                self._received_ns = monotonic_ns()
            QUOTE_ROW.pack_into(self._memory, count * ROW_BYTES, self._keys[quote.s], quote.T, quote.b, quote.a, quote.B, quote.A)
            self._last = quote
            self._count = count + 1
        except RUBBISH:
            self.slow(transport, frame)
        if frame.last_in_buffer or self._count == ROWS_MAX:
            self.flush()

    def take(self, data: Any, received_ns: int) -> None:
        row = (self._keys[data.s], data.T, float(data.b), float(data.a), float(data.B), float(data.A))
        self.stage(QUOTE_ROW, row, data, received_ns)


async def why_ended(link: Link) -> None:
    """Say why a connection ended, where that was no wish of ours. An error of our own is logged and survived: no data can be lost by it."""
    try:
        if link.transport is not None:
            await link.transport.wait_disconnected()
    except (WSError, OSError) as error:
        info("market stream broke", reason=f"{type(error).__name__} {error}")
    except Exception as error:
        failure("a market stream was dropped by a fault of ours", error)
