"""A child's life, from its first line to its exit code: hide secrets, take a name, watch the parent, run the loop, beat once a second.

Invariants: SIGTERM sets ``stop`` and nothing else; a child whose supervisor is gone ends by itself, even when its loop hangs; what it
cannot go on without (Fatal) is said over the pipe before it exits with 2; any other end is a death, with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import setproctitle

from src.clock import monotonic_ns
from src.config import Settings
from src.counters import READY, STOPPING, Block, Counters
from src.error_handler import Fatal, failure, hide, setup_logging

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with contextlib.suppress(ImportError):  # a platform without uvloop
    import uvloop

    new_event_loop = uvloop.new_event_loop

BEAT_S = 1.0
ORPHAN_S = 8.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Life:
    """What every child has: its pipe to the supervisor, its settings, its counters and its end."""

    name: str
    pipe: Connection
    settings: Settings
    counters: Counters
    block: Block
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    failed: list[BaseException] = field(default_factory=list)

    def progress(self, text: str) -> None:
        self.pipe.send(("progress", text))

    def ready(self, value: Any = None) -> None:
        """Everything runs. What was made until now stays as long as the process, so the collector need not go through it ever again: a
        full collection would hold up the loop for a tenth of a second."""
        gc.freeze()
        self.block.set("state", READY)
        self.block.beat(monotonic_ns())
        self.pipe.send(("ready", value))

    def fail(self, error: BaseException) -> None:
        """End this process with that error."""
        self.failed.append(error)
        self.stop.set()


def live(name: str, pipe: Connection, settings: Settings, counters: Counters, main: Callable[[Life], Awaitable[None]]) -> None:
    """Run ``main`` as this process until it returns or raises."""
    begin(name, settings)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_main(Life(name, pipe, settings, counters, counters.block(name)), main))
    except Fatal as error:
        pipe.send(("fatal", str(error)))
        sys.exit(2)
    except Exception as error:
        failure(f"{name} ends", error)
        sys.exit(1)


def begin(name: str, settings: Settings) -> None:
    """What every child does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    setproctitle.setproctitle(f"aegis: {name}")
    setup_logging(name, settings.log_level, settings.log_format)
    hide((settings.binance_api_key, settings.binance_api_secret))
    _watch_parent()


async def _main(life: Life, main: Callable[[Life], Awaitable[None]]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, life.stop.set)
    life.block.set("pid", os.getpid())
    life.block.set("started_ns", monotonic_ns())
    beat = asyncio.ensure_future(_beat(life))
    try:
        await main(life)
    finally:
        life.block.set("state", STOPPING)
        beat.cancel()
    if life.failed:
        raise life.failed[0]


def hear(pipe: Connection, on_message: Callable[[tuple[str, Any]], None]) -> None:
    """Every message of a pipe to the running loop, from a thread of its own until the pipe ends.

    Not by ``add_reader``: a loop may make the descriptor non-blocking, and a large message then breaks in the middle of ``recv``.
    """
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(EOFError, OSError, RuntimeError):  # the other end is gone, or this loop is
            while True:
                loop.call_soon_threadsafe(on_message, pipe.recv())

    threading.Thread(target=read, name="hear", daemon=True).start()


def pss_bytes(pid: int) -> int:
    """Memory of a process, with its part of what it shares; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def _beat(life: Life) -> None:
    """Once a second, from the loop itself: a loop that hangs does not beat."""
    while True:
        life.block.beat(monotonic_ns())
        life.block.set("rss_bytes", _rss_bytes())
        await asyncio.sleep(BEAT_S)


def _watch_parent() -> None:
    """A thread that waits on the parent's sentinel: without a supervisor this process stops, and does not hang doing so."""
    parent = parent_process()
    assert parent is not None, "only children watch a parent"

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
