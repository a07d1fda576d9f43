"""What the Brain process runs: builds Brain and Trade around one loop, in the order that protects money first.

The journal and the venue's word on what is held (``recovery``), which need neither market nor kernels; then kernels, in a thread, and the
symbol table; then ready; history, leverage and with them new entries come after, in the background. On stop: no new entries, what is in
flight settles, stops stay on the exchange unless ON_SHUTDOWN=flatten.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from src.audit import Auditor
from src.brain import Brain, Decider, obey, tell_errors
from src.bus import EventBus
from src.clock import Clock, monotonic_ns
from src.config import Endpoints, Settings
from src.error_handler import AegisError, Fatal, Halt, catch_and_log, failure, lifecycle, warn
from src.gateway import Gateway
from src.journal import Journal
from src.life import Life, hear
from src.market_state import MarketState
from src.market_universe import FALLBACK, spare_for
from src.models import SymbolRules
from src.portfolio import Portfolio
from src.preparation import context_interval_ms, keep_history, keep_prepared
from src.recovery import reconcile, recover
from src.ring_buffer import Ring
from src.risk import Limit, Limits
from src.slots import State
from src.sole import sole_child
from src.teacher import Judge, Teacher, warm_up
from src.trade import Desk, Trade
from src.venue.budget import shared_governor, show_use
from src.venue.errors import CLOCK_SKEW, code_of
from src.venue.orders import ClientIds
from src.venue.queries import commission_rate, klines, maintenance_rates, symbol_rules, validate_binance_keys
from src.venue.rest import Rest
from src.venue.signing import Credentials
from src.venue.user_stream import UserStream
from src.venue.ws_api import WsApi

TICK_S = 0.1
STEADY_S = 1.0
CONNECT_S = 5.0
SETTLE_S = 5.0
SYNC_S = 600
REMEMBER_S = 30
RETRY_S = 5.0
STREAM_DOWN = "the user stream is down"
MAINTENANCE_FALLBACK = Decimal("0.05")
SLIPPAGE = 0.0001
"""Expected one way, as a share of the price, for the cost rule; what an entry may slip at most is MAX_SLIPPAGE_BPS."""
FEE_SYMBOL = "BTCUSDT"
FEE_FALLBACK = (Decimal("0.0002"), Decimal("0.0005"))


@dataclass(frozen=True, slots=True)
class Given:
    """What the process is handed besides its life. ``say``, ``told``: the pipes to the Feed and back (see ``renewal.Line``)."""

    ring: Ring
    urls: Endpoints
    clock: Clock
    control: Connection
    keys: tuple[str, str]
    load_student: Callable[[str], Judge | None]
    say: Connection
    told: Connection


def limit_of(s: Settings) -> Limit:
    return Limit(
        risk_per_trade=s.risk_per_trade, min_confidence=s.min_confidence, max_slippage_bps=s.max_slippage_bps, max_spread_bps=s.max_spread_bps,
        slots=s.max_open_positions, leverage_teacher=s.max_leverage_teacher, leverage_student=s.max_leverage_student,
        signal_age_ms=s.signal_age_ms, stale_ms=s.stale_ms, require_evidence=s.require_evidence)  # fmt: skip


async def run_brain(life: Life, given: Given) -> None:
    """Until ``life.stop``, or until something ends the process."""
    async with sole_child(life.settings.state_dir, "brain"):
        journal = Journal(life.settings.state_dir)
        try:
            await _trade(life, given, journal)
        finally:
            journal.close()


async def _trade(life: Life, given: Given, journal: Journal) -> None:
    governor = shared_governor(given.clock, life.counters, life.block)
    rest = Rest(given.urls.rest, clock=given.clock, governor=governor, credentials=Credentials(*given.keys))
    data = rest if given.urls.data == given.urls.rest else Rest(given.urls.data, clock=given.clock, governor=governor)
    try:
        await rest.sync_time()
        await validate_binance_keys(rest)
        rules = await _rules(rest)
        fee, rates = await _rates(rest, next(iter(rules), FEE_SYMBOL))
        await Room(life, given, journal, Terms(rest, data, rules, fee, rates)).live()
    finally:
        await rest.close()
        await data.close()


async def _first(life: Life, awaited: Sequence[asyncio.Future[Any]], running: Sequence[asyncio.Future[Any]]) -> bool:
    """Wait for all that is awaited, or for the stop. True: all of it is done. Raises what ends something that should be running."""
    stopped: asyncio.Future[Any] = asyncio.ensure_future(life.stop.wait())
    try:
        while not life.stop.is_set() and not all(future.done() for future in awaited):
            for ended in [future for future in (*awaited, *running) if future.done()]:
                ended.result()
            waiting = [future for future in (stopped, *awaited, *running) if not future.done()]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    for ended in [future for future in (*awaited, *running) if future.done()]:
        ended.result()
    return not life.stop.is_set()


def _told(life: Life) -> asyncio.Future[Any]:
    """The symbol table, which the Feed makes and the supervisor hands on."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    hear(life.pipe, lambda message: None if arrived.done() else arrived.set_result(message))
    return arrived


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Kernels take long to load, and longer to compile, and the loop has positions to look after. No pool: its end would wait."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except Exception as raised:  # told where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name="kernels", daemon=True).start()
    return done


