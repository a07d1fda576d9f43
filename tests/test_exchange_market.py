"""The market sources: candles become trades that give them back, paths repeat, nothing leaks from the future."""

from __future__ import annotations

import os
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.error_handler import Fatal
from src.exchange import expansion as ex
from src.exchange.candles import Days
from src.exchange.jumps import JumpingMarket
from src.exchange.market import KLINE_DTYPE, TRADE_DTYPE
from src.exchange.opening import open_market
from src.exchange.path import DAY_MS, Opening, PathMarket
from src.exchange.symbols import DEFAULT_UNIVERSE, TABLE, derived_spec, scaled_universe, spec
from src.exchange.synthetic import PAST_KEPT, open_synthetic

NOW = 1_795_149_000_123
"""Some hours into a day of November 2026."""
MINUTE, HOUR = 60_000, 3_600_000
EXACT = ("open_ms", "open", "high", "low", "close", "volume", "taker_volume", "trades")
GRAIN = ex.Grain(key=0x5EED, spread_bps=1.0, depth_steps=40.0)


def synthetic(symbols: tuple[str, ...] = ("BTCUSDT", "SOLUSDT", "TRXUSDT"), seed: int = 7, now: int = NOW, resume: Any = None) -> PathMarket:
    return open_synthetic(symbols=symbols, seed=seed, now_ms=now, resume=resume)


def random_bars(seed: int, count: int, *, volume_max: int = 5_000) -> ex.Bars:
    rng = np.random.default_rng(seed)
    bars = np.zeros(count, ex.BAR_DTYPE)
    bars["open_ms"] = np.arange(count) * MINUTE
    bars["open"] = rng.integers(50, 90, count)
    bars["close"] = bars["open"] + rng.integers(-6, 7, count)
    bars["high"] = np.maximum(bars["open"], bars["close"]) + rng.integers(0, 5, count)
    bars["low"] = np.minimum(bars["open"], bars["close"]) - rng.integers(0, 5, count)
    bars["volume"] = rng.integers(0, volume_max, count)
    bars["taker_volume"] = bars["volume"] * rng.choice([0.0, 0.2, 0.5, 1.0], count)
    bars["count"] = rng.integers(1, 90, count)
    bars["trades"] = bars["count"] * rng.integers(1, 5, count)
    return bars


def plain_candles(trades: np.ndarray, interval_ms: int) -> list[tuple[int, ...]]:
    """The slow twin of ``candles_of``: (open time, o, h, l, c, volume, taker volume, trades, quote volume, taker quote volume)."""
    rows: dict[int, list[int]] = {}
    for t in trades.tolist():
        time_ms, _, price, qty, maker, _, first, last = t[:8]
        row = rows.setdefault(time_ms // interval_ms * interval_ms, [price, price, price, price, 0, 0, 0, 0, 0])
        row[1], row[2], row[3] = max(row[1], price), min(row[2], price), price
        for place, value in ((4, qty), (5, qty * (1 - maker)), (6, last - first + 1), (7, price * qty), (8, price * qty * (1 - maker))):
            row[place] += value
    return [(opened, *row) for opened, row in rows.items()]


def assert_same_candles(found: np.ndarray, wanted: np.ndarray, *, quote: float = 0.0) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    for name in ("quote_volume", "taker_quote_volume"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=max(quote, 1e-12), err_msg=name)


# ---- symbols ----


def test_the_brackets_of_the_venue_are_given_back_by_the_recurrence() -> None:
    assert [(b.cap, b.max_leverage, b.cum) for b in spec("BTCUSDT").brackets[:7]] == [
        (300_000, 150, 0),
        (800_000, 100, 300),
        (3_000_000, 75, 1_500),
        (12_000_000, 50, 12_000),
        (70_000_000, 25, 132_000),
        (100_000_000, 20, 482_000),
        (230_000_000, 10, 2_982_000),
    ]
    assert [b.cum for b in spec("XRPUSDT").brackets[:5]] == [0, 40, 360, 735, 3_735]
    for name in scaled_universe(600):
        rows = spec(name).brackets
        for before, after in pairwise(rows):
            assert after.cum == before.cap * (after.mmr - before.mmr) + before.cum, name


def test_real_contracts_have_the_venues_filters() -> None:
    btc = spec("BTCUSDT")
    assert (btc.tick, btc.step, btc.min_notional, btc.band, btc.market_max_qty) == tuple(map(Decimal, ("0.10", "0.001", "50", "0.05", "120")))
    assert f"{btc.tick:f}" == "0.10" and btc.price_precision == 2 and btc.max_leverage == 150 and not btc.derived
    assert f"{spec('1000PEPEUSDT').tick:f}" == "0.0000001"
    assert len(TABLE) >= 30 and DEFAULT_UNIVERSE[:3] == ("BTCUSDT", "ETHUSDT", "BNBUSDT") and len(DEFAULT_UNIVERSE) == 20


def test_six_hundred_contracts_can_be_listed_and_each_has_sound_filters() -> None:
    names = scaled_universe(600)
    assert len(set(names)) == 600 and names[:37] == tuple(TABLE) and names[40] == "S041USDT"
    for one in map(spec, names):
        assert one.min_qty >= one.step and one.market_max_qty <= one.max_qty and one.tick > 0 and one.symbol == one.base + one.quote
    for count in (0, 601):
        with pytest.raises(Fatal):
            scaled_universe(count)
    with pytest.raises(Fatal, match="NOPE"):
        spec("NOPE")


def test_derived_filters_follow_the_datas_digits_and_keep_what_the_table_knows() -> None:
    spot = derived_spec("BTCUSDT", price=42_000.0, price_digits=2, quantity_digits=5)
    assert (spot.tick, spot.step, spot.derived) == (Decimal("0.01"), Decimal("0.00001"), True)
    assert spot.brackets == spec("BTCUSDT").brackets and spot.min_notional == 50
    assert derived_spec("XUSDC", price=0.02, price_digits=6, quantity_digits=None).quote == "USDC"
    assert derived_spec("NEWUSDT", price=250.0, price_digits=2, quantity_digits=None).step == Decimal("0.01")


# ---- expansion ----


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), volume_max=st.sampled_from([2, 6, 40, 3_000, 10**9]))
def test_a_candle_is_given_back_exactly_by_its_trades(seed: int, volume_max: int) -> None:
    bars = random_bars(seed, 60, volume_max=volume_max)
    ex.settle(bars, 100, 1_000)
    trades = ex.expand(bars, GRAIN, MINUTE, 3)
    live = bars[bars["count"] > 0]
    found = ex.candles_of(trades, MINUTE)
    for name in EXACT:
        np.testing.assert_array_equal(found[name], live[name], err_msg=name)
    assert_same_candles(ex.as_klines(bars, GRAIN, exact_quote=True), found)
    assert (trades["qty"] >= 1).all() and (trades["symbol"] == 3).all()
    np.testing.assert_array_equal(trades["agg_id"], 100 + np.arange(len(trades)))
    np.testing.assert_array_equal(trades["first_id"][1:], trades["last_id"][:-1] + 1)
    assert (np.diff(trades["time_ms"]) >= 0).all()
    assert (trades["ask"] > trades["bid"]).all() and (trades["bid_qty"] >= 1).all() and (trades["ask_qty"] >= 1).all()
    np.testing.assert_array_equal(trades["price"], np.where(trades["buyer_is_maker"], trades["bid"], trades["ask"]))


