"""A real venue's market for the local exchange: what is seen of its public streams, as it is seen.

Both routes are read together: aggregate trades and marks on ``/market``, best quotes on ``/public``. They live and end together, so that
at any moment the market is either seen or not, and a cut of one is never half a market.

Invariants
  * A trade or quote counts from the moment it is seen, not from the venue's own time: nothing fills on what had not arrived yet. Let the
    exchange's latency be the round trip to the venue, and an order meets the book that it would have met there.
  * Nothing is made up. While the market is not seen every book is empty, and the exchange refuses orders with -1112. Trades missed
    meanwhile are counted (``missed``) and never come: no order fills on them, no stop is triggered by them. Afterwards last prices, books
    and marks are asked for by REST, and a stop whose price was passed is triggered then, at the price that stands.
  * Trades of a symbol come in the order of their ids, each once. Quotes between two looks of the exchange are conflated to the last one.
  * Every frame is used or counted; memory is bounded by ``PENDING_MAX`` trades and a row a symbol. There is no history.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray

from src.clock import SECOND_NS, monotonic_ns, unseeded
from src.error_handler import AegisError, Retryable, Throttle, lifecycle, warn
from src.exchange.expansion import KLINE_DTYPE, TRADE_DTYPE
from src.exchange.listing import PublicRest, Snapshot
from src.exchange.marks import Marks
from src.exchange.options import VenueUrls
from src.exchange.path import check_resume
from src.exchange.quotes import QUOTE
from src.exchange.symbols import SymbolSpec

PENDING_MAX = 200_000
FRAME_BYTES_MAX = 16 << 20
SUBSCRIBE_NAMES = 50
SUBSCRIBE_EVERY_S = 0.15
"""Less than the venue's ten messages a second."""
NO_BOOK = (0, 0, 0, 0)
CUTS = (aiohttp.ClientError, OSError, TimeoutError, AegisError)
RUBBISH = (msgspec.DecodeError, ValueError, OverflowError)


