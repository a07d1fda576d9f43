"""Approval is a type: only this module makes an ``Approved``, and ``trade`` accepts nothing else.

A rule is a small object with one method, no side effect, and a ``repr`` that prints its limit: ``check(proposal, view)`` returns None or
a ``Refusal`` with the limit and the value. ``approve`` sizes the order first (at most RISK_PER_TRADE of equity to the stop, at the cap
price, both fees included, rounded *down* to the venue's steps) and then asks every rule. ``Limits`` watches equity for the two limits
that latch: the day's loss and the fall from the peak; transfers are not profit, and days are UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, Decimal
from typing import Any, Protocol

from src.clock import utc_day
from src.models import ZERO, Quote, Side, Signal, SymbolRules
from src.transfers import Transfers
from src.venue.answers import Income

BPS = Decimal("0.0001")
ROOM_SHARE = Decimal("1.5")
"""An order is made smaller to fit what is free by this factor at most."""
_SEAL = object()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. ``rule`` is its name, ``value`` what was found, ``limit`` what it may be."""

    rule: str
    value: str
    limit: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.value} (limit {self.limit})"


@dataclass(frozen=True, slots=True)
class Approved:
    """An entry that passed every rule. ``price``: the IOC's limit. ``risk``: what is lost at the stop, fees included."""

    symbol: str
    side: Side
    qty: Decimal
    price: Decimal
    stop: Decimal
    target: Decimal
    limit_ms: int
    confidence: float
    source: str
    risk: Decimal
    notional: Decimal
    approved_ns: int
    seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        assert self.seal is _SEAL, "only src.risk approves an order"


@dataclass(frozen=True, slots=True)
class Limit:
    """What the settings and the mode allow. Shares are of equity, ``bps`` in 0.01 %."""

    risk_per_trade: Decimal
    min_confidence: Decimal
    max_slippage_bps: Decimal
    max_spread_bps: Decimal
    slots: int
    leverage_teacher: int
    leverage_student: int
    signal_age_ms: int
    stale_ms: int
    require_evidence: bool

    def leverage(self, source: str) -> int:
        return self.leverage_teacher if source == "teacher" else self.leverage_student


@dataclass(frozen=True, slots=True)
class View:
    """The state a proposal is judged by. ``available``: margin that is free; profit that is not realised is none. ``notional``: Σ |position| +
    orders in flight, account-wide. ``speed``: market s per wall s."""

    equity: Decimal
    available: Decimal
    notional: Decimal
    rules: SymbolRules
    quote: Quote
    maker_rate: Decimal
    taker_rate: Decimal
    maintenance: Decimal
    now_ns: int
    speed: float
    latches: tuple[str, ...] = ()
    evidence: bool = False
    halted: str = ""
    prepared: bool = True


@dataclass(frozen=True, slots=True)
class Proposal:
    """A sized order that no rule has seen yet."""

    signal: Signal
    qty: Decimal
    price: Decimal
    stop: Decimal
    target: Decimal

    @property
    def notional(self) -> Decimal:
        return self.qty * self.price


class Rule(Protocol):
    def check(self, proposal: Proposal, view: View) -> Refusal | None: ...


@dataclass(frozen=True, slots=True)
class Opening:
    """Nothing opens while halted, latched or unreconciled, nor on a symbol that is not ready."""

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        if view.halted:
            return Refusal("halted", view.halted, "running")
        if view.latches:
            return Refusal("latched", ", ".join(view.latches), "released by the operator")
        if not view.prepared:
            return Refusal("not prepared", proposal.signal.symbol, "isolated margin and leverage set")
        if not (view.rules.tradable and view.quote.tradable):
            return Refusal("not tradable", view.rules.status, "TRADING, without a gap in its trades")
        return None


@dataclass(frozen=True, slots=True)
class Evidence:
    """In live, money needs proof: a promoted student whose out-of-sample expectation is positive."""

    required: bool

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        if not self.required or (view.evidence and proposal.signal.source != "teacher"):
            return None
        return Refusal("no evidence", proposal.signal.source, "a promoted student with positive expectation, or REQUIRE_EVIDENCE=0")


@dataclass(frozen=True, slots=True)
class Confidence:
    above: Decimal

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        value = proposal.signal.confidence
        return None if value > float(self.above) else Refusal("confidence", f"{value:.3f}", f"above {self.above}")


@dataclass(frozen=True, slots=True)
class Fresh:
    """The signal's age and the data's age are wall time: a fast simulation must not hide a slow machine."""

    signal_age_ms: int
    stale_ms: int

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        age = (view.now_ns - proposal.signal.received_ns) / 1e6
        if age > self.signal_age_ms:
            return Refusal("stale signal", f"{age:.0f} ms", f"{self.signal_age_ms} ms")
        quote = view.quote
        for name, market_age in (("quote", quote.quote_age_ms), ("mark price", quote.mark_age_ms)):
            if not market_age / view.speed <= self.stale_ms:
                return Refusal(f"stale {name}", f"{market_age / view.speed:.0f} ms", f"{self.stale_ms} ms")
        return None


