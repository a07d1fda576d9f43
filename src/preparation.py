"""What a symbol needs before it may be traded: history for its candles, isolated margin, and the leverage of whoever decides.

Both run in the background after the daemon is up, most liquid symbols first, within the request-weight budget. A symbol that is not ready
is refused by risk with that reason, and tried again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from src.clock import Clock, monotonic_ns
from src.config import INTERVALS_MS
from src.error_handler import AegisError, Fatal, Throttle, info, warn
from src.market_state import MarketState
from src.trade import Trade
from src.venue import queries
from src.venue.answers import SymbolConfig
from src.venue.rest import Rest

SETUP_BARS, CONTEXT_BARS, BASE_BARS = 500, 200, 500
AGAIN_S = 10.0
CHUNK = 10
"""Symbols read before their setups are armed together."""
_NAMES = {ms: name for name, ms in INTERVALS_MS.items()}


def context_interval_ms(setup_ms: int) -> int:
    """The frame above: the first interval of at least six setup bars that nests (4h → 1d, 15m → 2h)."""
    nested = [ms for ms in INTERVALS_MS.values() if ms >= 6 * setup_ms and ms % setup_ms == 0 and INTERVALS_MS["1d"] % ms == 0]
    return nested[0] if nested else INTERVALS_MS["1d"]


async def warm_history(market: MarketState, rest: Rest, clock: Clock, indices: Iterable[int]) -> list[int]:
    """Seed each symbol from the venue's klines. Returns those that failed."""
    failed: list[int] = []
    for i in indices:
        try:
            await _seed(market, rest, clock, i)
        except Fatal:
            raise
        except AegisError as error:
            warn(f"no history of {market.symbols[i]} yet: {error}")
            failed.append(i)
    return failed


async def _seed(market: MarketState, rest: Rest, clock: Clock, i: int) -> None:
    base_ms, setup_ms, context_ms = market.intervals
    symbol, now_ms = market.symbols[i], clock.market_ms()
    base_bars = min(1500, max(BASE_BARS, setup_ms // base_ms + 2))
    context = await queries.klines(rest, symbol, _NAMES[context_ms], start_ms=now_ms - CONTEXT_BARS * context_ms, limit=CONTEXT_BARS + 1)
    setups = await queries.klines(rest, symbol, _NAMES[setup_ms], start_ms=now_ms - SETUP_BARS * setup_ms, limit=SETUP_BARS + 1)
    base = await queries.klines(rest, symbol, _NAMES[base_ms], start_ms=now_ms - base_bars * base_ms, limit=base_bars + 1)
    market.seed(i, setups, base, context)


async def keep_history(market: MarketState, rest: Rest, clock: Clock, seeded: Callable[[list[int]], None], stop: asyncio.Event) -> None:
    """All symbols once, also those that come later, and again those whose candles miss something. ``seeded``: told of those that were read,
    to arm their setups."""
    known = len(market.symbols)
    todo: list[int] = list(range(known))
    started_ns = monotonic_ns()
    first = True
    while not stop.is_set():
        failed: list[int] = []
        for at in range(0, len(todo), CHUNK):
            chunk = todo[at : at + CHUNK]
            missing = await warm_history(market, rest, clock, chunk)
            seeded([i for i in chunk if i not in missing])
            failed += missing
        if first:
            info(f"history of {len(todo) - len(failed)} symbols read", seconds=round((monotonic_ns() - started_ns) / 1e9, 2))
            first = False
        await asyncio.sleep(AGAIN_S if failed else 2.0)
        later, known = range(known, len(market.symbols)), len(market.symbols)
        todo = sorted({*failed, *market.tainted(), *later})


async def keep_prepared(trade: Trade, rest: Rest, symbols: Collection[str], leverage: int, stop: asyncio.Event) -> None:
    """Isolated margin and the cap's leverage on every symbol; those that fail, or that somebody changed, are set again."""
    throttle = Throttle(60.0)
    trade.leverage = leverage
    while not stop.is_set():
        missing = [s for s in symbols if s not in trade.prepared]
        try:
            config = await queries.symbol_config(rest) if missing else {}
            for symbol in missing:
                await _prepare(trade, rest, symbol, leverage, config.get(symbol))
        except Fatal:
            raise
        except AegisError as error:
            if throttle.due(monotonic_ns()):
                warn(f"symbols are not all prepared for trading yet: {error}", ready=len(trade.prepared))
        await asyncio.sleep(AGAIN_S)


async def _prepare(trade: Trade, rest: Rest, symbol: str, leverage: int, now: SymbolConfig | None) -> None:
    try:
        if now is None or not now.isolated:
            await queries.set_isolated(rest, symbol)
        if now is None or now.leverage != leverage:
            await queries.set_leverage(rest, symbol, leverage)
    except Fatal:
        raise
    except AegisError as error:
        info(f"{symbol} is not prepared: {error}")
        return
    trade.prepared.add(symbol)