class AggTrade(msgspec.Struct, gc=False, tag_field="e", tag="aggTrade"):
    s: str
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741  (the venue's letter)
    m: bool


class BookTicker(msgspec.Struct, gc=False, tag_field="e", tag="bookTicker"):
    s: str
    u: int
    b: str
    B: str
    a: str
    A: str


class MarkPrice(msgspec.Struct, gc=False, tag_field="e", tag="markPriceUpdate"):
    s: str
    p: str
    r: str = ""
    T: int = 0


class Reply(msgspec.Struct):
    """The answer to a control message."""

    id: int | None = None
    code: int = 0
    msg: str = ""


decode_frame = msgspec.json.Decoder(AggTrade | BookTicker | MarkPrice | list[MarkPrice]).decode
_reply = msgspec.json.Decoder(Reply).decode


@dataclass(frozen=True, slots=True)
class Patience:
    """How long sockets are waited for; wall seconds. A route without any frame for its ``mute_s`` is given up, and the other with it."""

    connect_s: float = 10.0
    market_mute_s: float = 6.0
    """Marks come every second."""
    public_mute_s: float = 60.0
    """A quiet book may not change for long."""
    seen_within_s: float = 45.0
    steady_s: float = 30.0
    """Seen for so long, the next cut begins with the shortest back-off again."""
    backoff_s: tuple[float, float] = (0.2, 30.0)


@dataclass(slots=True)
class Tally:
    """``late``: out of order or twice. ``gaps``: holes in a symbol's ids, of ``missed`` trades together. ``lost``: seen, but no room."""

    trades: int = 0
    quotes: int = 0
    marks: int = 0
    late: int = 0
    gaps: int = 0
    missed: int = 0
    lost: int = 0
    bad: int = 0
    cuts: int = 0


class BinanceMarket:
    """Implements ``market.Market`` over what the streams brought: ``take`` puts in, ``trades`` takes out."""

    def __init__(self, specs: tuple[SymbolSpec, ...], now_ms: int) -> None:
        self.symbols = specs
        self.start_ms = self.open_ms = now_ms
        self.end_ms: int | None = None
        self.tally = Tally()
        n = len(specs)
        self._place = {s.symbol: i for i, s in enumerate(specs)}
        self._per_tick = [1.0 / float(s.tick) for s in specs]
        self._per_step = [1.0 / float(s.step) for s in specs]
        self._marks = Marks(n)
        self._pending: list[tuple[int, ...]] = []
        self._moved: dict[int, None] = {}
        self._price = [0] * n
        self._book = [NO_BOOK] * n
        self._trade_id = [0] * n
        self._update_id = [0] * n
        self._fresh_trade = [True] * n
        self._fresh_book = [True] * n

    # ------------------------------------------------------------------ what comes in

    def take(self, event: AggTrade | BookTicker | MarkPrice | list[MarkPrice]) -> None:
        """One event of either route. ValueError, OverflowError: impossible numbers."""
        if isinstance(event, BookTicker):
            self._take_book(event)
        elif isinstance(event, AggTrade):
            self._take_trade(event)
        else:
            for mark in event if isinstance(event, list) else (event,):
                self._take_mark(mark.s, mark.p, mark.r, mark.T)

    def _take_trade(self, trade: AggTrade) -> None:
        i, tally = self._place[trade.s], self.tally
        known = self._trade_id[i]
        if trade.a == known or (trade.a < known and not self._fresh_trade[i]):
            tally.late += 1
            return
        price, qty = self._ticks(i, trade.p), max(1, round(float(trade.q) * self._per_step[i]))
        if known and trade.a != known + 1:
            tally.gaps += 1
            tally.missed += max(0, trade.a - known - 1)
        self._trade_id[i], self._fresh_trade[i], self._price[i] = trade.a, False, price
        if len(self._pending) >= PENDING_MAX:
            tally.lost += 1
            self._moved[i] = None
            return
        tally.trades += 1
        self._moved.pop(i, None)
        self._pending.append((0, i, price, qty, trade.m, trade.a, trade.f, trade.l, *self._book[i]))

    def _take_book(self, book: BookTicker) -> None:
        i = self._place[book.s]
        if book.u < self._update_id[i] and not self._fresh_book[i]:
            self.tally.late += 1
            return
        self._set_book(i, book.b, book.B, book.a, book.A)
        self._update_id[i], self._fresh_book[i] = book.u, False
        self.tally.quotes += 1

    def _set_book(self, i: int, bid: str, bid_qty: str, ask: str, ask_qty: str) -> None:
        bid_ticks, ask_ticks, per_step = self._ticks(i, bid), self._ticks(i, ask), self._per_step[i]
        if bid_ticks >= ask_ticks:
            raise ValueError(f"a bid of {bid} and an ask of {ask}")
        self._book[i] = (bid_ticks, ask_ticks, max(1, round(float(bid_qty) * per_step)), max(1, round(float(ask_qty) * per_step)))
        self._moved[i] = None

    def _take_mark(self, symbol: str, mark: str, rate: str, due_ms: int) -> None:
        """All symbols of the venue come in one frame: who is not ours is passed over, and who is rubbish spoils only himself."""
        i = self._place.get(symbol)
        if i is None:
            return
        try:
            self._marks.tell(i, mark, rate, due_ms)
            self.tally.marks += 1
        except RUBBISH:
            self.tally.bad += 1

    def _ticks(self, i: int, price: str) -> int:
        ticks = round(float(price) * self._per_tick[i])
        if ticks <= 0:
            raise ValueError(f"a price of {price}")
        return ticks

    def settle(self, snapshot: Snapshot) -> None:
        """What REST says of symbols that the streams have not spoken of since they were opened."""
        for price in snapshot.prices:
            i = self._place.get(price.symbol, -1)
            if i >= 0 and self._fresh_trade[i]:
                with suppress(*RUBBISH):  # a contract that has never traded has a price of 0
                    self._price[i] = self._ticks(i, price.price)
                    self._moved[i] = None
        for book in snapshot.books:
            i = self._place.get(book.symbol, -1)
            if i >= 0 and self._fresh_book[i]:
                with suppress(*RUBBISH):  # a side without orders has a price of 0
                    self._set_book(i, book.bid_price, book.bid_qty, book.ask_price, book.ask_qty)
        for premium in snapshot.premiums:
            self._take_mark(premium.symbol, premium.mark_price, premium.last_funding_rate, premium.next_funding_time)

    def unsee(self) -> None:
        """The streams are cut: from here on nothing is known of any book."""
        n = len(self.symbols)
        self._book = [NO_BOOK] * n
        self._moved = dict.fromkeys(range(n))
        self._fresh_trade, self._fresh_book = [True] * n, [True] * n

    # ------------------------------------------------------------------ what the exchange takes out

    def trades(self, from_ms: int, to_ms: int) -> NDArray[np.void]:
        """All that was seen since the last call, as of the last millisecond before ``to_ms``; each once."""
        if to_ms <= from_ms:
            return np.empty(0, TRADE_DTYPE)
        rows, self._pending = self._pending, []
        rows += [self._standing(i) for i in self._moved]
        self._moved.clear()
        return _rows(rows, to_ms - 1)

    def _standing(self, i: int) -> tuple[int, ...]:
        return (0, i, self._price[i], 0, QUOTE, self._trade_id[i], 0, 0, *self._book[i])

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[np.void]:  # fmt: skip
        """No more than where the symbol stands now, if that is known: history is the venue's business."""
        rows = [self._standing(symbol_index)] if self._price[symbol_index] and from_id is None and from_ms is None else []
        return _rows(rows, self.open_ms if to_ms is None else to_ms - 1)

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[np.void]:
        """None: history is the venue's business."""
        return np.empty(0, KLINE_DTYPE)

    def marks(self) -> Marks | None:
        return self._marks

    def resume_state(self) -> dict[str, Any]:
        return {"kind": "binance"}


def _rows(rows: list[tuple[int, ...]], time_ms: int) -> NDArray[np.void]:
    out = np.array(rows, TRADE_DTYPE)
    out["time_ms"] = time_ms
    return out


class Line:
    """One route's socket: subscribed, and read until it ends or says nothing for too long."""

    def __init__(self, market: BinanceMarket, socket: aiohttp.ClientWebSocketResponse[bool], mute_s: float) -> None:
        self._market = market
        self._socket = socket
        self._mute_s = mute_s
        self._heard_ns = monotonic_ns()
        self._unanswered: set[int] = set()
        self._answered = asyncio.Event()

    async def subscribe(self, names: list[str]) -> None:
        """All names, and their acknowledgements; data may flow meanwhile. The venue acknowledges wrong names too."""
        for number, start in enumerate(range(0, len(names), SUBSCRIBE_NAMES), start=1):
            part = names[start : start + SUBSCRIBE_NAMES]
            self._unanswered.add(number)
            self._answered.clear()
            await self._socket.send_str(msgspec.json.encode({"method": "SUBSCRIBE", "params": part, "id": number}).decode())
            await asyncio.sleep(SUBSCRIBE_EVERY_S)
        await self._answered.wait()

    async def read(self) -> None:
        """Until the socket is closed, which is an OSError."""
        take, frames = self._market.take, self._socket
        async for message in frames:
            self._heard_ns = monotonic_ns()
            try:
                take(decode_frame(message.data))
            except (*RUBBISH, KeyError, TypeError):
                self._odd(message.data)
        raise ConnectionResetError(f"closed with {frames.close_code}")

    def _odd(self, data: Any) -> None:
        """What is no event of ours: an answer, or rubbish."""
        try:
            reply = _reply(data)
        except (msgspec.DecodeError, TypeError):
            reply = Reply()
        if reply.code:
            raise Retryable(f"the venue refuses: {reply.code} {reply.msg}")
        if reply.id is None:
            self._market.tally.bad += 1
            return
        self._unanswered.discard(reply.id)
        if not self._unanswered:
            self._answered.set()

    def check(self) -> None:
        """TimeoutError where it is mute."""
        silent_s = (monotonic_ns() - self._heard_ns) / SECOND_NS
        if silent_s > self._mute_s:
            raise TimeoutError(f"no frame for {silent_s:.0f} s")


class Watch:
    """Keeps a market seen: ``run`` connects, reads, and connects again. ``seen`` is set while it is."""

    def __init__(self, market: BinanceMarket, urls: VenueUrls, session: aiohttp.ClientSession, patience: Patience) -> None:
        self.market = market
        self.seen = asyncio.Event()
        self._urls = urls
        self._session = session
        self.patience = patience
        self._rest = PublicRest(urls.rest, session)
        self._chance = unseeded()
        self._pause_s = patience.backoff_s[0]
        self._cut_log = Throttle(10.0)
        self._say_seen = True
        names = [s.symbol.lower() for s in market.symbols]
        self._trades = [*(f"{name}@aggTrade" for name in names), "!markPrice@arr@1s"]
        self._quotes = [f"{name}@bookTicker" for name in names]

    async def run(self) -> None:
        """For ever."""
        while True:
            started_ns = monotonic_ns()
            try:
                await self._see()
            except CUTS as error:
                self.market.tally.cuts += 1
                if self._cut_log.due(monotonic_ns()):
                    self._say_seen = True
                    warn(f"the venue's market is not seen: {str(error) or type(error).__name__}", **asdict(self.market.tally))
            if monotonic_ns() - started_ns > self.patience.steady_s * SECOND_NS:
                self._pause_s = self.patience.backoff_s[0]
            await asyncio.sleep(self._pause_s * self._chance.uniform(0.5, 1.0))
            self._pause_s = min(2 * self._pause_s, self.patience.backoff_s[1])

    async def _see(self) -> None:
        """Both routes, until either ends. Raises what it ended with."""
        patience, tasks = self.patience, list[asyncio.Task[None]]()
        async with asyncio.timeout(patience.connect_s) as limit, self._socket(self._urls.market) as market, \
                self._socket(self._urls.public) as public:  # fmt: skip
            lines = (Line(self.market, market, patience.market_mute_s), Line(self.market, public, patience.public_mute_s))
            tasks = [asyncio.create_task(line.read()) for line in lines]
            opening = asyncio.create_task(self._open(lines))
            limit.reschedule(None)
            try:
                waiting = {*tasks, opening}
                while True:
                    done, waiting = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    for line in lines:
                        line.check()
            finally:
                self.seen.clear()
                self.market.unsee()
                for task in (*tasks, opening):
                    task.cancel()
                await asyncio.gather(*tasks, opening, return_exceptions=True)

    def _socket(self, base: str) -> Any:
        return self._session.ws_connect(f"{base.rstrip('/')}/ws", max_msg_size=FRAME_BYTES_MAX, decode_text=False, timeout=_CLOSE)

    async def _open(self, lines: tuple[Line, Line]) -> None:
        """Subscribe, then ask for what stands: in this order no change falls between."""
        async with asyncio.timeout(self.patience.connect_s + SUBSCRIBE_EVERY_S * len(self._trades) / SUBSCRIBE_NAMES):
            await asyncio.gather(lines[0].subscribe(self._trades), lines[1].subscribe(self._quotes))
        try:
            self.market.settle(await self._rest.snapshot())
        except AegisError as error:
            warn(f"a quiet symbol's book is seen only once it moves: {error}")
        self.seen.set()
        if self._say_seen:
            self._say_seen = False
            lifecycle(f"👁️ The venue's market is seen: {len(self.market.symbols)} symbols", **asdict(self.market.tally))


_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)


async def open_binance(urls: VenueUrls, wanted: tuple[str, ...], held: tuple[str, ...], session: aiohttp.ClientSession, *, now_ms: int,
                       resume: dict[str, Any] | None) -> BinanceMarket:  # fmt: skip
    """The contracts wanted (none: all USDT perpetuals) and held, with prices as they stand.

    Retryable: the venue does not answer. Fatal: it never will, an unknown symbol, or a saved market of another kind.
    """
    if resume is not None:
        check_resume(resume, {"kind": "binance"})
    rest = PublicRest(urls.rest, session)
    market = BinanceMarket(await rest.specs(wanted, held), now_ms)
    market.settle(await rest.snapshot())
    return market
