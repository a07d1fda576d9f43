"""Features: known in time, the same upside down, and what their names say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from src.features import FEATURE_COUNT, FEATURE_NAMES, MOMENTUM_BARS, feature_hash, matrix
from src.indicators import CLOSE, HIGH, LOW, OPEN, TAKER_VOLUME, VOLUME, series
from src.teacher import Teacher, arm
from tests.markets import MINUTE, T0, random_bars, run, slots_of_bars, state_of

Floats = npt.NDArray[np.float64]
Setups = npt.NDArray[np.void]
COSTS = np.full(1, 0.0004)


def _armed(bars: Floats) -> Setups:
    """Every setup armed at every close, in order."""
    state, teacher, rows = state_of(1), Teacher(), []
    run(state, slots_of_bars([bars]), lambda closed: rows.append(arm(state, closed, strategy=teacher, costs=COSTS)))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def whole() -> Setups:
    return _armed(random_bars(4_000, 31, volatility=0.003))


def test_the_names_are_unique_and_their_hash_is_an_interface() -> None:
    assert len(set(FEATURE_NAMES)) == FEATURE_COUNT == len(FEATURE_NAMES)
    assert feature_hash() == "73e3e9d78f44bcf0", "a changed list needs a new version, and every trained model a new training"
    assert feature_hash(FEATURE_NAMES[::-1]) != feature_hash()


@pytest.mark.parametrize("cut", [500, 1_777, 3_001])
def test_a_setups_features_are_the_same_whatever_comes_later(whole: Setups, cut: int) -> None:
    bars = random_bars(4_000, 31, volatility=0.003)
    later = bars.copy()
    later[cut:, OPEN : CLOSE + 1] *= 1.5
    before = whole[whole["armed_ms"] <= T0 + cut * MINUTE]
    assert len(before) > 50
    assert _armed(bars[:cut]).tobytes() == before.tobytes()
    changed = _armed(later)
    assert changed[changed["armed_ms"] <= T0 + cut * MINUTE].tobytes() == before.tobytes()


def test_every_feature_becomes_known(whole: Setups) -> None:
    values = matrix(whole)
    bars = (whole["armed_ms"] - T0) // (5 * MINUTE)
    for k, name in enumerate(FEATURE_NAMES):
        known = np.flatnonzero(~np.isnan(values[:, k]))
        print(f"{name}: {bars[known[0]] if len(known) else 'never'} bars until known")
        assert len(known) and not np.isnan(values[len(values) // 2 :, k]).any(), name


def test_a_market_upside_down_has_the_same_features_with_the_sides_changed() -> None:
    bars = random_bars(3_000, 33, volatility=0.0025)
    bars[:, OPEN : CLOSE + 1] = np.rint(bars[:, OPEN : CLOSE + 1] * 100)
    mirrored = bars.copy()
    mirrored[:, [OPEN, HIGH, LOW, CLOSE]] = 20_000.0 - bars[:, [OPEN, LOW, HIGH, CLOSE]]
    mirrored[:, TAKER_VOLUME] = bars[:, VOLUME] - bars[:, TAKER_VOLUME]
    ours, theirs = _armed(bars), _armed(mirrored)
    relative = [FEATURE_NAMES.index(name) for name in ("side", "stop_percent", "cost_share", "volatility_percent")]
    other = np.setdiff1d(np.arange(FEATURE_COUNT), relative)
    twins = {(int(s["id"])): s for s in theirs[np.argsort(theirs["armed_ms"], kind="stable")]}
    compared = 0
    for setup in ours[np.argsort(ours["armed_ms"], kind="stable")]:
        twin = twins.get(int(setup["id"]))
        if twin is not None and twin["armed_ms"] == setup["armed_ms"]:
            assert twin["side"] == -setup["side"] and twin["entry"] == 20_000.0 - setup["entry"]
            np.testing.assert_allclose(twin["features"][other], setup["features"][other], rtol=1e-6, atol=1e-9)
            assert twin["score"] == pytest.approx(setup["score"], abs=1e-9)
            compared += 1
    assert compared > 30


def test_features_are_what_their_names_say(whole: Setups) -> None:
    bars = random_bars(4_000, 31, volatility=0.003)
    groups = bars.reshape(-1, 5, 8)
    setup_bars = np.column_stack([groups[:, 0, 0], groups[:, 0, OPEN], groups[:, :, HIGH].max(1), groups[:, :, LOW].min(1),
                                  groups[:, -1, CLOSE], groups[:, :, VOLUME:].sum(1)])  # fmt: skip
    rows = series(setup_bars)
    for setup in whole[::7]:
        at = int(setup["armed_ms"] - T0) // (5 * MINUTE) - 1
        side, now, f = int(setup["side"]), rows[at], dict(zip(FEATURE_NAMES, setup["features"].tolist(), strict=True))
        close, risk = setup_bars[at, CLOSE], side * (setup["entry"] - setup["stop"])
        assert setup["price"] == close and setup["atr"] == now["atr"] and risk > 0
        atr = now["atr"]
        expected = {
            "side": side, "kind": setup["kind"], "rsi": side * (now["rsi"] - 50) / 50, "mean_gap": side * (now["ema_fast"] - now["ema_slow"]) / atr,
            "distance": side * (close - setup["entry"]) / atr, "stop_distance": risk / atr, "stop_percent": 100 * risk / setup["entry"],
            "cost_share": COSTS[0] * setup["entry"] / risk, "volatility_percent": 100 * atr / close, "volatility_ratio": atr / now["atr_slow"],
            "momentum": side * (close - setup_bars[at - MOMENTUM_BARS, CLOSE]) / atr, "taker_share": side * now["taker_share"],
            "hour": setup["armed_ms"] // 3_600_000 % 24, "age_bars": (setup["armed_ms"] - setup["known_ms"]) // (5 * MINUTE)}  # fmt: skip
        for name, value in expected.items():
            assert f[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert f["trend"] in (-1, 0, 1) and 0 <= f["headroom"] <= 10 and f["imbalance"] in (0, 1) and f["swept"] in (0, 1)
