"""RSI, ATR and EMA against plain-Python twins written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from src.indicators import ATR_SLOW, CLOSE, EMA_FAST, EMA_SLOW, HIGH, LOW, TAKER_VOLUME, VOLUME, series
from tests import oracle_indicators as twin
from tests.markets import random_bars


@pytest.mark.parametrize("period", [2, 14])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_value_equals_its_twin(seed: int, period: int) -> None:
    bars = random_bars(400, seed)
    rows = series(bars, rsi_period=period, atr_period=period)
    closes, highs, lows = bars[:, CLOSE].tolist(), bars[:, HIGH].tolist(), bars[:, LOW].tolist()
    ranges = twin.true_ranges(highs, lows, closes)
    np.testing.assert_allclose(rows["rsi"], twin.rsi(closes, period), rtol=1e-9)
    np.testing.assert_allclose(rows["atr"], twin.wilder_mean(ranges, period), rtol=1e-9)
    np.testing.assert_allclose(rows["atr_slow"][ATR_SLOW:], twin.wilder_mean(ranges, ATR_SLOW)[ATR_SLOW:], rtol=1e-9)
    np.testing.assert_allclose(rows["ema_fast"], twin.ema(closes, EMA_FAST), rtol=1e-9)
    np.testing.assert_allclose(rows["ema_slow"], twin.ema(closes, EMA_SLOW), rtol=1e-9)
    shares = ((2 * bars[:, TAKER_VOLUME] - bars[:, VOLUME]) / bars[:, VOLUME]).tolist()
    np.testing.assert_allclose(rows["taker_share"], twin.ema(shares, 20), rtol=1e-9, atol=1e-12)


def test_a_value_is_unknown_until_its_period_is_full() -> None:
    rows = series(random_bars(40, 3), rsi_period=10, atr_period=7)
    assert np.isnan(rows["rsi"][:10]).all() and not np.isnan(rows["rsi"][10:]).any()
    assert np.isnan(rows["atr"][:6]).all() and not np.isnan(rows["atr"][6:]).any()


def test_a_rising_market_has_rsi_100_and_a_still_one_50() -> None:
    bars = random_bars(30, 4)
    bars[:, CLOSE] = np.arange(1.0, 31.0)
    assert series(bars)["rsi"][-1] == 100.0
    bars[:, CLOSE] = 5.0
    assert series(bars)["rsi"][-1] == 50.0


def test_a_series_is_a_prefix_of_the_longer_one_to_the_bit() -> None:
    bars = random_bars(300, 5)
    assert series(bars[:177]).tobytes() == series(bars)[:177].tobytes()


def test_bars_without_taker_volume_count_as_balanced() -> None:
    bars = random_bars(30, 6)
    bars[:, TAKER_VOLUME] = np.nan
    assert (series(bars)["taker_share"] == 0.0).all()
