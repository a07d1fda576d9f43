"""The ring hands every slot over whole, once and in order, or says that it did not."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import struct
from collections.abc import Callable

import numpy as np
import pytest
import uvloop
from numba import njit

from src import ring_buffer as rb
from src.clock import SECOND_NS, monotonic_ns
from src.error_handler import Fatal, Halt
from src.ring_buffer import Ring
from src.shared_memory import SharedDescriptor
from tests.spawned import DEADLINE_S, descriptors, mappings, spawned

CANDLE = (60_000.0, 10.0, 12.0, 9.5, 11.0, 250.0)


@pytest.fixture
def ring():
    ring = Ring.create()
    yield ring
    ring.close()


def numbered(first: int, count: int) -> np.ndarray:
    """Slots whose every payload word says where it belongs: word w of slot p holds 16 p + w."""
    words = np.arange(first * 16, (first + count) * 16, dtype=np.uint64)
    slots = words.view(rb.SLOT_DTYPE)
    slots["sym"] = np.arange(first, first + count) % 65_536
    slots["kind"], slots["flags"] = rb.TRADE, rb.BACKFILLED
    return slots


def assert_numbered(slots: np.ndarray, first: int) -> None:
    expected = numbered(first, len(slots))
    expected["seq"] = (np.arange(first + 1, first + 1 + len(slots)) & 0xFFFF_FFFF).astype(np.uint32)
    assert slots.tobytes() == expected.tobytes()


def readable(ring: Ring) -> bool:
    return bool(select.select([ring.wake_fd], [], [], 0)[0])


class Deadline:
    def __init__(self, what: str) -> None:
        self._what = what
        self._end_ns = monotonic_ns() + int(DEADLINE_S * SECOND_NS)

    def check(self) -> None:
        assert monotonic_ns() < self._end_ns, f"{self._what} took too long"


# --- size and layout


@pytest.mark.parametrize(("wish", "slots"), [(10_000, 16_384), (16_384, 16_384), (16_385, 32_768), (1 << 20, 1 << 20)])
def test_the_size_is_the_next_power_of_two(wish, slots):
    assert rb.slots_for(wish) == slots


@pytest.mark.parametrize("wish", [0, -1, 9_999, (1 << 20) + 1, 16_384.0, "16384", True, None])
def test_a_wrong_size_is_fatal_and_names_the_setting(wish):
    with pytest.raises(Fatal, match="RING_SLOTS"):
        Ring.create(wish)


def test_a_slot_is_128_bytes_in_the_written_order(ring):
    assert rb.SLOT_DTYPE.itemsize == 128
    assert rb.SLOT_DTYPE.fields["time_ms"][1] == 16
    assert rb.SLOT_DTYPE.fields["taker_buy_volume"][1] == 64
    assert rb.SLOT_DTYPE.fields["spare_b"][1] == 120
    assert ring.nbytes == 512 + 128 * ring.capacity


def test_each_named_word_is_where_the_record_has_it():
    names = {name.removeprefix("AT_").lower(): getattr(rb, name) for name in dir(rb) if name.startswith("AT_") and name != "AT_HEAD"}
    assert {name: rb.SLOT_DTYPE.fields[name][1] // 8 for name in names} == names


def test_bytes_are_those_that_struct_would_pack(ring):
    flow = {"received_ns": 7, "taker_buy_volume": 100.0, "quote_volume": 2_700.5, "first_id": 5, "last_id": 9, "trade_count": 3,
            "last_time_ms": 60_900.0, "spare_a": -1.0, "spare_b": -2.0}
    assert ring.write_candle(513, *CANDLE, kind=rb.QUOTE, flags=rb.BACKFILLED, **flow)
    head = struct.pack("<IHBB", 1, 513, rb.QUOTE, rb.BACKFILLED)
    assert ring.read_new().tobytes() == head + struct.pack("<Q6d2d2qQ3d", 7, *CANDLE, 100.0, 2_700.5, 5, 9, 3, 60_900.0, -1.0, -2.0)


def test_the_short_form_writes_all_of_the_slot_whatever_was_there(ring):
    assert ring.write_slots(numbered(0, ring.capacity)) == ring.capacity
    ring.read_new(ring.capacity)
    assert ring.write_candle(65_535, *CANDLE)
    packed = struct.pack("<IHBBQ6d2d2qQ3d", ring.capacity + 1, 65_535, rb.TRADE, 0, 0, *CANDLE, 0, 0, 0, 0, 1, CANDLE[0], 0, 0)
    assert ring.read_new().tobytes() == packed


def test_both_forms_of_write_candle_agree(ring):
    ring.write_candle(3, *CANDLE)
    ring.write_candle(3, *CANDLE, flags=0)
    short, full = ring.read_new()
    full["seq"] -= 1
    assert short == full


def test_a_flow_that_a_slot_does_not_carry_is_our_bug(ring):
    with pytest.raises(AssertionError, match="taker_volume"):
        ring.write_candle(3, *CANDLE, taker_volume=1.0)


def test_whole_numbers_are_prices_too(ring):
    ring.write_candle(3, 60_000, 1, 2, 3, 4, 5)
    slot = ring.read_new()[0]
    assert [slot[name] for name in ("time_ms", "open", "high", "low", "close", "volume")] == [60_000, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("symbol", [-1, 65_536])
@pytest.mark.parametrize("flow", [{}, {"kind": rb.MARK}])
def test_a_symbol_that_does_not_fit_is_our_bug(ring, symbol, flow):
    with pytest.raises(AssertionError):
        ring.write_candle(symbol, *CANDLE, **flow)
    assert ring.pending_count() == 0


# --- full, empty, around


def test_a_full_ring_refuses_counts_and_recovers(ring):
    assert ring.write_slots(numbered(0, ring.capacity + 5)) == ring.capacity
    assert not ring.write_candle(1, *CANDLE)
    assert not ring.write_candle(1, *CANDLE, kind=rb.MARK)
    assert not ring.write_slot(numbered(0, 1)[0])
    assert ring.free_count() == 0
    assert ring.statistics()["overflows"] == 5 + 3
    assert_numbered(ring.read_new(1), 0)
    assert ring.free_count() == 1
    assert ring.write_slot(numbered(ring.capacity, 1)[0])
    assert not ring.write_candle(1, *CANDLE)


def test_nothing_is_lost_over_many_laps(ring):
    chance = np.random.default_rng(1)
    written = read = 0
    while read < 5 * ring.capacity:
        written += ring.write_slots(numbered(written, int(chance.integers(1, ring.capacity))))
        slots = ring.read_new(int(chance.integers(1, ring.capacity)))
        assert_numbered(slots, read)
        read += len(slots)
        assert ring.pending_count() == written - read
        assert ring.free_count() == ring.capacity - (written - read)
    assert ring.statistics()["written"] == written
    assert ring.statistics()["released"] == read


def test_reading_takes_at_most_the_limit(ring):
    ring.write_slots(numbered(0, 10_000))
    assert len(ring.read_new()) == rb.READ_LIMIT
    assert len(ring.read_new(limit=7)) == 7
    assert ring.pending_count() == 10_000 - rb.READ_LIMIT - 7


def test_an_empty_ring_reads_empty(ring):
    assert len(ring.read_new()) == 0
    assert ring.pending_count() == 0
    assert ring.write_slots(numbered(0, 0)) == 0


def test_what_was_read_is_a_copy(ring):
    ring.write_slots(numbered(0, 1))
    slots = ring.read_new()
    ring.write_slots(numbered(1, ring.capacity))
    assert_numbered(slots, 0)


def test_the_sequence_number_wraps_at_32_bits(ring):
    first = (1 << 32) - 3
    ring.words[rb.WORD_HEAD] = ring.words[rb.WORD_TAIL] = ring.words[rb.WORD_TAIL_SEEN] = first
    assert ring.write_slots(numbered(first, 6)) == 6
    slots = ring.read_new()
    assert slots["seq"].tolist() == [2**32 - 2, 2**32 - 1, 0, 1, 2, 3]
    assert_numbered(slots, first)


def test_reset_starts_anew(ring):
    ring.write_slots(numbered(0, ring.capacity + 1))
    ring.read_new()
    ring.reset()
    assert set(ring.statistics().values()) == {0}
    assert ring.free_count() == ring.capacity
    ring.write_slots(numbered(0, 2))
    assert_numbered(ring.read_new(), 0)


# --- kernels of other modules


@njit
def _fill(words, floats, first, count):
    """What a Feed's kernel does: claim, write in place, publish."""
    head, free = rb.claim(words)
    count = min(count, free)
    for i in range(count):
        at = rb.slot_offset(words, head + i)
        words[at] = rb.slot_head(head + i, (first + i) & 0xFFFF, rb.TRADE, rb.BACKFILLED)
        for word in range(1, rb.SLOT_WORDS):
            words[at + word] = np.uint64((first + i) * rb.SLOT_WORDS + word)
    return count, rb.publish(words, head + count, head)


