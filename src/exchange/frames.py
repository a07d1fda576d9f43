"""A recorded market played as it was received: raw frames leave by the streams byte for byte, and orders meet the book that they tell.

Market time is the recording's own: nothing is shifted but what the recorder's clock was behind the venue's, so that no frame is seen
before the time it carries. Trades are the recorded aggregate trades, or single ones where there are no others; the top of the book is the
recorded best quote, or the best of a recorded book; behind it stands the recorded depth, where a snapshot of it was recorded too, else the
stated model. Streams that were not recorded are made of these, as in any market.

Implements ``market.Market``. There is no history before the first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from src.clock import iso, parse_utc
from src.error_handler import Fatal, lifecycle
from src.exchange.expansion import KLINE_DTYPE, TRADE_DTYPE, Klines, Trades, candles_of, fill_flat
from src.exchange.ladders import Book, Ladders, Told, read_diff, read_whole
from src.exchange.market import Frame
from src.exchange.marks import Marks
from src.exchange.path import AGG_LIMIT_MAX, check_resume
from src.exchange.quotes import QUOTE
from src.exchange.recorded import Recording, Snapshot, load_frames
from src.exchange.replay import choose_spec
from src.exchange.symbols import SymbolSpec

LEAD_MS = 10_000
"""Market time before the first frame, for who wants to hear all of them."""
RUBBISH = (msgspec.DecodeError, ValueError, OverflowError)
QUANTITY_MAX, ID_MAX, TIME_MAX_MS = 2.0**53, 2**63, 10**14
PRICE_MAX, RATE_MAX = 1e12, 1.0
AHEAD_MS_MAX = 60_000
"""A frame whose time is so much further ahead of its receipt than the others' are has no time of the venue's in it."""
SAMPLE = 500
"""So many frames of depth tell which digits a symbol's levels have."""


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


class _Stamp(msgspec.Struct):
    E: int = 0


_trade, _quote = msgspec.json.Decoder(_Trade).decode, msgspec.json.Decoder(_Quote).decode
_marks, _stamp = msgspec.json.Decoder(_Mark | list[_Mark]).decode, msgspec.json.Decoder(_Stamp).decode
_Trades = list[tuple[int, float, float, bool, int, int, int]]
_TRADES = [("at", "i8"), ("price", "f8"), ("qty", "f8"), ("maker", "u1"), ("id", "i8"), ("first", "i8"), ("last", "i8")]
_QUOTES = [("at", "i8"), ("bid", "f8"), ("bid_qty", "f8"), ("ask", "f8"), ("ask_qty", "f8")]


def _number(text: str, below: float) -> float:
    """ValueError: it is none, or none that a market has."""
    value = float(text)
    if not 0.0 <= value < below:
        raise ValueError(f"{text!r} is not from 0 to {below:g}")
    return value


def _levels(pairs: Iterable[tuple[str, str]]) -> list[tuple[float, float]]:
    return [(_number(price, PRICE_MAX), _number(qty, QUANTITY_MAX)) for price, qty in pairs]


class _Said:
    """What the frames of one symbol say, by the frame's number. ``depth``: number and last id; ``odd``: frames that say nothing sensible."""

    def __init__(self) -> None:
        self.aggregates: _Trades = []
        self.singles: _Trades = []
        self.quotes: list[tuple[int, float, float, float, float]] = []
        self.depth: list[tuple[int, int]] = []
        self.levels: list[tuple[float, float]] = []
        self.odd = 0

    def hear(self, number: int, kind: str, payload: bytes) -> None:
        try:
            if kind == "bookTicker":
                self._quote(number, _quote(payload))
            elif kind == "aggTrade":
                self._trade(self.aggregates, number, _trade(payload))
            elif kind == "trade":
                self._trade(self.singles, number, _trade(payload))
            elif kind == "depth" or kind.startswith("depth@"):
                self._depth(number, payload)
        except RUBBISH:
            self.odd += 1

    def _quote(self, number: int, quote: _Quote) -> None:
        bid, ask = _number(quote.b, PRICE_MAX), _number(quote.a, PRICE_MAX)
        if 0 < bid < ask:
            self.quotes.append((number, bid, _number(quote.B, QUANTITY_MAX), ask, _number(quote.A, QUANTITY_MAX)))

    @staticmethod
    def _trade(into: _Trades, number: int, trade: _Trade) -> None:
        price, qty, single = _number(trade.p, PRICE_MAX), _number(trade.q, QUANTITY_MAX), trade.t
        if not all(0 <= number < ID_MAX for number in (trade.a, trade.f, trade.l, single)):
            raise ValueError("an id that cannot be")
        if price > 0 and qty > 0 and trade.X in ("MARKET", "NA", ""):
            into.append((number, price, qty, trade.m, trade.a or single, trade.f or single, trade.l or single))

    def _depth(self, number: int, payload: bytes) -> None:
        diff = read_diff(payload)
        levels = _levels((*diff.b, *diff.a))
        if len(self.depth) < SAMPLE:
            self.levels += levels
        self.depth.append((number, diff.u))

    @property
    def trades(self) -> _Trades:
        return self.aggregates or self.singles

    def tells_a_price(self) -> bool:
        return bool(self.trades or self.quotes or self.levels)


