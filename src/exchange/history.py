"""Rows that only queries show: changes of orders, and margin moved to and from isolated positions."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from src.exchange.orders import PositionSide


class Amendment(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One change of a resting order. ``count``: the how-manieth of that order; ``modify_id``: the user's own name for it, if given."""

    id: int
    account: int
    symbol: int
    order_id: int
    client_id: str
    time_ms: int
    price_before: Decimal
    price_after: Decimal
    qty_before: Decimal
    qty_after: Decimal
    count: int
    modify_id: int | None = None


class MarginMove(msgspec.Struct, kw_only=True, frozen=True):
    """Margin moved between the cross wallet and an isolated position; ``amount`` is negative when taken away."""

    account: int
    symbol: int
    side: PositionSide
    amount: Decimal
    time_ms: int
