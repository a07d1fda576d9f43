"""Order parameters in the venue's words, and the client ids that say which orders are ours.

Pure. Invariants: quantities and prices lie on the symbol's grid and are written without an exponent; what reduces says so
(``reduceOnly`` or ``closePosition``), so that no builder but ``entry`` can add exposure; conditional orders are for the algo service, close
the whole position and expire with it (GTE_GTC). The same parameters go over REST and over the WebSocket API.

``side`` is always the order's own side: SELL to leave a long position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from itertools import count
from typing import Any

from src.models import Role, Side, SymbolRules

PREFIX = "aegis"
CLIENT_ID_MAX = 36
Parameters = dict[str, str]
_PATTERN = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SELF_TRADE = "EXPIRE_MAKER"
"""Said explicitly: the default differs between the venue's doors."""


# -- numbers -------------------------------------------------------------------------------------------------------------------------


def plain(number: Decimal) -> str:
    """``0.00001``, never ``1E-5``; no zeros at the end."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def floor_step(rules: SymbolRules, qty: Decimal) -> Decimal:
    """The largest quantity on the symbol's grid that is not above ``qty``."""
    return (qty / rules.step).to_integral_value(ROUND_FLOOR) * rules.step


def round_tick(rules: SymbolRules, price: Decimal | float, *, up: bool) -> Decimal:
    """The next price on the symbol's grid, at or above (``up``) or at or below. A float is taken as its shortest decimal text."""
    exact = price if isinstance(price, Decimal) else Decimal(repr(price))
    return (exact / rules.tick).to_integral_value(ROUND_CEILING if up else ROUND_FLOOR) * rules.tick


def split_market(rules: SymbolRules, qty: Decimal) -> list[Decimal]:
    """A quantity as market orders, each within MARKET_LOT_SIZE and about equal, so that none falls below the minimum."""
    assert qty > 0, qty
    whole = floor_step(rules, qty)
    largest = floor_step(rules, min(rules.market_max_qty, rules.max_qty))
    if whole <= largest or largest <= 0:
        return [whole or qty]
    pieces = int((whole / largest).to_integral_value(ROUND_CEILING))
    share = floor_step(rules, whole / pieces)
    longer = int((whole - share * pieces) / rules.step)
    return [share + rules.step] * longer + [share] * (pieces - longer)


# -- parameters ----------------------------------------------------------------------------------------------------------------------


def _on_grid(value: Decimal, grid: Decimal) -> str:
    assert value > 0 and value % grid == 0, f"{value} is not on the grid of {grid}"
    return plain(value)


def entry(rules: SymbolRules, side: Side, qty: Decimal, price: Decimal, client_id: str) -> Parameters:
    """LIMIT, immediate or cancel: nothing rests. The answer tells the final state."""
    return {"symbol": rules.symbol, "side": side.value, "type": "LIMIT", "timeInForce": "IOC", "quantity": _on_grid(qty, rules.step),
            "price": _on_grid(price, rules.tick), "newClientOrderId": client_id, "newOrderRespType": "RESULT",
            "selfTradePreventionMode": _SELF_TRADE}


def market_exit(rules: SymbolRules, side: Side, qty: Decimal, client_id: str) -> Parameters:
    """MARKET, reduce-only: at most what is held is closed."""
    return {"symbol": rules.symbol, "side": side.value, "type": "MARKET", "quantity": plain(qty), "reduceOnly": "true",
            "newClientOrderId": client_id, "newOrderRespType": "RESULT", "selfTradePreventionMode": _SELF_TRADE}


def _closing(rules: SymbolRules, side: Side, price: Decimal, client_id: str, *, kind: str, working_type: str) -> Parameters:
    return {"algoType": "CONDITIONAL", "symbol": rules.symbol, "side": side.value, "type": kind,
            "triggerPrice": _on_grid(price, rules.tick), "closePosition": "true", "timeInForce": "GTE_GTC",
            "workingType": working_type, "clientAlgoId": client_id}


def stop(rules: SymbolRules, side: Side, price: Decimal, client_id: str, *, working_type: str = "MARK_PRICE") -> Parameters:
    """For the algo service: closes the whole position when ``working_type`` crosses ``price`` against it."""
    return _closing(rules, side, price, client_id, kind="STOP_MARKET", working_type=working_type)


def target(rules: SymbolRules, side: Side, price: Decimal, client_id: str, *, working_type: str = "MARK_PRICE") -> Parameters:
    """For the algo service: closes the whole position when ``working_type`` reaches ``price`` in its favour."""
    return _closing(rules, side, price, client_id, kind="TAKE_PROFIT_MARKET", working_type=working_type)


def stand_in(rules: SymbolRules, side: Side, qty: Decimal, price: Decimal, client_id: str, *,
             working_type: str = "MARK_PRICE") -> Parameters:  # fmt: skip
    """For the algo service: a reduce-only stop with a quantity, which may stand beside the closing one while that is being moved."""
    return {"algoType": "CONDITIONAL", "symbol": rules.symbol, "side": side.value, "type": "STOP_MARKET",
            "quantity": _on_grid(qty, rules.step), "triggerPrice": _on_grid(price, rules.tick), "reduceOnly": "true",
            "workingType": working_type, "clientAlgoId": client_id}


def reduces(params: Mapping[str, Any]) -> bool:
    """Whether an order with these parameters can only reduce."""
    return params.get("reduceOnly") == "true" or params.get("closePosition") == "true"


def cancel(symbol: str, client_id: str) -> Parameters:
    """For ``order.cancel`` and DELETE /fapi/v1/order."""
    return {"symbol": symbol, "origClientOrderId": client_id}


def cancel_algo(client_id: str) -> Parameters:
    """For ``algoOrder.cancel`` and DELETE /fapi/v1/algoOrder."""
    return {"clientAlgoId": client_id}


# -- client ids ----------------------------------------------------------------------------------------------------------------------


def _base36(number: int) -> str:
    assert number >= 0
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text


class ClientIds:
    """Ids of one run: ``aegis-<epoch>-<number>-<role>``. ``epoch_ms``: venue time at boot, which tells copies of the program apart and
    says which is newer. ``start``: how many this epoch has given out already."""

    def __init__(self, epoch_ms: int, *, prefix: str = PREFIX, start: int = 0) -> None:
        self.epoch_ms = epoch_ms
        self.prefix = prefix
        self._head = f"{prefix}-{_base36(epoch_ms)}-"
        self._numbers: Iterator[int] = count(start)

    def next(self, role: Role) -> str:
        made = f"{self._head}{_base36(next(self._numbers))}-{role.value}"
        assert _PATTERN.fullmatch(made), f"{made} is no client id for the venue"
        return made


def parse(client_id: str, prefix: str = PREFIX) -> tuple[int, int, Role] | None:
    """(epoch_ms, number, role) of an id of ours, by whichever copy made; None for anybody else's."""
    found = _parts_of(prefix).fullmatch(client_id) if len(client_id) <= CLIENT_ID_MAX else None
    return (int(found[1], 36), int(found[2], 36), Role(found[3])) if found else None


@lru_cache(maxsize=8)
def _parts_of(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(prefix)}-([0-9a-z]+)-([0-9a-z]+)-([{''.join(role.value for role in Role)}])")


def ours(client_id: str, prefix: str = PREFIX) -> bool:
    """Whether a copy of this program made the order. Orders for which it is False are never touched."""
    return parse(client_id, prefix) is not None
