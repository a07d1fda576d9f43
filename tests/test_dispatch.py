"""Slow work runs in threads, most urgent first, and every job ends in a result, an error, a refusal or a name."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from src.dispatch import Dispatcher, Priority
from src.error_handler import Retryable

DEADLINE_S = 20.0


class Gate:
    """A job that holds a worker until it is opened."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def job(self) -> None:
        self._entered.set()
        assert self._open.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, DEADLINE_S)


@pytest.fixture
async def gate():
    gate = Gate()
    yield gate
    gate.open()


async def test_the_future_gets_the_result_from_another_thread():
    dispatcher = Dispatcher()
    here = threading.get_ident()
    assert await dispatcher.submit(Priority.NORMAL, "add", lambda a, b: (a + b, threading.get_ident() != here), 2, 3) == (5, True)
    assert await dispatcher.close(DEADLINE_S) == []


async def test_an_error_reaches_the_future_and_is_counted():
    dispatcher = Dispatcher()
    with pytest.raises(ZeroDivisionError):
        await dispatcher.submit(Priority.NORMAL, "divide", lambda: 1 // 0)
    assert dispatcher.statistics()["failed"] == 1
    assert await dispatcher.submit(Priority.NORMAL, "again", lambda: 1) == 1
    await dispatcher.close(DEADLINE_S)


async def test_an_error_that_no_future_can_carry_still_arrives():
    dispatcher = Dispatcher(workers=1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await dispatcher.submit(Priority.NORMAL, "next", next, iter(()))
    assert await dispatcher.submit(Priority.NORMAL, "again", lambda: 1) == 1
    await dispatcher.close(DEADLINE_S)


async def test_urgent_goes_first_and_equals_keep_their_order(gate):
    dispatcher, order = Dispatcher(workers=1), []
    held = dispatcher.submit(Priority.NORMAL, "gate", gate.job)
    jobs = [dispatcher.submit(priority, name, order.append, name) for priority, name in [
        (Priority.LOW, "low 1"), (Priority.NORMAL, "normal 1"), (Priority.LOW, "low 2"), (Priority.URGENT, "urgent 1"),
        (Priority.NORMAL, "normal 2"), (Priority.URGENT, "urgent 2")]]
    gate.open()
    await asyncio.gather(held, *jobs)
    assert order == ["urgent 1", "urgent 2", "normal 1", "normal 2", "low 1", "low 2"]
    await dispatcher.close(DEADLINE_S)


async def test_a_full_queue_refuses_and_counts(gate):
    dispatcher = Dispatcher(workers=1, limit=2)
    jobs = [dispatcher.submit(Priority.NORMAL, "gate", gate.job)]
    jobs += [dispatcher.submit(Priority.NORMAL, "waits", int) for _ in range(2)]
    with pytest.raises(Retryable, match=r"one more was not started.*2 jobs waiting"):
        dispatcher.submit(Priority.URGENT, "one more", int)
    assert dispatcher.statistics() == {"waiting": 2, "running": 1, "done": 0, "failed": 0, "refused": 1, "cancelled": 0}
    gate.open()
    await asyncio.gather(*jobs)
    assert dispatcher.statistics() == {"waiting": 0, "running": 0, "done": 3, "failed": 0, "refused": 1, "cancelled": 0}
    await dispatcher.close(DEADLINE_S)


async def test_workers_run_side_by_side():
    dispatcher, meeting = Dispatcher(workers=3), threading.Barrier(3)
    await asyncio.gather(*(dispatcher.submit(Priority.NORMAL, "meet", meeting.wait, DEADLINE_S) for _ in range(3)))
    await dispatcher.close(DEADLINE_S)


async def test_a_waiting_job_that_is_cancelled_never_runs(gate):
    dispatcher, ran = Dispatcher(workers=1), []
    held = dispatcher.submit(Priority.NORMAL, "gate", gate.job)
    dispatcher.submit(Priority.NORMAL, "cancelled", ran.append, 1).cancel()
    gate.open()
    await held
    assert await dispatcher.close(DEADLINE_S) == []
    assert ran == []
    assert dispatcher.statistics()["cancelled"] == 1


async def test_cancelled_jobs_do_not_fill_the_queue(gate):
    dispatcher = Dispatcher(workers=1, limit=1)
    held = dispatcher.submit(Priority.NORMAL, "gate", gate.job)
    dispatcher.submit(Priority.NORMAL, "cancelled", int).cancel()
    job = dispatcher.submit(Priority.NORMAL, "wanted", int)
    gate.open()
    await asyncio.gather(held, job)
    await dispatcher.close(DEADLINE_S)


async def test_a_running_job_whose_caller_gave_up_runs_on(gate):
    dispatcher = Dispatcher(workers=1)
    held = dispatcher.submit(Priority.NORMAL, "gate", gate.job)
    await gate.entered()
    held.cancel()
    gate.open()
    assert await dispatcher.close(DEADLINE_S) == []
    assert dispatcher.statistics()["done"] == 1


async def test_closing_finishes_what_is_here(gate):
    dispatcher, ran = Dispatcher(workers=1), []
    dispatcher.submit(Priority.NORMAL, "gate", gate.job)
    for number in range(5):
        dispatcher.submit(Priority.LOW, "report", ran.append, number)
    gate.open()
    assert await dispatcher.close(DEADLINE_S) == []
    assert ran == [0, 1, 2, 3, 4]


async def test_closing_names_what_it_drops(gate):
    dispatcher = Dispatcher(workers=1)
    jobs = [dispatcher.submit(Priority.NORMAL, "hangs", gate.job)]
    jobs += [dispatcher.submit(priority, name, int) for priority, name in [(Priority.LOW, "report"), (Priority.URGENT, "snapshot")]]
    await gate.entered()
    assert await dispatcher.close(0.0) == ["hangs", "snapshot", "report"]
    assert all(job.cancelled() for job in jobs)


async def test_a_closed_dispatcher_refuses():
    dispatcher = Dispatcher()
    await dispatcher.close(DEADLINE_S)
    with pytest.raises(Retryable, match="closed"):
        dispatcher.submit(Priority.NORMAL, "late", int)
    assert await dispatcher.close(DEADLINE_S) == []


async def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    dispatcher = Dispatcher(workers=4)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 4
    await dispatcher.close(DEADLINE_S)
    for thread in mine:
        await asyncio.to_thread(thread.join, DEADLINE_S)
        assert not thread.is_alive()


def test_a_job_that_outlives_its_loop_ends_quietly():
    gate = Gate()

    async def leave() -> list[str]:
        dispatcher = Dispatcher(workers=1)
        dispatcher.submit(Priority.NORMAL, "hangs", gate.job)
        await gate.entered()
        return await dispatcher.close(0.0)

    before = set(threading.enumerate())
    assert asyncio.run(leave()) == ["hangs"]
    worker = next(thread for thread in set(threading.enumerate()) - before if thread.name.startswith("dispatch"))
    gate.open()
    worker.join(DEADLINE_S)
    assert not worker.is_alive()
    gc.collect()