def test_a_candle_with_a_range_but_too_little_volume_is_given_just_enough() -> None:
    bars = np.zeros(3, ex.BAR_DTYPE)
    bars["open"], bars["high"], bars["low"], bars["close"] = (10, 10, 5), (12, 10, 5), (9, 10, 5), (11, 10, 5)
    bars["volume"], bars["count"], bars["trades"] = (1, 0, 7), 40, 80
    assert ex.settle(bars, 1, 1) == 1
    assert bars["volume"].tolist() == [4, 0, 7] and bars["count"].tolist() == [4, 0, 7] and bars["agg_base"].tolist() == [1, 5, 5]


def test_grouping_trades_equals_its_plain_twin() -> None:
    bars = random_bars(5, 40)
    ex.settle(bars, 1, 1)
    trades = ex.expand(bars, GRAIN, MINUTE, 0)
    for interval in (1_000, 7_000, 60_000, 900_000):
        found = [tuple(int(x) for x in row) for row in ex.candles_of(trades, interval).tolist()]
        assert found == plain_candles(trades, interval)


def test_a_candle_expands_alike_alone_and_among_others() -> None:
    bars = random_bars(6, 30)
    ex.settle(bars, 1, 1)
    together = ex.expand(bars, GRAIN, MINUTE, 0)
    np.testing.assert_array_equal(together, np.concatenate([ex.expand(bars[i : i + 1], GRAIN, MINUTE, 0) for i in range(30)]))


def test_the_first_extreme_does_not_tell_the_close() -> None:
    count = 20_000
    bars = np.zeros(count, ex.BAR_DTYPE)
    bars["open_ms"] = np.arange(count) * MINUTE
    bars["open"], bars["high"], bars["low"] = 1_000, 1_040, 960
    bars["close"] = np.where(np.arange(count) % 2, 1_020, 980)
    bars["volume"], bars["taker_volume"], bars["count"], bars["trades"] = 4_000, 2_000, 40, 80
    ex.settle(bars, 1, 1)
    price = ex.expand(bars, GRAIN, MINUTE, 0)["price"].reshape(count, 40)
    high_first = price.argmax(axis=1) < price.argmin(axis=1)
    rising = bars["close"] > bars["open"]
    assert abs(high_first[rising].mean() - 0.5) < 0.02 and abs(high_first[~rising].mean() - 0.5) < 0.02


