"""The ring between Feed and Brain: one producer, one consumer, 128-byte slots in shared memory, no lock.

Memory (8-byte words, native little endian; ``slots`` is a power of two)::

    word  0  head       slots ever written           lines 0-1 belong to the producer
          8  tail_seen  the producer's copy of tail
         16  tail       slots ever released          lines 2-3 belong to the consumer
         32  parked     1 while the consumer sleeps  lines 4-5: both, but only around a sleep
         48  capacity   49  writer (its pid)         line 6: read only, once both have started
         56  overflows  57  wakeups  58  missed_wakeups  59  seq_errors      line 7: seldom written
         64  slot 0     80  slot 1  ...

    slot  0        4        6      7       8                  16                                                     64
          ├ seq u32 ┼ sym u16 ┼ kind u8 ┼ flags u8 ┼ received_ns u64 ┼ time_ms, open, high, low, close, volume: f64 ┤
          64                 72             80            88           96              104             112       120
          ├ taker_buy_volume ┼ quote_volume ┼ first_id i64 ┼ last_id i64 ┼ trade_count u64 ┼ last_time_ms ┼ spare_a, spare_b ┤

Invariants
  * The producer never writes a slot that the consumer has not released, so a slot is read and written by one side at a time and cannot
    be torn; the cursors are the only synchronisation. Positions count up for ever; slot of position p = p mod capacity.
  * ``seq`` = low half of position + 1 (so zeroed memory is never valid). A wrong ``seq``, or a head that does not stand where the writer
    left it, is a second writer: it is counted and both sides raise Halt until the ring is made anew.
  * No wake-up is lost. Parking: the consumer stores ``parked``, fences, then loads ``head``; the producer stores ``head``, fences, then
    loads ``parked``. With seq_cst fences at least one of them sees the other's store (acquire and release alone lose some: a store may
    pass a later load even on x86). Whoever exchanges ``parked`` from 1 to 0 owns the wake-up, so the eventfd is written once.

Weakly ordered machines (arm64): the release half of the exchange on ``head`` orders the slot's bytes before it, and the acquire load of
``head`` orders their reading after it. Symmetrically, ``tail`` is stored with release after the slots were read and loaded with acquire
before they are overwritten. Nothing relies on the total store order of x86.

A reader on an event loop::

    def on_wake() -> None:                       # loop.add_reader(ring.wake_fd, on_wake)
        ring.unpark()
        while not ring.park():
            consume(ring.read_new())

and a slow timer calls ``recheck()``; what it finds is a bug of ours, counted in ``missed_wakeups``, which must stay 0.

Kernels of other modules write and read slots in place with ``claim``, ``slot_offset``, ``slot_head``, ``publish`` and ``head_tail``,
``slot_valid``, ``release``. (Numba's cache does not see a change here through them: after editing this module, clear their cache.)
"""

from __future__ import annotations

import os
from typing import Any, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _numba_intrinsic

from src.compiler import lean_njit
from src.error_handler import Halt
from src.ring_memory import CONTROL_WORDS as CONTROL_WORDS
from src.ring_memory import SLOT_WORDS as SLOT_WORDS
from src.ring_memory import SLOTS_DEFAULT as SLOTS_DEFAULT
from src.ring_memory import SLOTS_MIN as SLOTS_MIN
from src.ring_memory import WORD_CAPACITY as WORD_CAPACITY
from src.ring_memory import RingMemory
from src.ring_memory import slots_for as slots_for
from src.shared_memory import SharedDescriptor, SharedWords

intrinsic: Any = _numba_intrinsic  # its stub does not know that callers leave the typing context out
Words = npt.NDArray[np.uint64]
Int = Any
"""Positions and counts in kernels: int64. Numba checks them; NumPy's own scalar types say little to mypy."""

SLOT_DTYPE = np.dtype([
    ("seq", "<u4"), ("sym", "<u2"), ("kind", "u1"), ("flags", "u1"), ("received_ns", "<u8"),
    ("time_ms", "<f8"), ("open", "<f8"), ("high", "<f8"), ("low", "<f8"), ("close", "<f8"), ("volume", "<f8"),
    ("taker_buy_volume", "<f8"), ("quote_volume", "<f8"), ("first_id", "<i8"), ("last_id", "<i8"),
    ("trade_count", "<u8"), ("last_time_ms", "<f8"), ("spare_a", "<f8"), ("spare_b", "<f8"),
])

