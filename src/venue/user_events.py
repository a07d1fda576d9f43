"""User-stream payloads: the venue's frames as typed structs, turned into our words.

Pure: ``decode_event(frame)`` returns one event, or None for what is known and of no use. Raises ``UnknownEvent`` for an event name that we
do not know and ``msgspec.DecodeError`` or ``ValueError`` for rubbish. Unknown fields are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import msgspec

from src.models import ZERO, AccountUpdate, AlgoUpdate, Fill, OrderStatus, OrderUpdate, PositionUpdate, Side

EVENTS = ("ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ALGO_UPDATE", "TRADE_LITE", "MARGIN_CALL", "ACCOUNT_CONFIG_UPDATE", "listenKeyExpired")
"""All that the venue offers, named one by one: a stream that names none is silent there by some reports."""
EXPIRY = {
    "1": "self-trade prevention",
    "2": "remainder of an immediate-or-cancel order",
    "3": "self-trade prevention of an immediate-or-cancel order",
    "4": "knocked out by another reducing order",
    "5": "liquidation",
    "6": "its condition was not met",
    "7": "symbol delisted",
    "8": "the first order expired after its stop triggered",
    "9": "remainder of a market order: price cap or no liquidity",
}
LIQUIDATION_PREFIXES = ("autoclose-", "adl_autoclose", "settlement_autoclose-")
"""Client ids of orders that the venue itself makes against the account."""
_EARNED = frozenset({"ORDER", "FUNDING_FEE", "INSURANCE_CLEAR", "MARGIN_TYPE_CHANGE"})
"""Reasons of a balance change that is profit or loss (or nothing), not money moved in or out."""


class UnknownEvent(ValueError):
    """An event name of the future."""


@dataclass(frozen=True, slots=True)
class ConfigUpdate:
    """Leverage of a symbol, or the multi-asset mode, was changed at the venue."""

    symbol: str | None
    leverage: int | None
    multi_assets: bool | None
    time_ms: int


@dataclass(frozen=True, slots=True)
class MarginCall:
    """Positions near liquidation. ``cross_wallet`` None: isolated only."""

    symbols: tuple[str, ...]
    cross_wallet: Decimal | None
    time_ms: int


@dataclass(frozen=True, slots=True)
class KeyExpired:
    """The listen key ended: the socket stays open, and nothing more comes over it."""

    time_ms: int


UserEvent = OrderUpdate | AlgoUpdate | AccountUpdate | ConfigUpdate | MarginCall
"""What an owner of the stream is told."""


class _Order(msgspec.Struct, gc=False):
    s: str
    c: str
    S: Side
    x: str
    X: str
    i: int
    q: str
    z: str
    T: int
    l: str = "0"  # noqa: E741  (the venue's letter)
    L: str = "0"
    n: str = "0"
    N: str | None = ""
    t: int = 0
    m: bool = False
    R: bool = False
    cp: bool = False
    rp: str = "0"
    er: str = "0"


class _OrderTradeUpdate(msgspec.Struct, tag_field="e", tag="ORDER_TRADE_UPDATE", gc=False):
    o: _Order


class _Balance(msgspec.Struct, gc=False):
    a: str
    wb: str
    bc: str = "0"


class _Position(msgspec.Struct, gc=False):
    s: str
    pa: str
    ep: str
    up: str = "0"
    mt: str = ""
    ps: str = "BOTH"


class _AccountBody(msgspec.Struct):
    m: str
    B: list[_Balance] = []
    P: list[_Position] = []


class _AccountUpdate(msgspec.Struct, tag_field="e", tag="ACCOUNT_UPDATE"):
    a: _AccountBody
    T: int = 0
    E: int = 0


class _Algo(msgspec.Struct, gc=False):
    caid: str
    aid: int
    s: str
    S: Side
    o: str
    X: str
    tp: str = "0"
    cp: bool = False
    aq: str | None = None
    rm: str | None = None


class _AlgoUpdate(msgspec.Struct, tag_field="e", tag="ALGO_UPDATE", gc=False):
    o: _Algo
    T: int = 0
    E: int = 0


class _TradeLite(msgspec.Struct, tag_field="e", tag="TRADE_LITE", gc=False):
    """A shadow of ORDER_TRADE_UPDATE, without commission: not used, so that no fill is ever booked twice."""


class _CallPosition(msgspec.Struct, gc=False):
    s: str


class _MarginCall(msgspec.Struct, tag_field="e", tag="MARGIN_CALL"):
    E: int = 0
    cw: str | None = None
    p: list[_CallPosition] = []


class _Leverage(msgspec.Struct, gc=False):
    s: str
    l: int  # noqa: E741  (the venue's letter)


class _MultiAssets(msgspec.Struct, gc=False):
    j: bool


class _ConfigUpdate(msgspec.Struct, tag_field="e", tag="ACCOUNT_CONFIG_UPDATE", gc=False):
    T: int = 0
    ac: _Leverage | None = None
    ai: _MultiAssets | None = None


class _KeyExpired(msgspec.Struct, tag_field="e", tag="listenKeyExpired", gc=False):
    E: int | str = 0


class _Name(msgspec.Struct, gc=False):
    e: str


_Known = _OrderTradeUpdate | _AccountUpdate | _AlgoUpdate | _TradeLite | _MarginCall | _ConfigUpdate | _KeyExpired


class _Envelope(msgspec.Struct):
    """Combined mode wraps the event; ``stream`` is the listen key itself and is never kept."""

    data: _Known


_decode = msgspec.json.Decoder(_Known).decode
_decode_wrapped = msgspec.json.Decoder(_Envelope).decode
_name_of = msgspec.json.Decoder(_Name).decode


def decode_event(frame: bytes | memoryview | str, asset: str = "USDT") -> UserEvent | KeyExpired | None:
    """One frame of the private stream. ``asset``: whose balance is the wallet."""
    head = frame[:12]
    wrapped = head.startswith('{"stream"') if isinstance(head, str) else bytes(head).startswith(b'{"stream"')
    try:
        event = _decode_wrapped(frame).data if wrapped else _decode(frame)
    except msgspec.ValidationError:
        if not wrapped and (name := _name_of(frame).e) not in EVENTS:
            raise UnknownEvent(name) from None
        raise
    try:
        return _translate(event, asset)
    except InvalidOperation as error:
        raise ValueError("a number that is none") from error


def _translate(event: _Known, asset: str) -> UserEvent | KeyExpired | None:
    match event:
        case _OrderTradeUpdate():
            return _order(event.o)
        case _AccountUpdate():
            return _account(event, asset)
        case _AlgoUpdate():
            return _algo(event.o, event.T or event.E)
        case _MarginCall():
            return MarginCall(tuple(p.s for p in event.p), None if event.cw is None else Decimal(event.cw), event.E)
        case _ConfigUpdate(ac=ac, ai=ai):
            return ConfigUpdate(ac.s if ac else None, ac.l if ac else None, ai.j if ai else None, event.T)
        case _KeyExpired():
            return KeyExpired(int(event.E))
        case _:
            return None


def order_status(word: str, executed: Decimal) -> OrderStatus:
    """The venue's word; one that we do not know (NEW_ADL, NEW_INSURANCE, …) is an order that lives."""
    if word in OrderStatus.__members__:
        return OrderStatus(word)
    return OrderStatus.PARTIALLY_FILLED if executed else OrderStatus.NEW


