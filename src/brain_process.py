"""What the Brain process runs: builds Brain and Trade around one loop, in the order that protects money first.

Kernels, then the journal and the venue's word on what is held (``recovery``), then ready; history, leverage and with them new entries come
after, in the background. On stop: no new entries, what is in flight settles, stops stay on the exchange unless ON_SHUTDOWN=flatten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing.connection import Connection

import numpy as np

from src.brain import Brain, Decider, listen, tell_errors
from src.bus import EventBus
from src.clock import Clock, monotonic_ns
from src.config import Endpoints, Settings
from src.error_handler import AegisError, Fatal, Halt, Retryable, lifecycle, warn
from src.features import FEATURE_NAMES
from src.gateway import Gateway
from src.journal import Journal
from src.life import Life
from src.market_state import MarketState
from src.models import SymbolRules
from src.portfolio import Portfolio
from src.preparation import context_interval_ms, keep_history, keep_prepared
from src.recovery import reconcile, recover
from src.ring_buffer import Ring
from src.risk import Limit, Limits
from src.student import Student
from src.teacher import Teacher, warm_up
from src.trade import Desk, Trade
from src.venue.governor import Governor
from src.venue.orders import ClientIds
from src.venue.queries import brackets, commission_rate, validate_binance_keys
from src.venue.rest import Rest
from src.venue.signing import Credentials
from src.venue.user_stream import UserStream
from src.venue.ws_api import WsApi

TICK_S = 0.1
STEADY_S = 1.0
CONNECT_S = 5.0
SETTLE_S = 5.0
SLIPPAGE = 0.0001
"""Expected one way, as a share of the price, for the cost rule; what an entry may slip at most is MAX_SLIPPAGE_BPS."""
FEE_FALLBACK = (Decimal("0.0002"), Decimal("0.0005"))


@dataclass(frozen=True, slots=True)
class Given:
    """What the process is handed besides its life."""

    ring: Ring
    urls: Endpoints
    clock: Clock
    control: Connection
    keys: tuple[str, str]


def limit_of(s: Settings) -> Limit:
    return Limit(
        risk_per_trade=s.risk_per_trade, min_confidence=s.min_confidence, max_slippage_bps=s.max_slippage_bps, max_spread_bps=s.max_spread_bps,
        slots=s.max_open_positions, leverage_teacher=s.max_leverage_teacher, leverage_student=s.max_leverage_student,
        signal_age_ms=s.signal_age_ms, stale_ms=s.stale_ms, require_evidence=s.require_evidence)  # fmt: skip


async def run_brain(life: Life, given: Given, progress: Callable[[int, int, str], None]) -> None:
    """Until ``life.stop``, or until something ends the process."""
    warm_up(progress)
    symbols = await _table(life)
    journal = Journal(life.settings.state_dir)
    try:
        await _trade(life, given, journal, symbols)
    finally:
        journal.close()


async def _table(life: Life) -> tuple[SymbolRules, ...]:
    """The symbol table, which the Feed makes and the supervisor hands on."""
    heard = asyncio.Event()
    asyncio.get_running_loop().add_reader(life.pipe.fileno(), heard.set)
    stopped = asyncio.ensure_future(life.stop.wait())
    arrived = asyncio.ensure_future(heard.wait())
    await asyncio.wait([arrived, stopped], return_when=asyncio.FIRST_COMPLETED)
    asyncio.get_running_loop().remove_reader(life.pipe.fileno())
    for task in (arrived, stopped):
        task.cancel()
    if life.stop.is_set():
        raise Retryable("stopped before the symbol table came")
    word, table = life.pipe.recv()
    assert word == "table", word
    return tuple(table)


async def _trade(life: Life, given: Given, journal: Journal, symbols: tuple[SymbolRules, ...]) -> None:
    s, clock, block = life.settings, given.clock, life.block
    governor = Governor(clock.unscaled_ms)
    rest = Rest(given.urls.rest, clock=clock, governor=governor, credentials=Credentials(*given.keys))
    await rest.sync_time()
    await validate_binance_keys(rest)
    bus = EventBus(tell_errors(block))
    brain = _make_brain(life, given, journal, bus, symbols)
    ws = WsApi(given.urls.ws_api, clock=clock, credentials=Credentials(*given.keys), offset_ms=lambda: rest.offset_ms, governor=governor,
               on_state=lambda up: block.set("ws_api_live", int(up)))  # fmt: skip
    rules = {r.symbol: r for r in symbols}
    gateway = Gateway(rest, ws, rules, s.protection_price)
    ids = ClientIds(rest.timestamp())
    limits = Limits(s.daily_loss_limit, s.max_drawdown)
    if (memory := journal.recall("limits")) is not None:
        limits.recall(memory)
    fee, rates = await _rates(rest, symbols[0].symbol)
    portfolio = Portfolio(s.max_open_positions, cooldown_ms=s.cooldown_seconds * 1000, naked_ns=s.naked_limit_ms * 1_000_000, next_id=ids.next,
                          taker_rate=fee[1])  # fmt: skip
    desk = Desk(clock, journal, portfolio, gateway, bus, block, limit_of(s), limits, ids, rules, brain.quote_of, fee,
                lambda symbol: rates.get(symbol, Decimal("0.05")))  # fmt: skip
    trade = Trade(desk, life.fail)
    student = brain.decider.student
    trade.evidence = student is not None and student.may_trade_live
    streaming = asyncio.Event()
    stream = UserStream(rest, given.urls.private, on_event=trade.on_event, on_state=lambda up: _stream_state(trade, desk, streaming, up=up))
    ws.start()
    stream.start()
    try:
        with contextlib.suppress(TimeoutError):  # without the stream recovery is repeated when it comes
            await asyncio.wait_for(streaming.wait(), CONNECT_S)
        trade.recovering = True
        await recover(trade, journal, portfolio, gateway, clock)
        brain.start(life.fail)
        listen(given.control, {"recheck": lambda: trade.spawn(reconcile(trade, portfolio, gateway, clock)),
                               "flatten": lambda: trade.flatten("flattened by the operator")})  # fmt: skip
        block.set("leverage_cap", float(desk.limit.leverage(brain.decider.source)))
        block.set("confidence_source", int(student is not None))
        life.ready()
        await _run(life, given, brain, trade, rest)
        await _settle(life, trade, portfolio)
    finally:
        brain.stop()
        trade.remember()
        await stream.close()
        await ws.close()
        await rest.close()


def _make_brain(life: Life, given: Given, journal: Journal, bus: EventBus, symbols: tuple[SymbolRules, ...]) -> Brain:
    s = life.settings
    market = MarketState(
        tuple(r.symbol for r in symbols), np.array([float(r.step) for r in symbols]), candle_ms=s.candle_ms, setup_ms=s.setup_ms,
        context_ms=context_interval_ms(s.setup_ms), atr_period=s.atr_period, rsi_period=s.rsi_period)  # fmt: skip
    student = _student(s, journal)
    decider = Decider(Teacher(), float(s.min_confidence), float(FEE_FALLBACK[1]), SLIPPAGE, student)
    return Brain(given.ring, market, decider, bus, life.block, given.clock, journal)


def _student(s: Settings, journal: Journal) -> Student | None:
    """A promoted model decides once the teacher has closed TEACHER_THRESHOLD trades; a model that does not fit is named and left."""
    try:
        student = Student.load(s.models_dir, FEATURE_NAMES)
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


async def _rates(rest: Rest, symbol: str) -> tuple[tuple[Decimal, Decimal], dict[str, Decimal]]:
    """(maker, taker) commission and the maintenance margin ratio of each symbol, as the venue says for this account."""
    try:
        table = await brackets(rest)
        return await commission_rate(rest, symbol), {name: rows[0].rate for name, rows in table.items() if rows}
    except Fatal:
        raise
    except AegisError as error:
        warn(f"the account's rates are not known, the standard ones are used: {error}")
        return FEE_FALLBACK, {}


def _stream_state(trade: Trade, desk: Desk, streaming: asyncio.Event, *, up: bool) -> None:
    """The user stream replays nothing: without it nothing opens, and after it everything is compared again."""
    desk.block.set("user_stream_live", int(up))
    if not up:
        trade.holds["stream"] = "the user stream is down"
        return
    trade.holds.pop("stream", None)
    streaming.set()
    if trade.recovering:
        trade.spawn(reconcile(trade, desk.portfolio, desk.gateway, desk.clock))


async def _run(life: Life, given: Given, brain: Brain, trade: Trade, rest: Rest) -> None:
    """The timers, until the end. A task that fails ends the process: the container starts it anew, and starting is recovering."""
    s = life.settings
    leverage = s.max_leverage_student if brain.decider.student is not None else s.max_leverage_teacher
    tasks = [asyncio.ensure_future(work) for work in (
        keep_history(brain.market, rest, given.clock, life.stop),
        keep_prepared(trade, rest, brain.market.symbols, leverage, life.stop),
        _ticks(trade), _steady(life, given, brain, trade))]  # fmt: skip
    stopped = asyncio.ensure_future(life.stop.wait())
    waiting = {*tasks, stopped}
    try:
        while stopped in waiting and not stopped.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _ticks(trade: Trade) -> None:
    while True:
        trade.tick()
        await asyncio.sleep(TICK_S)


async def _steady(life: Life, given: Given, brain: Brain, trade: Trade) -> None:
    """Once a second: parked ring, stale symbols, the journal's log, the limits' memory."""
    stale_ns = life.settings.stale_ms * 1_000_000
    while True:
        brain.recheck()
        life.block.set("stale_symbols", brain.stale_symbols(given.clock.speed * stale_ns / 1e6))
        trade.remember()
        await asyncio.sleep(STEADY_S)


async def _settle(life: Life, trade: Trade, portfolio: Portfolio) -> None:
    """No new entries; what is in flight gets its answer, and with ON_SHUTDOWN=flatten everything is closed."""
    trade.holds["stop"] = "stopping"
    flatten = life.settings.on_shutdown == "flatten"
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
    if life.failed and isinstance(life.failed[0], Halt):
        warn("stopped by a halt", reason=str(life.failed[0]))
