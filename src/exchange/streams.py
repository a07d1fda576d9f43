"""Stream subscriptions: routes, control messages, channels, and the private route.

A channel is a stream name with its subscribers. A name that is unknown, or belongs to another route, is acknowledged like any other and
never delivers. Un-routed sockets deliver public streams alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeGuard
from urllib.parse import unquote

import msgspec
from aiohttp import web

from src.clock import seeded
from src.exchange.faults import FRAMES, Kind
from src.exchange.garble import frames_of
from src.exchange.options import Limits
from src.exchange.sockets import HEADS, Connection, close_all, frame
from src.exchange.state import UserEvent
from src.exchange.venue import Venue

PUBLIC, MARKET, PRIVATE, UNROUTED = "public", "market", "private", ""
_PUBLIC_NAME = re.compile(r"!bookTicker|[^@!]+@(bookTicker|trade|depth(5|10|20)?(@(0|100|250|500)ms)?|rpiDepth@500ms)")
_KEY_NAME = re.compile(r"[0-9a-zA-Z]{64}")
_PATH = re.compile(r"(?:/(public|market|private))?/(ws|stream)(?:/(.*))?")
ID_MAX = 64


def route_of(name: str) -> str:
    """The route that a market stream's name belongs to."""
    return PUBLIC if _PUBLIC_NAME.fullmatch(name) is not None else MARKET


class Channel:
    """One stream name and who listens, by mode of framing. ``copies``: so often is every frame sent; 0 is a mute stream."""

    __slots__ = ("_head", "combined", "copies", "name", "raw", "spoil")

    def __init__(self, name: str, copies: int = 1) -> None:
        self.name = name
        self.spoil: Callable[[Channel, bytes], None] | None = None
        self.copies = copies
        self.raw: dict[Connection, None] = {}
        self.combined: dict[Connection, None] = {}
        self._head = b'{"stream":"' + name.encode() + b'","data":'

    def __bool__(self) -> bool:
        return bool(self.raw or self.combined)

    def publish(self, payload: bytes) -> None:
        """Send one payload, or what a fault makes of it."""
        if self.spoil is not None:
            self.spoil(self, payload)
        else:
            self.send(payload)

    def publish_many(self, texts: list[str]) -> None:
        """Payloads in ASCII, the whole of each shorter than ``SHORT_MAX`` with the stream's name around it."""
        if self.spoil is not None:
            for text in texts:
                self.publish(text.encode())
            return
        if not self.copies:
            return
        if self.raw:
            data = "".join([(HEADS[len(text)] + text) * self.copies for text in texts]).encode("latin-1")
            for connection in self.raw:
                connection.send(data)
        if self.combined:
            head, more = self._head.decode(), len(self._head) + 1
            data = "".join([f"{HEADS[len(text) + more]}{head}{text}}}" * self.copies for text in texts]).encode("latin-1")
            for connection in self.combined:
                connection.send(data)

    def send(self, payload: bytes) -> None:
        """Framed once for each mode."""
        if self.raw:
            whole = frame(payload) * self.copies
            for connection in self.raw:
                connection.send(whole)
        if self.combined:
            whole = frame(self._head + payload + b"}") * self.copies
            for connection in self.combined:
                connection.send(whole)


class Listener:
    """What one connection has asked for. ``keys``: its listen keys, each with the event names it wants (None: all)."""

    def __init__(self, connection: Connection, route: str, combined: bool) -> None:
        self.connection = connection
        self.route = route
        self.combined = combined
        self.names: dict[str, None] = {}
        self.keys: dict[str, frozenset[str] | None] = {}


def _error(code: int, msg: str, request_id: object = None) -> bytes:
    body: dict[str, object] = {"code": code, "msg": msg}
    if isinstance(request_id, int | str):
        body["id"] = request_id
    return msgspec.json.encode(body)


def _is_id(value: object) -> TypeGuard[int | str]:
    """Unsigned integers, as documented, and text, which the venue's own client sends."""
    if isinstance(value, str):
        return len(value) <= ID_MAX
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64


