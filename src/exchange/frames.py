"""A recorded market played as it was received: raw frames leave by the streams byte for byte, and orders meet the book that they tell.

Market time is the recording's own: nothing is shifted but what the recorder's clock was behind the venue's, so that no frame is seen
before the time it carries. Trades are the recorded aggregate trades, or single ones where there are no others; the top of the book is the
recorded best quote, or the best of a recorded book; behind it stands the recorded depth, where a snapshot of it was recorded too, else the
stated model. Streams that were not recorded are made of these, as in any market.

Implements ``market.Market``. There is no history before the first frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from src.clock import iso, parse_utc
from src.error_handler import Fatal, lifecycle
from src.exchange.expansion import KLINE_DTYPE, TRADE_DTYPE, Klines, Trades, candles_of, fill_flat
from src.exchange.ladders import Book, Change, Ladders, Level
from src.exchange.marks import Marks
from src.exchange.path import AGG_LIMIT_MAX, check_resume
from src.exchange.quotes import QUOTE
from src.exchange.recorded import Frame, Recording, Snapshot, load_frames
from src.exchange.replay import choose_spec
from src.exchange.symbols import SymbolSpec

LEAD_MS = 10_000
"""Market time before the first frame, for who wants to hear all of them."""
RUBBISH = (msgspec.DecodeError, ValueError, OverflowError)
Pairs = list[tuple[str, str]]


class _Trade(msgspec.Struct):
    p: str
    q: str
    m: bool
    a: int = 0
    f: int = 0
    l: int = 0  # noqa: E741  (the venue's letter)
    t: int = 0
    X: str = "MARKET"


class _Quote(msgspec.Struct):
    b: str
    B: str
    a: str
    A: str


class _Mark(msgspec.Struct):
    s: str
    p: str
    r: str = ""
    T: int = 0


class _Depth(msgspec.Struct):
    U: int
    u: int
    pu: int
    b: Pairs
    a: Pairs


class _Snapshot(msgspec.Struct):
    lastUpdateId: int
    bids: Pairs
    asks: Pairs


class _Stamp(msgspec.Struct):
    E: int = 0


_trade, _quote = msgspec.json.Decoder(_Trade).decode, msgspec.json.Decoder(_Quote).decode
_depth = msgspec.json.Decoder(_Depth).decode
_marks = msgspec.json.Decoder(_Mark | list[_Mark]).decode
_snapshot, _stamp = msgspec.json.Decoder(_Snapshot).decode, msgspec.json.Decoder(_Stamp).decode
_TRADES = [("at", "i8"), ("price", "f8"), ("qty", "f8"), ("maker", "u1"), ("id", "i8"), ("first", "i8"), ("last", "i8")]
_QUOTES = [("at", "i8"), ("bid", "f8"), ("bid_qty", "f8"), ("ask", "f8"), ("ask_qty", "f8")]


class _Said:
    """What the frames of one symbol say, by the frame's number. ``odd``: frames that say nothing sensible."""

    def __init__(self) -> None:
        self.aggregates: list[tuple[int, float, float, bool, int, int, int]] = []
        self.singles: list[tuple[int, float, float, bool, int, int, int]] = []
        self.quotes: list[tuple[int, float, float, float, float]] = []
        self.depth: list[tuple[int, _Depth]] = []
        self.odd = 0

    def hear(self, number: int, kind: str, payload: bytes) -> None:
        try:
            if kind == "bookTicker":
                quote = _quote(payload)
                bid, ask = float(quote.b), float(quote.a)
                if 0 < bid < ask:
                    self.quotes.append((number, bid, float(quote.B), ask, float(quote.A)))
            elif kind == "aggTrade":
                self._trade(self.aggregates, number, _trade(payload))
            elif kind == "trade":
                self._trade(self.singles, number, _trade(payload))
            elif kind == "depth" or kind.startswith("depth@"):
                self.depth.append((number, _depth(payload)))
        except RUBBISH:
            self.odd += 1

    @staticmethod
    def _trade(into: list[tuple[int, float, float, bool, int, int, int]], number: int, trade: _Trade) -> None:
        price, qty, single = float(trade.p), float(trade.q), trade.t
        if price > 0 and qty > 0 and trade.X in ("MARKET", "NA", ""):
            into.append((number, price, qty, trade.m, trade.a or single, trade.f or single, trade.l or single))

    @property
    def trades(self) -> list[tuple[int, float, float, bool, int, int, int]]:
        return self.aggregates or self.singles


