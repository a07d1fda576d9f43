"""The rule book: prices, refusals, scores, and how its setups are armed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from src.features import FEATURE_NAMES, SETUP_DTYPE
from src.ring_buffer import GAP, QUOTE
from src.setups import ARMED, ARMED_MAX
from src.smc import BLOCK, FVG, SWEEP
from src.teacher import (
    CONFIDENCE_MIN,
    COST_SHARE_MAX,
    PART_NAMES,
    REACH_ATR,
    RULES,
    TIGHT_ATR,
    WEIGHTS,
    WIDE_ATR,
    Teacher,
    arm,
    round_trip,
    warm_up,
)
from tests.markets import T0, random_bars, run, slots_of, slots_of_bars, state_of

Setups = npt.NDArray[np.void]


def _market(seed: int = 41, *, minutes: int = 4_000, symbols: int = 2, cost: float = 0.0004, **options: Any) -> tuple[Any, Teacher, Setups, Setups]:
    """(state, teacher, setups armed, fired) of a random walk."""
    state, teacher, armed = state_of(symbols), Teacher(**options), []
    costs = np.full(symbols, cost)
    bars = [random_bars(minutes, seed + i, volatility=0.003) for i in range(symbols)]
    batches = run(state, slots_of_bars(bars), lambda closed: armed.append(arm(state, closed, strategy=teacher, costs=costs)))
    return state, teacher, np.concatenate(armed), np.concatenate([b.fired for b in batches])


@pytest.fixture(scope="module")
def market() -> tuple[Any, Teacher, Setups, Setups]:
    return _market()


def test_the_rule_book_is_whole() -> None:
    assert len(set(PART_NAMES)) == len(RULES) and WEIGHTS.sum() == pytest.approx(1.0) and (WEIGHTS > 0).all()


def test_a_setup_waits_on_the_right_side_with_its_stop_and_target(market: tuple[Any, Teacher, Setups, Setups]) -> None:
    _, _, armed, _ = market
    side, risk = armed["side"], armed["side"] * (armed["entry"] - armed["stop"])
    assert set(armed["kind"].tolist()) == {int(BLOCK), int(FVG), int(SWEEP)} and set(side.tolist()) == {1, -1}
    assert (side * (armed["price"] - armed["entry"]) > 0).all()
    assert (risk >= TIGHT_ATR * armed["atr"]).all() and (risk <= WIDE_ATR * armed["atr"]).all()
    np.testing.assert_allclose(armed["target"], armed["entry"] + side * risk, rtol=1e-12)
    assert (armed["side"] * (armed["price"] - armed["entry"]) <= REACH_ATR * armed["atr"]).all()
    assert (armed["expires_ms"] - armed["armed_ms"] == 300_000).all() and (armed["limit_ms"] == 24 * 300_000).all()


def test_a_score_is_the_weighted_mean_of_its_parts_and_the_parts_follow_the_rules(market: tuple[Any, Teacher, Setups, Setups]) -> None:
    _, _, armed, _ = market
    parts = armed["parts"][:, : len(RULES)]
    assert (parts >= 0).all() and (parts <= 1).all() and not armed["parts"][:, len(RULES) :].any()
    np.testing.assert_allclose(armed["score"], parts @ WEIGHTS, atol=1e-12)
    np.testing.assert_array_equal(armed["confidence"], armed["score"])
    f = dict(zip(FEATURE_NAMES, armed["features"].T, strict=True))
    mean = np.sign(np.nan_to_num(f["context_mean_gap"]))
    known = ~np.isnan(f["context_mean_gap"])
    twin = {
        "context": np.where(known, 0.5 + 0.25 * f["context_trend"] + 0.25 * mean, parts[:, 0]), "trend": 0.5 + 0.5 * f["trend"],
        "displacement": np.clip((f["displacement"] - 1) / 3, 0, 1), "sweep": f["swept"],
        "imbalance": np.where(f["kind"] == FVG, np.clip(f["zone_height"], 0, 1), f["imbalance"]),
        "location": np.where(np.isnan(f["range_position"]), 0.5, np.clip(1 - f["range_position"], 0, 1)),
        "freshness": np.exp(-f["age_bars"] / 12), "momentum": np.clip(1 - np.abs(50 * f["rsi"] - 5) / 20, 0, 1)}  # fmt: skip
    for k, name in enumerate(PART_NAMES):
        np.testing.assert_allclose(parts[:, k], twin[name], atol=1e-9, err_msg=name)


def test_what_costs_too_much_is_refused_by_name() -> None:
    _, teacher, armed, _ = _market(minutes=1_500, symbols=1, cost=0.0015)
    assert (armed["cost_share"] <= COST_SHARE_MAX).all() and teacher.statistics()["costs"] > 0
    _, dear, none, _ = _market(minutes=1_500, symbols=1, cost=0.5)
    assert len(none) == 0 and dear.statistics()["costs"] > teacher.statistics()["costs"]


def test_a_zone_fires_once_and_is_not_armed_again(market: tuple[Any, Teacher, Setups, Setups]) -> None:
    _, _, armed, fired = market
    assert len(fired) > 100 and len(np.unique(fired["id"])) == len(fired)
    last_armed = {int(s["id"]): int(s["armed_ms"]) for s in armed}
    assert all(last_armed[int(f["id"])] <= f["time_ms"] for f in fired)


def test_at_most_the_best_are_armed_for_one_symbol(market: tuple[Any, Teacher, Setups, Setups]) -> None:
    state, _, armed, _ = market
    _, counts = np.unique(np.c_[armed["symbol"], armed["armed_ms"]], axis=0, return_counts=True)
    assert counts.max() == ARMED_MAX and state.statistics()["crowded"] > 0
    assert ((state.market.setups["state"] == ARMED).sum(axis=1) <= ARMED_MAX).all()


def test_the_target_may_lie_further_away() -> None:
    _, _, armed, _ = _market(minutes=1_000, symbols=1, target_r=2.5, limit_bars=7)
    np.testing.assert_allclose(armed["target"] - armed["entry"], 2.5 * (armed["entry"] - armed["stop"]), rtol=1e-9)
    assert (armed["limit_ms"] == 7 * 300_000).all()


def test_a_gapped_symbol_arms_nothing() -> None:
    state, teacher = state_of(1), Teacher()
    bars = random_bars(1_000, 43, volatility=0.003)
    run(state, slots_of_bars([bars]), lambda closed: arm(state, closed, strategy=teacher, costs=np.full(1, 1e-4)))
    assert (state.market.setups["state"] == ARMED).any()
    run(state, slots_of([{"kind": GAP}]))
    assert len(arm(state, np.zeros(1, np.int64), strategy=teacher, costs=np.full(1, 1e-4))) == 0
    assert teacher.statistics()["gapped"] == 1 and not (state.market.setups["state"] == ARMED).any()


class _Coin:
    source = "student:coin"

    def predict(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.linspace(0.1, 0.9, len(features))


def test_a_judge_decides_the_confidence_and_leaves_the_score() -> None:
    state, teacher = state_of(1), Teacher()
    run(state, slots_of_bars([random_bars(1_900, 43, volatility=0.003)]))
    closed, costs = np.zeros(1, np.int64), np.full(1, 1e-4)
    proposals = teacher.propose(state, closed, costs).copy()
    armed = arm(state, closed, strategy=teacher, costs=costs, judge=_Coin())
    assert len(proposals) > 1 and set(armed["score"]) <= set(proposals["score"])
    np.testing.assert_allclose(sorted(armed["confidence"]), np.linspace(0.1, 0.9, len(proposals))[-len(armed) :])


class _Fixed:
    """Somebody's own strategy: buy one percent below."""

    name = "mine"

    def propose(self, state: Any, closed: npt.NDArray[np.int64], costs: npt.NDArray[np.float64]) -> Setups:
        rows = np.zeros(len(closed), SETUP_DTYPE)
        close = np.array([state.candles(i, state.intervals[1])[-1, 4] for i in closed.tolist()])
        rows["symbol"], rows["side"], rows["id"], rows["confidence"] = closed, 1, closed + 1, 0.9
        rows["entry"], rows["stop"], rows["target"] = close * 0.99, close * 0.98, close
        rows["expires_ms"], rows["limit_ms"] = 1 << 60, 1 << 40
        return rows[::-1]


