"""Recorded frames of the real venue, 2021 to 2024, through the Feed's own links and table into the Brain's candles, beside plain Python."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from picows import WSMsgType

from src.conflate import ROWS_MAX, Conflator, Staged, mark_key, quote_key, staging, trade_key
from src.feed import SKEW_MS
from src.links import MarketLink, PublicLink, Route
from src.market_state import MarketState
from src.ring_buffer import Ring
from src.venue.messages import AggTrade, BookTicker, Kline, decode_market, decode_public
from src.wire import names_table, read_rows, scratch, text_of
from tests.markets import MINUTE

HFT = ("btcusdt_20230404", "btcusdt_20230405", "btcusdt_20240718", "btcusdt_20240719", "ethusdt_20240718", "ethusdt_20240719")
CAPTURES_2021 = ("cryptofeed/BINANCE_FUTURES.jsonl.zst", "cryptofeed/old_BINANCE_FUTURES-1125a2.0_6397a047.txt.zst",
                 "cryptofeed/old_BINANCE_FUTURES.ws.5.0_eb87833e.txt.zst")
FILES = (*(f"hft_binance_um_{name}.jsonl.zst" for name in HFT), *CAPTURES_2021)
STEP = Decimal("0.001")
Candle = tuple[int, Decimal, Decimal, Decimal, Decimal, Decimal, int, Decimal]
OLD_LINE = re.compile(rb"(\d+\.\d+): (\{.*)")


def frames(folder: Path, name: str) -> Iterator[tuple[float, bytes]]:
    """(milliseconds at which the recorder had it, payload) of every frame in a recording of any of its three forms."""
    with pyarrow.input_stream(str(folder / "raw_ws" / name), compression="zstd") as packed:
        lines = packed.read().splitlines()
    for line in lines:
        if name.startswith("hft"):
            stamp, _, payload = line.partition(b" ")
            if b'"lastUpdateId"' not in payload[:200]:  # one snapshot by REST stands among them
                yield int(stamp) / 10 ** (len(stamp) - 13), payload
        elif line.startswith(b'{"t":"recv"'):
            row = json.loads(line)
            yield row["ts"] * 1000, row["data"].encode()
        elif (match := OLD_LINE.fullmatch(line)) is not None:
            yield float(match[1]) * 1000, match[2]


@dataclass
class Came:
    """A frame as the socket library hands it over."""

    payload: bytes
    msg_type: WSMsgType = WSMsgType.TEXT
    fin: bool = True
    last_in_buffer: bool = True

    def get_payload_as_bytes(self) -> bytes:
        return self.payload


@dataclass
class Carrier:
    route: Route
    keys: dict[str, int] = field(default_factory=dict)
    mark_keys: dict[str, int] = field(default_factory=dict)


class Desk:
    """Links, table, ring and market of some symbols. ``flush`` is where links deliver."""

    def __init__(self, names: tuple[str, ...], step: Decimal = STEP) -> None:
        self.frames = 0
        self.rubbish: list[str] = []
        self.ring = Ring.create()
        self.conflator = Conflator([float(step)] * len(names), self.ring)
        self.conflator.set_limit(2**52)
        self.market = MarketState(names, np.full(len(names), float(step)), candle_ms=MINUTE, setup_ms=15 * MINUTE, context_ms=240 * MINUTE,
                                  history=2_000)
        places = {name: i for i, name in enumerate(names)}
        market = Carrier(Route.MARKET, {n: trade_key(i) for n, i in places.items()}, {n: mark_key(i) for n, i in places.items()})
        public = Carrier(Route.PUBLIC, {n: quote_key(i) for n, i in places.items()})
        self.links = {Route.MARKET: MarketLink(self, market, False), Route.PUBLIC: PublicLink(self, public, False)}

    def take(self, route: Route, payload: bytes) -> None:
        self.links[route].on_ws_frame(None, Came(payload))

    def flush(self, carrier: Any, staged: Staged, rows: int, received_ns: int, event_ms: int) -> None:
        self.frames += rows
        self.conflator.flush(staged, rows, received_ns)
        while self.market.consume(self.ring, now_ns=received_ns).more:
            pass

    def bad(self, error: Exception, size: int) -> None:
        self.rubbish.append(str(error))

    def contract(self, event: Any) -> None:
        raise AssertionError("no recording has one")

    def close_at(self, time_ms: int) -> None:
        assert self.conflator.time(time_ms, 1)
        while self.market.consume(self.ring).more:
            pass

    def candles(self, i: int) -> list[tuple[float, ...]]:
        """Volumes in steps, as the market has them."""
        return [tuple(row) for row in self.market.candles(i, MINUTE)]


def event_of(payload: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(payload)["data"]
    return event


# --- every frame parses ------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_recorded_frame_of_our_streams_is_taken_and_the_others_are_named(recorded_data: Path, name: str) -> None:
    """``trade`` and ``depth``, which the Feed never subscribes to, are refused by name; everything else is read."""
    known = {"aggTrade", "bookTicker", "markPriceUpdate", "kline"}
    desk = Desk(tuple(sorted({event_of(payload)["s"] for _, payload in frames(recorded_data, name)})), Decimal("0.0001"))
    seen: Counter[str] = Counter()
    for _, payload in frames(recorded_data, name):
        kind = event_of(payload)["e"]
        seen[kind] += 1
        desk.take(Route.PUBLIC if kind == "bookTicker" else Route.MARKET, payload)
    others = {kind: count for kind, count in seen.items() if kind not in known}
    tally = desk.conflator.tally
    assert set(others) <= {"trade", "depthUpdate"} and len(desk.rubbish) == sum(others.values())
    assert Counter(word for line in desk.rubbish for word in others if f"'{word}'" in line) == others
    assert desk.frames == sum(seen[kind] for kind in ("aggTrade", "bookTicker", "markPriceUpdate")) > 500
    assert (int(tally["quotes"] + tally["stale"]), int(tally["trades"]), int(tally["marks"])) == (
        seen["bookTicker"], seen["aggTrade"], seen["markPriceUpdate"])
    assert int(tally["bad_values"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_kernel_reads_every_recorded_trade_and_quote_as_the_decoder_does(recorded_data: Path, name: str) -> None:
    _, staged = staging()
    for route, tag in ((Route.MARKET, b'"e":"aggTrade"'), (Route.PUBLIC, b'"e":"bookTicker"')):
        payloads = [payload for _, payload in frames(recorded_data, name) if tag in payload]
        keys = {event_of(payload)["s"]: n for n, payload in enumerate(payloads)}
        from_text = [_by_decoder(payload, keys) for payload in payloads]
        for start in range(0, len(payloads), ROWS_MAX):
            part = payloads[start:start + ROWS_MAX]
            assert _by_kernel(part, keys, route, staged) == from_text[start:start + ROWS_MAX]


def _by_decoder(payload: bytes, keys: dict[str, int]) -> tuple[Any, ...]:
    event = (decode_market if b"aggTrade" in payload else decode_public)(payload).data
    if isinstance(event, AggTrade):
        return keys[event.s], event.T, float(event.p), float(event.q), event.m, event.a, event.f, event.l
    assert isinstance(event, BookTicker)
    return keys[event.s], event.T, *(float(Decimal(text)) for text in (event.b, event.a, event.B, event.A))


def _by_kernel(part: list[bytes], keys: dict[str, int], route: Route, staged: Staged) -> list[tuple[Any, ...]]:
    _, rows, _ = read_rows(text_of(part), names_table(keys), scratch(), staged, route is Route.MARKET, 0, 0)
    assert rows == len(part), f"declined: {part[rows]!r}"
    floats = staged.floats[:rows]
    whole = staged.ints[:rows].tolist()
    if route is Route.MARKET:
        return [(w[0], w[1], f[2], f[3], bool(w[4]), w[5], w[6], w[7]) for w, f in zip(whole, floats.tolist(), strict=True)]
    return [(w[0], w[1], *f[2:6]) for w, f in zip(whole, floats.tolist(), strict=True)]


# --- candles -----------------------------------------------------------------------------------------------------------------------------

def aggregated(payload: bytes, identity: int) -> bytes:
    """A single trade of a recording as the aggregate that the venue would have sent of it alone."""
    event = event_of(payload)
    data = {"e": "aggTrade", "E": event["E"], "s": event["s"], "a": identity, "p": event["p"], "q": event["q"], "f": event["t"], "l": event["t"],
            "T": event["T"], "m": event["m"]}
    return msgspec.json.encode({"stream": f"{event['s'].lower()}@aggTrade", "data": data})


def trades_of(folder: Path, names: tuple[str, ...]) -> list[tuple[float, bytes]]:
    """Aggregate trades of recordings that follow on each other; prints of the insurance fund are none."""
    found = []
    for name in names:
        for stamp, payload in frames(folder, name):
            if b'"e":"aggTrade"' in payload:
                found.append((stamp, payload))
            elif b'"e":"trade"' in payload and b'"X":"MARKET"' in payload:
                found.append((stamp, aggregated(payload, len(found) + 1)))
    return found


def plain_candles(payloads: list[bytes], step: Decimal) -> dict[str, list[Candle]]:
    """Minutes in decimals, by sorting and summing: nothing of ours is in it. Minutes without a trade are flat."""
    trades: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for payload in payloads:
        event = event_of(payload)
        trades[event["s"]][event["T"] // MINUTE].append(event)
    found: dict[str, list[Candle]] = {}
    for symbol, minutes in trades.items():
        rows, close = [], Decimal(0)
        for minute in range(min(minutes), max(minutes) + 1):
            part = sorted(minutes.get(minute, []), key=lambda event: event["a"])
            prices = [Decimal(event["p"]) for event in part] or [close]
            taken = sum((Decimal(event["q"]) for event in part if not event["m"]), Decimal(0))
            volume, close = sum((Decimal(event["q"]) for event in part), Decimal(0)), prices[-1]
            rows.append((minute * MINUTE, prices[0], max(prices), min(prices), close, volume / step,
                         sum(event["l"] - event["f"] + 1 for event in part), taken / step))
        found[symbol] = rows
    return found


def candles_through_the_feed(trades: list[tuple[float, bytes]], step: Decimal, *, by_recorders_clock: bool) -> dict[str, list[tuple[float, ...]]]:
    names = tuple(sorted({event_of(payload)["s"] for _, payload in trades}))
    desk = Desk(names, step)
    for stamp, payload in trades:
        if by_recorders_clock:
            desk.conflator.set_limit(int(stamp) + SKEW_MS)
        desk.take(Route.MARKET, payload)
    last = max(event_of(payload)["T"] for _, payload in trades)
    desk.conflator.set_limit(2**52)
    desk.close_at((last // MINUTE + 1) * MINUTE)
    tally = desk.conflator.tally
    assert not desk.rubbish and [int(tally[name]) for name in ("bad_values", "duplicates", "gaps", "late", "lost")] == [0] * 5
    return {name: desk.candles(i) for i, name in enumerate(names)}


DAYS = {
    "btc 2023": (tuple(f"hft_binance_um_btcusdt_{day}.jsonl.zst" for day in ("20230404", "20230405")), STEP, 9, 0),
    "btc 2024": (tuple(f"hft_binance_um_btcusdt_{day}.jsonl.zst" for day in ("20240718", "20240719")), STEP, 8, -1_300),
    "eth 2024": (tuple(f"hft_binance_um_ethusdt_{day}.jsonl.zst" for day in ("20240718", "20240719")), STEP, 8, -1_300),
    **{f"2021 {n}": ((name,), Decimal("0.001"), 1, 0) for n, name in enumerate(CAPTURES_2021)},
}


@pytest.mark.parametrize("day", DAYS)
def test_candles_of_recorded_trades_equal_a_plain_build_whatever_the_recorders_clock_said(recorded_data: Path, day: str) -> None:
    """The recorder of 2024 was a second and a half behind the venue: every frame came to it from the future."""
    names, step, minutes, skew_ms = DAYS[day]
    trades = trades_of(recorded_data, names)
    plain = plain_candles([payload for _, payload in trades], step)
    if skew_ms:
        assert max(stamp - event_of(payload)["E"] for stamp, payload in trades) < skew_ms
    for by_recorders_clock in (True, False):
        ours = candles_through_the_feed(trades, step, by_recorders_clock=by_recorders_clock)
        for symbol, rows in plain.items():
            last = rows[-1][0]
            got = [row for row in ours[symbol] if row[0] <= last]
            assert got == [tuple(map(float, row)) for row in rows], symbol
            assert all(row[5] == 0 for row in ours[symbol] if row[0] > last), "minutes after its last trade are flat"
    assert max(map(len, plain.values())) >= minutes


# --- klines of the same time -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CAPTURES_2021[::2])
def test_the_venues_candles_grow_by_exactly_the_trades_between_two_of_their_updates(recorded_data: Path, name: str) -> None:
    """Two updates of one minute name the single trades they hold; every aggregate that lies within the difference is the difference. Only
    where the recording begins or ends within it, or an aggregate straddles its edge, can there be nothing to compare."""
    klines: dict[tuple[str, int], list[Kline]] = defaultdict(list)
    trades: dict[str, list[AggTrade]] = defaultdict(list)
    for _, payload in frames(recorded_data, name):
        if b'"e":"kline"' in payload or b'"e":"aggTrade"' in payload:
            event = decode_market(payload).data
            if isinstance(event, Kline):
                klines[event.s, event.k.t].append(event)
            elif isinstance(event, AggTrade):
                trades[event.s].append(event)
    compared, why = 0, Counter[str]()
    for (symbol, _), updates in klines.items():
        for before, after in pairwise(updates):
            first, last = before.k.L + 1, after.k.L
            part = [trade for trade in trades[symbol] if trade.f >= first and trade.l <= last]
            held = sum(trade.l - trade.f + 1 for trade in part)
            if last < first:
                why["nothing new"] += 1
            elif held < last - first + 1:
                why[_why_not(trades[symbol], part, first, last)] += 1
            else:
                volume = sum(Decimal(trade.q) for trade in part)
                bought = sum(Decimal(trade.q) for trade in part if not trade.m)
                assert volume == Decimal(after.k.v) - Decimal(before.k.v) and bought == Decimal(after.k.V) - Decimal(before.k.V)
                assert after.k.n - before.k.n == held and Decimal(after.k.c) == Decimal(part[-1].p)
                assert Decimal(after.k.h) == max(Decimal(before.k.h), *(Decimal(trade.p) for trade in part))
                assert Decimal(after.k.l) == min(Decimal(before.k.l), *(Decimal(trade.p) for trade in part))
                compared += 1
    print(f"\n{name}: {compared} differences compared, others: {dict(why)}")
    assert compared >= 30 and set(why) <= {"nothing new", "an aggregate lies across an edge", "before or after the recording"}


def _why_not(trades: list[AggTrade], part: list[AggTrade], first: int, last: int) -> str:
    """Why aggregates that lie within these single trades do not hold all of them."""
    missing = set(range(first, last + 1)) - {n for trade in part for n in range(trade.f, trade.l + 1)}
    across = {n for trade in trades if trade not in part for n in range(trade.f, trade.l + 1)}
    if missing <= across:
        return "an aggregate lies across an edge"
    recorded = range(min((trade.f for trade in trades), default=0), max((trade.l for trade in trades), default=0) + 1)
    return "nobody has them" if any(n in recorded for n in missing - across) else "before or after the recording"


@pytest.mark.slow
def test_a_whole_recorded_day_of_trades_gives_the_venues_own_hours(recorded_data: Path) -> None:
    """863,403 trades through the table and the Brain's market: 24 hours as the venue published them, volumes and counts to the last digit."""
    ticks = pq.read_table(recorded_data / "ticks" / "binance_spot_BTCUSDT_aggTrades_2024-01-01.parquet")
    step = Decimal("0.00001")
    desk = Desk(("BTCUSDT",), step)
    _, staged = staging()
    columns = [ticks[name].to_numpy() for name in ("ts_ms", "price", "qty", "is_buyer_maker", "agg_id", "first_id", "last_id")]
    for start in range(0, len(columns[0]), ROWS_MAX):
        part = [column[start:start + ROWS_MAX] for column in columns]
        rows = len(part[0])
        staged.ints[:rows, 0], staged.ints[:rows, 1] = trade_key(0), part[0]
        staged.floats[:rows, 2], staged.floats[:rows, 3] = part[1], part[2]
        for place, column in zip((4, 5, 6, 7), part[3:], strict=True):
            staged.ints[:rows, place] = column
        desk.flush(None, staged, rows, 1, 0)
    desk.close_at(int(columns[0][0]) // 86_400_000 * 86_400_000 + 86_400_000)
    minutes = np.array(desk.candles(0))
    assert len(minutes) == 1_440 and int(desk.conflator.tally["bad_values"]) == int(desk.conflator.tally["gaps"]) == 0
    official = {row["ts_ms"]: row for row in pq.read_table(recorded_data / "klines" / "binance_spot_BTCUSDT_1h_2017_2024.parquet").to_pylist()}
    for hour in minutes.reshape(24, 60, 8):
        row = official[int(hour[0, 0])]
        assert (hour[0, 1], hour[:, 2].max(), hour[:, 3].min(), hour[-1, 4]) == tuple(row[name] for name in ("open", "high", "low", "close"))
        assert hour[:, 5].sum() == round(Decimal(repr(row["volume"])) / step)
        assert (hour[:, 6].sum(), hour[:, 7].sum()) == (row["trades"], round(Decimal(repr(row["taker_buy_volume"])) / step))
