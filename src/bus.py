"""The in-process EventBus: a function call with many ends. It keeps nothing, queues nothing and waits for nothing.

Invariants: handlers run in the order of their subscription, in the publisher's call, and ``publish`` returns after the last of them. A
handler that raises stops none of the others; its error is counted and handed to ``on_error``, and Halt, Fatal and AssertionError, which
stop more than a handler, are raised again once all have run. A subscription made or ended during a publish counts from the next one.
Events that beget events without end are a bug, found at a depth of 16 and raised as Halt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from src.error_handler import Fatal, Halt

Handler = Callable[[Any], None]


class Topic(StrEnum):
    TICK_UPDATE = "tick_update"
    CANDLE_CLOSED = "candle_closed"
    SETUP_ARMED = "setup_armed"
    SIGNAL_GENERATED = "signal_generated"
    ORDER_REQUEST = "order_request"
    ORDER_FILLED = "order_filled"
    ORDER_REJECTED = "order_rejected"
    POSITION_OPENED = "position_opened"
    POSITION_CLOSED = "position_closed"
    CONTROL = "control"


DEPTH_MAX = 16


class EventBus:
    """``on_error(topic, handler, error)`` is told of each error of a handler, once; it must not raise. For one thread."""

    __slots__ = ("_depth", "_handlers", "_on_error", "_told", "errors")

    def __init__(self, on_error: Callable[[Topic, Handler, Exception], None]) -> None:
        self._on_error = on_error
        self._handlers: dict[Topic, tuple[Handler, ...]] = dict.fromkeys(Topic, ())
        self._depth = 0
        self._told: Exception | None = None
        self.errors: Counter[tuple[Topic, str]] = Counter()
        """Errors by topic and the handler's qualified name."""

    def subscribe(self, topic: Topic, handler: Handler) -> Callable[[], None]:
        """The handler is called with each event of the topic until the returned function is called (twice is harmless)."""
        assert handler not in self._handlers[topic], f"{handler} would hear {topic} twice"
        self._handlers[topic] += (handler,)
        live = True

        def unsubscribe() -> None:
            nonlocal live
            if live:
                live = False
                self._handlers[topic] = tuple(h for h in self._handlers[topic] if h != handler)

        return unsubscribe

    def wanted(self, topic: Topic) -> bool:
        """Whether anybody listens: an event that costs something to build need not be built for nobody."""
        return bool(self._handlers[topic])

    def publish(self, topic: Topic, event: Any) -> int:
        """Calls every handler with ``event``. Returns how many there were."""
        handlers = self._handlers[topic]
        if not handlers:
            return 0
        if self._depth == DEPTH_MAX:
            raise Halt(f"events beget events: {DEPTH_MAX} publishes deep", topic=topic.value)
        self._depth += 1
        grave: Exception | None = None
        try:
            for handler in handlers:
                try:
                    handler(event)
                except Exception as error:  # this handler ends here, the others do not
                    if self._failed(topic, handler, error) and grave is None:
                        grave = error
        finally:
            self._depth -= 1
        if grave is not None:
            if self._depth == 0:
                self._told = None
            raise grave
        return len(handlers)

    def statistics(self) -> dict[str, int]:
        """Subscriptions by topic, and the handlers' errors together."""
        return {topic.value: len(handlers) for topic, handlers in self._handlers.items()} | {"errors": self.errors.total()}

    def _failed(self, topic: Topic, handler: Handler, error: Exception) -> bool:
        """Counts and tells, unless a publish inside this one already has. True: the error must go on upwards."""
        grave = isinstance(error, (Halt, Fatal, AssertionError))
        if error is not self._told:
            self._told = error if grave else None
            self.errors[topic, getattr(handler, "__qualname__", repr(handler))] += 1
            self._on_error(topic, handler, error)
        return grave
