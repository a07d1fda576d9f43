"""The words of the trade: immutable values that the organs hand to each other.

Prices, quantities and money are ``Decimal`` in the venue's steps. Times ending in ``_ms`` are market time (milliseconds since 1970),
those ending in ``_ns`` are wall time (CLOCK_MONOTONIC). ``Candle`` alone is mutable, and pooled: it never outlives one synchronous call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar

ZERO = Decimal(0)


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"

    @property
    def sign(self) -> int:
        return 1 if self is Side.BUY else -1

    @property
    def opposite(self) -> Side:
        return Side.SELL if self is Side.BUY else Side.BUY


class Role(StrEnum):
    """What an order of ours is for. The value is the last letter of its client id."""

    ENTRY = "e"
    STOP = "s"
    TARGET = "t"
    EXIT = "x"


class OrderStatus(StrEnum):
    """The venue's words, for plain and algo orders alike."""

    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    EXPIRED_IN_MATCH = "EXPIRED_IN_MATCH"
    REJECTED = "REJECTED"
    TRIGGERING = "TRIGGERING"
    TRIGGERED = "TRIGGERED"
    FINISHED = "FINISHED"

    @property
    def ended(self) -> bool:
        return self not in (OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED, OrderStatus.TRIGGERING, OrderStatus.TRIGGERED)


class Candle:
    """The owner's pooled candle: ``Candle.acquire(...)``, use it inside one synchronous call, ``release()``. Nothing may keep it."""

    __slots__ = ("close", "high", "low", "open", "symbol", "time_ms", "volume")
    _pool: ClassVar[list[Candle]] = []
    POOL_MAX = 1024

    symbol: str
    time_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float

    @classmethod
    def acquire(cls, symbol: str, time_ms: int, prices: tuple[float, float, float, float], volume: float) -> Candle:
        candle = cls._pool.pop() if cls._pool else cls()
        candle.symbol, candle.time_ms, candle.volume = symbol, time_ms, volume
        candle.open, candle.high, candle.low, candle.close = prices
        return candle

    def release(self) -> None:
        if len(self._pool) < self.POOL_MAX:
            self._pool.append(self)

    def to_dict(self) -> dict[str, str | int | float]:
        return {name: getattr(self, name) for name in ("symbol", "time_ms", "open", "high", "low", "close", "volume")}


@dataclass(frozen=True, slots=True)
class SymbolRules:
    """What the venue allows for one symbol (``exchangeInfo``). ``tick``, ``step``: the grid of prices and quantities.

    ``band_up``, ``band_down``: a limit price may lie between mark × band_down and mark × band_up (PERCENT_PRICE).
    """

    symbol: str
    tick: Decimal
    step: Decimal
    min_qty: Decimal
    max_qty: Decimal
    market_max_qty: Decimal
    min_notional: Decimal
    band_up: Decimal
    band_down: Decimal
    status: str = "TRADING"
    contract_type: str = "PERPETUAL"
    quote: str = "USDT"
    onboard_ms: int = 0
    delivery_ms: int = 4_133_404_800_000

    @property
    def tradable(self) -> bool:
        return self.status == "TRADING"


@dataclass(frozen=True, slots=True)
class Signal:
    """A setup whose entry level was just crossed, with the confidence of who judged it. ``source``: ``teacher`` or ``student:<hash>``.

    ``entry``, ``stop``, ``target``: prices. ``limit_ms``: the position is closed at this market time at the latest. ``time_ms``: venue
    time of the trade that crossed. ``received_ns``: when that trade's frame reached the Feed. ``bid``, ``ask``: best prices at that time.
    """

    setup_id: int
    symbol: str
    side: Side
    entry: float
    stop: float
    target: float
    limit_ms: int
    confidence: float
    source: str
    time_ms: int
    received_ns: int
    bid: float
    ask: float
    parts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Quote:
    """What the Brain knows of a symbol's market now, each part with its age in milliseconds of market time."""

    bid: float
    ask: float
    mark: float
    last: float
    quote_age_ms: float
    mark_age_ms: float
    trade_age_ms: float
    tradable: bool


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution of one order of ours. ``trade_id`` with ``symbol`` names it uniquely. ``realised`` excludes the commission."""

    symbol: str
    trade_id: int
    client_id: str
    order_id: int
    side: Side
    price: Decimal
    qty: Decimal
    commission: Decimal
    commission_asset: str
    realised: Decimal
    maker: bool
    time_ms: int


@dataclass(frozen=True, slots=True)
class OrderUpdate:
    """What the venue says of a plain order: from the user stream, an answer, or a query (then ``fill`` is None)."""

    symbol: str
    client_id: str
    order_id: int
    side: Side
    status: OrderStatus
    qty: Decimal
    executed: Decimal
    time_ms: int
    reduce_only: bool = False
    close_position: bool = False
    fill: Fill | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AlgoUpdate:
    """What the venue says of a conditional order. ``executed``: quantity filled by the order it spawned."""

    symbol: str
    client_id: str
    algo_id: int
    side: Side
    order_type: str
    status: OrderStatus
    trigger_price: Decimal
    close_position: bool
    time_ms: int
    executed: Decimal = ZERO
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PositionUpdate:
    """The venue's view of one position. ``amount`` is signed; ``isolated`` False means cross margin."""

    symbol: str
    amount: Decimal
    entry_price: Decimal
    unrealised: Decimal
    isolated: bool
    position_side: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class AccountUpdate:
    """Changed balances and positions. ``wallet`` is None where no USDT row came. ``reason``: the venue's word (ORDER, FUNDING_FEE, …).

    ``transfer``: the balance change that is neither profit nor commission (deposit, withdrawal), which no loss limit may count.
    """

    reason: str
    wallet: Decimal | None
    transfer: Decimal
    positions: tuple[PositionUpdate, ...]
    time_ms: int


@dataclass(frozen=True, slots=True)
class Position:
    """What a slot holds: the owner's position metadata. ``commission``: paid so far; ``total_cost``: with what closing will cost."""

    symbol: str
    side: Side
    qty: Decimal
    entry_price: Decimal
    entry_confidence: float
    confidence_source: str
    entry_time_ms: int
    commission: Decimal
    total_cost: Decimal
    realised: Decimal = ZERO

    def unrealised(self, price: Decimal) -> Decimal:
        return (price - self.entry_price) * self.qty * self.side.sign


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """A position from first to last fill. ``realised`` before, ``net`` after commission; funding is apart."""

    symbol: str
    side: Side
    qty: Decimal
    entry_price: Decimal
    exit_price: Decimal
    entry_time_ms: int
    exit_time_ms: int
    realised: Decimal
    commission: Decimal
    confidence: float
    source: str
    reason: str

    @property
    def net(self) -> Decimal:
        return self.realised - self.commission


@dataclass(frozen=True, slots=True)
class Account:
    """Wallet and positions as the venue last said. Equity = wallet + unrealised. ``as_of_ms``: market time of the newest word."""

    wallet: Decimal
    unrealised: Decimal
    positions: tuple[PositionUpdate, ...] = field(default_factory=tuple)
    as_of_ms: int = 0

    @property
    def equity(self) -> Decimal:
        return self.wallet + self.unrealised