@njit
def _drain(words, floats, first):
    """What a Brain's kernel does: read in place, release. Returns how many were right, or -1."""
    head, tail = rb.head_tail(words)
    if not rb.cursors_sane(words, head, tail):
        return -1
    for i in range(head - tail):
        at = rb.slot_offset(words, tail + i)
        if not rb.slot_valid(words, tail + i):
            return -1
        for word in range(1, rb.SLOT_WORDS):
            if words[at + word] != np.uint64((first + i) * rb.SLOT_WORDS + word):
                return -1
    rb.release(words, head)
    return head - tail


def test_kernels_write_and_read_in_place(ring):
    total = 0
    for count in (1, 5_000, 16_384, 7, 12_345):
        assert _fill(ring.words, ring.floats, total, count) == (count, False)
        assert _drain(ring.words, ring.floats, total) == count
        total += count
    assert ring.statistics()["released"] == total


def test_what_a_kernel_wrote_python_reads(ring):
    _fill(ring.words, ring.floats, 0, 100)
    assert_numbered(ring.read_new(), 0)


# --- parking


def test_a_reader_with_something_to_read_does_not_park(ring):
    ring.write_candle(1, *CANDLE)
    assert not ring.park()
    ring.read_new()
    assert ring.park()


def test_a_parked_reader_is_woken_once(ring):
    assert ring.park()
    assert not readable(ring)
    for _ in range(3):
        ring.write_candle(1, *CANDLE)
    assert readable(ring)
    assert ring.statistics()["wakeups"] == 1
    assert ring.unpark()
    assert not readable(ring)
    assert not ring.unpark()