class FramesMarket:
    """``frames`` gives what is due, ``ladders`` the books behind the best quotes."""

    def __init__(self, recording: Recording, names: tuple[str, ...], start: str) -> None:
        said = {name: _Said() for name in names}
        marks: list[tuple[int, str, str, str, int]] = []
        for number, frame in enumerate(recording.frames):
            subject, _, kind = frame.stream.partition("@")
            if kind.startswith(("markPrice", "arr")):
                marks += _told(number, frame)
            elif subject.upper() in said:
                said[subject.upper()].hear(number, kind, frame.payload)
        self.symbols = tuple(_spec(name, said[name]) for name in names)
        self._frames = recording.frames
        self._at_ms = _times(recording.frames)
        self.streams = frozenset(frame.stream for frame in recording.frames)
        changes = [_changes(spec, said[spec.symbol], recording.snapshots, self._at_ms) for spec in self.symbols]
        self.ladders = Ladders(changes)
        each = [_rows(i, spec, said[spec.symbol], self._best(changes[i], said[spec.symbol])) for i, spec in enumerate(self.symbols)]
        rows = np.concatenate(each)
        rows = rows[np.argsort(rows["time_ms"], kind="stable")]
        rows["time_ms"] = self._at_ms[rows["time_ms"]]
        self._rows, self._times = rows, np.ascontiguousarray(rows["time_ms"])
        self._trades = [rows[(rows["symbol"] == i) & (rows["qty"] > 0)] for i in range(len(names))]
        self._units = [float(s.tick) * float(s.step) for s in self.symbols]
        self._place = {s.symbol: i for i, s in enumerate(self.symbols)}
        self._told = [(int(self._at_ms[n]), name, price, rate, due) for n, name, price, rate, due in marks if name in self._place]
        self._told_upto = 0
        self._marks = Marks(len(names)) if self._told else None
        self.start_ms = int(self._at_ms[0])
        self.open_ms = self.start_ms // 1000 * 1000 - LEAD_MS
        self.end_ms: int | None = int(self._at_ms[-1]) + 1
        if start:
            self.open_ms = self._begin_at(start)
        self._state = {"kind": "frames", "recording": recording.identity, "symbols": list(names)}
        self._say(said)

    def _say(self, said: dict[str, _Said]) -> None:
        odd = sum(s.odd for s in said.values())
        lifecycle(f"🎞️ Frames: {len(self._frames)} of {len(self.streams)} streams, {iso(self.start_ms)[:19]} to {iso(self.end_ms or 0)[:19]}",
                  frames=len(self._frames), odd=odd)  # fmt: skip

    def _begin_at(self, start: str) -> int:
        try:
            start_ms = parse_utc(start)
        except ValueError:
            start_ms = -1
        if not self.start_ms <= start_ms < (self.end_ms or 0):
            span = f"{iso(self.start_ms)[:19]} and {iso(self.end_ms or 0)[:19]}"
            raise Fatal(f"SIM_START={start!r} must be a time in UTC between {span}, where the frames lie", setting="SIM_START", value=start)
        return start_ms

    @staticmethod
    def _best(changes: list[Change], said: _Said) -> list[tuple[int, int, int, int, int]]:
        """Best quotes out of the recorded depth, by frame number, where no quotes were recorded."""
        if said.quotes:
            return []
        book, found = Book(), []
        numbers = iter(number for number, _ in said.depth)
        for change in changes:
            book.take(change)
            number = next(numbers, None) if change.before >= 0 else None
            best = book.best()
            if number is not None and best is not None:
                found.append((number, *best))
        return found

    # ------------------------------------------------------------------ the market

    def trades(self, from_ms: int, to_ms: int) -> Trades:
        self._tell(to_ms)
        a, b = np.searchsorted(self._times, (from_ms, to_ms))
        return self._rows[a:b]

    def _tell(self, to_ms: int) -> None:
        while self._told_upto < len(self._told) and self._told[self._told_upto][0] < to_ms:
            _, symbol, price, rate, due_ms = self._told[self._told_upto]
            assert self._marks is not None
            self._marks.tell(self._place[symbol], price, rate, due_ms)
            self._told_upto += 1

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> Trades:  # fmt: skip
        rows, limit = self._trades[symbol_index], min(limit, AGG_LIMIT_MAX)
        end = len(rows) if to_ms is None else int(np.searchsorted(rows["time_ms"], to_ms))
        begin = max(0, end - limit)
        if from_id is not None:
            begin = int(np.searchsorted(rows["agg_id"], from_id))
        elif from_ms is not None:
            begin = int(np.searchsorted(rows["time_ms"], from_ms))
        found: Trades = rows[begin : min(end, begin + limit)]
        return found

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> Klines:
        rows = self._trades[symbol_index]
        limit = min(now_ms, self.end_ms or now_ms)
        rows = rows[: np.searchsorted(rows["time_ms"], limit)]
        if not len(rows):
            return np.empty(0, KLINE_DTYPE)
        first = -(-max(from_ms, int(rows["time_ms"][0]) // interval_ms * interval_ms) // interval_ms) * interval_ms
        last = min(to_ms, limit - 1) // interval_ms * interval_ms
        if first > last:
            return np.empty(0, KLINE_DTYPE)
        a, b = np.searchsorted(rows["time_ms"], (first, last + interval_ms))
        out = fill_flat(candles_of(rows[a:b], interval_ms), interval_ms, first, last, int(rows["price"][a - 1]) if a else None).copy()
        for name in ("quote_volume", "taker_quote_volume"):
            out[name] *= self._units[symbol_index]
        return out

    def marks(self) -> Marks | None:
        """None where no mark prices were recorded."""
        return self._marks

    def resume_state(self) -> dict[str, Any]:
        return dict(self._state)

    # ------------------------------------------------------------------ the frames

    def frames(self, from_ms: int, to_ms: int) -> Iterator[Frame]:
        """What was received with from_ms ≤ time < to_ms, in order."""
        a, b = np.searchsorted(self._at_ms, (from_ms, to_ms))
        return iter(self._frames[a:b])


def open_frames(*, path: str | None, symbols: tuple[str, ...], resume: dict[str, Any] | None, start: str = "") -> FramesMarket:
    """The frames at ``path``, of all their symbols or of those named. Fatal where they cannot be played."""
    recording = load_frames(path or "", symbols)
    heard = {frame.stream.partition("@")[0].upper() for frame in recording.frames if not frame.stream.startswith("!")}
    missing = [name for name in symbols if name not in heard]
    if missing:
        raise Fatal(f"SIM_DATA={path} holds no frames of {', '.join(missing)}", setting="SYMBOLS", value=missing[0])
    market = FramesMarket(recording, symbols or tuple(sorted(heard)), start)
    if resume is not None:
        check_resume(resume, market.resume_state())
    return market


def _told(number: int, frame: Frame) -> list[tuple[int, str, str, str, int]]:
    try:
        told = _marks(frame.payload)
        rows = told if isinstance(told, list) else [told]
        return [(number, m.s, m.p, m.r, m.T) for m in rows if float(m.p) > 0]
    except RUBBISH:
        return []


def _times(frames: list[Frame]) -> NDArray[np.int64]:
    """When each is played (ms): as received, later by what the recorder's clock was behind the venue's."""
    at_us = np.array([frame.at_us for frame in frames], np.int64)
    stamps = np.array([_stamp(frame.payload).E if frame.payload.startswith(b"{") else 0 for frame in frames], np.int64)
    behind = int((stamps * 1000 - at_us).max(initial=0))
    found: NDArray[np.int64] = -(-(at_us + behind) // 1000)
    return found


def _spec(name: str, said: _Said) -> SymbolSpec:
    trades, quotes = np.array(said.trades, _TRADES), np.array(said.quotes, _QUOTES)
    book = np.array([float(p) for _, d in said.depth[:500] for p, _ in (*d.b, *d.a)], np.float64)
    sizes = np.array([float(q) for _, d in said.depth[:500] for _, q in (*d.b, *d.a)], np.float64)
    prices = tuple(p for p in (quotes["bid"], quotes["ask"], book, trades["price"]) if len(p))
    if not prices:
        raise Fatal(f"SIM_DATA: the frames tell no price of {name}; wanted are aggTrade, trade, bookTicker or depth", setting="SIM_DATA")
    return choose_spec(name, prices, np.concatenate((trades["qty"], quotes["bid_qty"], quotes["ask_qty"], sizes)))


def _levels(spec: SymbolSpec, pairs: Pairs) -> list[Level]:
    per_tick, per_step = 1.0 / float(spec.tick), 1.0 / float(spec.step)
    return [(round(float(p) * per_tick), round(float(q) * per_step)) for p, q in pairs]


def _snapshot_of(taken: Snapshot) -> _Snapshot | None:
    """None where the recorded answer was no snapshot."""
    try:
        return _snapshot(taken.body)
    except msgspec.DecodeError:
        return None


def _changes(spec: SymbolSpec, said: _Said, snapshots: list[Snapshot], at_ms: NDArray[np.int64]) -> list[Change]:
    """The symbol's depth in order; a snapshot stands before the first diff that it may be followed by."""
    found = [Change(int(at_ms[n]), d.U, d.u, d.pu, _levels(spec, d.b), _levels(spec, d.a)) for n, d in said.depth]
    for taken in reversed([s for s in snapshots if s.symbol == spec.symbol]):
        snapshot = _snapshot_of(taken)
        if snapshot is None:
            continue
        place = next((i for i, c in enumerate(found) if c.before >= 0 and c.last >= snapshot.lastUpdateId), len(found))
        when = found[place].at_ms if place < len(found) else int(at_ms[-1])
        change = Change(when, 0, snapshot.lastUpdateId, -1, _levels(spec, snapshot.bids), _levels(spec, snapshot.asks))
        found.insert(place, change)
    return found


def _rows(index: int, spec: SymbolSpec, said: _Said, best: list[tuple[int, int, int, int, int]]) -> Trades:
    """Trades and movements of the best quotes (TRADE_DTYPE), with the frame's number for a time, in order."""
    tick, step = float(spec.tick), float(spec.step)
    trades, quotes = np.array(said.trades, _TRADES), np.array(said.quotes, _QUOTES)
    n, m = len(trades), max(len(quotes), len(best))
    rows = np.zeros(n + m, TRADE_DTYPE)
    rows["symbol"] = index
    rows["time_ms"][:n], rows["buyer_is_maker"][:n], rows["buyer_is_maker"][n:] = trades["at"], trades["maker"], QUOTE
    for name, column in (("agg_id", "id"), ("first_id", "first"), ("last_id", "last")):
        rows[name][:n] = trades[column]
    rows["price"][:n] = np.rint(trades["price"] / tick)
    rows["qty"][:n] = np.maximum(np.rint(trades["qty"] / step), 1)
    if best:
        for name, values in zip(("time_ms", "bid", "ask", "bid_qty", "ask_qty"), zip(*best, strict=True), strict=True):
            rows[name][n:] = values
    else:
        rows["time_ms"][n:] = quotes["at"]
        for name, unit in (("bid", tick), ("ask", tick), ("bid_qty", step), ("ask_qty", step)):
            rows[name][n:] = np.maximum(np.rint(quotes[name] / unit), 1)
    rows = rows[np.argsort(rows["time_ms"], kind="stable")]
    return _filled(rows)


def _filled(rows: Trades) -> Trades:
    """Trades get the book that stood, quotes the trade that was last; before the first quote the book stands a tick to each side."""
    places = np.arange(len(rows))
    is_quote = rows["buyer_is_maker"] == QUOTE
    quoted = np.maximum.accumulate(np.where(is_quote, places, -1))
    traded = np.maximum.accumulate(np.where(is_quote, -1, places))
    for name in ("bid", "ask", "bid_qty", "ask_qty"):
        made = {"bid": rows["price"] - 1, "ask": rows["price"] + 1}.get(name, np.maximum(rows["qty"], 1))
        rows[name] = np.where(quoted >= 0, rows[name][quoted], made)
    for name in ("price", "agg_id"):
        rows[name] = np.where(traded >= 0, rows[name][traded], 0)
    return rows
