"""Market-data sockets: what a connection is, how it lives, and how its frames become staged rows.

A *shard* is a fixed set of streams of one route; it always wants one *link* (a connection), and for a moment two while it renews it. The
shard's state is a table; one door changes it. A link stages its rows and flushes them once per socket read into a ``Sink``.

Invariants
  * Nothing that a server sends ends the process: rubbish is counted by kind, a refused or lost link is dialled again with back-off.
  * Renewal makes no hole and no disorder: the new link's frames are kept until the old link has ended, and then let in.
  * Everything that comes in one read is flushed in that read (so pings are answered here: the library would swallow the read's last frame).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

import msgspec
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from src.clock import monotonic_ns, unseeded
from src.conflate import MARK_ROW, QUOTE_ROW, ROW_BYTES, ROWS_MAX, TRADE_ROW, Staged, staging
from src.error_handler import failure, info, warn
from src.venue.messages import AggTrade, MarkPrice, decode_market, decode_public

FRAME_BYTES_MAX = 16 * 1024 * 1024
READ_BUFFER_BYTES = 256 * 1024
SUBSCRIBE_NAMES = 50
SUBSCRIBE_EVERY_S = 0.15
"""Less than the venue's ten messages a second, pongs included."""
HELD_FRAMES_MAX = 200_000
RUBBISH = (msgspec.DecodeError, KeyError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long sockets are waited for; wall seconds. ``first_data_s``: a stream without a frame since the link was opened is silent.

    ``mute_s``: a market link without any frame is hung up (a public one after three times that). ``renew_s``: before the venue's 24 h.
    """

    connect_s: float = 10.0
    renew_s: float = 23 * 3600.0
    overlap_s: float = 1.0
    first_data_s: float = 120.0
    mute_s: float = 10.0
    backoff_s: tuple[float, float] = (0.2, 30.0)


class SocketState(Enum):
    IDLE = auto()
    CONNECTING = auto()
    SUBSCRIBING = auto()
    LIVE = auto()
    GAPPED = auto()
    """Live, and some of its symbols wait for back-fill."""
    CLOSING = auto()


class SocketEvent(Enum):
    DIAL = auto()
    OPENED = auto()
    SUBSCRIBED = auto()
    HOLED = auto()
    HEALED = auto()
    HANG_UP = auto()
    """We end it: it is mute."""
    LOST = auto()


_S, _E = SocketState, SocketEvent
NEXT: dict[tuple[SocketState, SocketEvent], SocketState] = {
    (_S.IDLE, _E.DIAL): _S.CONNECTING,
    (_S.IDLE, _E.HEALED): _S.IDLE,  # REST may finish while the socket is down
    (_S.CONNECTING, _E.OPENED): _S.SUBSCRIBING,
    (_S.CONNECTING, _E.HEALED): _S.CONNECTING,
    (_S.CONNECTING, _E.LOST): _S.IDLE,
    (_S.SUBSCRIBING, _E.SUBSCRIBED): _S.LIVE,
    (_S.SUBSCRIBING, _E.HOLED): _S.SUBSCRIBING,  # data flow before the last acknowledgement
    (_S.SUBSCRIBING, _E.HEALED): _S.SUBSCRIBING,
    (_S.SUBSCRIBING, _E.LOST): _S.IDLE,
    (_S.LIVE, _E.HOLED): _S.GAPPED,
    (_S.LIVE, _E.HANG_UP): _S.CLOSING,
    (_S.LIVE, _E.LOST): _S.IDLE,
    (_S.GAPPED, _E.HOLED): _S.GAPPED,
    (_S.GAPPED, _E.HEALED): _S.LIVE,
    (_S.GAPPED, _E.HANG_UP): _S.CLOSING,
    (_S.GAPPED, _E.LOST): _S.IDLE,
    (_S.CLOSING, _E.HOLED): _S.CLOSING,  # the last read of a socket that is being closed
    (_S.CLOSING, _E.HEALED): _S.CLOSING,
    (_S.CLOSING, _E.LOST): _S.IDLE,
}


def next_state(state: SocketState, event: SocketEvent) -> SocketState | None:
    """None: this event means nothing in that state."""
    return NEXT.get((state, event))


class Route(Enum):
    MARKET = "market"
    PUBLIC = "public"


class Sink(Protocol):
    """Where links and shards deliver."""

    frames: int

    def flush(self, shard: Shard, staged: Staged, rows: int, received_ns: int, last: Any) -> None:
        """Rows of one read; ``last`` is the newest event among them."""

    def bad(self, error: Exception, size: int) -> None:
        """Rubbish of that many bytes."""

    def subscribed(self, shard: Shard) -> None:
        """The shard has become LIVE."""

    def cut(self, shard: Shard) -> None:
        """The shard had an open link, and has lost it."""


# --- one connection --------------------------------------------------------------------------------------------------------------------

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


_quick_trade: Callable[[bytes], Any] = msgspec.json.Decoder(_TradeFrame, strict=False).decode
_quick_quote: Callable[[bytes], Any] = msgspec.json.Decoder(_QuoteFrame, strict=False).decode


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

    def __init__(self, sink: Sink, shard: Shard, hold: bool) -> None:
        self._sink = sink
        self._shard = shard
        self._keys = shard.keys
        self._memory, self._staged = staging()
        self._quick_decoder = _quick_trade if shard.route is Route.MARKET else _quick_quote
        self._decoder: Callable[[bytes], Any] = decode_market if shard.route is Route.MARKET else decode_public
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
            self._sink.flush(self._shard, self._staged, count, self._received_ns, self._last)

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
    """``/market``: aggregate trades on the quick path, mark prices beside it."""

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

    def _take_mark(self, mark: MarkPrice, received_ns: int) -> bool:
        """All symbols of the venue come in one frame: who is not ours is passed over, and who is rubbish spoils only himself."""
        key = self._shard.mark_keys.get(mark.s)
        if key is None:
            return False
        try:
            row = (key, mark.E, float(mark.p), float(mark.i), float(mark.r or 0), float(mark.T))
            self.stage(MARK_ROW, row, mark, received_ns)
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


async def _why_ended(link: Link) -> None:
    """Say why a connection ended, where that was no wish of ours. An error of our own is logged and survived: no data can be lost by it."""
    try:
        if link.transport is not None:
            await link.transport.wait_disconnected()
    except (WSError, OSError) as error:
        info("market stream broke", reason=f"{type(error).__name__} {error}")
    except Exception as error:
        failure("a market stream was dropped by a fault of ours", error)


# --- a set of streams that always wants a link -----------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Streams:
    """What one shard carries. ``names``: stream name → symbol index; ``extra``: names that belong to no single symbol.

    ``keys``, ``mark_keys``: symbol → first word of its rows.
    """

    route: Route
    url: str
    names: Mapping[str, int]
    extra: tuple[str, ...]
    keys: Mapping[str, int]
    mark_keys: Mapping[str, int]


class Shard:
    """A set of streams and the task that keeps a link for it. ``event_ms``: newest venue time it has shown."""

    def __init__(self, sink: Sink, streams: Streams, patience: Patience) -> None:
        self._sink = sink
        self._streams = streams
        self._patience = patience
        self.route, self.keys, self.mark_keys = streams.route, dict(streams.keys), dict(streams.mark_keys)
        self.members = sorted(streams.names.values())
        self.stream = {index: name for name, index in streams.names.items()}
        self.state = SocketState.IDLE
        self.link: Link | None = None
        self.event_ms = 0
        self.gapped = 0
        """How many of its symbols are in a gap."""
        self.silent: set[int] = set()
        self.again: deque[str] = deque()
        """Streams to be subscribed once more."""
        self._chance = unseeded()

    @property
    def flowing(self) -> bool:
        return self.state in (SocketState.LIVE, SocketState.GAPPED)

    def on(self, event: SocketEvent) -> None:
        """The one door that changes the state."""
        state = next_state(self.state, event)
        if state is None:
            warn("socket event refused", route=self.route.value, state=self.state.name, event=event.name)
        elif state is not self.state:
            info("socket", route=self.route.value, was=self.state.name, now=state.name, event=event.name, streams=len(self.stream))
            self.state = state

    async def run(self) -> None:
        """For ever: connect, stay until the link is lost, back off."""
        tries = 0
        while True:
            self.on(SocketEvent.DIAL)
            link = await self._dial(hold=False)
            if not link.refused:
                self.on(SocketEvent.SUBSCRIBED)
                self._sink.subscribed(self)
                await self._stay()
            self.on(SocketEvent.LOST)
            await _why_ended(link)
            if link.transport is not None:
                self._sink.cut(self)
            lived_ns = link.last_frame_ns - link.opened_ns
            tries = 0 if lived_ns > self._patience.mute_s * 1e9 else tries
            low, high = self._patience.backoff_s
            await asyncio.sleep(min(high, low * 2.0**tries) * self._chance.uniform(0.5, 1.0))
            tries = min(tries + 1, 16)

    async def _dial(self, hold: bool) -> Link:
        """A link with every stream acknowledged, or one that says why it was ``refused``. A held one leaves the shard's state alone."""
        link = (MarketLink if self.route is Route.MARKET else PublicLink)(self._sink, self, hold)
        patience_s = self._patience.connect_s
        try:
            async with asyncio.timeout(patience_s + len(self.stream) / SUBSCRIBE_NAMES * SUBSCRIBE_EVERY_S):
                await ws_connect(lambda: link, self._streams.url, websocket_handshake_timeout=patience_s, enable_auto_pong=False,
                                 max_frame_size=FRAME_BYTES_MAX, read_buffer_init_size=READ_BUFFER_BYTES, max_redirects=0)
                if not hold:
                    self.link = link
                    self.on(SocketEvent.OPENED)
                await self._subscribe(link)
                await link.answered.wait()
        except (WSError, OSError, TimeoutError) as error:
            link.refused = f"{type(error).__name__} {error}"
        if link.closed.is_set() and not link.refused:
            link.refused = "closed while subscribing"
        if link.refused:
            warn("market stream refused", route=self.route.value, url=self._streams.url, reason=link.refused)
            link.hang_up()
        return link

    async def _subscribe(self, link: Link) -> None:
        names = [*self._streams.names, *self._streams.extra]
        for start in range(0, len(names), SUBSCRIBE_NAMES):
            if start:
                await asyncio.sleep(SUBSCRIBE_EVERY_S)
            if link.closed.is_set():
                return
            link.subscribe("SUBSCRIBE", names[start:start + SUBSCRIBE_NAMES])

    async def _stay(self) -> None:
        """Until the link is lost. Before the venue cuts it, a second one takes over."""
        pause_s = self._patience.renew_s * self._chance.uniform(0.9, 1.0)
        while self.link is not None:
            try:
                async with asyncio.timeout(pause_s):  # wait_for of 3.11 may swallow a cancel
                    await self.link.closed.wait()
                return
            except TimeoutError:
                renewed = await self._renew(self.link)
            pause_s = self._patience.renew_s if renewed else min(60.0, self._patience.renew_s)

    async def _renew(self, old: Link) -> bool:
        fresh = await self._dial(hold=True)
        if fresh.refused:
            return False
        try:
            await asyncio.sleep(self._patience.overlap_s)
            if fresh.closed.is_set():
                return False
            old.hang_up()
            await old.closed.wait()
            self.link = fresh
        finally:
            if self.link is not fresh:
                fresh.hang_up()
        await _why_ended(old)
        fresh.admit()
        info("socket renewed", route=self.route.value, streams=len(self.stream))
        return True

    def hang_up(self) -> None:
        self.on(SocketEvent.HANG_UP)
        if self.link is not None:
            self.link.hang_up()

    def is_mute(self, now_ns: int) -> bool:
        """Connected, and not a usable frame: a socket can stay like that for ever."""
        patience_s = self._patience.mute_s * (1.0 if self.route is Route.MARKET else 3.0)
        return self.flowing and self.link is not None and now_ns - self.link.last_frame_ns > patience_s * 1e9

    def judged_since(self, now_ns: int) -> int:
        """Streams without a frame since this moment are silent; 0 while it is too early to say so."""
        if not self.flowing or self.link is None or now_ns - self.link.opened_ns < self._patience.first_data_s * 1e9:
            return 0
        return self.link.opened_ns

    def subscribe_again(self) -> None:
        """At most one chunk at a time: the venue may have forgotten these streams."""
        names = [self.again.popleft() for _ in range(min(len(self.again), SUBSCRIBE_NAMES))]
        if names and self.flowing and self.link is not None:
            self.link.subscribe("UNSUBSCRIBE", names)
            self.link.subscribe("SUBSCRIBE", names)
