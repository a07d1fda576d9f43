"""The door to every market that is made here or recorded. (That to a venue's is ``binance.open_binance``, which has to wait for answers.)"""

from __future__ import annotations

from typing import Any

from src.exchange.frames import open_frames
from src.exchange.market import Market, open_made_up, warm_up
from src.exchange.replay import open_replay


def open_market(kind: str, *, symbols: tuple[str, ...], seed: int, path: str | None, now_ms: int, resume: dict[str, Any] | None,
                start: str = "", edge: float = 0.0) -> Market:  # fmt: skip
    """See ``market.Open``."""
    market: Market
    if kind == "replay":
        market = open_replay(path=path, symbols=symbols, seed=seed, now_ms=now_ms, resume=resume, start=start)
    elif kind == "frames":
        market = open_frames(path=path, symbols=symbols, resume=resume, start=start)
    else:
        return open_made_up(kind, symbols=symbols, seed=seed, path=path, now_ms=now_ms, resume=resume, edge=edge)
    warm_up(market)
    return market