def test_liquid_candles_trade_in_most_seconds() -> None:
    market = synthetic()
    trades = market.trades(NOW, NOW + 600_000)
    btc = trades[trades["symbol"] == 0]
    assert len(np.unique(btc["time_ms"] // 1_000)) > 400
    per_minute = np.bincount((btc["time_ms"] - NOW) // MINUTE)
    assert per_minute.min() >= 20 and per_minute.max() <= 450


def test_silent_spans_close_flat_at_the_last_price() -> None:
    candles = np.zeros(2, KLINE_DTYPE)
    candles["open_ms"], candles["close"], candles["open"], candles["volume"] = (3_000, 5_000), (30, 50), (29, 49), 7
    flat = ex.fill_flat(candles, 1_000, 2_000, 6_000, 20)
    assert flat["close"].tolist() == [20, 30, 30, 50, 50] and flat["open"].tolist() == [20, 29, 30, 49, 50]
    assert flat["volume"].tolist() == [0, 7, 0, 7, 0]
    assert ex.fill_flat(candles, 1_000, 2_000, 6_000, None)["open_ms"].tolist() == [3_000, 4_000, 5_000, 6_000]
    assert len(ex.fill_flat(candles[:0], 1_000, 0, 9_000, None)) == 0


# ---- the synthetic market ----


@pytest.mark.parametrize("interval", [1_000, 5_000, 15_000, MINUTE, 3 * MINUTE, 15 * MINUTE, 60 * MINUTE, 240 * MINUTE, DAY_MS])
def test_klines_equal_the_trades_at_every_interval(interval: int) -> None:
    market = synthetic()
    now = NOW + 1_234_567
    first = (now - max(6 * interval, 3 * MINUTE)) // interval * interval
    trades = market.trades(first, now)
    for index, symbol in enumerate(market.symbols):
        unit = float(symbol.tick) * float(symbol.step)
        wanted = ex.candles_of(trades[trades["symbol"] == index], interval)
        wanted["quote_volume"] *= unit
        wanted["taker_quote_volume"] *= unit
        found = market.klines(index, interval, first, now, now)
        silent = found["volume"] == 0
        assert_same_candles(found[~silent], wanted, quote=0.0 if interval <= 15 * MINUTE else 2e-4)
        np.testing.assert_array_equal(np.diff(found["open_ms"]), interval)
        assert found["open_ms"][0] == first and found["open_ms"][-1] == (now - 1) // interval * interval
        closes = found["close"][np.maximum(np.flatnonzero(silent) - 1, 0)]
        for name in ("open", "high", "low", "close"):
            np.testing.assert_array_equal(found[name][silent][1:], closes[1:])


def test_nothing_later_than_now_is_in_a_candle() -> None:
    market = synthetic()
    for now in (NOW, NOW // MINUTE * MINUTE, NOW // MINUTE * MINUTE + 1):
        open_candle = market.klines(0, 15 * MINUTE, now - 15 * MINUTE, now + DAY_MS, now)[-1]
        trades = market.trades(int(open_candle["open_ms"]), now)
        mine = trades[trades["symbol"] == 0]
        assert open_candle["open_ms"] < now and (mine["time_ms"] < now).all()
        assert open_candle["volume"] == mine["qty"].sum() and (len(mine) == 0 or open_candle["close"] == mine["price"][-1])
    assert len(market.klines(0, MINUTE, NOW + MINUTE, NOW + DAY_MS, NOW)) == 0


def test_small_steps_see_what_one_large_step_sees_and_each_bar_is_made_once() -> None:
    market, again = synthetic(), synthetic()
    made: list[tuple[int, int, int]] = []
    original = market._source.trades

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(again._source, name)

        def trades(self, index: int, from_ms: int, to_ms: int) -> Any:
            made.append((index, from_ms, to_ms))
            return original(index, from_ms, to_ms)

    counted = PathMarket(Counting(), market.symbols, Opening(market.start_ms, market.open_ms, market.end_ms), {})
    steps = [counted.trades(at, at + 300) for at in range(NOW, NOW + 180_000, 300)]
    np.testing.assert_array_equal(np.concatenate(steps), market.trades(NOW, NOW + 180_000))
    assert len(made) == len(set(made)) == 3 * 4


def test_trades_of_all_symbols_come_in_time_order() -> None:
    trades = synthetic().trades(NOW, NOW + 120_000)
    assert trades.dtype == TRADE_DTYPE and (np.diff(trades["time_ms"]) >= 0).all()
    assert set(trades["symbol"].tolist()) == {0, 1, 2}
    assert trades["time_ms"][0] >= NOW and trades["time_ms"][-1] < NOW + 120_000


def test_the_path_is_the_same_in_any_order_of_asking() -> None:
    one, two = synthetic(), synthetic()
    later = one.trades(NOW + 5 * DAY_MS, NOW + 5 * DAY_MS + MINUTE)
    early = one.trades(NOW, NOW + MINUTE)
    np.testing.assert_array_equal(two.trades(NOW, NOW + MINUTE), early)
    two.klines(1, DAY_MS, two.start_ms, NOW, NOW)
    np.testing.assert_array_equal(two.trades(NOW + 5 * DAY_MS, NOW + 5 * DAY_MS + MINUTE), later)


def test_a_seed_is_a_market_and_a_symbols_path_does_not_depend_on_the_others() -> None:
    alone, among = synthetic(("SOLUSDT",)), synthetic()
    names = list(EXACT)
    np.testing.assert_array_equal(alone.klines(0, MINUTE, NOW - DAY_MS, NOW, NOW)[names], among.klines(1, MINUTE, NOW - DAY_MS, NOW, NOW)[names])
    other = synthetic(("SOLUSDT",), seed=8)
    assert not np.array_equal(other.klines(0, MINUTE, NOW - DAY_MS, NOW, NOW), alone.klines(0, MINUTE, NOW - DAY_MS, NOW, NOW))


def test_a_restart_continues_the_very_path() -> None:
    first = synthetic()
    later = NOW + 3 * DAY_MS
    again = open_market("synthetic", symbols=("BTCUSDT", "SOLUSDT", "TRXUSDT"), seed=7, path=None, now_ms=later, resume=first.resume_state())
    assert (again.start_ms, again.open_ms) == (first.start_ms, NOW) and again.resume_state() == first.resume_state()
    np.testing.assert_array_equal(again.trades(later, later + MINUTE), first.trades(later, later + MINUTE))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 8}, "seed"), ({"symbols": ["BTCUSDT"]}, "symbols"), ({"kind": "replay"}, "kind"), ({"path_version": -1}, "path_version")],
)
def test_a_saved_market_of_another_kind_is_refused(change: dict[str, Any], named: str) -> None:
    state = synthetic().resume_state() | change
    with pytest.raises(Fatal, match=f"saved market has {named}"):
        synthetic(resume=state)


