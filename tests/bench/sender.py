"""What feeds the benchmarks of the Feed: the venue's frames, built beforehand, sent over loopback by a process of its own.

It speaks just enough of the venue for our Feed and for other people's clients: ``exchangeInfo`` over HTTP, the WebSocket handshake on any
path, streams named in the URL or by SUBSCRIBE, combined frames where the path says ``stream`` and bare ones elsewhere, with TLS or without.

Frames have fixed widths, so numpy fills in ids, times, prices and quantities of millions at once. A *round* is 500 frames: a trade of each of
300 symbols, and 200 quotes. Trade number n of a symbol is in round n; market time goes on by a round's share of a second.
"""

from __future__ import annotations

import base64
import hashlib
import json
import selectors
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from src.clock import monotonic_ns

SYMBOLS = tuple(f"S{n:03d}USDT" for n in range(300))
T0 = 1_763_600_040_000
"""A whole minute."""
ROUND_FRAMES = 500
WHOLE_FRAMES = 3 * ROUND_FRAMES
"""Frames are sent in multiples of this, so that every connection has whole cycles."""
TRADES_OF_CYCLE, QUOTES_OF_CYCLE = 3, 2
FLAT_RATE = 1_000_000
"""Frames a second of market time when frames are sent as fast as they are taken."""
PRICE_BASE = 1_000_000_000
"""A price is this plus, in a steady stream, the microseconds since the start at which its frame was handed to the socket."""
STEPS_PER_UNIT = 1_000
IDS_FROM = 1_000_000_000
BLOCK_BYTES = 262_144
MSS_BYTES = 1_448
"""Segments as on Ethernet. With loopback's 64 kB a small write is no full segment, its receipt is told 40 ms later, and the sender waits."""
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


# --- frames ------------------------------------------------------------------------------------------------------------------------------

class Shape:
    """A frame with holes of fixed width. ``texts`` and ``holes`` alternate: text, (name, width), text, … ``at``: a hole's (offset, width)."""

    def __init__(self, *parts: str | tuple[str, int]) -> None:
        self.at: dict[str, tuple[int, int]] = {}
        payload = b""
        for part in parts:
            if isinstance(part, str):
                payload += part.encode()
            else:
                self.at[part[0]] = (4 + len(payload), part[1])
                payload += b"0" * part[1]
        assert 126 <= len(payload) < 65_536, "a frame with a header of four bytes"
        self.frame = np.frombuffer(struct.pack("!BBH", 0x81, 126, len(payload)) + payload, np.uint8)

    def digits(self, rows: Bytes, name: str, values: Ints) -> None:
        """Write numbers into a hole, one a row; they must fill it."""
        offset, width = self.at[name]
        rest = values.copy()
        for place in range(offset + width - 1, offset - 1, -1):
            rest, digit = np.divmod(rest, 10)
            rows[:, place] = digit + 48

    def text(self, rows: Bytes, name: str, values: Bytes) -> None:
        offset, width = self.at[name]
        rows[:, offset:offset + width] = values


def _combined(stream: str, *event: str | tuple[str, int]) -> tuple[str | tuple[str, int], ...]:
    return ('{"stream":"', ("stream", 8), f'@{stream}","data":', *event, "}")


_TRADE = ('{"e":"aggTrade","E":', ("E", 13), ',"s":"', ("s", 8), '","a":', ("a", 10), ',"p":"', ("p", 10), '","q":"', ("q", 3),
          '.250","nq":"0.100","f":', ("f", 10), ',"l":', ("l", 10), ',"T":', ("T", 13), ',"m":', ("m", 5), ',"st":1}')
_QUOTE = ('{"e":"bookTicker","u":', ("u", 10), ',"s":"', ("s", 8), '","b":"25.35190000","B":"31.210","a":"25.36520000","A":"40.660","T":',
          ("T", 13), ',"E":', ("E", 13), ',"st":1,"ps":"', ("ps", 8), '"}')
SHAPES = {("T", True): Shape(*_combined("aggTrade", *_TRADE)), ("T", False): Shape(*_TRADE),
          ("Q", True): Shape(*_combined("bookTicker", *_QUOTE)), ("Q", False): Shape(*_QUOTE)}


def _letters(names: list[str]) -> Bytes:
    return np.frombuffer("".join(names).encode(), np.uint8).reshape(len(names), 8)


@dataclass(frozen=True, slots=True)
class Log:
    """Trades of one connection, in the order of sending: what candles must be made of. ``symbol`` is the place in SYMBOLS."""

    symbol: Ints
    time_ms: Ints
    price: Ints
    steps: Ints
    taker_buys: npt.NDArray[np.bool_]


