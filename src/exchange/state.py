"""Everything the core remembers, the changes since the last look, and what it has to say.

Invariants: an order is in ``open_orders`` of its account and in ``resting`` of its symbol exactly while its status is open; an algo order
is in ``open_algos`` exactly while its status is open. Every change of durable data is marked in ``changes``; the books write those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from src.exchange.history import Amendment, MarginMove
from src.exchange.ledger import AccountState, Position, Wallet
from src.exchange.margin import Summary, summary
from src.exchange.options import ExchangeOptions
from src.exchange.orders import AlgoOrder, Fill, Income, Order
from src.exchange.quotes import Quotes
from src.exchange.symbols import SymbolSpec

FIRST_ORDER_ID = 8_389_766_000_000_000_000
FIRST_ALGO_ID = 2_000_000_000_000
FIRST_TRADE_ID = 7_000_000_000
FIRST_TRAN_ID = 9_689_000_000_000
SETTLED_KEPT = 20_000


FAR_MS = 4_133_404_800_000
CLOSED = "CLOSE"
STATUSES = ("PENDING_TRADING", "TRADING", "PRE_DELIVERING", "DELIVERING", "DELIVERED", "PRE_SETTLE", "SETTLING", CLOSED, "TRADING_HALT",
            "TRADING_CANCEL_ONLY")  # fmt: skip
"""Of a contract, as the venue names them."""


class Standing(NamedTuple):
    """What exchangeInfo says of a contract's life. ``delivery_ms``: when it ends; moved closer, it announces a delisting."""

    status: str = "TRADING"
    delivery_ms: int = FAR_MS


class UserEvent(NamedTuple):
    """One event for the streams of one account, as the venue would send it."""

    account: int
    name: str
    payload: dict[str, Any]


class Ids:
    """Counters that never go back, also over a restart."""

    def __init__(self) -> None:
        self.order = FIRST_ORDER_ID
        self.algo = FIRST_ALGO_ID
        self.trade = FIRST_TRADE_ID
        self.tran = FIRST_TRAN_ID

    def next(self, kind: str) -> int:
        value: int = getattr(self, kind) + 1
        setattr(self, kind, value)
        return value