TRADE, QUOTE, MARK, TIME, GAP, HEALED, STATE = 1, 2, 3, 5, 6, 7, 8
BACKFILLED = 1
"""Flag bit 0: fetched by REST after a gap."""

WORD_HEAD, WORD_TAIL_SEEN, WORD_TAIL, WORD_PARKED, WORD_WRITER = 0, 8, 16, 32, 49
WORD_OVERFLOWS, WORD_WAKEUPS, WORD_MISSED_WAKEUPS, WORD_SEQ_ERRORS = 56, 57, 58, 59

AT_HEAD, AT_RECEIVED_NS, AT_TIME_MS, AT_OPEN, AT_HIGH, AT_LOW, AT_CLOSE, AT_VOLUME = 0, 1, 2, 3, 4, 5, 6, 7
AT_TAKER_BUY_VOLUME, AT_QUOTE_VOLUME, AT_FIRST_ID, AT_LAST_ID, AT_TRADE_COUNT, AT_LAST_TIME_MS = 8, 9, 10, 11, 12, 13
AT_SPARE_A, AT_SPARE_B = 14, 15
"""Words of a slot, to be added to its ``slot_offset``."""

READ_LIMIT = 4_096
"""Slots that ``read_new`` returns at most unless told otherwise: half a megabyte."""

_SEQ_BITS = 0xFFFF_FFFF
_FULL, _WRITTEN, _WAKE, _SECOND_WRITER, _BAD_SYMBOL = 0, 1, 2, 3, 4


# --- atomics ---------------------------------------------------------------------------------------------------------------------------

def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(  # type: ignore[no-untyped-call]
        context, builder, signature.args[0], array, [args[1]], wraparound=False)


@intrinsic
def load_acquire(typing: Any, words: Any, index: Any) -> Any:
    """``load_acquire(words, index) -> u64``: nothing after it is read or written before it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, args), "acquire", 8)

    return types.uint64(words, types.intp), code


@intrinsic
def store_release(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """``store_release(words, index, u64)``: nothing before it is read or written after it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _pointer(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint64), code


@intrinsic
def fence_seq_cst(typing: Any) -> Any:
    """``fence_seq_cst()``: a store before it is visible to all before any load after it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def exchange_acq_rel(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """``exchange_acq_rel(words, index, u64) -> u64``: store and return what was there, as one step."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _pointer(context, builder, signature, args), args[2], "acq_rel")

    return types.uint64(words, types.intp, types.uint64), code


