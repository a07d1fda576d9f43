"""What a slot is: its states, its orders, the actions it asks for, and its memory in the journal.

    EMPTY ──approved──► OPENING ──fill──► OPEN ──exit wanted, flat──► CLOSING ──freed──► EMPTY
                           └──entry dead──► EMPTY

``TRANSITIONS`` is the whole table; what is not in it is a bug. Actions are immutable: the shell journals them, carries them out, and
answers with events to ``portfolio``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from src.models import ZERO, ClosedTrade, Fill, Position, Role, Side
from src.risk import Approved

MS_NS = 1_000_000
GUARDS = (Role.STOP, Role.TARGET)


class State(StrEnum):
    EMPTY = "empty"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class Event(StrEnum):
    APPROVED = "approved"
    FILL = "fill"
    ENTRY_DEAD = "entry dead"
    EXIT_WANTED = "exit wanted"
    FLAT = "flat"
    ADOPTED = "adopted"
    FREED = "freed"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.EMPTY, Event.APPROVED): State.OPENING,
    (State.EMPTY, Event.ADOPTED): State.OPEN,  # a restart, or an entry that was given up and executed after all
    (State.OPENING, Event.FILL): State.OPEN,
    (State.OPENING, Event.ENTRY_DEAD): State.EMPTY,
    (State.OPENING, Event.EXIT_WANTED): State.CLOSING,  # the daemon stops
    (State.OPENING, Event.ADOPTED): State.OPEN,  # its fills are not told yet, but the venue says that it executed
    (State.OPENING, Event.FLAT): State.CLOSING,  # it never executed, but a stop was put up in advance and has to go
    (State.OPEN, Event.FILL): State.OPEN,  # the entry's later fills, and a stop that fills in parts
    (State.OPEN, Event.ADOPTED): State.OPEN,
    (State.OPEN, Event.EXIT_WANTED): State.CLOSING,
    (State.OPEN, Event.FLAT): State.CLOSING,  # the stop or the target filled: the sibling is still to go
    (State.CLOSING, Event.FILL): State.CLOSING,  # an entry's fill may arrive after we asked to leave
    (State.CLOSING, Event.EXIT_WANTED): State.CLOSING,
    (State.CLOSING, Event.FLAT): State.CLOSING,
    (State.CLOSING, Event.ADOPTED): State.CLOSING,
    (State.CLOSING, Event.FREED): State.EMPTY,
}


class Word(StrEnum):
    """How far we know of an order: ``sent`` (no answer yet), ``live``, ``unknown`` (ask), ``gone`` (ended or never was)."""

    SENT = "sent"
    LIVE = "live"
    UNKNOWN = "unknown"
    GONE = "gone"


@dataclass(slots=True)
class Order:
    """What a slot knows of one of its orders.

    ``filled``: the fills that we have seen; ``told``: what the venue says it executed, which its fills follow. ``absent``: how often it was
    asked for in vain. ``cancel_ns``: when we last asked to cancel it. ``firing_ns``: since when a guard's trigger is reached and the guard
    has not ended. ``theirs``: a guard that somebody else put up: it protects, and is never touched.
    """

    client_id: str
    word: Word
    sent_ns: int
    price: Decimal = ZERO
    qty: Decimal = ZERO
    filled: Decimal = ZERO
    told: Decimal = ZERO
    asked_ns: int = 0
    absent: int = 0
    cancel_ns: int = 0
    firing_ns: int = 0
    theirs: bool = False

    @property
    def owed(self) -> Decimal:
        """Executed, and its fills not seen."""
        return max(ZERO, self.told - self.filled)


@dataclass(slots=True)
class Slot:
    """One symbol held or in flight. ``qty`` is what we hold now; ``opened``/``left`` sum the fills on each side of it.

    ``by_order``: the filled quantity by the venue's order number, which all its words on a fill carry. ``floor``: trades up to this id are
    of the time before the slot. ``missing_ns``: since when the venue's amount differs from ours.
    """

    symbol: str
    side: Side
    state: State
    stop_price: Decimal
    target_price: Decimal
    limit_ms: int
    confidence: float
    source: str
    made_ms: int
    entry: Order
    stop: Order | None = None
    target: Order | None = None
    exit: Order | None = None
    opened: Decimal = ZERO
    paid: Decimal = ZERO
    left: Decimal = ZERO
    earned: Decimal = ZERO
    realised: Decimal = ZERO
    commission: Decimal = ZERO
    entry_time_ms: int = 0
    naked_since_ns: int = 0
    reason: str = ""
    trades: set[int] = field(default_factory=set)
    by_order: dict[int, Decimal] = field(default_factory=dict)
    floor: int = 0
    missing_ns: int = 0
    exit_ns: int = 0
    exits: int = 0
    odd_ns: int = 0
    odd_amount: Decimal = ZERO

    @property
    def qty(self) -> Decimal:
        return self.opened - self.left

    @property
    def at_stake(self) -> Decimal:
        """What the venue holds for us: what we have seen filled, and what we were told of."""
        return self.qty + self.entry.owed

    @property
    def at_most(self) -> Decimal:
        """What may be held once the entry has ended: while it has not, the rest of it may fill at any moment."""
        return self.at_stake if self.entry.word is Word.GONE else max(self.at_stake, self.qty + self.entry.qty - self.entry.filled)

    @property
    def entry_price(self) -> Decimal:
        return self.paid / self.opened if self.opened else ZERO

    @property
    def protected(self) -> bool:
        """A stop stands: ours, as the venue said, or somebody else's, for which ours was refused."""
        return self.stop is not None and (self.stop.word is Word.LIVE or (self.stop.theirs and self.stop.word is Word.UNKNOWN))

    def orders(self) -> list[Order]:
        return [o for o in (self.entry, self.stop, self.target, self.exit) if o is not None]

    def count(self, fill: Fill) -> None:
        """One more fill of this symbol."""
        self.trades.add(fill.trade_id)
        self.by_order[fill.order_id] = self.by_order.get(fill.order_id, ZERO) + fill.qty
        self.entry_time_ms = self.entry_time_ms or fill.time_ms
        if fill.side is self.side:
            self.opened += fill.qty
            self.paid += fill.qty * fill.price
        else:
            self.left += fill.qty
            self.earned += fill.qty * fill.price
        self.realised += fill.realised
        self.commission += fill.commission
        for order in self.orders():
            if order.client_id == fill.client_id:
                order.filled = max(order.filled, self.by_order[fill.order_id])

    def position(self, taker_rate: Decimal) -> Position:
        """The owner's metadata of a position."""
        closing = self.qty * self.entry_price * taker_rate
        return Position(self.symbol, self.side, self.qty, self.entry_price, self.confidence, self.source, self.entry_time_ms,
                        self.commission, self.commission + closing, self.realised)  # fmt: skip

    def net_profit(self, price: Decimal, taker_rate: Decimal) -> Decimal:
        """What closing at ``price`` would leave after both commissions. 0 where no price is known."""
        if price <= 0:
            return ZERO
        gross = self.realised + (price - self.entry_price) * self.qty * self.side.sign
        return gross - self.commission - self.qty * price * taker_rate

    def closed_trade(self, now_ms: int) -> ClosedTrade:
        """Of a slot that has left all it had."""
        return ClosedTrade(self.symbol, self.side, self.opened, self.entry_price, self.earned / self.left, self.entry_time_ms, now_ms,
                           self.realised, self.commission, self.confidence, self.source, self.reason)  # fmt: skip

    def guard(self, role: Role) -> Order | None:
        return self.stop if role is Role.STOP else self.target

    def role_of(self, order: Order) -> Role:
        known = {id(self.entry): Role.ENTRY, id(self.stop): Role.STOP, id(self.target): Role.TARGET}
        return known.get(id(order), Role.EXIT)


