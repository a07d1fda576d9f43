"""The ring: a call, slots a second across two processes, and the way from a write to its reader.

Every slot is filled in all of its 128 bytes and read in all of them, and the sum of what was read is compared with what was written.
References carry the same number of bytes; iceoryx2 runs in an environment of its own, through its Python binding. Across two cores the bound
is the machine's: how fast one core may store over what the other has read, which is a reference of its own. Spinning figures want a core for
each side: on a shared machine their tails are the scheduler's.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import uvloop
import zmq
from numba import njit

from src import ring_buffer as rb
from src.clock import monotonic_ns, token
from src.ring_buffer import Ring
from src.shared_memory import SharedDescriptor, SharedWords
from tests.bench import REPETITIONS, SHORT_REPETITIONS, Row, ns_per_op, percentile, row
from tests.bench.environments import CLIENTS_FOLDER, ICEORYX, built
from tests.spawned import SPAWN, spawned

CALLS = 1_500
SLOTS = 40_000_000
SLOTS_COPIED = 8_000_000
BATCH = 1_024
MESSAGES = 60_000
ZMQ_BATCH = 64
TURNS = 101
ROUNDS = 4_000
SPINNING_ROUNDS = 200_000
PAUSE_S = 0.0002
"""Between two writes to a parked reader: long enough for it to have parked again."""
PAYLOAD = bytes(128)
PATIENCE = 2_000
"""Turns that a kernel waits for the other side before it offers the core to it."""


def run() -> Iterator[Row]:
    yield from calls()
    yield from throughput()
    yield from latency()


def calls() -> Iterator[Row]:
    """One write from Python, beside packing the same 48 bytes."""
    ring, buffer = Ring.create(), bytearray(48)

    def write() -> None:
        for _ in range(CALLS):
            ring.write_candle(3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)

    def write_flow() -> None:
        for _ in range(CALLS):
            ring.write_candle(3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, kind=rb.QUOTE, received_ns=7)

    def pack() -> None:
        for _ in range(CALLS):
            struct.pack_into("<6d", buffer, 0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)

    reference = ns_per_op(pack, CALLS, repetitions=SHORT_REPETITIONS)
    for case, operation in (("write_candle", write), ("write_candle with flow", write_flow)):
        value = ns_per_op(operation, CALLS, before=lambda: _empty(ring), repetitions=SHORT_REPETITIONS)
        yield row("ring", case, "ns_per_op", value, reference="struct.pack_into", reference_value=reference)
    ring.close()


def _empty(ring: Ring) -> None:
    while len(ring.read_new()):
        pass


# --- slots a second


@njit
def _produce(words: Any, first: int, total: int, batch: int, patience: int) -> int:
    """Fills slots in place until ``total`` or out of patience; word w of slot p is p + w. Returns the next position."""
    waited = 0
    while first < total and waited < patience:
        head, free = rb.claim(words)
        count = min(free, batch, total - first)
        waited += 1
        if count > 0:
            for position in range(head, head + count):
                at = rb.slot_offset(words, position)
                words[at] = rb.slot_head(position, position & 0xFFFF, rb.TRADE, 0)
                for word in range(1, rb.SLOT_WORDS):
                    words[at + word] = np.uint64(position + word)
            rb.publish(words, head + count, head)
            first += count
            waited = 0
    return first


@njit
def _consume(words: Any, sums: Any, total: int, patience: int) -> Any:
    """Reads slots in place until ``total`` are released or out of patience, adding each word to its sum in ``sums`` (16).
    (released, wrong sequence numbers)"""
    wrong, waited = 0, 0
    head, tail = rb.head_tail(words)
    while tail < total and waited < patience:
        waited += 1
        if head > tail:
            for position in range(tail, head):
                at = rb.slot_offset(words, position)
                wrong += not rb.slot_valid(words, position)
                for word in range(rb.SLOT_WORDS):
                    sums[word] += words[at + word]
            rb.release(words, head)
            waited = 0
        head, tail = rb.head_tail(words)
    return tail, wrong


@njit
def _add_copied(words: Any, sums: Any) -> None:
    for at in range(0, len(words), rb.SLOT_WORDS):
        for word in range(rb.SLOT_WORDS):
            sums[word] += words[at + word]


def expected_sums(slots: int) -> list[int]:
    """Of each word but the first: word w of slot p holds p + w."""
    return [(slots * (slots - 1) // 2 + word * slots) % 2**64 for word in range(1, rb.SLOT_WORDS)]


def throughput() -> Iterator[Row]:
    """Processes are left where the scheduler puts them, but for one case in which both take turns on one core."""
    cases = {
        "two processes, kernels in place": _median(lambda: _slots_in_place(SLOTS)),
        "two processes on one core, kernels in place": _on_one_core(lambda: _median(lambda: _slots_in_place(SLOTS))),
        "two processes, write_slots to read_new": _median(lambda: _slots_copied(SLOTS_COPIED)),
    }
    references = {
        "bare stores over what another core has read": _bare_stores(),
        "multiprocessing.Queue": _median(lambda: _queue(MESSAGES), 3),
        "zmq ipc": _median(lambda: _zmq(MESSAGES * 5, 1), 3),
        f"zmq ipc, {ZMQ_BATCH} a message": _median(lambda: _zmq(MESSAGES * 5, ZMQ_BATCH), 3),
    }
    if built(ICEORYX):
        references["iceoryx2"] = _median(lambda: _iceoryx("rate", MESSAGES, 1), 3)
        references[f"iceoryx2, {ZMQ_BATCH} a message"] = ZMQ_BATCH * _median(lambda: _iceoryx("rate", MESSAGES, ZMQ_BATCH), 3)
    for case, value in cases.items():
        for reference, figure in references.items():
            yield row("ring", case, "slots_per_s", value, reference=reference, reference_value=figure)


def _on_one_core(measure: Callable[[], float]) -> float:
    """Children inherit the core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, cores)


