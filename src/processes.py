"""What each process runs: the composition root, and the only place that picks a mode. Heavy imports stand inside the functions, since
``spawn`` imports this module anew in every child, and each child shall hold only what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from src.clock import Clock, monotonic_ns, real_clock
from src.config import SIM_KEY, SIM_SECRET, Endpoints, Settings, endpoints
from src.counters import Counters
from src.error_handler import AegisError, Fatal, warn
from src.life import Life, live
from src.ring_memory import RingMemory


def credentials(settings: Settings) -> tuple[str, str]:
    """The keys of the account that orders go to. The spawned local exchange has an account of its own."""
    if settings.local_exchange and not settings.exchange_url:
        return SIM_KEY, SIM_SECRET
    if settings.local_exchange:
        return settings.binance_api_key or SIM_KEY, settings.binance_api_secret or SIM_SECRET
    return settings.binance_api_key, settings.binance_api_secret


def exchange(name: str, pipe: Connection, settings: Settings, counters: Counters) -> None:
    live(name, pipe, settings, counters, _exchange)


async def _exchange(life: Life) -> None:
    """Ready is said in our own words, so that the supervisor loads nothing of the exchange."""
    from src.exchange.options import Account, ExchangeOptions, VenueUrls
    from src.exchange.server import serve

    s = life.settings
    if s.trading_mode == "paper":
        urls = endpoints(s)
        venue, market = VenueUrls(urls.data, urls.market, urls.public), "binance"
        symbols = tuple(rules.symbol for rules in await _universe(life, urls, real_clock()))
    else:
        venue, market, symbols = None, s.sim_market, s.symbols or _offered(s)
    options = ExchangeOptions(
        market=market, symbols=symbols, seed=s.sim_seed, path=s.sim_data or None, start=s.sim_start, venue=venue,
        speed=s.sim_speed, latency_ms=s.sim_latency_ms,
        accounts=(Account(SIM_KEY, SIM_SECRET, s.sim_balance),), books_dir=str(Path(s.state_dir) / "exchange"))  # fmt: skip

    def on_ready(ready: Any) -> None:
        life.ready((Endpoints(ready.rest, ready.public, ready.market, ready.private, ready.ws_api, ready.rest), ready.clock))

    try:
        await serve(options, on_ready, life.stop)
    except Fatal as error:
        setting = {"SYMBOLS": "SYMBOLS", "SIM_DATA": "SIM_DATA"}.get(str(error.fields.get("setting", "")), "")
        raise Fatal(f"{setting}={error.fields.get('value')!r}: {error}" if setting and setting not in str(error) else str(error)) from error


def _offered(s: Settings) -> tuple[str, ...]:
    """The synthetic market offers what UNIVERSE_SIZE asks for; a recording what it holds."""
    from src.exchange.symbols import scaled_universe

    return scaled_universe(s.universe_size) if s.sim_market == "synthetic" else ()


def feed(name: str, pipe: Connection, settings: Settings, counters: Counters, ring: RingMemory, urls: Endpoints, clock: Clock) -> None:
    async def main(life: Life) -> None:
        from src.feed import FeedOptions, run_feed, warm_up
        from src.ring_buffer import Ring

        symbols = await _universe(life, urls, clock)
        life.pipe.send(("table", symbols))
        warm_up(_progress(life))
        options = FeedOptions(urls.market, urls.public, urls.data, clock, symbols, close_grace_ms=settings.close_grace_ms)
        await run_feed(options, Ring.over(ring), life.counters, life.ready, life.stop)

    live(name, pipe, settings, counters, main)


async def _universe(life: Life, urls: Endpoints, clock: Clock) -> Any:
    """The symbols of this run, in the order of their indices: by volume, or those that were asked for. Twenty pairs that everybody knows
    where the venue does not answer. In paper no others than the local exchange lists, which are those and what is held there."""
    from src.market_universe import FALLBACK, select
    from src.venue.budget import shared_governor
    from src.venue.queries import symbol_rules, volumes_24h
    from src.venue.rest import Rest

    s = life.settings
    governor = shared_governor(clock, life.counters, life.block)
    rest = Rest(urls.data, clock=clock, governor=governor)
    try:
        rules, _ = await symbol_rules(rest)
        volumes = await volumes_24h(rest)
    except Fatal:
        raise
    except AegisError as error:
        warn(f"the venue does not say what it trades ({error}): the {len(FALLBACK)} fallback pairs are used")
        rules, volumes = {r.symbol: r for r in FALLBACK}, {}
    finally:
        await rest.close()
    size = s.universe_size
    if urls.rest not in ("", urls.data):
        orders = Rest(urls.rest, clock=clock, governor=governor)
        try:
            listed, _ = await symbol_rules(orders)
        finally:
            await orders.close()
        rules = {name: one for name, one in rules.items() if name in listed}
        size = size if s.exchange_url else len(rules)
    return select(rules, volumes, size=size, include=s.symbols, now_ms=clock.market_ms())


def _progress(life: Life) -> Callable[[int, int, str], None]:
    """Kernels are compiled at the first start: say so, but not for those that the cache answers at once."""
    started = monotonic_ns()

    def show(done: int, total: int, name: str) -> None:
        if monotonic_ns() - started > 2e9:
            life.progress(f"preparing kernels {done}/{total} ({name}); only the first start takes this long")

    return show


def brain(name: str, pipe: Connection, settings: Settings, counters: Counters, ring: RingMemory, urls: Endpoints, clock: Clock,
          control: Connection) -> None:  # fmt: skip
    async def main(life: Life) -> None:
        from src.brain_process import Given, run_brain
        from src.ring_buffer import Ring

        await run_brain(life, Given(Ring.over(ring), urls, clock, control, credentials(settings), _load_student), _progress(life))

    live(name, pipe, settings, counters, main)


def _load_student(models_dir: str) -> Any:
    """The trained model, and LightGBM with it, only where there is one."""
    if not any((Path(models_dir) / name).exists() for name in ("model.txt", "model.json")):
        return None
    from src.student import Student

    return Student.load(models_dir)


def orchestrator(name: str, pipe: Connection, settings: Settings, counters: Counters, urls: Endpoints, clock: Clock,
                 control: Connection) -> None:  # fmt: skip
    async def main(life: Life) -> None:
        from src.orchestrator import run_orchestrator

        await run_orchestrator(life, urls, clock, control, credentials(settings))

    live(name, pipe, settings, counters, main)
