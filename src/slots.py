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

from src.models import ZERO, ClosedTrade, Position, Role, Side
from src.risk import Approved


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
    (State.EMPTY, Event.ADOPTED): State.OPEN,
    (State.OPENING, Event.FILL): State.OPEN,
    (State.OPENING, Event.ENTRY_DEAD): State.EMPTY,
    (State.OPENING, Event.EXIT_WANTED): State.CLOSING,  # the entry rests where it should not, or the daemon stops
    (State.OPENING, Event.ADOPTED): State.OPEN,  # the answer never came, but the position is there
    (State.OPEN, Event.FILL): State.OPEN,  # the entry's later fills, and a stop that fills in parts
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
    """What a slot knows of one of its orders."""

    client_id: str
    word: Word
    sent_ns: int
    price: Decimal = ZERO
    qty: Decimal = ZERO
    filled: Decimal = ZERO
    asked_ns: int = 0
    absent: int = 0
    cancelling: bool = False


@dataclass(slots=True)
class Slot:
    """One symbol held or in flight. ``qty`` is what we hold now; ``opened``/``left`` sum the fills on each side of it."""

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
    missing_ns: int = 0
    exit_ns: int = 0
    odd_ns: int = 0
    odd_amount: Decimal = ZERO

    @property
    def qty(self) -> Decimal:
        return self.opened - self.left

    @property
    def entry_price(self) -> Decimal:
        return self.paid / self.opened if self.opened else ZERO

    @property
    def protected(self) -> bool:
        return self.stop is not None and self.stop.word is Word.LIVE

    def orders(self) -> list[Order]:
        return [o for o in (self.entry, self.stop, self.target, self.exit) if o is not None]


# Actions. The shell journals them, carries them out, and answers with events.


@dataclass(frozen=True, slots=True)
class SendEntry:
    approved: Approved
    client_id: str


@dataclass(frozen=True, slots=True)
class SendGuard:
    symbol: str
    side: Side
    role: Role
    price: Decimal
    client_id: str


@dataclass(frozen=True, slots=True)
class SendExit:
    symbol: str
    side: Side
    qty: Decimal
    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelGuard:
    symbol: str
    client_id: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Query an order (``role`` says which service) and, for an entry or exit, the symbol's position and trades since ``since_ms``."""

    symbol: str
    client_id: str
    role: Role
    since_ms: int


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


Action = SendEntry | SendGuard | SendExit | CancelGuard | Ask | Opened | Closed | Died | Changed


def remember(slot: Slot) -> dict[str, Any]:
    """A slot as plain values, for the journal."""
    names = ("symbol", "side", "state", "stop_price", "target_price", "limit_ms", "confidence", "source", "opened", "paid", "left",
             "earned", "realised", "commission", "made_ms", "entry_time_ms", "reason")  # fmt: skip
    body = {n: str(getattr(slot, n)) if isinstance(getattr(slot, n), Decimal) else getattr(slot, n) for n in names}
    orders = {n: _remember_order(getattr(slot, n)) for n in ("entry", "stop", "target", "exit")}
    return body | orders | {"trades": sorted(slot.trades)}


def _remember_order(order: Order | None) -> dict[str, Any] | None:
    return None if order is None else {"client_id": order.client_id, "word": order.word, "price": str(order.price),
                                      "qty": str(order.qty), "filled": str(order.filled)}


def recall(body: dict[str, Any], now_ns: int) -> Slot:
    """The slot that ``remember`` wrote. What was live or in flight is unknown now: the venue is asked."""

    def order(name: str) -> Order | None:
        row = body[name]
        if row is None:
            return None
        word = Word.GONE if row["word"] == Word.GONE.value else Word.UNKNOWN
        return Order(row["client_id"], word, now_ns, Decimal(row["price"]), Decimal(row["qty"]), Decimal(row["filled"]))

    entry = order("entry")
    assert entry is not None, "a slot without an entry"
    values: dict[str, Any] = {n: body[n] for n in ("symbol", "limit_ms", "made_ms", "confidence", "source", "entry_time_ms", "reason")}
    values |= {n: Decimal(body[n]) for n in ("stop_price", "target_price", "opened", "paid", "left", "earned", "realised", "commission")}
    values |= {n: order(n) for n in ("stop", "target", "exit")}
    return Slot(side=Side(body["side"]), state=State(body["state"]), entry=entry, trades=set(body["trades"]), **values)
