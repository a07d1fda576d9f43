"""The one door: ``python -m src.main [run|exchange|download|release]``, ``run`` when no word is given.

Imports stand inside functions: ``spawn`` imports this module anew in every child.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.clock import Clock
    from src.config import Endpoints, Settings
    from src.supervisor import Supervisor

USAGE = """usage: python -m src.main [command]

  run        the daemon (also without a command); settings come from the environment and .env
  exchange   the local exchange alone: python -m src.main exchange --help
  download   market data from the venue's archive into the Parquet store: python -m src.main download --help
  release    let go of latched limits (daily loss, drawdown, halt): python -m src.main release [name]
"""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(argv: list[str]) -> int:
    from src import kernel_cache

    kernel_cache.use()
    word, rest = (argv[0], argv[1:]) if argv else ("run", [])
    if word in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if word == "exchange":
        from src.exchange.command import main as exchange

        return exchange(rest)
    commands = {"run": run, "download": download, "release": release}
    if word not in commands:
        print(f"unknown command {word!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    from src.error_handler import AegisError, Fatal

    try:
        return commands[word](rest)
    except Fatal as error:
        print(f"🛑 {error}", file=sys.stderr)
        return 2
    except AegisError as error:
        print(f"🔴 {error}", file=sys.stderr)
        return 1


def run(rest: list[str]) -> int:
    """The daemon. Returns its exit code: 0 stopped, 1 a process died (restart it), 2 restarting will not help."""
    from src.config import load, network_environment
    from src.error_handler import Fatal, hide, setup_logging
    from src.sole import sole

    if rest:
        raise Fatal(f"run takes no arguments, and got {' '.join(rest)!r}: settings come from the environment and .env")
    settings = load()
    for name in ("BINANCE_API_KEY", "BINANCE_API_SECRET"):
        os.environ.pop(name, None)  # children that need the keys get them by hand
    for name in THREADS:
        os.environ.setdefault(name, "1")
    os.environ.update(network_environment(settings))
    setup_logging("supervisor", settings.log_level, settings.log_format)
    hide((settings.binance_api_key, settings.binance_api_secret))
    _make_folders(settings)
    with sole(settings.state_dir, "supervisor"):
        _validate_keys(settings)
        return _supervise(settings)


def download(rest: list[str]) -> int:
    """Fill the Parquet store. Returns 0, 1 when something failed, 2 for wrong options, 130 when interrupted."""
    from functools import partial

    try:
        from src.download import command  # takes its time, in which Ctrl-C may come too

        return command(rest, partial(print, flush=True))
    except KeyboardInterrupt:
        print("stopped: what is stored is whole, and the same command goes on", file=sys.stderr)
        return 130


def release(rest: list[str]) -> int:
    """Let go of latches. With ``daily_loss`` the day's start begins anew, with ``drawdown`` the peak, and with others nothing does."""
    from src.config import load
    from src.error_handler import Fatal
    from src.journal import Journal
    from src.risk import Limits

    settings = load()
    journal, limits = Journal(settings.state_dir), Limits(settings.daily_loss_limit, settings.max_drawdown)
    try:
        name = rest[0] if rest else ""
        held = journal.latches()
        if name and name not in held:
            raise Fatal(f"no latch is called {name!r}; held: {', '.join(held) or 'none'}")
        released = journal.release(name)
        if (memory := journal.recall("limits")) is not None:
            limits.recall(memory)
            for latch in released:
                limits.forget(latch)
            journal.remember("limits", limits.memory())
    finally:
        journal.close()
    print("released: " + (", ".join(released) or "nothing was latched"))
    return 0


