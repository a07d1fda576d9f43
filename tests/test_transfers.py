"""Each deposit and withdrawal counts once, whoever tells it, in whatever order, over any restart."""

from __future__ import annotations

import json
from decimal import Decimal as D
from itertools import permutations

import pytest

from src.risk import Limits
from src.transfers import NEAR_MS, OVERLAP_MS, TOLD_MAX, Transfers
from src.venue.answers import Income

NOW = 1_796_000_000_000


def row(amount: str, time_ms: int, number: int, *, kind: str = "TRANSFER", asset: str = "USDT") -> Income:
    return Income(kind, D(amount), asset, "", time_ms, number, 0)


def begun(now_ms: int = NOW) -> Transfers:
    """The statement was read once, and was empty."""
    transfers = Transfers()
    assert transfers.read([], now_ms) == 0
    return transfers


def test_what_nobody_told_counts_once_however_often_it_is_read() -> None:
    transfers, rows = begun(), [row("100", NOW + 5, 1), row("-30", NOW + 9, 2)]
    assert transfers.read(rows, NOW + 10) == 70
    assert transfers.read(rows, NOW + 20) == 0 and transfers.read([*rows, row("1", NOW + 19, 3)], NOW + 30) == 1


def test_other_rows_and_other_money_do_not_count() -> None:
    rows = [row("100", NOW + 1, 1, kind="COMMISSION"), row("100", NOW + 1, 2, asset="BNB")]
    assert begun().read(rows, NOW + 5) == 0


@pytest.mark.parametrize("apart_ms", [-40, 0, 7, NEAR_MS])
def test_the_same_transfer_told_and_read_counts_once_in_either_order(apart_ms: int) -> None:
    first_told, first_read = begun(), begun()
    assert first_told.tell(D(-50), NOW + 9 + apart_ms) == -50 and first_told.read([row("-50.00", NOW + 9, 1)], NOW + 60) == 0
    assert first_read.read([row("-50.00", NOW + 9, 1)], NOW + 60) == -50 and first_read.tell(D(-50), NOW + 9 + apart_ms) == 0
    for transfers in (first_told, first_read):
        assert transfers.read([row("-50.00", NOW + 9, 1)], NOW + 90) == 0, "and no third time"


def test_the_same_amount_at_another_time_is_another_transfer() -> None:
    transfers = begun()
    assert transfers.tell(D(50), NOW) == 50
    assert transfers.read([row("50", NOW + NEAR_MS + 1, 1)], NOW + 2 * NEAR_MS) == 50
    assert transfers.tell(D(50), NOW + 3 * NEAR_MS) == 50


def test_equal_transfers_at_once_are_as_many_as_the_statement_says() -> None:
    """Two of three were told, in whatever order statement and stream come."""
    rows = [row("50", NOW + 1, 1), row("50", NOW + 2, 2), row("50", NOW + 3, 3)]
    for order in permutations(["tell 1", "tell 3", "read"]):
        transfers, total = begun(), D(0)
        for word in order:
            total += transfers.read(rows, NOW + 9) if word == "read" else transfers.tell(D(50), NOW + int(word[-1]))
        assert total + transfers.read(rows, NOW + 99) == 150, order


def test_a_row_that_comes_late_to_the_statement_counts_then() -> None:
    transfers = begun()
    transfers.read([], NOW + OVERLAP_MS // 2)
    assert transfers.from_ms(NOW + OVERLAP_MS) <= NOW + 5
    assert transfers.read([row("20", NOW + 5, 1)], NOW + OVERLAP_MS) == 20


def test_at_the_very_first_what_was_moved_before_is_part_of_what_is_found() -> None:
    transfers = Transfers()
    assert transfers.read([row("10000", NOW - 3, 1)], NOW) == 0
    assert transfers.tell(D(10_000), NOW - 2) == 0, "told late"
    assert transfers.read([row("10000", NOW - 3, 1), row("5", NOW + 1, 2)], NOW + 2) == 5


def test_what_is_remembered_reaches_back_to_the_last_statement_and_no_further() -> None:
    transfers = begun()
    for hour in range(1, 6):
        assert transfers.tell(D(1), NOW + hour * 3_600_000) == 1
    rows = [row("1", NOW + hour * 3_600_000, hour) for hour in range(1, 6)]
    again = Transfers()
    again.recall(json.loads(json.dumps(transfers.memory())))
    assert again.from_ms(NOW + 6 * 3_600_000) == NOW - OVERLAP_MS
    assert again.read([*rows, row("7", NOW + 4_000_000, 6)], NOW + 6 * 3_600_000) == 7
    assert again.told == [] and again.stated == []


def test_a_clock_of_the_venue_that_goes_back_asks_for_no_time_to_come() -> None:
    assert begun().from_ms(NOW - 10 * OVERLAP_MS) == NOW - 11 * OVERLAP_MS


def test_many_that_were_told_ask_for_the_statement() -> None:
    transfers = begun()
    for number in range(TOLD_MAX):
        assert not transfers.full
        transfers.tell(D(1), NOW + number)
    assert transfers.full


def test_limits_move_once_with_each_and_remember_all_of_it_together() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.update(D(10_000), NOW)
    assert limits.stated([], NOW) == 0
    limits.told(D(-4_000), NOW + 5)
    again = Limits(D("0.06"), D("0.20"))
    again.recall(json.loads(json.dumps(limits.memory())))
    assert again.stated([row("-4000", NOW + 5, 1), row("-1000", NOW + 7, 2)], NOW + 9) == -1_000
    assert again.start == again.peak == 5_000 and again.update(D(5_000), NOW + 10) == []


def test_limits_of_an_older_journal_begin_to_read_the_statement_now() -> None:
    limits = Limits(D("0.06"), D("0.20"))
    limits.recall({"day": NOW // 86_400_000, "start": "10000", "peak": "12000"})
    assert limits.stated([row("10000", NOW - 9, 1)], NOW) == 0 and (limits.start, limits.peak) == (10_000, 12_000)
