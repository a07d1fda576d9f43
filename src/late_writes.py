"""Writes that the disk refuses wait in memory until it takes them again, in the order of their making.

Invariants: while one waits, no later one goes before it; of what waits, only the newest of a key counts; of more than ``UNWRITTEN_MAX`` the
oldest is dropped, and told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from src.error_handler import Degraded, failure

UNWRITTEN_MAX = 10_000
"""What the disk refuses waits in memory; of more than so many writes the oldest is dropped and counted (queue_full)."""


class LateWrites:
    """``on_dropped`` is told of each write that is lost. Its length is how many wait; ``key in writes``: one of that key does."""

    def __init__(self, on_dropped: Callable[[], None]) -> None:
        self._on_dropped = on_dropped
        self._waiting: dict[str, Callable[[], Any]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: str) -> bool:
        return key in self._waiting

    def write(self, write: Callable[[], Any], key: str = "") -> bool:
        """True: it is on disk. False: it waits."""
        if not self._waiting:
            try:
                write()
                return True
            except Degraded as error:
                failure("the journal is not written; nothing opens until it is", error)
        self._count += 1
        self._waiting.pop(key, None)
        self._waiting[key or f"write {self._count}"] = write
        if len(self._waiting) > UNWRITTEN_MAX:
            self._waiting.pop(next(iter(self._waiting)))
            self._on_dropped()
        return False

    def drop(self, key: str) -> None:
        """It need not be written any more."""
        self._waiting.pop(key, None)

    def again(self) -> bool:
        """Try what waits, oldest first. True: nothing waits any more."""
        for key, write in list(self._waiting.items()):
            try:
                write()
            except Degraded:
                return False
            del self._waiting[key]
        return True


def read_or(read: Callable[[], Any], otherwise: Any) -> Any:
    """What the journal says, or ``otherwise`` where it cannot be read."""
    try:
        return read()
    except sqlite3.Error as error:
        failure("the journal cannot be read", error)
        return otherwise