# Actions. The shell journals them, carries them out, and answers with events.


@dataclass(frozen=True, slots=True)
class SendEntry:
    approved: Approved
    client_id: str


@dataclass(frozen=True, slots=True)
class SendGuard:
    """``again``: the same order once more, since no answer came; it cannot add exposure, and stands at most once."""

    symbol: str
    side: Side
    role: Role
    price: Decimal
    client_id: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class SendExit:
    """``again``: the slot's earlier exit did not do it."""

    symbol: str
    side: Side
    qty: Decimal
    client_id: str
    reason: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class CancelGuard:
    symbol: str
    client_id: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Query an order (``role`` says which service; no id, no order), and what else the venue says of the symbol: for a guard all guards that
    stand there, otherwise its position and its trades, from ``first_trade`` on or, where that is 0, since ``since_ms``."""

    symbol: str
    client_id: str
    role: Role
    since_ms: int = 0
    first_trade: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    position: Position


@dataclass(frozen=True, slots=True)
class Closed:
    trade: ClosedTrade


@dataclass(frozen=True, slots=True)
class Died:
    """An intent that ended without a position."""

    symbol: str
    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A slot's new state, to be stored and logged."""

    symbol: str
    state: State
    event: Event
    reason: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the slots wait before they do something about it, in wall nanoseconds."""

    answer_ns: int = 700 * MS_NS
    """An order without a word is asked after."""
    ask_ns: int = 1_000 * MS_NS
    """What is unknown is asked after again."""
    fills_ns: int = 500 * MS_NS
    """Executed, as we were told, or held, as the venue says: its fills are fetched when they have not come by then."""
    absent_ns: int = 10_000 * MS_NS
    """The venue's reads lag: 'it does not exist' counts only when it is said, by two sources, over this long."""
    lookup_ns: int = 10_000 * MS_NS
    """An open position's stop is looked up on the venue this often."""
    exit_again_ns: int = 1_500 * MS_NS
    twice_ns: int = 3_000 * MS_NS
    stop_again_ns: int = 400 * MS_NS
    """A stop that was refused, or has no answer, is sent again; only until the naked limit."""
    target_again_ns: int = 5_000 * MS_NS


