"""What each process runs: the composition root, and the only place that picks a mode. Heavy imports stand inside the functions, since
``spawn`` imports this module anew in every child, and each child shall hold only what it needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from src.clock import Clock, real_clock
from src.config import SIM_KEY, SIM_SECRET, Endpoints, Settings, endpoints
from src.counters import Counters
from src.error_handler import AegisError, Fatal, lifecycle, warn
from src.life import Life, begin, live
from src.ring_memory import RingMemory


def credentials(settings: Settings) -> tuple[str, str]:
    """The keys of the account that orders go to. The spawned local exchange has an account of its own."""
    if settings.local_exchange and not settings.exchange_url:
        return SIM_KEY, SIM_SECRET
    if settings.local_exchange:
        return settings.binance_api_key or SIM_KEY, settings.binance_api_secret or SIM_SECRET
    return settings.binance_api_key, settings.binance_api_secret


def feed_kernels(name: str, pipe: Connection, settings: Settings) -> None:
    """Compile the Feed's kernels, and end: the compiler's memory goes with this process, and the Feed only loads what is there."""
    begin(name, settings)
    from src import kernel_cache
    from src.feed import warm_up

    warm_up(partial(_compiling, pipe))
    kernel_cache.mark_whole(name)


def brain_kernels(name: str, pipe: Connection, settings: Settings) -> None:
    """The same for the Brain."""
    begin(name, settings)
    from src import kernel_cache
    from src.teacher import warm_up

    warm_up(partial(_compiling, pipe))
    kernel_cache.mark_whole(name)


def exchange_kernels(name: str, pipe: Connection, settings: Settings) -> None:
    """The same for the local exchange, whose kernels are those of any made market."""
    begin(name, settings)
    from src import kernel_cache
    from src.clock import epoch_ms
    from src.exchange.market import open_made_up

    _compiling(pipe, "the exchange's market")
    open_made_up("synthetic", symbols=("BTCUSDT",), seed=1, path=None, now_ms=epoch_ms(), resume=None)
    kernel_cache.mark_whole(name)


def _compiling(pipe: Connection, name: str) -> None:
    pipe.send(("progress", f"compiling {name}; only the first start takes this long"))


def exchange(name: str, pipe: Connection, settings: Settings, counters: Counters) -> None:
    live(name, pipe, settings, counters, _exchange)


async def _exchange(life: Life) -> None:
    """Ready is said in our own words, so that the supervisor loads nothing of the exchange."""
    from src.exchange.options import Account, ExchangeOptions, VenueUrls
    from src.exchange.server import serve
    from src.sole import sole_child

    s = life.settings
    if s.trading_mode == "paper":
        urls = endpoints(s)
        venue, market = VenueUrls(urls.data, urls.market, urls.public), "binance"
        async with _listing(life, urls, real_clock()) as listing:
            table, _ = await _universe(life, listing, real_clock())
        symbols = tuple(rules.symbol for rules in table)
    else:
        venue, market, symbols = None, s.sim_market, s.symbols or _offered(s)
    options = ExchangeOptions(
        market=market, symbols=symbols, seed=s.sim_seed, edge=s.sim_edge, path=s.sim_data or None, start=s.sim_start, venue=venue,
        speed=s.sim_speed, latency_ms=s.sim_latency_ms,
        accounts=(Account(SIM_KEY, SIM_SECRET, s.sim_balance),), books_dir=str(Path(s.state_dir) / "exchange"))  # fmt: skip

    def on_ready(ready: Any) -> None:
        life.ready((Endpoints(ready.rest, ready.public, ready.market, ready.private, ready.ws_api, ready.rest), ready.clock))

    try:
        async with sole_child(s.state_dir, "exchange"):
            await serve(options, on_ready, life.stop, open_market=_opener(market))
    except Fatal as error:
        setting = {"SYMBOLS": "SYMBOLS", "SIM_DATA": "SIM_DATA"}.get(str(error.fields.get("setting", "")), "")
        raise Fatal(f"{setting}={error.fields.get('value')!r}: {error}" if setting and setting not in str(error) else str(error)) from error


def _opener(market: str) -> Any:
    """Who reads recordings is loaded only where one is played."""
    if market in ("replay", "frames"):
        from src.exchange.opening import open_market

        return open_market
    from src.exchange.market import open_made_up

    return open_made_up


def _offered(s: Settings) -> tuple[str, ...]:
    """The synthetic market offers what UNIVERSE_SIZE asks for; a recording what it holds."""
    from src.exchange.symbols import scaled_universe

    return scaled_universe(s.universe_size) if s.sim_market == "synthetic" else ()


def feed(name: str, pipe: Connection, settings: Settings, counters: Counters, ring: RingMemory, urls: Endpoints, clock: Clock,
         say: Connection, told: Connection) -> None:  # fmt: skip
    """``say``, ``told``: the pipes to the Brain and back, which the universe is kept over."""

    async def main(life: Life) -> None:
        from src.feed import Feed, FeedOptions, run_feed, warm_up
        from src.market_universe import spare_for
        from src.renewal import Course, Line, Renewer
        from src.ring_buffer import Ring

        async with _listing(life, urls, clock) as listing:
            held = _held(settings)
            symbols, size = await _universe(life, listing, clock, held)
            life.pipe.send(("table", symbols))
            warm_up()
            options = FeedOptions(urls.market, urls.public, urls.data, clock, symbols, spare_for(len(symbols)), settings.close_grace_ms,
                                  settings.candle_ms)
            course = Course(listing.offer, _terms(settings), size, clock.wall_s(settings.universe_seconds * 1000), frozenset(held), Line(say, told))

            def renew(feed: Feed) -> Any:
                return Renewer(feed, clock, course, life.block.add).run()

            with _recorded(options, settings) as options:
                await run_feed(options, Ring.over(ring), life.counters, life.ready, life.stop, renew)

    live(name, pipe, settings, counters, main)


@contextmanager
def _recorded(options: Any, s: Settings) -> Iterator[Any]:
    """The Feed's options, with a recorder in them where RECORD says so. Without it nothing of that is loaded."""
    if not s.record:
        yield options
        return
    from dataclasses import replace

    from src.recorder import Recorder

    with Recorder(Path(s.data_dir) / "recordings", options.clock, int(s.record_max_gb * 10**9)) as recorder:
        yield replace(options, make_link=recorder.make_link, make_conflator=recorder.make_conflator)


