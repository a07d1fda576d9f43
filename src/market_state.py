"""The Brain's market: candles, quotes, indicators, structure and armed setups of every symbol, fed from the ring in place.

Invariants
  * Candles close by ring contents alone: a later trade of that symbol, or a TIME slot at or past the candle's end (for all symbols). A
    candle without trades closes flat at the previous close. A print for a closed candle is counted late and changes nothing.
  * Close barrier: the slot that closes a setup bar is not consumed before its caller has armed setups from that bar. So a batch ends at
    the barrier (``closed`` names the symbols), and results never depend on how slots are cut into batches.
  * A batch also ends with the slot that fired a setup, so what ``quote`` shows then is what the market was at the crossing.
  * A setup fires at most once, never while its symbol is gapped or not tradable, never by a back-filled print, never beyond its stop:
    crossed so, it is counted missed. Bars that hold a candle closed while gapped arm nothing.
  * Every fired setup ends in one outcome: stop, target or time, whichever came first; both in one slot is the stop.
  * Memory is fixed at the start: rows = symbols, a history of bars, SETUPS_MAX setups, ARMED_MAX of them armed.

Times are market milliseconds in int64, prices f64, volumes whole steps in f64. Python runs once a batch; kernels do the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.bars import (
    BATCH_FIELDS,
    FRAME_DTYPE,
    NEVER_MS,
    OPEN_BAR_DTYPE,
    SEEDED,
    SETUPS_MAX,
    SYMBOL_DTYPE,
    TALLY_DTYPE,
    TOTAL_FIELDS,
    Market,
    close_until,
    merge_trade,
    note_late,
    replay_base,
    replay_history,
    start_bar,
)
from src.error_handler import Fatal, Halt, Rejected
from src.features import BASE, CONTEXT, FRAMES, SETUP, SETUP_DTYPE
from src.indicators import BAR_COLUMNS, OPEN, OPEN_MS, TAKER_VOLUME, VOLUME, Floats, Int, Row, kernel
from src.models import Quote
from src.ring_buffer import (
    AT_CLOSE,
    AT_HIGH,
    AT_LAST_ID,
    AT_LAST_TIME_MS,
    AT_LOW,
    AT_OPEN,
    AT_RECEIVED_NS,
    AT_SPARE_A,
    AT_SPARE_B,
    AT_TIME_MS,
    BACKFILLED,
    CONTROL_WORDS,
    GAP,
    HEALED,
    MARK,
    QUOTE,
    SLOT_DTYPE,
    SLOT_WORDS,
    STATE,
    TIME,
    TRADE,
    WORD_CAPACITY,
    WORD_SEQ_ERRORS,
    Ring,
    cursors_sane,
    fetch_add,
    head_tail,
    release,
)
from src.setups import (
    ARMED,
    CROSSING_DTYPE,
    ENTERED,
    FIRED_DTYPE,
    FIRED_MAX,
    OUTCOME_DTYPE,
    OUTCOMES_MAX,
    cross_levels,
    in_order,
    place_setups,
)
from src.smc import LEG_BARS_MAX, PIVOT_LEFT, PIVOT_RIGHT

ERROR_SEQ = 1
FIRST_WORD, ALL = np.int64(CONTROL_WORDS), np.int64(-1)


DONE, CLOSE, ALARM, STRANGE = 0, 1, 2, 3
"""What ``take_trade`` asks for: nothing, candles to be closed first, setups to be looked at, or that the slot be passed over."""


@kernel
def take_trade(row: Row, words: Any, floats: Floats, at: Int) -> Int:
    """One TRADE slot for the open candle of a symbol (SYMBOL_DTYPE row)."""
    time_ms, bar = np.int64(floats[at + AT_TIME_MS]), row.open_bar
    if time_ms < bar.open_ms or bar.end_ms == 0:
        return STRANGE
    if time_ms >= bar.end_ms:
        return CLOSE
    merge_trade(bar, floats, words, at)
    last_ms, last_id = np.int64(floats[at + AT_LAST_TIME_MS]), np.int64(words[at + AT_LAST_ID])
    if last_ms > row.last_ms or (last_ms == row.last_ms and last_id >= row.last_id):
        row.last_price, row.last_ms, row.last_id = floats[at + AT_CLOSE], last_ms, last_id
    if floats[at + AT_LOW] <= row.alarm_low or floats[at + AT_HIGH] >= row.alarm_high or time_ms >= row.alarm_ms:
        return ALARM
    return DONE


@kernel
def take_strange(m: Market, i: Int, floats: Floats, at: Int) -> bool:
    """A symbol's first trade starts its candle (True: take it now); a print for a closed candle is late, or proves the seam."""
    row, bar = m.symbols[i], m.symbols[i].open_bar
    if bar.end_ms == 0:
        start_bar(bar, row.interval_ms, np.int64(floats[at + AT_TIME_MS]), floats[at + AT_OPEN])
        bar.partial = 1
        return True
    if bar.partial == 1 and bar.parts == 0:
        bar.partial = 0
        m.tally[0].seam += 1
    else:
        m.tally[0].late += 1
        note_late(m, i, np.int64(floats[at + AT_TIME_MS]))
    return False


