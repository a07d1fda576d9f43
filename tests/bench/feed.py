"""The Feed from socket to the Brain's candles: frames a second, processor time and age, beside five other clients on the same frames.

A sender in a process of its own (``tests/bench/sender.py``) sends prebuilt frames of 300 symbols, three aggregate trades to two best quotes.
The Feed runs here, on uvloop; the Brain's market, without a strategy, consumes the ring in a third process, parked as the Brain parks. It
keeps candles of one second. At the end of each run its candles must equal those built from the sender's own log, to the last step.

The other clients are set up as their documents show it, each in its own virtual environment (``tests/bench/environments.py``), and do what
they do with a frame; bare websockets and aiohttp do not look at it, once on asyncio and once on uvloop. Ages are of the oldest trade of a
slot, from the moment before its frame was handed to the sender's socket until the Brain has consumed the slot.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop
from numba import njit

from src import kernel_cache
from src.clock import clock_at, monotonic_ns
from src.counters import Counters
from src.feed import FeedOptions, run_feed, warm_up
from src.market_state import MarketState
from src.models import SymbolRules
from src.ring_buffer import AT_OPEN, AT_TRADE_COUNT, TRADE, Ring, head_tail, slot_offset
from src.sockets import Patience
from tests.bench import Row, row
from tests.bench.certificate import trusted_certificate
from tests.bench.environments import available, client_run
from tests.bench.sender import PRICE_BASE, STEPS_PER_UNIT, SYMBOLS, T0, WHOLE_FRAMES, Log, run_sender
from tests.spawned import SPAWN

FRAMES = 3_000_000
ROUNDS = 3
RATES = (10_000, 50_000, 100_000, 300_000)
STEADY_S = 4.5
CANDLE_MS = 1_000
PEEKED_MAX = 1 << 15
NS = 1e9
PATIENCE = Patience(silent_s=3600.0, mute_s=60.0)
"""The sender is quiet while it builds its frames."""
_ONE = Decimal(1)
RULES = tuple(SymbolRules(name, Decimal(1), _ONE / STEPS_PER_UNIT, *[_ONE] * 6) for name in SYMBOLS)
Floats = npt.NDArray[np.float64]


# --- the Brain's end ---------------------------------------------------------------------------------------------------------------------

@njit(cache=True)
def _peek(words: Any, floats: Any, opens: Any, counts: Any) -> int:
    """Opening price (0 where there is none) and number of trades of each waiting slot. How many slots."""
    head, tail = head_tail(words)
    waiting = min(head - tail, len(opens))
    for i in range(waiting):
        at = slot_offset(words, tail + i)
        trade = (words[at] >> np.uint64(48)) & np.uint64(0xFF) == TRADE
        opens[i] = floats[at + AT_OPEN] if trade else 0.0
        counts[i] = np.int64(words[at + AT_TRADE_COUNT]) if trade else 0
    return int(waiting)


def brain(ring: Ring, pipe: Connection) -> None:
    """The Brain's market on the ring. Told (start in ns, trades to come), it answers (end in ns, ages and lags in µs, slots, candles, processor
    seconds) once it has them all."""
    kernel_cache.use()
    market = MarketState(SYMBOLS, np.full(len(SYMBOLS), 1 / STEPS_PER_UNIT), candle_ms=CANDLE_MS, setup_ms=15_000, context_ms=60_000)
    market.warm_up()
    opens, counts = np.zeros(PEEKED_MAX), np.zeros(PEEKED_MAX, np.int64)
    _peek(ring.words, ring.floats, opens[:0], counts)
    selector = selectors.DefaultSelector()
    selector.register(ring.wake_fd, selectors.EVENT_READ)
    pipe.send("ready")
    gc.freeze()
    began, wanted = pipe.recv()
    ages: list[Floats] = []
    lags: list[float] = []
    seen = slots = 0
    cpu = sum(os.times()[:2])
    while seen < wanted:
        ring.unpark()
        while not ring.park():
            waiting = _peek(ring.words, ring.floats, opens, counts)
            batch = market.consume(ring, limit=waiting, now_ns=monotonic_ns())
            lags.append(batch.lag_ns_max / 1e3)
            now = (monotonic_ns() - began) / 1e3 + PRICE_BASE
            taken = opens[:batch.consumed]
            ages.append(now - taken[taken > 0])
            seen, slots = seen + int(counts[:batch.consumed].sum()), slots + batch.consumed
            if seen >= wanted:
                break
        else:
            selector.select(5.0)
    end, cpu = monotonic_ns(), sum(os.times()[:2]) - cpu
    pipe.send((end, np.concatenate(ages), np.array(lags), slots, candles_of(market), cpu))
    pipe.recv()


def candles_of(market: MarketState) -> list[Floats]:
    """Of each symbol its candles, the open one last: opening, OHLC, volume, trades, taker volume."""
    found = []
    for i in range(len(SYMBOLS)):
        last = market.open_candle(i)
        names = ("open_ms", "open", "high", "low", "close", "volume", "trades", "taker_volume")
        found.append(np.vstack([market.candles(i, CANDLE_MS), [last[name] for name in names]]))
    return found


def expected(logs: list[Log]) -> list[Floats]:
    """The same from the sender's logs, each symbol's trades taken in their order."""
    found: list[Floats] = [np.empty((0, 8))] * len(SYMBOLS)
    for log in logs:
        order = np.argsort(log.symbol, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(log.symbol[order])) + 1):
            seconds, price, steps = log.time_ms[part] // CANDLE_MS, log.price[part].astype(float), log.steps[part].astype(float)
            first = np.flatnonzero(np.diff(seconds, prepend=-1))
            last = np.append(first[1:], len(part)) - 1
            found[int(log.symbol[part[0]])] = np.column_stack([
                seconds[first] * CANDLE_MS, price[first], np.maximum.reduceat(price, first), np.minimum.reduceat(price, first), price[last],
                np.add.reduceat(steps, first), 2.0 * (last - first + 1), np.add.reduceat(steps * log.taker_buys[part], first)])
    return found


# --- runs --------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to. ``ages``, ``lags``, ``late``: µs; ``lags`` since
    the socket read, of the oldest slot of each batch. ``cpu``, ``brain_cpu``: seconds of a processor."""

    frames: int
    seconds: float
    cpu: float
    brain_cpu: float
    slots: int
    ages: Floats
    lags: Floats
    late: list[float]

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


