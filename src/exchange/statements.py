"""Answers about an account: balances, positions, settings. The shapes of each version of each endpoint, with their spelling traps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from src.exchange.events import average_text, money, text
from src.exchange.ledger import AccountState, Position
from src.exchange.margin import Exposure, Summary, adl_place, exposure, liquidation_price, max_notional, order_notionals
from src.exchange.orders import PositionSide
from src.exchange.state import State

RIGHTS = {"feeTier": 0, "canTrade": True, "canDeposit": True, "canWithdraw": True}
ALIAS = "SgsRmXqCsRfW"


def exposure_of(state: State, account: AccountState, position: Position) -> Exposure:
    mark = state.quotes.mark(position.symbol)
    bid, ask = order_notionals(state.orders_of(account.index, position.symbol), position.side, mark)
    up = state.options.switches.open_order_margin_rounds_up
    return exposure(account, state.specs[position.symbol], position, mark=mark, bid=bid, ask=ask, up=up)


def _rows(state: State, account: AccountState, every: bool) -> list[Position]:
    """Positions to list: all rows of every symbol, or those with a position or an open order."""
    rows = []
    busy = {o.symbol for o in state.open_orders[account.index].values()}
    sides = (PositionSide.BOTH, PositionSide.LONG, PositionSide.SHORT) if account.hedge and every else account.sides()
    for symbol in range(len(state.specs)):
        for side in sides:
            position = account.positions.get(f"{symbol}:{side}") or Position(symbol=symbol, side=side)
            if every or position.qty or symbol in busy:
                rows.append(position)
    return rows


def _asset_row(account: AccountState, total: Summary) -> dict[str, Any]:
    return {
        "asset": "USDT", "walletBalance": money(total.wallet), "unrealizedProfit": money(total.unrealised),
        "marginBalance": money(total.margin_balance),
        "maintMargin": money(total.maint), "initialMargin": money(total.initial), "positionInitialMargin": money(total.position_initial),
        "openOrderInitialMargin": money(total.open_order_initial), "crossWalletBalance": money(total.cross_wallet),
        "crossUnPnl": money(total.cross_unrealised), "availableBalance": money(total.available),
        "maxWithdrawAmount": money(total.max_withdraw), "updateTime": account.updated_ms,
    }  # fmt: skip


def _totals(total: Summary) -> dict[str, str]:
    return {
        "totalInitialMargin": money(total.initial), "totalMaintMargin": money(total.maint), "totalWalletBalance": money(total.wallet),
        "totalUnrealizedProfit": money(total.unrealised), "totalMarginBalance": money(total.margin_balance),
        "totalPositionInitialMargin": money(total.position_initial), "totalOpenOrderInitialMargin": money(total.open_order_initial),
        "totalCrossWalletBalance": money(total.cross_wallet), "totalCrossUnPnl": money(total.cross_unrealised),
        "availableBalance": money(total.available), "maxWithdrawAmount": money(total.max_withdraw),
    }  # fmt: skip


def account_v3(state: State, account: AccountState, *, over_ws: bool = False) -> dict[str, Any]:
    """Over the WebSocket API an asset also says whether it is margin."""
    total = state.summary(account)
    positions = []
    for position in _rows(state, account, every=False):
        row = exposure_of(state, account, position)
        positions.append({
            "symbol": state.specs[position.symbol].symbol, "positionSide": position.side, "positionAmt": text(position.qty),
            "unrealizedProfit": money(row.unrealised), "isolatedMargin": money(_isolated_margin(state, account, position, row)),
            "notional": money(row.notional), "isolatedWallet": money(position.isolated_wallet), "initialMargin": money(row.initial),
            "maintMargin": money(row.maint), "updateTime": position.updated_ms,
        })  # fmt: skip
    more = {"marginAvailable": True} if over_ws else {}
    return _totals(total) | {"assets": [_asset_row(account, total) | more], "positions": positions}


def account_v2(state: State, account: AccountState, *, over_ws: bool = False) -> dict[str, Any]:
    """Over the WebSocket API a position also tells where it breaks even."""
    total = state.summary(account)
    positions: list[dict[str, Any]] = []
    for position in _rows(state, account, every=True):
        row, spec, setting = exposure_of(state, account, position), state.specs[position.symbol], account.setting(position.symbol)
        positions.append({
            "symbol": spec.symbol, "initialMargin": money(row.initial), "maintMargin": money(row.maint),
            "unrealizedProfit": money(row.unrealised),
            "positionInitialMargin": money(row.position_initial), "openOrderInitialMargin": money(row.open_order_initial),
            "leverage": str(setting.leverage), "isolated": setting.isolated,
            "entryPrice": average_text(state, position.symbol, position.entry),
            "maxNotional": text(max_notional(spec.brackets, setting.leverage)), "bidNotional": money(row.bid),
            "askNotional": money(row.ask),
            "positionSide": position.side, "positionAmt": text(position.qty), "updateTime": position.updated_ms,
        })  # fmt: skip
        if over_ws:
            positions[-1]["breakEvenPrice"] = average_text(state, position.symbol, position.break_even)
    head = RIGHTS | {"feeBurn": account.fee_burn, "tradeGroupId": -1, "updateTime": 0, "multiAssetsMargin": account.multi_assets}
    return head | _totals(total) | {"assets": [_asset_row(account, total) | {"marginAvailable": True}], "positions": positions}


def balances(state: State, account: AccountState) -> list[dict[str, Any]]:
    total = state.summary(account)
    return [{
        "accountAlias": ALIAS, "asset": "USDT", "balance": money(total.wallet), "crossWalletBalance": money(total.cross_wallet),
        "crossUnPnl": money(total.cross_unrealised), "availableBalance": money(total.available),
        "maxWithdrawAmount": money(total.max_withdraw),
        "marginAvailable": True, "updateTime": account.updated_ms,
    }]  # fmt: skip


def _isolated_margin(state: State, account: AccountState, position: Position, row: Exposure) -> Decimal:
    return position.isolated_wallet + row.unrealised if account.setting(position.symbol).isolated else Decimal(0)


def position_risk_v3(state: State, account: AccountState, symbol: int | None) -> list[dict[str, Any]]:
    total = state.summary(account)
    answer = []
    for position in _rows(state, account, every=False):
        if symbol is not None and position.symbol != symbol:
            continue
        row, spec, mark = exposure_of(state, account, position), state.specs[position.symbol], state.quotes.mark(position.symbol)
        answer.append({
            "symbol": spec.symbol, "positionSide": position.side, "positionAmt": text(position.qty),
            "entryPrice": average_text(state, position.symbol, position.entry),
            "breakEvenPrice": average_text(state, position.symbol, position.break_even), "markPrice": money(mark),
            "unRealizedProfit": money(row.unrealised), "liquidationPrice": _liquidation(state, account, position, total),
            "isolatedMargin": money(_isolated_margin(state, account, position, row)), "notional": money(row.notional),
            "marginAsset": "USDT",
            "isolatedWallet": money(position.isolated_wallet), "initialMargin": money(row.initial), "maintMargin": money(row.maint),
            "positionInitialMargin": money(row.position_initial), "openOrderInitialMargin": money(row.open_order_initial),
            "adl": adl_place(account, position, mark),
            "bidNotional": money(row.bid), "askNotional": money(row.ask), "updateTime": position.updated_ms,
        })  # fmt: skip
    return answer


def _liquidation(state: State, account: AccountState, position: Position, total: Summary) -> str:
    spec = state.specs[position.symbol]
    price = liquidation_price(account, spec, position, total, state.quotes.mark(position.symbol))
    return average_text(state, position.symbol, price)


def position_risk_v2(state: State, account: AccountState, symbol: int | None) -> list[dict[str, Any]]:
    total = state.summary(account)
    answer = []
    for position in _rows(state, account, every=True):
        if symbol is not None and position.symbol != symbol:
            continue
        row, spec, setting = exposure_of(state, account, position), state.specs[position.symbol], account.setting(position.symbol)
        answer.append({
            "symbol": spec.symbol, "positionAmt": text(position.qty), "entryPrice": average_text(state, position.symbol, position.entry),
            "breakEvenPrice": average_text(state, position.symbol, position.break_even),
            "markPrice": money(state.quotes.mark(position.symbol)), "unRealizedProfit": money(row.unrealised),
            "liquidationPrice": _liquidation(state, account, position, total), "leverage": str(setting.leverage),
            "maxNotionalValue": text(max_notional(spec.brackets, setting.leverage)),
            "marginType": "isolated" if setting.isolated else "cross",
            "isolatedMargin": money(_isolated_margin(state, account, position, row)), "isAutoAddMargin": "false",
            "positionSide": position.side, "notional": money(row.notional), "isolatedWallet": money(position.isolated_wallet),
            "updateTime": position.updated_ms,
        })  # fmt: skip
    return answer


def symbol_config(state: State, account: AccountState, symbol: int | None) -> list[dict[str, Any]]:
    answer = []
    for i, spec in enumerate(state.specs):
        if symbol is None or i == symbol:
            setting = account.setting(i)
            answer.append({
                "symbol": spec.symbol, "marginType": "ISOLATED" if setting.isolated else "CROSSED", "isAutoAddMargin": False,
                "leverage": setting.leverage, "maxNotionalValue": text(max_notional(spec.brackets, setting.leverage)),
            })  # fmt: skip
    return answer


def account_config(account: AccountState) -> dict[str, Any]:
    return RIGHTS | {
        "dualSidePosition": account.hedge, "multiAssetsMargin": account.multi_assets, "updateTime": 0, "tradeGroupId": -1,
    }  # fmt: skip


def brackets(state: State, symbol: int | None) -> list[dict[str, Any]]:
    answer = []
    for i, spec in enumerate(state.specs):
        if symbol is not None and i != symbol:
            continue
        rows, floor = [], Decimal(0)
        for n, tier in enumerate(spec.brackets, 1):
            rows.append({
                "bracket": n, "initialLeverage": tier.max_leverage, "notionalCap": int(tier.cap), "notionalFloor": int(floor),
                "maintMarginRatio": float(tier.mmr), "cum": float(tier.cum),
            })  # fmt: skip
            floor = tier.cap
        answer.append({"symbol": spec.symbol, "brackets": rows})
    return answer
