"""The Brain process's wiring: who is told of what."""

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
from src.brain_process import Given, Room, Terms, _first
from src.clock import real_clock
from src.counters import Counters
from src.error_handler import Halt
from src.journal import Journal
from src.market_universe import FALLBACK
from src.ring_buffer import Ring
from src.ring_memory import RingMemory
from src.venue.governor import Governor
from src.venue.rest import Rest
from src.venue.signing import Credentials

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """Wired, and connected to nothing."""
    clock, memory, counters, journal = real_clock(), RingMemory.create(10_000), Counters.create(), Journal(tmp_path)
    settings = config.load({"STATE_DIR": str(tmp_path), "MODELS_DIR": str(tmp_path)}, dotenv=None)
    rest = Rest(NOWHERE, clock=clock, governor=Governor(clock.unscaled_ms), credentials=Credentials("k" * 64, "s" * 64))
    control, say, told = Pipe(duplex=False), Pipe(duplex=False), Pipe(duplex=False)
    given = Given(Ring.over(memory), config.local_endpoints(NOWHERE), clock, control[0], ("k" * 64, "s" * 64), lambda folder: None, say[1], told[0])
    life: Any = SimpleNamespace(settings=settings, block=counters.block("brain"), counters=counters, fail=lambda error: None, stop=asyncio.Event())
    yield Room(life, given, journal, Terms(rest, rest, {r.symbol: r for r in FALLBACK}, (D("0.0002"), D("0.0005")), {}))
    await rest.close()
    journal.close()
    for end in (*control, *say, *told):
        end.close()
    counters.close()
    memory.close()


async def test_a_stream_that_misses_events_is_replaced(room: Room) -> None:
    assert room.trade.on_missed == room.stream.restart


async def test_nothing_opens_from_the_very_moment_the_stream_is_back(room: Room) -> None:
    """Not only once the task that compares has had its turn."""
    room.trade.holds.clear()
    room.trade.recovering = True
    room._stream_state(False)
    room._stream_state(True)
    assert "reconcil" in room.trade.halted
    room.trade.holds.clear()
    room.recheck()
    assert "reconcil" in room.trade.halted


async def test_the_start_waits_for_all_of_it_and_for_the_stop_alone(caplog: pytest.LogCaptureFixture) -> None:
    life: Any = SimpleNamespace(stop=asyncio.Event())
    loop = asyncio.get_running_loop()
    one, two, running = loop.create_future(), loop.create_future(), loop.create_future()
    waiting = asyncio.ensure_future(_first(life, [one, two], [running]))
    one.set_result(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    two.set_result(2)
    assert await waiting
    never = loop.create_future()
    waiting = asyncio.ensure_future(_first(life, [never], [running]))
    await asyncio.sleep(0)
    life.stop.set()
    assert not await waiting and not caplog.records


async def test_what_should_be_running_and_ends_in_an_error_ends_the_start() -> None:
    life: Any = SimpleNamespace(stop=asyncio.Event())
    loop = asyncio.get_running_loop()
    never, running = loop.create_future(), loop.create_future()
    running.set_exception(Halt("cannot be"))
    with pytest.raises(Halt):
        await _first(life, [never], [running])
