"""Ours against theirs: what the journal believes, compared with what the venue says. Pure: it compares and reports, and repairs nothing.

Invariants: the venue is the authority on what is held; each difference has one class; what does not bear our prefix is named and never
asked to be touched; a position counts as protected by any standing stop that closes it, whoever placed that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from src.models import ZERO, AlgoUpdate, OrderUpdate, PositionUpdate, Side
from src.venue.answers import Income
from src.venue.orders import PREFIX, ours, plain

TOLERANCE = Decimal("0.01")
"""Wallet against statement, in the wallet's asset: fees are rounded per fill at the venue."""


class Kind(StrEnum):
    """The classes of difference."""

    GONE_THERE = "position is not on the venue"
    UNKNOWN_HERE = "position is not in the journal, but ours by its orders"
    SIDE = "side differs"
    QUANTITY = "quantity differs"
    STOP_MISSING = "no stop stands on the venue"
    ORPHAN_ALGO = "conditional order of ours belongs to no slot"
    ORPHAN_ORDER = "order of ours rests, and none should"
    FOREIGN_POSITION = "position is not ours: it takes a slot and is left alone"
    FOREIGN_ORDER = "order is not ours: it is left alone"
    WALLET = "wallet differs from the statement"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference. ``symbol`` is empty for the wallet. ``ours``, ``theirs``: what each side says, for a person to read."""

    kind: Kind
    symbol: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"{self.symbol or 'account'}: {self.kind} (ours {self.ours}, venue {self.theirs})"


@dataclass(frozen=True, slots=True)
class Report:
    """``positions``: held on the venue; ``matches``: positions on which both sides agree; ``foreign``: orders of others, for information."""

    positions: int
    matches: int
    mismatches: tuple[Mismatch, ...] = ()
    foreign: tuple[Mismatch, ...] = ()

    def only(self, seen_before: Iterable[tuple[Kind, str]]) -> Report:
        """Without what was not seen the time before: differences that pass are movement, not mismatch."""
        kept = set(seen_before)
        return replace(self, mismatches=tuple([m for m in self.mismatches if (m.kind, m.symbol) in kept]))

    def plus(self, mismatch: Mismatch | None) -> Report:
        return self if mismatch is None else replace(self, mismatches=(*self.mismatches, mismatch))

    def summary(self) -> str:
        return f"📊 Report: {self.matches} matches, {len(self.mismatches)} mismatches"

    def lines(self) -> list[str]:
        """What people watch for in the log, word for word, and each difference on a line of its own."""
        warning = ["⚠️ Position mismatches detected", *[f"   {m}" for m in self.mismatches]] if self.mismatches else []
        return [f"✅ Cache reconciled: {self.positions} positions on Binance", self.summary(), *warning]


@dataclass(frozen=True, slots=True)
class Held:
    """What the journal believes of one symbol: the signed amount, and the client ids of the slot's orders."""

    symbol: str
    amount: Decimal
    client_ids: frozenset[str]


def held_of(body: Mapping[str, Any]) -> Held:
    """A slot as the journal keeps it."""
    qty = Decimal(str(body["opened"])) - Decimal(str(body["left"]))
    orders = [body[name] for name in ("entry", "stop", "target", "exit") if body.get(name)]
    return Held(str(body["symbol"]), qty * Side(body["side"]).sign, frozenset([str(order["client_id"]) for order in orders]))