@kernel
def ring_alarm(m: Market, i: Int, words: Any, floats: Floats, at: Int) -> None:
    """Look at every setup of symbol ``i``. Back-filled prints, gaps and halts fire nothing."""
    slot, row = m.crossing[0], m.symbols[i]
    slot.time_ms, slot.received_ns = np.int64(floats[at + AT_TIME_MS]), np.int64(words[at + AT_RECEIVED_NS])
    slot.open, slot.high, slot.low, slot.close = floats[at + AT_OPEN], floats[at + AT_HIGH], floats[at + AT_LOW], floats[at + AT_CLOSE]
    backfilled = np.int64(words[at] >> np.uint64(56)) & BACKFILLED
    slot.live = 1 if backfilled == 0 and row.gapped == 0 and row.tradable == 1 else 0
    cross_levels(m, i, slot)


@kernel
def close_for(m: Market, i: Int, time_ms: Int) -> bool:
    """Close candles that end by ``time_ms``: of symbol ``i``, or of all where ``i`` is -1; each up to one setup bar. False: arm first."""
    if i >= 0:
        return not close_until(m, i, time_ms)
    for j in range(len(m.symbols)):
        bar = m.symbols[j].open_bar
        if bar.partial == 1 and bar.parts == 0 and time_ms <= bar.open_ms:
            bar.partial = 0
        if 0 < bar.end_ms <= time_ms:
            close_until(m, j, time_ms)
    return bool(m.tally[0].closed == 0)


@kernel
def take_news(row: Row, tally: Row, words: Any, floats: Floats, at: Int) -> None:
    """A QUOTE, MARK, STATE, GAP or HEALED slot."""
    kind, time_ms = np.int64(words[at] >> np.uint64(48)) & 0xFF, np.int64(floats[at + AT_TIME_MS])
    if kind == QUOTE:
        row.bid, row.ask, row.bid_qty, row.ask_qty = floats[at + AT_OPEN], floats[at + AT_HIGH], floats[at + AT_LOW], floats[at + AT_CLOSE]
        row.quote_ms, row.quote_ns = time_ms, np.int64(words[at + AT_RECEIVED_NS])
        tally.quotes += 1
    elif kind == MARK:
        row.mark, row.index, row.funding = floats[at + AT_OPEN], floats[at + AT_HIGH], floats[at + AT_LOW]
        row.funding_ms, row.mark_ms = np.int64(floats[at + AT_CLOSE]), time_ms
        tally.marks += 1
    elif kind == GAP:
        row.gapped = 1
        tally.gaps += 1
    elif kind == HEALED:
        row.gapped = 0
        if floats[at + AT_OPEN] > 0.0:  # so many trades could not be had: the candle is read again from history
            row.open_bar.tainted = 1
        tally.healed += 1
    elif kind == STATE:
        row.tradable = 1 if floats[at + AT_OPEN] == 1.0 else 0
        row.leave_ms, row.unstreamed = np.int64(floats[at + AT_SPARE_A]), np.int64(floats[at + AT_SPARE_B])
        tally.states += 1
    else:
        tally.unknown += 1


@kernel
def begin_batch(tally: Row) -> None:
    tally.consumed = tally.fired = tally.outcomes = tally.closed = tally.base_closed = tally.error = tally.newest_ns = 0
    tally.oldest_ns = NEVER_MS


