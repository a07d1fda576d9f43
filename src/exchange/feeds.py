"""Market streams: batches of trades become frames for whoever has subscribed.

The busy streams (aggTrade, trade, bookTicker) are written straight from the batch's columns, one formatted payload an event. What is paced
(candles, marks, tickers, books) follows the market's seconds, but is never built more often than ``WALL_PACE_NS`` of wall time allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from src.clock import monotonic_ns
from src.exchange.candles import INTERVALS, candles, close_of, length_of, open_of
from src.exchange.depth_feeds import DepthFeeds
from src.exchange.events import money
from src.exchange.market import Played
from src.exchange.paced import WALL_PACE_NS, Paced
from src.exchange.quotes import IDS_A_MOVE
from src.exchange.rare_feeds import ALL, RareFeeds
from src.exchange.state import UserEvent
from src.exchange.streams import MARKET, PUBLIC, Channel, Streams, route_of
from src.exchange.venue import Venue

_SYMBOL_STREAM = re.compile(r"([^@!]+)@([A-Za-z]+?)(5|10|20)?(?:_(\w+))?(?:@(\w+))?")
_AGG = ["time_ms", "price", "qty", "buyer_is_maker", "agg_id", "first_id", "last_id"]
_SINGLE = ["time_ms", "price", "qty", "buyer_is_maker", "last_id"]
_BOOK = ["time_ms", "bid", "bid_qty", "ask", "ask_qty", "agg_id"]


Column = list[int]


def _split(rows: NDArray[np.void], wanted: dict[int, Channel], columns: list[str]) -> Iterator[tuple[int, list[Column]]]:
    """These symbols' rows, each with its columns as lists, in their order."""
    if not wanted:
        return
    if len(wanted) * 8 < len(np.unique(rows["symbol"])):  # most are of no interest
        rows = rows[np.isin(rows["symbol"], list(wanted))]
    order = np.argsort(rows["symbol"], kind="stable")
    symbols = rows["symbol"][order]
    starts = np.flatnonzero(np.diff(symbols, prepend=-1)).tolist()
    whole = [rows[name][order].tolist() for name in columns]
    for a, b in pairwise([*starts, len(rows)]):
        symbol = int(symbols[a])
        if symbol in wanted:
            yield symbol, [column[a:b] for column in whole]