@intrinsic
def fetch_add(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """``fetch_add(words, index, u64) -> u64``: a counter that more than one side may raise. Returns the value before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(context, builder, signature, args), args[2], "monotonic")

    return types.uint64(words, types.intp, types.uint64), code


@intrinsic
def compare_exchange(typing: Any, words: Any, index: Any, expected: Any, value: Any) -> Any:
    """``compare_exchange(words, index, expected, value) -> u64``: store only over ``expected``; returns what was there."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_pointer(context, builder, signature, args), args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(pair, 0)

    return types.uint64(words, types.intp, types.uint64, types.uint64), code


@intrinsic
def put_float(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """``put_float(words, index, f64)``: the bits of a float into a word, so that a kernel needs one array, not two."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(builder.bitcast(args[2], context.get_value_type(types.uint64)), _pointer(context, builder, signature, args))
        return context.get_dummy_value()

    return types.void(words, types.intp, types.float64), code


# --- kernels for either side; positions and counts are int64 ---------------------------------------------------------------------------

@lean_njit(cache=True)
def slot_offset(words: Words, position: Int) -> Int:
    """Index of the first word of the slot at ``position``; the same index serves the f64 view."""
    return CONTROL_WORDS + (position & (np.int64(words[WORD_CAPACITY]) - 1)) * SLOT_WORDS


@lean_njit(cache=True)
def slot_head(position: Int, symbol: Int, kind: Int, flags: Int) -> np.uint64:
    """Word 0 of a slot: seq, symbol (0..65535), kind and flags (0..255)."""
    return np.uint64((position + 1) & _SEQ_BITS | (symbol << 32) | (kind << 48) | (flags << 56))


@lean_njit(cache=True)
def slot_valid(words: Words, position: Int) -> bool:
    """Whether the slot at ``position`` bears that position's sequence number."""
    return bool(np.int64(words[slot_offset(words, position)] & np.uint64(_SEQ_BITS)) == (position + 1) & _SEQ_BITS)


@lean_njit(cache=True)
def claim(words: Words) -> tuple[Int, Int]:
    """(head, free): the producer may write positions head .. head + free - 1, then ``publish``. Claiming reserves nothing."""
    head = np.int64(words[WORD_HEAD])
    return head, np.int64(words[WORD_CAPACITY]) - (head - np.int64(load_acquire(words, WORD_TAIL)))


@lean_njit(cache=True)
def publish(words: Words, head: Int, claimed: Int = -1) -> bool:
    """Show the consumer all slots below ``head``. True: it sleeps, and the caller must ``notify`` (write the eventfd once).

    ``claimed``: the head that ``claim`` returned; with it any second writer is noticed, without it only one that moves head backwards
    or by more than the ring holds. Noticing is counting (``seq_errors``): the reader raises Halt on it.
    """
    before = np.int64(exchange_acq_rel(words, WORD_HEAD, np.uint64(head)))
    if before > head or head - before > np.int64(words[WORD_CAPACITY]) or (claimed >= 0 and before != claimed):
        fetch_add(words, WORD_SEQ_ERRORS, np.uint64(1))
    fence_seq_cst()
    if load_acquire(words, WORD_PARKED) != 0 and exchange_acq_rel(words, WORD_PARKED, np.uint64(0)) != 0:
        words[WORD_WAKEUPS] += np.uint64(1)
        return True
    return False


@lean_njit(cache=True)
def head_tail(words: Words) -> tuple[Int, Int]:
    """(head, tail): the consumer may read positions tail .. head - 1, then ``release``."""
    return np.int64(load_acquire(words, WORD_HEAD)), np.int64(words[WORD_TAIL])


@lean_njit(cache=True)
def release(words: Words, tail: Int) -> None:
    """Give all slots below ``tail`` back to the producer; they must not be read any more."""
    store_release(words, WORD_TAIL, np.uint64(tail))


@lean_njit(cache=True)
def cursors_sane(words: Words, head: Int, tail: Int) -> bool:
    """False once a second writer was noticed by either side; the consumer must then read nothing more."""
    return bool(0 <= head - tail <= np.int64(words[WORD_CAPACITY]) and load_acquire(words, WORD_SEQ_ERRORS) == 0)


# --- kernels called from Python: signatures are fixed, so no call ever compiles --------------------------------------------------------

@lean_njit("b1(u8[::1], i8)", cache=True)
def _become_writer(words: Words, pid: Int) -> bool:
    before = np.int64(compare_exchange(words, WORD_WRITER, np.uint64(0), np.uint64(pid)))
    if before in (0, pid):
        return True
    fetch_add(words, WORD_SEQ_ERRORS, np.uint64(1))
    return False


@lean_njit(cache=True)
def _room(words: Words, head: Int) -> bool:
    """Whether position ``head`` may be written; loads the consumer's cursor only when the last one seen does not say so."""
    capacity = np.int64(words[WORD_CAPACITY])
    if head - np.int64(words[WORD_TAIL_SEEN]) < capacity:
        return True
    words[WORD_TAIL_SEEN] = load_acquire(words, WORD_TAIL)
    return bool(head - np.int64(words[WORD_TAIL_SEEN]) < capacity)


@lean_njit(cache=True)
def _enter(words: Words, pid: Int, symbol: Int) -> Int:
    """The checks before a single slot is written: _WRITTEN when it may be."""
    if np.int64(words[WORD_WRITER]) != pid and not _become_writer(words, pid):
        return _SECOND_WRITER
    if symbol >> 16 != 0:
        return _BAD_SYMBOL
    if not _room(words, np.int64(words[WORD_HEAD])):
        words[WORD_OVERFLOWS] += np.uint64(1)
        return _FULL
    return _WRITTEN


@lean_njit("i8(u8[::1], i8, i8, f8, f8, f8, f8, f8, f8, i8, i8, i8, f8, f8, i8, i8, i8, f8, f8, f8)", cache=True)
def _write_flow(words: Words, pid: Int, symbol: Int, time_ms: float, open_: float, high: float, low: float, close: float, volume: float,
                kind: Int, flags: Int, received_ns: Int, taker_buy_volume: float, quote_volume: float, first_id: Int, last_id: Int,
                trade_count: Int, last_time_ms: float, spare_a: float, spare_b: float) -> Int:
    """One slot, all 128 bytes of it."""
    code = _enter(words, pid, symbol)
    if code != _WRITTEN:
        return code
    head = np.int64(words[WORD_HEAD])
    at = slot_offset(words, head)
    words[at] = slot_head(head, symbol, kind & 0xFF, flags & 0xFF)
    words[at + AT_RECEIVED_NS] = np.uint64(received_ns)
    put_float(words, at + AT_TIME_MS, time_ms)
    put_float(words, at + AT_OPEN, open_)
    put_float(words, at + AT_HIGH, high)
    put_float(words, at + AT_LOW, low)
    put_float(words, at + AT_CLOSE, close)
    put_float(words, at + AT_VOLUME, volume)
    put_float(words, at + AT_TAKER_BUY_VOLUME, taker_buy_volume)
    put_float(words, at + AT_QUOTE_VOLUME, quote_volume)
    words[at + AT_FIRST_ID] = np.uint64(first_id)
    words[at + AT_LAST_ID] = np.uint64(last_id)
    words[at + AT_TRADE_COUNT] = np.uint64(trade_count)
    put_float(words, at + AT_LAST_TIME_MS, time_ms if np.isnan(last_time_ms) else last_time_ms)
    put_float(words, at + AT_SPARE_A, spare_a)
    put_float(words, at + AT_SPARE_B, spare_b)
    return _WAKE if publish(words, head + 1, head) else _WRITTEN


@lean_njit("i8(u8[::1], i8, i8, f8, f8, f8, f8, f8, f8)", cache=True)
def _write_candle(words: Words, pid: Int, symbol: Int, time_ms: float,
                  open_: float, high: float, low: float, close: float, volume: float) -> Int:
    """The same without flow: each argument that need not cross from Python saves 20 ns."""
    return _write_flow(words, pid, symbol, time_ms, open_, high, low, close, volume,
                       TRADE, 0, 0, 0.0, 0.0, 0, 0, 1, time_ms, 0.0, 0.0)


@lean_njit("UniTuple(i8, 2)(u8[::1], i8, u8[::1])", cache=True)
def _write_slots(words: Words, pid: Int, source: Words) -> tuple[Int, Int]:
    """Copies as many 16-word slots as fit, giving each its sequence number. (slots written, code)."""
    if np.int64(words[WORD_WRITER]) != pid and not _become_writer(words, pid):
        return 0, _SECOND_WRITER
    wanted = len(source) // SLOT_WORDS
    head, free = claim(words)
    count = min(wanted, free)
    if count < wanted:
        words[WORD_OVERFLOWS] += np.uint64(wanted - count)
    if count <= 0:
        return 0, _FULL
    for i in range(count):
        at = slot_offset(words, head + i)
        of = i * SLOT_WORDS
        words[at] = (source[of] & ~np.uint64(_SEQ_BITS)) | np.uint64((head + i + 1) & _SEQ_BITS)
        for word in range(1, SLOT_WORDS):
            words[at + word] = source[of + word]
    return count, _WAKE if publish(words, head + count, head) else _WRITTEN


@lean_njit("i8(u8[::1], u8[::1])", cache=True)
def _read_new(words: Words, target: Words) -> Int:
    """Copies at most len(target) / 16 slots and releases them. Returns how many, or -1: a second writer, nothing released."""
    head, tail = head_tail(words)
    if not cursors_sane(words, head, tail):
        return -1
    count = min(head - tail, len(target) // SLOT_WORDS)
    for i in range(count):
        if not slot_valid(words, tail + i):
            fetch_add(words, WORD_SEQ_ERRORS, np.uint64(1))
            return -1
        at = slot_offset(words, tail + i)
        for word in range(SLOT_WORDS):
            target[i * SLOT_WORDS + word] = words[at + word]
    release(words, tail + count)
    return count


@lean_njit("i8(u8[::1])", cache=True)
def _pending(words: Words) -> Int:
    head, tail = head_tail(words)
    return head - tail


@lean_njit("i8(u8[::1])", cache=True)
def _free(words: Words) -> Int:
    return claim(words)[1]


@lean_njit("b1(u8[::1])", cache=True)
def _park(words: Words) -> bool:
    store_release(words, WORD_PARKED, np.uint64(1))
    fence_seq_cst()
    head, tail = head_tail(words)
    if head == tail:
        return True
    exchange_acq_rel(words, WORD_PARKED, np.uint64(0))
    return False


@lean_njit("b1(u8[::1])", cache=True)
def _unpark(words: Words) -> bool:
    return bool(exchange_acq_rel(words, WORD_PARKED, np.uint64(0)) != 0)


@lean_njit("i8(u8[::1])", cache=True)
def _overslept(words: Words) -> Int:
    """Head, when the consumer sleeps although there is something to read; else -1."""
    if load_acquire(words, WORD_PARKED) == 0:
        return -1
    head, tail = head_tail(words)
    return head if head != tail else -1


# --- the Python side -------------------------------------------------------------------------------------------------------------------

class Flow(TypedDict, total=False):
    """What a slot may carry beside the owner's candle. Not given: ``kind`` TRADE, ``trade_count`` 1, ``last_time_ms`` = ``time_ms``, the
    rest 0."""

    kind: int
    flags: int
    received_ns: int
    taker_buy_volume: float
    quote_volume: float
    first_id: int
    last_id: int
    trade_count: int
    last_time_ms: float
    spare_a: float
    spare_b: float


_NO_FLOW: Flow = {"kind": TRADE, "flags": 0, "received_ns": 0, "taker_buy_volume": 0.0, "quote_volume": 0.0, "first_id": 0, "last_id": 0,
                  "trade_count": 1, "last_time_ms": float("nan"), "spare_a": 0.0, "spare_b": 0.0}
"""In the order of the kernel's arguments. Not a number: ``time_ms``."""


class Ring:
    """One end of the ring. Made by ``create`` in the parent, handed to spawned children as an argument, closed by each holder.

    Which end a process is, it decides by use: the first to write owns writing. Not thread-safe: one thread writes, one thread reads.
    ``words``, ``floats``: u64 and f64 views of the same memory, for kernels. ``wake_fd``: becomes readable when a parked reader has
    something to read.
    """

    __slots__ = ("_event", "_memory", "_overslept_at", "_pid", "_resettable", "capacity", "floats", "nbytes", "wake_fd", "words")

    def __init__(self, memory: SharedWords, event: SharedDescriptor) -> None:
        self._memory = memory
        self._event = event
        self._pid = os.getpid()
        self._resettable = False
        self._overslept_at = -1
        self.words: Words = memory.words
        self.floats = memory.words.view(np.float64)
        self.nbytes = memory.nbytes
        self.capacity = int(self.words[WORD_CAPACITY])
        self.wake_fd = event.fd

    @classmethod
    def create(cls, slots: int = SLOTS_DEFAULT) -> Ring:
        """An empty ring of at least ``slots`` slots. Fatal for a wrong number; OSError when there is no memory or descriptor left."""
        ring = cls.over(RingMemory.create(slots))
        ring._resettable = True
        return ring

    @classmethod
    def over(cls, memory: RingMemory) -> Ring:
        """One end of the ring in memory that another process made."""
        return cls(memory.words, memory.event)

    def __getstate__(self) -> Any:
        self._resettable = False
        return self._memory, self._event

    def __setstate__(self, state: tuple[SharedWords, SharedDescriptor]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        """Twice is harmless. The memory goes with the last process, and here with the last view taken of ``words`` or ``floats``.

        What is left is a ring of no slots: always empty, always full, nothing to reach beyond.
        """
        self.words = np.zeros(CONTROL_WORDS, np.uint64)
        self.floats = self.words.view(np.float64)
        self.capacity = 0
        self.wake_fd = -1
        self._memory.close()
        self._event.close()

    def reset(self) -> None:
        """Cursors, statistics and the writer's claim back to the start. Only its creator may, and only before handing it over."""
        assert self._resettable, "a ring that was handed over is never reset"
        self.words[:] = 0
        self.words[WORD_CAPACITY] = self.capacity
        self.unpark()

    # the producer

    def become_writer(self) -> None:
        """Claim writing for this process before its own kernels write. Halt when another process has it: one writer per ring."""
        if not _become_writer(self.words, self._pid):
            self._refuse(_SECOND_WRITER)

    def write_candle(self, symbol: int, time_ms: float, open: float, high: float, low: float, close: float, volume: float,
                     **flow: Unpack[Flow]) -> bool:
        """One slot; False when the ring is full (counted in ``overflows``). ``volume`` in steps. Halt: another process writes too.

        Without ``flow`` this is one flat kernel call.
        """
        if flow:
            given = _NO_FLOW | flow
            assert len(given) == len(_NO_FLOW), f"no such flow: {flow.keys() - _NO_FLOW.keys()}"
            code = _write_flow(self.words, self._pid, symbol, time_ms, open, high, low, close, volume, *cast(tuple[Any, ...], given.values()))
        else:
            code = _write_candle(self.words, self._pid, symbol, time_ms, open, high, low, close, volume)
        if code == _WRITTEN:
            return True
        return self._after(code)

    def write_slot(self, record: Any) -> bool:
        """One SLOT_DTYPE record (its ``seq`` is ours to set). False when full."""
        return self.write_slots(np.asarray(record, SLOT_DTYPE).reshape(1)) == 1

    def write_slots(self, slots: npt.NDArray[np.void]) -> int:
        """As many of a SLOT_DTYPE array as fit, in order; the rest is counted in ``overflows``. Returns how many."""
        assert slots.dtype == SLOT_DTYPE, f"slots are {slots.dtype}"
        count, code = _write_slots(self.words, self._pid, np.ascontiguousarray(slots).view(np.uint64))
        self._after(code)
        return int(count)

    def free_count(self) -> int:
        """Slots that may be written now."""
        return int(_free(self.words))

    def notify(self) -> None:
        """Wake the reader: once for each True of ``publish``."""
        os.eventfd_write(self.wake_fd, 1)

    def _after(self, code: int) -> bool:
        """What Python does about a kernel's answer: wake, or refuse. True when something was written."""
        if code == _WAKE:
            self.notify()
        elif code > _WAKE:
            self._refuse(code)
        return code != _FULL

    def _refuse(self, code: int) -> None:
        assert code != _BAD_SYMBOL, "a symbol's index is 0 .. 65535"
        raise Halt("a second writer wrote to the ring", pid=self._pid, writer=int(self.words[WORD_WRITER]), **self.statistics())

    # the consumer

    def read_new(self, limit: int = READ_LIMIT) -> npt.NDArray[np.void]:
        """The next slots, at most ``limit``, as a SLOT_DTYPE copy (perhaps empty); their places are released. Halt: a second writer."""
        slots = np.empty(min(limit, max(0, _pending(self.words))), SLOT_DTYPE)
        count = _read_new(self.words, slots.view(np.uint64))
        if count < 0:
            self._refuse(_SECOND_WRITER)
        return slots[:count]

    def pending_count(self) -> int:
        """Slots written and not yet released."""
        return int(_pending(self.words))

    def park(self) -> bool:
        """True: nothing to read, the next write makes ``wake_fd`` readable, go and wait. False: read first, nothing was parked."""
        return bool(_park(self.words))

    def unpark(self) -> bool:
        """Awake: take the flag back and empty the eventfd, so that ``wake_fd`` is readable only by a later wake-up. True: one was due."""
        _unpark(self.words)
        try:
            return os.eventfd_read(self.wake_fd) > 0
        except BlockingIOError:
            return False

    def recheck(self) -> bool:
        """For a slow timer. True: the reader slept through a write (found twice running at the same place, so the writer is not merely
        between its store and its exchange); it is counted, and the caller must read as if woken."""
        head = int(_overslept(self.words))
        missed = head >= 0 and self._overslept_at == int(self.words[WORD_TAIL])
        self._overslept_at = int(self.words[WORD_TAIL]) if head >= 0 and not missed else -1
        if missed:
            self.words[WORD_MISSED_WAKEUPS] += np.uint64(1)
        return missed

    def statistics(self) -> dict[str, int]:
        """written and released in slots since the start, overflows (slots refused), wakeups, missed_wakeups, seq_errors."""
        words = self.words
        return {"written": int(words[WORD_HEAD]), "released": int(words[WORD_TAIL]), "overflows": int(words[WORD_OVERFLOWS]),
                "wakeups": int(words[WORD_WAKEUPS]), "missed_wakeups": int(words[WORD_MISSED_WAKEUPS]),
                "seq_errors": int(words[WORD_SEQ_ERRORS])}