def test_a_strategy_of_ones_own_is_armed_like_the_teachers() -> None:
    state = state_of(2)
    costs = np.full(2, 1e-4)
    batches = run(state, slots_of_bars([random_bars(3_000, s, volatility=0.003) for s in (1, 2)]),
                  lambda closed: arm(state, closed, strategy=_Fixed(), costs=costs))  # fmt: skip
    assert {int(f["symbol"]) for b in batches for f in b.fired} == {0, 1}


@pytest.mark.parametrize("volatility", [0.001, 0.003])
def test_of_a_random_walk_a_third_to_a_half_is_good_enough(volatility: float) -> None:
    state, teacher = state_of(8), Teacher()
    bars = [random_bars(8_000, 900 + i, volatility=volatility) for i in range(8)]
    costs = np.full(8, volatility * 0.05)
    batches = run(state, slots_of_bars(bars), lambda closed: arm(state, closed, strategy=teacher, costs=costs))
    confidence = np.concatenate([b.fired["setup"]["confidence"] for b in batches])
    share = float((confidence > CONFIDENCE_MIN).mean())
    print(f"volatility {volatility}: {len(confidence)} fired, {share:.0%} above {CONFIDENCE_MIN}")
    assert len(confidence) > 500 and 0.30 < share < 0.52


def test_costs_are_two_fees_two_slippages_and_the_spread() -> None:
    state = state_of(2)
    run(state, slots_of([{"kind": QUOTE, "sym": 1, "time_ms": T0, "open": 99.9, "high": 100.1}]))
    np.testing.assert_allclose(round_trip(state, fee=0.0005, slippage=0.0001), [0.0012, 0.0032])


def test_warming_up_says_what_it_compiles() -> None:
    seen: list[str] = []
    warm_up(seen.append)
    assert seen == ["the Brain's candles", "the Brain's history", "the Brain's setups"]