def _make_brain(life: Life, given: Given, journal: Journal, bus: EventBus, symbols: tuple[SymbolRules, ...]) -> Brain:
    s = life.settings
    market = MarketState(
        tuple(r.symbol for r in symbols), np.array([float(r.step) for r in symbols]), candle_ms=s.candle_ms, setup_ms=s.setup_ms,
        context_ms=context_interval_ms(s.setup_ms), atr_period=s.atr_period, rsi_period=s.rsi_period, spare=spare_for(len(symbols)))  # fmt: skip
    student = _student(s, given, journal)
    decider = Decider(Teacher(), float(s.min_confidence), float(FEE_FALLBACK[1]), SLIPPAGE, student)
    return Brain(given.ring, market, decider, bus, life.block, given.clock, journal)


def _student(s: Settings, given: Given, journal: Journal) -> Judge | None:
    """A promoted model decides once the teacher has closed TEACHER_THRESHOLD trades; a model that does not fit is named and left."""
    try:
        student = given.load_student(s.models_dir)
    except AegisError as error:
        warn(f"the model in {s.models_dir} is not used: {error}")
        return None
    if student is None or not student.promoted:
        lifecycle("🎓 The teacher decides: " + ("no trained model" if student is None else "the model is not promoted"))
        return None
    closed = journal.trade_count()
    if closed < s.teacher_threshold:
        lifecycle(f"🎓 The teacher decides: {closed} of TEACHER_THRESHOLD={s.teacher_threshold} trades closed")
        return None
    lifecycle(f"🎓 The student decides: {student.source}")
    return student


async def _rules(rest: Rest) -> dict[str, SymbolRules]:
    """What the venue allows, by symbol; of the fallback pairs where it does not say: what is held can be protected without it."""
    try:
        return (await symbol_rules(rest))[0]
    except Fatal:
        raise
    except AegisError as error:
        warn(f"the venue does not say what it trades yet: {error}")
        return {r.symbol: r for r in FALLBACK}


async def _rates(rest: Rest, symbol: str) -> tuple[tuple[Decimal, Decimal], dict[str, Decimal]]:
    """(maker, taker) commission and the maintenance margin ratio of each symbol, as the venue says for this account."""
    try:
        return await commission_rate(rest, symbol), await maintenance_rates(rest)
    except Fatal:
        raise
    except AegisError as error:
        warn(f"the account's rates are not known, the standard ones are used: {error}")
        return FEE_FALLBACK, {}


@dataclass(frozen=True, slots=True)
class Terms:
    """The venue as this account sees it: REST, the rules of all symbols, (maker, taker) commission, and the maintenance margin ratio by
    symbol. ``data``: REST of the market; the same, but in paper.
    """

    rest: Rest
    data: Rest
    rules: dict[str, SymbolRules]
    fee: tuple[Decimal, Decimal]
    maintenance: dict[str, Decimal]