def test_any_trade_is_found_by_id_and_by_time() -> None:
    market = synthetic()
    last = market.agg_trades(1, to_ms=NOW, limit=700)
    assert len(last) == 700 and (last["time_ms"] < NOW).all() and (np.diff(last["agg_id"]) == 1).all()
    np.testing.assert_array_equal(market.agg_trades(1, from_id=int(last["agg_id"][0]), to_ms=NOW, limit=1_000), last)
    since = market.agg_trades(1, from_ms=int(last["time_ms"][100]), to_ms=NOW, limit=50)
    assert since["time_ms"][0] == last["time_ms"][100] and len(since) == 50
    deep = market.agg_trades(1, from_id=2_345_678, to_ms=NOW, limit=3)
    assert deep["agg_id"].tolist() == [2_345_678, 2_345_679, 2_345_680]
    assert market.agg_trades(1, from_id=0, to_ms=NOW, limit=1)["agg_id"][0] == 1_000_000
    assert len(market.agg_trades(1, from_id=int(last["agg_id"][-1]) + 1, to_ms=NOW)) == 0
    assert len(market.agg_trades(1, from_id=10**12, to_ms=NOW)) == 0


def test_days_join_without_a_seam() -> None:
    market = synthetic()
    midnight = (NOW // DAY_MS + 1) * DAY_MS
    bars = market.klines(0, MINUTE, midnight - 3 * MINUTE, midnight + 3 * MINUTE, midnight + DAY_MS)
    np.testing.assert_array_equal(bars["open"][1:], bars["close"][:-1])
    trades = market.trades(midnight - MINUTE, midnight + MINUTE)
    for index in range(3):
        mine = trades[trades["symbol"] == index]
        assert (np.diff(mine["agg_id"]) == 1).all() and (mine["first_id"][1:] == mine["last_id"][:-1] + 1).all()


def test_tomorrow_is_made_in_small_pieces_before_midnight() -> None:
    market = synthetic()
    midnight = (NOW // DAY_MS + 1) * DAY_MS
    for at in range(midnight - 30 * MINUTE, midnight, 5 * MINUTE):
        market.trades(at, at + 300)
    assert {key for key in market._source._bars._live if key[0] == midnight // DAY_MS} == {(midnight // DAY_MS, i) for i in range(3)}
    market.trades(midnight + 2 * DAY_MS, midnight + 2 * DAY_MS + 1)
    assert min(day for day, _ in market._source._bars._live) >= midnight // DAY_MS + 1


def test_soon_after_midnight_no_more_than_the_day_itself_is_held_of_each_symbol() -> None:
    market = synthetic()
    bars = market._source._bars
    midnight = (NOW // DAY_MS + 1) * DAY_MS
    market.trades(midnight - MINUTE, midnight - 1)
    made = len(bars._live)
    market.trades(midnight - 1, midnight + MINUTE)
    assert made == 3 + 1 and {day for day, _ in bars._live} == {midnight // DAY_MS - 1, midnight // DAY_MS}
    for at in range(midnight + MINUTE, midnight + 20 * MINUTE, MINUTE):
        market.trades(at, at + MINUTE)
        for index in range(3):
            market.klines(index, HOUR, at - DAY_MS, at, at)
    assert {day for day, _ in bars._live} == {midnight // DAY_MS} and len(bars._past) <= PAST_KEPT


def test_the_rolling_day_that_moved_on_is_the_one_that_is_read_anew() -> None:
    market = JumpingMarket(synthetic())
    moving = Days(market)
    for now in (NOW, NOW + 5 * MINUTE, NOW + HOUR, NOW + 2 * HOUR, NOW + 7 * HOUR, NOW + 7 * HOUR + 1, NOW + 40 * HOUR, NOW + 3 * HOUR):
        for index in range(3):
            assert moving.rolling(index, now) == Days(market).rolling(index, now)
        market.jump(0, now, 40)


@pytest.fixture(scope="module")
def history() -> dict[str, np.ndarray]:
    """Ninety days of minute candles of the default universe."""
    market = synthetic(DEFAULT_UNIVERSE, seed=11)
    day = NOW // DAY_MS * DAY_MS
    return {s.symbol: market._source._bars.bars(i, day - 90 * DAY_MS, day) for i, s in enumerate(market.symbols)}


def true_range(bars: np.ndarray, minutes: int) -> float:
    shape = (-1, minutes)
    high, low = bars["high"].reshape(shape).max(axis=1), bars["low"].reshape(shape).min(axis=1)
    close = bars["close"].reshape(shape)[:, -1].astype(float)
    spread = np.maximum(high[1:], close[:-1]) - np.minimum(low[1:], close[:-1])
    return float(np.median(spread / close[:-1]) * 100)


def test_ranges_are_those_of_real_perpetuals(history: dict[str, np.ndarray]) -> None:
    assert 0.03 < true_range(history["BTCUSDT"], 1) < 0.06 and 0.15 < true_range(history["BTCUSDT"], 15) < 0.30
    assert 0.08 < true_range(history["SOLUSDT"], 1) < 0.15 and 0.36 < true_range(history["SOLUSDT"], 15) < 0.65
    for name in ("ADAUSDT", "LINKUSDT", "1000PEPEUSDT", "OPUSDT", "SUIUSDT"):
        assert 0.09 < true_range(history[name], 1) < 0.25, name


def test_volatility_clusters_tails_are_fat_and_symbols_move_together(history: dict[str, np.ndarray]) -> None:
    moves = {name: np.diff(np.log(bars["close"].astype(float))) for name, bars in history.items()}
    for name, r in moves.items():
        assert (r**4).mean() / (r**2).mean() ** 2 > 6, name
        hourly = np.sqrt((r[: len(r) // 60 * 60].reshape(-1, 60) ** 2).mean(axis=1))
        assert np.corrcoef(hourly[1:], hourly[:-1])[0, 1] > 0.3, name
    assert np.corrcoef(moves["BTCUSDT"], moves["ETHUSDT"])[0, 1] > 0.5
    assert 0.2 < np.corrcoef(moves["BTCUSDT"], moves["SUIUSDT"])[0, 1] < 0.95


def test_no_edge_is_planted(history: dict[str, np.ndarray]) -> None:
    """Neither the last moves nor the takers tell the next move, at a minute, a quarter of an hour, or an hour."""
    for minutes in (1, 15, 60):
        scores: dict[str, list[float]] = {"follow": [], "taker": []}
        for bars in history.values():
            closes = bars["close"].reshape(-1, minutes)[:, -1].astype(float)
            taker = (2 * bars["taker_volume"] - bars["volume"]).reshape(-1, minutes).sum(axis=1)
            move = np.diff(np.log(closes))
            move = np.clip(move / np.abs(move).mean(), -4, 4)
            scores["follow"].append(float(np.mean(np.sign(move[:-1]) * move[1:])))
            scores["taker"].append(float(np.mean(np.sign(taker[1:-1]) * move[1:])))
        for name, values in scores.items():
            assert abs(np.mean(values)) < 5 / np.sqrt(len(move)), (name, minutes)


def follows(market: PathMarket, minutes: int) -> float:
    """How far a move goes on in the next span, in mean moves; around 0 where the past tells nothing."""
    day, told = NOW // DAY_MS * DAY_MS, []
    for i in range(len(market.symbols)):
        bars = market._source._bars.bars(i, day - 60 * DAY_MS, day)
        move = np.diff(np.log(bars["close"].reshape(-1, minutes)[:, -1].astype(float)))
        move = np.clip(move / np.abs(move).mean(), -4, 4)
        told.append(float(np.mean(np.sign(move[:-1]) * move[1:])))
    return float(np.mean(told))


def test_an_edge_that_is_asked_for_can_be_seen_and_changes_nothing_else() -> None:
    names = ("BTCUSDT", "SOLUSDT", "SUIUSDT", "ADAUSDT")
    plain, planted = synthetic(names), open_synthetic(symbols=names, seed=7, now_ms=NOW, resume=None, edge=0.1)
    assert follows(planted, 60) > follows(plain, 60) + 0.1
    day = NOW // DAY_MS * DAY_MS - 10 * DAY_MS
    for i in range(len(names)):
        ours, theirs = (m.klines(i, DAY_MS, day, day + 5 * DAY_MS, NOW) for m in (plain, planted))
        assert np.array_equal(ours["open"], theirs["open"]), "days begin where they did"
    with pytest.raises(Fatal, match="edge"):
        open_synthetic(symbols=names, seed=7, now_ms=NOW, resume=planted.resume_state())
    older = {name: value for name, value in plain.resume_state().items() if name != "edge"}
    assert synthetic(names, resume=older).open_ms == NOW


def test_an_invented_symbol_trades_like_the_rest() -> None:
    market = synthetic(("S038USDT", "S600USDT"))
    for index in (0, 1):
        bars = market.klines(index, 15 * MINUTE, NOW - 5 * DAY_MS, NOW, NOW)
        assert len(bars) == 480 and bars["low"].min() > 500 and (bars["volume"][:-1] > 0).all()


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(Fatal, match="SIM_MARKET"):
        open_market("other", symbols=(), seed=1, path=None, now_ms=NOW, resume=None)


# ---- replay ----

START = 1_700_006_400_000
"""A midnight in 2023."""


def write_candles(
    path: Path, symbol: str, minutes: np.ndarray, *, seed: int = 1, scale: float = 0.1, interval: int = MINUTE, extra: bool = False
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(minutes)
    close = 5_000 + np.cumsum(rng.integers(-9, 10, n))
    opened = np.r_[5_000, close[:-1]]
    high, low = np.maximum(opened, close) + rng.integers(0, 9, n), np.minimum(opened, close) - rng.integers(0, 9, n)
    volume = rng.integers(30, 9_000, n)
    columns: dict[str, Any] = {
        "symbol": [symbol] * n,
        "open_time": START + minutes * interval,
        "open": opened * scale,
        "high": high * scale,
        "low": low * scale,
        "close": close * scale,
        "volume": volume * 0.001,
    }
    if extra:
        columns |= {"trades": rng.integers(20, 30, n), "taker_buy_volume": (volume // 3) * 0.001, "quote_volume": volume * 0.5}
    pq.write_table(pa.table(columns), path)
    return {"open": opened, "high": high, "low": low, "close": close, "volume": volume, "trades": columns.get("trades"), "taker": volume // 3}


def replay(path: Path | str, *, symbols: tuple[str, ...] = (), seed: int = 3, now: int = NOW, resume: Any = None) -> PathMarket:
    market = open_market("replay", symbols=symbols, seed=seed, path=str(path), now_ms=now, resume=resume)
    assert isinstance(market, PathMarket)
    return market


def test_recorded_candles_are_given_back_by_the_trades_made_of_them(tmp_path: Path) -> None:
    wanted = write_candles(tmp_path / "a.parquet", "BTCUSDT", np.arange(2_880), extra=True)
    market = replay(tmp_path / "a.parquet")
    assert market.symbols == (spec("BTCUSDT"),)
    found = ex.candles_of(market.trades(market.start_ms, market.end_ms or 0), MINUTE)
    for name in ("open", "high", "low", "close", "volume", "trades"):
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    np.testing.assert_array_equal(found["taker_volume"], wanted["taker"])
    klines = market.klines(0, MINUTE, market.start_ms, NOW + 10 * DAY_MS, NOW + 10 * DAY_MS)
    unit = float(market.symbols[0].tick) * float(market.symbols[0].step)
    found["quote_volume"] *= unit
    found["taker_quote_volume"] *= unit
    assert_same_candles(klines, found)


def test_a_recording_opens_within_the_day_before_now_shifted_by_whole_days(tmp_path: Path) -> None:
    write_candles(tmp_path / "a.parquet", "BTCUSDT", np.arange(12 * 1_440))
    market = replay(tmp_path / "a.parquet")
    assert NOW - DAY_MS < market.open_ms <= NOW and (market.start_ms - START) % DAY_MS == 0
    assert market.open_ms - market.start_ms == 6 * DAY_MS and market.end_ms == market.start_ms + 12 * DAY_MS
    short = tmp_path / "short.parquet"
    write_candles(short, "BTCUSDT", np.arange(7 * 1_440))
    market = replay(short)
    assert market.open_ms - market.start_ms == 500 * 15 * MINUTE, "five hundred quarter hours where the span allows"


def test_longer_candles_are_expanded_by_the_same_rule(tmp_path: Path) -> None:
    wanted = write_candles(tmp_path / "a.parquet", "ETHUSDT", np.arange(200), interval=15 * MINUTE)
    market = replay(tmp_path / "a.parquet")
    trades = market.trades(market.start_ms, market.end_ms or 0)
    found = ex.candles_of(trades, 15 * MINUTE)
    for name in ("open", "high", "low", "close"):
        np.testing.assert_array_equal(found[name], np.asarray(wanted[name]) * 10, err_msg=f"{name}: 0.1 in ticks of 0.01")
    minutes = market.klines(0, MINUTE, market.start_ms, (market.end_ms or 0) - 1, market.end_ms or 0)
    assert len(minutes) == 200 * 15
    np.testing.assert_array_equal(ex.merge_candles(minutes, 15 * MINUTE)["volume"], found["volume"])


def test_each_symbol_trades_in_its_own_span_and_gaps_stay_silent(tmp_path: Path) -> None:
    write_candles(tmp_path / "a.parquet", "BTCUSDT", np.r_[np.arange(0, 100), np.arange(160, 600)])
    write_candles(tmp_path / "b.parquet", "SOLUSDT", np.arange(200, 400), seed=2, scale=0.01)
    market = replay(tmp_path)
    start = market.start_ms
    assert [s.symbol for s in market.symbols] == ["BTCUSDT", "SOLUSDT"]
    assert len(market.trades(start + 100 * MINUTE, start + 160 * MINUTE)) == 0
    assert set(market.trades(start + 160 * MINUTE, start + 200 * MINUTE)["symbol"].tolist()) == {0}
    assert set(market.trades(start + 200 * MINUTE, start + 210 * MINUTE)["symbol"].tolist()) == {0, 1}
    assert set(market.trades(start + 400 * MINUTE, start + 410 * MINUTE)["symbol"].tolist()) == {0}
    now = start + 600 * MINUTE
    gap = market.klines(0, MINUTE, start + 98 * MINUTE, start + 161 * MINUTE, now)
    assert len(gap) == 64 and (gap["volume"][2:62] == 0).all() and (gap["close"][2:62] == gap["close"][1]).all()
    lonely = market.klines(1, MINUTE, start, now, now)
    assert lonely["open_ms"][0] == start + 200 * MINUTE and len(lonely) == 200
    assert len(market.trades(now, now + DAY_MS)) == 0


def test_symbols_can_be_chosen_from_a_recording(tmp_path: Path) -> None:
    write_candles(tmp_path / "a.parquet", "BTCUSDT", np.arange(100))
    write_candles(tmp_path / "b.parquet", "SOLUSDT", np.arange(100))
    assert [s.symbol for s in replay(tmp_path, symbols=("SOLUSDT",)).symbols] == ["SOLUSDT"]
    with pytest.raises(Fatal, match=r"SIM_DATA=.*does not hold XRPUSDT"):
        replay(tmp_path, symbols=("SOLUSDT", "XRPUSDT"))


def test_a_replay_resumes_and_refuses_another_recording(tmp_path: Path) -> None:
    write_candles(tmp_path / "a.parquet", "BTCUSDT", np.arange(3_000))
    first = replay(tmp_path / "a.parquet")
    again = replay(tmp_path / "a.parquet", now=NOW + 9 * DAY_MS, resume=first.resume_state())
    assert (again.start_ms, again.open_ms, again.end_ms) == (first.start_ms, first.open_ms, first.end_ms)
    np.testing.assert_array_equal(again.trades(again.open_ms, again.open_ms + DAY_MS), first.trades(again.open_ms, again.open_ms + DAY_MS))
    write_candles(tmp_path / "a.parquet", "BTCUSDT", np.arange(2_999))
    with pytest.raises(Fatal, match="recording"):
        replay(tmp_path / "a.parquet", resume=first.resume_state())


def write_trades(path: Path, n: int = 5_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    count = rng.integers(1, 4, n)
    columns = {
        "agg_id": 77_000 + np.arange(n),
        "price": (4_200_000 + np.cumsum(rng.integers(-5, 6, n))) * 0.01,
        "qty": rng.integers(1, 10**6, n) * 1e-5,
        "first_id": 90_000 + np.cumsum(count) - count,
        "last_id": 90_000 + np.cumsum(count) - 1,
        "ts_ms": START + np.sort(rng.integers(0, 40 * MINUTE, n)),
        "is_buyer_maker": rng.random(n) < 0.5,
    }
    pq.write_table(pa.table(columns), path)
    return columns


def test_recorded_trades_pass_through_one_for_one(tmp_path: Path) -> None:
    path = tmp_path / "binance_spot_BTCUSDT_aggTrades_2023-11-15.parquet"
    wanted = write_trades(path)
    market = replay(path)
    symbol = market.symbols[0]
    assert symbol.derived and (symbol.tick, symbol.step) == (Decimal("0.01"), Decimal("0.00001"))
    shift = market.start_ms - START
    found = market.trades(market.start_ms, market.end_ms or 0)
    np.testing.assert_array_equal(found["time_ms"] - shift, wanted["ts_ms"])
    np.testing.assert_allclose(found["price"] * 0.01, wanted["price"], rtol=1e-12)
    np.testing.assert_allclose(found["qty"] * 1e-5, wanted["qty"], rtol=1e-9)
    for ours, theirs in (("agg_id", "agg_id"), ("first_id", "first_id"), ("last_id", "last_id"), ("buyer_is_maker", "is_buyer_maker")):
        np.testing.assert_array_equal(found[ours], wanted[theirs])
    np.testing.assert_array_equal(found["ask"] - found["bid"], 1)
    np.testing.assert_array_equal(found["price"], np.where(found["buyer_is_maker"], found["bid"], found["ask"]))
    assert abs((market.open_ms - market.start_ms) - 8 * MINUTE) <= MINUTE, "a fifth is history"
    part = market.agg_trades(0, from_id=77_100, to_ms=market.end_ms, limit=5)
    assert part["agg_id"].tolist() == [77_100, 77_101, 77_102, 77_103, 77_104]


@pytest.mark.parametrize("interval", [1_000, MINUTE, 5 * MINUTE, 15 * MINUTE, 60 * MINUTE])
def test_klines_of_recorded_trades_are_those_trades(tmp_path: Path, interval: int) -> None:
    write_trades(tmp_path / "BTCUSDT-trades.parquet")
    market = replay(tmp_path / "BTCUSDT-trades.parquet")
    now = market.start_ms + 33 * MINUTE + 4_567
    wanted = ex.candles_of(market.trades(market.start_ms, now), interval)
    unit = float(market.symbols[0].tick) * float(market.symbols[0].step)
    wanted["quote_volume"] *= unit
    wanted["taker_quote_volume"] *= unit
    found = market.klines(0, interval, market.start_ms, now, now)
    assert_same_candles(found[found["volume"] > 0], wanted)


# ---- recorded data ----

RECORDED = os.environ.get("RECORDED_DATA", "")
recorded = pytest.mark.skipif(not RECORDED, reason="RECORDED_DATA is not set: no recorded market to check against")


@recorded
def test_a_recorded_day_of_eighteen_symbols_is_given_back_to_the_last_step() -> None:
    path = Path(RECORDED) / "klines/binance_um_1m_2025-05_2025-06.parquet"
    market = replay(path)
    day = market.open_ms // DAY_MS * DAY_MS + 2 * DAY_MS
    trades = market.trades(day, day + DAY_MS)
    table = pq.read_table(path)
    names = np.array(table["symbol"].cast(pa.string()).to_pylist())
    seen = 0
    first_of_all = int(pc.min(table["ts_ms"]).as_py())
    shift = market.start_ms - first_of_all
    for index, symbol in enumerate(market.symbols):
        rows = table.filter(pa.array(names == symbol.symbol))
        times = rows["ts_ms"].to_numpy() + shift
        inside = (times >= day) & (times < day + DAY_MS)
        found = ex.candles_of(trades[trades["symbol"] == index], MINUTE)
        with_volume = inside & (rows["volume"].to_numpy() > 0)
        np.testing.assert_array_equal(found["open_ms"], times[with_volume], err_msg=symbol.symbol)
        for name in ("open", "high", "low", "close", "volume"):
            unit = float(symbol.step if name == "volume" else symbol.tick)
            np.testing.assert_allclose(found[name] * unit, rows[name].to_numpy()[with_volume], rtol=1e-12, err_msg=f"{symbol.symbol} {name}")
        seen += len(found)
    assert seen > 10_000


@recorded
def test_a_recorded_day_of_trades_passes_one_for_one() -> None:
    path = Path(RECORDED) / "ticks/binance_spot_BTCUSDT_aggTrades_2024-01-01.parquet"
    market = replay(path)
    table = pq.read_table(path)
    shift = market.start_ms - int(table["ts_ms"][0].as_py()) // MINUTE * MINUTE
    found = np.concatenate([market.trades(at, at + 3_600_000) for at in range(market.start_ms, market.end_ms or 0, 3_600_000)])
    assert len(found) == 863_403 and shift % DAY_MS == 0
    np.testing.assert_array_equal(found["time_ms"] - shift, table["ts_ms"].to_numpy())
    for ours, theirs in (("agg_id", "agg_id"), ("first_id", "first_id"), ("last_id", "last_id")):
        np.testing.assert_array_equal(found[ours], table[theirs].to_numpy())
    np.testing.assert_array_equal(found["buyer_is_maker"], table["is_buyer_maker"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(found["price"] * float(market.symbols[0].tick), table["price"].to_numpy(), rtol=1e-12)
    np.testing.assert_allclose(found["qty"] * float(market.symbols[0].step), table["qty"].to_numpy(), rtol=1e-9)
