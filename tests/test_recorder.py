"""What the Feed received and wrote is on disk as it was, plays back through the same code to the same slots, and costs the Feed nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from picows import WSMsgType

from src.clock import clock_at
from src.conflate import Conflator, Staged, mark_key, quote_key, trade_key
from src.data import load_recording
from src.error_handler import Fatal
from src.feed import warm_up
from src.links import MarketLink, PublicLink, Route
from src.recorder import CHUNK_SLOTS, Recorder, Tape
from src.recordings import ADMITTED, ENDED, OPENED, Frame, describe, files_in, frames, slots
from src.ring_buffer import BACKFILLED, GAP, MARK, QUOTE, SLOT_DTYPE, TRADE, Ring
from src.sockets import Patience
from tests.daemon import daemon_env, exchange, running
from tests.test_feed import BTC, ETH, RUBBISH, T0, Scene, scene

CLOCK = clock_at(T0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """No test waits for kernels longer than its deadline."""
    warm_up()


@contextmanager
def recorder(root: Path, max_bytes: int = 10**9) -> Iterator[Recorder]:
    with Recorder(root, CLOCK, max_bytes) as one:
        yield one


def recorded(root: Path) -> tuple[list[Frame], np.ndarray[Any, Any]]:
    return list(frames(root)), np.concatenate([np.empty(0, SLOT_DTYPE), *slots(root)])


async def traffic(s: Scene, *, seed: int = 1, rounds: int = 150) -> None:
    """Bursts of everything: trades in a row, duplicates, a hole, quotes, marks, rubbish, pings."""
    chance = np.random.default_rng(seed)
    ids = {"BTCUSDT": 1, "ETHUSDT": 1}
    for turn in range(rounds):
        name = ("BTCUSDT", "ETHUSDT")[turn % 2]
        for _ in range(int(chance.integers(1, 6))):
            await s.venue.trade(name, ids[name], T0 + turn * 300, f"{100 + chance.integers(0, 50) / 10:.1f}", "0.250")
            ids[name] += int(chance.random() > 0.1)
        if turn == rounds // 2:
            ids[name] += 5
        await s.venue.quote(name, T0 + turn * 300)
        if turn % 10 == 0:
            await s.venue.marks(T0 + turn * 300, "BTCUSDT", "ETHUSDT")
            await s.venue.raw("market", RUBBISH[turn // 10 % len(RUBBISH)])
            for client in s.venue.clients:
                await client.socket.ping(b"1763600000000")
        await asyncio.sleep(0.001)  # so that the Feed reads this round before the next
    await s.venue.marks(T0 + rounds * 300, "BTCUSDT")
    await s.reader.until(lambda: any(slot["time_ms"] == T0 + rounds * 300 for slot in s.reader.of(MARK)))


# --- what is on disk -------------------------------------------------------------------------------------------------------------------

async def test_every_frame_is_there_as_it_came(tmp_path: Path) -> None:
    with recorder(tmp_path) as tape:
        async with scene(BTC, ETH, make_link=tape.make_link, make_conflator=tape.make_conflator) as s:
            sent = json.dumps({"stream": "btcusdt@aggTrade", "data": s.venue.record("BTCUSDT", 1, T0)})
            await s.venue.raw("market", sent)
            await s.venue.raw("market", b"\x00\xff")
            await s.venue.raw("public", "rubbish")
            (market,) = [client for client in s.venue.clients if client.route == "market"]
            await market.socket.ping(b"177")
            await s.reader.count(TRADE)
            await s.venue.until(lambda: any("control" in request for request in market.requests))
    found, _ = recorded(tmp_path)
    run = describe(tmp_path)
    assert {link["route"] for link in run.links.values()} == {"market", "public"} and run.clock == CLOCK
    assert run.symbols == {0: ("BTCUSDT", 0.001), 1: ("ETHUSDT", 0.001)}
    of = {link["route"]: [frame for frame in found if frame.link == number] for number, link in run.links.items()}
    assert [frame.kind for frame in of["market"]] == [OPENED, 1, 1, 2, 9, ENDED]
    assert [frame.payload for frame in of["market"]][2:5] == [sent.encode(), b"\x00\xff", b"177"]
    assert [frame.payload for frame in of["public"] if frame.kind == WSMsgType.TEXT][1:] == [b"rubbish"]
    assert json.loads(of["market"][1].payload)["result"] is None and all(frame.fin for frame in found if frame.kind < OPENED)
    assert [frame.received_ns for frame in found] == sorted(frame.received_ns for frame in found)


async def test_every_slot_is_there_as_the_reader_had_it(tmp_path: Path) -> None:
    with recorder(tmp_path) as tape:
        async with scene(BTC, ETH, make_link=tape.make_link, make_conflator=tape.make_conflator) as s:
            await traffic(s)
            read = s.reader.slots
    _, found = recorded(tmp_path)
    expected = np.array(read, SLOT_DTYPE)
    assert len(expected) > 200 and found[:len(expected)].tobytes() == expected.tobytes()
    assert tape.tally.slots == len(found) and tape.tally.lost_slots == tape.tape.lost_slots == 0


async def test_slots_that_the_ring_had_no_room_for_at_first_are_there_in_their_order(tmp_path: Path) -> None:
    ring, tape = Ring.create(10_000), Tape(SimpleQueue())
    capacity = ring.free_count()
    with recorder(tmp_path) as one:
        conflator = one.make_conflator([1.0], ring, 32_768)
        read = []
        for second in range(capacity + 500):
            assert conflator.time(T0 + second, second + 1)
        read.extend(ring.read_new(1 << 20))
        conflator.drain()
        read.extend(ring.read_new(1 << 20))
    ring.close()
    _, found = recorded(tmp_path)
    assert len(read) == capacity + 500 > CHUNK_SLOTS and found.tobytes() == np.array(read, SLOT_DTYPE).tobytes() and tape.handed == 0


# --- played back -----------------------------------------------------------------------------------------------------------------------

@dataclass
class Carried:
    """What a link needs to know of its shard."""

    route: Route
    keys: dict[str, int]
    mark_keys: dict[str, int]


@dataclass
class Came:
    """A recorded frame in the shape of the library's."""

    frame: Frame
    msg_type: Any = field(init=False)

    def __post_init__(self) -> None:
        self.msg_type = WSMsgType(self.frame.kind)
        self.fin, self.last_in_buffer, self.payload_size = self.frame.fin, self.frame.last, len(self.frame.payload)

    def get_payload_as_bytes(self) -> bytes:
        return self.frame.payload


