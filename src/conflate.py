"""What the Feed keeps between a socket and the ring: market data merged into slots, in order, without losing volume.

Rows are *staged* by the socket listeners (64 bytes each, ``TRADE_ROW`` and the like), then one kernel call checks them, merges them into
the *table* (a first-in-first-out queue of records that look like ring slots) and moves as many records as fit into the ring. While the
ring has room the table is empty after each call, so a slot is one tick when the market is quiet and many when it is not.

Invariants
  * A trade fragment never crosses a second of venue time while there is room; volumes are whole steps, so merging is exact in any order.
  * Order is kept per symbol: a fragment is extended only while it is the newest of its symbol and no gap or heal lies behind it.
  * A TIME record is behind every trade that it speaks for; merging moves trades only towards the front of the queue.
  * The table is bounded. When it fills up, pending seconds are merged into minutes, or into the candles where
    those are shorter; what still does not fit is refused *before* its
    aggregate id is taken, so the next trade of that symbol finds a gap, and the gap is back-filled. Nothing is lost unseen.
  * A trade's id is one more than the last, or it is a duplicate (dropped, counted), or it opens a gap (GAP is written in front of it).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from src.compiler import lean_njit
from src.ring_buffer import (
    BACKFILLED,
    GAP,
    HEALED,
    MARK,
    QUOTE,
    SLOT_DTYPE,
    SLOT_WORDS,
    STATE,
    TIME,
    TRADE,
    Ring,
    claim,
    publish,
    slot_head,
    slot_offset,
)

Record = Any
Records = npt.NDArray[Any]
"""Structured arrays and their rows, whose fields the type checker cannot see."""

ROW_BYTES = 64
TRADE_ROW = struct.Struct("=qqddqqqq")
"""key, trade time (ms), price, quantity, buyer is maker, aggregate id, first trade id, last trade id."""
QUOTE_ROW = struct.Struct("=qqdddd16x")
"""key, transaction time (ms), bid, ask, bid quantity, ask quantity."""
MARK_ROW = struct.Struct("=qqdddd16x")
"""key, event time (ms), mark price, index price, funding rate, next funding time (ms)."""
ROWS_MAX = 4096
"""Rows that one listener stages at most before it flushes."""

RECORDS_DEFAULT = 32_768
"""The table: 4 MB; a minute and a half of 300 symbols before seconds are merged into minutes."""
PRICE_MAX, QTY_MAX = 1e12, 1e15
HOLE_MAX = 100_000_000
"""A jump in aggregate ids above this is rubbish, not a hole."""
CONTRARY_MAX = 20
"""So many trades in a row whose time is new and whose id is impossible: the venue has begun to count anew."""
SECOND_MS, MINUTE_MS = 1_000, 60_000
GRID_TOLERANCE = 1e-6

UNTOLD = 2
WAKE, HOLES, BACKLOG = 1, 2, 4
"""What ``Conflator.flush`` returns, or-ed: the reader sleeps and must be woken; ``holes`` has something to say; the ring is full."""

SYMBOL_DTYPE = np.dtype([
    ("step", "<f8"), ("last_id", "<i8"), ("trade_at", "<i8"), ("fill_at", "<i8"), ("quote_at", "<i8"), ("mark_at", "<i8"),
    ("trade_ms", "<f8"), ("quote_ms", "<f8"), ("trade_ns", "<i8"), ("quote_ns", "<i8"), ("doubt", "<i8"), ("contrary", "<i8"),
    ("kept_at", "<i8"), ("kept_fill_at", "<i8"), ("last_raw", "<i8"), ("bid", "<f8"), ("ask", "<f8"), ("filled_ms", "<f8"),
    ("contrary_id", "<i8"),
])
"""One row a symbol. ``*_at``: queue position of its newest record of that kind (live when not below the queue's tail). ``last_id`` 0: none is
known. ``trade_ms``, ``filled_ms``: newest time of a live trade, and of one that REST gave. ``doubt``: the stream was cut, so it is not known
whether trades are missing (UNTOLD: and GAP could not be written yet). ``contrary``, ``contrary_id``: how many impossible ids came in a
row, and the lowest of them. ``last_raw``: single trade id at the end of the newest live aggregate."""
TALLY_DTYPE = np.dtype([(name, "<i8") for name in (
    "head", "tail", "trades", "quotes", "marks", "bad_values", "duplicates", "late", "stale", "conflated", "lost", "ring_full", "gaps",
    "resets", "holes", "compactions", "compacted_head", "time_ms", "limit_ms", "strange", "off_grid", "ahead",
    "merge_ms",
)])
"""``head``, ``tail``: the queue. ``time_ms``: newest TIME. ``limit_ms``: later venue times are rubbish. ``merge_ms``: the span that seconds
are merged into. ``strange``: single
trades that no aggregate holds (insurance fund, deleveraging). ``off_grid``: of the bad values, quantities that are no whole steps;
``ahead``: trades later than ``limit_ms``. The rest counts."""


class Table(NamedTuple):
    """Everything the kernels work on. ``own`` and ``own_words`` are the same memory; ``holes`` is (symbol, first id, last id) a row."""

    own: Records
    own_words: npt.NDArray[np.uint64]
    symbols: Records
    tally: Records
    holes: npt.NDArray[np.int64]


class Staged(NamedTuple):
    """Rows of one listener: the same memory as whole numbers and as floats, [ROWS_MAX, 8]."""

    ints: npt.NDArray[np.int64]
    floats: npt.NDArray[np.float64]


def trade_key(symbol: int, filled: bool = False) -> int:
    """First word of a trade's row. ``filled``: it was fetched by REST, so ids are not checked and the slot is flagged."""
    return (int(filled) << 24) | (TRADE << 16) | symbol


def quote_key(symbol: int) -> int:
    return (QUOTE << 16) | symbol


def mark_key(symbol: int) -> int:
    return (MARK << 16) | symbol


# --- the queue -------------------------------------------------------------------------------------------------------------------------

@lean_njit(cache=True)
def _room(table: Table, records: int) -> bool:
    """Whether that many trades fit; makes room by merging seconds into minutes. A sixteenth is kept for what is not a trade."""
    tally, size = table.tally[0], len(table.own)
    limit = size - size // 16 - records
    if tally.head - tally.tail > limit and tally.head - tally.compacted_head >= size // 16:
        _compact(table)
        tally.compacted_head = tally.head
    return bool(tally.head - tally.tail <= limit)


@lean_njit(cache=True)
def _push(table: Table, symbol: int, kind: int, flags: int, received_ns: int) -> int:
    """A new record at the end of the queue, zeroed behind its first two words. Its index in ``own``; -1 when there is no room at all."""
    tally = table.tally[0]
    if tally.head - tally.tail >= len(table.own):
        return -1
    at = np.int64(tally.head & (len(table.own) - 1))
    words = at * SLOT_WORDS
    table.own_words[words] = slot_head(-1, symbol, kind, flags)
    table.own_words[words + 1] = np.uint64(received_ns)
    for word in range(2, SLOT_WORDS):
        table.own_words[words + word] = np.uint64(0)
    tally.head += 1
    return int(at)


@lean_njit(cache=True)
def _absorb(into: Record, other: Record) -> None:
    """Merge a later fragment of the same symbol into an earlier one."""
    into.high = max(into.high, other.high)
    into.low = min(into.low, other.low)
    into.close = other.close
    into.volume += other.volume
    into.taker_buy_volume += other.taker_buy_volume
    into.quote_volume += other.quote_volume
    into.first_id = min(into.first_id, other.first_id)
    into.last_id = max(into.last_id, other.last_id)
    into.trade_count += other.trade_count
    into.spare_a += other.spare_a
    into.last_time_ms = max(into.last_time_ms, other.last_time_ms)


@lean_njit(cache=True)
def _kept(table: Table, record: Record, to: int) -> bool:
    """One record of a compaction, about to be moved to queue position ``to``. False: it lives on in an earlier one, or in a later TIME."""
    symbol = table.symbols[record.sym]
    if record.kind == TIME:
        return bool(record.time_ms % table.tally[0].merge_ms == 0 or record.time_ms == table.tally[0].time_ms)
    if record.kind == QUOTE:
        symbol.quote_at = to
    elif record.kind == MARK:
        symbol.mark_at = to
    elif record.kind == TRADE:
        earlier = symbol.kept_fill_at if record.flags & BACKFILLED else symbol.kept_at
        if earlier >= 0:
            into = table.own[earlier & (len(table.own) - 1)]
            span = table.tally[0].merge_ms
            if into.time_ms // span == record.time_ms // span:
                _absorb(into, record)
                return False
        if record.flags & BACKFILLED:
            symbol.kept_fill_at = to
        else:
            symbol.kept_at = to
    elif record.kind == GAP or record.kind == HEALED:
        symbol.kept_at = symbol.kept_fill_at = -1
    return True


@lean_njit(cache=True)
def _compact(table: Table) -> None:
    """Merge the pending seconds of each symbol into minutes, in place; the order of what remains does not change."""
    tally, mask = table.tally[0], len(table.own) - 1
    for i in range(len(table.symbols)):
        table.symbols[i].kept_at = table.symbols[i].kept_fill_at = -1
    to = tally.tail
    for at in range(tally.tail, tally.head):
        if not _kept(table, table.own[at & mask], to):
            continue
        for word in range(SLOT_WORDS):
            table.own_words[(to & mask) * SLOT_WORDS + word] = table.own_words[(at & mask) * SLOT_WORDS + word]
        to += 1
    tally.head = to
    tally.compactions += 1
    for i in range(len(table.symbols)):
        table.symbols[i].trade_at = table.symbols[i].kept_at
        table.symbols[i].fill_at = table.symbols[i].kept_fill_at


# --- rows into records -----------------------------------------------------------------------------------------------------------------

@lean_njit(cache=True)
def _whole_steps(qty: float, step: float) -> float:
    """How many steps a quantity is; -1 when it is not on the grid, not finite or not positive."""
    if not 0.0 < qty < QTY_MAX:
        return -1.0
    exact = qty / step
    steps = np.rint(exact)
    if steps >= 1.0 and abs(exact - steps) <= GRID_TOLERANCE + steps * 1e-15:
        return float(steps)
    return -1.0


@lean_njit(cache=True)
def _id_follows(table: Table, symbol: Record, identity: int, time_ms: float) -> bool:
    """Whether a live trade is new; counts why not. Once the venue has evidently begun to count anew, the trades that showed it are missing.

    What REST gave may come on a stream that lags: that is no contradiction."""
    tally, last = table.tally[0], symbol.last_id
    if last == 0 or 0 < identity - last <= HOLE_MAX:
        symbol.contrary = 0
        return True
    if identity <= last:
        tally.duplicates += 1
        if time_ms <= max(symbol.trade_ms, symbol.filled_ms):
            return False
    else:
        tally.bad_values += 1
    symbol.contrary_id = min(identity, symbol.contrary_id) if symbol.contrary > 0 else identity
    symbol.contrary += 1
    if symbol.contrary < CONTRARY_MAX:
        return False
    symbol.contrary, symbol.last_id = 0, symbol.contrary_id - 1
    tally.resets += 1
    return True


@lean_njit(cache=True)
def _note_hole(table: Table, sym: int, identity: int, received_ns: int) -> None:
    """Before a trade is taken: if ids are missing in front of it, GAP and a report; if the stream was cut before, a report in any case."""
    tally, symbol = table.tally[0], table.symbols[sym]
    first = symbol.last_id + 1 if symbol.last_id > 0 or symbol.trade_ms > 0 else identity
    missing = identity > first
    if not missing and symbol.doubt == 0:
        return
    table.holes[tally.holes, 0], table.holes[tally.holes, 1], table.holes[tally.holes, 2] = sym, first, identity - 1
    tally.holes += 1
    symbol.doubt = 0
    if missing:
        record = table.own[_push(table, sym, GAP, 0, received_ns)]
        record.time_ms, record.first_id, record.last_id = symbol.trade_ms, first, identity - 1
        symbol.trade_at = symbol.fill_at = -1


@lean_njit(cache=True)
def _strangers(symbol: Record, first_raw: int, last_raw: int) -> int:
    """How many single trades between this live aggregate and the one before it no aggregate holds. 0 where that is not known."""
    between = first_raw - symbol.last_raw - 1 if symbol.last_raw > 0 else 0
    symbol.last_raw = last_raw
    return between if 0 < between <= HOLE_MAX else 0


@lean_njit(cache=True)
def _write_trade(table: Table, staged: Staged, row: int, steps: float, received_ns: int, strange: int) -> None:
    """Extend the newest fragment of the symbol when the second is the same, else begin one."""
    ints, tally = staged.ints, table.tally[0]
    sym, filled = ints[row, 0] & 0xFFFF, ints[row, 0] >> 24
    symbol = table.symbols[sym]
    time_ms, price, identity = float(ints[row, 1]), staged.floats[row, 2], ints[row, 5]
    newest = symbol.fill_at if filled else symbol.trade_at
    at = newest & (len(table.own) - 1)
    record = table.own[at]
    if newest >= tally.tail and np.int64(record.time_ms) // SECOND_MS == ints[row, 1] // SECOND_MS:
        tally.conflated += 1
    else:
        if filled:
            symbol.fill_at = tally.head
        else:
            symbol.trade_at = tally.head
        record = table.own[_push(table, sym, TRADE, BACKFILLED if filled else 0, received_ns)]
        record.time_ms, record.first_id = time_ms, identity
        record.open = record.high = record.low = price
    record.high, record.low, record.close = max(record.high, price), min(record.low, price), price
    record.volume += steps
    record.taker_buy_volume += 0.0 if ints[row, 4] else steps
    record.quote_volume += price * steps
    record.last_id, record.last_time_ms = identity, time_ms
    record.trade_count += np.uint64(max(1, ints[row, 7] - ints[row, 6] + 1))
    record.spare_a += float(strange)


@lean_njit(cache=True)
def _take_trade(table: Table, staged: Staged, row: int, received_ns: int) -> None:
    ints, tally = staged.ints, table.tally[0]
    sym, filled, time_ms, identity = ints[row, 0] & 0xFFFF, ints[row, 0] >> 24, float(ints[row, 1]), ints[row, 5]
    symbol = table.symbols[sym]
    steps = _whole_steps(staged.floats[row, 3], symbol.step)
    sound = 0.0 < staged.floats[row, 2] < PRICE_MAX and steps > 0 and identity > 0 and ints[row, 7] - ints[row, 6] < HOLE_MAX
    if not (sound and 0 < time_ms <= tally.limit_ms):
        tally.bad_values += 1
        tally.off_grid += steps < 0 and staged.floats[row, 3] > 0.0
        tally.ahead += time_ms > tally.limit_ms
        return
    if not filled:
        symbol.trade_ns = received_ns
        if not _id_follows(table, symbol, identity, time_ms):
            return
    if not _room(table, 2):
        tally.lost += 1
        return
    strange = 0
    if not filled:
        _note_hole(table, sym, identity, received_ns)
        if identity != symbol.last_id + 1:
            symbol.last_raw = 0
        strange = _strangers(symbol, ints[row, 6], ints[row, 7])
        symbol.last_id, symbol.trade_ms = identity, max(symbol.trade_ms, time_ms)
        tally.late += time_ms < tally.time_ms
        tally.strange += strange
    else:
        symbol.filled_ms = max(symbol.filled_ms, time_ms)
    tally.trades += 1
    _write_trade(table, staged, row, steps, received_ns, strange)


@lean_njit(cache=True)
def _take_quote(table: Table, staged: Staged, row: int, received_ns: int) -> None:
    """The newest quote of a symbol replaces one that is still pending."""
    tally, sym, time_ms = table.tally[0], staged.ints[row, 0] & 0xFFFF, float(staged.ints[row, 1])
    bid, ask, bid_qty, ask_qty = staged.floats[row, 2], staged.floats[row, 3], staged.floats[row, 4], staged.floats[row, 5]
    symbol = table.symbols[sym]
    if not (0.0 < bid <= ask < PRICE_MAX and 0.0 <= bid_qty < QTY_MAX and 0.0 <= ask_qty < QTY_MAX and 0 < time_ms <= tally.limit_ms):
        tally.bad_values += 1
        return
    symbol.quote_ns = received_ns
    if time_ms < symbol.quote_ms:
        tally.stale += 1
        return
    pending = symbol.quote_at >= tally.tail
    at = symbol.quote_at & (len(table.own) - 1) if pending else _push(table, sym, QUOTE, 0, received_ns)
    if at < 0:
        tally.lost += 1
        return
    tally.quotes += 1
    tally.conflated += pending
    symbol.bid, symbol.ask = bid, ask
    symbol.quote_ms, symbol.quote_at = time_ms, symbol.quote_at if pending else tally.head - 1
    record = table.own[at]
    record.received_ns = np.uint64(received_ns)
    record.time_ms = record.last_time_ms = time_ms
    record.open, record.high = bid, ask
    record.low, record.close = np.rint(bid_qty / symbol.step), np.rint(ask_qty / symbol.step)


@lean_njit(cache=True)
def _take_mark(table: Table, staged: Staged, row: int, received_ns: int) -> None:
    """The newest mark price of a symbol replaces one that is still pending."""
    tally, sym, time_ms = table.tally[0], staged.ints[row, 0] & 0xFFFF, float(staged.ints[row, 1])
    mark, index, rate, due_ms = staged.floats[row, 2], staged.floats[row, 3], staged.floats[row, 4], staged.floats[row, 5]
    symbol = table.symbols[sym]
    if not (0.0 < mark < PRICE_MAX and 0.0 <= index < PRICE_MAX and abs(rate) < 1.0 and due_ms >= 0.0 and 0 < time_ms <= tally.limit_ms):
        tally.bad_values += 1
        return
    pending = symbol.mark_at >= tally.tail
    at = symbol.mark_at & (len(table.own) - 1) if pending else _push(table, sym, MARK, 0, received_ns)
    if at < 0:
        tally.lost += 1
        return
    tally.marks += 1
    tally.conflated += pending
    symbol.mark_at = symbol.mark_at if pending else tally.head - 1
    record = table.own[at]
    record.received_ns = np.uint64(received_ns)
    record.time_ms = record.last_time_ms = time_ms
    record.open, record.high, record.low, record.close = mark, index, rate, due_ms


@lean_njit(cache=True)
def _drain(table: Table, ring: npt.NDArray[np.uint64]) -> int:
    """Move what fits into the ring. WAKE and BACKLOG, or-ed."""
    tally, mask = table.tally[0], len(table.own) - 1
    pending = tally.head - tally.tail
    if pending == 0:
        return 0
    head, free = claim(ring)
    count = min(pending, free)
    full = 0
    if count < pending:
        tally.ring_full += 1
        full = BACKLOG
    if count <= 0:
        return full
    for i in range(count):
        to, of = slot_offset(ring, head + i), ((tally.tail + i) & mask) * SLOT_WORDS
        ring[to] = table.own_words[of] | slot_head(head + i, 0, 0, 0)
        for word in range(1, SLOT_WORDS):
            ring[to + word] = table.own_words[of + word]
    tally.tail += count
    return full | (WAKE if publish(ring, head + count, head) else 0)


@lean_njit(cache=True)
def flush_rows(table: Table, staged: Staged, ring: npt.NDArray[np.uint64], rows: int, received_ns: int) -> int:
    """Check and merge ``rows`` staged rows that came at ``received_ns``, then move what fits into the ring. WAKE, HOLES, BACKLOG or-ed."""
    table.tally[0].holes = 0
    for row in range(rows):
        kind = (staged.ints[row, 0] >> 16) & 0xFF
        if kind == TRADE:
            _take_trade(table, staged, row, received_ns)
        elif kind == QUOTE:
            _take_quote(table, staged, row, received_ns)
        else:
            _take_mark(table, staged, row, received_ns)
    return _drain(table, ring) | (HOLES if table.tally[0].holes else 0)


@lean_njit(cache=True)
def _push_word(table: Table, ring: npt.NDArray[np.uint64], head: int, received_ns: int,
               values: tuple[float, float, int, int, float, float]) -> int:
    """A record that is not market data; ``head``: symbol + kind << 16. WAKE and BACKLOG or-ed, or -1: no room, nothing was written."""
    sym, kind = head & 0xFFFF, head >> 16
    _room(table, 1)
    at = _push(table, sym, kind, 0, received_ns)
    if at < 0:
        return -1
    record = table.own[at]
    record.time_ms, record.open, record.first_id, record.last_id, record.spare_a, record.spare_b = values
    if kind == TIME:
        table.tally[0].time_ms = np.int64(values[0])
    elif kind in (GAP, HEALED):
        table.symbols[sym].trade_at = table.symbols[sym].fill_at = -1
    return _drain(table, ring)


class Conflator:
    """The table, and the only writer of the ring. ``steps``: each symbol's stepSize, in the order of the symbol table. ``spare``: rows for
    symbols that come later.

    Every method that writes returns WAKE, HOLES and BACKLOG or-ed; it has already woken the reader where WAKE is set.
    """

    def __init__(self, steps: Sequence[float], ring: Ring, records: int = RECORDS_DEFAULT, spare: int = 0) -> None:
        assert records & (records - 1) == 0, "the table's size is a power of two"
        assert all(step > 0 for step in steps), "a step is above 0"
        ring.become_writer()
        self._ring = ring
        own = np.zeros(records, SLOT_DTYPE)
        symbols = np.zeros(max(1, len(steps) + spare), SYMBOL_DTYPE)
        symbols["step"][:len(steps)], symbols["step"][len(steps):] = steps, 1.0
        self._count = len(steps)
        for name in ("trade_at", "fill_at", "quote_at", "mark_at"):
            symbols[name] = -1
        holes = np.zeros((ROWS_MAX, 3), np.int64)
        self.table = Table(own, own.view(np.uint64), symbols, np.zeros(1, TALLY_DTYPE), holes)
        self.merge_into(MINUTE_MS)
        self._empty = Staged(np.zeros((1, 8), np.int64), np.zeros((1, 8), np.float64))

    def add(self, step: float) -> int:
        """One more symbol, in a spare row. Returns its index."""
        assert self._count < len(self.table.symbols) and step > 0, "no spare row is left, or no step"
        index, self._count = self._count, self._count + 1
        self.table.symbols["step"][index] = step
        return index

    @property
    def symbols(self) -> Records:
        return self.table.symbols

    @property
    def tally(self) -> Record:
        return self.table.tally[0]

    @property
    def pending(self) -> int:
        """Records that wait for room in the ring."""
        return int(self.tally["head"] - self.tally["tail"])

    def merge_into(self, span_ms: int) -> None:
        """What pending seconds are merged into where room is short: candles must be whole multiples of it."""
        assert span_ms > 0 and span_ms % SECOND_MS == 0, span_ms
        self.table.tally[0]["merge_ms"] = span_ms

    def set_limit(self, limit_ms: int) -> None:
        """Venue times beyond this are rubbish from now on."""
        self.table.tally[0]["limit_ms"] = limit_ms

    def flush(self, staged: Staged, rows: int, received_ns: int) -> int:
        status: int = flush_rows(self.table, staged, self._ring.words, rows, received_ns)
        if status & WAKE:
            self._ring.notify()
        return status

    def drain(self) -> int:
        """Only move what is pending."""
        return self.flush(self._empty, 0, 0)

    def holes(self) -> list[tuple[int, int, int]]:
        """Of the last flush: (symbol, first id, last id) missing before a trade. ``last < first``: the cut stream had missed nothing."""
        return [(int(s), int(a), int(b)) for s, a, b in self.table.holes[:int(self.tally["holes"])]]

    def doubt(self, symbol: int, now_ns: int) -> bool:
        """The symbol's stream was cut: GAP from the next id on (0: none is known), its end unknown (0). It is in doubt in any case. False: no
        room for the GAP, try again."""
        row = self.table.symbols[symbol]
        if row["doubt"] not in (0, UNTOLD):
            return True
        row["doubt"], last_id = UNTOLD, int(row["last_id"])
        if not self._word(GAP, symbol, now_ns, (float(row["trade_ms"]), 0.0, last_id + 1 if last_id else 0, 0, 0.0, 0.0)):
            return False
        row["doubt"] = 1
        return True

    def filled_to(self, symbol: int, last_id: int) -> None:
        """Of a cut stream's symbol REST gave what there was up to ``last_id``: what the stream shows of it is a duplicate."""
        row = self.table.symbols[symbol]
        if last_id > row["last_id"]:
            row["last_id"], row["last_raw"] = last_id, 0

    def caught_up(self, symbol: int, last_id: int) -> None:
        """A cut stream's symbol is known up to ``last_id`` without a live trade having shown it."""
        self.filled_to(symbol, last_id)
        self.table.symbols[symbol]["doubt"] = 0

    def forget(self, symbol: int, now_ns: int) -> bool:
        """The symbol's streams end: GAP from the next id on, and whatever comes later is a beginning. False: no room, try again."""
        row = self.table.symbols[symbol]
        if not self._word(GAP, symbol, now_ns, (float(row["trade_ms"]), 0.0, int(row["last_id"]) + 1, 0, 0.0, 0.0)):
            return False
        self.begin(symbol)
        return True

    def begin(self, symbol: int) -> None:
        """Nothing is known of the symbol."""
        for name in ("last_id", "last_raw", "doubt", "contrary", "trade_ns", "quote_ns", "trade_ms", "filled_ms"):
            self.table.symbols[symbol][name] = 0

    def healed(self, symbol: int, first_id: int, last_id: int, unfilled: int, now_ns: int) -> bool:
        """HEALED; ``unfilled``: how many of those trades the venue could not give (in ``open``). False: no room, try again."""
        return self._word(HEALED, symbol, now_ns, (0.0, float(unfilled), first_id, last_id, 0.0, 0.0))

    def state(self, symbol: int, tradable: bool, now_ns: int, *, leave_ms: int = 0, streamed: bool = True) -> bool:
        """``leave_ms``: market time at which the contract ends, 0: never. ``streamed``: whether more is to come of this symbol."""
        return self._word(STATE, symbol, now_ns, (0.0, float(tradable), 0, 0, float(leave_ms), float(not streamed)))

    def time(self, time_ms: int, now_ns: int) -> bool:
        """Everything up to this venue time has been written (except in symbols that have a gap). False: no room, try again."""
        return self._word(TIME, 0, now_ns, (float(time_ms), 0.0, 0, 0, 0.0, 0.0))

    def _word(self, kind: int, symbol: int, now_ns: int, values: tuple[float, float, int, int, float, float]) -> bool:
        status = _push_word(self.table, self._ring.words, symbol | kind << 16, now_ns, values)
        if status > 0 and status & WAKE:
            self._ring.notify()
        return bool(status >= 0)


def staging() -> tuple[bytearray, Staged]:
    """A listener's rows: the memory for ``pack_into``, and the kernels' two views of it."""
    memory = bytearray(ROWS_MAX * ROW_BYTES)
    words = np.frombuffer(memory, np.int64).reshape(ROWS_MAX, 8)
    return memory, Staged(words, words.view(np.float64))
