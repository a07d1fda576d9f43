"""The governor never sends more than the venue allows, and what protects goes first."""

import asyncio

import pytest

from src.error_handler import Retryable
from src.venue.errors import is_throttle, to_error
from src.venue.governor import WAITING_MAX, Governor, Limits, Priority


class Now:
    """A venue clock that the test sets."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


def governor(now: Now, **options: object) -> Governor:
    return Governor(now, limits=Limits(1000, 10, 20), share=0.8, data_part=0.5, **options)  # type: ignore[arg-type]


def test_each_priority_may_fill_the_minute_up_to_its_own_ceiling() -> None:
    g = governor(Now(0))
    assert g.take_now(400, Priority.DATA) is not None
    assert g.take_now(1, Priority.DATA) is None
    assert g.take_now(400, Priority.TRADE) is not None
    assert g.take_now(1, Priority.TRADE) is None
    assert g.take_now(200, Priority.PROTECT) is not None
    assert g.take_now(1, Priority.PROTECT) is None


def test_a_new_minute_starts_at_nothing() -> None:
    now = Now(59_999)
    g = governor(now)
    assert g.take_now(800) and not g.take_now(1)
    now.ms = 60_000
    assert g.take_now(800)


def test_the_venues_figure_outranks_our_own_count() -> None:
    g = governor(Now(0))
    ticket = g.take_now(10)
    assert ticket
    g.answered(ticket, {"x-mbx-used-weight-1m": "795"})
    assert g.take_now(6) is None and g.take_now(5) is not None


def test_requests_without_an_answer_yet_count_on_top_of_the_venues_figure() -> None:
    g = governor(Now(0))
    ticket, open_ticket = g.take_now(10), g.take_now(100)
    assert ticket and open_ticket
    g.answered(ticket, {"x-mbx-used-weight-1m": "695"})
    assert g.take_now(6) is None


def test_a_figure_of_the_last_minute_is_forgotten() -> None:
    now = Now(59_999)
    g = governor(now)
    ticket = g.take_now(10)
    assert ticket
    now.ms = 60_001
    g.answered(ticket, {"x-mbx-used-weight-1m": "999"})
    assert g.take_now(800)


@pytest.mark.parametrize("header", ["-1", "", "many"])
def test_a_figure_that_is_none_is_ignored(header: str) -> None:
    g = governor(Now(0))
    ticket = g.take_now(10)
    assert ticket
    g.answered(ticket, {"x-mbx-used-weight-1m": header})
    assert g.statistics()["used_1m"] == 10


def test_what_other_processes_used_counts_too() -> None:
    g = governor(Now(0), others=lambda: 700)
    assert g.take_now(101) is None and g.take_now(100) is not None
    assert g.own_1m == 100


def test_a_request_heavier_than_its_ceiling_goes_out_in_an_unused_minute() -> None:
    g = governor(Now(0))
    assert g.take_now(500, Priority.DATA) is not None
    assert g.take_now(500, Priority.DATA) is None


async def test_who_waits_is_let_through_in_the_next_minute_the_most_important_first() -> None:
    now = Now(59_990)
    g = governor(now, speed=60_000.0)
    assert g.take_now(1000, Priority.PROTECT)
    order: list[str] = []

    async def wait(name: str, priority: Priority) -> None:
        await g.acquire(300, priority)
        order.append(name)

    data, trade, protect = [asyncio.create_task(wait(p.name, p)) for p in (Priority.DATA, Priority.TRADE, Priority.PROTECT)]
    await asyncio.sleep(0)
    assert g.statistics()["waiting"] == 3
    async with asyncio.timeout(5):
        now.ms = 60_000
        await asyncio.gather(protect, trade)
        assert not data.done()
        now.ms = 120_000
        await data
    assert order == ["PROTECT", "TRADE", "DATA"]


async def test_during_a_ban_nothing_goes_out_and_the_error_says_for_how_long() -> None:
    now = Now(1_796_000_000_000)
    g = governor(now)
    g.throttled(to_error(418, -1003, "Way too many requests; IP banned until 1796000600000.", write=False))
    assert g.take_now(1, Priority.PROTECT) is None
    with pytest.raises(Retryable) as caught:
        await g.acquire(1, Priority.PROTECT)
    assert caught.value.fields["retry_after_s"] == pytest.approx(600)
    now.ms = 1_796_000_600_000
    assert g.take_now(1) is not None


def test_protection_that_weighs_nothing_goes_out_even_where_the_minute_is_overdrawn() -> None:
    g = governor(Now(0), others=lambda: 5000)
    assert g.take_now(0, Priority.PROTECT) is not None and g.take_now(0, Priority.TRADE) is None


def test_after_a_429_only_the_placing_of_protection_goes_out() -> None:
    now = Now(30_000)
    g = governor(now)
    g.throttled(to_error(429, -1003, "Too many requests", write=False))
    assert g.take_now(0, Priority.PROTECT) is not None
    assert g.take_now(0, Priority.TRADE) is None and g.take_now(1, Priority.PROTECT) is None
    assert g.only_protection
    g.throttled(to_error(418, -1003, "Way too many requests; IP banned until 50000.", write=False, retry_after_s=5.0))
    assert g.take_now(0, Priority.PROTECT) is None and not g.only_protection
    now.ms = 60_000
    assert not g.only_protection


async def test_an_order_that_weighs_nothing_does_not_queue_behind_what_does() -> None:
    g = governor(Now(0))
    assert g.take_now(1000, Priority.PROTECT)
    waiting = asyncio.create_task(g.acquire(5, Priority.PROTECT))
    await asyncio.sleep(0)
    assert g.take_now(0, Priority.PROTECT) is not None and g.take_now(1, Priority.PROTECT) is None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


def test_a_429_without_a_time_closes_the_rest_of_the_minute() -> None:
    now = Now(30_000)
    g = governor(now)
    g.throttled(to_error(429, -1003, "Too many requests", write=False))
    assert g.blocked_s() == 30.0
    now.ms = 60_000
    assert g.take_now(1) is not None


def test_retry_after_is_wall_time_on_a_faster_clock() -> None:
    g = governor(Now(0), speed=60.0)
    g.throttled(to_error(429, -1003, "Too many requests", write=False, retry_after_s=3.0))
    assert g.blocked_s() == pytest.approx(3.0)


async def test_a_full_queue_refuses_the_least_important() -> None:
    g = governor(Now(0))
    assert g.take_now(1000, Priority.PROTECT)
    tasks = [asyncio.create_task(g.acquire(1, Priority.DATA)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Retryable, match="waiting already"):
        await g.acquire(1, Priority.DATA)
    important = asyncio.create_task(g.acquire(1, Priority.PROTECT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not important.done() and isinstance(tasks[-1].exception(), Retryable)
    for task in [*tasks, important]:
        task.cancel()
    await asyncio.gather(*tasks, important, return_exceptions=True)


async def test_a_wait_that_was_given_up_takes_no_weight() -> None:
    now = Now(59_990)
    g = governor(now)
    assert g.take_now(1000, Priority.PROTECT)
    given_up = asyncio.create_task(g.acquire(700, Priority.TRADE))
    patient = asyncio.create_task(g.acquire(700, Priority.TRADE))
    await asyncio.sleep(0)
    given_up.cancel()
    now.ms = 60_000
    async with asyncio.timeout(5):
        await patient
    assert g.own_1m == 700


def test_entries_leave_room_for_orders_that_reduce() -> None:
    now = Now(0)
    g = governor(now)
    assert [g.try_order(reducing=False) for _ in range(9)] == [True] * 8 + [False]
    assert [g.try_order(reducing=True) for _ in range(3)] == [True, True, False]
    now.ms = 10_000
    assert g.try_order(reducing=False)


def test_orders_count_for_ten_seconds_and_a_minute_wherever_the_venues_windows_begin() -> None:
    now = Now(9_900)
    g = governor(now)
    assert all(g.try_order(reducing=True) for _ in range(10))
    now.ms = 10_100
    assert not g.try_order(reducing=True), "they are younger than ten seconds"
    now.ms = 19_900
    assert all(g.try_order(reducing=True) for _ in range(10)) and not g.try_order(reducing=True)
    now.ms = 60_100
    assert not g.try_order(reducing=True), "20 within the minute"
    now.ms = 69_900
    assert all(g.try_order(reducing=True) for _ in range(10)) and not g.try_order(reducing=True)


@pytest.mark.parametrize("status", [429, 400])
def test_orders_wait_after_a_refusal_for_too_many_and_then_protection_is_tried_again(status: int) -> None:
    now = Now(1_000)
    g = governor(now)
    error = to_error(status, -1015, "Too many new orders", write=True)
    assert is_throttle(error)
    g.throttled(error)
    assert not g.try_order(reducing=True) and g.take_now(1) is not None
    now.ms += 5_000
    assert g.try_order(reducing=True)


def test_order_counts_are_learnt_from_headers_and_from_the_refusal() -> None:
    now = Now(0)
    g = governor(now)
    ticket = g.take_now(0)
    assert ticket
    g.answered(ticket, {"x-mbx-order-count-10s": "8", "x-mbx-order-count-1m": "8"})
    assert not g.try_order(reducing=False) and g.try_order(reducing=True)
    g.throttled(to_error(429, -1015, "Too many new orders", write=True))
    assert not g.try_order(reducing=True) and g.take_now(1) is not None