class FramesMarket:
    """``frames`` gives what is due, ``ladders`` the books behind the best quotes."""

    def __init__(self, recording: Recording, names: tuple[str, ...], start: str, lead_ms: int) -> None:
        said, marks = _hear(recording)
        names = names or tuple(sorted(name for name, one in said.items() if one.tells_a_price()))
        for name in names or ("any symbol",):
            if name not in said or not said[name].tells_a_price():
                raise Fatal(f"SIM_DATA: the frames tell no price of {name}; wanted are aggTrade, trade, bookTicker or depth", setting="SYMBOLS")
        self.symbols = tuple(_spec(name, said[name]) for name in names)
        self._frames, self._at_ms = recording.frames, _times(recording.frames)
        self.streams = frozenset(frame.stream for frame in recording.frames)
        told = [_told(said[name], name, recording, self._at_ms) for name in names]
        self.ladders = Ladders([_book(spec) for spec in self.symbols], told)
        best = [_best(_book(spec), said[spec.symbol], told[i]) for i, spec in enumerate(self.symbols)]
        rows = np.concatenate([_rows(i, spec, said[spec.symbol], best[i]) for i, spec in enumerate(self.symbols)])
        rows = rows[np.argsort(rows["time_ms"], kind="stable")]
        rows["time_ms"] = self._at_ms[rows["time_ms"]]
        self._rows, self._times = rows, np.ascontiguousarray(rows["time_ms"])
        self._trades = [rows[(rows["symbol"] == i) & (rows["qty"] > 0)] for i in range(len(names))]
        self._units = [float(s.tick) * float(s.step) for s in self.symbols]
        self._place = {name: i for i, name in enumerate(names)}
        self._told = [(int(self._at_ms[n]), *mark) for n, *mark in marks if mark[0] in self._place]
        self._told_upto = 0
        self._marks = Marks(len(names)) if self._told else None
        self.start_ms = int(self._at_ms[0])
        self.open_ms = self.start_ms // 1000 * 1000 - lead_ms
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
            span = f"from {iso(self.start_ms)[:19]} and before {iso(self.end_ms or 0)[:19]}"
            raise Fatal(f"SIM_START={start!r} must be a time in UTC {span}, where the frames lie", setting="SIM_START", value=start)
        return start_ms

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


def open_frames(*, path: str | None, symbols: tuple[str, ...], resume: dict[str, Any] | None, start: str = "",
                lead_ms: int = LEAD_MS) -> FramesMarket:  # fmt: skip
    """The frames at ``path``, of all their symbols or of those named; without ``start`` the market opens ``lead_ms`` before the first of them.
    Fatal where they cannot be played."""
    market = FramesMarket(load_frames(path or "", symbols), symbols, start, lead_ms)
    if resume is not None:
        check_resume(resume, market.resume_state())
    return market