@pytest.mark.parametrize("write", [
    lambda ring: ring.write_candle(1, *CANDLE, kind=rb.TIME),
    lambda ring: ring.write_slots(numbered(0, 9)),
    lambda ring: _fill(ring.words, ring.floats, 0, 9)[1] and ring.notify(),
])
def test_every_way_of_writing_wakes(ring, write):
    ring.park()
    write(ring)
    assert readable(ring)


def test_a_reader_that_is_awake_is_not_disturbed(ring):
    ring.park()
    ring.unpark()
    ring.write_candle(1, *CANDLE)
    assert not readable(ring)


def test_a_missed_wakeup_is_found_at_the_second_look_and_counted(ring):
    ring.park()
    assert not ring.recheck()
    _fill(ring.words, ring.floats, 0, 1)
    ring.words[rb.WORD_PARKED] = 1  # as if the writer had not looked
    assert not ring.recheck()
    assert ring.recheck()
    assert ring.statistics()["missed_wakeups"] == 1


def test_a_slow_writer_is_not_taken_for_a_missed_wakeup(ring):
    ring.park()
    _fill(ring.words, ring.floats, 0, 1)
    ring.words[rb.WORD_PARKED] = 1
    assert not ring.recheck()  # between the writer's store and its exchange
    ring.unpark()
    ring.read_new()
    ring.park()
    for _ in range(3):
        assert not ring.recheck()
    assert ring.statistics()["missed_wakeups"] == 0


# --- a second writer


def test_a_wrong_sequence_number_is_counted_and_halts(ring):
    ring.write_slots(numbered(0, 10))
    ring.words[rb.CONTROL_WORDS + 4 * rb.SLOT_WORDS] ^= np.uint64(1)
    with pytest.raises(Halt, match="second writer"):
        ring.read_new()
    assert ring.statistics()["seq_errors"] == 1
    assert ring.statistics()["released"] == 0
    with pytest.raises(Halt):
        ring.read_new()
    assert ring.statistics()["seq_errors"] == 1


@pytest.mark.parametrize("head", [3, 5 + 16_384 + 1])
def test_a_head_out_of_bounds_halts(ring, head):
    ring.write_slots(numbered(0, 5))
    ring.read_new()
    ring.words[rb.WORD_HEAD] = head
    with pytest.raises(Halt):
        ring.read_new()


def test_publishing_over_a_head_that_moved_since_the_claim_is_counted(ring):
    head, _ = rb.claim(ring.words)
    ring.write_slots(numbered(0, 3))
    rb.publish(ring.words, head + 100, head)
    assert ring.statistics()["seq_errors"] == 1
    with pytest.raises(Halt):
        ring.read_new()


def _write_as_second(ring: Ring) -> None:
    for write in (ring.become_writer, lambda: ring.write_candle(1, *CANDLE), lambda: ring.write_slots(numbered(0, 3))):
        with pytest.raises(Halt, match="second writer"):
            write()


def test_a_second_process_that_writes_is_refused_and_halts_the_reader(ring):
    ring.become_writer()
    ring.write_candle(1, *CANDLE)
    with spawned(_write_as_second, ring):
        pass
    assert ring.statistics()["seq_errors"] == 3
    assert ring.statistics()["written"] == 1
    with pytest.raises(Halt):
        ring.read_new()


