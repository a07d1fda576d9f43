"""The Orchestrator's shell: reconciliation, heartbeat and maintenance on their timers, and the HTTP face. It sends no order.

Cadences are market time. A chore that fails is logged, counted and tried again; it harms nothing else. What it finds wrong it tells the
Brain over the control pipe, which looks again by itself and does the repairs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from multiprocessing.connection import Connection

from src import VERSION
from src.clock import Clock, monotonic_ns
from src.config import Endpoints
from src.dashboard import application, serve
from src.dispatch import Dispatcher, Priority
from src.error_handler import AegisError, Fatal, failure, info, lifecycle, warn
from src.journal import Reader
from src.life import Life, pss_bytes
from src.maintenance import maintain
from src.reconciliation import Mismatch, Report, compare, wallet_check
from src.system_monitor import Limits, Pulse, heartbeat, judge, slot_of
from src.venue import queries
from src.venue.budget import shared_governor, show_use
from src.venue.rest import Rest
from src.venue.signing import Credentials

RETRY_S = 5.0
TWICE_S = 3.0
DAY_MS = 86_400_000
AHEAD_MS = 5_000
"""So far the venue's clock may be before what we take it for."""


class Orchestrator:
    """Its three chores and what they share. ``control``: the writing end of the pipe to the Brain."""

    def __init__(self, life: Life, rest: Rest, clock: Clock, control: Connection, dispatcher: Dispatcher) -> None:
        self._life = life
        self._rest = rest
        self._clock = clock
        self._control = control
        self._dispatcher = dispatcher
        self._journal = Reader(life.settings.state_dir)
        s = life.settings
        self._limits = Limits(s.hung_seconds, s.stale_ms / 1000, exchange=s.local_exchange and not s.exchange_url)
        self._started_ns = monotonic_ns()
        self._last_maintenance_ms = clock.market_ms()
        self._base: tuple[Decimal, int] | None = None

    def reasons(self) -> list[str]:
        return judge(self._life.counters.snapshot(), self._limits, monotonic_ns())

    def live(self) -> bool:
        return self._life.counters.age_s("supervisor", monotonic_ns()) < self._life.settings.hung_seconds

    async def reconcile(self) -> None:
        """Compare the journal with the venue; a difference counts when it is seen twice, 3 s apart, since the rest is movement."""
        report = await self._compare()
        if report.mismatches:
            await asyncio.sleep(TWICE_S)
            report = (await self._compare()).only([(m.kind, m.symbol) for m in report.mismatches])
        report = report.plus(await self._check_wallet())
        block = self._life.block
        block.add("reconciliations")
        block.add("matches", report.matches)
        block.add("mismatches", len(report.mismatches))
        good, bad = report.lines()[:2], report.lines()[2:]
        for line in good:
            lifecycle(line)
        for line in bad:
            warn(line)
        if bad:
            self._control.send(("recheck", None))

    async def _compare(self) -> Report:
        held = await queries.positions(self._rest)
        guards = await queries.open_algo_orders(self._rest)
        return compare(self._journal.slots(), held, guards, await queries.open_orders(self._rest))

    async def _check_wallet(self) -> Mismatch | None:
        """The wallet against the venue's statement since the last check that passed; skipped where money moves just now.

        The base moves to the newest row that was counted, by the venue's time and not by ours: nothing falls between two checks. After a
        check that did not pass it stays, so that a row which comes late is counted still.
        """
        before = await queries.account(self._rest)
        now_ms = self._rest.timestamp()
        if self._base is None:
            self._base = (before.wallet, now_ms)
            return None
        wallet, since_ms = self._base
        rows = await queries.income(self._rest, since_ms + 1, now_ms + AHEAD_MS)
        if (await queries.account(self._rest)).wallet != before.wallet:
            return None
        found = wallet_check(wallet, rows, before.wallet)
        if rows and found is None:
            self._base = (before.wallet, max(row.time_ms for row in rows))
        return found

    async def beat(self) -> None:
        figures, now_ns = self._life.counters.snapshot(), monotonic_ns()
        s = self._life.settings
        now_ms = self._clock.market_ms()
        closed = [Decimal(r[2]) - Decimal(r[3]) for r in self._journal.trades_since(now_ms - DAY_MS)]
        teacher = not figures["brain"]["confidence_source"]
        live_without = s.trading_mode == "live" and not s.require_evidence
        pulse = Pulse(
            mode=s.trading_mode, market_ms=now_ms, uptime_s=(now_ns - self._started_ns) / 1e9,
            slots=[slot_of(b) for b in self._journal.slots().values()], closed_24h=closed, latches=self._journal.latches(),
            max_positions=s.max_open_positions, leverage_cap=s.max_leverage_teacher if teacher else s.max_leverage_student, teacher=teacher,
            evidence_note="REQUIRE_EVIDENCE=0: LIVE WITHOUT EVIDENCE" if live_without else "",
            memory_bytes=sum(pss_bytes(int(f["pid"])) for f in figures.values() if f["pid"]))  # fmt: skip
        self._life.block.add("heartbeats")
        lifecycle(heartbeat(figures, pulse, self.reasons(), now_ns))

    async def maintain(self) -> None:
        s, now_ms = self._life.settings, self._clock.market_ms()
        work = self._dispatcher.submit(Priority.LOW, "maintenance", maintain, s.state_dir, s.data_dir, now_ms, self._last_maintenance_ms)
        report = await work
        self._last_maintenance_ms = now_ms
        self._life.block.add("maintenance_runs")
        lifecycle(f"🧹 Maintenance: {report.trades} trades since the last, net {Decimal(report.net):+.4f}", pruned=report.rows_pruned,
                  checkpointed=report.pages_checkpointed, disk_free_gb=round(report.disk_free / 1e9, 1))
        if report.disk_low:
            warn("the disk is nearly full: the journal stops entries when it cannot be written", free_mb=report.disk_free // 1_000_000)

    async def every(self, seconds: int, name: str, chore: Callable[[], Awaitable[None]], *, retry: bool = False) -> None:
        """Run a chore each ``seconds`` of market time, for ever. ``retry``: after a failure, every 5 s (wall) until it succeeds."""
        while True:
            await asyncio.sleep(self._clock.wall_s(seconds * 1000))
            while not await self._once(name, chore) and retry:
                await asyncio.sleep(RETRY_S)

    async def _once(self, name: str, chore: Callable[[], Awaitable[None]]) -> bool:
        try:
            await chore()
            show_use(self._rest.governor, self._clock, self._life.block)
            return True
        except Fatal:
            raise
        except AegisError as error:
            failure(f"{name} failed and is tried again", error)
        except Exception as error:  # a chore ends here, the others go on
            failure(f"{name} failed", error)
        self._life.block.add("chore_errors")
        return False


async def run_orchestrator(life: Life, urls: Endpoints, clock: Clock, control: Connection, keys: tuple[str, str]) -> None:
    """Until ``life.stop``."""
    s = life.settings
    rest = Rest(urls.rest, clock=clock, governor=shared_governor(clock, life.counters, life.block), credentials=Credentials(*keys))
    dispatcher = Dispatcher(workers=1)
    orchestrator = Orchestrator(life, rest, clock, control, dispatcher)
    about = {"mode": s.trading_mode, "version": VERSION}
    runner, port = await serve(application(life.counters.snapshot, orchestrator.reasons, orchestrator.live, about), s.host, s.port)
    lifecycle(f"🌐 http://{'127.0.0.1' if s.host == '0.0.0.0' else s.host}:{port}/health", port=port)
    lifecycle(f"🔄 Cache reconciliation task started (interval: {s.reconcile_seconds}s)")
    chores = [
        asyncio.ensure_future(orchestrator.every(s.reconcile_seconds, "reconciliation", orchestrator.reconcile, retry=True)),
        asyncio.ensure_future(orchestrator.every(s.heartbeat_seconds, "heartbeat", orchestrator.beat)),
        asyncio.ensure_future(orchestrator.every(s.maintenance_seconds, "maintenance", orchestrator.maintain)),
    ]
    try:
        life.ready()
        stopped = asyncio.ensure_future(life.stop.wait())
        done, _ = await asyncio.wait([*chores, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in chores:
            task.cancel()
        dropped = await dispatcher.close(2.0)
        if dropped:
            info(f"not finished: {', '.join(dropped)}")
        await runner.cleanup()
        await rest.close()