@kernel
def note_age(tally: Row, received_ns: Int) -> None:
    """The oldest and newest moment at which a slot of this batch was received; 0 is not known."""
    if received_ns > 0:
        tally.oldest_ns = min(tally.oldest_ns, received_ns)
        tally.newest_ns = max(tally.newest_ns, received_ns)


@kernel
def consume_slots(m: Market, words: Any, floats: Floats, span: tuple[Int, Int, Int, Int]) -> Int:
    """Consume positions ``first`` … ``last`` - 1 until a close barrier, a fired setup or full outcomes. Returns the next position.

    ``span``: (first, last, word of position 0, capacity); capacity 0 means a plain array of slots whose ``seq`` is not looked at.
    """
    position, last, origin, capacity = span
    first, symbols, tally = position, m.symbols, m.tally[0]
    begin_batch(tally)
    while position < last:
        at = origin + (position & (capacity - 1)) * SLOT_WORDS
        head = np.int64(words[at])
        if capacity > 0 and head & 0xFFFFFFFF != (position + 1) & 0xFFFFFFFF:
            tally.error = ERROR_SEQ
            break
        i, kind = (head >> 32) & 0xFFFF, (head >> 48) & 0xFF
        if kind == TIME:
            if not close_for(m, ALL, np.int64(floats[at + AT_TIME_MS])):
                break
            tally.times += 1
        elif i >= len(symbols):
            tally.unknown += 1
        elif kind == TRADE:
            row = symbols[i]
            ask = take_trade(row, words, floats, at)
            if ask == CLOSE:
                if not close_for(m, i, np.int64(floats[at + AT_TIME_MS])):
                    break
                ask = take_trade(row, words, floats, at)
            elif ask == STRANGE and take_strange(m, i, floats, at):
                ask = take_trade(row, words, floats, at)
            if ask == ALARM:
                ring_alarm(m, i, words, floats, at)
            tally.trades += 1
            tally.backfilled += (head >> 56) & BACKFILLED
        else:
            take_news(symbols[i], tally, words, floats, at)
        position += 1
        note_age(tally, np.int64(words[at + AT_RECEIVED_NS]))
        if tally.fired > 0 or tally.outcomes > OUTCOMES_MAX - SETUPS_MAX:
            break
    tally.consumed = position - first
    return position


@kernel
def consume_ring(m: Market, words: Any, floats: Floats, limit: Int) -> bool:
    """Consume at most ``limit`` slots of the ring in place and release them. True: something is left to consume."""
    head, tail = head_tail(words)
    if not cursors_sane(words, head, tail):
        m.tally[0].error = ERROR_SEQ
        return False
    last = min(head, tail + limit)
    position = consume_slots(m, words, floats, (tail, last, FIRST_WORD, np.int64(words[WORD_CAPACITY])))
    release(words, position)
    if m.tally[0].error != 0:
        fetch_add(words, WORD_SEQ_ERRORS, np.uint64(1))
    return bool(position < head)


# --- the Python side -------------------------------------------------------------------------------------------------------------------

