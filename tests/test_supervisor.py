"""The supervisor with small children of its own: what an ended one means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from src.counters import Counters
from src.supervisor import EXIT_DIED, EXIT_FATAL, ChildEnded, Supervisor
from tests.daemon import until


def says_and_ends(name: str, pipe: Connection, word: str, code: int) -> None:
    pipe.send((word, "its last words"))
    sys.exit(code)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    counters = Counters.create()
    with Supervisor(counters, 10.0) as supervisor:
        yield supervisor
        supervisor.stop()
    counters.close()


def test_a_child_that_has_an_end_may_come_to_it(supervisor: Supervisor) -> None:
    supervisor.spawn("feed_kernels", says_and_ends, "progress", 0)
    supervisor.spawn("brain_kernels", says_and_ends, "progress", 0)
    supervisor.wait_end("feed_kernels", "brain_kernels")
    supervisor.spawn("feed_kernels", says_and_ends, "progress", 0)  # and the name is free again
    supervisor.wait_end("feed_kernels")


@pytest.mark.parametrize(("word", "code", "exit_code", "text"), [
    ("progress", 3, EXIT_DIED, "Kernels ended with exit code 3"),
    ("fatal", 2, EXIT_FATAL, "its last words"),
])  # fmt: skip
def test_an_end_that_is_not_proper_ends_the_daemon(supervisor: Supervisor, word: str, code: int, exit_code: int, text: str) -> None:
    supervisor.spawn("brain_kernels", says_and_ends, word, code)
    with pytest.raises(ChildEnded, match=text) as ended:
        supervisor.wait_end("brain_kernels")
    assert ended.value.code == exit_code


def test_a_child_without_an_end_may_not_end(supervisor: Supervisor) -> None:
    supervisor.spawn("feed", says_and_ends, "progress", 0)
    with pytest.raises(ChildEnded, match="Feed ended with exit code 0"):
        supervisor.watch()


def test_a_child_that_dies_before_it_is_told_something_is_a_dead_child(supervisor: Supervisor) -> None:
    supervisor.spawn("brain", says_and_ends, "progress", 3)
    until(lambda: not supervisor._children["brain"].process.is_alive(), 20)
    supervisor.tell("brain", ("table", "x" * 1_000_000))
    with pytest.raises(ChildEnded, match="Brain ended with exit code 3"):
        supervisor.wait_for("ready", "brain")
