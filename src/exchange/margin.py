"""Margin as the venue computes it: initial, of open orders, maintenance, available, liquidation price. Pure functions of the ledger.

Mark prices come in as a function of the symbol's index, open orders as a function of account and symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_CEILING, ROUND_DOWN, Decimal
from typing import NamedTuple

from src.exchange.ledger import AccountState, Position
from src.exchange.orders import E8, ZERO, Order, PositionSide, Side
from src.exchange.symbols import Bracket, SymbolSpec

MarkOf = Callable[[int], Decimal]
OrdersOf = Callable[[int, int], Iterable[Order]]
ADL_STEPS = (Decimal("0.5"), Decimal(1), Decimal(2))
"""Profit on margin from which a position stands higher in the queue for deleveraging."""


class Exposure(NamedTuple):
    """One position row with its margins; ``bid`` and ``ask`` are the notionals of open orders."""

    notional: Decimal
    unrealised: Decimal
    position_initial: Decimal
    open_order_initial: Decimal
    maint: Decimal
    bid: Decimal
    ask: Decimal

    @property
    def initial(self) -> Decimal:
        return self.position_initial + self.open_order_initial


class Summary(NamedTuple):
    """An account's totals. ``free``: what the cross wallet has left, below 0 where it is short; ``available`` is never."""

    wallet: Decimal
    unrealised: Decimal
    cross_wallet: Decimal
    cross_unrealised: Decimal
    position_initial: Decimal
    open_order_initial: Decimal
    maint: Decimal
    cross_maint: Decimal
    free: Decimal
    available: Decimal
    max_withdraw: Decimal

    @property
    def initial(self) -> Decimal:
        return self.position_initial + self.open_order_initial

    @property
    def margin_balance(self) -> Decimal:
        return self.wallet + self.unrealised


def bracket_of(brackets: Sequence[Bracket], notional: Decimal) -> Bracket:
    """The tier a notional falls into; the last one has no upper end."""
    for bracket in brackets:
        if notional <= bracket.cap:
            return bracket
    return brackets[-1]


def max_notional(brackets: Sequence[Bracket], leverage: int) -> Decimal:
    """The largest position that a leverage allows."""
    return max((b.cap for b in brackets if b.max_leverage >= leverage), default=ZERO)


def maintenance(brackets: Sequence[Bracket], notional: Decimal) -> Decimal:
    size = abs(notional)
    bracket = bracket_of(brackets, size)
    return max(ZERO, size * bracket.mmr - bracket.cum)


def order_notionals(orders: Iterable[Order], side: PositionSide, mark: Decimal) -> tuple[Decimal, Decimal]:
    """Notional of the open buys and sells that add to one position side; what only reduces is left out."""
    bid = ask = ZERO
    for order in orders:
        if order.position_side != side or order.reduce_only or order.close_position:
            continue
        size = order.remaining * (order.price or mark)
        if order.side is Side.BUY and side is not PositionSide.SHORT:
            bid += size
        elif order.side is Side.SELL and side is not PositionSide.LONG:
            ask += size
    return bid, ask


def exposure(account: AccountState, spec: SymbolSpec, position: Position, *, mark: Decimal, bid: Decimal, ask: Decimal, up: bool) -> Exposure:
    """``up``: margin of open orders is rounded up to eight decimals, not down."""
    leverage = account.setting(position.symbol).leverage
    notional = mark * position.qty
    own = abs(notional) / leverage
    worst = max(abs(notional + bid), abs(notional - ask)) / leverage
    return Exposure(
        notional,
        position.unrealised(mark),
        own,
        max(ZERO, worst - own).quantize(E8, ROUND_CEILING if up else ROUND_DOWN),
        maintenance(spec.brackets, notional) if notional else ZERO,
        bid,
        ask,
    )


def summary(account: AccountState, specs: Sequence[SymbolSpec], mark_of: MarkOf, orders_of: OrdersOf, symbols_with_orders: Iterable[int],
            *, up: bool) -> Summary:  # fmt: skip
    """Totals over every position and every symbol with open orders. ``up`` as for :func:`exposure`."""
    rows = {(p.symbol, p.side): p for p in account.positions.values() if p.qty}
    for symbol in symbols_with_orders:
        for side in account.sides():
            rows.setdefault((symbol, side), Position(symbol=symbol, side=side))
    unrealised = cross_unrealised = position_initial = open_initial = maint = cross_maint = cross_initial = isolated_open = ZERO
    for (symbol, side), position in rows.items():
        mark = mark_of(symbol)
        bid, ask = order_notionals(orders_of(account.index, symbol), side, mark)
        row = exposure(account, specs[symbol], position, mark=mark, bid=bid, ask=ask, up=up)
        unrealised += row.unrealised
        position_initial += row.position_initial
        open_initial += row.open_order_initial
        maint += row.maint
        if account.setting(symbol).isolated:
            isolated_open += row.open_order_initial
        else:
            cross_unrealised += row.unrealised
            cross_initial += row.initial
            cross_maint += row.maint
    cross = account.cross_wallet
    free = cross + cross_unrealised - cross_initial - isolated_open
    available = max(ZERO, free)
    withdraw = max(ZERO, min(available, cross + min(ZERO, cross_unrealised) - cross_initial - isolated_open))
    return Summary(
        account.wallet.balance, unrealised, cross, cross_unrealised, position_initial, open_initial, maint, cross_maint, free, available, withdraw
    )


def adl_place(account: AccountState, position: Position, mark: Decimal) -> int:
    """Its place in the queue for deleveraging, 0 to 4, by its own profit on its margin: others' positions are not known."""
    margin = abs(position.qty) * mark / account.setting(position.symbol).leverage
    profit = position.unrealised(mark)
    return 0 if profit <= 0 or not margin else 1 + sum(profit / margin >= step for step in ADL_STEPS)


def liquidation_price(account: AccountState, spec: SymbolSpec, position: Position, total: Summary, mark: Decimal) -> Decimal:
    """The mark price at which the margin is used up, by the bracket valid there; 0 when there is none."""
    if not position.qty:
        return ZERO
    isolated = account.setting(position.symbol).isolated
    siblings = [position] if isolated else [p for p in account.live_positions() if p.symbol == position.symbol]
    if isolated:
        wallet = position.isolated_wallet
    else:
        here = sum((maintenance(spec.brackets, mark * p.qty) for p in siblings), ZERO)
        gain = sum((p.unrealised(mark) for p in siblings), ZERO)
        wallet = total.cross_wallet - (total.cross_maint - here) + (total.cross_unrealised - gain)
    price = mark
    for _ in range(20):
        numerator, denominator = wallet, ZERO
        for p in siblings:
            bracket = bracket_of(spec.brackets, price * abs(p.qty))
            numerator += bracket.cum - (p.cost if p.qty > 0 else -p.cost)
            denominator += abs(p.qty) * bracket.mmr - p.qty
        if denominator == 0:
            return ZERO
        found = numerator / denominator
        if found <= 0:
            return ZERO
        if abs(found - price) < spec.tick:
            return found
        price = found
    return price
