"""What the local exchange asks of a real venue by REST: which contracts there are, and where their prices stand. All of it is public.

Filters are the venue's own. Leverage brackets are not public there: the table's stand in, as for a recording. What cannot be had raises
``Retryable``; a venue that does not serve this address at all is ``Fatal``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, TypeVar

import aiohttp
import msgspec

from src.error_handler import Fatal, Retryable
from src.exchange.symbols import DEFAULT_BRACKETS, TABLE, UNIVERSE_MAX, SymbolSpec

BODY_BYTES_MAX = 64 << 20
ANSWER_S = 15.0
PAUSES_S = (0.5, 1.0, 2.0)
REFUSED = (401, 403, 404, 451)
"""Statuses that no second attempt will change."""
ZERO, ONE = Decimal(0), Decimal(1)

T = TypeVar("T")


class _Filter(msgspec.Struct, rename="camel"):
    filter_type: str
    tick_size: Decimal = ZERO
    step_size: Decimal = ZERO
    min_price: Decimal = ZERO
    max_price: Decimal = ZERO
    min_qty: Decimal = ZERO
    max_qty: Decimal = ZERO
    notional: Decimal = ZERO
    multiplier_up: Decimal = ZERO
    multiplier_down: Decimal = ZERO


class Contract(msgspec.Struct, rename="camel"):
    """A symbol of exchangeInfo, as far as it matters here."""

    symbol: str
    status: str
    contract_type: str
    base_asset: str
    quote_asset: str
    price_precision: int
    quantity_precision: int
    filters: list[_Filter]
    onboard_date: int = 0
    liquidation_fee: Decimal = Decimal("0.015000")
    trigger_protect: Decimal = Decimal("0.1500")


class _Info(msgspec.Struct):
    symbols: list[Contract]


class Price(msgspec.Struct):
    symbol: str
    price: str


class Book(msgspec.Struct, rename="camel"):
    symbol: str
    bid_price: str
    bid_qty: str
    ask_price: str
    ask_qty: str


class Premium(msgspec.Struct, rename="camel"):
    symbol: str
    mark_price: str
    last_funding_rate: str = ""
    next_funding_time: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the prices of all symbols of the venue stand."""

    prices: Sequence[Price] = ()
    books: Sequence[Book] = ()
    premiums: Sequence[Premium] = field(default=())


class PublicRest:
    """Reads of a venue's public REST. Weights: ``specs`` 1, ``snapshot`` 17."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._base = base_url.rstrip("/")
        self._session = session
        self._pauses_s = pauses_s

    async def specs(self, wanted: tuple[str, ...], held: tuple[str, ...] = ()) -> tuple[SymbolSpec, ...]:
        """The contracts of that name; of none named, all USDT perpetuals that trade, up to the exchange's bound. Fatal: no such name.

        ``held``: contracts to be listed besides, as far as there are such.
        """
        contracts = (await self._get("exchangeInfo", _Info)).symbols
        found = {c.symbol: spec for c in contracts if (spec := spec_of(c)) is not None}
        if missing := [name for name in wanted if name not in found]:
            raise Fatal(f"the venue has no symbol {', '.join(missing)}", setting="SYMBOLS", value=missing[0])
        usual = [c.symbol for c in contracts if (c.status, c.contract_type, c.quote_asset) == ("TRADING", "PERPETUAL", "USDT")]
        names = dict.fromkeys((*(wanted or usual[:UNIVERSE_MAX]), *held))
        return tuple(found[name] for name in names if name in found)

    async def snapshot(self) -> Snapshot:
        """Last prices, books and marks as they stand."""
        prices, books, premiums = await asyncio.gather(
            self._get("ticker/price", list[Price], "v2"), self._get("ticker/bookTicker", list[Book]), self._get("premiumIndex", list[Premium]))
        return Snapshot(prices, books, premiums)

    async def _get(self, path: str, kind: type[T], version: str = "v1") -> T:
        url = f"{self._base}/fapi/{version}/{path}"
        for pause_s in self._pauses_s:
            try:
                return await self._once(url, kind)
            except Retryable:
                await asyncio.sleep(pause_s)
        return await self._once(url, kind)

    async def _once(self, url: str, kind: type[T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_S), self._session.get(url) as answer:
                body = await _bounded(answer)
                if answer.status in REFUSED:
                    raise Fatal(f"{url} answers HTTP {answer.status}: {body[:200].decode('utf-8', 'replace')}", status=answer.status)
                if answer.status != 200:
                    raise Retryable(f"{url} answers HTTP {answer.status}", status=answer.status)
                return msgspec.json.decode(body, type=kind, strict=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Retryable(f"{url} does not answer: {error or type(error).__name__}") from error
        except msgspec.DecodeError as error:
            raise Retryable(f"{url} answers what cannot be read: {error}") from error


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"more than {BODY_BYTES_MAX} bytes")
    return bytes(body)


def spec_of(contract: Contract) -> SymbolSpec | None:
    """The contract's filters on their own grid; a bound of zero is no bound. None: filters that make no grid."""
    by_type: dict[str, Any] = {f.filter_type: f for f in contract.filters}
    price, lot = by_type.get("PRICE_FILTER"), by_type.get("LOT_SIZE")
    if price is None or lot is None or lot.max_qty <= 0:
        return None
    tick = price.tick_size or ONE.scaleb(-contract.price_precision)
    step = lot.step_size or ONE.scaleb(-contract.quantity_precision)
    market, notional, band = by_type.get("MARKET_LOT_SIZE", lot), by_type.get("MIN_NOTIONAL"), by_type.get("PERCENT_PRICE")
    known = TABLE.get(contract.symbol)
    return SymbolSpec(
        contract.symbol, contract.base_asset, contract.price_precision, contract.quantity_precision, tick, step,
        min_price=_above(price.min_price, tick), max_price=_below(price.max_price or tick * 100_000_000, tick),
        min_qty=_above(lot.min_qty, step), max_qty=_below(lot.max_qty, step), market_max_qty=_below(market.max_qty or lot.max_qty, step),
        min_notional=notional.notional if notional else ZERO,
        band=min(band.multiplier_up - 1, 1 - band.multiplier_down) if band else ONE,
        liquidation_fee=contract.liquidation_fee, trigger_protect=contract.trigger_protect, onboard_ms=contract.onboard_date,
        brackets=known.brackets if known else DEFAULT_BRACKETS, quote=contract.quote_asset)  # fmt: skip


def _above(value: Decimal, unit: Decimal) -> Decimal:
    """The least positive multiple of the unit at or above the value."""
    return max(ONE, (value / unit).to_integral_value(ROUND_CEILING)) * unit


def _below(value: Decimal, unit: Decimal) -> Decimal:
    return max(ONE, (value / unit).to_integral_value(ROUND_FLOOR)) * unit
