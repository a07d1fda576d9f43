"""Order and algo order requests: what the wire says, checked as far as it can be without looking at the book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from src.exchange.errors import EITHER_TEXT, ApiError
from src.exchange.filters import check_lot, check_precision, check_price, check_stop_price
from src.exchange.orders import ZERO, PositionSide, Side, hedge_closing
from src.exchange.params import Params
from src.exchange.symbols import SymbolSpec

CONDITIONAL = ("STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
TIF = ("GTC", "IOC", "FOK", "GTX", "GTD")
PRICE_MATCHES = ("NONE", "OPPONENT", "OPPONENT_5", "QUEUE", "QUEUE_5", "QUEUE_10", "QUEUE_20")
STP_MODES = ("NONE", "EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH")
GTD_MAX_MS = 253_402_300_799_000


@dataclass(frozen=True, slots=True)
class OrderEntry:
    """A valid request for a LIMIT or MARKET order. ``price`` is 0 where there is none."""

    symbol: int
    side: Side
    type: str
    position_side: PositionSide
    tif: str
    qty: Decimal
    price: Decimal
    client_id: str = ""
    reduce_only: bool = False
    close_position: bool = False
    result: bool = False
    price_match: str = "NONE"
    stp: str = "EXPIRE_MAKER"
    gtd_ms: int = 0

    @property
    def reducing(self) -> bool:
        return self.reduce_only or hedge_closing(self.position_side, self.side)


@dataclass(frozen=True, slots=True)
class AlgoEntry:
    """A valid request for a conditional order. ``activate_price`` 0 means from the latest price."""

    symbol: int
    side: Side
    type: str
    position_side: PositionSide
    tif: str
    qty: Decimal
    price: Decimal
    trigger_price: Decimal
    client_id: str = ""
    working_type: str = "CONTRACT_PRICE"
    reduce_only: bool = False
    close_position: bool = False
    price_protect: bool = False
    price_match: str = "NONE"
    stp: str = "EXPIRE_MAKER"
    activate_price: Decimal = ZERO
    callback_rate: Decimal = ZERO
    gtd_ms: int = 0


@dataclass(frozen=True, slots=True)
class ModifyEntry:
    """A valid request to change price and size of a resting order."""

    symbol: int
    side: Side
    order_id: int
    client_id: str
    qty: Decimal
    price: Decimal
    price_match: str = "NONE"
    reduce_only: bool | None = None
    modify_id: int | None = None


def symbol_of(params: Params, index: Mapping[str, int], name: str = "symbol") -> int:
    symbol = params.need(name)
    if symbol not in index:
        raise ApiError(-1121)
    return index[symbol]


def optional_symbol(params: Params, index: Mapping[str, int]) -> int | None:
    return symbol_of(params, index) if params.get("symbol") is not None else None


def side_of(params: Params) -> Side:
    side = params.need("side")
    if side not in ("BUY", "SELL"):
        raise ApiError(-1117)
    return Side(side)


def position_side_of(params: Params) -> PositionSide:
    side = params.choice("positionSide", ("BOTH", "LONG", "SHORT"), -4060)
    return PositionSide(side or "BOTH")


def gtd_of(params: Params, tif: str, now_ms: int) -> int:
    good_till = params.integer("goodTillDate", most=2**63 - 1)
    if tif != "GTD":
        if good_till:
            raise ApiError(-1106, "goodTillDate")
        return 0
    if good_till is None:
        raise ApiError(-1102, "goodTillDate")
    if not now_ms + 600_000 < good_till < GTD_MAX_MS:
        raise ApiError(-5040)
    return good_till // 1000 * 1000


def price_match_of(params: Params, limit: bool) -> str:
    match = params.choice("priceMatch", PRICE_MATCHES, -5037) or "NONE"
    if match == "NONE":
        return match
    if not limit:
        raise ApiError(-5038)
    if params.get("price") is not None:
        raise ApiError(-1106, "price")
    return match


def parse_order(params: Params, specs: Mapping[str, int], spec_list: Sequence[SymbolSpec], *, hedge: bool, now_ms: int) -> OrderEntry:
    """A LIMIT or MARKET order request, or the refusal."""
    symbol = symbol_of(params, specs)
    spec = spec_list[symbol]
    side = side_of(params)
    kind = params.need("type")
    if kind in CONDITIONAL:
        raise ApiError(-4120)
    if kind not in ("LIMIT", "MARKET"):
        raise ApiError(-1116)
    limit = kind == "LIMIT"
    position_side = position_side_of(params)
    tif = params.choice("timeInForce", TIF, -1115)
    match = price_match_of(params, limit)
    price = params.decimal("price")
    if limit:
        if tif is None:
            raise ApiError(-1102, "timeInForce")
        if price is None and match == "NONE":
            raise ApiError(-1102, "price")
    elif tif is not None or price is not None:
        raise ApiError(-1106, "timeinforce" if tif is not None else "price")
    if params.get("quantity") is None:
        raise ApiError(-1102, "quantity")
    qty = params.decimal("quantity") or ZERO
    reduce_only = params.flag("reduceOnly")
    check_mode(position_side, hedge, reduce_only)
    for name in ("stopPrice", "triggerPrice", "activationPrice", "activatePrice", "callbackRate"):
        if params.get(name) is not None:
            raise ApiError(-1106, name)
    if params.flag("closePosition"):
        raise ApiError(-4136, kind, "true")
    check_precision(spec, price, qty)
    if price is not None:
        check_price(spec, price)
    check_lot(spec, qty, not limit)
    return OrderEntry(
        symbol, side, kind, position_side, tif or "GTC", qty, price or ZERO,
        client_id=params.client_id("newClientOrderId") or "",
        reduce_only=bool(reduce_only),
        result=params.choice("newOrderRespType", ("ACK", "RESULT"), -1136) == "RESULT",
        price_match=match,
        stp=params.choice("selfTradePreventionMode", STP_MODES, -5039) or "EXPIRE_MAKER",
        gtd_ms=gtd_of(params, tif or "GTC", now_ms),
    )  # fmt: skip


def check_mode(position_side: PositionSide, hedge: bool, reduce_only: bool | None) -> None:
    """Hedge mode wants LONG or SHORT and takes no reduceOnly; one-way mode wants BOTH."""
    if hedge == (position_side is PositionSide.BOTH):
        raise ApiError(-4061)
    if hedge and reduce_only is not None:
        raise ApiError(-1106, "reduceonly")


def parse_algo(params: Params, specs: Mapping[str, int], spec_list: Sequence[SymbolSpec], *, hedge: bool, now_ms: int) -> AlgoEntry:
    """A conditional order request, or the refusal."""
    if params.need("algoType") != "CONDITIONAL":
        raise ApiError(-1130, "algoType")
    symbol = symbol_of(params, specs)
    spec = spec_list[symbol]
    side = side_of(params)
    kind = params.need("type")
    if kind not in CONDITIONAL:
        raise ApiError(-1116)
    position_side = position_side_of(params)
    reduce_only = params.flag("reduceOnly")
    close_position = bool(params.flag("closePosition"))
    check_mode(position_side, hedge, reduce_only)
    tif = params.choice("timeInForce", (*TIF, "GTE_GTC"), -1115) or "GTC"
    qty = params.decimal("quantity")
    if close_position:
        _check_close_position(kind, side, position_side, qty, reduce_only)
    elif qty is None:
        raise ApiError(-1102, "quantity")
    limit = kind in ("STOP", "TAKE_PROFIT")
    match = price_match_of(params, limit)
    price = params.decimal("price")
    if limit and price is None and match == "NONE":
        raise ApiError(-1102, "price")
    if not limit and price:
        raise ApiError(-1106, "price")
    trigger, activate, callback = _trigger_of(params, kind, spec)
    check_precision(spec, price, qty)
    if price:
        check_price(spec, price)
    if qty is not None and not close_position:
        check_lot(spec, qty, not limit)
    return AlgoEntry(
        symbol, side, kind, position_side, tif, ZERO if close_position else qty or ZERO, price or ZERO, trigger,
        client_id=params.client_id("clientAlgoId") or "",
        working_type=params.choice("workingType", ("MARK_PRICE", "CONTRACT_PRICE"), -4031) or "CONTRACT_PRICE",
        reduce_only=bool(reduce_only) or close_position,
        close_position=close_position,
        price_protect=bool(params.flag("priceProtect")),
        price_match=match,
        stp=params.choice("selfTradePreventionMode", STP_MODES, -5039) or "EXPIRE_MAKER",
        activate_price=activate,
        callback_rate=callback,
        gtd_ms=gtd_of(params, tif, now_ms),
    )  # fmt: skip


def _check_close_position(kind: str, side: Side, position_side: PositionSide, qty: Decimal | None, reduce_only: bool | None) -> None:
    if kind not in ("STOP_MARKET", "TAKE_PROFIT_MARKET"):
        raise ApiError(-4136, kind, "true")
    if qty:
        raise ApiError(-4137)
    if reduce_only is not None:
        raise ApiError(-1106, "reduceonly")
    if (side is Side.BUY and position_side is PositionSide.LONG) or (side is Side.SELL and position_side is PositionSide.SHORT):
        raise ApiError(-2022)


def _trigger_of(params: Params, kind: str, spec: SymbolSpec) -> tuple[Decimal, Decimal, Decimal]:
    """Trigger price, activation price and callback rate, each 0 where the type has none."""
    if kind != "TRAILING_STOP_MARKET":
        trigger = params.decimal("triggerPrice")
        if trigger is None:
            raise ApiError(-1102, "triggerprice")
        check_stop_price(spec, trigger)
        return trigger, ZERO, ZERO
    callback = params.decimal("callbackRate")
    if callback is None:
        raise ApiError(-1102, "callbackrate")
    if not Decimal("0.1") <= callback <= 20:
        raise ApiError(-1130, "callbackRate")
    activate = params.decimal("activatePrice")
    if activate is not None:
        check_stop_price(spec, activate)
    return ZERO, activate or ZERO, callback


def parse_modify(params: Params, specs: Mapping[str, int], spec_list: Sequence[SymbolSpec]) -> ModifyEntry:
    """A request to modify a resting order, or the refusal."""
    symbol = symbol_of(params, specs)
    side = side_of(params)
    order_id, client_id = ids_of(params, "orderId", "origClientOrderId")
    match = price_match_of(params, True)
    price, qty = params.decimal("price"), params.decimal("quantity")
    if qty is None:
        raise ApiError(-1102, "quantity")
    if price is None and match == "NONE":
        raise ApiError(-1102, "price")
    spec = spec_list[symbol]
    check_precision(spec, price, qty)
    if price is not None:
        check_price(spec, price)
    check_lot(spec, qty, False)
    return ModifyEntry(symbol, side, order_id, client_id, qty, price or ZERO, match, params.flag("reduceOnly"), params.integer("modifyId"))


def ids_of(params: Params, number: str, text: str) -> tuple[int, str]:
    """One of two ways to name an order; the number wins. 0 and "" where not given."""
    order_id = params.integer(number)
    client_id = params.get(text)
    if order_id is None and client_id is None:
        raise ApiError(-1102, msg=EITHER_TEXT.format(number, text))
    return order_id or 0, client_id or ""