class Player:
    """The Feed's own links and table over recorded frames. Time stands where the recording says."""

    def __init__(self, folder: Path, ring: Ring) -> None:
        run = describe(folder)
        self.conflator = Conflator([run.symbols[index][1] for index in sorted(run.symbols)], ring)
        self.conflator.set_limit(2**52)
        self.frames = self.rubbish = self.now_ns = 0
        names = {name: index for index, (name, _) in run.symbols.items()}
        carried = {
            "market": Carried(Route.MARKET, {n: trade_key(i) for n, i in names.items()}, {n: mark_key(i) for n, i in names.items()}),
            "public": Carried(Route.PUBLIC, {n: quote_key(i) for n, i in names.items()}, {})}  # fmt: skip
        links: dict[str, Any] = {"market": MarketLink, "public": PublicLink}
        self.links = {number: links[link["route"]](self, carried[link["route"]], link["held"]) for number, link in run.links.items()}

    def play(self, folder: Path) -> None:
        for frame in frames(folder):
            self.now_ns = frame.received_ns
            if frame.kind == ADMITTED:
                self.links[frame.link].admit()
            elif frame.kind < OPENED:
                self.links[frame.link].on_ws_frame(self, Came(frame))

    def flush(self, carrier: Any, staged: Staged, rows: int, received_ns: int, event_ms: int) -> None:
        self.frames += rows
        self.conflator.flush(staged, rows, self.now_ns)

    def bad(self, error: Exception, size: int) -> None:
        self.rubbish += 1

    def contract(self, event: Any) -> None:
        """No news."""

    def send_pong(self, payload: bytes) -> None:
        """Nobody is there."""

    def disconnect(self, graceful: bool = True) -> None:
        """Nobody is there."""