def _hear(recording: Recording) -> tuple[dict[str, _Said], list[Any]]:
    """What is said of each symbol; and mark prices: frame number, symbol, price, funding rate, when that is settled."""
    said: dict[str, _Said] = {}
    marks: list[Any] = []
    for number, (_, stream, payload) in enumerate(recording.frames):
        subject, _, kind = stream.partition("@")
        if kind.startswith("markPrice") or subject == "!markPrice":
            marks += _marks_of(number, payload)
        elif not subject.startswith("!"):
            said.setdefault(subject.upper(), _Said()).hear(number, kind, payload)
    return said, marks


def _marks_of(number: int, payload: bytes) -> list[tuple[int, str, str, str, int]]:
    try:
        told = _marks(payload)
        return [(number, m.s, m.p, m.r, m.T) for m in (told if isinstance(told, list) else [told]) if _is_mark(m)]
    except RUBBISH:
        return []


def _is_mark(mark: _Mark) -> bool:
    return _number(mark.p, PRICE_MAX) > 0 and abs(float(mark.r or 0)) < RATE_MAX and 0 <= mark.T < TIME_MAX_MS


def _times(frames: list[Frame]) -> NDArray[np.int64]:
    """When each is played (ms): as received, later by what the recorder's clock was behind the venue's."""
    at_us = np.array([frame.at_us for frame in frames], np.int64)
    stamps = np.array([_stamp_of(frame.payload) for frame in frames], np.int64)
    ahead = (stamps * 1000 - at_us)[stamps > 0]
    usual = float(np.median(ahead)) if len(ahead) else 0.0
    behind = int(ahead[ahead <= usual + AHEAD_MS_MAX * 1000].max(initial=0))
    found: NDArray[np.int64] = -(-(at_us + behind) // 1000)
    return found


def _stamp_of(payload: bytes) -> int:
    """The venue's time in a frame (ms); 0 where there is none."""
    try:
        sent = _stamp(payload).E if payload.startswith(b"{") else 0
    except RUBBISH:
        return 0
    return sent if 0 < sent < TIME_MAX_MS else 0


def _spec(name: str, said: _Said) -> SymbolSpec:
    trades, quotes = np.array(said.trades, _TRADES), np.array(said.quotes, _QUOTES)
    levels = np.array(said.levels, np.float64).reshape(-1, 2)
    prices = tuple(p for p in (quotes["bid"], quotes["ask"], levels[:, 0], trades["price"]) if len(p))
    return choose_spec(name, prices, np.concatenate((trades["qty"], quotes["bid_qty"], quotes["ask_qty"], levels[:, 1])))


def _book(spec: SymbolSpec) -> Book:
    return Book(float(spec.tick), float(spec.step))


def _told(said: _Said, name: str, recording: Recording, at_ms: NDArray[np.int64]) -> list[Told]:
    """The symbol's depth in order; a snapshot stands before the first change that may follow it, and is of no use without one."""
    found = [Told(int(at_ms[number]), False, recording.frames[number].payload) for number, _ in said.depth]
    last_ids = [last for _, last in said.depth]
    for taken in reversed([s for s in recording.snapshots if s.symbol == name]):
        update = _update_of(taken)
        place = next((i for i, last in enumerate(last_ids) if last >= update), None)
        if place is not None:
            found.insert(place, Told(found[place].at_ms, True, taken.body))
            last_ids.insert(place, -1)
    return found


def _update_of(taken: Snapshot) -> int:
    """The snapshot's id; past all ids where the recorded answer was none."""
    try:
        whole = read_whole(taken.body)
        _levels((*whole.bids, *whole.asks))
    except RUBBISH:
        return 1 << 63
    return whole.lastUpdateId


def _best(book: Book, said: _Said, told: list[Told]) -> list[tuple[int, int, int, int, int]]:
    """Best quotes out of the recorded depth, by frame number, where no quotes were recorded."""
    found: list[tuple[int, int, int, int, int]] = []
    numbers = (number for number, _ in said.depth)
    for one in () if said.quotes else told:
        book.take(one)
        best = None if one.whole else book.best()
        number = -1 if one.whole else next(numbers)
        if best is not None and all(best):
            found.append((number, *best))
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
    rows["ask"] = np.maximum(rows["ask"], rows["bid"] + 1)
    for name in ("price", "agg_id"):
        rows[name] = np.where(traded >= 0, rows[name][traded], 0)
    return rows
