"""Operations on accounts: balances, positions, settings, income, listen keys."""

from __future__ import annotations

from typing import Any

from src.exchange import payloads, settings, statements
from src.exchange.call import Call
from src.exchange.entry import optional_symbol, position_side_of, symbol_of
from src.exchange.errors import ApiError
from src.exchange.orders import ZERO
from src.exchange.params import INT64_MAX
from src.exchange.public import limit_of

INCOME_SPAN_MS = 7 * 86_400_000
INCOME_TYPES = ("TRANSFER", "WELCOME_BONUS", "REALIZED_PNL", "FUNDING_FEE", "COMMISSION", "INSURANCE_CLEAR", "SPECIAL_FUNDING_FEE")


def account_v2(call: Call) -> Any:
    return statements.account_v2(call.venue.state, call.account)


def account_v3(call: Call) -> Any:
    return statements.account_v3(call.venue.state, call.account)


def ws_account_v2(call: Call) -> Any:
    return statements.account_v2(call.venue.state, call.account, over_ws=True)


def ws_account_v3(call: Call) -> Any:
    return statements.account_v3(call.venue.state, call.account, over_ws=True)


def balance(call: Call) -> Any:
    return statements.balances(call.venue.state, call.account)


def position_risk_v2(call: Call) -> Any:
    return statements.position_risk_v2(call.venue.state, call.account, optional_symbol(call.params, call.venue.state.index))


def position_risk_v3(call: Call) -> Any:
    return statements.position_risk_v3(call.venue.state, call.account, optional_symbol(call.params, call.venue.state.index))


def symbol_config(call: Call) -> Any:
    return statements.symbol_config(call.venue.state, call.account, optional_symbol(call.params, call.venue.state.index))


def account_config(call: Call) -> Any:
    return statements.account_config(call.account)


def leverage_bracket(call: Call) -> Any:
    symbol = optional_symbol(call.params, call.venue.state.index)
    rows = statements.brackets(call.venue.state, symbol)
    return rows[0] if symbol is not None and not call.venue.options.switches.bracket_as_array else rows


def commission_rate(call: Call) -> Any:
    spec = call.venue.state.specs[symbol_of(call.params, call.venue.state.index)]
    options = call.venue.options
    return {
        "symbol": spec.symbol, "makerCommissionRate": format(options.maker_fee, ".6f"),
        "takerCommissionRate": format(options.taker_fee, ".6f"),
        "rpiCommissionRate": "0.000050",
    }  # fmt: skip


def income(call: Call) -> Any:
    state, params = call.venue.state, call.params
    symbol = optional_symbol(params, state.index)
    kind = params.choice("incomeType", INCOME_TYPES, -1130)
    limit, start, end = limit_of(params, 100, 1000), params.integer("startTime"), params.integer("endTime")
    if start is not None and end is not None and start > end:
        raise ApiError(-1023)
    if start is None:
        start = (end if end is not None else state.now_ms) - INCOME_SPAN_MS
    rows = [r for r in state.incomes[call.account_index] if start <= r.time_ms <= (INT64_MAX if end is None else end)
            and (symbol is None or r.symbol == symbol) and (kind is None or r.type == kind)]  # fmt: skip
    rows = rows[:limit] if params.get("startTime") is not None else rows[-limit:]
    return [payloads.income_row(state, r) for r in rows]


# ---------------------------------------------------------------------- settings


def leverage(call: Call) -> Any:
    symbol = symbol_of(call.params, call.venue.state.index)
    if call.params.get("leverage") is None:
        raise ApiError(-1102, "leverage")
    value = call.params.integer("leverage", least=-INT64_MAX) or 0
    return call.venue.at_once(lambda: settings.set_leverage(call.venue.state, call.account, symbol, value))


def margin_type(call: Call) -> Any:
    symbol = symbol_of(call.params, call.venue.state.index)
    call.params.need("marginType")
    isolated = call.params.choice("marginType", ("ISOLATED", "CROSSED"), -1130) == "ISOLATED"
    return call.venue.at_once(lambda: settings.set_margin_type(call.venue.state, call.account, symbol, isolated))


def dual_side(call: Call) -> Any:
    return {"dualSidePosition": call.account.hedge}


def set_dual_side(call: Call) -> Any:
    call.params.need("dualSidePosition")
    on = bool(call.params.flag("dualSidePosition"))
    return call.venue.at_once(lambda: settings.set_hedge(call.venue.state, call.account, on))


def multi_assets(call: Call) -> Any:
    return {"multiAssetsMargin": call.account.multi_assets}


def set_multi_assets(call: Call) -> Any:
    call.params.need("multiAssetsMargin")
    on = bool(call.params.flag("multiAssetsMargin"))
    return call.venue.at_once(lambda: settings.set_multi_assets(call.venue.state, call.account, on))


def position_margin(call: Call) -> Any:
    params = call.params
    symbol, side = symbol_of(params, call.venue.state.index), position_side_of(params)
    params.need("amount")
    params.need("type")
    amount, direction = params.decimal("amount") or ZERO, params.integer("type", least=1, most=2)
    return call.venue.at_once(lambda: settings.adjust_margin(call.venue.state, call.account, symbol, side, amount=amount, add=direction == 1))


def order_limits(call: Call) -> Any:
    return call.venue.limiter.order_table()


# ---------------------------------------------------------------------- listen keys


def open_listen_key(call: Call) -> Any:
    return {"listenKey": call.venue.listen_keys.create(call.account_index)}


def extend_listen_key(call: Call) -> Any:
    return {"listenKey": call.venue.listen_keys.extend(call.account_index)}


def close_listen_key(call: Call) -> Any:
    call.venue.listen_keys.close(call.account_index)
    return {}
