"""Real child processes for tests: started by spawn as the daemon starts its own, and never outliving the test."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
DEADLINE_S = 120.0
"""Generous: the machine may be busy with other things."""


@contextmanager
def spawned(function: Callable[..., None], *args: Any) -> Iterator[BaseProcess]:
    """The child runs ``function(*args)``. On leaving it is given time to end by itself; an error in it fails the test."""
    child = SPAWN.Process(target=function, args=args, daemon=True)
    child.start()
    try:
        yield child
        child.join(DEADLINE_S)
        assert child.exitcode is not None, f"{function.__name__} did not end"
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        exitcode = child.exitcode
        child.close()
    assert exitcode in (0, -9), f"{function.__name__} ended with {exitcode}"


def descriptors() -> dict[str, str]:
    """What this process has open: {number: target}."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the directory's own descriptor, gone already
    return found


def mappings(name: str) -> int:
    """How many memfds of that name this process maps."""
    with open("/proc/self/maps") as maps:
        return maps.read().count(f"memfd:{name}")