class Part:
    """All frames of one connection. ``cycles`` has a row for each cycle of frames; a cycle is 3 trades and 2 quotes, or one of either."""

    def __init__(self, trades: list[str], quotes: list[str], combined: bool, rounds: int, round_us: int) -> None:
        assert not (trades and quotes) or len(trades) == len(quotes), "a mixed connection has as many streams of each kind"
        self.kinds = "T" * TRADES_OF_CYCLE + "Q" * QUOTES_OF_CYCLE if trades and quotes else "T" if trades else "Q"
        self._shapes = {kind: SHAPES[kind, combined] for kind in "TQ"}
        frames = rounds * len(trades), rounds * len(quotes) * QUOTES_OF_CYCLE // TRADES_OF_CYCLE
        count = frames[0] // TRADES_OF_CYCLE if len(self.kinds) > 1 else frames[0] or frames[1]
        self.cycles = np.tile(np.concatenate([self._shapes[kind].frame for kind in self.kinds]), (count, 1))
        self.frames = count * len(self.kinds)
        self._columns: list[Bytes] = []
        self._fill(trades, quotes, count, round_us)
        self.sent = 0

    def _fill(self, trades: list[str], quotes: list[str], count: int, round_us: int) -> None:
        offset = 0
        parts: list[tuple[Ints, Log]] = []
        for place, kind in enumerate(self.kinds):
            shape = self._shapes[kind]
            rows = self.cycles[:, offset:offset + len(shape.frame)]
            offset += len(shape.frame)
            number = np.arange(count) * self.kinds.count(kind) + place - self.kinds.index(kind)
            names = trades if kind == "T" else quotes
            which, turn = number % len(names), number // len(names)
            turn = turn if kind == "T" else turn * TRADES_OF_CYCLE // QUOTES_OF_CYCLE
            time_ms = T0 + turn * round_us // 1_000
            for hole, letters in (("s", names), ("stream", [name.lower() for name in names]), ("ps", names)):
                if hole in shape.at:
                    shape.text(rows, hole, _letters(letters)[which])
            for hole in "TE":
                shape.digits(rows, hole, time_ms)
            if kind == "Q":
                shape.digits(rows, "u", IDS_FROM + number)
                continue
            price, whole = PRICE_BASE + (number * 7919) % 1_009, 100 + (number * 31) % 900
            for hole, values in (("a", IDS_FROM + turn), ("p", price), ("q", whole), ("f", IDS_FROM + 2 * turn), ("l", IDS_FROM + 2 * turn + 1)):
                shape.digits(rows, hole, values)
            maker = number % 3 == 0
            shape.text(rows, "m", np.where(maker[:, None], np.frombuffer(b"true ", np.uint8), np.frombuffer(b"false", np.uint8)))
            start, width = shape.at["p"]
            self._columns.append(rows[:, start:start + width])
            places = np.array([SYMBOLS.index(name) for name in names])
            parts.append((number, Log(places[which], time_ms, price, whole * STEPS_PER_UNIT + 250, ~maker)))
        self._logs = [log for _, log in parts]

    def stamp(self, until: int, price: int) -> None:
        """Give the trades of the cycles that are sent next this price."""
        letters = np.frombuffer(str(price).encode(), np.uint8)
        for column, log in zip(self._columns, self._logs, strict=True):
            column[self.sent:until] = letters
            log.price[self.sent:until] = price

    def send(self, connection: Any, until: int) -> None:
        """Cycles up to ``until``."""
        connection.sendall(memoryview(self.cycles[self.sent:until]).cast("B"))
        self.sent = until

    def log(self) -> Log:
        """The trades sent so far, in order."""
        columns = [np.stack([getattr(log, name)[:self.sent] for log in self._logs], axis=1).reshape(-1) for name in Log.__slots__]
        return Log(*columns)


# --- connections -------------------------------------------------------------------------------------------------------------------------

class Client:
    """One connection: which streams it wants. ``combined``: whether frames say which stream they are of."""

    def __init__(self, connection: Any, target: str) -> None:
        self.connection = connection
        self.combined = "/stream" in target
        self.trades: list[str] = []
        self.quotes: list[str] = []
        self._data = b""
        if "streams=" in target:
            self._want(target.split("streams=", 1)[1].split("/"))

    def _want(self, streams: list[str]) -> None:
        for name in streams:
            symbol, _, kind = name.partition("@")
            wanted = {"aggTrade": self.trades, "bookTicker": self.quotes}.get(kind)
            if wanted is not None:
                wanted.append(symbol.upper())

    def read(self) -> None:
        """SUBSCRIBE requests, each answered; whatever else comes is passed over."""
        self._data += self.connection.recv(65_536)
        for payload in self._payloads():
            request = json.loads(payload)
            if request.get("method") == "SUBSCRIBE":
                self._want(request["params"])
            answer = json.dumps({"result": None, "id": request.get("id")}).encode()
            self.connection.sendall(struct.pack("!BB", 0x81, len(answer)) + answer)

    def _payloads(self) -> Iterator[bytes]:
        while len(self._data) >= 8:
            size, start = self._data[1] & 0x7F, 6
            if size == 126:
                size, start = struct.unpack("!H", self._data[2:4])[0], 8
            if len(self._data) < start + size:
                return
            opcode, mask, masked = self._data[0] & 0x0F, self._data[start - 4:start], self._data[start:start + size]
            self._data = self._data[start + size:]
            if opcode == 1:
                yield bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))