@dataclass(frozen=True, slots=True)
class Spread:
    max_bps: Decimal

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        bid, ask = view.quote.bid, view.quote.ask
        if not 0 < bid < ask:
            return Refusal("no quote", f"bid {bid:g}, ask {ask:g}", "0 < bid < ask")
        bps = (ask - bid) / (ask + bid) * 20_000
        return None if bps <= float(self.max_bps) else Refusal("spread", f"{bps:.1f} bps", f"{self.max_bps} bps")


@dataclass(frozen=True, slots=True)
class Shape:
    """Stop on the losing side, target on the winning one, of the price we may pay."""

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        sign = proposal.signal.side.sign
        if (proposal.price - proposal.stop) * sign <= 0 or (proposal.target - proposal.price) * sign <= 0:
            return Refusal("stop and target", f"{proposal.stop} / {proposal.target}", f"on both sides of {proposal.price}")
        return None


@dataclass(frozen=True, slots=True)
class Size:
    """The venue's smallest and largest order."""

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        rules = view.rules
        if proposal.qty < rules.min_qty or proposal.qty <= 0:
            return Refusal("too small", f"{proposal.qty}", f"{rules.min_qty} {rules.symbol}")
        if proposal.notional < rules.min_notional:
            return Refusal("notional", f"{proposal.notional:.2f}", f"at least {rules.min_notional}")
        return None


@dataclass(frozen=True, slots=True)
class Leverage:
    """Account-wide: Σ notional ≤ cap × equity. Sizing already keeps a slot to its share."""

    limit: Limit

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        cap = self.limit.leverage(proposal.signal.source) * view.equity
        total = view.notional + proposal.notional
        return None if total <= cap else Refusal("leverage", f"{total:.2f}", f"{cap:.2f} notional")


@dataclass(frozen=True, slots=True)
class Balance:
    """The venue's free margin must carry the position's margin, what the limit price is worse than the mark price, and both fees."""

    limit: Limit

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        need = proposal.qty * _margin(proposal.signal, proposal.price, self.limit, view)
        return None if need <= view.available else Refusal("balance", f"{need:.2f} needed", f"{view.available:.2f} available")


@dataclass(frozen=True, slots=True)
class Liquidation:
    """The stop must come well before the liquidation: at most half of the way to it."""

    limit: Limit

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        room = Decimal(1) / self.limit.leverage(proposal.signal.source) - view.maintenance
        distance = abs(proposal.price - proposal.stop) / proposal.price
        return None if distance * 2 <= room else Refusal("liquidation", f"stop {distance:.2%} away", f"half of {room:.2%}")


@dataclass(frozen=True, slots=True)
class PercentPrice:
    """The venue refuses limit prices far from the mark price."""

    def check(self, proposal: Proposal, view: View) -> Refusal | None:
        mark = Decimal(str(view.quote.mark)) if view.quote.mark > 0 else ZERO
        low, high = mark * view.rules.band_down, mark * view.rules.band_up
        inside = low <= proposal.price <= high
        return None if inside else Refusal("price band", f"{proposal.price}", f"{low:.8g} to {high:.8g}")


def rule_book(limit: Limit) -> tuple[Rule, ...]:
    """Every rule of an entry, the cheapest refusals first."""
    return (Opening(), Evidence(limit.require_evidence), Confidence(limit.min_confidence), Fresh(limit.signal_age_ms, limit.stale_ms),
            Spread(limit.max_spread_bps), Shape(), Size(), Leverage(limit), Balance(limit), Liquidation(limit), PercentPrice())  # fmt: skip


def propose(signal: Signal, limit: Limit, view: View) -> Proposal:
    """Prices on the tick (cap and stop rounded against us), quantity on the step, rounded down. Where the other slots have left somewhat less
    than this one's share it takes what there is; far less is refused, by the rule that says so."""
    tick, side = view.rules.tick, signal.side
    against, away = (ROUND_FLOOR, ROUND_CEILING) if side is Side.BUY else (ROUND_CEILING, ROUND_FLOOR)
    cap = Decimal(repr(signal.entry)) * (1 + side.sign * limit.max_slippage_bps * BPS)
    price = _on_grid(cap, tick, against)
    stop = _on_grid(Decimal(repr(signal.stop)), tick, against)
    target = _on_grid(Decimal(repr(signal.target)), tick, away)
    loss = abs(price - stop) + (price + stop) * view.taker_rate
    if loss <= 0 or price <= 0:
        return Proposal(signal, ZERO, price, stop, target)
    cap = limit.leverage(signal.source) * view.equity
    qty = min(limit.risk_per_trade * view.equity / loss, cap / limit.slots / price, view.rules.max_qty)
    room = min(view.available / _margin(signal, price, limit, view), (cap - view.notional) / price)
    if room < qty <= room * ROOM_SHARE:
        qty = room
    return Proposal(signal, _on_grid(max(ZERO, qty), view.rules.step, ROUND_DOWN), price, stop, target)