def compare(slots: Mapping[str, Mapping[str, Any]], positions: Sequence[PositionUpdate], guards: Sequence[AlgoUpdate],
            orders: Sequence[OrderUpdate] = (), *, prefix: str = PREFIX) -> Report:  # fmt: skip
    """``slots``: the journal's, by symbol; ``positions``, ``guards``, ``orders``: all that stand on the venue."""
    known = {symbol: held_of(body) for symbol, body in slots.items()}
    amounts: defaultdict[str, Decimal] = defaultdict(Decimal)
    for position in positions:
        amounts[position.symbol] += position.amount
    theirs = {symbol: amount for symbol, amount in amounts.items() if amount != 0}
    symbols = sorted(theirs.keys() | {symbol for symbol, held in known.items() if held.amount != 0})
    found = [m for symbol in symbols if (m := _position(symbol, known.get(symbol), theirs.get(symbol, ZERO), guards, prefix)) is not None]
    mine = {client_id for held in known.values() for client_id in held.client_ids}
    strays = [*_algos(guards, mine, prefix), *_orders(orders, mine, prefix)]
    return Report(len(theirs), len(symbols) - len(found), (*found, *[m for m in strays if m.kind is not Kind.FOREIGN_ORDER]),
                  tuple([m for m in strays if m.kind is Kind.FOREIGN_ORDER]))


def _position(symbol: str, held: Held | None, there: Decimal, guards: Sequence[AlgoUpdate], prefix: str) -> Mismatch | None:
    """The first difference of a symbol that one side holds, the graver first."""
    here = held.amount if held is not None else ZERO
    said = plain(here), plain(there)
    if here == 0:
        bears_our_mark = held is not None or any(g.symbol == symbol and ours(g.client_id, prefix) for g in guards)
        return Mismatch(Kind.UNKNOWN_HERE if bears_our_mark else Kind.FOREIGN_POSITION, symbol, *said)
    if there == 0:
        return Mismatch(Kind.GONE_THERE, symbol, *said)
    if (here > 0) != (there > 0):
        return Mismatch(Kind.SIDE, symbol, *said)
    if here != there:
        return Mismatch(Kind.QUANTITY, symbol, *said)
    if not any(_protects(guard, symbol, there) for guard in guards):
        return Mismatch(Kind.STOP_MISSING, symbol, plain(here), "none")
    return None


def _protects(guard: AlgoUpdate, symbol: str, amount: Decimal) -> bool:
    """A stop that closes the whole position, and still stands."""
    leaving = Side.SELL if amount > 0 else Side.BUY
    return (guard.symbol == symbol and guard.side is leaving and guard.close_position and guard.order_type == "STOP_MARKET"
            and not guard.status.ended)  # fmt: skip


def _algos(guards: Sequence[AlgoUpdate], mine: set[str], prefix: str) -> list[Mismatch]:
    found = []
    for guard in guards:
        what = f"{guard.order_type} {guard.client_id}"
        if not ours(guard.client_id, prefix):
            found.append(Mismatch(Kind.FOREIGN_ORDER, guard.symbol, "none", what))
        elif guard.client_id not in mine:
            found.append(Mismatch(Kind.ORPHAN_ALGO, guard.symbol, "none", what))
    return found


def _orders(orders: Sequence[OrderUpdate], mine: set[str], prefix: str) -> list[Mismatch]:
    found = []
    for order in orders:
        what = f"{order.side} {plain(order.qty)} {order.client_id}"
        if not ours(order.client_id, prefix):
            found.append(Mismatch(Kind.FOREIGN_ORDER, order.symbol, "none", what))
        elif order.client_id not in mine:
            found.append(Mismatch(Kind.ORPHAN_ORDER, order.symbol, "none", what))
    return found


def wallet_check(start_wallet: Decimal, incomes: Iterable[Income], wallet: Decimal, *, asset: str = "USDT",
                 tolerance: Decimal = TOLERANCE) -> Mismatch | None:  # fmt: skip
    """Wallet = start + realised + commission + funding + transfers, by the venue's own statement since the start."""
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in incomes:
        if row.asset == asset:
            sums[row.kind] += row.amount
    expected = start_wallet + sum(sums.values(), ZERO)
    if abs(expected - wallet) <= tolerance:
        return None
    parts = ", ".join(f"{kind} {amount:+f}" for kind, amount in sorted(sums.items())) or "no rows"
    return Mismatch(Kind.WALLET, "", f"{plain(start_wallet)} with {parts} = {plain(expected)}", plain(wallet))
