"""Market source: synthetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.error_handler import Fatal

if TYPE_CHECKING:
    from src.exchange.market import Market


def open_synthetic(*, symbols: tuple[str, ...], seed: int, now_ms: int, resume: dict[str, Any] | None) -> Market:
    raise Fatal("not built yet")