_NO_FIRED = np.empty(0, FIRED_DTYPE)
_NO_OUTCOMES = np.empty(0, OUTCOME_DTYPE)
_NO_SYMBOLS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one ``consume`` did. Arrays are copies. ``closed``: symbols whose setup bar closed: arm them before consuming on.

    ``more``: consume again. ``lag_ns_max``, ``lag_ns_min``: age of the oldest and the newest slot (0 where slots carry no time or no
    ``now_ns`` was given).
    """

    consumed: int
    more: bool
    fired: npt.NDArray[np.void]
    outcomes: npt.NDArray[np.void]
    closed: npt.NDArray[np.int64]
    base_closed: int
    lag_ns_max: int
    lag_ns_min: int


def make_market(symbols: int, *, history: int) -> Market:
    """Empty arrays: no price known, everything tradable."""
    assert history > LEG_BARS_MAX + PIVOT_LEFT + PIVOT_RIGHT, f"a history of {history} bars is shorter than a leg may be"
    m = Market(
        np.zeros(symbols, SYMBOL_DTYPE), np.zeros((FRAMES, symbols), FRAME_DTYPE), np.zeros((FRAMES, symbols, history, BAR_COLUMNS)),
        np.zeros((symbols, history), np.uint8), np.zeros((symbols, SETUPS_MAX), SETUP_DTYPE), np.zeros(symbols, np.int64),
        np.zeros(FIRED_MAX, FIRED_DTYPE), np.zeros(OUTCOMES_MAX, OUTCOME_DTYPE), np.zeros(1, CROSSING_DTYPE), np.zeros(1, TALLY_DTYPE))
    m.symbols["tradable"], m.symbols["alarm_low"], m.symbols["alarm_high"], m.symbols["alarm_ms"] = 1, -np.inf, np.inf, NEVER_MS
    return m


class MarketState:
    """The market of a run's symbols. ``steps``: stepSize of each, for volumes of history. Intervals in milliseconds, each a whole multiple
    of the one before; ``context_ms`` divides a day. ``history``: closed bars kept of each frame. ``spare``: rows for symbols that ``add``
    brings later.
    """

    def __init__(self, symbols: tuple[str, ...], steps: Floats, *, candle_ms: int, setup_ms: int, context_ms: int, atr_period: int = 14,
                 rsi_period: int = 14, history: int = 600, spare: int = 0) -> None:
        if candle_ms % 1_000 or setup_ms % candle_ms or context_ms % setup_ms or 86_400_000 % context_ms:
            raise Fatal(f"candles of {candle_ms} ms, setups of {setup_ms} ms and a context of {context_ms} ms do not nest into days")
        assert len(steps) == len(symbols) and np.all(np.asarray(steps) > 0), "each symbol has a step above 0"
        self.symbols = symbols
        self.steps = np.concatenate([np.asarray(steps, np.float64), np.ones(spare)])
        self.intervals = (candle_ms, setup_ms, context_ms)
        self.market = make_market(len(symbols) + spare, history=history)
        for pages in (self.market.bars[:, :len(symbols)], self.market.flaws[:len(symbols)], self.market.frames[:, :len(symbols)]):
            pages[...] = 0  # or the first close of all symbols waits for them to be cleared
        frames, self.market.symbols["interval_ms"] = self.market.frames, candle_ms
        self._batch_fields = self.market.tally.view(np.int64)[: len(BATCH_FIELDS)]
        frames["interval_ms"], frames["rsi_period"], frames["atr_period"] = np.array(self.intervals)[:, None], rsi_period, atr_period

    def add(self, symbol: str, step: float) -> int:
        """One more symbol, in a spare row. Returns its index, which is never another's."""
        i = len(self.symbols)
        assert i < len(self.steps) and step > 0, "no spare row is left, or no step"
        self.symbols, self.steps[i] = (*self.symbols, symbol), step
        return i

    def consume(self, ring: Ring, *, now_ns: int = 0, limit: Int = 4_096) -> Batch:
        """Consume at most ``limit`` slots of the ring, fewer at a close barrier or when a setup fires. Halt: a wrong sequence number."""
        more = consume_ring(self.market, ring.words, ring.floats, limit)
        if self.market.tally["error"][0]:
            raise Halt("the ring was written by a second writer", **ring.statistics())
        return self._batch(bool(more), now_ns)

    def consume_array(self, slots: npt.NDArray[np.void], first: Int, *, limit: Int = 1 << 40) -> Batch:
        """The same from position ``first`` of a C-contiguous SLOT_DTYPE array (replay, backtest). Next position: first + consumed."""
        words = slots.view(np.uint64)
        last = min(len(slots), first + limit)
        position = consume_slots(self.market, words, words.view(np.float64), (first, last, 0, 0))
        return self._batch(position < len(slots), 0)

    def warm_up(self) -> None:
        """Compile what ``consume`` and ``consume_array`` run. Changes nothing but the batch fields of the tally."""
        words = np.zeros(CONTROL_WORDS, np.uint64)
        consume_ring(self.market, words, words.view(np.float64), 0)
        self.consume_array(np.empty(0, SLOT_DTYPE), 0)

    def _batch(self, more: bool, now_ns: int) -> Batch:
        m = self.market
        consumed, fired, outcomes, closed, base_closed, _, oldest, newest = self._batch_fields.tolist()
        timed = now_ns > 0 and newest > 0
        return Batch(
            consumed, more,
            m.fired[:fired].copy() if fired else _NO_FIRED,
            m.outcomes[:outcomes].copy() if outcomes else _NO_OUTCOMES,
            m.closed[:closed].copy() if closed else _NO_SYMBOLS,
            base_closed, max(0, now_ns - oldest) if timed else 0, max(0, now_ns - newest) if timed else 0)

    def place(self, proposals: npt.NDArray[np.void], closed: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Arm ``proposals`` (SETUP_DTYPE with ``confidence`` set) for the symbols whose setup bar just closed, in the place of all that
        was armed for them. Returns copies of the armed rows; what becomes of the others, ``place_setups`` says."""
        rows = np.ascontiguousarray(proposals)
        rows = rows if in_order(rows, closed) else self._sorted(rows, closed)
        place_setups(self.market, rows, closed)
        armed: npt.NDArray[np.void] = rows[rows["state"] == ARMED]
        return armed

    def _sorted(self, proposals: npt.NDArray[np.void], closed: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Somebody's proposals in the order of ``closed``, as a contiguous copy."""
        rank = np.full(len(self.symbols), -1, np.int64)
        rank[closed] = np.arange(len(closed))
        order = rank[proposals["symbol"]]
        assert order.min(initial=0) >= 0, "a proposal for a symbol whose bar did not close"
        rows: npt.NDArray[np.void] = proposals[np.argsort(order, kind="stable")]
        return rows

    def seed(self, i: Int, klines_setup: Floats, klines_base: Floats, klines_context: Floats | None = None, *,
             until_ms: int | None = None) -> None:
        """Begin symbol ``i`` anew from history, or correct it. Rows: open_ms, open, high, low, close, volume, trades, taker volume, oldest
        first, volumes in base units (taker volume NaN where not recorded). Rejected: klines that are out of order or off the grid.

        The seam. Without ``until_ms`` the last base kline is the one still open: it is dropped and refilled by the ring's trades, flagged
        ``partial`` until a trade or TIME slot from before it proves that the ring holds all of it. Trades of closed candles are passed
        over (counted ``seam``). A symbol that is live keeps its open candle, and its own closed ones where they are newer.

        What was armed stays armed until the next close. ``arm`` may be called for ``i`` at once: it arms what the last close would have.
        """
        m, candle_ms = self.market, self.intervals[BASE]
        base = self._steps(i, klines_base, BASE)
        if until_ms is None:
            base, edge_ms = base[:-1], int(base[-1, OPEN_MS]) if len(base) else 0
        else:
            edge_ms = until_ms - until_ms % candle_ms
            base = base[base[:, OPEN_MS] + candle_ms <= edge_ms]
        live, flaws = m.symbols["open_bar"][i].copy(), np.full(len(base), SEEDED, np.uint8)
        if keep := bool(live["end_ms"] > 0 and live["open_ms"] >= edge_ms):
            own, theirs = self.candles(i, candle_ms), self.flaws(i)
            newer = own[:, OPEN_MS] >= edge_ms
            base, flaws, edge_ms = np.concatenate([base, own[newer]]), np.concatenate([flaws, theirs[newer]]), int(live["open_ms"])
        self._forget(i)
        replay_history(m, i, self._closed(i, klines_context, CONTEXT, edge_ms), self._closed(i, klines_setup, SETUP, edge_ms))
        replay_base(m, i, base, flaws, edge_ms)
        self._join(i, live if keep else None)

    def in_steps(self, i: Int, klines: Floats) -> Floats:
        """Base klines of symbol ``i`` as ``candles`` has them: volumes in steps. Rejected as ``seed`` does."""
        return self._steps(i, klines, BASE)

    def _steps(self, i: Int, klines: Floats, f: Int) -> Floats:
        bars = np.array(klines, np.float64, ndmin=2).reshape(-1, BAR_COLUMNS)
        times, prices = bars[:, OPEN_MS], bars[:, OPEN:VOLUME]
        on_grid = np.all(np.diff(times) > 0) and np.all(times % self.intervals[f] == 0)
        if not (on_grid and np.all(prices > 0) and np.all(np.isfinite(prices))):
            raise Rejected(f"history of {self.symbols[i]} is out of order, off the grid of {self.intervals[f]} ms, or without a price")
        bars[:, VOLUME], bars[:, TAKER_VOLUME] = np.rint(bars[:, VOLUME] / self.steps[i]), np.rint(bars[:, TAKER_VOLUME] / self.steps[i])
        return bars

    def _closed(self, i: Int, klines: Floats | None, f: Int, edge_ms: Int) -> Floats:
        if klines is None:
            return np.empty((0, BAR_COLUMNS))
        bars = self._steps(i, klines, f)
        return bars[bars[:, OPEN_MS] + self.intervals[f] <= edge_ms] if edge_ms else bars

    def _forget(self, i: int) -> None:
        m = self.market
        m.symbols["bars"][i], m.symbols["wrong"][i], m.symbols["open_bar"][i] = 0, 0, np.zeros((), OPEN_BAR_DTYPE)
        for name in ("open_bar", "indicators", "structure"):
            m.frames[name][SETUP:, i] = np.zeros((), FRAME_DTYPE[name])

    def _join(self, i: int, live: np.void | None) -> None:
        """The open candle at the seam."""
        rows = self.market.symbols
        if live is not None:
            rows["open_bar"][i] = live
        else:
            rows["open_bar"]["partial"][i] = 1
        if rows["last_ms"][i] == 0:
            rows["last_price"][i] = rows["open_bar"]["close"][i]

    def quote(self, i: Int, now_ms: float) -> Quote:
        """Prices (0 while unknown) and their ages in market milliseconds (infinite while unknown). Not tradable while gapped."""
        row = self.market.symbols[i]
        ages = [now_ms - int(row[name]) if row[name] > 0 else math.inf for name in ("quote_ms", "mark_ms", "last_ms")]
        return Quote(float(row["bid"]), float(row["ask"]), float(row["mark"]), float(row["last_price"]), ages[0], ages[1], ages[2],
                     bool(row["tradable"] and not row["gapped"]))

    def candles(self, i: Int, interval_ms: int) -> Floats:
        """Closed bars of symbol ``i``, oldest first, as an (n, 8) copy; volumes in steps. ValueError: not one of the three intervals."""
        f = self.intervals.index(interval_ms)
        m, kept = self.market, self.market.bars[f, i]
        seen, history = int(m.symbols["bars"][i] if f == BASE else m.frames["structure"]["bars"][f, i]), len(kept)
        bars: Floats = kept[np.arange(max(0, seen - history), seen) % history]
        return bars

    def flaws(self, i: Int) -> npt.NDArray[np.uint8]:
        """What may be wrong with each of ``candles(i, base interval)``: GAPPED, LATE, STRANGE, PARTIAL, SEEDED or-ed. A copy."""
        seen, history = int(self.market.symbols["bars"][i]), self.market.flaws.shape[1]
        flaws: npt.NDArray[np.uint8] = self.market.flaws[i, np.arange(max(0, seen - history), seen) % history]
        return flaws

    def open_candle(self, i: Int) -> dict[str, float]:
        """The base candle that is still open, by field name."""
        bar = self.market.symbols["open_bar"][i]
        return {name: bar[name].item() for name in OPEN_BAR_DTYPE.names or ()}

    def tainted(self) -> list[int]:
        """Symbols that are not gapped but have a bar, closed or open, that misses something which history may hold: ``seed`` them again."""
        rows, bars = self.market.symbols, self.market.frames["open_bar"][SETUP]
        open_one = (bars["tainted"] & 1 == 1) & (bars["end_ms"] > 0)
        return np.flatnonzero((open_one | (rows["wrong"] > 0)) & (rows["gapped"] == 0) & (rows["unstreamed"] == 0)).tolist()

    def doubt(self, i: Int) -> None:
        """A closed bar of this symbol is not what the venue has: ``tainted`` names it until it is read again."""
        self.market.symbols["wrong"][i] = 1

    def statistics(self) -> dict[str, int]:
        """Counts since the start by the names of TALLY, and how many symbols are gapped, and setups armed and entered, now."""
        m = self.market
        counts = {name: int(m.tally[name][0]) for name in TOTAL_FIELDS}
        states = m.setups["state"]
        return counts | {"gapped_now": int(m.symbols["gapped"].sum()), "armed_now": int((states == ARMED).sum()),
                         "entered_now": int((states == ENTERED).sum())}