Action = SendEntry | SendGuard | SendExit | CancelGuard | Ask | Opened | Closed | Died | Changed


def symbol_of(action: Action) -> str:
    """The symbol whose slot an action is about."""
    match action:
        case SendEntry(approved):
            return approved.symbol
        case Opened(position):
            return position.symbol
        case Closed(trade):
            return trade.symbol
    return action.symbol


def must_leave(slot: Slot, now_ns: int, now_ms: int, naked_ns: int) -> str:
    """Why an open position has to be closed now; empty where it may stay."""
    if not slot.protected and now_ns - slot.naked_since_ns > naked_ns:
        return "naked"
    if now_ms >= slot.limit_ms:
        return "time limit"
    for role in GUARDS:
        guard = slot.guard(role)
        if guard is not None and guard.word is Word.LIVE and guard.firing_ns and now_ns - guard.firing_ns > naked_ns:
            return f"{role.name.lower()} triggered and did not execute"
    return ""


def overdue(slot: Slot, order: Order, now_ns: int, wait: Patience) -> bool:
    """Whether it is time to ask after an order."""
    guard = slot.role_of(order) in GUARDS
    wait_ns = {Word.SENT: wait.answer_ns, Word.UNKNOWN: wait.ask_ns, Word.LIVE: wait.exit_again_ns, Word.GONE: 0}[order.word]
    if guard and order.word is Word.LIVE and not order.cancel_ns:
        wait_ns = wait.lookup_ns
    if not guard and order.owed > 0:
        wait_ns = wait.fills_ns
    since = order.asked_ns if guard and order.asked_ns else max(order.sent_ns, order.asked_ns)
    return order.word is not Word.GONE and now_ns - since > wait_ns


def remember(slot: Slot) -> dict[str, Any]:
    """A slot as plain values, for the journal."""
    names = ("symbol", "side", "state", "stop_price", "target_price", "limit_ms", "confidence", "source", "opened", "paid", "left",
             "earned", "realised", "commission", "made_ms", "entry_time_ms", "reason", "floor")  # fmt: skip
    body = {n: str(getattr(slot, n)) if isinstance(getattr(slot, n), Decimal) else getattr(slot, n) for n in names}
    orders = {n: _remember_order(getattr(slot, n)) for n in ("entry", "stop", "target", "exit")}
    return body | orders | {"trades": sorted(slot.trades), "by_order": {str(number): str(qty) for number, qty in slot.by_order.items()}}


def _remember_order(order: Order | None) -> dict[str, Any] | None:
    return None if order is None else {"client_id": order.client_id, "word": order.word, "price": str(order.price), "qty": str(order.qty),
                                      "filled": str(order.filled), "theirs": order.theirs}


def recall(body: dict[str, Any], now_ns: int) -> Slot:
    """The slot that ``remember`` wrote. What was live or in flight is unknown now: the venue is asked."""

    def order(name: str) -> Order | None:
        row = body[name]
        if row is None:
            return None
        word = Word.GONE if row["word"] == Word.GONE.value else Word.UNKNOWN
        return Order(row["client_id"], word, now_ns, Decimal(row["price"]), Decimal(row["qty"]), Decimal(row["filled"]),
                     theirs=bool(row.get("theirs")))

    entry = order("entry")
    assert entry is not None, "a slot without an entry"
    values: dict[str, Any] = {n: body[n] for n in ("symbol", "limit_ms", "made_ms", "confidence", "source", "entry_time_ms", "reason")}
    values |= {n: Decimal(body[n]) for n in ("stop_price", "target_price", "opened", "paid", "left", "earned", "realised", "commission")}
    values |= {n: order(n) for n in ("stop", "target", "exit")}
    by_order = {int(number): Decimal(qty) for number, qty in body.get("by_order", {}).items()}
    return Slot(side=Side(body["side"]), state=State(body["state"]), entry=entry, trades=set(body["trades"]), by_order=by_order,
                floor=int(body.get("floor", 0)), **values)
