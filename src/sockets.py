"""Market-data sockets: how connections live, and which streams they carry.

A *shard* is a set of streams of one route, which may grow and shrink; it always wants one *link* (a connection), and for a moment two while
it renews it. The shard's state is a table; one door changes it. Links deliver into a ``Sink``.

Invariants
  * A refused or lost link is dialled again with back-off, for ever.
  * Renewal makes no hole and no disorder: the new link's frames are kept until the old link has ended, and then let in.
  * Streams that begin or end are asked for on every open link of the shard; nothing that flows is dialled anew for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from picows import WSError, ws_connect

from src.clock import monotonic_ns, unseeded
from src.config import proxy_for, tls_for
from src.error_handler import info, warn
from src.links import FRAME_BYTES_MAX, Carrier, Link, MarketLink, PublicLink, Receiver, Route, why_ended

READ_BUFFER_BYTES = 256 * 1024
SUBSCRIBE_NAMES = 50
SUBSCRIBE_EVERY_S = 0.15
"""Less than the venue's ten messages a second, pongs included."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long sockets are waited for; wall seconds. ``renew_s``: before the venue's 24 h.

    ``mute_s``: a market link without a frame is in question (a public one after three times that). ``silent_s``: so is a stream, from when
    it was asked for. ``lag_s``: what has been seen elsewhere must be here by then.
    """

    connect_s: float = 10.0
    renew_s: float = 23 * 3600.0
    overlap_s: float = 1.0
    silent_s: float = 30.0
    mute_s: float = 10.0
    lag_s: float = 5.0
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
    (_S.CONNECTING, _E.HOLED): _S.CONNECTING,  # a symbol that begins is in a gap until its stream is asked for
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


MakeLink = Callable[[Receiver, Carrier, bool], Link]


def make_link(sink: Receiver, carrier: Carrier, hold: bool) -> Link:
    """The connection that a carrier's route needs."""
    return (MarketLink if carrier.route is Route.MARKET else PublicLink)(sink, carrier, hold)


class Sink(Receiver, Protocol):
    """Where links and shards deliver."""

    def subscribed(self, shard: Shard) -> None:
        """The shard has become LIVE."""

    def cut(self, shard: Shard) -> None:
        """The shard had an open link, and has lost it."""


@dataclass(frozen=True, slots=True)
class Streams:
    """What one shard carries at first. ``names``: stream name → symbol index; ``extra``: names that belong to no single symbol.

    ``keys``, ``mark_keys``: symbol → first word of its rows.
    """

    route: Route
    url: str
    names: Mapping[str, int]
    extra: tuple[str, ...]
    keys: Mapping[str, int]
    mark_keys: Mapping[str, int]


MARKS = -1
"""In the place of a symbol: the stream of mark prices that lets a market shard's time pass, the first of its ``extra``."""


