"""Orders, algo orders, fills, income rows, and the tables of the two order lives.

Invariants: a status changes only through :func:`step` and :func:`algo_step`, which refuse what the tables do not name; ``executed`` never
exceeds ``qty``; ``quote`` is the sum of price times quantity over the order's fills. All of it is plain data that the books can write.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

import msgspec

ZERO = Decimal(0)
E8 = Decimal("0.00000001")


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"

    @property
    def sign(self) -> int:
        return 1 if self is Side.BUY else -1

    @property
    def opposite(self) -> Side:
        return Side.SELL if self is Side.BUY else Side.BUY


class PositionSide(StrEnum):
    BOTH = "BOTH"
    LONG = "LONG"
    SHORT = "SHORT"


def hedge_closing(position_side: PositionSide, side: Side) -> bool:
    """Whether an order of that side closes that hedge-mode position."""
    return position_side is not PositionSide.BOTH and (position_side is PositionSide.LONG) == (side is Side.SELL)


class OrderStatus(StrEnum):
    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    EXPIRED_IN_MATCH = "EXPIRED_IN_MATCH"


class OrderEvent(StrEnum):
    FILL_PART = "FILL_PART"
    FILL_ALL = "FILL_ALL"
    AMEND = "AMEND"
    CANCEL = "CANCEL"
    EXPIRE = "EXPIRE"
    EXPIRE_IN_MATCH = "EXPIRE_IN_MATCH"


_NEW, _PART = OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED
ORDER_LIFE: dict[tuple[OrderStatus, OrderEvent], OrderStatus] = {
    (_NEW, OrderEvent.FILL_PART): _PART,
    (_NEW, OrderEvent.FILL_ALL): OrderStatus.FILLED,
    (_NEW, OrderEvent.AMEND): _NEW,
    (_NEW, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (_NEW, OrderEvent.EXPIRE): OrderStatus.EXPIRED,
    (_NEW, OrderEvent.EXPIRE_IN_MATCH): OrderStatus.EXPIRED_IN_MATCH,
    (_PART, OrderEvent.FILL_PART): _PART,
    (_PART, OrderEvent.FILL_ALL): OrderStatus.FILLED,
    (_PART, OrderEvent.AMEND): _PART,
    (_PART, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (_PART, OrderEvent.EXPIRE): OrderStatus.EXPIRED,
    (_PART, OrderEvent.EXPIRE_IN_MATCH): OrderStatus.EXPIRED_IN_MATCH,
}
OPEN = frozenset({_NEW, _PART})


class AlgoStatus(StrEnum):
    NEW = "NEW"
    TRIGGERING = "TRIGGERING"
    TRIGGERED = "TRIGGERED"
    FINISHED = "FINISHED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    REJECTED = "REJECTED"


class AlgoEvent(StrEnum):
    ACTIVATE = "ACTIVATE"
    TRIGGER = "TRIGGER"
    SPAWN = "SPAWN"
    FINISH = "FINISH"
    CANCEL = "CANCEL"
    EXPIRE = "EXPIRE"
    REJECT = "REJECT"
    VANISH = "VANISH"


ALGO_LIFE: dict[tuple[AlgoStatus, AlgoEvent], AlgoStatus] = {
    (AlgoStatus.NEW, AlgoEvent.ACTIVATE): AlgoStatus.NEW,
    (AlgoStatus.NEW, AlgoEvent.TRIGGER): AlgoStatus.TRIGGERING,
    (AlgoStatus.NEW, AlgoEvent.CANCEL): AlgoStatus.CANCELED,
    (AlgoStatus.NEW, AlgoEvent.EXPIRE): AlgoStatus.EXPIRED,
    (AlgoStatus.NEW, AlgoEvent.VANISH): AlgoStatus.CANCELED,  # by a fault: nobody is told, and nobody finds it any more
    (AlgoStatus.TRIGGERING, AlgoEvent.SPAWN): AlgoStatus.TRIGGERED,
    (AlgoStatus.TRIGGERING, AlgoEvent.REJECT): AlgoStatus.REJECTED,
    (AlgoStatus.TRIGGERING, AlgoEvent.EXPIRE): AlgoStatus.EXPIRED,  # the position closed between trigger and book
    (AlgoStatus.TRIGGERED, AlgoEvent.FINISH): AlgoStatus.FINISHED,
}
ALGO_OPEN = frozenset({AlgoStatus.NEW, AlgoStatus.TRIGGERING})


class Order(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One order of the matching engine. ``symbol`` is an index; ``queue_steps`` is the size in front of it at its price."""

    id: int
    account: int
    symbol: int
    client_id: str
    side: Side
    type: str
    position_side: PositionSide
    tif: str
    price: Decimal
    qty: Decimal
    ticks: int
    created_ms: int
    updated_ms: int
    reduce_only: bool = False
    close_position: bool = False
    orig_type: str = ""
    stop_price: Decimal = ZERO
    working_type: str = "CONTRACT_PRICE"
    price_protect: bool = False
    price_match: str = "NONE"
    stp: str = "EXPIRE_MAKER"
    gtd_ms: int = 0
    status: OrderStatus = OrderStatus.NEW
    executed: Decimal = ZERO
    quote: Decimal = ZERO
    queue_steps: int = 0
    modified: int = 0
    algo_id: int = 0
    expire_reason: int = 0

    @property
    def remaining(self) -> Decimal:
        return self.qty - self.executed

    @property
    def reducing(self) -> bool:
        """Whether it can only reduce: reduceOnly, or a hedge-mode order that closes its side."""
        return self.reduce_only or hedge_closing(self.position_side, self.side)

    @property
    def average(self) -> Decimal:
        return self.quote / self.executed if self.executed else ZERO

    @property
    def open(self) -> bool:
        return self.status in OPEN


