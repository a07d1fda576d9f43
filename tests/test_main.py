"""The operator's commands that are over at once."""

from __future__ import annotations

from decimal import Decimal as D
from pathlib import Path

import pytest

from src.error_handler import Fatal
from src.journal import Journal
from src.main import release
from src.risk import Limits

LATCHES = ("daily_loss", "drawdown", "halt")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal in which everything is latched: 7 000 are left of 10 000."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    journal, limits = Journal(tmp_path), Limits(D("0.06"), D("0.20"))
    limits.update(D(10_000), 0)
    for name in LATCHES:
        journal.latch(name, "said by the test", 1)
    journal.remember("limits", limits.memory())
    journal.close()
    return tmp_path


def next_start(folder: Path) -> tuple[list[str], list[str]]:
    """(latches that are held, limits that trip with what is left)"""
    journal, limits = Journal(folder), Limits(D("0.06"), D("0.20"))
    limits.recall(journal.recall("limits"))
    held = list(journal.latches())
    journal.close()
    return held, [name for name, _ in limits.update(D(7_000), 1)]


@pytest.mark.parametrize(
    ("words", "held", "trips"),
    [
        (["daily_loss"], ["drawdown", "halt"], ["drawdown"]),
        (["drawdown"], ["daily_loss", "halt"], ["daily_loss"]),
        (["halt"], ["daily_loss", "drawdown"], ["daily_loss", "drawdown"]),
        ([], [], []),
    ],
)
def test_release_lets_go_of_what_belongs_to_the_latch(state: Path, words: list[str], held: list[str], trips: list[str]) -> None:
    assert release(words) == 0
    assert next_start(state) == (held, trips)


def test_release_without_a_name_forgives_nothing_that_was_not_latched(state: Path) -> None:
    release(["daily_loss"])
    release(["drawdown"])
    journal, limits = Journal(state), Limits(D("0.06"), D("0.20"))
    limits.update(D(10_000), 0)
    journal.remember("limits", limits.memory())
    journal.close()
    assert release([]) == 0
    assert next_start(state) == ([], ["daily_loss", "drawdown"])


def test_release_before_anything_was_remembered_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    assert release([]) == 0
    with pytest.raises(Fatal, match="no latch is called 'halt'"):
        release(["halt"])
