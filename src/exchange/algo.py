"""The algo service: conditional orders, in a store of their own, that become orders when a price is reached.

No margin is checked at placement; it is at the trigger, and a refusal there ends as REJECTED with its reason. Triggering takes
``trigger_latency_ms`` of market time: TRIGGERING when the price is seen, TRIGGERED when the spawned order reaches the book, FINISHED when
that order has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import NamedTuple

from src.exchange import events
from src.exchange.clients import generated_id
from src.exchange.entry import AlgoEntry, OrderEntry
from src.exchange.errors import ApiError
from src.exchange.execution import Execution, closable
from src.exchange.ledger import AccountState
from src.exchange.orders import ZERO, AlgoEvent, AlgoOrder, AlgoStatus, Side, algo_step
from src.exchange.placing import Placing
from src.exchange.state import State

UNSEEN_RETRY_MS = 100

Schedule = Callable[[int, Callable[[], object]], None]


class Doom(Enum):
    """What may befall a conditional order, on order of a test."""

    NONE = 0
    LOST = 1  # accepted, and then not there
    STUCK = 2  # triggered, and never at the book
    REJECTED = 3  # refused at the book


class Fate(NamedTuple):
    """``reason``: of a rejection. ``delay_ms``: until it is lost."""

    doom: Doom = Doom.NONE
    reason: str = ""
    delay_ms: int = 0


USUAL = Fate()


class AlgoService:
    """Conditional orders of all accounts on a :class:`State`. ``schedule(due_ms, call)`` runs a call at a later market time."""

    def __init__(self, state: State, execution: Execution, placing: Placing, schedule: Schedule) -> None:
        self._state = state
        self._execution = execution
        self._placing = placing
        self._schedule = schedule
        self.fate: Callable[[AlgoOrder, bool], Fate] = lambda _algo, _placed: USUAL
        """Asked when an order has been placed (True) and when it has triggered (False)."""
        self._stuck: set[int] = set()

    def resume(self) -> None:
        """After a restart: what was triggering when the books ended goes on."""
        for mine in self._state.open_algos:
            for algo in mine.values():
                if algo.status is AlgoStatus.TRIGGERING:
                    self._schedule(self._state.now_ms, lambda algo=algo: self._spawn(algo))  # type: ignore[misc]

    def place(self, account: AccountState, entry: AlgoEntry) -> AlgoOrder:
        """A conditional order arrives: refused (ApiError), or stored and announced."""
        state = self._state
        mine = state.open_algos[account.index]
        if len(mine) >= state.options.limits.open_algo_orders:
            raise ApiError(-4045)
        if entry.client_id and state.algos_by_client[account.index].get(entry.client_id, 0) in mine:
            raise ApiError(-4116)
        self._check_position(account, entry)
        last = self._price(entry.symbol, entry.working_type)
        if entry.type == "TRAILING_STOP_MARKET":
            wrong = entry.activate_price and (entry.activate_price - last) * entry.side.sign >= 0
        else:
            wrong = self._reached(entry.type, entry.side, entry.trigger_price, last)
        if wrong:
            raise ApiError(-2021)
        algo_id = state.ids.next("algo")
        algo = AlgoOrder(
            id=algo_id, account=account.index, symbol=entry.symbol, client_id=entry.client_id or generated_id(algo_id, account.index),
            side=entry.side, type=entry.type, position_side=entry.position_side, tif=entry.tif, qty=entry.qty, price=entry.price,
            trigger_price=entry.trigger_price, created_ms=state.now_ms, updated_ms=state.now_ms, working_type=entry.working_type,
            close_position=entry.close_position, price_protect=entry.price_protect, reduce_only=entry.reduce_only,
            price_match=entry.price_match, stp=entry.stp, gtd_ms=entry.gtd_ms, activate_price=entry.activate_price,
            callback_rate=entry.callback_rate,
        )  # fmt: skip
        state.keep_algo(algo)
        state.say(account.index, events.algo_update(state, algo))
        if algo.type == "TRAILING_STOP_MARKET" and not algo.activate_price:
            self._activate(algo, last)
        fate = self.fate(algo, True)
        if fate.doom is Doom.LOST:
            self._schedule(state.now_ms + fate.delay_ms, lambda: self._vanish(algo))
        return algo

    def vanish_all(self, symbol: int | None) -> None:
        """What rests is gone without a word: of one symbol, or all."""
        for mine in self._state.open_algos:
            for algo in [a for a in mine.values() if symbol in (None, a.symbol)]:
                self._vanish(algo)

    def _vanish(self, algo: AlgoOrder) -> None:
        if algo.status is AlgoStatus.NEW:
            algo_step(algo, AlgoEvent.VANISH)
            algo.lost = True
            self._state.keep_algo(algo)

    def _check_position(self, account: AccountState, entry: AlgoEntry) -> None:
        """What may stand only beside a position, and only once a direction."""
        state = self._state
        closes = bool(closable(account, entry.symbol, entry.position_side, entry.side))
        if entry.tif == "GTE_GTC" and not closes and (not entry.close_position or state.options.switches.close_position_needs_position):
            raise ApiError(-4509)
        if not entry.close_position:
            return
        if not closes and state.options.switches.close_position_needs_position:
            raise ApiError(-2022)
        family = "TAKE_PROFIT" if entry.type.startswith("TAKE_PROFIT") else "STOP"
        for other in state.open_algos[account.index].values():
            same = other.symbol == entry.symbol and other.side is entry.side and other.position_side is entry.position_side
            if same and other.close_position and other.family == family:
                raise ApiError(-4130)

    def find(self, account: AccountState, algo_id: int, client_id: str) -> AlgoOrder | None:
        algo = self._state.algos.get(algo_id or self._state.algos_by_client[account.index].get(client_id, 0))
        return algo if algo is not None and algo.account == account.index and not algo.lost else None

    def cancel(self, account: AccountState, algo_id: int, client_id: str) -> AlgoOrder:
        algo = self.find(account, algo_id, client_id)
        if algo is None or not algo.open:
            raise ApiError(-2011)
        if algo.status is AlgoStatus.TRIGGERING:
            raise ApiError(-2011 if algo.id in self._stuck else -4117)
        self._execution.end_algo(algo, AlgoEvent.CANCEL)
        return algo

    def cancel_all(self, account: AccountState, symbol: int) -> dict[str, object]:
        for algo in list(self._state.open_algos[account.index].values()):
            if algo.symbol == symbol and algo.status is AlgoStatus.NEW:
                self._execution.end_algo(algo, AlgoEvent.CANCEL)
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    # ------------------------------------------------------------------ prices

    def on_price(self, symbol: int, working_type: str, price: Decimal) -> None:
        """A new last price (CONTRACT_PRICE) or mark price (MARK_PRICE) of a symbol."""
        for algo in list(self._state.waiting[symbol].values()):
            if algo.working_type != working_type or algo.status is not AlgoStatus.NEW:
                continue
            if algo.type == "TRAILING_STOP_MARKET":
                self._trail(algo, price)
            elif self._reached(algo.type, algo.side, algo.trigger_price, price) and self._protected(algo):
                self._trigger(algo)

    @staticmethod
    def _reached(kind: str, side: Side, trigger: Decimal, price: Decimal) -> bool:
        stop = not kind.startswith("TAKE_PROFIT")
        return price >= trigger if (side is Side.BUY) == stop else price <= trigger

    def _protected(self, algo: AlgoOrder) -> bool:
        """With priceProtect an order fires only while last and mark are close to each other."""
        if not algo.price_protect:
            return True
        mark, last = self._state.quotes.mark(algo.symbol), self._state.quotes.last_price(algo.symbol)
        return abs(mark - last) <= mark * self._state.specs[algo.symbol].trigger_protect

    def _trail(self, algo: AlgoOrder, price: Decimal) -> None:
        sign = algo.side.sign
        if not algo.active:
            if (algo.activate_price - price) * sign < 0:
                return
            self._activate(algo, price)
        if (algo.best - price) * sign > 0:
            algo.best = price
            self._state.keep_algo(algo)
        fires_at = algo.best * (1 + sign * algo.callback_rate / 100)
        if (price - fires_at) * sign >= 0 and self._protected(algo):
            self._trigger(algo)

    def _activate(self, algo: AlgoOrder, price: Decimal) -> None:
        algo_step(algo, AlgoEvent.ACTIVATE)
        algo.active, algo.best, algo.updated_ms = True, price, self._state.now_ms
        self._state.keep_algo(algo)
        self._state.say(algo.account, events.algo_update(self._state, algo))

    def _price(self, symbol: int, working_type: str) -> Decimal:
        quotes = self._state.quotes
        return quotes.mark(symbol) if working_type == "MARK_PRICE" else quotes.last_price(symbol)

    # ------------------------------------------------------------------ trigger and spawn

    def _trigger(self, algo: AlgoOrder) -> None:
        algo.trigger_ms = self._state.now_ms
        self._execution.end_algo(algo, AlgoEvent.TRIGGER)
        self._schedule(self._state.now_ms + self._state.options.trigger_latency_ms, lambda: self._spawn(algo))

    def _spawn(self, algo: AlgoOrder) -> None:
        """The order behind a triggered algo order reaches the book."""
        if algo.status is not AlgoStatus.TRIGGERING:
            return
        fate = self.fate(algo, False)
        if fate.doom is Doom.STUCK:
            self._stuck.add(algo.id)
            return
        if fate.doom is Doom.REJECTED:
            self._execution.end_algo(algo, AlgoEvent.REJECT, fate.reason)
            return
        if not self._state.quotes.seen(algo.symbol):
            self._schedule(self._state.now_ms + UNSEEN_RETRY_MS, lambda: self._spawn(algo))
            return
        account = self._state.accounts[algo.account]
        limit = algo.type in ("STOP", "TAKE_PROFIT")
        qty = closable(account, algo.symbol, algo.position_side, algo.side) if algo.close_position else algo.qty
        tif = algo.tif if limit and algo.tif != "GTE_GTC" else "GTC"
        entry = OrderEntry(
            algo.symbol, algo.side, "LIMIT" if limit else "MARKET", algo.position_side, tif, qty, algo.price if limit else ZERO,
            client_id=algo.client_id, reduce_only=algo.reduce_only, close_position=algo.close_position, price_match=algo.price_match,
            stp=algo.stp, gtd_ms=algo.gtd_ms if tif == "GTD" else 0,
        )  # fmt: skip
        try:
            self._placing.place(account, entry, algo)
        except ApiError as refusal:
            self._execution.end_algo(algo, AlgoEvent.REJECT, refusal.msg)

    def expire_old(self) -> None:
        """Good-till-date orders whose date has come."""
        for mine in self._state.open_algos:
            for algo in [a for a in mine.values() if a.gtd_ms and a.gtd_ms <= self._state.now_ms and a.status is AlgoStatus.NEW]:
                self._execution.end_algo(algo, AlgoEvent.EXPIRE)
