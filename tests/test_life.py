"""What every child does at the moments of its life that the end-to-end tests cannot see."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from multiprocessing import Pipe

import pytest

from src.config import load
from src.counters import READY, Counters
from src.life import Life


@pytest.fixture
def thawed() -> Iterator[None]:
    """The collector as it was, afterwards."""
    yield
    gc.unfreeze()


def test_when_it_is_ready_it_says_so_and_what_it_was_made_of_is_never_looked_through_again(thawed: None) -> None:
    """A full collection over modules and kernels takes a tenth of a second, at any moment."""
    counters, (here, there) = Counters.create(), Pipe()
    try:
        life = Life("feed", there, load({}, None), counters, counters.block("feed"))
        before = gc.get_freeze_count()
        life.ready("value")
        assert here.recv() == ("ready", "value") and counters.get("feed", "state") == READY
        assert gc.get_freeze_count() > before + 10_000
    finally:
        counters.close()
