"""Deposits and withdrawals, each counted once, whoever tells it: the user stream, the account's statement, or both in either order.

The stream replays nothing, so what was moved while it was down stands in the statement alone. A row of the statement has an id and is
counted by it; what the stream tells has none, and is the row of the same amount at nearly the same time. Equal ones within that time cannot
be told apart, and need not be: there are as many as there are rows. Pure: times are the venue's, handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from src.models import ZERO
from src.venue.answers import Income

KIND = "TRANSFER"
NEAR_MS = 2_000
"""So far apart may be what the stream and the statement say of one transfer."""
OVERLAP_MS = 60_000
"""So far before the last one a statement is read again: its rows may come late, and clocks differ."""
AHEAD_MS = 5_000
"""And so far beyond what we take for now."""
TOLD_MAX = 100
"""Of more that were told, the statement is read, so that they need not be remembered."""


@dataclass(slots=True)
class Told:
    """By the user stream; no row of the statement has been found for it yet."""

    amount: Decimal
    time_ms: int


@dataclass(slots=True)
class Stated:
    """A row of the statement. ``told``: by the stream too."""

    number: int
    amount: Decimal
    time_ms: int
    told: bool


@dataclass(slots=True)
class Transfers:
    """``known_ms``: the statement is known up to there; -1: it was never read."""

    known_ms: int = -1
    told: list[Told] = field(default_factory=list)
    stated: list[Stated] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.told) >= TOLD_MAX

    def from_ms(self, now_ms: int) -> int:
        """Where the next statement must begin."""
        return max(0, (now_ms if self.known_ms < 0 else min(self.known_ms, now_ms)) - OVERLAP_MS)

    def tell(self, amount: Decimal, time_ms: int) -> Decimal:
        """What the user stream says. Returns what of it is to be counted now."""
        same = [row for row in self.stated if not row.told and row.amount == amount]
        row = _nearest(same, time_ms)
        if row is not None:
            row.told = True
            return ZERO
        self.told.append(Told(amount, time_ms))
        return amount

    def read(self, rows: Iterable[Income], now_ms: int) -> Decimal:
        """A statement from ``from_ms`` to now. Returns what of it is to be counted now: at the very first nothing, since what was moved before
        is part of what was found."""
        first, total = self.known_ms < 0, ZERO
        known = {row.number for row in self.stated}
        for row in sorted(rows, key=lambda row: row.time_ms):
            if row.kind != KIND or row.asset != "USDT" or row.transaction_id in known:
                continue
            told = _nearest([t for t in self.told if t.amount == row.amount], row.time_ms)
            if told is not None:
                self.told.remove(told)
            elif not first:
                total += row.amount
            self.stated.append(Stated(row.transaction_id, row.amount, row.time_ms, told is not None))
        self.known_ms = now_ms
        self._forget(self.from_ms(now_ms))
        return total

    def _forget(self, from_ms: int) -> None:
        """What no statement to come has a row of."""
        self.stated = [row for row in self.stated if row.time_ms >= from_ms]
        self.told = [told for told in self.told if told.time_ms >= from_ms - NEAR_MS]

    def memory(self) -> dict[str, Any]:
        return {"known_ms": self.known_ms, "told": [[str(t.amount), t.time_ms] for t in self.told],
                "stated": [[r.number, str(r.amount), r.time_ms, r.told] for r in self.stated]}  # fmt: skip

    def recall(self, memory: dict[str, Any]) -> None:
        self.known_ms = int(memory["known_ms"])
        self.told = [Told(Decimal(amount), int(time_ms)) for amount, time_ms in memory["told"]]
        self.stated = [Stated(int(number), Decimal(amount), int(time_ms), bool(told)) for number, amount, time_ms, told in memory["stated"]]


T = TypeVar("T", Told, Stated)


def _nearest(found: Sequence[T], time_ms: int) -> T | None:
    """Of those that are near enough."""
    near = [one for one in found if abs(one.time_ms - time_ms) <= NEAR_MS]
    return min(near, key=lambda one: abs(one.time_ms - time_ms), default=None)
