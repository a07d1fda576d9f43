"""REST answers as typed structs, and their way into our words. Pure: bytes in, values out.

Every decoder raises ``msgspec.DecodeError`` or ``ValueError`` where the body is not what the venue promises. Unknown fields are skipped;
numbers may come as text or as numbers; money, prices and quantities become Decimal, candles float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from src.error_handler import warn
from src.models import ZERO, AlgoUpdate, Fill, OrderStatus, OrderUpdate, PositionUpdate, Side, SymbolRules
from src.venue.governor import Limits
from src.venue.messages import AggTrade
from src.venue.user_events import order_status

Body = bytes


def _decoder(kind: Any) -> Callable[[Body], Any]:
    return msgspec.json.Decoder(kind, strict=False).decode


# -- what we hand out beside the words of src.models ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Income:
    """One row of the account's statement. ``kind``: REALIZED_PNL, COMMISSION, FUNDING_FEE, TRANSFER, …; ``amount`` is signed."""

    kind: str
    amount: Decimal
    asset: str
    symbol: str
    time_ms: int
    transaction_id: int
    trade_id: int


@dataclass(frozen=True, slots=True)
class Bracket:
    """A step of the venue's margin table: up to ``cap`` notional, leverage is at most ``max_leverage`` and the maintenance margin is
    notional × ``rate`` − ``cum``."""

    floor: Decimal
    cap: Decimal
    rate: Decimal
    cum: Decimal
    max_leverage: int


@dataclass(frozen=True, slots=True)
class SymbolConfig:
    isolated: bool
    leverage: int
    max_notional: Decimal


class AccountConfig(msgspec.Struct, frozen=True, rename="camel"):
    """``dual_side_position``: hedge mode."""

    can_trade: bool
    dual_side_position: bool
    multi_assets_margin: bool
    fee_tier: int = 0


# -- exchangeInfo --------------------------------------------------------------------------------------------------------------------


class _Filter(msgspec.Struct, rename="camel"):
    filter_type: str
    tick_size: Decimal = ZERO
    step_size: Decimal = ZERO
    min_qty: Decimal = ZERO
    max_qty: Decimal = ZERO
    notional: Decimal = ZERO
    multiplier_up: Decimal = ZERO
    multiplier_down: Decimal = ZERO


class _Symbol(msgspec.Struct, rename="camel"):
    symbol: str
    status: str
    contract_type: str
    quote_asset: str
    price_precision: int
    quantity_precision: int
    filters: list[_Filter]
    onboard_date: int = 0
    delivery_date: int = 4_133_404_800_000


class _RateLimit(msgspec.Struct, rename="camel"):
    rate_limit_type: str
    interval: str
    interval_num: int
    limit: int


class _ExchangeInfo(msgspec.Struct, rename="camel"):
    symbols: list[_Symbol]
    rate_limits: list[_RateLimit] = []


_exchange_info = _decoder(_ExchangeInfo)


def exchange_info(body: Body) -> tuple[dict[str, SymbolRules], Limits]:
    """All symbols whose rules can be read, of every contract type and status, and the venue's limits."""
    info: _ExchangeInfo = _exchange_info(body)
    found = {row.symbol: rules for row in info.symbols if (rules := _rules(row)) is not None}
    if unread := len(info.symbols) - len(found):
        warn("exchangeInfo: symbols without usable filters are left out", count=unread)
    limits = {(row.rate_limit_type, row.interval, row.interval_num): row.limit for row in info.rate_limits}
    usual = Limits()
    return found, Limits(weight_1m=limits.get(("REQUEST_WEIGHT", "MINUTE", 1), usual.weight_1m),
                         orders_10s=limits.get(("ORDERS", "SECOND", 10), usual.orders_10s),
                         orders_1m=limits.get(("ORDERS", "MINUTE", 1), usual.orders_1m))


def _rules(row: _Symbol) -> SymbolRules | None:
    """A zero in a filter switches that rule off at the venue; the grid then follows from the number of decimals."""
    filters = {f.filter_type: f for f in row.filters}
    price, lot, band = filters.get("PRICE_FILTER"), filters.get("LOT_SIZE"), filters.get("PERCENT_PRICE")
    if price is None or lot is None or lot.max_qty <= 0:
        return None
    market = filters.get("MARKET_LOT_SIZE", lot)
    notional = filters.get("MIN_NOTIONAL")
    return SymbolRules(
        row.symbol, price.tick_size or Decimal(1).scaleb(-row.price_precision), lot.step_size or Decimal(1).scaleb(-row.quantity_precision),
        min_qty=lot.min_qty, max_qty=lot.max_qty, market_max_qty=market.max_qty or lot.max_qty,
        min_notional=notional.notional if notional else ZERO, band_up=band.multiplier_up if band else Decimal("Infinity"),
        band_down=band.multiplier_down if band else ZERO, status=row.status, contract_type=row.contract_type, quote=row.quote_asset,
        onboard_ms=row.onboard_date, delivery_ms=row.delivery_date)


