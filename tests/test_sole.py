"""One daemon a STATE_DIR."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from src.error_handler import Fatal
from src.sole import sole, sole_child


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with sole(tmp_path, "supervisor"):
        with pytest.raises(Fatal, match=rf"another daemon is using it \(PID {os.getpid()}\)"), sole(tmp_path, "supervisor"):
            pass
        with sole(tmp_path, "brain"):
            pass
    with sole(tmp_path, "supervisor"):
        pass


async def test_a_child_waits_for_the_one_that_a_killed_supervisor_left_behind(tmp_path: Path) -> None:
    async def wait_and_own() -> str:
        async with sole_child(tmp_path, "brain", 5.0):
            return "owned"

    with sole(tmp_path, "brain"):
        waiting = asyncio.ensure_future(wait_and_own())
        await asyncio.sleep(0.2)
        assert not waiting.done()
    assert await waiting == "owned"


async def test_a_child_does_not_wait_for_ever(tmp_path: Path) -> None:
    with sole(tmp_path, "brain"), pytest.raises(Fatal, match="another daemon"):
        async with sole_child(tmp_path, "brain", 0.2):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="must be a folder"), sole(tmp_path / "nowhere", "supervisor"):
        pass
