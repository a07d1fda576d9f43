"""The supervisor: a child that ends is told by its own line, whatever was being done with it."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

import pytest

from src.counters import Counters
from src.supervisor import ChildEnded, Supervisor
from tests.daemon import until


def _end_at_once(name: str, pipe: Connection) -> None:
    os._exit(3)


def test_a_child_that_dies_before_it_is_told_something_is_a_dead_child() -> None:
    counters = Counters.create()
    with Supervisor(counters, 5.0) as supervisor:
        supervisor.spawn("brain", _end_at_once)
        until(lambda: not supervisor._children["brain"].process.is_alive(), 20)
        supervisor.tell("brain", ("table", "x" * 1_000_000))
        with pytest.raises(ChildEnded, match="Brain ended with exit code 3"):
            supervisor.wait_for("ready", "brain")
        supervisor.stop()
    counters.close()