# -- market data ---------------------------------------------------------------------------------------------------------------------


class _Ticker(msgspec.Struct, rename="camel"):
    symbol: str
    quote_volume: Decimal


class _LastTrade(msgspec.Struct, rename="camel"):
    symbol: str
    last_id: int


class Price(msgspec.Struct, frozen=True):
    """Newest price of a symbol and its time (venue milliseconds)."""

    symbol: str
    price: float
    time: int = 0


class Book(msgspec.Struct, frozen=True, rename="camel"):
    """Best quotes of a symbol and their time (venue milliseconds); a price of 0 is no quote."""

    symbol: str
    bid_price: float
    ask_price: float
    time: int = 0


class _KlineRow(msgspec.Struct, array_like=True):
    open_ms: float
    open: float
    high: float
    low: float
    close: float
    volume: float
    close_ms: float
    quote_volume: float
    trades: float
    taker_volume: float


class _AggTradeRow(msgspec.Struct, gc=False):
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741  (the venue's letter)
    T: int
    m: bool
    nq: str | None = None


_tickers, _kline_rows, _agg_trade_rows = _decoder(list[_Ticker]), _decoder(list[_KlineRow]), _decoder(list[_AggTradeRow])
_last_trades, _prices, _books = _decoder(list[_LastTrade]), _decoder(list[Price]), _decoder(list[Book])


def tickers(body: Body) -> dict[str, Decimal]:
    return {row.symbol: row.quote_volume for row in _tickers(body)}


def last_ids(body: Body) -> dict[str, int]:
    return {row.symbol: row.last_id for row in _last_trades(body)}


def prices(body: Body) -> dict[str, Price]:
    return {row.symbol: row for row in _prices(body)}


def books(body: Body) -> dict[str, Book]:
    return {row.symbol: row for row in _books(body)}


def spreads(body: Body) -> dict[str, Decimal]:
    """In 0.01 %, to a thousandth of it."""
    rows = [row for row in _books(body) if 0 < row.bid_price <= row.ask_price]
    return {row.symbol: Decimal(f"{(row.ask_price - row.bid_price) / (row.ask_price + row.bid_price) * 20_000:.3f}") for row in rows}


def kline_table(body: Body) -> NDArray[np.float64]:
    """(n, 8): open_ms, open, high, low, close, volume, trades, taker_volume. Raises ValueError where a number is not finite."""
    rows = [(r.open_ms, r.open, r.high, r.low, r.close, r.volume, r.trades, r.taker_volume) for r in _kline_rows(body)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 8)
    if not np.isfinite(table).all():
        raise ValueError("a candle holds a number that is not finite")
    return table


def agg_trade_rows(body: Body, symbol: str) -> list[AggTrade]:
    return [AggTrade(symbol, r.a, r.p, r.q, r.f, r.l, r.T, r.m, 0, r.nq) for r in _agg_trade_rows(body)]


# -- orders and trades ---------------------------------------------------------------------------------------------------------------


class _Order(msgspec.Struct, rename="camel"):
    symbol: str
    client_order_id: str
    order_id: int
    side: Side
    status: str
    orig_qty: Decimal
    executed_qty: Decimal
    update_time: int = 0
    reduce_only: bool = False
    close_position: bool = False


class _Algo(msgspec.Struct, rename="camel"):
    symbol: str
    client_algo_id: str
    algo_id: int
    side: Side
    order_type: str
    algo_status: str
    trigger_price: str | None = None
    close_position: bool = False
    update_time: int = 0
    actual_qty: str | None = None


class _Trade(msgspec.Struct, rename="camel"):
    symbol: str
    id: int
    order_id: int
    side: Side
    price: Decimal
    qty: Decimal
    commission: Decimal
    commission_asset: str
    realized_pnl: Decimal
    maker: bool
    time: int


_order, _orders, _algo, _algos = _decoder(_Order), _decoder(list[_Order]), _decoder(_Algo), _decoder(list[_Algo])
_trades = _decoder(list[_Trade])


def _order_update(o: _Order) -> OrderUpdate:
    return OrderUpdate(o.symbol, o.client_order_id, o.order_id, o.side, order_status(o.status, o.executed_qty), o.orig_qty, o.executed_qty,
                       o.update_time, reduce_only=o.reduce_only, close_position=o.close_position)


def _algo_update(a: _Algo) -> AlgoUpdate:
    status = OrderStatus(a.algo_status) if a.algo_status in OrderStatus.__members__ else OrderStatus.NEW
    return AlgoUpdate(a.symbol, a.client_algo_id, a.algo_id, a.side, a.order_type, status, Decimal(a.trigger_price or 0), a.close_position,
                      a.update_time, Decimal(a.actual_qty or 0))


def order(body: Body) -> OrderUpdate:
    return _order_update(_order(body))


def orders(body: Body) -> list[OrderUpdate]:
    return [_order_update(row) for row in _orders(body)]


def algo(body: Body) -> AlgoUpdate:
    return _algo_update(_algo(body))


def algos(body: Body) -> list[AlgoUpdate]:
    return [_algo_update(row) for row in _algos(body)]


def fills(body: Body) -> list[Fill]:
    """``client_id`` is empty: these rows know the order's number only."""
    return [Fill(t.symbol, t.id, "", t.order_id, t.side, t.price, t.qty, t.commission, t.commission_asset, t.realized_pnl, t.maker, t.time)
            for t in _trades(body)]


# -- the account ---------------------------------------------------------------------------------------------------------------------


class _Asset(msgspec.Struct, rename="camel"):
    asset: str
    wallet_balance: Decimal
    unrealized_profit: Decimal


class _Account(msgspec.Struct, rename="camel"):
    assets: list[_Asset]


class _Position(msgspec.Struct, rename="camel"):
    symbol: str
    position_amt: Decimal
    entry_price: Decimal
    un_realized_profit: Decimal
    position_side: str = "BOTH"
    isolated_wallet: Decimal = ZERO
    update_time: int = 0


class _Income(msgspec.Struct, rename="camel"):
    income_type: str
    income: Decimal
    asset: str
    time: int
    tran_id: int
    symbol: str | None = ""
    trade_id: int | str | None = ""


class _Commission(msgspec.Struct, rename="camel"):
    maker_commission_rate: Decimal
    taker_commission_rate: Decimal


class _BracketRow(msgspec.Struct, rename="camel"):
    initial_leverage: int
    notional_cap: Decimal
    notional_floor: Decimal
    maint_margin_ratio: Decimal
    cum: Decimal = ZERO


class _Brackets(msgspec.Struct, rename="camel"):
    symbol: str
    brackets: list[_BracketRow]


class _ConfigRow(msgspec.Struct, rename="camel"):
    symbol: str
    margin_type: str
    leverage: int
    max_notional_value: str = "0"


class _Leverage(msgspec.Struct, rename="camel"):
    leverage: int


_account, _positions, _income, _commission = _decoder(_Account), _decoder(list[_Position]), _decoder(list[_Income]), _decoder(_Commission)
_brackets, _configs, _leverage = _decoder(list[_Brackets] | _Brackets), _decoder(list[_ConfigRow]), _decoder(_Leverage)
account_config: Callable[[Body], AccountConfig] = _decoder(AccountConfig)


def balance(body: Body, asset: str) -> tuple[Decimal, Decimal]:
    """(wallet, unrealised) of one asset; zeros where the account never held it."""
    for row in _account(body).assets:
        if row.asset == asset:
            return row.wallet_balance, row.unrealized_profit
    return ZERO, ZERO


def positions(body: Body) -> list[PositionUpdate]:
    """Only what is held: rows of symbols with nothing but orders are left out."""
    return [PositionUpdate(p.symbol, p.position_amt, p.entry_price, p.un_realized_profit, p.isolated_wallet != 0, p.position_side,
                           p.update_time) for p in _positions(body) if p.position_amt != 0]  # fmt: skip


def income_rows(body: Body) -> list[Income]:
    return [Income(r.income_type, r.income, r.asset, r.symbol or "", r.time, r.tran_id, int(r.trade_id) if r.trade_id else 0)
            for r in _income(body)]


def commission(body: Body) -> tuple[Decimal, Decimal]:
    row: _Commission = _commission(body)
    return row.maker_commission_rate, row.taker_commission_rate


def bracket_table(body: Body) -> dict[str, list[Bracket]]:
    """The venue answers an array, or one object where a symbol was named."""
    found = _brackets(body)
    rows: list[_Brackets] = found if isinstance(found, list) else [found]
    return {row.symbol: sorted([Bracket(b.notional_floor, b.notional_cap, b.maint_margin_ratio, b.cum, b.initial_leverage)
                                for b in row.brackets], key=lambda b: b.floor) for row in rows}


def symbol_configs(body: Body) -> dict[str, SymbolConfig]:
    return {r.symbol: SymbolConfig(r.margin_type.upper() == "ISOLATED", r.leverage, Decimal(r.max_notional_value)) for r in _configs(body)}


def leverage(body: Body) -> int:
    return int(_leverage(body).leverage)
