"""The event bus: one publish to handlers that do nothing.

The references carry one object from one side to the other too, but keep it in between: asyncio.Queue in the same task, queue.SimpleQueue
and zmq inproc in the same thread, multiprocessing.Queue through its pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import zmq

from src.bus import EventBus, Handler, Topic
from tests.bench import SHORT_REPETITIONS, Row, ns_per_op, row
from tests.spawned import SPAWN

EVENTS = 2_000
EVENTS_SLOW = 200
PAYLOAD = bytes(128)


def run() -> Iterator[Row]:
    references = {
        "a function call": _call(),
        "asyncio.Queue put and get": asyncio.run(_asyncio_queue()),
        "queue.SimpleQueue put and get": _simple_queue(),
        "zmq inproc send and receive": _zmq_inproc(),
        "multiprocessing.Queue put and get": _process_queue(),
    }
    for case, handlers in (("publish to 1 handler", 1), ("publish to 3 handlers", 3)):
        value = _publish(handlers)
        for reference, figure in references.items():
            yield row("bus", case, "ns_per_op", value, reference=reference, reference_value=figure)


def _nothing(event: Any) -> None:
    """What every handler here does."""


def _handler() -> Handler:
    """Another function that does nothing: the bus refuses the same one twice."""
    return lambda event: None


def _raise(topic: Topic, handler: Handler, error: Exception) -> None:
    raise error


def _publish(handlers: int) -> float:
    bus = EventBus(_raise)
    for _ in range(handlers):
        bus.subscribe(Topic.CANDLE_CLOSED, _handler())

    def publish() -> None:
        for _ in range(EVENTS):
            bus.publish(Topic.CANDLE_CLOSED, PAYLOAD)

    return ns_per_op(publish, EVENTS, repetitions=SHORT_REPETITIONS)


def _call() -> float:
    def call() -> None:
        for _ in range(EVENTS):
            _nothing(PAYLOAD)

    return ns_per_op(call, EVENTS, repetitions=SHORT_REPETITIONS)


async def _asyncio_queue() -> float:
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    def put_and_get() -> None:
        for _ in range(EVENTS):
            queue.put_nowait(PAYLOAD)
            queue.get_nowait()

    return ns_per_op(put_and_get, EVENTS, repetitions=SHORT_REPETITIONS)


def _simple_queue() -> float:
    queue: SimpleQueue[bytes] = SimpleQueue()

    def put_and_get() -> None:
        for _ in range(EVENTS):
            queue.put(PAYLOAD)
            queue.get()

    return ns_per_op(put_and_get, EVENTS, repetitions=SHORT_REPETITIONS)


def _zmq_inproc() -> float:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        pull.bind("inproc://bench")
        push.connect("inproc://bench")

        def send_and_receive() -> None:
            for _ in range(EVENTS_SLOW):
                push.send(PAYLOAD)
                pull.recv()

        return ns_per_op(send_and_receive, EVENTS_SLOW, repetitions=SHORT_REPETITIONS)


def _process_queue() -> float:
    queue = SPAWN.Queue()

    def put_and_get() -> None:
        for _ in range(EVENTS_SLOW):
            queue.put(PAYLOAD)
            queue.get()

    figure = ns_per_op(put_and_get, EVENTS_SLOW, repetitions=SHORT_REPETITIONS)
    queue.close()
    queue.join_thread()
    return figure
