"""Risk: at most 2 % to the stop with both fees, on the venue's grid; every refusal has its rule, value and limit."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.models import Quote, Side, Signal, SymbolRules
from src.risk import Approved, Limit, Limits, Refusal, View, approve

RULES = SymbolRules("BTCUSDT", D("0.1"), D("0.001"), D("0.001"), D(1000), D(120), D(50), D("1.05"), D("0.95"))
LIMIT = Limit(D("0.02"), D("0.55"), D(5), D(10), 3, 3, 10, 1500, 5000, False)
QUOTE = Quote(49999.9, 50000.0, 50000.0, 50000.0, 10.0, 10.0, 10.0, True)
SIGNAL = Signal(1, "BTCUSDT", Side.BUY, 50000.0, 49500.0, 50500.0, 10**13, 0.7, "teacher", 0, 0, 49999.9, 50000.0)
VIEW = View(D(10000), D(10000), D(0), RULES, QUOTE, D("0.0002"), D("0.0005"), D("0.004"), 0, 1.0)


def test_the_size_loses_two_percent_at_the_stop_at_most() -> None:
    order = approve(SIGNAL, LIMIT, VIEW)
    assert isinstance(order, Approved)
    assert order.price == D("50025.0") and order.stop == D("49500.0")
    assert order.qty == D("0.199"), "a third of 3 × equity at the cap price, since that is below 2 % risk"
    assert order.risk <= D(200)


def test_a_tight_leverage_share_or_the_risk_whichever_is_smaller() -> None:
    wide = replace(SIGNAL, stop=47000.0, target=53000.0)
    order = approve(wide, LIMIT, VIEW)
    assert isinstance(order, Approved)
    loss = order.qty * (order.price - order.stop + (order.price + order.stop) * D("0.0005"))
    assert D("198") < loss <= D("200") and order.risk == loss


@given(
    price=st.floats(0.5, 90_000), stop_share=st.floats(0.001, 0.15), equity=st.decimals("50", "1000000", places=2),
    buy=st.booleans(), risk=st.sampled_from([D("0.001"), D("0.01"), D("0.02")]),
)  # fmt: skip
def test_whatever_passes_risks_no_more_than_it_may_and_fits_the_grid(price: float, stop_share: float, equity: D, buy: bool, risk: D) -> None:
    side = Side.BUY if buy else Side.SELL
    stop, target = price * (1 - side.sign * stop_share), price * (1 + side.sign * stop_share * 2)
    signal = replace(SIGNAL, side=side, entry=price, stop=stop, target=target)
    rules = replace(RULES, tick=D("0.0001"), min_notional=D(5))
    view = replace(VIEW, equity=equity, available=equity, rules=rules, quote=replace(QUOTE, bid=price * 0.9999, ask=price, mark=price))
    order = approve(signal, replace(LIMIT, risk_per_trade=risk), view)
    if isinstance(order, Refusal):
        return
    assert order.qty % rules.step == 0 and order.price % rules.tick == 0 and order.stop % rules.tick == 0
    paid = order.qty * (abs(order.price - order.stop) + (order.price + order.stop) * view.taker_rate)
    assert paid <= equity * risk and order.notional <= equity * 3 / 3
    assert order.qty * order.price >= rules.min_notional


@pytest.mark.parametrize(
    ("signal", "view", "rule"),
    [
        ({"confidence": 0.55}, {}, "confidence"),
        ({}, {"halted": "starting"}, "halted"),
        ({}, {"latches": ("drawdown",)}, "latched"),
        ({}, {"prepared": False}, "not prepared"),
        ({}, {"rules": replace(RULES, status="SETTLING")}, "not tradable"),
        ({}, {"quote": replace(QUOTE, tradable=False)}, "not tradable"),
        ({}, {"now_ns": 1_600_000_000}, "stale signal"),
        ({}, {"quote": replace(QUOTE, quote_age_ms=5001.0)}, "stale quote"),
        ({}, {"quote": replace(QUOTE, mark_age_ms=float("inf"))}, "stale mark price"),
        ({}, {"quote": replace(QUOTE, quote_age_ms=float("nan"))}, "stale quote"),
        ({}, {"quote": replace(QUOTE, ask=50100.0)}, "spread"),
        ({}, {"quote": replace(QUOTE, bid=0.0)}, "no quote"),
        ({"stop": 50030.0}, {}, "stop and target"),
        ({"target": 50020.0}, {}, "stop and target"),
        ({}, {"equity": D(60), "available": D(60), "rules": replace(RULES, min_notional=D(100))}, "notional"),
        ({}, {"equity": D(1), "available": D(1)}, "too small"),
        ({}, {"notional": D(25000)}, "leverage"),
        ({}, {"available": D(100)}, "balance"),
        ({"stop": 40000.0, "target": 60000.0}, {}, "liquidation"),
        ({}, {"quote": replace(QUOTE, mark=40000.0)}, "price band"),
        ({}, {"quote": replace(QUOTE, mark=0.0)}, "price band"),
    ],
)
def test_each_rule_refuses_by_name_with_value_and_limit(signal: dict[str, Any], view: dict[str, Any], rule: str) -> None:
    refusal = approve(replace(SIGNAL, **signal), LIMIT, replace(VIEW, **view))
    assert isinstance(refusal, Refusal) and refusal.rule == rule
    assert refusal.value in str(refusal) and refusal.limit in str(refusal)


@pytest.mark.parametrize(("source", "evidence", "passes"), [("teacher", True, False), ("student:ab", False, False), ("student:ab", True, True)])
def test_where_evidence_is_required_only_a_promoted_student_opens(source: str, evidence: bool, passes: bool) -> None:
    decision = approve(replace(SIGNAL, source=source), replace(LIMIT, require_evidence=True), replace(VIEW, evidence=evidence))
    assert isinstance(decision, Approved) is passes


def test_nobody_else_can_make_an_approval() -> None:
    order = approve(SIGNAL, LIMIT, VIEW)
    assert isinstance(order, Approved)
    with pytest.raises(AssertionError):
        Approved("BTCUSDT", Side.BUY, D(1), D(1), D(1), D(1), 0, 0.9, "teacher", D(0), D(0), 0)


DAY = 86_400_000


def test_the_days_loss_and_the_fall_from_the_peak_trip_and_name_figures() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    assert limits.update(D(10000), 5 * DAY) == []
    assert limits.update(D(9401), 5 * DAY + 1) == []
    assert [n for n, _ in limits.update(D(9400), 5 * DAY + 2)] == ["daily_loss"]
    assert limits.update(D(9000), 6 * DAY) == [], "a new day in UTC starts anew"
    assert limits.update(D(8600), 7 * DAY) == []
    assert [n for n, _ in limits.update(D(8000), 8 * DAY)] == ["drawdown"]


def test_transfers_are_neither_profit_nor_loss() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.update(D(10000), DAY)
    limits.transfer(D(-5000))
    assert limits.update(D(5000), DAY + 1) == []
    limits.transfer(D(10000))
    assert limits.peak == D(15000)


@pytest.mark.parametrize(("latch", "left"), [("daily_loss", ["drawdown"]), ("drawdown", ["daily_loss"]), ("halt", ["daily_loss", "drawdown"])])
def test_a_released_latch_lets_go_of_its_own_and_of_nothing_else(latch: str, left: list[str]) -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.update(D(10000), DAY)
    assert [n for n, _ in limits.update(D(7000), DAY + 1)] == ["daily_loss", "drawdown"]
    limits.forget(latch)
    assert [n for n, _ in limits.update(D(7000), DAY + 2)] == left


def test_money_that_comes_before_the_limits_begin_anew_is_part_of_their_beginning() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.update(D(10000), DAY)
    limits.forget("daily_loss")
    limits.forget("drawdown")
    limits.transfer(D(20000))
    assert limits.update(D(15000), DAY + 1) == [] and limits.start == limits.peak == D(15000)


def test_limits_survive_a_restart() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.update(D(10000), 5 * DAY)
    again = Limits(D("0.06"), D("0.20"))
    again.recall(limits.memory())
    assert [n for n, _ in again.update(D(9000), 5 * DAY + 9)] == ["daily_loss"]


@pytest.mark.parametrize(
    ("view", "largest"),
    [
        ({"available": D(3000)}, D(3000) / (D(50025) / 3 + 25 + D(50025) * D("0.001"))),
        ({"notional": D(22000)}, D(8000) / D(50025)),
    ],
)
def test_an_order_takes_what_the_other_slots_have_left_of_its_share(view: dict[str, Any], largest: D) -> None:
    order = approve(SIGNAL, LIMIT, replace(VIEW, **view))
    assert isinstance(order, Approved)
    assert largest - D("0.001") < order.qty <= largest < D("0.199")