def _median(measure: Callable[[], float], repetitions: int = REPETITIONS) -> float:
    return statistics.median(measure() for _ in range(repetitions))


def _meet(ready: SharedDescriptor, go: SharedDescriptor) -> None:
    os.eventfd_write(ready.fd, 1)
    os.eventfd_read(go.fd)


def _produce_in_place(ring: Ring, total: int, ready: SharedDescriptor, go: SharedDescriptor) -> None:
    _produce(ring.words, 0, 0, BATCH, PATIENCE)
    _meet(ready, go)
    done = 0
    while done < total:
        done = _produce(ring.words, done, total, BATCH, PATIENCE)
        os.sched_yield()


def _slots_in_place(total: int) -> float:
    def consume(ring: Ring, sums: Any) -> None:
        released = 0
        while released < total:
            released, wrong = _consume(ring.words, sums, total, PATIENCE)
            assert not wrong, "a slot of another position"
            os.sched_yield()

    return _across(_produce_in_place, consume, total)


def _produce_copied(ring: Ring, total: int, ready: SharedDescriptor, go: SharedDescriptor) -> None:
    slots = np.zeros(BATCH, rb.SLOT_DTYPE)
    words = slots.view(np.uint64).reshape(-1, rb.SLOT_WORDS)
    pattern = np.arange(rb.SLOT_WORDS, dtype=np.uint64)[1:] + np.arange(BATCH, dtype=np.uint64)[:, None]
    _meet(ready, go)
    done = 0
    while done < total:
        free = min(BATCH, total - done, ring.free_count())
        if not free:
            os.sched_yield()
            continue
        np.add(pattern, np.uint64(done), out=words[:, 1:])
        slots["kind"] = rb.TRADE
        done += ring.write_slots(slots[:free])


def _slots_copied(total: int) -> float:
    def consume(ring: Ring, sums: Any) -> None:
        released = 0
        while released < total:
            slots = ring.read_new()
            if not len(slots):
                os.sched_yield()
            released += len(slots)
            _add_copied(slots.view(np.uint64), sums)

    return _across(_produce_copied, consume, total)


def _across(produce: Callable[..., None], consume: Callable[[Ring, Any], None], total: int) -> float:
    """Slots a second, from the word to start until the last was read; the reader here, the writer in a child."""
    ring, sums = Ring.create(), np.zeros(rb.SLOT_WORDS, np.uint64)
    ready, go = (SharedDescriptor(os.eventfd(0)) for _ in range(2))
    _consume(ring.words, sums, 0, PATIENCE)
    _add_copied(ring.words[:0], sums)
    with spawned(produce, ring, total, ready, go):
        os.eventfd_read(ready.fd)
        start = monotonic_ns()
        os.eventfd_write(go.fd, 1)
        consume(ring, sums)
        seconds = (monotonic_ns() - start) / 1e9
    assert sums[1:].tolist() == expected_sums(total), "what was read is not what was written"
    for shared in (ring, ready, go):
        shared.close()
    return total / seconds


@njit
def _overwrite(words: Any, first: int, plus: int) -> None:
    for at in range(first, len(words)):
        words[at] = np.uint64(at + plus)


