"""The ways in which the venue is known to misbehave, on order of a test (the control door): nothing happens here unasked.

A rule names a door (``POST v1/order`` for REST, ``order.place`` for the WS API, an event name for the private stream), what goes wrong,
and how often. ``*`` is any door. Rules are used up in the order in which they were given.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from src.exchange.errors import ApiError

UNKNOWN_TEXT = "Unknown error, please check your request or try again later."


class Kind(StrEnum):
    """``…_before``: nothing is executed; ``…_after``: it is, and the client does not learn it."""

    UNKNOWN_BEFORE = "unknown_before"
    UNKNOWN_AFTER = "unknown_after"
    TIMEOUT_BEFORE = "timeout_before"
    TIMEOUT_AFTER = "timeout_after"
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    SILENT_AFTER = "silent_after"  # executed, and never answered
    UNAVAILABLE = "unavailable"
    THROTTLED = "throttled"
    INTERNAL = "internal"
    STALE = "stale"  # a query that lags: the order is not there yet
    SLOW = "slow"  # the answer takes ``delay_s`` longer, the request is executed at once
    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"


STREAM_KINDS = frozenset({Kind.DROP, Kind.DUPLICATE, Kind.DELAY})
AFTER = frozenset({Kind.UNKNOWN_AFTER, Kind.TIMEOUT_AFTER, Kind.RESET_AFTER, Kind.SILENT_AFTER})
RESETS = frozenset({Kind.RESET_BEFORE, Kind.RESET_AFTER})


@dataclass(slots=True)
class Rule:
    door: str
    kind: Kind
    count: int
    delay_s: float = 0.0


class Reset(Exception):
    """The connection is to be cut instead of an answer."""


class Silence(Exception):
    """No answer is to be given."""


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> None:
        self._rules.append(rule)

    def clear(self) -> None:
        self._rules.clear()

    @property
    def left(self) -> int:
        """How many faults are still to come."""
        return sum(r.count for r in self._rules)

    def take(self, door: str, streams: bool = False) -> Rule | None:
        """The fault for this request or event, used up by the asking."""
        for rule in self._rules:
            if rule.door in (door, "*") and (rule.kind in STREAM_KINDS) == streams:
                rule.count -= 1
                if rule.count <= 0:
                    self._rules.remove(rule)
                return rule
        return None


def fail(kind: Kind) -> None:
    """Raise what a client sees of that fault."""
    if kind in RESETS:
        raise Reset
    if kind is Kind.SILENT_AFTER:
        raise Silence
    if kind in (Kind.UNKNOWN_BEFORE, Kind.UNKNOWN_AFTER):
        raise ApiError(-1000, msg=UNKNOWN_TEXT, status=503)
    if kind in (Kind.TIMEOUT_BEFORE, Kind.TIMEOUT_AFTER):
        raise ApiError(-1007)
    if kind is Kind.UNAVAILABLE:
        raise ApiError(-1000, msg="Service Unavailable.", status=503)
    if kind is Kind.THROTTLED:
        raise ApiError(-1008)
    if kind is Kind.INTERNAL:
        raise ApiError(-1001)
    if kind is Kind.STALE:
        raise ApiError(-2013)


async def carried_out(faults: Faults, door: str, operation: Callable[[], Any]) -> Any:
    """An operation's value, with the fault that its door is due."""
    rule = faults.take(door) if faults.left else None
    if rule is not None and rule.kind is not Kind.SLOW and rule.kind not in AFTER:
        fail(rule.kind)
    value = operation()
    if inspect.isawaitable(value):
        value = await value
    if rule is not None:
        await asyncio.sleep(rule.delay_s)
        if rule.kind in AFTER:
            fail(rule.kind)
    return value