@contextmanager
def child(function: Callable[..., None], *arguments: Any, first: tuple[Any, ...] = ()) -> Iterator[Connection]:
    """A process that talks with us over a pipe: ``function(*first, pipe, *arguments)``."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=function, args=(*first, there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
        here.send("end")
        process.join(20)
    finally:
        process.kill()
        process.join()


async def hear(pipe: Connection) -> Any:
    """What the process says, without holding up the loop."""
    return await asyncio.to_thread(pipe.recv)


async def _feed(frames: int, rate: int, certificate: str) -> Run:
    ring, counters, stop, flowing = Ring.create(), Counters.create(), asyncio.Event(), asyncio.Event()
    try:
        with child(run_sender, frames, rate, certificate) as sender, child(brain, first=(ring,)) as reader:
            port = await hear(sender)
            base, rest = f"{'wss' if certificate else 'ws'}://127.0.0.1:{port}", f"http{'s' if certificate else ''}://127.0.0.1:{port}"
            clock = clock_at(T0 + 600_000, 1.0)
            options = FeedOptions(f"{base}/market", f"{base}/public", rest, clock, RULES, patience=PATIENCE)
            feed = asyncio.create_task(run_feed(options, ring, counters, flowing.set, stop))
            await flowing.wait()
            gc.freeze()  # as a process of the daemon does when it is ready
            assert await hear(reader) == "ready"
            count = await hear(sender)
            cpu, began = sum(os.times()[:2]), monotonic_ns()
            reader.send((began, count * 3 // 5 * 2))
            sender.send(began)
            late = await hear(sender)
            end, ages, lags, slots, candles, brain_cpu = await hear(reader)
            cpu = sum(os.times()[:2]) - cpu
            stop.set()
            await feed
            sender.send("log")
            logs = await hear(sender)
        for got, sent in zip(candles, expected(logs), strict=True):
            np.testing.assert_array_equal(got, sent)
        assert counters.get("feed", "gaps") == 0
    finally:
        ring.close()
        counters.close()
    return Run(count, (end - began) / NS, cpu, brain_cpu, slots, ages, lags, late)


def feed_run(frames: int, rate: int, certificate: str = "") -> Run:
    return uvloop.run(_feed(frames, rate, certificate))


def others(frames: int, certificate: str) -> dict[str, tuple[float, float]]:
    """Of each client that could be set up: frames a second, and frames a second of its own processor time."""
    found = {}
    for name, environment in available().items():
        part = frames // environment.slower // WHOLE_FRAMES * WHOLE_FRAMES
        with child(run_sender, part, 0, certificate if environment.tls else "") as sender:
            run = client_run(name, sender, part)
        found[name] = (run["frames"] / run["seconds"], run["frames"] / run["cpu"])
    return found


def run() -> Iterator[Row]:
    warm_up()
    available()
    with tempfile.TemporaryDirectory() as folder:
        certificate = trusted_certificate(Path(folder))
        yield from _flat_rows(certificate)
        for way, pem in (("plain", ""), ("TLS", certificate)):
            for rate in RATES:
                yield from _steady_rows(way, rate, pem)


def _flat_rows(certificate: str) -> Iterator[Row]:
    """Everyone in turn, several times: figures are medians over the rounds, so that all share what else the machine does."""
    runs: dict[str, list[Run]] = {"plain": [], "TLS": []}
    theirs: list[dict[str, tuple[float, float]]] = []
    for _ in range(ROUNDS):
        runs["plain"].append(feed_run(FRAMES, 0))
        theirs.append(others(FRAMES, certificate))
        runs["TLS"].append(feed_run(FRAMES, 0, certificate))
    middle = {name: [statistics.median(one[name][k] for one in theirs) for k in (0, 1)] for name in theirs[0]}
    for way, ours in runs.items():
        case = f"300 symbols flat out, {way}: socket to candles"
        rate, work = statistics.median(one.rate for one in ours), statistics.median(one.frames / one.cpu for one in ours)
        for name, (their_rate, their_work) in middle.items():
            yield row("feed", case, "frames_per_s", rate, reference=name, reference_value=their_rate)
            yield row("feed", case, "frames_per_cpu_s", work, reference=name, reference_value=their_work)
        yield row("feed", case, "best_frames_per_s", max(one.rate for one in ours))
        yield row("feed", case, "frames_per_slot", statistics.median(one.frames / one.slots for one in ours))
        yield row("feed", case, "brain_cpu_percent_of_core", statistics.median(100 * one.brain_cpu / one.seconds for one in ours))


def _steady_rows(way: str, rate: int, certificate: str) -> Iterator[Row]:
    """Medians over the rounds; the best round says what the machine allows when nobody else wants it."""
    runs = [feed_run(int(rate * STEADY_S), rate, certificate) for _ in range(ROUNDS)]
    case = f"{rate // 1000} k frames/s, {way}"
    for part in (50, 99):
        ages = [float(np.percentile(one.ages, part)) for one in runs]
        late = statistics.median(float(np.percentile(one.late, part)) for one in runs)
        yield row("feed", f"{case}: sent to consumed", f"p{part}_us", statistics.median(ages), reference="sender's own lateness",
                  reference_value=late)
        yield row("feed", f"{case}: sent to consumed, best round", f"p{part}_us", min(ages))
    yield row("feed", f"{case}: socket read to consumed, oldest of a batch", "p99_us",
              statistics.median(float(np.percentile(one.lags, 99)) for one in runs))
    for name, used in (("Feed", [one.cpu / one.seconds for one in runs]), ("Brain", [one.brain_cpu / one.seconds for one in runs])):
        yield row("feed", f"{case}: {name}", "cpu_percent_of_core", 100 * statistics.median(used))
