"""What a user changes about an account: leverage, margin type, position mode, asset mode, isolated margin."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from src.exchange import events
from src.exchange.errors import ApiError
from src.exchange.history import MarginMove
from src.exchange.ledger import AccountState
from src.exchange.margin import maintenance, max_notional, order_notionals
from src.exchange.orders import ZERO, PositionSide, q8
from src.exchange.state import State

MARGIN_MOVE_MAX = Decimal(10**12)
DONE = {"code": 200, "msg": "success"}


def set_leverage(state: State, account: AccountState, symbol: int, leverage: int) -> dict[str, Any]:
    spec = state.specs[symbol]
    if not 1 <= leverage <= spec.brackets[0].max_leverage:
        raise ApiError(-4028, leverage)
    old = account.setting(symbol)
    held = [p for p in account.live_positions() if p.symbol == symbol]
    if held and old.isolated and leverage < old.leverage:
        raise ApiError(-4161)
    top, largest = max_notional(spec.brackets, leverage), _largest(state, account, symbol)
    if largest > top:
        raise ApiError(-2027)
    before = old.leverage
    if largest and leverage < before:
        account.change_setting(symbol).leverage = leverage
        if state.summary(account).free < 0:
            account.change_setting(symbol).leverage = before
            raise ApiError(-2028)
    account.change_setting(symbol).leverage = leverage
    state.touch(account)
    if leverage != before:
        state.say(account.index, events.leverage_update(state, symbol, leverage))
    return {"symbol": spec.symbol, "leverage": leverage, "maxNotionalValue": format(top, "f")}


def _largest(state: State, account: AccountState, symbol: int) -> Decimal:
    """The largest notional that a position of the symbol may come to with its open orders."""
    mark, orders = state.quotes.mark(symbol), list(state.orders_of(account.index, symbol))
    found = ZERO
    for side in account.sides():
        notional, (bid, ask) = mark * account.held(symbol, side), order_notionals(orders, side, mark)
        found = max(found, abs(notional + bid), abs(notional - ask))
    return found


def set_margin_type(state: State, account: AccountState, symbol: int, isolated: bool) -> dict[str, Any]:
    if account.setting(symbol).isolated == isolated:
        raise ApiError(-4046)
    if isolated and account.multi_assets:
        raise ApiError(-4168)
    if state.orders_of(account.index, symbol) or any(a.symbol == symbol for a in state.open_algos[account.index].values()):
        raise ApiError(-4047)
    if any(p.symbol == symbol for p in account.live_positions()):
        raise ApiError(-4048)
    account.change_setting(symbol).isolated = isolated
    state.touch(account)
    return dict(DONE)


def set_hedge(state: State, account: AccountState, hedge: bool) -> dict[str, Any]:
    if account.hedge == hedge:
        raise ApiError(-4059)
    if state.open_orders[account.index] or state.open_algos[account.index]:
        raise ApiError(-4067)
    if account.live_positions():
        raise ApiError(-4068)
    account.hedge = hedge
    state.touch(account)
    return dict(DONE)


def set_multi_assets(state: State, account: AccountState, on: bool) -> dict[str, Any]:
    if account.multi_assets == on:
        raise ApiError(-4171)
    if on and any(s.isolated for s in account.settings.values()):
        raise ApiError(-4167)
    if state.open_orders[account.index]:
        raise ApiError(-4170)
    account.multi_assets = on
    state.touch(account)
    state.say(account.index, events.multi_assets_update(state, on))
    return dict(DONE)


def adjust_margin(state: State, account: AccountState, symbol: int, side: PositionSide, *, amount: Decimal, add: bool) -> dict[str, Any]:
    """Move margin between the cross wallet and an isolated position."""
    position = account.positions.get(f"{symbol}:{side}")
    if position is None or not position.qty or not account.setting(symbol).isolated:
        raise ApiError(-4053)
    if amount <= 0:
        raise ApiError(-4055)
    if amount > MARGIN_MOVE_MAX:
        raise ApiError(-4050 if add else -4051)
    amount = q8(amount)
    if add and amount > state.summary(account).available:
        raise ApiError(-4050)
    if not add:
        mark = state.quotes.mark(symbol)
        notional = mark * position.qty
        need = max(abs(notional) / account.setting(symbol).leverage, maintenance(state.specs[symbol].brackets, notional))
        if position.isolated_wallet + min(ZERO, position.unrealised(mark)) - amount < need:
            raise ApiError(-4051)
    moved = amount if add else -amount
    position.isolated_wallet += moved
    state.touch(account)
    state.keep_margin_move(MarginMove(account=account.index, symbol=symbol, side=side, amount=moved, time_ms=state.now_ms))
    state.say(account.index, events.account_update(state, account, "MARGIN_TRANSFER", [position]))
    return {"code": 200, "msg": "Successfully modify position margin.", "amount": float(amount), "type": 1 if add else 2}