def _overwrite_in_turns(words: SharedWords, ready: SharedDescriptor, go: SharedDescriptor) -> None:
    """On the last core; word 0 gets the nanoseconds of each turn."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _overwrite(words.words, len(words.words), 0)
    for turn in range(TURNS):
        os.eventfd_read(go.fd)
        start = monotonic_ns()
        _overwrite(words.words, rb.SLOT_WORDS, turn)
        words.words[0] = monotonic_ns() - start
        os.eventfd_write(ready.fd, 1)


def _bare_stores() -> float:
    """What the machine allows without any ring: a process stores over a ring's worth of memory that one on another core has just read.
    Slots a second of the storing alone: every cache line must change its owner."""
    words = SharedWords.create("aegis-bench", (rb.SLOTS_DEFAULT + 1) * rb.SLOT_WORDS)
    ready, go = (SharedDescriptor(os.eventfd(0)) for _ in range(2))
    figures, cores = [], os.sched_getaffinity(0)
    with spawned(_overwrite_in_turns, words, ready, go):
        os.sched_setaffinity(0, {min(cores)})
        for _ in range(TURNS):
            words.words.sum()
            os.eventfd_write(go.fd, 1)
            os.eventfd_read(ready.fd)
            figures.append(rb.SLOTS_DEFAULT / int(words.words[0]) * 1e9)
        os.sched_setaffinity(0, cores)
    for shared in (words, ready, go):
        shared.close()
    return statistics.median(figures)


def _put_all(queue: Any, messages: int) -> None:
    for _ in range(messages):
        queue.put(PAYLOAD)


def _queue(messages: int) -> float:
    queue = SPAWN.Queue()
    with spawned(_put_all, queue, messages):
        queue.get()
        start = monotonic_ns()
        for _ in range(messages - 1):
            queue.get()
        return (messages - 1) / (monotonic_ns() - start) * 1e9


def _push_all(address: str, messages: int, message: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(address)
        for _ in range(messages):
            socket.send(message)


def _zmq(slots: int, batch: int) -> float:
    """Slots a second, ``batch`` of them a message."""
    messages = slots // batch
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        address = f"ipc://{folder}/bench"
        socket.bind(address)
        with spawned(_push_all, address, messages, PAYLOAD * batch):
            socket.recv()
            start = monotonic_ns()
            for _ in range(messages - 1):
                socket.recv()
            return (messages - 1) * batch / (monotonic_ns() - start) * 1e9


def _iceoryx(what: str, messages: int, slots: int) -> Any:
    """Messages a second for "rate"; each one's nanoseconds for "way"."""
    words = [str(ICEORYX.python), str(CLIENTS_FOLDER / "iceoryx.py")]
    rest = [f"aegis/{token(8)}", what, str(messages), str(slots)]
    ends = [subprocess.Popen([*words, role, *rest], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for role in ("receive", "send")]
    try:
        for end in ends:
            assert end.stdout is not None and end.stdout.readline() == "ready\n", "iceoryx2 does not begin"
        receiver, sender = ends
        assert receiver.stdout is not None and sender.stdin is not None
        sender.stdin.write("go\n")
        sender.stdin.flush()
        return json.loads(receiver.stdout.readline())
    finally:
        for end in ends:
            end.kill()
            end.communicate()


# --- one way


def latency() -> Iterator[Row]:
    """Microseconds from before the write until the reader holds the slot."""
    pipe = _one_way(_send_stamps, _receive_pipe, SPAWN.Pipe(duplex=False))
    others = {"multiprocessing.Pipe": pipe, "zmq ipc": _zmq_one_way()}
    if built(ICEORYX):
        others["iceoryx2, spinning"] = [figure / 1e3 for figure in _iceoryx("way", ROUNDS, 1)[1:]]
    parked = {"parked, poll": _ring_one_way(_wait_by_poll), "parked, uvloop": _ring_one_way(_wait_by_uvloop)}
    spinning = {"spinning, kernels, half a round trip": _spinning_kernels(), "spinning, Python": _ring_one_way(_wait_by_spinning)}
    for case, figures in (parked | spinning).items():
        for part, metric in ((0.5, "p50_us"), (0.99, "p99_us")):
            for reference, ages in others.items():
                yield row("ring", case, metric, percentile(figures, part), reference=reference, reference_value=percentile(ages, part))


def _write_stamps(ring: Ring) -> None:
    record = np.zeros(1, rb.SLOT_DTYPE)
    ring.write_slots(record)
    for _ in range(ROUNDS - 1):
        while ring.free_count() < ring.capacity:
            os.sched_yield()
        time.sleep(PAUSE_S)
        record["received_ns"] = monotonic_ns()
        ring.write_slots(record)


def _ring_one_way(wait: Callable[[Ring, Callable[[], bool]], None]) -> list[float]:
    """The first slot only says that the writer is there."""
    ring, ages = Ring.create(), []

    def take() -> bool:
        """Reads what there is. True when all is read."""
        slots = ring.read_new()
        if len(slots):
            ages.append((monotonic_ns() - int(slots[-1]["received_ns"])) / 1e3)
        return len(ages) == ROUNDS

    with spawned(_write_stamps, ring):
        wait(ring, take)
    ring.close()
    return ages[1:]


def _wait_by_poll(ring: Ring, take: Callable[[], bool]) -> None:
    poll = select.poll()
    poll.register(ring.wake_fd, select.POLLIN)
    while True:
        while not ring.park():
            if take():
                return
        poll.poll()
        ring.unpark()


def _wait_by_uvloop(ring: Ring, take: Callable[[], bool]) -> None:
    loop = uvloop.new_event_loop()

    def on_wake() -> None:
        ring.unpark()
        while not ring.park():
            if take():
                loop.stop()
                return

    loop.add_reader(ring.wake_fd, on_wake)
    loop.call_soon(on_wake)
    loop.run_forever()
    loop.close()


def _wait_by_spinning(ring: Ring, take: Callable[[], bool]) -> None:
    while not take():
        while not ring.pending_count():
            pass


def _send_stamps(end: Connection) -> None:
    for _ in range(ROUNDS):
        time.sleep(PAUSE_S)
        end.send_bytes(monotonic_ns().to_bytes(8, "little") + PAYLOAD[8:])


def _receive_pipe(end: Connection) -> bytes:
    return end.recv_bytes()


def _one_way(send: Callable[..., None], receive: Callable[[Any], bytes], ends: tuple[Any, Any]) -> list[float]:
    ages = []
    with spawned(send, ends[1]):
        for _ in range(ROUNDS):
            message = receive(ends[0])
            ages.append((monotonic_ns() - int.from_bytes(message[:8], "little")) / 1e3)
    return ages[1:]


def _push_stamps(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(address)
        for _ in range(ROUNDS):
            time.sleep(PAUSE_S)
            socket.send(monotonic_ns().to_bytes(8, "little") + PAYLOAD[8:])


def _zmq_one_way() -> list[float]:
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        address = f"ipc://{folder}/bench"
        socket.bind(address)
        return _one_way(_push_stamps, lambda _: bytes(socket.recv()), (None, address))


_clock_gettime = ctypes.CDLL(None).clock_gettime
_clock_gettime.argtypes = [ctypes.c_int, ctypes.c_void_p]


@njit
def _now(stamp: Any) -> int:
    """CLOCK_MONOTONIC in nanoseconds, from within a kernel."""
    _clock_gettime(1, stamp.ctypes)
    return int(stamp[0] * 1_000_000_000 + stamp[1])


@njit
def _send(words: Any, position: int) -> None:
    at = rb.slot_offset(words, position)
    for word in range(1, rb.SLOT_WORDS):
        words[at + word] = np.uint64(position + word)
    words[at] = rb.slot_head(position, 0, rb.TRADE, 0)
    rb.publish(words, position + 1, position)


@njit
def _receive(words: Any, position: int) -> bool:
    """Spins until the slot is there and reads all of it."""
    while np.int64(rb.load_acquire(words, rb.WORD_HEAD)) == position:
        pass
    at, right = rb.slot_offset(words, position), rb.slot_valid(words, position)
    for word in range(1, rb.SLOT_WORDS):
        right &= words[at + word] == np.uint64(position + word)
    rb.release(words, position + 1)
    return right


@njit
def _ping(there: Any, back: Any, stamp: Any, nanoseconds: Any) -> int:
    """Fills ``nanoseconds`` with whole round trips. Returns how many slots were wrong."""
    wrong = 0
    for position in range(len(nanoseconds)):
        start = _now(stamp)
        _send(there, position)
        wrong += not _receive(back, position)
        nanoseconds[position] = _now(stamp) - start
    return wrong


@njit
def _pong(there: Any, back: Any, rounds: int) -> int:
    wrong = 0
    for position in range(rounds):
        wrong += not _receive(there, position)
        _send(back, position)
    return wrong


def _answer(there: Ring, back: Ring) -> None:
    _pong(there.words, back.words, 0)
    assert _pong(there.words, back.words, SPINNING_ROUNDS) == 0


def _spinning_kernels() -> list[float]:
    there, back = Ring.create(), Ring.create()
    nanoseconds, stamp = np.zeros(SPINNING_ROUNDS, np.int64), np.zeros(2, np.int64)
    _ping(there.words, back.words, stamp, nanoseconds[:0])
    with spawned(_answer, there, back):
        assert _ping(there.words, back.words, stamp, nanoseconds) == 0
    there.close()
    back.close()
    return [float(figure) for figure in nanoseconds[1_000:] / 2e3]
