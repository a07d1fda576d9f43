"""Accounts, positions and what a fill, a funding payment or a transfer books.

Invariants: every amount is quantised to eight decimals when it is booked, so ``wallet == deposits + realised - commission + funding +
insurance`` to the last digit, always. A position keeps its cost (the sum of price times quantity it was opened for) instead of a rounded
average, so that the realised results of a round trip add up to exactly what the fills differ by.
"""

from __future__ import annotations

from decimal import ROUND_UP, Decimal
from typing import NamedTuple

import msgspec

from src.exchange.orders import E8, ZERO, PositionSide, Side, q8


class Position(msgspec.Struct, kw_only=True):
    """``qty`` is signed. ``cost`` is positive. ``realised`` accumulates before fees, ``fees`` feed the break-even price."""

    symbol: int
    side: PositionSide
    qty: Decimal = ZERO
    cost: Decimal = ZERO
    isolated_wallet: Decimal = ZERO
    realised: Decimal = ZERO
    fees: Decimal = ZERO
    updated_ms: int = 0

    @property
    def entry(self) -> Decimal:
        return self.cost / abs(self.qty) if self.qty else ZERO

    @property
    def break_even(self) -> Decimal:
        if not self.qty:
            return ZERO
        return (self.cost + (self.fees if self.qty > 0 else -self.fees)) / abs(self.qty)

    def unrealised(self, mark: Decimal) -> Decimal:
        return mark * self.qty - (self.cost if self.qty > 0 else -self.cost)


class SymbolSettings(msgspec.Struct, kw_only=True):
    """What a user may set for a symbol."""

    leverage: int
    isolated: bool = False


class Wallet(msgspec.Struct, kw_only=True):
    """Where the money went. ``balance`` is kept apart and checked against the parts at every booking."""

    deposits: Decimal = ZERO
    realised: Decimal = ZERO
    commission: Decimal = ZERO
    funding: Decimal = ZERO
    insurance: Decimal = ZERO
    balance: Decimal = ZERO

    def book(self, part: str, amount: Decimal) -> None:
        """Book an amount, already quantised. A commission is passed as the positive amount paid."""
        setattr(self, part, getattr(self, part) + amount)
        self.balance += -amount if part == "commission" else amount
        assert self.balance == self.deposits + self.realised - self.commission + self.funding + self.insurance


class AccountState(msgspec.Struct, kw_only=True):
    """One user's money, settings and positions. Positions are keyed ``symbol:side``; settings by symbol index."""

    index: int
    wallet: Wallet
    leverage_default: int = 20
    hedge: bool = False
    multi_assets: bool = False
    fee_burn: bool = False
    settings: dict[int, SymbolSettings] = {}
    positions: dict[str, Position] = {}
    updated_ms: int = 0

    def setting(self, symbol: int) -> SymbolSettings:
        """The symbol's settings; the default ones are not stored until changed."""
        return self.settings.get(symbol) or SymbolSettings(leverage=self.leverage_default)

    def change_setting(self, symbol: int) -> SymbolSettings:
        return self.settings.setdefault(symbol, SymbolSettings(leverage=self.leverage_default))

    def position(self, symbol: int, side: PositionSide) -> Position:
        """The position, made empty where there is none yet."""
        key = f"{symbol}:{side}"
        found = self.positions.get(key)
        if found is None:
            found = self.positions[key] = Position(symbol=symbol, side=side)
        return found

    def held(self, symbol: int, side: PositionSide) -> Decimal:
        found = self.positions.get(f"{symbol}:{side}")
        return found.qty if found else ZERO

    def sides(self) -> tuple[PositionSide, ...]:
        return (PositionSide.LONG, PositionSide.SHORT) if self.hedge else (PositionSide.BOTH,)

    def live_positions(self) -> list[Position]:
        return [p for p in self.positions.values() if p.qty]

    @property
    def isolated_total(self) -> Decimal:
        return sum((p.isolated_wallet for p in self.positions.values() if p.qty), ZERO)

    @property
    def cross_wallet(self) -> Decimal:
        return self.wallet.balance - self.isolated_total


class Booked(NamedTuple):
    """What one fill booked."""

    realised: Decimal
    commission: Decimal
    closed: Decimal


def book_fill(account: AccountState, position: Position, side: Side, *, price: Decimal, qty: Decimal, fee_rate: Decimal) -> Booked:
    """Book a fill into position and wallet: first what it closes, then what it opens. ``qty`` is positive."""
    assert qty > 0 and price > 0, (qty, price)
    setting = account.setting(position.symbol)
    closing = min(qty, abs(position.qty)) if position.qty * side.sign < 0 else ZERO
    opening = qty - closing
    realised = _close(position, side, price, closing) if closing else ZERO
    if opening:
        assert position.qty * side.sign >= 0, "a fill opens only onto its own side"
        position.qty += opening * side.sign
        position.cost += price * opening
        if setting.isolated:
            position.isolated_wallet += (price * opening / setting.leverage).quantize(E8, ROUND_UP)
    commission = q8(price * qty * fee_rate)
    position.fees = position.fees + commission if position.qty else ZERO
    account.wallet.book("realised", realised)
    account.wallet.book("commission", commission)
    position.realised += realised
    return Booked(realised, commission, closing)


def _close(position: Position, side: Side, price: Decimal, closing: Decimal) -> Decimal:
    """Take ``closing`` out of the position; returns the realised result, quantised."""
    held = abs(position.qty)
    whole = closing == held
    cost = position.cost if whole else q8(position.cost * closing / held)
    release = position.isolated_wallet if whole else q8(position.isolated_wallet * closing / held)
    position.cost -= cost
    position.isolated_wallet -= release
    position.fees = ZERO if whole else position.fees
    position.qty += closing * side.sign
    return q8((price * closing - cost) * -side.sign)


def book_funding(account: AccountState, position: Position, isolated: bool, amount: Decimal) -> None:
    """Book a funding payment (negative when paid) into wallet and, for an isolated position, its own margin."""
    account.wallet.book("funding", amount)
    position.fees -= amount
    if isolated:
        position.isolated_wallet += amount