def _make_folders(settings: Settings) -> None:
    from pathlib import Path

    from src.error_handler import Fatal

    for name in ("state_dir", "data_dir", "models_dir"):
        folder = Path(getattr(settings, name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fatal(f"{name.upper()}={str(folder)!r}: must be a folder that can be written ({error.strerror})") from error


def _validate_keys(settings: Settings) -> None:
    """Before anything else in testnet and live: keys that do not work are Fatal."""
    if settings.local_exchange:
        return
    import asyncio

    from src.clock import real_clock
    from src.config import endpoints
    from src.venue.governor import Governor
    from src.venue.queries import validate_binance_keys
    from src.venue.rest import Rest
    from src.venue.signing import Credentials

    async def validate() -> None:
        clock = real_clock()
        keys = Credentials(settings.binance_api_key, settings.binance_api_secret)
        rest = Rest(endpoints(settings).rest, clock=clock, governor=Governor(clock.unscaled_ms), credentials=keys)
        try:
            await validate_binance_keys(rest)
        finally:
            await rest.close()

    asyncio.run(validate())


def _supervise(settings: Settings) -> int:
    from src import VERSION
    from src.counters import Counters
    from src.error_handler import critical, lifecycle
    from src.ring_memory import RingMemory
    from src.supervisor import Supervisor
    from src.supervisor import run as supervise

    lifecycle(f"🚀 A.E.G.I.S. v{VERSION}", mode=settings.trading_mode)
    lifecycle(f"🔇 Log Level: {settings.log_level}")
    if settings.trading_mode == "live" and not settings.require_evidence:
        critical("REQUIRE_EVIDENCE=0: LIVE WITHOUT EVIDENCE. The rules alone have been measured to lose money after costs.")
    lifecycle(f"💓 System Monitor: Enabled ({settings.heartbeat_seconds / 60:g}-min heartbeat)")
    ring, counters = RingMemory.create(settings.ring_slots), Counters.create()
    lifecycle(f"🔄 Ring buffer ready: {ring.nbytes} bytes")

    def start(supervisor: Supervisor) -> None:
        _start(supervisor, settings, ring, counters)

    try:
        return supervise(Supervisor(counters, settings.hung_seconds), start)
    finally:
        ring.close()
        counters.close()


def _start(supervisor: Supervisor, settings: Settings, ring: Any, counters: Any) -> None:
    """Spawn in order, hand over the symbol table, and wait until each process is ready."""
    from src import processes
    from src.error_handler import lifecycle

    bare = settings.without_secrets()
    compiling = _compile(supervisor, bare, "feed_kernels", "brain_kernels")
    urls, clock = _market(supervisor, settings, counters)
    reading, writing = supervisor.pipe()
    news_in, news_out = supervisor.pipe()
    words_in, words_out = supervisor.pipe()
    lifecycle("🚀 Launching Feed + Brain + Orchestrator processes...")
    supervisor.spawn("brain", processes.brain, settings, counters, ring, urls, clock, reading, words_out, news_in)  # what is held comes first
    supervisor.wait_end(*compiling)
    supervisor.spawn("feed", processes.feed, bare, counters, ring, urls, clock, news_out, words_in)
    supervisor.spawn("orchestrator", processes.orchestrator, settings, counters, urls, clock, writing)
    for end in (reading, writing, news_in, news_out, words_in, words_out):
        end.close()
    (table,) = supervisor.wait_for("table", "feed")
    supervisor.tell("brain", ("table", table))
    supervisor.wait_for("ready", "feed", "brain", "orchestrator")
    lifecycle("✅ All processes running")


def _compile(supervisor: Supervisor, settings: Settings, *names: str) -> list[str]:
    """Spawn those of these compilers whose kernels are not in the cache; their names."""
    from src import kernel_cache, processes

    missing = [name for name in names if not kernel_cache.is_whole(name)]
    for name in missing:
        supervisor.spawn(name, getattr(processes, name), settings)
    return missing


def _market(supervisor: Supervisor, settings: Settings, counters: Any) -> tuple[Endpoints, Clock]:
    """The URLs and the clock of this run: of the venue, of a local exchange that runs already, or of one that is spawned now."""
    from src import processes
    from src.clock import real_clock
    from src.config import endpoints, local_endpoints
    from src.error_handler import info

    if not settings.local_exchange:
        return endpoints(settings), real_clock()
    if settings.exchange_url:
        return endpoints(settings, local_endpoints(settings.exchange_url)), _clock_of(settings)
    supervisor.wait_end(*_compile(supervisor, settings.without_secrets(), "exchange_kernels"))
    supervisor.spawn("exchange", processes.exchange, settings.without_secrets(), counters)
    ((found, clock),) = supervisor.wait_for("ready", "exchange")
    info("the local exchange answers", rest=found.rest)
    return endpoints(settings, found), clock


def _clock_of(settings: Settings) -> Clock:
    """A running local exchange tells its clock with every answer."""
    import asyncio

    from src.error_handler import AegisError, Fatal
    from src.venue.rest import fetch_clock

    try:
        clock = asyncio.run(fetch_clock(settings.exchange_url))
    except AegisError as error:
        raise Fatal(f"EXCHANGE_URL={settings.exchange_url!r}: no local exchange answers there ({error})") from error
    if clock is None:
        raise Fatal(f"EXCHANGE_URL={settings.exchange_url!r}: answers, but is not a local exchange (it tells no clock)")
    if settings.trading_mode == "paper" and clock.speed != 1:
        raise Fatal(f"EXCHANGE_URL={settings.exchange_url!r}: runs at {clock.speed:g} times real time; paper needs one over the venue's market")
    return clock


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