class Changes:
    """What durable data changed since the last :meth:`clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.orders: dict[int, Order] = {}
        self.algos: dict[int, AlgoOrder] = {}
        self.accounts: set[int] = set()
        self.fills: list[Fill] = []
        self.incomes: list[Income] = []
        self.jumps: list[tuple[int, int, int]] = []
        self.amendments: list[Amendment] = []
        self.margin_moves: list[MarginMove] = []
        self.countdowns = False

    def __bool__(self) -> bool:
        rows = self.fills or self.incomes or self.jumps or self.amendments or self.margin_moves or self.countdowns
        return bool(self.orders or self.algos or self.accounts or rows)


class State:
    """The exchange's memory. ``now_ms`` is the market time of the step in progress."""

    def __init__(self, options: ExchangeOptions, specs: Sequence[SymbolSpec], now_ms: int) -> None:
        self.options = options
        self.specs = specs
        self.index = {s.symbol: i for i, s in enumerate(specs)}
        self.now_ms = now_ms
        self.standings = [Standing() for _ in specs]
        self.stood = 0
        self.leaving: set[int] = set()
        self.closed: set[int] = set()
        self.quotes = Quotes(specs)
        self.accounts: list[AccountState] = []
        self.orders: dict[int, Order] = {}
        self.algos: dict[int, AlgoOrder] = {}
        self.open_orders: list[dict[int, Order]] = []
        self.open_algos: list[dict[int, AlgoOrder]] = []
        self.resting: list[dict[int, Order]] = [{} for _ in specs]
        self.waiting: list[dict[int, AlgoOrder]] = [{} for _ in specs]
        self.fills: list[list[Fill]] = []
        self.incomes: list[list[Income]] = []
        self.amendments: list[Amendment] = []
        self.margin_moves: list[MarginMove] = []
        self.orders_by_client: list[dict[str, int]] = []
        self.algos_by_client: list[dict[str, int]] = []
        self.settled_marks: dict[tuple[int, int], Decimal] = {}
        """Mark prices that funding was settled at, by symbol and time; of this run alone, and the latest ones."""
        self.countdowns: dict[tuple[int, int], int] = {}
        self.ids = Ids()
        self.events: list[UserEvent] = []
        self.changes = Changes()
        for i, _ in enumerate(options.accounts):
            self.add_account(AccountState(index=i, wallet=Wallet(), leverage_default=options.leverage_default, settings={}, positions={}))

    def stand(self, symbol: int, standing: Standing) -> None:
        """A contract's status or delivery changes; ``stood`` counts these."""
        self.standings[symbol] = standing
        self.stood += 1
        (self.leaving.add if standing.delivery_ms < FAR_MS else self.leaving.discard)(symbol)
        (self.closed.add if standing.status == CLOSED else self.closed.discard)(symbol)

    def add_account(self, account: AccountState) -> None:
        assert account.index == len(self.accounts)
        self.accounts.append(account)
        self.open_orders.append({})
        self.open_algos.append({})
        self.fills.append([])
        self.incomes.append([])
        self.orders_by_client.append({})
        self.algos_by_client.append({})

    # ------------------------------------------------------------------ keeping

    def keep_settled(self, marks: Mapping[int, Decimal]) -> None:
        """Funding is settled now at these marks of symbols."""
        self.settled_marks |= {(symbol, self.now_ms): mark for symbol, mark in marks.items()}
        while len(self.settled_marks) > SETTLED_KEPT:
            self.settled_marks.pop(next(iter(self.settled_marks)))

    def keep_order(self, order: Order) -> None:
        """Store a new or changed order and keep the indexes true."""
        self.orders[order.id] = order
        self.orders_by_client[order.account][order.client_id] = order.id
        self.changes.orders[order.id] = order
        if order.open:
            self.open_orders[order.account][order.id] = order
            self.resting[order.symbol][order.id] = order
        else:
            self.open_orders[order.account].pop(order.id, None)
            self.resting[order.symbol].pop(order.id, None)

    def keep_algo(self, algo: AlgoOrder) -> None:
        self.algos[algo.id] = algo
        self.algos_by_client[algo.account][algo.client_id] = algo.id
        self.changes.algos[algo.id] = algo
        if algo.open:
            self.open_algos[algo.account][algo.id] = algo
            self.waiting[algo.symbol][algo.id] = algo
        else:
            self.open_algos[algo.account].pop(algo.id, None)
            self.waiting[algo.symbol].pop(algo.id, None)

    def keep_fill(self, fill: Fill) -> None:
        self.fills[fill.account].append(fill)
        self.changes.fills.append(fill)
        self.changes.accounts.add(fill.account)

    def keep_income(self, account: int, kind: str, amount: Decimal, *, symbol: int = -1, info: str = "", trade_id: str = "") -> None:
        row = Income(id=self.ids.next("tran"), account=account, symbol=symbol, type=kind, amount=amount, time_ms=self.now_ms, info=info,
                     trade_id=trade_id)  # fmt: skip
        self.incomes[account].append(row)
        self.changes.incomes.append(row)
        self.changes.accounts.add(account)

    def keep_amendment(self, row: Amendment) -> None:
        self.amendments.append(row)
        self.changes.amendments.append(row)

    def keep_margin_move(self, row: MarginMove) -> None:
        self.margin_moves.append(row)
        self.changes.margin_moves.append(row)

    def keep_countdown(self, account: int, symbol: int, due_ms: int | None) -> None:
        """When the symbol's orders are to be cancelled; None: never."""
        if due_ms is None:
            self.countdowns.pop((account, symbol), None)
        else:
            self.countdowns[account, symbol] = due_ms
        self.changes.countdowns = True

    def touch(self, account: AccountState) -> None:
        account.updated_ms = self.now_ms
        self.changes.accounts.add(account.index)

    def say(self, account: int, payload: dict[str, Any]) -> None:
        self.events.append(UserEvent(account, payload["e"], payload))

    # ------------------------------------------------------------------ looking

    def orders_of(self, account: int, symbol: int) -> Iterable[Order]:
        return [o for o in self.open_orders[account].values() if o.symbol == symbol]

    def summary(self, account: AccountState) -> Summary:
        return summary(account, self.specs, self.quotes.mark, self.orders_of, {o.symbol for o in self.open_orders[account.index].values()},
                       up=self.options.switches.open_order_margin_rounds_up)  # fmt: skip

    def isolated(self, account: AccountState, symbol: int) -> bool:
        return account.setting(symbol).isolated

    def live(self, account: AccountState) -> list[Position]:
        return account.live_positions()
