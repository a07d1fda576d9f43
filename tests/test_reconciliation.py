"""Each difference between journal and venue has one class, and what is not ours is named and left alone."""

from decimal import Decimal
from typing import Any

import pytest

from src.models import AlgoUpdate, OrderStatus, OrderUpdate, PositionUpdate, Role, Side
from src.reconciliation import Kind, Mismatch, Report, compare, wallet_check
from src.venue.answers import Income
from src.venue.orders import ClientIds

D = Decimal
IDS = ClientIds(1_796_000_000_000)
ENTRY, STOP, TARGET, OTHER = IDS.next(Role.ENTRY), IDS.next(Role.STOP), IDS.next(Role.TARGET), IDS.next(Role.STOP)


def slot(side: str = "BUY", opened: str = "0.020", left: str = "0", **orders: Any) -> dict[str, dict[str, Any]]:
    entry, stop, target = ({"client_id": c} for c in (ENTRY, STOP, TARGET))
    body = {"symbol": "BTCUSDT", "side": side, "opened": opened, "left": left, "entry": entry, "stop": stop, "target": target, "exit": None}
    return {"BTCUSDT": body | orders}


def held(amount: str, symbol: str = "BTCUSDT") -> PositionUpdate:
    return PositionUpdate(symbol, D(amount), D(90000), D(0), True, "BOTH", 1)


def guard(client_id: str = STOP, *, side: Side = Side.SELL, kind: str = "STOP_MARKET", closes: bool = True, symbol: str = "BTCUSDT",
          status: OrderStatus = OrderStatus.NEW) -> AlgoUpdate:  # fmt: skip
    return AlgoUpdate(symbol, client_id, 1, side, kind, status, D(89000), closes, 1)


def kinds(report: Report) -> list[Kind]:
    return [m.kind for m in report.mismatches]


def test_both_sides_agree_on_a_protected_position() -> None:
    report = compare(slot(), [held("0.02")], [guard(), guard(TARGET, kind="TAKE_PROFIT_MARKET")])
    assert report == Report(positions=1, matches=1)
    assert report.lines() == ["✅ Cache reconciled: 1 positions on Binance", "📊 Report: 1 matches, 0 mismatches"]


def test_nothing_here_and_nothing_there_is_no_mismatch() -> None:
    assert compare({}, [], []) == compare({}, [held("0")], []) == Report(0, 0)


CASES: list[tuple[str, dict[str, Any], list[PositionUpdate], list[AlgoUpdate], Kind]] = [
    ("gone there", slot(), [], [guard()], Kind.GONE_THERE),
    ("opened here unknown", slot(opened="0"), [held("0.02")], [guard()], Kind.UNKNOWN_HERE),
    ("only our stop tells", {}, [held("0.02")], [guard()], Kind.UNKNOWN_HERE),
    ("another side", slot(), [held("-0.02")], [guard()], Kind.SIDE),
    ("another quantity", slot(), [held("0.03")], [guard()], Kind.QUANTITY),
    ("part of it left", slot(left="0.005"), [held("0.02")], [guard()], Kind.QUANTITY),
    ("no guard at all", slot(), [held("0.02")], [], Kind.STOP_MISSING),
    ("target only", slot(), [held("0.02")], [guard(TARGET, kind="TAKE_PROFIT_MARKET")], Kind.STOP_MISSING),
    ("stop on the wrong side", slot(), [held("0.02")], [guard(side=Side.BUY)], Kind.STOP_MISSING),
    ("stop of another symbol", slot(), [held("0.02")], [guard(symbol="ETHUSDT")], Kind.STOP_MISSING),
    ("stop with a quantity", slot(), [held("0.02")], [guard(closes=False)], Kind.STOP_MISSING),
    ("stop that ended", slot(), [held("0.02")], [guard(status=OrderStatus.CANCELED)], Kind.STOP_MISSING),
    ("somebody else's position", {}, [held("0.02")], [], Kind.FOREIGN_POSITION),
    ("orphan", {}, [], [guard()], Kind.ORPHAN_ALGO),
    ("orphan beside a slot", slot(), [held("0.02")], [guard(), guard(OTHER)], Kind.ORPHAN_ALGO),
]


@pytest.mark.parametrize(("slots", "positions", "guards", "kind"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_difference_has_its_class(slots: dict[str, Any], positions: list[PositionUpdate], guards: list[AlgoUpdate], kind: Kind) -> None:
    assert kind in kinds(compare(slots, positions, guards))


def test_a_position_has_one_class_the_graver_first() -> None:
    assert kinds(compare(slot(), [held("-0.05")], [])) == [Kind.SIDE]


def test_a_short_position_is_compared_by_sign() -> None:
    assert compare(slot("SELL"), [held("-0.02")], [guard(side=Side.BUY)]).matches == 1


def test_the_owners_own_stop_protects_too_and_is_left_alone() -> None:
    report = compare(slot(), [held("0.02")], [guard("web_abc")])
    assert report.matches == 1 and not report.mismatches and [m.kind for m in report.foreign] == [Kind.FOREIGN_ORDER]


def test_orders_of_others_are_for_information_and_ours_must_not_rest() -> None:
    foreign = OrderUpdate("ETHUSDT", "web_1", 1, Side.BUY, OrderStatus.NEW, D(1), D(0), 1)
    resting = OrderUpdate("ETHUSDT", OTHER, 2, Side.BUY, OrderStatus.NEW, D(1), D(0), 1)
    report = compare({}, [], [], [foreign, resting])
    assert kinds(report) == [Kind.ORPHAN_ORDER] and len(report.foreign) == 1


def test_another_prefix_makes_the_same_orders_foreign() -> None:
    report = compare({}, [held("0.02")], [guard()], prefix="other")
    assert kinds(report) == [Kind.FOREIGN_POSITION] and len(report.foreign) == 1


def test_only_what_was_seen_twice_is_reported() -> None:
    first = compare(slot(), [held("0.03"), held("1", "ETHUSDT")], [guard()])
    second = compare(slot(), [held("0.02"), held("1", "ETHUSDT")], [guard()])
    confirmed = second.only((m.kind, m.symbol) for m in first.mismatches)
    assert kinds(confirmed) == [Kind.FOREIGN_POSITION] and confirmed.positions == 2
    assert kinds(second.only([])) == []


def test_the_log_lines_are_word_for_word() -> None:
    lines = compare(slot(), [held("0.03")], [guard()]).lines()
    assert lines == ["✅ Cache reconciled: 1 positions on Binance", "📊 Report: 0 matches, 1 mismatches", "⚠️ Position mismatches detected",
                     "   BTCUSDT: quantity differs (ours 0.02, venue 0.03)"]


def income(kind: str, amount: str, asset: str = "USDT") -> Income:
    return Income(kind, D(amount), asset, "BTCUSDT", 1, 1, 0)


def test_the_wallet_is_the_sum_of_its_statement() -> None:
    rows = [income("REALIZED_PNL", "12.5"), income("COMMISSION", "-1.25"), income("FUNDING_FEE", "-0.1"), income("COMMISSION", "-3", "BNB")]
    assert wallet_check(D(1000), rows, D("1011.15")) is None
    assert wallet_check(D(1000), rows, D("1011.155")) is None


def test_a_wallet_that_differs_tells_the_parts() -> None:
    found = wallet_check(D(1000), [income("COMMISSION", "-1.25")], D(1000))
    assert found == Mismatch(Kind.WALLET, "", "1000 with COMMISSION -1.25 = 998.75", "1000")
    report = Report(0, 0).plus(found).plus(None)
    assert kinds(report) == [Kind.WALLET] and str(found).startswith("account: wallet differs")