class Room:
    """Trade and its connections, wired once, and the Brain when there is a market; ``live`` runs them from recovery to the last answer."""

    brain: Brain

    def __init__(self, life: Life, given: Given, journal: Journal, terms: Terms) -> None:
        self.life, self.given, self.journal = life, given, journal
        self.rest, self.data = terms.rest, terms.data
        s, clock, block = life.settings, given.clock, life.block
        self.bus = EventBus(tell_errors(block))
        self.ws = WsApi(given.urls.ws_api, clock=clock, credentials=Credentials(*given.keys), offset_ms=lambda: self.rest.offset_ms,
                        governor=self.rest.governor, on_state=lambda up: block.set("ws_api_live", int(up)), on_fault=self._fault)  # fmt: skip
        self.rules: dict[str, SymbolRules] = {}  # of what is traded in this run
        self.gateway = Gateway(self.rest, self.ws, terms.rules, s.protection_price)
        ids = ClientIds(self.rest.timestamp())
        self.portfolio = Portfolio(
            s.max_open_positions, cooldown_ms=s.cooldown_seconds * 1000, naked_ns=s.naked_limit_ms * 1_000_000, next_id=ids.next,
            taker_rate=terms.fee[1])  # fmt: skip
        limits = Limits(s.daily_loss_limit, s.max_drawdown)
        if (memory := journal.recall("limits")) is not None:
            limits.recall(memory)
        self.trade = Trade(Desk(
            clock=clock, journal=journal, portfolio=self.portfolio, gateway=self.gateway, bus=self.bus, block=block, limit=limit_of(s), limits=limits,
            ids=ids, rules=self.rules, quote_of=lambda symbol: self.brain.quote_of(symbol), fee=terms.fee,
            maintenance=lambda symbol: terms.maintenance.get(symbol, MAINTENANCE_FALLBACK)), life.fail)  # fmt: skip
        self.stream = UserStream(self.rest, given.urls.private, on_event=self.trade.on_event, on_state=self._stream_state, on_fault=self._fault)
        self.trade.on_missed = self.stream.restart
        self._streaming = asyncio.Event()
        self._recheck_wanted = asyncio.Event()
        self._told_held: frozenset[str] = frozenset()
        self.trade.holds["stream"] = STREAM_DOWN

    def open_market(self, symbols: tuple[SymbolRules, ...]) -> None:
        """From now on there is a Brain, and a price of what it reads."""
        block, s = self.life.block, self.life.settings
        self.brain = _make_brain(self.life, self.given, self.journal, self.bus, symbols)
        student = self.brain.decider.student
        self.trade.evidence = student is not None and student.may_trade_live
        self.leverage = s.max_leverage_teacher if student is None else s.max_leverage_student
        block.set("leverage_cap", float(self.leverage))
        block.set("confidence_source", int(student is not None))
        self.gateway.learn_rules({r.symbol: r for r in symbols})
        self.rules |= {r.symbol: r for r in symbols}

    def _fault(self, error: AegisError) -> None:
        """A connection could not be made: a bad key ends the process, a clock that is off is set right, the rest tries again by itself."""
        if isinstance(error, Fatal):
            self.life.fail(error)
        elif code_of(error) == CLOCK_SKEW:
            self.trade.spawn(self.rest.sync_time())

    def _stream_state(self, up: bool) -> None:
        """The user stream replays nothing: without it nothing opens, and after it everything is compared again."""
        self.life.block.set("user_stream_live", int(up))
        if not up:
            self.trade.holds["stream"] = STREAM_DOWN
            return
        if self.trade.recovering:
            self.recheck()
        self.trade.holds.pop("stream", None)
        self._streaming.set()

    def recheck(self) -> None:
        """Compare with the venue again, soon: after a reconnect, or when the Orchestrator saw a difference. Nothing opens from now on."""
        self.trade.holds["recheck"] = "to be reconciled with the venue"
        self._recheck_wanted.set()

    async def _rechecks(self) -> None:
        """One comparison at a time; one that fails is tried again, and nothing opens until it has passed."""
        while True:
            await self._recheck_wanted.wait()
            self._recheck_wanted.clear()
            passing = reconcile(self.trade, self.portfolio, self.gateway, self.given.clock)  # which holds by itself from here on
            self.trade.holds.pop("recheck", None)
            try:
                await passing
            except (Fatal, Halt):
                raise
            except AegisError as error:
                failure("comparing with the venue failed and is tried again", error)
                self.recheck()
                await asyncio.sleep(RETRY_S)

    async def live(self) -> None:
        """Money first: what is held is recovered and protected, then the market is read, then new entries."""
        table = _told(self.life)
        connections = [self.ws.start(), self.stream.start()]
        try:
            with contextlib.suppress(TimeoutError):  # without the stream recovery is repeated when it comes
                async with asyncio.timeout(CONNECT_S):
                    await self._streaming.wait()
            self.trade.recovering = True
            connections += [asyncio.ensure_future(self._ticks()), asyncio.ensure_future(self._rechecks())]
            await recover(self.trade, self.journal, self.portfolio, self.gateway, self.given.clock)
            if await _first(self.life, [table], connections) and await _first(self.life, [_in_thread(warm_up)], connections):
                word, symbols = table.result()
                assert word == "table", word
                await self._trade_market(tuple(symbols), connections)
            else:
                await self._settle()
        finally:
            for task in connections[2:]:
                task.cancel()
            self.trade.remember()
            await self.stream.close()
            await self.ws.close()

    async def _trade_market(self, symbols: tuple[SymbolRules, ...], connections: list[asyncio.Task[None]]) -> None:
        """Read the ring and trade, until stopped."""
        self.open_market(symbols)
        self.brain.start(self.life.fail, lambda error: self.trade.latch("halt", f"{type(error).__name__}: {error}"))
        try:
            commands = {"recheck": self.recheck, "flatten": lambda: self.trade.flatten("flattened by the operator")}
            hear(self.given.control, partial(obey, commands))
            hear(self.given.told, self._on_feed)
            self.life.ready()
            await self._run(connections)
            await self._settle()
        finally:
            self.brain.stop()

    async def _run(self, connections: list[asyncio.Task[None]]) -> None:
        """Until stopped. A task that ends by itself failed, and ends the process: the container starts it anew, and starting is recovering."""
        life, clock, market = self.life, self.given.clock, self.brain.market
        mine = [asyncio.ensure_future(work) for work in (
            life.stop.wait(), self._steady(), keep_history(market, self.data, clock, self.brain.arm, life.stop),
            keep_prepared(self.trade, self.rest, self.rules, self.leverage, life.stop),
            Auditor(market, self._klines, clock, life.block).run())]  # fmt: skip
        waiting = {*mine, *connections}
        try:
            while not life.stop.is_set():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in mine:
                task.cancel()

    async def _klines(self, symbol: str, start_ms: int, limit: int) -> Any:
        return await klines(self.data, symbol, self.life.settings.candle_interval, start_ms=start_ms, limit=limit)

    async def _ticks(self) -> None:
        while True:
            self.trade.tick()
            await asyncio.sleep(TICK_S)

    async def _steady(self) -> None:
        """Once a second: the parked ring, stale symbols, the limits' memory, the request budget; now and then the venue's time."""
        life, clock = self.life, self.given.clock
        stale_ms = life.settings.stale_ms * clock.speed
        for second in count(1):
            await asyncio.sleep(STEADY_S)
            self.brain.recheck()
            life.block.set("stale_symbols", self.brain.stale_symbols(stale_ms))
            life.block.set("wal_bytes", self.journal.wal_bytes())
            show_use(self.rest.governor, clock, life.block)
            self._show_market()
            self._leave()
            if second % REMEMBER_S == 0:
                self.trade.remember()
            if second % SYNC_S == 0:
                self.trade.spawn(self._sync())

    def _on_feed(self, message: tuple[str, Any]) -> None:
        """New symbols, and new rules of known ones. They are streamed once this has been answered."""
        word, (version, places) = message
        assert word == "symbols", word
        for place, rules in sorted(places.items()):
            self.brain.know(place, rules)
            self.rules[rules.symbol] = rules
        self.gateway.learn_rules({rules.symbol: rules for rules in places.values()})
        self.given.say.send(("known", version))

    def _leave(self) -> None:
        """What is held of a contract that ends is closed in time; and the Feed is told what is held, since that is streamed to the last."""
        now_ms = self.given.clock.market_ms()
        for symbol in self.brain.ending(now_ms + self.life.settings.leave_lead_seconds * 1000):
            slot = self.portfolio.slots.get(symbol)
            if slot is not None and slot.state in (State.OPENING, State.OPEN):
                lifecycle(f"🚪 {symbol} is left: its contract ends")
                self.trade.run(self.portfolio.leave(symbol, "the contract ends", monotonic_ns()))
        held = frozenset(self.portfolio.slots) | frozenset(self.portfolio.foreign)
        if held != self._told_held:
            self._told_held = held
            self.given.say.send(("held", tuple(held)))

    def _show_market(self) -> None:
        block, counts = self.life.block, self.brain.market.statistics()
        block.set("late_trades", counts["late"])
        block.set("setups_refused", self.brain.setups_refused)
        block.set("seq_errors", self.given.ring.statistics()["seq_errors"])

    @catch_and_log("the venue's time was not measured")
    async def _sync(self) -> None:
        await self.rest.sync_time()

    async def _settle(self) -> None:
        """No new entries; what is in flight gets its answer, and with ON_SHUTDOWN=flatten everything is closed."""
        trade, portfolio = self.trade, self.portfolio
        trade.holds["stop"] = "stopping"
        flatten = self.life.settings.on_shutdown == "flatten"
        if flatten:
            trade.flatten("stopping")
        deadline = monotonic_ns() + int(SETTLE_S * 1e9)
        while monotonic_ns() < deadline and (portfolio.slots if flatten else portfolio.in_flight()):
            trade.tick()
            await asyncio.sleep(0.02)
        held = [f"{x.symbol} {x.qty * x.side.sign}" for x in portfolio.slots.values() if x.qty > 0]
        if held:
            lifecycle(f"⚓ Left open, with stops on the exchange: {', '.join(held)}")
        if portfolio.in_flight():
            warn("an order was still without an answer: the next start asks for it")