class Streams:
    """All stream sockets of the exchange."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._limits: Limits = venue.options.limits
        self.channels: dict[str, Channel] = {}
        self.listeners: dict[Connection, Listener] = {}
        self.muted: set[str] = set()
        self._mute_names: set[str] = set()
        self._lag_s = {PUBLIC: 0.0, MARKET: 0.0, PRIVATE: 0.0, UNROUTED: 0.0}
        self._chance: dict[int, Any] = {}
        self.copies = {PUBLIC: 1, MARKET: 1}
        self.changed = 0

    # ------------------------------------------------------------------ connections

    @staticmethod
    def matches(path: str) -> bool:
        return _PATH.fullmatch(path) is not None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        match = _PATH.fullmatch(path)
        if match is None or len(self.listeners) >= self._limits.connections:
            return web.Response(status=404 if match is None else 503)
        connection = Connection(self._limits)
        response = await connection.open(request)
        listener = Listener(connection, match[1] or UNROUTED, match[2] == "stream")
        connection.lag_s = self._lag_s[listener.route]
        self.listeners[connection] = listener
        try:
            if self._open_names(listener, match[3] or "", query):
                async for text in connection.messages():
                    connection.send_text(self._control(listener, text))
            else:
                await connection.close(1008, b"Too many streams")
        except (TimeoutError, ConnectionError):
            connection.cut()
        finally:
            self._forget(listener)
        return response

    def _open_names(self, listener: Listener, path_names: str, query: str) -> bool:
        """Subscribe to what the URL names; False when it is too much."""
        names = [unquote(n) for n in path_names.split("/") if n]
        key = None
        for piece in query.split("&") if query else ():
            name, _, value = piece.partition("=")
            value = unquote(value)
            if name == "streams":
                names += [n for n in value.split("/") if n]
            elif name == "listenKey" and self._hears_users(listener):
                key = value
                listener.keys[key] = frozenset() if self._venue.options.switches.events_required else None
            elif name == "events" and key is not None:
                listener.keys[key] = frozenset(value.split("/"))
        if len(names) > self._limits.streams_per_connection:
            return False
        for name in names:
            in_path = name in path_names.split("/")
            self._subscribe(listener, name, silent=in_path and not self._venue.options.switches.key_in_path_delivers)
        return True

    def _forget(self, listener: Listener) -> None:
        for name in list(listener.names):
            self._unsubscribe(listener, name)
        self.listeners.pop(listener.connection, None)

    # ------------------------------------------------------------------ subscriptions

    def _subscribe(self, listener: Listener, name: str, silent: bool = False) -> None:
        listener.names[name] = None
        if self._hears_users(listener) and (listener.route == PRIVATE or _KEY_NAME.fullmatch(name)):
            if not silent:
                listener.keys.setdefault(name, None)
            return
        is_public = _PUBLIC_NAME.fullmatch(name) is not None
        if is_public != (listener.route in (PUBLIC, UNROUTED)) and not self._delivers_all(listener):
            return
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, 0 if name in self._mute_names else self.copies[PUBLIC if is_public else MARKET])
            self._respoil(channel)
        (channel.combined if listener.combined else channel.raw)[listener.connection] = None
        self.changed += 1

    def _hears_users(self, listener: Listener) -> bool:
        """Whether listen keys mean anything there; elsewhere they are taken without a word, and nothing comes."""
        return listener.route == PRIVATE or (listener.route == UNROUTED and self._venue.options.switches.unrouted_delivers_all)

    def _delivers_all(self, listener: Listener) -> bool:
        switches = self._venue.options.switches
        return switches.unrouted_delivers_all if listener.route == UNROUTED else switches.mixed_routes_deliver

    def _unsubscribe(self, listener: Listener, name: str) -> None:
        listener.names.pop(name, None)
        listener.keys.pop(name, None)
        channel = self.channels.get(name)
        if channel is None:
            return
        channel.raw.pop(listener.connection, None)
        channel.combined.pop(listener.connection, None)
        if not channel:
            del self.channels[name]
        self.changed += 1

    def _reframe(self, listener: Listener, combined: bool) -> None:
        names = list(listener.names)
        for name in names:
            channel = self.channels.get(name)
            if channel is not None:
                (channel.raw if combined else channel.combined).pop(listener.connection, None)
                (channel.combined if combined else channel.raw)[listener.connection] = None
        listener.combined = combined

    # ------------------------------------------------------------------ control messages

    def _control(self, listener: Listener, text: str) -> bytes:
        """The reply to one message of a client."""
        try:
            message = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return _error(3, "Invalid JSON: expected value at line 1 column 1")
        if not isinstance(message, dict):
            return _error(2, "Invalid request: request must be an object")
        request_id = message.get("id")
        if not _is_id(request_id):
            return _error(2, "Invalid request: request ID must be an unsigned integer")
        method = message.get("method")
        if method is None:
            return _error(2, "Invalid request: missing field `method`", request_id)
        params = message.get("params", [])
        if not isinstance(params, list):
            return _error(2, "Invalid request: params must be an array", request_id)
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return self._change(listener, method, params, request_id)
        if method == "LIST_SUBSCRIPTIONS":
            return self._result(list(listener.names), request_id)
        if method in ("SET_PROPERTY", "GET_PROPERTY"):
            return self._property(listener, method, params, request_id)
        known = "`SUBSCRIBE`, `UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY`"
        return _error(2, f"Invalid request: unknown variant {str(method)[:64]}, expected one of {known}", request_id)

    def _change(self, listener: Listener, method: str, names: list[Any], request_id: int | str) -> bytes:
        if not all(isinstance(n, str) and len(n) <= 256 for n in names):
            return _error(2, "Invalid request: stream names must be strings", request_id)
        if method == "UNSUBSCRIBE":
            for name in names:
                self._unsubscribe(listener, name)
            return self._result(None, request_id)
        if len(listener.names.keys() | set(names)) > self._limits.streams_per_connection:
            return _error(2, f"Invalid request: too many streams, at most {self._limits.streams_per_connection}", request_id)
        for name in names:
            self._subscribe(listener, name)
        return self._result(None, request_id)

    def _property(self, listener: Listener, method: str, params: list[Any], request_id: int | str) -> bytes:
        wanted = 2 if method == "SET_PROPERTY" else 1
        if len(params) > wanted:
            return _error(2, "Invalid request: too many parameters", request_id)
        if len(params) < wanted or not isinstance(params[0], str):
            return _error(2, "Invalid request: property name must be a string", request_id)
        if params[0] != "combined":
            return _error(0, "Unknown property", request_id)
        if method == "GET_PROPERTY":
            return self._result(listener.combined, request_id)
        if not isinstance(params[1], bool):
            return _error(1, "Invalid value type: expected Boolean", request_id)
        self._reframe(listener, params[1])
        return self._result(None, request_id)

    @staticmethod
    def _result(value: object, request_id: int | str) -> bytes:
        return msgspec.json.encode({"result": value, "id": request_id})

    # ------------------------------------------------------------------ private events

    def publish_users(self, events: list[UserEvent]) -> None:
        private = [x for x in self.listeners.values() if x.keys]
        if not private or PRIVATE in self.muted:
            return
        faults = self._venue.faults
        if faults and len(events) > 1 and (rule := faults.take((PRIVATE, "*"), (Kind.REORDER,))) is not None:
            events = self._reordered(events, self._chance.setdefault(rule.seed, seeded(rule.seed)))
        for event in events:
            key = self._venue.listen_keys.key(event.account)
            if key is None:
                continue
            rule = faults.take((event.name, PRIVATE, "*"), FRAMES) if faults else None
            payload = msgspec.json.encode(event.payload)
            payloads = [payload] if rule is None else frames_of(rule.kind, payload, self._venue.now_ms())
            for listener in private:
                wanted = listener.keys.get(key, ())
                if wanted is None or event.name in wanted:
                    for one in payloads:
                        if rule is not None and rule.kind is Kind.DELAY:
                            asyncio.get_running_loop().call_later(rule.delay_s, self._send_late, listener, key, one)
                        else:
                            self._send_private(listener, key, one)

    @staticmethod
    def _reordered(events: list[UserEvent], chance: Any) -> list[UserEvent]:
        """Types overtake each other; within a type the order is the venue's promise, and stays."""
        names = [event.name for event in events]
        chance.shuffle(names)
        queues = {name: iter([event for event in events if event.name == name]) for name in names}
        return [next(queues[name]) for name in names]

    def _send_late(self, listener: Listener, key: str, payload: bytes) -> None:
        self._send_private(listener, key, payload)
        listener.connection.flush()

    def expire_keys(self) -> None:
        """Tell the listeners of keys whose hour is over; their sockets stay open."""
        for key in self._venue.listen_keys.expired():
            payload = msgspec.json.encode({"e": "listenKeyExpired", "E": self._venue.now_ms(), "listenKey": key})
            for listener in self.listeners.values():
                if key in listener.keys:
                    wanted = listener.keys.pop(key)
                    if wanted is None or "listenKeyExpired" in wanted:
                        self._send_private(listener, key, payload)
                        listener.connection.flush()

    @staticmethod
    def _send_private(listener: Listener, key: str, payload: bytes) -> None:
        if listener.combined:
            payload = b'{"stream":"' + key.encode() + b'","data":' + payload + b"}"
        listener.connection.send(frame(payload))

    # ------------------------------------------------------------------ faults

    def respoil(self) -> None:
        """The faults have changed: which channels do they concern?"""
        for channel in self.channels.values():
            self._respoil(channel)

    def _respoil(self, channel: Channel) -> None:
        channel.spoil = self._spoil if self._venue.faults.wanted(FRAMES, (channel.name, route_of(channel.name))) else None

    def _spoil(self, channel: Channel, payload: bytes) -> None:
        rule = self._venue.faults.take((channel.name, route_of(channel.name)), FRAMES)
        if rule is not None and rule.kind is Kind.DELAY:
            asyncio.get_running_loop().call_later(rule.delay_s, self._publish_late, channel, payload)
            return
        for one in [payload] if rule is None else frames_of(rule.kind, payload, self._venue.now_ms()):
            channel.send(one)

    def _publish_late(self, channel: Channel, payload: bytes) -> None:
        channel.send(payload)
        self.flush()

    def mute(self, routes: set[str], names: set[str]) -> None:
        """These routes and streams are silent from now on, and all others speak."""
        self.muted = routes
        for channel in self.channels.values():
            if channel.name in names:
                channel.copies = 0
            elif channel.name in self._mute_names:
                channel.copies = self.copies[route_of(channel.name)]
        self._mute_names = names

    def slow(self, lag_s: dict[str, float]) -> None:
        """Whatever a route sends arrives that much later from now on."""
        self._lag_s |= lag_s | {UNROUTED: lag_s[PUBLIC]}
        for connection, listener in self.listeners.items():
            connection.lag_s = self._lag_s[listener.route]

    # ------------------------------------------------------------------ all of them

    def flush(self) -> None:
        for connection in self.listeners:
            connection.flush()

    def keep_alive(self, ping: bool) -> None:
        for connection in list(self.listeners):
            connection.keep_alive(ping)

    def say(self, route: str, texts: list[str]) -> int:
        """These texts as frames to every listener of a route, whatever they are; how many listeners."""
        heard = [listener.connection for listener in self.listeners.values() if listener.route == route]
        for connection in heard:
            for text in texts:
                connection.send_text(text.encode())
        return len(heard)

    def flood(self, route: str, copies: int) -> None:
        """Every frame of a route comes so many times from now on."""
        self.copies[route] = copies
        for channel in self.channels.values():
            if channel.copies and route_of(channel.name) == route:
                channel.copies = copies

    def cut_all(self, route: str | None = None) -> int:
        """Drop every stream connection, of one route or of all; how many."""
        connections = [c for c, listener in self.listeners.items() if route in (None, listener.route)]
        for connection in connections:
            connection.cut()
        return len(connections)

    async def close_all(self) -> None:
        await close_all(list(self.listeners))
