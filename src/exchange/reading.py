"""Orders as they stood some time ago: what a read side that lags shows, on order of a test. Pure functions; nothing stored is touched."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import msgspec

from src.exchange.orders import ZERO, AlgoOrder, AlgoStatus, Fill, Order, OrderStatus


def order_as_of(order: Order, fills: Iterable[Fill], at_ms: int) -> Order | None:
    """None where it did not exist yet. ``fills``: the account's, of which only the order's own count."""
    if order.updated_ms <= at_ms:
        return order
    if order.created_ms > at_ms:
        return None
    mine = [f for f in fills if f.order_id == order.id and f.time_ms <= at_ms]
    executed = sum((f.qty for f in mine), ZERO)
    quote: Decimal = sum((f.quote for f in mine), ZERO)
    status = OrderStatus.PARTIALLY_FILLED if mine else OrderStatus.NEW
    last_ms = mine[-1].time_ms if mine else order.created_ms
    return msgspec.structs.replace(order, status=status, executed=executed, quote=quote, updated_ms=last_ms)


def algo_as_of(algo: AlgoOrder, at_ms: int) -> AlgoOrder | None:
    """None where it did not exist yet."""
    if algo.updated_ms <= at_ms:
        return algo
    if algo.created_ms > at_ms:
        return None
    return msgspec.structs.replace(algo, status=AlgoStatus.NEW, order_id=0, trigger_ms=0, reason="", updated_ms=algo.created_ms)