def _margin(signal: Signal, price: Decimal, limit: Limit, view: View) -> Decimal:
    """What the venue asks of the free margin for one unit at that limit price, and both fees."""
    worse = (price - Decimal(repr(view.quote.mark))) * signal.side.sign if view.quote.mark > 0 else ZERO
    return price / limit.leverage(signal.source) + max(ZERO, worse) + price * view.taker_rate * 2


def approve(signal: Signal, limit: Limit, view: View) -> Approved | Refusal:
    """Size it, ask every rule, and seal it."""
    proposal = propose(signal, limit, view)
    for rule in rule_book(limit):
        refusal = rule.check(proposal, view)
        if refusal is not None:
            return refusal
    risk = proposal.qty * (abs(proposal.price - proposal.stop) + (proposal.price + proposal.stop) * view.taker_rate)
    assert risk <= limit.risk_per_trade * view.equity, f"risk {risk} of {view.equity}"
    return Approved(
        symbol=signal.symbol, side=signal.side, qty=proposal.qty, price=proposal.price, stop=proposal.stop, target=proposal.target,
        limit_ms=signal.limit_ms, confidence=signal.confidence, source=signal.source, risk=risk, notional=proposal.notional,
        approved_ns=view.now_ns, seal=_SEAL)  # fmt: skip


def _on_grid(value: Decimal, grid: Decimal, rounding: str) -> Decimal:
    return (value / grid).to_integral_value(rounding) * grid


@dataclass(slots=True)
class Limits:
    """Equity against the day's start and the peak. What trips is returned once, to be latched in the journal.

    ``day``: the UTC day. ``start``, ``peak``: equity at its beginning and at its highest, both moved by transfers.
    """

    daily_loss: Decimal
    drawdown: Decimal
    day: int = -1
    start: Decimal = ZERO
    peak: Decimal = ZERO
    transfers: Transfers = field(default_factory=Transfers)

    def update(self, equity: Decimal, now_ms: int) -> list[tuple[str, str]]:
        """(latch, reason) of every limit that is broken now."""
        if utc_day(now_ms) != self.day:
            self.day, self.start = utc_day(now_ms), equity
        self.peak = max(self.peak, equity)
        broken = []
        if self.start > 0 and equity <= self.start * (1 - self.daily_loss):
            broken.append(("daily_loss", f"equity {equity:.2f} is {1 - equity / self.start:.2%} below the day's start {self.start:.2f}"))
        if self.peak > 0 and equity <= self.peak * (1 - self.drawdown):
            broken.append(("drawdown", f"equity {equity:.2f} is {1 - equity / self.peak:.2%} below its peak {self.peak:.2f}"))
        return broken

    def forget(self, latch: str) -> None:
        """What the release of that latch lets go of: its own beginning, which is then what equity is next. ``halt`` has none."""
        if latch == "daily_loss":
            self.day, self.start = -1, ZERO
        elif latch == "drawdown":
            self.peak = ZERO

    def transfer(self, amount: Decimal) -> None:
        """A deposit or withdrawal is neither profit nor loss. What has not begun yet begins with it."""
        if self.day >= 0:
            self.start += amount
        if self.peak > 0:
            self.peak += amount

    def told(self, amount: Decimal, time_ms: int) -> None:
        """A transfer, from the user stream."""
        if amount:
            self.transfer(self.transfers.tell(amount, time_ms))

    def stated(self, rows: Iterable[Income], now_ms: int) -> Decimal:
        """The account's statement. Returns the sum of what nobody had told."""
        untold = self.transfers.read(rows, now_ms)
        self.transfer(untold)
        return untold

    def memory(self) -> dict[str, Any]:
        """All of it in one piece: what was moved by a transfer and that the transfer is known must not part in a crash."""
        return {"day": self.day, "start": str(self.start), "peak": str(self.peak), "transfers": self.transfers.memory()}

    def recall(self, memory: dict[str, Any]) -> None:
        self.day, self.start, self.peak = int(memory["day"]), Decimal(memory["start"]), Decimal(memory["peak"])
        if "transfers" in memory:
            self.transfers.recall(memory["transfers"])