def _held(s: Settings) -> list[str]:
    """Symbols that the journal holds a slot of: they are streamed, whatever the universe."""
    import sqlite3

    from src.journal import Reader

    try:
        return list(Reader(s.state_dir).slots())
    except sqlite3.Error as error:
        warn(f"the journal does not say what is held: {error}")
        return []


def _terms(s: Settings) -> Any:
    from src.market_universe import Terms

    return Terms(s.symbols, s.exclude_symbols, min_quote_volume=s.min_quote_volume, min_age_days=s.min_age_days, tradfi=s.tradfi,
                 max_spread_bps=s.universe_spread_bps)  # fmt: skip


@asynccontextmanager
async def _listing(life: Life, urls: Endpoints, clock: Clock) -> AsyncIterator[Any]:
    """What the venue lists. In paper no others than the local exchange lists too, which are those of its start and what is held there."""
    from src.renewal import Listing
    from src.venue.budget import shared_governor
    from src.venue.rest import Rest

    governor = shared_governor(clock, life.counters, life.block)
    market = Rest(urls.data, clock=clock, governor=governor)
    orders = Rest(urls.rest, clock=clock, governor=governor) if urls.rest not in ("", urls.data) else None
    try:
        yield Listing(market, orders, spreads=life.settings.universe_spread_bps > 0)
    finally:
        await market.close()
        if orders is not None:
            await orders.close()


async def _universe(life: Life, listing: Any, clock: Clock, held: Sequence[str] = ()) -> Any:
    """The symbols of this run, in the order of their indices: by volume, or those that were asked for; then what is held besides. And how
    many there may be. Twenty pairs that everybody knows where the venue does not answer."""
    from src.market_universe import FALLBACK, Offer, chosen

    s = life.settings
    try:
        offer = await listing.offer()
    except Fatal:
        raise
    except AegisError as error:
        warn(f"the venue does not say what it trades ({error}): the {len(FALLBACK)} fallback pairs are used")
        offer = Offer({r.symbol: r for r in FALLBACK}, {})
    size = len(offer.rules) if s.trading_mode == "paper" and not s.exchange_url and life.name == "feed" else s.universe_size
    found, left_out = chosen(offer, _terms(s), size=size, now_ms=clock.market_ms())
    names = {one.symbol for one in found}
    table = (*found, *[offer.rules[symbol] for symbol in held if symbol in offer.rules and symbol not in names])
    if life.name == "feed":
        counts = {reason.name.lower(): count for reason, count in left_out.most_common()}
        lifecycle(f"🌍 Universe: {len(table)} of {len(offer.rules)} symbols", **counts)
    return table, size


def brain(name: str, pipe: Connection, settings: Settings, counters: Counters, ring: RingMemory, urls: Endpoints, clock: Clock,
          control: Connection, say: Connection, told: Connection) -> None:  # fmt: skip
    """``say``, ``told``: the pipes to the Feed and back."""

    async def main(life: Life) -> None:
        from src.brain_process import Given, run_brain
        from src.ring_buffer import Ring

        given = Given(Ring.over(ring), urls, clock, control, credentials(settings), _load_student, say, told)
        await run_brain(life, given)

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