@njit
def _race(words, me, count):
    """A writer that knows nothing of the other: each slot bears its writer in every word. Stops once anybody has noticed."""
    done = 0
    while done < count and rb.load_acquire(words, rb.WORD_SEQ_ERRORS) == 0:
        head, free = rb.claim(words)
        if free <= 0:
            continue
        at = rb.slot_offset(words, head)
        words[at] = rb.slot_head(head, me, rb.TRADE, 0)
        for word in range(1, rb.SLOT_WORDS):
            words[at + word] = np.uint64(me)
        rb.publish(words, head + 1, head)
        done += 1


def _race_when_told(ring: Ring, me: int, count: int, ready: SharedDescriptor, go: SharedDescriptor) -> None:
    _race(np.ones_like(ring.words), me, 0)
    os.eventfd_write(ready.fd, 1)
    os.eventfd_read(go.fd)
    _race(ring.words, me, count)


def test_two_writers_at_once_end_right_or_detected(ring):
    ready, go = (SharedDescriptor(os.eventfd(0, os.EFD_SEMAPHORE)) for _ in range(2))
    count, read = 100_000, [ring.read_new()]
    with spawned(_race_when_told, ring, 1, count, ready, go) as one, spawned(_race_when_told, ring, 2, count, ready, go) as two:
        os.eventfd_read(ready.fd)
        os.eventfd_read(ready.fd)
        os.eventfd_write(go.fd, 2)
        deadline = Deadline("two writers")
        detected = False
        while not detected and (one.is_alive() or two.is_alive() or ring.pending_count()):
            deadline.check()
            try:
                read.append(ring.read_new())
            except Halt:
                detected = True
    slots = np.concatenate(read)
    words = slots.view(np.uint64).reshape(-1, rb.SLOT_WORDS)
    whole = (words[:, 1:] == slots["sym"][:, None]).all()
    assert detected or (whole and np.bincount(slots["sym"]).tolist() == [0, count, count])
    assert detected == (ring.statistics()["seq_errors"] > 0)
    ready.close()
    go.close()


# --- two processes


def _write_slots_in_batches(ring: Ring, total: int) -> None:
    chance = np.random.default_rng(total)
    written = 0
    while written < total:
        batch = min(int(chance.integers(1, 3_000)), total - written)
        written += ring.write_slots(numbered(written, batch))
        if ring.free_count() == 0:
            os.sched_yield()


def _write_slots_in_place(ring: Ring, total: int) -> None:
    written = 0
    while written < total:
        count, wake = _fill(ring.words, ring.floats, written, min(777, total - written))
        written += count
        if wake:
            ring.notify()


def _write_candles(ring: Ring, total: int) -> None:
    for i in range(total):
        while not ring.write_candle(i & 0xFFFF, i, i + 1, i + 2, i + 3, i + 4, i + 5):
            os.sched_yield()


def _read_all(ring: Ring, total: int, check: Callable[[np.ndarray, int], None], child) -> None:
    """Reads and checks ``total`` slots, parking whenever there is nothing to read."""
    poll = select.poll()
    poll.register(ring.wake_fd, select.POLLIN)
    chance = np.random.default_rng(7)
    read = 0
    while read < total:
        slots = ring.read_new(int(chance.integers(1, 5_000)))
        check(slots, read)
        read += len(slots)
        if not len(slots) and ring.park():
            woken = poll.poll(DEADLINE_S * 1_000)
            assert woken, f"asleep with {ring.pending_count()} slots to read, writer {child.exitcode}"
            ring.unpark()
    assert ring.pending_count() == 0
    assert ring.statistics()["written"] == ring.statistics()["released"] == total
    assert ring.statistics()["seq_errors"] == ring.statistics()["missed_wakeups"] == 0


def assert_candles(slots: np.ndarray, first: int) -> None:
    expected = np.arange(first, first + len(slots))
    assert (slots["sym"] == expected & 0xFFFF).all()
    for add, name in enumerate(("time_ms", "open", "high", "low", "close", "volume")):
        assert (slots[name] == expected + add).all()


@pytest.mark.parametrize(("write", "check", "total"), [
    (_write_slots_in_batches, assert_numbered, 300_000),
    (_write_slots_in_place, assert_numbered, 300_000),
    (_write_candles, assert_candles, 200_000),
    pytest.param(_write_slots_in_batches, assert_numbered, 20_000_000, marks=pytest.mark.slow),
    pytest.param(_write_slots_in_place, assert_numbered, 20_000_000, marks=pytest.mark.slow),
    pytest.param(_write_candles, assert_candles, 3_000_000, marks=pytest.mark.slow),
])
def test_two_processes_hand_over_every_slot_whole_and_in_order(ring, write, check, total):
    with spawned(write, ring, total) as child:
        _read_all(ring, total, check, child)


