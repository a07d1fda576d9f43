"""What the account holds, as the venue last said it, by whichever way that came.

The user stream tells changes in their order; queries read everything, but an answer may be older than what was told while it was on its
way. Invariant: of a wallet or a symbol the newest word counts. Pure: times are handed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from src.models import ZERO, Account, AccountUpdate, PositionUpdate

WALLET = ""


class AccountView:
    """``account``: wallet and positions; ``known`` once all of it was read. Moments are nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.account = Account(ZERO, ZERO)
        self.known = False
        self._told_ns: dict[str, int] = {}

    def tell(self, update: AccountUpdate, now_ns: int) -> None:
        """A change, from the user stream."""
        changed = {p.symbol for p in update.positions}
        kept = [p for p in self.account.positions if p.symbol not in changed]
        positions = (*kept, *[p for p in update.positions if p.amount != 0])
        wallet = self.account.wallet if update.wallet is None else update.wallet
        self._told_ns |= dict.fromkeys(changed if update.wallet is None else {*changed, WALLET}, now_ns)
        self.account = replace(self.account, wallet=wallet, positions=positions, as_of_ms=update.time_ms)

    def read(self, account: Account, asked_ns: int, now_ms: int) -> None:
        """Take over what was asked for at that moment, where nothing newer has been told."""
        wallet = self.account.wallet if self._told_ns.get(WALLET, -1) >= asked_ns else account.wallet
        positions, self.known = self.newest(account.positions, asked_ns), True
        self.account = replace(account, wallet=wallet, positions=positions, as_of_ms=account.as_of_ms or now_ms)

    def read_positions(self, positions: Iterable[PositionUpdate], asked_ns: int) -> tuple[PositionUpdate, ...]:
        """The same for positions alone. Returns those that count now."""
        self.account = replace(self.account, positions=self.newest(positions, asked_ns))
        return self.account.positions

    def newest(self, positions: Iterable[PositionUpdate], asked_ns: int) -> tuple[PositionUpdate, ...]:
        """What was read, but of symbols that were told of since: there that word is the newer one."""
        told = {symbol for symbol, ns in self._told_ns.items() if ns >= asked_ns}
        return (*[p for p in positions if p.symbol not in told], *[p for p in self.account.positions if p.symbol in told])

    def free(self) -> Decimal:
        """The wallet, without what open losses of cross positions take of it. Profit is margin only once it is realised."""
        return self.account.wallet + sum((min(ZERO, p.unrealised) for p in self.account.positions if not p.isolated), ZERO)

    def notional_of(self, symbols: Iterable[str]) -> Decimal:
        """Σ |position| of these symbols, at the prices of entry."""
        return sum((abs(p.amount) * p.entry_price for p in self.account.positions if p.symbol in set(symbols)), ZERO)
