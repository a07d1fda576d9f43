"""What /health and the heartbeat say is what is so."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from src.counters import BLOCKS, HOLDS, READY
from src.life import pss_bytes
from src.system_monitor import Limits, Pulse, heartbeat, judge

NOW_NS = 100 * 10**9
LIMITS = Limits(15.0, 5.0, exchange=True)
PULSE = Pulse("sim", 0, 1.0, [], [], {}, 3, 3, True, "", 0)


def figures(**brain: float) -> dict[str, dict[str, Any]]:
    """Everything beats and is well, but for what is given of the Brain."""
    found: dict[str, dict[str, Any]] = {name: dict.fromkeys(fields, 0) for name, fields in BLOCKS.items()}
    for block in found.values():
        block |= {"heartbeat_ns": NOW_NS, "state": READY}
    found["feed"]["last_frame_ns"] = NOW_NS
    found["brain"] |= {"user_stream_live": 1, "ws_api_live": 1, "reconciled_ok": 1} | brain
    return found


def bits(*names: str) -> int:
    return sum(1 << HOLDS.index(name) for name in names)


def test_all_well_is_healthy() -> None:
    assert judge(figures(), LIMITS, NOW_NS) == []


@pytest.mark.parametrize(
    ("brain", "reasons"),
    [
        ({"holds": bits("journal")}, ["the journal cannot be written"]),
        ({"holds": bits("copy", "mode")}, ["the account is in multi-asset mode", "a newer copy of the daemon trades this account"]),
        ({"holds": bits("venue")}, ["the venue lets this account reduce only"]),
        ({"holds": bits("recheck"), "reconciled_ok": 0}, ["positions are not reconciled with the venue"]),
        ({"holds": bits("stream"), "user_stream_live": 0}, ["the user stream is down"]),
        ({"positions_unprotected": 2}, ["2 positions without a confirmed stop"]),
        ({"latched": 1}, []),
    ],
)
def test_each_reason_is_told_by_its_own_name(brain: dict[str, float], reasons: list[str]) -> None:
    assert judge(figures(**brain), LIMITS, NOW_NS) == reasons


def test_the_heartbeat_tells_of_slots_that_others_take() -> None:
    assert "0 of 3 held ·" in heartbeat(figures(), PULSE, [], NOW_NS)
    assert "0 of 3 held, 2 more by positions of others ·" in heartbeat(figures(foreign_positions=2), PULSE, [], NOW_NS)


@pytest.mark.parametrize(
    ("brain", "told"),
    [
        ({}, "0 candles · lag"),
        ({"audit_equal": 1200}, "(1,200 equal the venue's, 0 differ)"),
        ({"audit_equal": 5, "audit_partial": 3, "audit_late": 1}, "(5 equal the venue's, differ: 1 late, 3 partial)"),
    ],
)
def test_the_heartbeat_tells_why_candles_differ_from_the_venues(brain: dict[str, float], told: str) -> None:
    assert told in heartbeat(figures(**brain), PULSE, [], NOW_NS)


def test_memory_of_a_process_that_has_ended_is_none() -> None:
    assert 0 < pss_bytes(os.getpid()) < 1 << 34
    child = subprocess.Popen(["true"])
    child.wait()
    assert pss_bytes(child.pid) == 0