@njit
def _pause(turns):
    """About 2 ns a turn (an xorshift, which no compiler shortens)."""
    x = np.uint64(88_172_645_463_325_252)
    for _ in range(turns):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    return x


@njit
def _one_each(words, done, rounds):
    """Writes one slot each time the reader has released the last one; returns when the reader must be woken."""
    while done < rounds:
        while np.int64(rb.load_acquire(words, rb.WORD_TAIL)) != done:
            pass
        if _pause(done % 13) == 0:
            break
        words[rb.slot_offset(words, done)] = rb.slot_head(done, 0, rb.TRADE, 0)
        done += 1
        if rb.publish(words, done, done - 1):
            return done, True
    return done, False


def _write_one_each(ring: Ring, rounds: int) -> None:
    done = 0
    while done < rounds:
        done, wake = _one_each(ring.words, done, rounds)
        if wake:
            ring.notify()


@njit
def _until_parked(words, rounds):
    """Reads until all is read (False) or the reader is parked (True). How long it takes to park differs from round to round, so that the
    two sides meet in every order."""
    while True:
        head, tail = rb.head_tail(words)
        for position in range(tail, head):
            if not rb.slot_valid(words, position):
                raise AssertionError("a wrong sequence number")
        rb.release(words, head)
        if head == rounds:
            return False
        if _pause(head % 509) != 0 and rb._park(words):
            return True


@pytest.mark.parametrize("rounds", [50_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_no_wakeup_is_lost_when_parking_races_writing(ring, rounds):
    poll = select.poll()
    poll.register(ring.wake_fd, select.POLLIN)
    with spawned(_write_one_each, ring, rounds):
        while _until_parked(ring.words, rounds):
            assert poll.poll(DEADLINE_S * 1_000), f"slept through a write: {ring.statistics()}"
            ring.unpark()
    statistics = ring.statistics()
    assert statistics["released"] == rounds
    assert statistics["wakeups"] > 0
    assert statistics["missed_wakeups"] == statistics["seq_errors"] == 0


# --- event loops


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_reader_lives_on_an_event_loop(ring, loop_factory):
    total = 50_000

    async def read() -> None:
        loop, done, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def on_wake() -> None:
            nonlocal seen
            ring.unpark()
            while not ring.park():
                slots = ring.read_new()
                assert_candles(slots, seen)
                seen += len(slots)
            if seen == total:
                done.set()

        loop.add_reader(ring.wake_fd, on_wake)
        on_wake()
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()
        loop.remove_reader(ring.wake_fd)

    with spawned(_write_candles, ring, total), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(read())
    assert ring.statistics()["missed_wakeups"] == 0


# --- life and death


def _write_and_hang(ring: Ring) -> None:
    ring.write_slots(numbered(0, 100))
    signal.pause()


def test_a_killed_writer_leaves_what_it_published_and_nothing_else():
    files, open_before, mapped_before = set(os.listdir("/dev/shm")), descriptors(), mappings("aegis-ring")
    ring = Ring.create()
    assert ring.park()
    with spawned(_write_and_hang, ring) as child:
        assert select.select([ring.wake_fd], [], [], DEADLINE_S)[0]
        child.kill()
    assert_numbered(ring.read_new(), 0)
    ring.close()
    assert set(os.listdir("/dev/shm")) == files
    assert descriptors().keys() == open_before.keys()
    assert mappings("aegis-ring") == mapped_before


def test_closing_unmaps_and_twice_is_harmless(ring):
    before = mappings("aegis-ring")
    ring.close()
    ring.close()
    assert mappings("aegis-ring") == before - 1


def test_a_closed_ring_is_empty_and_full(ring):
    ring.write_slots(numbered(0, 3))
    ring.close()
    assert not ring.write_candle(1, *CANDLE)
    assert ring.write_slots(numbered(0, 3)) == 0
    assert ring.free_count() == ring.pending_count() == len(ring.read_new()) == 0
    assert _fill(ring.words, ring.floats, 0, 3) == (0, False)


def test_a_ring_is_handed_to_children_only(ring):
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(ring)


def _nothing(ring: Ring) -> None:
    assert ring.capacity == 16_384


def test_a_ring_that_was_handed_over_is_never_reset(ring):
    with spawned(_nothing, ring):
        pass
    with pytest.raises(AssertionError, match="handed over"):
        ring.reset()