def market_slots(found: np.ndarray[Any, Any]) -> list[tuple[Any, ...]]:
    """Slots that come of frames alone, without the ring's own number."""
    wanted = np.isin(found["kind"], (TRADE, QUOTE, MARK, GAP)) & (found["flags"] & BACKFILLED == 0)
    return [slot.tolist()[1:] for slot in found[wanted]]


@pytest.mark.parametrize("seed", [1, 2])
async def test_frames_played_back_through_the_same_code_give_the_same_slots(tmp_path: Path, seed: int) -> None:
    with recorder(tmp_path) as tape:
        async with scene(BTC, ETH, make_link=tape.make_link, make_conflator=tape.make_conflator) as s:
            await traffic(s, seed=seed)
    _, found = recorded(tmp_path)
    ring = Ring.create(16_384)
    try:
        player = Player(tmp_path, ring)
        player.play(tmp_path)
        again = np.array(ring.read_new(1 << 20), SLOT_DTYPE)
    finally:
        ring.close()
    expected = market_slots(found)
    assert sum(slot[1] == GAP for slot in expected) >= 1 and len(expected) > 200 and player.rubbish > 5
    assert market_slots(again) == expected


async def test_a_renewed_socket_is_recorded_and_played_back_without_a_double(tmp_path: Path) -> None:
    patience = Patience(connect_s=2.0, renew_s=0.2, overlap_s=0.1, silent_s=1e6, mute_s=1e6, backoff_s=(0.02, 0.1))
    with recorder(tmp_path) as tape:
        async with scene(BTC, make_link=tape.make_link, make_conflator=tape.make_conflator, patience=patience) as s:
            for number in range(1, 200):
                await s.venue.trade("BTCUSDT", number, T0 + number)
                await asyncio.sleep(0.005)
            await s.reader.until(lambda: s.reader.volume() == {T0 // 60_000: 199})
            assert s.venue.connects["market"] > 2
    found, _ = recorded(tmp_path)
    assert sum(frame.kind == ADMITTED for frame in found) >= 1
    assert any(link["held"] for link in describe(tmp_path).links.values())
    ring = Ring.create(16_384)
    try:
        Player(tmp_path, ring).play(tmp_path)
        again = np.array(ring.read_new(1 << 20), SLOT_DTYPE)
    finally:
        ring.close()
    trades = again[again["kind"] == TRADE]
    assert trades["volume"].sum() == 199 and not (again["kind"] == GAP).any()


async def test_the_trades_of_a_recording_are_a_market(tmp_path: Path) -> None:
    with recorder(tmp_path) as tape:
        async with scene(BTC, ETH, make_link=tape.make_link, make_conflator=tape.make_conflator) as s:
            await traffic(s)
            history = {symbol: {row["a"]: row for row in rows} for symbol, rows in s.venue.history.items()}
    for folder in (tmp_path, tape.folder):
        found = load_recording(str(folder)).trades
        assert set(found) == set(history)
        for symbol, rows in history.items():
            first = {}
            for row in s.venue.history[symbol]:
                first.setdefault(row["a"], row)
            trades = found[symbol]
            assert trades.agg_id is not None and trades.agg_id.tolist() == sorted(rows)
            assert trades.price.tolist() == [float(first[a]["p"]) for a in sorted(rows)]
            assert trades.time_ms.tolist() == [first[a]["T"] for a in sorted(rows)]
    assert set(load_recording(str(tmp_path), symbols=("ETHUSDT",)).trades) == {"ETHUSDT"}


# --- bounds ----------------------------------------------------------------------------------------------------------------------------

def fill(tape: Tape, megabytes: int, seed: int = 1) -> int:
    """So many frames of noise, half a megabyte each."""
    chance = np.random.default_rng(seed)
    for number in range(2 * megabytes):
        tape.row(0, 1 | 192, number + 1, chance.bytes(500_000))
    return 2 * megabytes


def one_link(tape: Tape) -> None:
    class Nobody:
        route, keys, mark_keys = Route.MARKET, {"BTCUSDT": trade_key(0)}, {}

    tape.new_link(Nobody(), False)


def test_what_the_queue_has_no_room_for_is_lost_and_counted_and_nobody_waits() -> None:
    tape = Tape(SimpleQueue(), queue_bytes=10_000_000)
    sent = fill(tape, 30)
    tape.finish()
    assert tape.handed <= 10_000_000 and 38 <= tape.lost_frames < sent


def test_the_oldest_files_make_room_and_are_counted(tmp_path: Path) -> None:
    old = tmp_path / "2020-01-01T000000"
    old.mkdir(parents=True)
    (old / "frames-000001.parquet").write_bytes(b"x" * 4_000_000)
    ring = Ring.create(10_000)
    with recorder(tmp_path, 10_000_000) as one:
        one.make_conflator([1.0], ring)
        one_link(one.tape)
        fill(one.tape, 30)
    ring.close()
    files = files_in(tmp_path, "frames")
    assert sum(file.stat().st_size for file in files) <= 10_000_000 and not old.exists()
    assert one.tally.rotated_out >= 10 and one.tally.frames == 60 and files[0].name != "frames-000001.parquet"
    kept = list(frames(tmp_path))
    assert [frame.received_ns for frame in kept] == list(range(61 - len(kept), 61)) and len(kept) >= 6


def test_a_disk_that_refuses_costs_rows_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with recorder(tmp_path / "file") as one:
        one_link(one.tape)
        sent = fill(one.tape, 4)
    assert one.tally.lost_frames == sent and one.tally.frames == 0
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "the recording is not written" in said and "loses rows" in said


FULL = """
import resource, signal, sys
from pathlib import Path
from src.error_handler import setup_logging
from src.ring_buffer import Ring
from tests.test_recorder import fill, one_link, recorder
setup_logging("feed")
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
with recorder(Path(sys.argv[1])) as one:
    one.make_conflator([1.0], Ring.create(10_000))
    one_link(one.tape)
    fill(one.tape, 10)
print("lost", one.tally.lost_frames, "kept", one.tally.frames, flush=True)
"""


def test_a_disk_that_fills_up_drops_the_open_file_and_says_so(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.stdout.strip().endswith("lost 20 kept 0") and "File too large" in done.stdout
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_killed_run_left_half_written_goes_at_the_next_start(tmp_path: Path) -> None:
    half = tmp_path / "2020-01-01T000000" / ".frames-000001.parquet.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    with recorder(tmp_path) as one:
        one_link(one.tape)
    assert not half.exists()


def test_a_folder_without_a_recording_and_a_file_of_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="holds no recording"):
        describe(tmp_path)
    (tmp_path / "frames-000001.parquet").write_bytes(b"x")
    with pytest.raises(Fatal, match=r"frames-000001\.parquet cannot be read"):
        describe(tmp_path)


def test_without_record_nothing_of_it_is_loaded() -> None:
    code = "import sys, src.feed, src.renewal, src.processes; print([m for m in ('pyarrow', 'src.recorder', 'src.recordings') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- the daemon ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_daemon_records_and_another_plays_it(tmp_path: Path) -> None:
    env = daemon_env(tmp_path, UNIVERSE_SIZE="5", SIM_SPEED="20", RECORD="1")
    with running([], env) as process:
        process.wait_line("📼 Recording frames and slots to")
        process.wait_line("✅ All processes running")
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(8)
        assert process.stop() == 0, process.output
        process.wait_line("📼 Recorded")
    found, taken = recorded(tmp_path / "data/recordings")
    assert len(found) > 500 and len(taken) > 500 and (np.diff(taken["seq"].astype(np.int64)) == 1).all()
    market = load_recording(str(tmp_path / "data/recordings")).trades
    assert len(market) == 5
    with exchange(tmp_path / "again", "--market", "replay", "--path", str(tmp_path / "data/recordings")) as (again, urls):
        assert urls["rest"].startswith("http") and again.process.poll() is None
