"""The state table of a socket, and frames in every shape a server may send them."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from picows import WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from src.clock import monotonic_ns
from src.conflate import ROWS_MAX, Staged, mark_key, quote_key, trade_key
from src.links import Route
from src.sockets import NEXT, SUBSCRIBE_NAMES, Patience, Shard, SocketEvent, SocketState, Streams, next_state
from src.wire import compile_reading

DEADLINE_S = 10.0
QUICK = Patience(connect_s=2.0, overlap_s=0.05, backoff_s=(0.01, 0.05))
TRADE = {"e": "aggTrade", "E": 5, "s": "BTCUSDT", "a": 1, "p": "100.5", "q": "0.25", "f": 1, "l": 2, "T": 4, "m": True}
QUOTE = {"e": "bookTicker", "u": 1, "s": "BTCUSDT", "b": "1", "B": "2", "a": "3", "A": "4", "T": 4, "E": 5}
MARK = {"e": "markPriceUpdate", "E": 5, "s": "BTCUSDT", "p": "1", "i": "2", "P": "1", "r": "0.01", "T": 9}


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """As the process does before it connects, so that no deadline here waits for a compiler."""
    compile_reading()


# --- the table -------------------------------------------------------------------------------------------------------------------------

def test_every_state_can_be_reached_and_left() -> None:
    reached = {SocketState.IDLE}
    for _ in SocketState:
        reached |= {to for (state, _), to in NEXT.items() if state in reached}
    assert reached == set(SocketState)
    for state in SocketState:
        assert any(to is not state for (at, _), to in NEXT.items() if at is state)


def test_whatever_was_opened_can_be_lost_at_any_time() -> None:
    for state in set(SocketState) - {SocketState.IDLE}:
        assert next_state(state, SocketEvent.LOST) is SocketState.IDLE


@given(st.lists(st.sampled_from(SocketEvent)))
def test_no_order_of_events_breaks_the_door(events: list[SocketEvent]) -> None:
    shard = Shard(Sink(), streams(Route.MARKET, "ws://nowhere"), QUICK)
    for event in events:
        before = shard.state
        shard.on(event)
        assert shard.state is (next_state(before, event) or before)
        assert shard.flowing == (shard.state in (SocketState.LIVE, SocketState.GAPPED))


# --- frames ----------------------------------------------------------------------------------------------------------------------------

class Sink:
    """Keeps what a link delivers: rows as whole numbers and floats, rubbish by kind."""

    def __init__(self) -> None:
        self.frames = 0
        self.flushes: list[list[tuple[list[int], list[float]]]] = []
        self.rubbish: Counter[str] = Counter()
        self.cuts = 0
        self.contracts: list[Any] = []
        self.carriers: list[Shard] = []
        self.ready = asyncio.Event()
        self.news = asyncio.Event()

    @property
    def rows(self) -> list[tuple[list[int], list[float]]]:
        return [row for flush in self.flushes for row in flush]

    def flush(self, shard: Shard, staged: Staged, rows: int, received_ns: int, event_ms: int) -> None:
        self.frames += rows
        self.flushes.append([(staged.ints[i].tolist(), staged.floats[i].tolist()) for i in range(rows)])
        self.news.set()

    def contract(self, event: Any) -> None:
        self.contracts.append(event)
        self.news.set()

    def bad(self, error: Exception, size: int) -> None:
        self.rubbish[type(error).__name__] += 1
        self.news.set()

    def subscribed(self, shard: Shard) -> None:
        self.ready.set()
        self.news.set()

    def cut(self, shard: Shard) -> None:
        self.cuts += 1
        self.news.set()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()


def streams(route: Route, url: str) -> Streams:
    name, key = ("btcusdt@aggTrade", trade_key(0)) if route is Route.MARKET else ("btcusdt@bookTicker", quote_key(0))
    return Streams(route, url, {name: 0}, (), {"BTCUSDT": key}, {"BTCUSDT": mark_key(0)})


class Server(WSListener):  # type: ignore[misc]
    """Acknowledges what it is asked (with ``wait`` not before ``answer``), and writes raw bytes when told to."""

    def __init__(self, seen: list[Server], wait: bool = False) -> None:
        self.transport: WSTransport | None = None
        self.wait = wait
        self.waiting: list[int] = []
        self.asked: list[str] = []
        self.pongs: list[bytes] = []
        seen.append(self)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: Any) -> None:
        if frame.msg_type == WSMsgType.PONG:
            self.pongs.append(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.TEXT:
            request = json.loads(frame.get_payload_as_bytes())
            self.waiting.append(request["id"])
            if request["method"] == "SUBSCRIBE":
                self.asked += request["params"]
            if not self.wait:
                self.answer()

    def answer(self) -> None:
        assert self.transport is not None
        for number in self.waiting:
            self.transport.send(WSMsgType.TEXT, json.dumps({"result": None, "id": number}).encode())
        self.waiting.clear()

    def write(self, *frames: bytes) -> None:
        assert self.transport is not None
        self.transport.underlying_transport.write(b"".join(frames))


def frame(payload: Any, opcode: int = 1, fin: bool = True) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    first, size = opcode | (0x80 if fin else 0), len(data)
    if size < 126:
        return struct.pack("!BB", first, size) + data
    return (struct.pack("!BBH", first, 126, size) if size < 65536 else struct.pack("!BBQ", first, 127, size)) + data


@asynccontextmanager
async def link(route: Route = Route.MARKET) -> AsyncIterator[tuple[Server, Sink, list[Server]]]:
    seen: list[Server] = []

    def connected(request: WSUpgradeRequest) -> Server:
        return Server(seen)

    listening = await ws_create_server(connected, "127.0.0.1", 0)
    sink = Sink()
    sink.carriers.append(shard := Shard(sink, streams(route, f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/stream"), QUICK))
    task = asyncio.create_task(shard.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await sink.ready.wait()
        yield seen[0], sink, seen
        assert not task.done(), "nothing a server sends may end a shard"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if shard.link is not None:
            shard.link.hang_up()
        listening.close()


async def test_frames_of_one_read_are_one_flush() -> None:
    async with link() as (server, sink, _):
        server.write(*(frame({"stream": "x", "data": TRADE | {"a": n}}) for n in (1, 2, 3)))
        await sink.until(lambda: sink.flushes)
        assert [[ints[5] for ints, _ in flush] for flush in sink.flushes] == [[1, 2, 3]]
        ints, floats = sink.rows[0]
        assert (ints[0], ints[1], floats[2], floats[3], ints[4:]) == (trade_key(0), 4, 100.5, 0.25, [1, 1, 1, 2])


async def test_a_ping_behind_the_frames_of_a_read_does_not_hold_them_back() -> None:
    async with link() as (server, sink, _):
        server.write(frame({"data": TRADE}), frame(b"12345", opcode=9))
        await sink.until(lambda: sink.rows)
        server.write(frame({"data": TRADE}), frame(b"{}", opcode=9))
        await sink.until(lambda: len(sink.rows) == 2)
        assert not sink.rubbish


async def test_a_message_in_fragments_with_a_ping_between_them_is_whole() -> None:
    whole = json.dumps({"data": TRADE}).encode()
    async with link() as (server, sink, _):
        server.write(frame(whole[:10], fin=False), frame(b"", opcode=9), frame(whole[10:30], opcode=0, fin=False),
                     frame(whole[30:], opcode=0), frame({"data": TRADE | {"a": 2}}))
        await sink.until(lambda: len(sink.rows) == 2)
        assert [ints[5] for ints, _ in sink.rows] == [1, 2]
        assert not sink.rubbish


async def test_a_frame_larger_than_the_buffer_comes_whole() -> None:
    many = [MARK | {"s": f"STRANGER{n}USDT"} for n in range(5000)]
    async with link() as (server, sink, _):
        server.write(frame({"stream": "!markPrice@arr@1s", "data": [*many, MARK]}))
        await sink.until(lambda: sink.rows)
        assert sink.rows[0][0][0] == mark_key(0) and len(sink.rows) == 1
        assert sink.frames == 1, "one frame, however many marks"


async def test_one_rubbish_mark_spoils_only_itself() -> None:
    async with link() as (server, sink, _):
        server.write(frame({"data": [MARK | {"p": "x"}, MARK, MARK | {"r": ""}, MARK | {"p": "1e999999"}]}))
        await sink.until(lambda: sink.rows)
        assert [floats[4] for _, floats in sink.rows[:2]] == [0.01, 0.0]
        assert sink.rubbish == {"ValueError": 1}


async def test_quotes_are_staged_on_the_public_route() -> None:
    async with link(Route.PUBLIC) as (server, sink, _):
        server.write(frame({"data": QUOTE}), frame({"data": TRADE}))
        await sink.until(lambda: sink.rubbish)
        ((ints, floats),) = sink.rows
        assert (ints[:2], floats[2:6]) == ([quote_key(0), 4], [1, 3, 2, 4])


@pytest.mark.parametrize("bytes_sent", [
    frame(b"\xff\xfe\x00", opcode=2), frame(b"{", opcode=1), frame(b"late", opcode=0), frame({"data": TRADE | {"p": None}}),
    frame({"data": TRADE | {"s": "NOBODYUSDT"}}), frame({"data": TRADE | {"T": 2**80}}), frame({"data": TRADE | {"p": "0x10"}}),
    frame(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
])
async def test_rubbish_is_reported_and_the_next_frame_is_taken(bytes_sent: bytes) -> None:
    async with link() as (server, sink, seen):
        server.write(bytes_sent, frame({"data": TRADE}))
        await sink.until(lambda: sink.rows)
        assert sink.rubbish.total() == 1 and len(seen) == 1


@pytest.mark.parametrize("bytes_sent", [
    frame(b"\x03\xe8", opcode=8), frame(b"", opcode=8), b"\xff\xff\xff\xff\xff\xff\xff\xff", frame({"code": 2, "msg": "too many"}),
    struct.pack("!BBQ", 0x81, 127, 1 << 40)])
async def test_a_link_that_is_closed_or_broken_is_dialled_again_and_nothing_staged_is_lost(bytes_sent: bytes) -> None:
    async with link() as (server, sink, seen):
        server.write(frame({"data": TRADE}))
        await sink.until(lambda: sink.rows)
        server.write(bytes_sent)
        if b"too many" in bytes_sent:
            server.transport.disconnect()  # an error after the subscription is only noted
        await sink.until(lambda: len(seen) == 2 and sink.cuts == 1)
        assert len(sink.rows) == 1


@dataclass
class Scene:
    """A shard that is subscribed, its task, where it delivers, and who serves it."""

    shard: Shard
    task: asyncio.Task[None]
    sink: Sink
    seen: list[Server]
    opened_ns: int
    """When its first link was."""


@asynccontextmanager
async def shard_of(patience: Patience = QUICK, waits: tuple[int, ...] = ()) -> AsyncIterator[Scene]:
    """``waits``: which connections are not acknowledged at once."""
    seen: list[Server] = []
    listening = await ws_create_server(lambda request: Server(seen, len(seen) in waits), "127.0.0.1", 0)
    sink = Sink()
    shard = Shard(sink, streams(Route.MARKET, f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/stream"), patience)
    task = asyncio.create_task(shard.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await sink.ready.wait()
        assert shard.link is not None
        yield Scene(shard, task, sink, seen, shard.link.opened_ns)
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE_S)
        if shard.link is not None:
            shard.link.hang_up()
        listening.close()


async def test_a_shard_that_is_cancelled_in_the_moment_its_link_ends_stays_cancelled() -> None:
    async with shard_of() as s:
        assert s.shard.link is not None
        s.shard.link.closed.set()
        s.task.cancel()
        await asyncio.wait([s.task], timeout=1.0)
        assert s.task.cancelled()


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_link_that_is_hung_up_while_another_one_overlaps_it_does_not_leave_the_shard_closing() -> None:
    async with shard_of(replace(QUICK, renew_s=0.05, overlap_s=0.2)) as s:
        await until(lambda: len(s.seen) == 2)
        s.shard.hang_up()
        assert s.shard.state is SocketState.CLOSING
        await until(lambda: s.shard.flowing)
        assert s.sink.cuts == 1


async def test_a_link_that_is_lost_before_its_successor_is_subscribed_is_told_as_a_cut() -> None:
    async with shard_of(replace(QUICK, renew_s=0.05), waits=(1,)) as s:
        await until(lambda: len(s.seen) == 2 and s.seen[1].waiting)
        old = s.shard.link
        assert old is not None
        old.hang_up()
        await old.closed.wait()
        s.seen[1].answer()
        await until(lambda: s.shard.link is not old and s.shard.flowing)
        assert s.sink.cuts == 1


async def test_a_stream_counts_as_asked_for_from_when_its_request_is_sent() -> None:
    async with shard_of() as s:
        shard, before = s.shard, monotonic_ns()
        assert 0 < shard.since_ns(0) < before
        shard.add(1, "ethusdt@aggTrade", "ETHUSDT", trade_key(1))
        shard.ask_again([0])
        assert (shard.since_ns(0), shard.since_ns(1)) == (0, 0), "they wait"
        assert shard.send_requests() == [1], "two chunks: what is new, and what is to be forgotten"
        assert shard.since_ns(1) >= before and shard.since_ns(0) == 0
        assert shard.send_requests() == [0] and shard.since_ns(0) >= before
        shard.remove(1)
        assert shard.since_ns(1) == 0
        shard.add(1, "ethusdt@aggTrade", "ETHUSDT", trade_key(1))
        assert shard.since_ns(1) == 0, "a stream that comes back is asked for anew"
        shard.hang_up()
        assert shard.since_ns(0) == 0, "nothing is carried any more"


async def test_a_server_that_hangs_up_during_the_handshake_is_dialled_again() -> None:
    """The library calls such a connection made, and never tells its listener of it."""
    dials, thrice = 0, asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        if dials == 3:
            thrice.set()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        sink = Sink()
        shard = Shard(sink, streams(Route.MARKET, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"), QUICK)
        task, waiting = asyncio.create_task(shard.run()), asyncio.create_task(thrice.wait())
        await asyncio.wait({task, waiting}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        for mine in (task, waiting):
            mine.cancel()
        assert thrice.is_set() and not sink.cuts
        with pytest.raises(asyncio.CancelledError):
            await task


LONG: dict[str, Any] = {"stream": "btcusdt@aggTrade", "data": TRADE | {"nq": "0.1", "st": 1}}
"""Longer than a control frame may be."""


async def test_long_messages_short_ones_and_other_events_are_taken_in_their_order() -> None:
    async with link() as (server, sink, _):
        sent = [{"stream": "x" * 100 * (n % 2), "data": TRADE | {"a": n}} for n in range(6)]
        server.write(*(frame(each) for each in sent), frame({"stream": "!markPrice@arr@1s", "data": [MARK, MARK]}), frame(LONG))
        await sink.until(lambda: len(sink.rows) == 9)
        assert [ints[0] for ints, _ in sink.rows] == [trade_key(0)] * 6 + [mark_key(0)] * 2 + [trade_key(0)]
        assert [ints[5] for ints, _ in sink.rows][:6] == list(range(6))


async def test_fragments_longer_than_control_frames_are_put_together() -> None:
    whole = json.dumps({"stream": "x" * 300, "data": TRADE}).encode()
    async with link() as (server, sink, _):
        server.write(frame(whole[:150], fin=False), frame(whole[150:], opcode=0), frame(LONG), frame(b"{}" * 70, opcode=1, fin=False),
                     frame(b"}" * 140, opcode=0), frame(LONG))
        await sink.until(lambda: len(sink.rows) == 3)
        assert sink.rubbish.total() == 1


async def test_a_frame_that_holds_an_end_of_frame_spoils_only_itself() -> None:
    async with link() as (server, sink, _):
        one = json.dumps(LONG).encode()
        server.write(frame(LONG), frame(one + b"\0" + one), frame(LONG))
        await sink.until(lambda: len(sink.rows) == 2)
        assert sink.rubbish.total() == 1


async def test_a_symbol_that_begins_later_is_read_on_the_link_that_is_open() -> None:
    async with link() as (server, sink, _):
        server.write(frame({**LONG, "data": LONG["data"] | {"s": "ETHUSDT"}}))
        await sink.until(lambda: sink.rubbish)
        sink.carriers[-1].add(1, "ethusdt@aggTrade", "ETHUSDT", trade_key(1))
        server.write(frame({**LONG, "data": LONG["data"] | {"s": "ETHUSDT"}}))
        await sink.until(lambda: sink.rows)
        assert sink.rows[0][0][0] == trade_key(1)


async def test_a_symbol_that_begins_during_a_renewal_is_taken_from_both_links() -> None:
    """Its short messages too, which the kernel does not read."""
    eth = frame({"stream": "ethusdt@aggTrade", "data": TRADE | {"s": "ETHUSDT"}})
    async with shard_of(replace(QUICK, renew_s=0.05, overlap_s=0.3)) as s:
        await until(lambda: len(s.seen) == 2 and s.shard.flowing)
        s.shard.add(1, "ethusdt@aggTrade", "ETHUSDT", trade_key(1))
        for server in s.seen[:2]:
            server.write(eth)
        await s.sink.until(lambda: len(s.sink.rows) == 2)
        assert [ints[0] for ints, _ in s.sink.rows] == [trade_key(1)] * 2 and not s.sink.rubbish


async def test_what_begins_and_ends_during_a_renewal_is_judged_and_asked_for_as_it_stands_then() -> None:
    async with shard_of(replace(QUICK, renew_s=0.05, overlap_s=0.3)) as s:
        for index in range(1, 2 * SUBSCRIBE_NAMES):
            s.shard.add(index, f"x{index}usdt@aggTrade", f"X{index}USDT", trade_key(index))
        s.shard.requests.clear()
        await until(lambda: len(s.seen) == 2 and s.seen[1].asked)
        assert len(s.seen[1].asked) == SUBSCRIBE_NAMES, "the rest waits"
        s.shard.remove(2 * SUBSCRIBE_NAMES - 1)
        s.shard.add(500, "ethusdt@aggTrade", "ETHUSDT", trade_key(500))
        while not s.shard.since_ns(500):
            s.shard.send_requests()
        gone = f"x{2 * SUBSCRIBE_NAMES - 1}usdt@aggTrade"
        await until(lambda: "x98usdt@aggTrade" in s.seen[1].asked)
        await until(lambda: s.shard.link is not None and s.shard.link.opened_ns > s.opened_ns)
        assert s.shard.since_ns(500) > 0 and not s.shard.since_ns(2 * SUBSCRIBE_NAMES - 1)
        assert gone not in s.seen[1].asked


async def test_a_socket_whose_streams_have_all_ended_stays_and_is_not_called_mute() -> None:
    async with shard_of(replace(QUICK, mute_s=0.0)) as s:
        assert s.shard.is_mute(monotonic_ns() + 1)
        s.shard.remove(0)
        assert not s.shard.is_mute(monotonic_ns() + 1)
        assert s.shard.link is not None
        s.shard.link.hang_up()
        await until(lambda: len(s.seen) == 2 and s.shard.flowing)


async def test_more_frames_than_rows_in_one_read_are_all_taken() -> None:
    async with link() as (server, sink, _):
        server.write(*(frame({**LONG, "data": LONG["data"] | {"a": n}}) for n in range(3 * ROWS_MAX)))
        await sink.until(lambda: len(sink.rows) == 3 * ROWS_MAX)
        assert [ints[5] for ints, _ in sink.rows] == list(range(3 * ROWS_MAX))