def exchange_info() -> bytes:
    """The symbols, in as many fields as foreign clients look at."""
    filters = [{"filterType": "PRICE_FILTER", "tickSize": "0.01", "minPrice": "0.01", "maxPrice": "1000000"},
               {"filterType": "LOT_SIZE", "stepSize": "0.001", "minQty": "0.001", "maxQty": "1000"}]
    rows = [{"symbol": name, "pair": name, "contractType": "PERPETUAL", "deliveryDate": 4133404800000, "onboardDate": T0, "status": "TRADING",
             "baseAsset": name[:4], "quoteAsset": "USDT", "marginAsset": "USDT", "pricePrecision": 2, "quantityPrecision": 3,
             "filters": filters, "orderTypes": ["LIMIT", "MARKET"], "timeInForce": ["GTC"]} for name in SYMBOLS]
    return json.dumps({"timezone": "UTC", "serverTime": T0, "rateLimits": [], "exchangeFilters": [], "assets": [], "symbols": rows}).encode()


def _accepted(listener: socket.socket, tls: ssl.SSLContext | None) -> Client | None:
    """A client that has shaken hands; None for one that only wanted an answer over HTTP."""
    connection: Any = listener.accept()[0]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        connection = tls.wrap_socket(connection, server_side=True)
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in request.split(b"\r\n")[1:])}
    target = request.split(b" ", 2)[1].decode()
    key = headers.get(b"sec-websocket-key")
    if key is None:
        body = exchange_info() if "exchangeInfo" in target else b"{}"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
        connection.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)
        connection.close()
        return None
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
                       + accept + b"\r\n\r\n")
    return Client(connection, target)


def clients(listener: socket.socket, tls: ssl.SSLContext | None) -> list[Client]:
    """Wait until every symbol's trades and quotes are subscribed. What somebody connects for beside that is left open."""
    found: list[Client] = []
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while sum(len(client.trades) + len(client.quotes) for client in found) < 2 * len(SYMBOLS):
        for ready, _ in selector.select(10):
            if ready.fileobj is not listener:
                ready.data.read()
            elif (client := _accepted(listener, tls)) is not None:
                found.append(client)
                selector.register(client.connection, selectors.EVENT_READ, client)
    return found


# --- the process -------------------------------------------------------------------------------------------------------------------------

def _flat_out(parts: list[tuple[Client, Part]]) -> None:
    """Blocks to all connections in turn, as fast as they take them, so that none runs ahead in market time."""
    turns = max(part.cycles.nbytes for _, part in parts) // BLOCK_BYTES + 1
    for turn in range(1, turns + 1):
        for client, part in parts:
            part.send(client.connection, len(part.cycles) * turn // turns)


def _steadily(parts: list[tuple[Client, Part]], rate: int, began: int) -> list[float]:
    """``rate`` frames a second, woken every millisecond. Returns how late each slice was, in µs: the sender's own share."""
    nap, total, late = selectors.DefaultSelector(), sum(part.frames for _, part in parts), []
    due = sent = 0
    while sent < total:
        now = monotonic_ns()
        late.append(max(0.0, (now - began) / 1e3 - sent / rate * 1e6))
        due = min(total, int((now - began) * rate / 1e9))
        for client, part in parts:
            until = len(part.cycles) * due // total
            if until > part.sent:
                part.stamp(until, PRICE_BASE + (monotonic_ns() - began) // 1_000)
                part.send(client.connection, until)
        sent = due
        nap.select(0.001)
    return late


def run_sender(pipe: Connection, frames: int, rate: int, certificate: str) -> None:
    """Tells its port; then, when everyone has subscribed and frames are built, how many; begins when told the start in ns; then tells its
    lateness in µs. On "log" it tells the logs; it stays until told to end. ``rate`` 0: flat out. ``certificate``: a PEM file, "" for no TLS."""
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MSS_BYTES)
        pipe.send(listener.getsockname()[1])
        found = [client for client in clients(listener, tls) if client.trades or client.quotes]
        assert frames % WHOLE_FRAMES == 0, "whole cycles on every connection"
        rounds = frames // ROUND_FRAMES
        round_us = ROUND_FRAMES * 1_000_000 // (rate or FLAT_RATE)
        parts = [(client, Part(client.trades, client.quotes, client.combined, rounds, round_us)) for client in found]
        pipe.send(sum(part.frames for _, part in parts))
        began = pipe.recv()
        late = _steadily(parts, rate, began) if rate else _flat_out(parts) or []
        pipe.send(late)
        if pipe.recv() == "log":
            pipe.send([part.log() for _, part in parts if "T" in part.kinds])
            pipe.recv()
