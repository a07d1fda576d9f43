"""The venue's filters, in the order it applies them. Each raises the refusal, or returns nothing."""

from __future__ import annotations

from decimal import Decimal

from src.exchange.errors import ApiError
from src.exchange.symbols import SymbolSpec


def decimals(value: Decimal) -> int:
    """Digits after the point that matter."""
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def check_precision(spec: SymbolSpec, price: Decimal | None, qty: Decimal | None) -> None:
    if price is not None and decimals(price) > spec.price_precision:
        raise ApiError(-1111)
    if qty is not None and decimals(qty) > spec.quantity_precision:
        raise ApiError(-1111)


def check_price(spec: SymbolSpec, price: Decimal) -> None:
    if price <= 0:
        raise ApiError(-4001)
    if price > spec.max_price:
        raise ApiError(-4002)
    if price < spec.min_price:
        raise ApiError(-4013)
    if price % spec.tick:
        raise ApiError(-4014)


def check_stop_price(spec: SymbolSpec, price: Decimal) -> None:
    if price <= 0:
        raise ApiError(-4006)
    if price > spec.max_price:
        raise ApiError(-4007)
    if decimals(price) > spec.price_precision:
        raise ApiError(-1111)
    if price % spec.tick:
        raise ApiError(-4014)


def check_lot(spec: SymbolSpec, qty: Decimal, market: bool) -> None:
    if qty <= 0:
        raise ApiError(-4003)
    if qty < spec.min_qty:
        raise ApiError(-4004)
    if qty > (spec.market_max_qty if market else spec.max_qty):
        raise ApiError(-4005)
    if qty % spec.step:
        raise ApiError(-4023)


def check_notional(spec: SymbolSpec, price: Decimal, qty: Decimal, code: int = -4164) -> None:
    if price * qty < spec.min_notional:
        raise ApiError(code, format(spec.min_notional.normalize(), "f"))


def band(spec: SymbolSpec, mark: Decimal) -> tuple[Decimal, Decimal]:
    """The lowest price a sell and the highest price a buy may have, on the tick."""
    low = -((-mark * (1 - spec.band)) // spec.tick) * spec.tick
    high = mark * (1 + spec.band) // spec.tick * spec.tick
    return low, high


def check_percent_price(spec: SymbolSpec, *, buy: bool, price: Decimal, mark: Decimal) -> None:
    low, high = band(spec, mark)
    if buy and price > high:
        raise ApiError(-4016, format(high, "f"))
    if not buy and price < low:
        raise ApiError(-4024, format(low, "f"))
