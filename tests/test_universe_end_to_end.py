"""Contracts that end, begin and come back at the venue, and what the whole daemon does about it."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from src.config import SIM_KEY, SIM_SECRET
from tests.daemon import Process, daemon_env, exchange, get, health_url, post, running, until

HOUR_MS = 3_600_000
OWN = ("--speed", "60", "--seed", "3", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000")


def metric(process: Process, name: str, of: str = "feed") -> float:
    with urllib.request.urlopen(health_url(process).replace("/health", "/metrics"), timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith(f'aegis_{name}{{process="{of}"}}')]
    return float(lines[0].split()[-1])


def contract(urls: dict[str, str], symbol: str, **changes: Any) -> None:
    post(urls["rest"] + "/control/symbol", {"symbol": symbol, **changes})


def now_ms(urls: dict[str, str]) -> int:
    return int(get(urls["rest"] + "/fapi/v1/time")[1]["serverTime"])


def held(urls: dict[str, str]) -> set[str]:
    """What the account holds, by the exchange's own books: a signed question misses its window on a busy machine at this speed."""
    return {key.split(":")[0] for key in get(urls["rest"] + "/control/books")[1][SIM_KEY]["positions"]}


@pytest.mark.slow
def test_a_position_is_closed_before_its_contract_ends_and_nothing_opens_in_it_again(tmp_path: Path) -> None:
    """The end is announced for 65 minutes from now and positions are left an hour before it: in five minutes, and not at once. A position
    that meets its stop or target in them proves nothing, and the next one is looked at."""
    with exchange(tmp_path, *OWN) as (_, urls):
        env = daemon_env(tmp_path, SIM_SPEED="60", UNIVERSE_SIZE="20", LOG_LEVEL="INFO", EXCHANGE_URL=urls["rest"], MIN_CONFIDENCE="0.3")
        with running([], env) as process:
            left = False
            while not left:
                symbol = until(lambda: held(urls), 240, what="a position on the venue").pop()
                ends_ms = now_ms(urls) + 65 * 60_000
                contract(urls, symbol, delivery_ms=ends_ms)
                process.wait_line(f"🚪 {symbol} leaves the venue: nothing opens in it", 10)
                assert symbol in held(urls) or process.count(f"closed BUY {symbol}") + process.count(f"closed SELL {symbol}"), "not at once"
                until(lambda s=symbol: s not in held(urls), 30, what="a flat position")
                left = process.count(f"🚪 {symbol} is left: its contract ends") == 1
                assert now_ms(urls) < ends_ms - HOUR_MS + 120_000
            opened = [process.count(f"📈 opened {side} {symbol}") for side in ("BUY", "SELL")]
            closed = process.wait_line(f"close {symbol} ", 5)
            assert ": the contract ends" in closed
            process.wait_line(f"{symbol} is empty", 20)
            assert [process.count(f"📈 opened {side} {symbol}") for side in ("BUY", "SELL")] == opened


@pytest.mark.slow
def test_symbols_begin_and_end_in_a_running_daemon_without_a_reconnect(tmp_path: Path) -> None:
    with exchange(tmp_path, *OWN) as (_, urls):
        contract(urls, "SOLUSDT", status="PENDING_TRADING")
        env = daemon_env(tmp_path, UNIVERSE_SIZE="20", LOG_LEVEL="INFO", EXCHANGE_URL=urls["rest"], UNIVERSE_SECONDS="300",
                         EXCLUDE_SYMBOLS="DOGE*")  # fmt: skip
        with running([], env) as process:
            line = process.wait_line("🌍 Universe: 18 of 20 symbols", 60)
            assert "excluded=1" in line and "not_trading=1" in line
            process.wait_line("✅ All processes running")
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")
            connects = process.count("event=OPENED")
            contract(urls, "SOLUSDT", status="TRADING")
            process.wait_line("🌍 The universe changes: 1 symbols begin, 0 end", 30)
            until(lambda: metric(process, "symbols") == 19, 10, what="nineteen symbols")
            until(lambda: metric(process, "stale_symbols", "brain") == 0, 20, what="data of all symbols")
            contract(urls, "XRPUSDT", status="SETTLING")
            process.wait_line("🚪 XRPUSDT leaves the venue: nothing opens in it", 20)
            process.wait_line("🌍 The universe changes: 0 symbols begin, 1 end", 30)
            until(lambda: metric(process, "symbols") == 18, 10, what="eighteen symbols")
            assert metric(process, "reconnects") == 0 and process.count("event=OPENED") == connects
            assert process.stop() == 0
        assert not re.search("Traceback|ERROR", process.output)
