"""Streams that speak rarely, or of all symbols at once: liquidations, the best quotes of all, asset indices.

A liquidation is one of the exchange's own accounts: the market's are not modelled. Of each symbol's in a second the largest is told.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from src.exchange.events import money
from src.exchange.figures import AUTO_BUFFER, BUFFER, asset_rates, index_assets
from src.exchange.paced import Paced
from src.exchange.state import UserEvent
from src.exchange.streams import MARKET, PUBLIC, Channel
from src.exchange.venue import Venue

ALL = ("!bookTicker", "!forceOrder@arr", "!assetIndex@arr")


class RareFeeds:
    """Makes these streams of a :class:`Venue`."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._state = venue.state

    def open_all(self, channel: Channel) -> Paced:
        """One of ``ALL``."""
        route, period, build = {"!bookTicker": (PUBLIC, 5000, self._books), "!forceOrder@arr": (MARKET, 1000, self._forced),
                                "!assetIndex@arr": (MARKET, 1000, self._indices)}[channel.name]  # fmt: skip
        return Paced(channel, route, period, build)

    def open_forced(self, channel: Channel, symbol: int) -> Paced:
        return Paced(channel, MARKET, 1000, self._forced, symbol)

    def open_index(self, channel: Channel) -> Paced | None:
        """``btcusd@assetIndex``; None where there is no such asset."""
        asset = channel.name.partition("usd@")[0].upper()
        return Paced(channel, MARKET, 1000, self._index) if asset in index_assets(self._state) else None

    # ------------------------------------------------------------------ liquidations

    def hear(self, events: list[UserEvent], paced: list[Paced]) -> None:
        """Liquidations among what users are told."""
        listening = [p for p in paced if p.build == self._forced]
        if not listening:
            return
        for order in (e.payload["o"] for e in events if e.name == "ORDER_TRADE_UPDATE" and e.payload["o"]["x"] == "CALCULATED"):
            if order["c"].startswith("autoclose-"):
                for one in listening:
                    if one.symbol in (-1, self._state.index[order["s"]]):
                        largest = one.memory = one.memory or {}
                        if order["s"] not in largest or float(order["q"]) > float(largest[order["s"]]["q"]):
                            largest[order["s"]] = order

    def _forced(self, paced: Paced, now: int) -> None:
        largest, paced.memory = paced.memory or {}, None
        for order in largest.values():
            told = {name: order[name] for name in ("s", "S", "q", "p", "ap", "l", "z", "T")} | {"o": "LIMIT", "f": "IOC", "X": "FILLED"}
            body: dict[str, Any] = {"e": "forceOrder", "E": now, "o": told, "st": 1}
            paced.channel.publish(msgspec.json.encode(body | ({"ps": order["s"]} if paced.symbol < 0 else {})))

    # ------------------------------------------------------------------ all symbols

    def _books(self, paced: Paced, now: int) -> None:
        """A frame for each symbol whose best quotes have changed since the last time."""
        quotes, words = self._state.quotes, self._venue.words
        tops = np.stack((quotes.bid, quotes.bid_qty, quotes.ask, quotes.ask_qty), axis=1)
        before, paced.memory = paced.memory, tops
        changed = np.ones(len(tops), bool) if before is None else (tops != before).any(axis=1)
        for symbol in np.flatnonzero(changed & (tops[:, 0] > 0)).tolist():
            bid, bid_qty, ask, ask_qty = tops[symbol].tolist()
            name, price, qty = self._state.specs[symbol].symbol, words.price[symbol], words.qty[symbol]
            body = {"e": "bookTicker", "u": quotes.update(symbol), "s": name, "ps": name, "b": price(bid), "B": qty(bid_qty), "a": price(ask),
                    "A": qty(ask_qty), "T": int(quotes.time_ms[symbol]), "E": now, "st": 1}  # fmt: skip
            paced.channel.publish(msgspec.json.encode(body))

    def _row(self, asset: str, symbol: int, now: int) -> dict[str, Any]:
        index, bid, ask, auto_bid, auto_ask = asset_rates(self._state, symbol)
        return {"e": "assetIndexUpdate", "E": now, "s": f"{asset}USD", "i": index, "b": money(BUFFER), "a": money(BUFFER), "B": bid, "A": ask,
                "q": money(AUTO_BUFFER), "g": money(AUTO_BUFFER), "Q": auto_bid, "G": auto_ask}  # fmt: skip

    def _indices(self, paced: Paced, now: int) -> None:
        paced.channel.publish(msgspec.json.encode([self._row(asset, i, now) for asset, i in index_assets(self._state).items()]))

    def _index(self, paced: Paced, now: int) -> None:
        asset = paced.channel.name.partition("usd@")[0].upper()
        paced.channel.publish(msgspec.json.encode(self._row(asset, index_assets(self._state)[asset], now)))