class Shard:
    """A set of streams and the task that keeps a link for it. ``stream``: names by symbol index. ``event_ms``: newest venue time shown;
    ``mark_ns``: when a mark price last came."""

    def __init__(self, sink: Sink, streams: Streams, patience: Patience, make: MakeLink = make_link) -> None:
        self._sink = sink
        self._make_link = make
        self._url = streams.url
        self._extra = streams.extra
        self._patience = patience
        self.route, self.keys, self.mark_keys = streams.route, dict(streams.keys), dict(streams.mark_keys)
        self.stream = {index: name for name, index in streams.names.items()}
        self.state = SocketState.IDLE
        self.link: Link | None = None
        self.event_ms = self.mark_ns = 0
        self.gapped = 0
        """How many of its symbols are in a gap."""
        self.requests: deque[tuple[str, str]] = deque()
        """(SUBSCRIBE or UNSUBSCRIBE, stream name) that wait to be sent."""
        self.silent: dict[int, int] = {}
        """Symbols whose stream is mute, and how often it was found so."""
        self._asked_ns: dict[int, int] = {}
        self._next: Link | None = None
        self._chance = unseeded()

    @property
    def members(self) -> list[int]:
        """Symbol indices."""
        return sorted(self.stream)

    @property
    def ticks(self) -> bool:
        return bool(self._extra)

    def name_of(self, index: int) -> str:
        """Of a symbol's stream, or of MARKS."""
        return self._extra[0] if index == MARKS else self.stream[index]

    @property
    def size(self) -> int:
        """Streams on the socket."""
        return len(self.stream) + len(self._extra)

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

    # streams

    def add(self, index: int, name: str, symbol: str, key: int) -> None:
        """One more stream from now on."""
        self.stream[index], self.keys = name, {**self.keys, symbol: key}  # anew: links tell by that that they changed
        self.requests.append(("SUBSCRIBE", name))

    def remove(self, index: int) -> None:
        """This stream ends. What is still on its way is taken."""
        self.requests.append(("UNSUBSCRIBE", self.stream.pop(index)))
        self._asked_ns.pop(index, None)
        self.silent.pop(index, None)

    def tick_by(self, name: str) -> None:
        """Let this stream of mark prices take the place of the one in MARKS."""
        self.requests += [("UNSUBSCRIBE", self._extra[0]), ("SUBSCRIBE", name)]
        self._extra = (name, *self._extra[1:])
        self._asked_ns.pop(MARKS, None)
        self.silent.pop(MARKS, None)

    def ask_again(self, indices: Sequence[int]) -> None:
        """The venue may have forgotten the streams of these symbols."""
        names = [self.name_of(index) for index in indices]
        self.requests.extend(("UNSUBSCRIBE", name) for name in names)
        self.requests.extend(("SUBSCRIBE", name) for name in names)
        for index in indices:
            self._asked_ns.pop(index, None)

    def since_ns(self, index: int) -> int:
        """When the symbol's stream was last asked for on the link that carries it; 0 while it is not."""
        return self._asked_ns.get(index, 0) if self.flowing else 0

    def _all(self) -> list[tuple[int, str]]:
        """Every stream that is judged."""
        return [*self.stream.items(), *((MARKS, name) for name in self._extra[:1])]

    def send_requests(self) -> list[int]:
        """What waits, at most two chunks at a time: call it once a second. Returns the symbols whose streams were asked for."""
        links = [link for link in (self.link, self._next) if link is not None and link.transport is not None and not link.closed.is_set()]
        if not self.flowing or not links:
            return []
        asked: set[str] = set()
        for _ in range(2):
            names: list[str] = []
            method = self.requests[0][0] if self.requests else ""
            while self.requests and self.requests[0][0] == method and len(names) < SUBSCRIBE_NAMES:
                names.append(self.requests.popleft()[1])
            for link in links if names else ():
                link.subscribe(method, names)
            asked = asked | set(names) if method == "SUBSCRIBE" else asked - set(names)
        found = [index for index, name in self._all() if name in asked] if asked else []
        self._asked_ns |= dict.fromkeys(found, monotonic_ns())
        return found

    # life

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
                link = self.link or link
            self.on(SocketEvent.LOST)
            await why_ended(link)
            if link.transport is not None:
                self.requests.clear()
                self._sink.cut(self)
            lived_ns = link.last_frame_ns - link.opened_ns
            tries = 0 if lived_ns > self._patience.mute_s * 1e9 else tries
            low, high = self._patience.backoff_s
            await asyncio.sleep(min(high, low * 2.0**tries) * self._chance.uniform(0.5, 1.0))
            tries = min(tries + 1, 16)

    async def _dial(self, hold: bool) -> Link:
        """A link with every stream acknowledged, or one that says why it was ``refused``. A held one leaves the shard's state alone."""
        link = self._make_link(self._sink, self, hold)
        patience_s = self._patience.connect_s
        try:
            async with asyncio.timeout(patience_s + len(self.stream) / SUBSCRIBE_NAMES * SUBSCRIBE_EVERY_S):
                await ws_connect(lambda: link, self._url, websocket_handshake_timeout=patience_s, enable_auto_pong=False,
                                 max_frame_size=FRAME_BYTES_MAX, read_buffer_init_size=READ_BUFFER_BYTES, max_redirects=0,
                                 proxy=proxy_for(self._url), ssl_context=tls_for(self._url))
                if link.transport is None:
                    raise WSError("closed during the handshake")  # which the library takes for a connection that was made
                if hold:
                    self._next = link
                else:
                    self.link = link
                    self.on(SocketEvent.OPENED)
                await self._subscribe(link)
                await link.answered.wait()
        except (WSError, OSError, TimeoutError) as error:
            link.refused = f"{type(error).__name__} {error}"
        if link.closed.is_set() and not link.refused:
            link.refused = "closed while subscribing"
        if link.refused:
            warn("market stream refused", route=self.route.value, url=self._url, reason=link.refused)
            link.hang_up()
        return link

    async def _subscribe(self, link: Link) -> None:
        """What begins meanwhile is asked for by itself, and what has ended meanwhile is not asked for."""
        members, names = [index for index, _ in self._all()], [*self.stream.values(), *self._extra]
        for start in range(0, len(names), SUBSCRIBE_NAMES):
            if start:
                await asyncio.sleep(SUBSCRIBE_EVERY_S)
            if link.closed.is_set():
                return
            wanted = {*self.stream.values(), *self._extra}
            if part := [name for name in names[start:start + SUBSCRIBE_NAMES] if name in wanted]:
                link.subscribe("SUBSCRIBE", part)
        if not names:
            link.answered.set()  # nothing is asked for
        self._asked_ns |= dict.fromkeys([index for index in members if index == MARKS or index in self.stream], monotonic_ns())

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
        try:
            if fresh.refused or old.closed.is_set():
                return False
            await asyncio.sleep(self._patience.overlap_s)
            if fresh.closed.is_set():
                return False
            old.hang_up()
            await old.closed.wait()
            if not self.flowing:
                return False  # somebody has hung up meanwhile
            self.link = fresh
        finally:
            self._next = None
            if self.link is not fresh:
                fresh.hang_up()
        await why_ended(old)
        fresh.admit()
        info("socket renewed", route=self.route.value, streams=len(self.stream))
        return True

    def hang_up(self) -> None:
        self.on(SocketEvent.HANG_UP)
        if self.link is not None:
            self.link.hang_up()

    def is_mute(self, now_ns: int) -> bool:
        """Connected, and not a usable frame, though some are asked for: a socket can stay like that for ever."""
        if not self.size:
            return False
        patience_s = self._patience.mute_s * (1.0 if self.route is Route.MARKET else 3.0)
        return self.flowing and self.link is not None and now_ns - self.link.last_frame_ns > patience_s * 1e9