class AlgoOrder(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One conditional order of the algo service. ``best_ticks``: the trailing extreme since activation."""

    id: int
    account: int
    symbol: int
    client_id: str
    side: Side
    type: str
    position_side: PositionSide
    tif: str
    qty: Decimal
    price: Decimal
    trigger_price: Decimal
    created_ms: int
    updated_ms: int
    working_type: str = "CONTRACT_PRICE"
    close_position: bool = False
    price_protect: bool = False
    reduce_only: bool = False
    price_match: str = "NONE"
    stp: str = "EXPIRE_MAKER"
    gtd_ms: int = 0
    activate_price: Decimal = ZERO
    callback_rate: Decimal = ZERO
    active: bool = False
    best: Decimal = ZERO
    status: AlgoStatus = AlgoStatus.NEW
    trigger_ms: int = 0
    order_id: int = 0
    reason: str = ""
    lost: bool = False

    @property
    def family(self) -> str:
        return "TAKE_PROFIT" if self.type.startswith("TAKE_PROFIT") else "STOP"

    @property
    def open(self) -> bool:
        return self.status in ALGO_OPEN


class Fill(msgspec.Struct, kw_only=True, frozen=True):
    """One trade of ours. ``realised`` excludes commission; ``commission`` is what was paid."""

    id: int
    order_id: int
    account: int
    symbol: int
    side: Side
    position_side: PositionSide
    price: Decimal
    qty: Decimal
    realised: Decimal
    commission: Decimal
    maker: bool
    time_ms: int

    @property
    def quote(self) -> Decimal:
        return self.price * self.qty


class Income(msgspec.Struct, kw_only=True, frozen=True):
    """One change of a wallet, as the income endpoint lists it. ``symbol`` is an index, -1 for none."""

    id: int
    account: int
    symbol: int
    type: str
    amount: Decimal
    time_ms: int
    info: str = ""
    trade_id: str = ""


def step(order: Order, event: OrderEvent) -> None:
    """The one door through which an order changes its status."""
    order.status = ORDER_LIFE[order.status, event]


def algo_step(algo: AlgoOrder, event: AlgoEvent) -> None:
    """The one door through which an algo order changes its status."""
    algo.status = ALGO_LIFE[algo.status, event]


def q8(amount: Decimal) -> Decimal:
    """Money as it is booked: eight decimals."""
    return amount.quantize(E8)
