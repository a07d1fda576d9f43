"""The wallet against the venue's statement: over any length of a run, and though the statement lags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal as D
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src import config
from src.clock import real_clock
from src.counters import Counters
from src.dispatch import Dispatcher
from src.orchestrator import Orchestrator
from src.reconciliation import Kind
from src.venue.answers import Income
from src.venue.queries import PAGE, PAGES_MAX

START_MS = 1_796_000_000_000
HOUR_MS = 3_600_000


class Statement:
    """A venue that knows of one account its wallet and its statement. ``ahead_ms``: how far our idea of its time is before it."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.ahead_ms = 0
        self.wallet = D(1000)
        self.rows: list[Income] = []
        self.late: list[Income] = []
        self.pages = 0

    def book(self, amount: str, *, late: bool = False) -> None:
        """Money moves; ``late``: the statement does not show it yet."""
        self.now_ms += 1
        self.wallet += D(amount)
        number = len(self.rows) + len(self.late)
        (self.late if late else self.rows).append(Income("COMMISSION", D(amount), "USDT", "BTCUSDT", self.now_ms, number, number))

    def catch_up(self) -> None:
        self.rows = sorted([*self.rows, *self.late], key=lambda row: row.time_ms)
        self.late = []

    def timestamp(self) -> int:
        return self.now_ms + self.ahead_ms

    async def get(self, path: str, params: Any = (), **_: Any) -> Any:
        if path == "/fapi/v3/account":
            return self.wallet, D(0)
        if path == "/fapi/v3/positionRisk":
            return []
        assert path == "/fapi/v1/income", path
        self.pages += 1
        return [row for row in self.rows if params["startTime"] <= row.time_ms <= params["endTime"]][: params["limit"]]


@pytest.fixture
async def venue() -> Statement:
    return Statement()


@pytest.fixture
async def orchestrator(venue: Statement, tmp_path: Path) -> AsyncIterator[Orchestrator]:
    counters, (reading, writing), dispatcher = Counters.create(), Pipe(duplex=False), Dispatcher(workers=1)
    settings = config.load({"STATE_DIR": str(tmp_path)}, dotenv=None)
    life: Any = SimpleNamespace(settings=settings, block=counters.block("orchestrator"), counters=counters, stop=asyncio.Event())
    rest: Any = venue
    yield Orchestrator(life, rest, real_clock(), writing, dispatcher)
    await dispatcher.close(1.0)
    reading.close()
    writing.close()
    counters.close()


async def test_a_run_of_any_length_reports_no_false_mismatch(venue: Statement, orchestrator: Orchestrator) -> None:
    """Longer than a statement is followed from its beginning; and each check reads only what is new."""
    assert await orchestrator._check_wallet() is None
    for _ in range(45):
        venue.now_ms += HOUR_MS
        for _ in range(500):
            venue.book("-0.25")
        assert await orchestrator._check_wallet() is None
    assert len(venue.rows) > PAGE * PAGES_MAX and venue.pages == 45


async def test_what_is_missing_stays_a_mismatch(venue: Statement, orchestrator: Orchestrator) -> None:
    await orchestrator._check_wallet()
    venue.book("-3", late=True)
    for _ in range(3):
        venue.now_ms += HOUR_MS
        venue.book("-0.5")
        found = await orchestrator._check_wallet()
        assert found is not None and found.kind is Kind.WALLET


async def test_a_statement_that_lags_heals_itself(venue: Statement, orchestrator: Orchestrator) -> None:
    await orchestrator._check_wallet()
    venue.book("-3", late=True)
    venue.book("-0.5")
    assert await orchestrator._check_wallet() is not None
    venue.now_ms += HOUR_MS
    venue.book("-0.5")
    assert await orchestrator._check_wallet() is not None
    venue.catch_up()
    assert await orchestrator._check_wallet() is None
    venue.book("-0.5")
    assert await orchestrator._check_wallet() is None


@pytest.mark.parametrize("ahead_ms", [-900, 900])
async def test_a_clock_that_is_off_loses_and_repeats_nothing(venue: Statement, orchestrator: Orchestrator, ahead_ms: int) -> None:
    await orchestrator._check_wallet()
    venue.ahead_ms = ahead_ms
    for _ in range(3):
        venue.now_ms += HOUR_MS
        venue.book("-2")
        assert await orchestrator._check_wallet() is None
        venue.book("-2")
        assert await orchestrator._check_wallet() is None
