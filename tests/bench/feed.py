"""The Feed from socket to ring: how fast flat out, and how old the data are at the reader in a steady stream.

A sender in a process of its own speaks the venue's stream protocol over loopback with frames built beforehand; the Feed runs here, on
uvloop; a reader in a third process parks on the ring as the Brain does. The reference is a bare ``websockets`` client on the same frames,
in the same run. Ages are of the oldest trade in a slot.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import multiprocessing
import os
import selectors
import socket
import struct
from collections.abc import Iterator
from decimal import Decimal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import uvloop
import websockets

from src.clock import clock_at, monotonic_ns
from src.counters import Counters
from src.feed import FeedOptions, run_feed, warm_up
from src.models import SymbolRules
from src.ring_buffer import TRADE, Ring
from tests.bench import Row, row

SPAWN = multiprocessing.get_context("spawn")
SYMBOLS = [f"S{n}USDT" for n in range(300)]
TRADES_OF_FIVE = 3
"""Of five frames three are trades and two are quotes."""
T0 = 1_763_600_000_000
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FRAMES = 600_000
STEADY_S = 5.0


def frame(payload: bytes) -> bytes:
    """An unmasked text frame, as a server sends it."""
    size = len(payload)
    return (struct.pack("!BB", 0x81, size) if size < 126 else struct.pack("!BBH", 0x81, 126, size)) + payload


def trade(symbol: str, identity: int, time_ms: int, price: str = "25.5") -> bytes:
    return frame(f'{{"stream":"{symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{time_ms},"s":"{symbol}","a":{identity},"p":"{price}",'
                 f'"q":"{identity % 997 + 1}.250","nq":"0.100","f":{identity * 2},"l":{identity * 2 + 1},"T":{time_ms},'
                 f'"m":{"true" if identity & 1 else "false"},"st":1}}}}'.encode())


def quote(symbol: str, number: int, time_ms: int) -> bytes:
    return frame(f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"e":"bookTicker","u":{number},"s":"{symbol}","b":"25.35190000",'
                 f'"B":"31.210","a":"25.36520000","A":"40.660","T":{time_ms},"E":{time_ms},"st":1,"ps":"{symbol}"}}}}'.encode())


# --- the sender --------------------------------------------------------------------------------------------------------------------------

def accept(listener: socket.socket) -> tuple[str, socket.socket]:
    """(route, connection) after the opening handshake."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    key = next(line.split(b":", 1)[1].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accepted = base64.b64encode(hashlib.sha1(key + GUID).digest())
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accepted
    connection.sendall(answer + b"\r\n\r\n")
    return request.split(b"/", 2)[1].decode(), connection


class Client:
    """One connection of the sender's: who it is, what it wants, and what it has begun to say."""

    def __init__(self, listener: socket.socket) -> None:
        self.route, self.connection = accept(listener)
        self.symbols: list[str] = []
        self._data = b""

    def requests(self) -> Iterator[dict[str, Any]]:
        """The complete requests of one read."""
        self._data += self.connection.recv(65536)
        while len(self._data) >= 8:
            size, start = self._data[1] & 0x7F, 6
            if size == 126:
                size, start = struct.unpack("!H", self._data[2:4])[0], 8
            if len(self._data) < start + size:
                return
            mask, masked = self._data[start - 4:start], self._data[start:start + size]
            self._data = self._data[start + size:]
            yield json.loads(bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked)))


def clients(listener: socket.socket, wanted: dict[str, int]) -> list[Client]:
    """Wait until so many streams are subscribed on each route."""
    found: list[Client] = []
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    have = dict.fromkeys(wanted, 0)
    while have != wanted:
        for ready, _ in selector.select(10):
            if ready.fileobj is listener:
                found.append(Client(listener))
                selector.register(found[-1].connection, selectors.EVENT_READ, found[-1])
                continue
            for request in ready.data.requests():
                streams = [name for name in request["params"] if not name.endswith("@1s")]
                ready.data.symbols += [name.split("@")[0].upper() for name in streams]
                have[ready.data.route] += len(streams)
                ready.data.connection.sendall(frame(json.dumps({"result": None, "id": request["id"]}).encode()))
    return found


