"""What a market of the local exchange is, and the door to the one that is made up here (the others: ``opening``).

A market is a path of trades that is already decided: whoever asks twice gets the same answer, in any order of asking. Nothing in it
depends on the reader, and nothing later than the time asked for leaks. Times are market time (ms); prices are ticks and quantities
steps, whole numbers.

Ids are ``agg_id`` (aggregate trades: continuous where the path is made here, as recorded where trades are replayed) and ``first_id`` …
``last_id`` (the single trades inside; a candle's trade count is the sum of last_id − first_id + 1). ``bid`` and ``ask`` are the top of
the book right after the trade; bid < ask always.

A market with a venue behind it is not decided: it holds what was seen, once, in the order it came. Its rows with ``qty`` 0 and
``buyer_is_maker`` 2 are no trades but movements of the book, and both prices 0 there mean that nobody sees the book just now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from src.error_handler import Fatal
from src.exchange.expansion import KLINE_DTYPE, TRADE_DTYPE
from src.exchange.ladders import Ladders
from src.exchange.marks import Marks
from src.exchange.symbols import SymbolSpec
from src.exchange.synthetic import open_synthetic

__all__ = ["KINDS", "KLINE_DTYPE", "TRADE_DTYPE", "Frame", "Market", "Open", "Played", "open_made_up", "warm_up"]

KINDS = ("synthetic", "replay", "frames", "binance")
MADE = KINDS[:3]


class Market(Protocol):
    """Trades and candles of all symbols, from ``start_ms`` (history) over ``open_ms`` (live trading) to ``end_ms`` (None: endless)."""

    @property
    def symbols(self) -> tuple[SymbolSpec, ...]: ...

    @property
    def start_ms(self) -> int: ...

    @property
    def open_ms(self) -> int: ...

    @property
    def end_ms(self) -> int | None: ...

    def trades(self, from_ms: int, to_ms: int) -> NDArray[np.void]:
        """Trades of all symbols with from_ms ≤ time < to_ms, sorted by time, then symbol, then id (TRADE_DTYPE; do not write to it)."""
        ...

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[np.void]:
        """At most ``limit`` trades of one symbol in rising order: from an id on, or from a time on, or else the last ones before ``to_ms``.

        ``to_ms`` (excluded) bounds every form: give it the present, or the future leaks. An endless market needs it.
        """
        ...

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[np.void]:
        """Candles (KLINE_DTYPE) with from_ms ≤ open ≤ to_ms, aligned to the epoch, 1 s to 1 day, made of trades before ``now_ms`` alone.

        The last one may be the open candle. A span without trades closes flat at the last price with volume 0; before a symbol's first
        trade and after its end there are none.
        """
        ...

    def marks(self) -> Marks | None:
        """Mark prices and funding rates where a venue tells them; None: the exchange makes its own."""
        ...

    def resume_state(self) -> dict[str, Any]:
        """A small JSON object: ``open_market(resume=…)`` with it continues this very path."""
        ...


class Frame(NamedTuple):
    """One frame. ``at_us``: when it was received (µs since 1970); ``payload``: its data, byte for byte."""

    at_us: int
    stream: str
    payload: bytes


@runtime_checkable
class Played(Market, Protocol):
    """A market of raw frames, which are played as they were received beside its trades."""

    streams: frozenset[str]
    ladders: Ladders
    """The books behind the best quotes."""

    def frames(self, from_ms: int, to_ms: int) -> Iterator[Frame]:
        """What was received with from_ms ≤ time < to_ms, in order."""
        ...


class Open(Protocol):
    """Opens a market at market time ``now_ms``; a recording's live trading begins at ``start``, its own UTC time, where that is given.
    ``edge``: planted into the made-up market, see ``synthetic``.

    No ``symbols``: the default twenty, or all of the recording. Fatal: an unknown kind or symbol, a recording that cannot be used, or a
    resume state that belongs to another market.
    """

    def __call__(self, kind: str, *, symbols: tuple[str, ...], seed: int, path: str | None, now_ms: int, resume: dict[str, Any] | None,
                 start: str = "", edge: float = 0.0) -> Market: ...  # fmt: skip


def open_made_up(kind: str, *, symbols: tuple[str, ...], seed: int, path: str | None, now_ms: int, resume: dict[str, Any] | None,
                 start: str = "", edge: float = 0.0) -> Market:  # fmt: skip
    """An ``Open`` that knows the made-up market alone, and so loads nothing that reads recordings."""
    if kind != "synthetic":
        raise Fatal(f"SIM_MARKET is {kind!r}, and must be one of {', '.join(MADE)}", setting="SIM_MARKET", value=kind)
    market = open_synthetic(symbols=symbols, seed=seed, now_ms=now_ms, resume=resume, edge=edge)
    warm_up(market)
    return market


def warm_up(market: Market) -> None:
    """Have the kernels compiled (or loaded) now, and not at the first trade."""
    market.trades(market.open_ms, market.open_ms + 1)
    market.klines(0, 60_000, market.open_ms - 600_000, market.open_ms, market.open_ms)
    market.klines(0, 1_000, market.open_ms - 600_000, market.open_ms, market.open_ms)