def _order(o: _Order) -> OrderUpdate:
    executed = Decimal(o.z)
    fill: Fill | None = None
    if last := Decimal(o.l):
        fill = Fill(o.s, o.t, o.c, o.i, o.S, Decimal(o.L), last, Decimal(o.n), o.N or "", Decimal(o.rp), o.m, o.T)
    return OrderUpdate(o.s, o.c, o.i, o.S, order_status(o.X, executed), Decimal(o.q), executed, o.T, reduce_only=o.R, close_position=o.cp,
                       fill=fill, reason=EXPIRY.get(o.er, ""))


def _account(event: _AccountUpdate, asset: str) -> AccountUpdate:
    time_ms = event.T or event.E
    rows = [b for b in event.a.B if b.a == asset]
    moved = ZERO if event.a.m in _EARNED else sum((Decimal(b.bc) for b in rows), ZERO)
    positions = tuple([PositionUpdate(p.s, Decimal(p.pa), Decimal(p.ep), Decimal(p.up), p.mt.lower() == "isolated", p.ps, time_ms)
                       for p in event.a.P])
    return AccountUpdate(event.a.m, Decimal(rows[0].wb) if rows else None, moved, positions, time_ms)


def _algo(o: _Algo, time_ms: int) -> AlgoUpdate:
    status = OrderStatus(o.X) if o.X in OrderStatus.__members__ else OrderStatus.NEW
    return AlgoUpdate(o.s, o.caid, o.aid, o.S, o.o, status, Decimal(o.tp), o.cp, time_ms, Decimal(o.aq) if o.aq else ZERO, o.rm or "")