def built(route: str, symbols: list[str], frames: int) -> bytes:
    """The part of ``frames`` that a connection for these symbols gets, ids without a hole."""
    share = (TRADES_OF_FIVE if route == "market" else 5 - TRADES_OF_FIVE) / 5
    count = int(frames * share * len(symbols) / len(SYMBOLS))
    make = trade if route == "market" else quote
    return b"".join(make(symbols[n % len(symbols)], n // len(symbols) + 1, T0 + n // 100) for n in range(count))


def send_flat_out(listener: socket.socket, pipe: Connection, frames: int) -> None:
    """Everything at once, to all connections in turn, as fast as they take it."""
    links = clients(listener, {"market": 300, "public": 300})
    parts = [built(link.route, link.symbols, frames) for link in links]
    pipe.send(sum(part.count(b'"stream"') for part in parts))
    pipe.recv()
    for start in range(0, max(map(len, parts)), 262_144):
        for link, part in zip(links, parts, strict=True):
            link.connection.sendall(part[start:start + 262_144])
    pipe.recv()


def send_steadily(listener: socket.socket, pipe: Connection, rate: int, seconds: float) -> None:
    """``rate`` frames a second in slices of a millisecond. A trade's price is the moment of sending in µs, so the reader sees its age."""
    links = clients(listener, {"market": 300, "public": 300})
    order = [link for link in links for _ in range(TRADES_OF_FIVE if link.route == "market" else 5 - TRADES_OF_FIVE)]
    identities = dict.fromkeys(SYMBOLS, 0)
    nap = selectors.DefaultSelector()
    pipe.recv()
    began, sent = monotonic_ns(), 0
    while (elapsed := monotonic_ns() - began) < seconds * 1e9:
        due = int(elapsed * rate / 1e9)
        batches: dict[Client, bytearray] = {link: bytearray() for link in links}
        for n in range(sent, due):
            link = order[n % len(order)]
            symbol = link.symbols[n // len(order) % len(link.symbols)]
            time_ms = T0 + elapsed // 1_000_000
            if link.route == "market":
                identities[symbol] += 1
                batches[link] += trade(symbol, identities[symbol], time_ms, str(monotonic_ns() // 1000))
            else:
                batches[link] += quote(symbol, n, time_ms)
        for link, batch in batches.items():
            link.connection.sendall(batch)
        sent = due
        nap.select(0.001)
    pipe.send(sent)
    pipe.recv()


def send_plain(listener: socket.socket, pipe: Connection, frames: int) -> None:
    """The same frames to one bare client that subscribes to nothing."""
    client = Client(listener)
    data = built("market", SYMBOLS, frames) + built("public", SYMBOLS, frames)
    pipe.send(data.count(b'"stream"'))
    pipe.recv()
    client.connection.sendall(data)
    pipe.recv()


def sender(pipe: Connection, how: str, *arguments: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    pipe.send(listener.getsockname()[1])
    {"flat": send_flat_out, "steady": send_steadily, "plain": send_plain}[how](listener, pipe, *arguments)  # type: ignore[operator]


# --- the reader --------------------------------------------------------------------------------------------------------------------------

def reader(ring: Ring, pipe: Connection) -> None:
    """Parks as the Brain does. Sends (slots, trades, ages in µs at reading: since received, since sent) when told to end."""
    selector = selectors.DefaultSelector()
    selector.register(ring.wake_fd, selectors.EVENT_READ)
    selector.register(pipe.fileno(), selectors.EVENT_READ)
    slots = trades = 0
    received: list[Any] = []
    sent: list[Any] = []
    pipe.send("ready")
    while not pipe.poll():
        ring.unpark()
        while not ring.park():
            new = ring.read_new(1 << 20)
            now = monotonic_ns()
            market = new[new["kind"] == TRADE]
            slots, trades = slots + len(new), trades + int(market["trade_count"].sum()) // 2
            received.append((now - market["received_ns"].astype(np.int64)) / 1e3)
            sent.append(now / 1e3 - market["open"])
        selector.select(1.0)
    pipe.recv()
    pipe.send((slots, trades, np.concatenate(received or [np.zeros(1)]), np.concatenate(sent or [np.zeros(1)])))


# --- the runs ----------------------------------------------------------------------------------------------------------------------------

def start(function: Any, *arguments: Any) -> tuple[Any, Connection]:
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=function, args=(*arguments[:1], there, *arguments[1:]) if function is reader else (there, *arguments), daemon=True)
    process.start()
    there.close()
    return process, here


def rules(name: str) -> SymbolRules:
    one = Decimal(1)
    return SymbolRules(name, Decimal("0.01"), Decimal("0.001"), one, one, one, one, one, one)


async def feed_run(how: str, *arguments: float) -> dict[str, Any]:
    """One Feed against one sender; what was sent, how long it took, and what the reader saw."""
    ring, counters = Ring.create(), Counters.create()
    process, pipe = start(sender, how, *arguments)
    port = pipe.recv()
    reading, seen = start(reader, ring)
    base = f"ws://127.0.0.1:{port}"
    options = FeedOptions(f"{base}/market", f"{base}/public", base, clock_at(T0 + 600_000, 1.0), tuple(map(rules, SYMBOLS)))
    stop, ready = asyncio.Event(), asyncio.Event()
    feed = asyncio.create_task(run_feed(options, ring, counters, ready.set, stop))
    await ready.wait()
    seen.recv()
    frames = pipe.recv() if how == "flat" else 0
    began, cpu = monotonic_ns(), sum(os.times()[:2])
    pipe.send("go")
    if how == "steady":
        frames = await asyncio.to_thread(pipe.recv)
    wanted = frames * TRADES_OF_FIVE // 5
    while ring.statistics()["written"] == 0 or counters.get("feed", "frames") < frames - 2:
        await asyncio.sleep(0.02)
        if monotonic_ns() - began > 60e9:
            break
    last = counters.get("feed", "last_frame_ns")
    took, cpu = (last - began) / 1e9, sum(os.times()[:2]) - cpu
    seen.send("end")
    slots, trades, since_received, since_sent = await asyncio.to_thread(seen.recv)
    pipe.send("end")
    stop.set()
    await feed
    for child in (process, reading):
        child.join(10)
        child.kill()
    return {"frames": frames, "seconds": took, "cpu": cpu, "slots": slots, "trades": trades, "wanted": wanted, "received": since_received,
            "sent": since_sent, "counters": counters.snapshot()["feed"]}


async def plain_run(frames: int) -> float:
    """Frames a second of a bare ``websockets`` client that looks at nothing."""
    process, pipe = start(sender, "plain", frames)
    link = await websockets.connect(f"ws://127.0.0.1:{pipe.recv()}/market", max_size=None, compression=None, ping_interval=None)
    frames = await asyncio.to_thread(pipe.recv)
    pipe.send("go")
    began = monotonic_ns()
    for _ in range(frames):
        await link.recv()
    took = (monotonic_ns() - began) / 1e9
    link.transport.abort()
    pipe.send("end")
    process.join(10)
    process.kill()
    return frames / took


def run() -> Iterator[Row]:
    warm_up()
    flat = uvloop.run(feed_run("flat", FRAMES))
    bare = uvloop.run(plain_run(FRAMES // 3))
    against = {"reference": "bare websockets, frames not looked at", "reference_value": bare}
    yield row("feed", "socket to ring, flat out", "frames_per_s", flat["frames"] / flat["seconds"], **against)
    yield row("feed", "socket to ring, of processor time", "frames_per_s", flat["frames"] / flat["cpu"], **against)
    yield row("feed", "socket to ring, flat out", "frames_per_slot", flat["frames"] / flat["slots"])
    for rate in (20_000, 100_000):
        steady = uvloop.run(feed_run("steady", rate, STEADY_S))
        for case, ages in (("receipt to reader", steady["received"]), ("sending to reader", steady["sent"])):
            for part in (50, 99):
                yield row("feed", f"{case}, {rate // 1000} k frames/s", f"p{part}_us", float(np.percentile(ages, part)))
        yield row("feed", f"processor, {rate // 1000} k frames/s", "percent_of_core", 100 * steady["cpu"] / steady["seconds"])
