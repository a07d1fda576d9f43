"""The bus calls every handler, in order, whatever the others do, and hides no error."""

from __future__ import annotations

import pytest

from src.bus import DEPTH_MAX, EventBus, Topic
from src.error_handler import Fatal, Halt, Retryable


class Told(list):
    """An ``on_error`` that remembers."""

    def __call__(self, topic, handler, error):
        self.append((topic, handler, error))


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def bus(told):
    return EventBus(told)


def raising(error: Exception):
    def handler(event):
        raise error

    return handler


def test_handlers_run_in_the_order_of_subscription(bus):
    seen = []
    for name in "abc":
        bus.subscribe(Topic.CANDLE_CLOSED, lambda event, name=name: seen.append((name, event)))
    assert bus.publish(Topic.CANDLE_CLOSED, 7) == 3
    assert seen == [("a", 7), ("b", 7), ("c", 7)]


def test_only_the_topics_own_handlers_hear(bus):
    seen = []
    bus.subscribe(Topic.ORDER_FILLED, seen.append)
    assert bus.publish(Topic.ORDER_REJECTED, 1) == 0
    assert seen == []


def test_wanted_says_whether_anybody_listens(bus):
    assert not bus.wanted(Topic.TICK_UPDATE)
    unsubscribe = bus.subscribe(Topic.TICK_UPDATE, print)
    assert bus.wanted(Topic.TICK_UPDATE)
    unsubscribe()
    assert not bus.wanted(Topic.TICK_UPDATE)


def test_unsubscribing_twice_ends_one_subscription_only(bus):
    seen = []
    first = bus.subscribe(Topic.CONTROL, seen.append)
    first()
    bus.subscribe(Topic.CONTROL, seen.append)
    first()
    bus.publish(Topic.CONTROL, 1)
    assert seen == [1]


def test_hearing_a_topic_twice_is_a_bug(bus):
    bus.subscribe(Topic.ORDER_FILLED, print)
    with pytest.raises(AssertionError, match="twice"):
        bus.subscribe(Topic.ORDER_FILLED, print)


def test_an_error_is_counted_and_told_and_the_others_still_run(bus, told):
    error, seen = ValueError("x"), []
    handler = raising(error)
    bus.subscribe(Topic.CANDLE_CLOSED, handler)
    bus.subscribe(Topic.CANDLE_CLOSED, seen.append)
    assert bus.publish(Topic.CANDLE_CLOSED, 1) == 2
    bus.publish(Topic.CANDLE_CLOSED, 2)
    assert seen == [1, 2]
    assert told == [(Topic.CANDLE_CLOSED, handler, error)] * 2
    assert bus.errors[Topic.CANDLE_CLOSED, handler.__qualname__] == 2
    assert bus.statistics()["errors"] == 2


@pytest.mark.parametrize("error", [Halt("h"), Fatal("f"), AssertionError("a")])
def test_a_grave_error_is_raised_once_the_others_have_run(bus, told, error):
    seen = []
    bus.subscribe(Topic.ORDER_FILLED, raising(error))
    bus.subscribe(Topic.ORDER_FILLED, seen.append)
    with pytest.raises(type(error)) as raised:
        bus.publish(Topic.ORDER_FILLED, 1)
    assert raised.value is error
    assert seen == [1]
    assert len(told) == 1


def test_of_two_grave_errors_the_first_is_raised_and_both_are_told(bus, told):
    first, second = Halt("first"), Fatal("second")
    bus.subscribe(Topic.CONTROL, raising(first))
    bus.subscribe(Topic.CONTROL, raising(second))
    with pytest.raises(Halt, match="first"):
        bus.publish(Topic.CONTROL, 1)
    assert [error for _, _, error in told] == [first, second]


def test_a_light_error_of_ours_is_not_raised(bus, told):
    bus.subscribe(Topic.CONTROL, raising(Retryable("later")))
    assert bus.publish(Topic.CONTROL, 1) == 1
    assert len(told) == 1


def test_a_grave_error_inside_a_publish_inside_a_publish_is_told_once(bus, told):
    bus.subscribe(Topic.ORDER_FILLED, lambda event: bus.publish(Topic.POSITION_OPENED, event))
    bus.subscribe(Topic.POSITION_OPENED, raising(Halt("h")))
    for times in (1, 2):
        with pytest.raises(Halt):
            bus.publish(Topic.ORDER_FILLED, 1)
        assert len(told) == times


def test_events_may_beget_events(bus):
    seen = []
    bus.subscribe(Topic.ORDER_FILLED, lambda event: bus.publish(Topic.POSITION_OPENED, event + 1))
    bus.subscribe(Topic.POSITION_OPENED, seen.append)
    bus.publish(Topic.ORDER_FILLED, 1)
    assert seen == [2]


def test_a_feedback_loop_halts_and_the_bus_works_afterwards(bus, told):
    depth = 0

    def loop(event):
        nonlocal depth
        depth += 1
        bus.publish(Topic.SIGNAL_GENERATED, event)

    unsubscribe = bus.subscribe(Topic.SIGNAL_GENERATED, loop)
    with pytest.raises(Halt, match="beget"):
        bus.publish(Topic.SIGNAL_GENERATED, 1)
    assert depth == DEPTH_MAX
    assert len(told) == 1
    unsubscribe()
    bus.subscribe(Topic.SIGNAL_GENERATED, lambda event: None)
    assert bus.publish(Topic.SIGNAL_GENERATED, 1) == 1


def test_a_subscription_made_during_a_publish_hears_the_next(bus):
    seen = []

    def handler(event):
        if event == 1:
            bus.subscribe(Topic.CONTROL, seen.append)

    bus.subscribe(Topic.CONTROL, handler)
    assert bus.publish(Topic.CONTROL, 1) == 1
    assert bus.publish(Topic.CONTROL, 2) == 2
    assert seen == [2]


def test_a_subscription_ended_during_a_publish_hears_it_out(bus):
    seen = []
    bus.subscribe(Topic.CONTROL, lambda event: unsubscribe())
    unsubscribe = bus.subscribe(Topic.CONTROL, seen.append)
    bus.publish(Topic.CONTROL, 1)
    bus.publish(Topic.CONTROL, 2)
    assert seen == [1]


def test_what_stops_the_process_passes_at_once(bus, told):
    def stop(event):
        raise KeyboardInterrupt

    bus.subscribe(Topic.CONTROL, stop)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(Topic.CONTROL, 1)
    assert told == []