class Feeds:
    """The audience of a :class:`Venue`: turns its market and user events into frames."""

    def __init__(self, venue: Venue, streams: Streams) -> None:
        self._venue = venue
        self._streams = streams
        self._state = venue.state
        self._lower = {s.symbol.lower(): i for i, s in enumerate(self._state.specs)}
        self._names = [s.symbol for s in self._state.specs]
        self._seen = -1
        self._agg: dict[int, Channel] = {}
        self._book: dict[int, Channel] = {}
        self._paced: list[Paced] = []
        self._klines: list[_Kline] = []
        self._single: dict[int, Channel] = {}
        self._depth = DepthFeeds(venue)
        self._rare = RareFeeds(venue)
        self._tops: dict[int, tuple[tuple[int, ...], int]] = {}
        self._played_ms = self._state.now_ms
        self._stood = self._state.stood
        self._standings = list(self._state.standings)

    # ------------------------------------------------------------------ audience

    def users(self, events: list[UserEvent]) -> None:
        self._streams.publish_users(events)
        self._rare.hear(events, self._paced)

    def flush(self) -> None:
        self._streams.flush()

    def market(self, trades: NDArray[np.void]) -> None:
        if self._seen != self._streams.changed:
            self._index()
        if self._stood != self._state.stood:
            self._contracts()
        recorded = self._venue.core.market.recorded
        if recorded is not None:
            self._play(recorded)
        if not self._streams.channels:
            return
        if len(trades):
            self._trades(trades)
        now, wall = self._state.now_ms, monotonic_ns()
        self._depth.refresh(now, wall)
        muted = self._streams.muted
        for paced in self._paced:
            if paced.route not in muted and paced.due(now, wall):
                paced.build(paced, now)
        for kline in self._klines:
            if MARKET not in muted:
                self._kline(kline, now, wall)

    def _contracts(self) -> None:
        """Tell of contracts whose status or delivery has changed."""
        channel = self._streams.channels.get("!contractInfo")
        for spec, was, now in zip(self._state.specs, self._standings, self._state.standings, strict=True):
            if channel is not None and MARKET not in self._streams.muted and was != now:
                event = {"e": "contractInfo", "E": self._state.now_ms, "s": spec.symbol, "ps": spec.symbol, "ct": "PERPETUAL",
                         "dt": now.delivery_ms, "ot": spec.onboard_ms, "cs": now.status, "st": 1}  # fmt: skip
                channel.publish(msgspec.json.encode(event))
        self._stood, self._standings = self._state.stood, list(self._state.standings)

    def _play(self, recorded: Played) -> None:
        """Frames that are due, as they were received."""
        channels, muted = self._streams.channels, self._streams.muted
        for frame in recorded.frames(self._played_ms, self._state.now_ms):
            channel = channels.get(frame.stream)
            if channel is not None and route_of(frame.stream) not in muted:
                channel.publish(frame.payload)
        self._played_ms = self._state.now_ms

    # ------------------------------------------------------------------ what is subscribed

    def _index(self) -> None:
        """Sort the channels by what feeds them."""
        self._seen = self._streams.changed
        before = {k.channel.name: k for k in self._klines}
        known = {p.channel.name: p for p in self._paced}
        self._agg, self._single, self._book, self._paced, self._klines = {}, {}, {}, [], []
        for name, channel in self._streams.channels.items():
            if name in before and before[name].channel is channel:
                self._klines.append(before[name])
            elif name in known and known[name].channel is channel:
                self._paced.append(known[name])
            else:
                self._add(name, channel)
        self._depth.follow(self._paced)

    def _add(self, name: str, channel: Channel) -> None:
        if self._is_recorded(name):
            return
        every = {
            "!markPrice@arr": (3000, self._all_marks), "!markPrice@arr@1s": (1000, self._all_marks),
            "!miniTicker@arr": (1000, self._all_tickers),
            "!ticker@arr": (1000, self._all_tickers),
        }.get(name)  # fmt: skip
        if every is not None:
            self._paced.append(Paced(channel, MARKET, every[0], every[1]))
        elif name in ALL:
            self._paced.append(self._rare.open_all(channel))
        elif "_perpetual@continuousKline_" in name:
            self._add_continuous(name, channel)
        elif name.endswith("usd@assetIndex"):
            index = self._rare.open_index(channel)
            self._paced += [index] if index is not None else []
        else:
            match = _SYMBOL_STREAM.fullmatch(name)
            symbol = self._lower.get(match[1]) if match is not None else None
            if match is not None and symbol is not None:
                self._add_of_symbol(channel, symbol, *match.groups()[1:])

    def _add_of_symbol(self, channel: Channel, symbol: int, kind: str, levels: str | None, interval: str | None, suffix: str | None) -> None:
        """``kind`` with what follows it in the name: book levels, a candle's interval, a speed. What does not fit stays silent."""
        plain = {"aggTrade": self._agg, "trade": self._single, "bookTicker": self._book}.get(kind)
        if plain is not None and not (levels or interval or suffix):
            plain[symbol] = channel
        elif kind == "markPrice" and suffix in (None, "1s"):
            self._paced.append(Paced(channel, MARKET, 1000 if suffix else 3000, self._one_mark, symbol))
        elif kind in ("miniTicker", "ticker"):
            self._paced.append(Paced(channel, MARKET, 2000, self._one_ticker, symbol))
        elif kind == "kline" and interval in INTERVALS:
            self._klines.append(_Kline(channel, symbol, interval, self._state.now_ms, continuous=False))
        elif kind == "depth" and suffix != "0ms":
            self._paced.append(self._depth.open(channel, symbol, levels, suffix))
        elif kind == "rpiDepth" and suffix == "500ms":
            self._paced.append(self._depth.open_rpi(channel, symbol))
        elif kind == "forceOrder" and not suffix:
            self._paced.append(self._rare.open_forced(channel, symbol))

    def _is_recorded(self, name: str) -> bool:
        recorded = self._venue.core.market.recorded
        return recorded is not None and name in recorded.streams

    def _add_continuous(self, name: str, channel: Channel) -> None:
        pair, _, interval = name.partition("_perpetual@continuousKline_")
        if pair in self._lower and (interval in INTERVALS or interval == "1s"):
            self._klines.append(_Kline(channel, self._lower[pair], interval, self._state.now_ms, continuous=True))

    # ------------------------------------------------------------------ the busy two

    def _trades(self, trades: NDArray[np.void]) -> None:
        muted = self._streams.muted
        traded = trades if trades["qty"].all() else trades[trades["qty"] > 0]
        if MARKET not in muted:
            for symbol, columns in _split(traded, self._agg, _AGG):
                self._agg_trades(symbol, *columns)
        if PUBLIC not in muted:
            for symbol, columns in _split(traded, self._single, _SINGLE):
                self._single_trades(symbol, *columns)
            for symbol, columns in _split(trades, self._book, _BOOK):
                self._book_tickers(symbol, *columns)

    def _texts(self, symbol: int, prices: Column, sizes: Column) -> tuple[str, list[str], list[str]]:
        words = self._venue.words
        return self._names[symbol], words.price[symbol].many(prices), words.qty[symbol].many(sizes)

    def _agg_trades(self, symbol: int, times: Column, prices: Column, sizes: Column, *rest: Column) -> None:
        name, price, size = self._texts(symbol, prices, sizes)
        self._say(self._agg[symbol], [
            f'{{"e":"aggTrade","E":{t},"s":"{name}","a":{agg_id},"p":"{p}","q":"{q}","nq":"{q}","f":{first},"l":{last},'
            f'"T":{t},"m":{"true" if maker else "false"},"st":1}}'
            for t, p, q, maker, agg_id, first, last in zip(times, price, size, *rest, strict=True)
        ])  # fmt: skip

    def _single_trades(self, symbol: int, times: Column, prices: Column, sizes: Column, *rest: Column) -> None:
        """One an aggregate trade, under the last id in it: nothing finer is known."""
        name, price, size = self._texts(symbol, prices, sizes)
        self._say(self._single[symbol], [
            f'{{"e":"trade","E":{t},"T":{t},"s":"{name}","t":{last},"p":"{p}","q":"{q}","X":"MARKET","m":{"true" if maker else "false"},"st":1}}'
            for t, p, q, maker, last in zip(times, price, size, *rest, strict=True)
        ])  # fmt: skip

    def _book_tickers(self, symbol: int, times: Column, bids: Column, bid_sizes: Column, asks: Column, ask_sizes: Column, trades: Column) -> None:
        """What has changed at the top, each time under a higher id."""
        price, qty, name = self._venue.words.price[symbol], self._venue.words.qty[symbol], self._names[symbol]
        top, last = self._tops.get(symbol, (None, 0))
        moves, texts = int(self._state.quotes.moves[symbol]), []
        for t, bid, bid_qty, ask, ask_qty, trade in zip(times, bids, bid_sizes, asks, ask_sizes, trades, strict=True):
            now = (bid, bid_qty, ask, ask_qty)
            if now != top:
                top, update = now, max((trade + moves) * IDS_A_MOVE, last + 1)
                last = update
                texts.append(f'{{"e":"bookTicker","u":{update},"s":"{name}","ps":"{name}","b":"{price(bid)}","B":"{qty(bid_qty)}",'
                             f'"a":"{price(ask)}","A":"{qty(ask_qty)}","T":{t},"E":{t},"st":1}}')  # fmt: skip
        assert top is not None
        self._tops[symbol] = top, last
        self._say(self._book[symbol], texts)

    @staticmethod
    def _say(channel: Channel, texts: list[str]) -> None:
        if channel.name.isascii():
            channel.publish_many(texts)
        else:
            for text in texts:
                channel.publish(text.encode())

    # ------------------------------------------------------------------ marks and tickers

    def _mark(self, symbol: int, at_ms: int) -> dict[str, Any]:
        spec, mark = self._state.specs[symbol], money(self._state.quotes.mark(symbol))
        upcoming = self._state.quotes.next_funding_ms(symbol, at_ms)
        return {
            "e": "markPriceUpdate", "E": at_ms, "s": spec.symbol, "p": mark, "ap": mark, "i": mark, "P": mark,
            "r": format(self._state.quotes.funding_rate(symbol, upcoming), "f"), "T": upcoming, "st": 1,
        }  # fmt: skip

    def _one_mark(self, paced: Paced, now: int) -> None:
        paced.channel.publish(msgspec.json.encode(self._mark(paced.symbol, now // 1000 * 1000)))

    def _all_marks(self, paced: Paced, now: int) -> None:
        at = now // 1000 * 1000
        paced.channel.publish(msgspec.json.encode([self._mark(i, at) for i in range(len(self._state.specs))]))

    def _ticker(self, symbol: int, now: int, full: bool) -> dict[str, Any] | None:
        day = self._venue.days.rolling(symbol, now)
        if day is None:
            return None
        price, qty = self._venue.words.price[symbol], self._venue.words.qty[symbol]
        spec = self._state.specs[symbol]
        row: dict[str, Any] = {
            "e": "24hrTicker" if full else "24hrMiniTicker", "E": now, "s": spec.symbol, "c": price(day.last), "o": price(day.open),
            "h": price(day.high), "l": price(day.low), "v": qty(day.volume), "q": f"{day.quote:.2f}", "ps": spec.symbol, "st": 1,
        }  # fmt: skip
        if full:
            rise = day.last - day.open
            row |= {
                "p": price(rise) if rise >= 0 else "-" + price(-rise), "P": f"{(day.last / day.open - 1) * 100:.3f}",
                "w": f"{day.quote / (day.volume * float(spec.step)):.8f}" if day.volume else "0",
                "Q": qty(int(self._state.quotes.last_qty[symbol])),
                "O": day.open_ms, "C": now, "F": day.first_id, "L": day.last_id, "n": day.trades,
            }  # fmt: skip
        return row

    def _one_ticker(self, paced: Paced, now: int) -> None:
        row = self._ticker(paced.symbol, now, paced.channel.name.endswith("@ticker"))
        if row is not None:
            paced.channel.publish(msgspec.json.encode(row))

    def _all_tickers(self, paced: Paced, now: int) -> None:
        """Of the symbols that have traded since the last frame."""
        full, trades = paced.channel.name == "!ticker@arr", self._state.quotes.agg_id
        fresh = trades > 0 if paced.memory is None else trades != paced.memory
        paced.memory = trades.copy()
        rows = [r for i in np.flatnonzero(fresh).tolist() if (r := self._ticker(i, now, full)) is not None]
        if rows:
            paced.channel.publish(msgspec.json.encode(rows))

    # ------------------------------------------------------------------ candles

    def _kline(self, kline: _Kline, now: int, wall: int) -> None:
        """The finished candle once, the open one when it has changed and it is time."""
        while now > close_of(kline.interval, kline.open_ms):
            self._send_kline(kline, kline.open_ms, now, closed=True)
            kline.open_ms = max(close_of(kline.interval, kline.open_ms) + 1, open_of(kline.interval, now) - length_of(kline.interval))
        changed = int(self._state.quotes.agg_id[kline.symbol]) != kline.update
        if changed and now - kline.sent_ms >= 250 and wall - kline.sent_ns >= WALL_PACE_NS:
            kline.sent_ms, kline.sent_ns = now, wall
            self._send_kline(kline, kline.open_ms, now, closed=False)

    def _send_kline(self, kline: _Kline, open_ms: int, now: int, closed: bool) -> None:
        market, symbol = self._venue.core.market, kline.symbol
        rows = candles(market, symbol, kline.interval, from_ms=open_ms, to_ms=open_ms, now_ms=now)
        if not len(rows) or not rows["trades"][0]:
            return
        kline.update = int(self._state.quotes.agg_id[symbol])
        _, op, hi, lo, cl, vol, taker, n, quote, taker_quote = rows[0].tolist()
        first = market.agg_trades(symbol, from_ms=open_ms, to_ms=now, limit=1)
        first_id = int(first["first_id"][0]) if len(first) else -1
        spec, price, qty = self._state.specs[symbol], self._venue.words.price[symbol], self._venue.words.qty[symbol]
        bar: dict[str, Any] = {
            "t": open_ms, "T": close_of(kline.interval, open_ms), "s": spec.symbol, "i": kline.interval, "f": first_id,
            "L": first_id + n - 1,
            "o": price(op), "c": price(cl), "h": price(hi), "l": price(lo), "v": qty(vol), "n": n, "x": closed, "q": f"{quote:.8f}",
            "V": qty(taker), "Q": f"{taker_quote:.8f}", "B": "0",
        }  # fmt: skip
        head: dict[str, Any] = {"e": "kline", "E": now, "s": spec.symbol}
        if kline.continuous:
            del bar["s"]
            head = {"e": "continuous_kline", "E": now, "ps": spec.symbol, "ct": "PERPETUAL"}
        kline.channel.publish(msgspec.json.encode(head | {"k": bar}))


class _Kline:
    """A candle stream."""

    __slots__ = ("channel", "continuous", "interval", "open_ms", "sent_ms", "sent_ns", "symbol", "update")

    def __init__(self, channel: Channel, symbol: int, interval: str, now_ms: int, *, continuous: bool) -> None:
        self.channel = channel
        self.symbol = symbol
        self.interval = interval
        self.continuous = continuous
        self.open_ms = open_of(interval, now_ms)
        self.sent_ms = 0
        self.sent_ns = 0
        self.update = 0
