"""Slow work (reports, disk) off the event loop: a bounded priority queue in front of a few threads.

Invariants: everything but the work itself happens on the loop's thread, so there is no lock. Lower priority numbers go first, equal ones
in the order they were submitted. At most ``limit`` jobs wait; one more is refused (Retryable) and counted, never dropped in silence. An
error reaches the job's future and is counted. The threads are daemons: a job that hangs cannot keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from queue import SimpleQueue
from typing import Any

from src.error_handler import Retryable


class Priority(IntEnum):
    URGENT = 0
    NORMAL = 10
    LOW = 20


@dataclass(slots=True, order=True)
class _Job:
    priority: int
    number: int
    name: str = field(compare=False)
    work: Callable[[], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)


class Dispatcher:
    """``workers`` threads, at most ``limit`` jobs waiting for them. Made and used on a running event loop."""

    def __init__(self, workers: int = 2, limit: int = 256) -> None:
        assert workers > 0, "nobody would work"
        assert limit > 0, "nothing could wait"
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._numbers = count()
        self._waiting: list[_Job] = []
        self._running: dict[int, _Job] = {}
        self._idle_workers = workers
        self._workers = workers
        self._handed: SimpleQueue[_Job | None] = SimpleQueue()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closed = False
        self._done = self._failed = self._refused = self._cancelled = 0
        for number in range(workers):
            threading.Thread(target=self._work, name=f"dispatch-{number}", daemon=True).start()

    def submit(self, priority: int, name: str, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run ``function(*args)`` in a thread; the future gets its result or its error. ``name`` is for statistics and for the log.

        Retryable: the queue is full, or the dispatcher is closed. Cancelling the future of a waiting job drops it; a running one runs on.
        """
        if len(self._waiting) >= self._limit:
            self._forget_cancelled()
        if self._closed or len(self._waiting) >= self._limit:
            self._refused += 1
            why = "is closed" if self._closed else f"has {self._limit} jobs waiting"
            raise Retryable(f"{name} was not started: the dispatcher {why}", job=name)
        job = _Job(priority, next(self._numbers), name, lambda: function(*args), self._loop.create_future())
        heapq.heappush(self._waiting, job)
        self._quiet.clear()
        self._start_next()
        return job.future

    async def close(self, timeout_s: float) -> list[str]:
        """Take no more jobs, finish those that are here, and end the threads.

        Returns the names of jobs that were dropped: waiting ones, and running ones whose thread is left to itself. Their futures are
        cancelled.
        """
        self._closed = True
        with contextlib.suppress(TimeoutError):  # what is left is returned
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        left = [*self._running.values(), *sorted(self._waiting)]
        dropped = [job.name for job in left if job.future.cancel()]
        self._cancelled += len(self._waiting)
        self._waiting.clear()
        for _ in range(self._workers):
            self._handed.put(None)
        return dropped

    def statistics(self) -> dict[str, int]:
        return {"waiting": len(self._waiting), "running": len(self._running), "done": self._done, "failed": self._failed,
                "refused": self._refused, "cancelled": self._cancelled}

    def _forget_cancelled(self) -> None:
        wanted = [job for job in self._waiting if not job.future.cancelled()]
        self._cancelled += len(self._waiting) - len(wanted)
        heapq.heapify(wanted)
        self._waiting = wanted

    def _start_next(self) -> None:
        """Hand waiting jobs to idle threads."""
        while self._idle_workers and self._waiting:
            job = heapq.heappop(self._waiting)
            if job.future.cancelled():
                self._cancelled += 1
                continue
            self._idle_workers -= 1
            self._running[job.number] = job
            self._handed.put(job)
        if not self._running and not self._waiting:
            self._quiet.set()

    def _finished(self, job: _Job, result: Any, error: BaseException | None) -> None:
        del self._running[job.number]
        self._idle_workers += 1
        if error is None:
            self._done += 1
        else:
            self._failed += 1
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        self._start_next()

    def _work(self) -> None:
        """A thread's life."""
        while (job := self._handed.get()) is not None:
            result, error = _run(job)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._finished, job, result, error)
            del job, result, error


def _run(job: _Job) -> tuple[Any, BaseException | None]:
    """(result, None) or (None, error). A future cannot carry StopIteration, so that becomes a RuntimeError."""
    try:
        return job.work(), None
    except StopIteration as error:
        return None, RuntimeError(f"{job.name} raised StopIteration: {error}")
    except BaseException as error:  # the job ends here; its future carries the error
        return None, error
