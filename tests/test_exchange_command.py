"""The exchange as a process: it says where it is, stops when told, comes back after ``kill -9``, and names a wrong option in one line."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from src.clock import Clock
from src.exchange.command import main, options_of
from src.exchange.faults import Kind
from src.exchange.options import Limits, Switches
from src.exchange.server import Ready
from tests.test_exchange_wire import KEY, SECRET, Client

START_S = 30.0


async def start(*argv: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "src.exchange.command", "--port", "0", "--symbols", "BTCUSDT,ETHUSDT", "--account", f"{KEY}:{SECRET}:10000",
        "--control", *argv, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(await asyncio.wait_for(process.stdout.readline(), START_S))


async def a_client(session: aiohttp.ClientSession, urls: dict[str, str]) -> Client:
    client = Client(session, Ready(**urls, clock=Clock(0, 0)))
    await client.get("v1/ping")
    t0, m0, speed = client.headers["x-sim-clock"].split(",")
    client.clock = Clock(int(t0), int(m0), float(speed))
    return client


async def test_a_killed_exchange_comes_back_with_its_books(tmp_path: Path) -> None:
    argv = ("--books", str(tmp_path), "--speed", "20")
    process, urls = await start(*argv)
    async with aiohttp.ClientSession() as session:
        client = await a_client(session, urls)
        await client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=9)
        await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.1", newOrderRespType="RESULT")
        await client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="BTCUSDT", side="SELL", type="STOP_MARKET",
                          triggerPrice="20000", closePosition="true", timeInForce="GTE_GTC", clientAlgoId="stop")  # fmt: skip
        before, last = await client.books(), (await client.get("v1/time"))["serverTime"]
        process.kill()
        await process.wait()
    process, urls = await start(*argv)
    try:
        async with aiohttp.ClientSession() as session:
            client = await a_client(session, urls)
            assert (await client.get("v1/time"))["serverTime"] >= last
            assert await client.books() == before
            row: dict[str, Any] = (await client.good("GET", "v1/symbolConfig", symbol="BTCUSDT"))[0]
            assert row["leverage"] == 9
            await client.control("price", symbol="BTCUSDT", price="19000")
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), START_S) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--speed", "61"], ["--speed", "x"], ["--account", "only"], ["--account", "k:s:-1"], ["--market", "binance"],
        ["--market", "replay"], ["--market", "frames"],
        ["--switch", "nonsense=1"], ["--switch", "retry_after=2"], ["--switch", "retry_after"], ["--limit", "connections=x"],
        ["--switch", "timeout_status=7"], ["--account", "k:env=NOT_SET:1"],
        ["--rest-url", "http://x"], ["--market", "binance", "--rest-url", "http://x", "--market-url", "ws://x"],
        ["--market", "binance", "--rest-url", "http://x", "--market-url", "ws://x", "--public-url", "ws://x", "--speed", "2"],
        ["--account", "k:s:1e30"], ["--account", "k:s:NaN"], ["--account", "k k:s:1"], ["--account", "k:ed25519=garbage:1"],
        ["--limit", "ping_every_s=nan"], ["--limit", "listen_key_life_s=inf"], ["--limit", "connections=1e3"], ["--seed", "9" * 5000],
        ["--switch", "timeout_status=7"], ["--fault", "drop,for_s=inf"], ["--fault", "cut,after_s=nan"], ["--books", ""],
        ["--start", "2025-01-01"], ["--path", "x"], ["--market", "binance", "--rest-url", "x", "--market-url", "ws://x", "--public-url", "ws://x"],
        ["--port", "70000"], ["--latency-ms", "-5"], ["--nonsense"], ["--account", "a:b:1", "--account", "a:c:1"],
        ["--edge", "0.3"], ["--edge", "nan"], ["--edge", "0.1", "--market", "binance"],
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_and_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and len(said.err) < 600 and not said.out


@pytest.mark.parametrize(("argv", "named"), [
    (["--symbols", "NOPE"], "--symbols: symbol 'NOPE'"), (["--market", "replay", "--path", "/nowhere"], "--path /nowhere"),
    (["--market", "frames", "--path", "/nowhere"], "--path /nowhere"), (["--books", "/proc/nowhere"], "--books"),
    (["--fault", "halt,door=NOPEUSDT"], "--fault: the fault halt: there is no symbol 'NOPEUSDT'"),
    (["--fault", "unknown_after,door=POST v1/oder"], "there is no door 'POST v1/oder'"), (["--fault", "cut,door=privat"], "no route 'privat'")],
)  # fmt: skip
def test_what_only_the_market_or_the_disk_can_tell_to_be_wrong_is_one_line_too(argv: list[str], named: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src.exchange.command", "--port", "0", *argv]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    assert (ended.returncode, len(ended.stderr.splitlines()), ended.stdout) == (2, 1, "")
    assert named in ended.stderr


async def test_books_are_one_exchange_s_and_of_one_market(tmp_path: Path) -> None:
    argv = ["--port", "0", "--symbols", "BTCUSDT,ETHUSDT", "--books", str(tmp_path)]
    process, _ = await start("--books", str(tmp_path))
    try:
        assert await refusal(*argv) == f"exchange: argument --books: the exchange's books cannot be kept in {tmp_path}: another exchange keeps its " \
                                       "books there: stop it, or give this one a directory of its own\n"  # fmt: skip
    finally:
        process.kill()
        await process.wait()
    assert "with an empty --books" in await refusal(*argv, "--seed", "2")


async def refusal(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "src.exchange.command", *argv, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.read(), START_S)
    assert await process.wait() == 2
    return said.decode()


def tear(books: Path) -> None:
    with open(next(books.glob("log-*")), "ab") as log:
        log.write(b'{"t":1')


async def test_standard_output_holds_the_addresses_and_nothing_else(tmp_path: Path) -> None:
    """Also when there is something to say before, such as that the last one was killed in the middle of a line."""
    argv = ("--books", str(tmp_path))
    process, _ = await start(*argv)
    process.kill()
    await process.wait()
    tear(tmp_path)
    process, urls = await start(*argv)
    assert urls["rest"].startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and await process.stdout.read() == b""
    assert await process.wait() == 0


def test_options_come_from_the_command_line() -> None:
    options = options_of(
        ["--port", "8901", "--symbols", "btcusdt,ETHUSDT", "--account", "K:S:12.5", "--speed", "2", "--latency-ms", "5", "--control"]
    )
    assert (options.port, options.symbols, options.speed, options.latency_ms, options.control) == (8901, ("BTCUSDT", "ETHUSDT"), 2.0, 5, True)
    assert (options.accounts[0].key, options.accounts[0].secret, str(options.accounts[0].balance)) == ("K", "S", "12.5")


def test_a_secret_may_stay_out_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_K", "not:told")
    options = options_of(["--account", "K:env=SECRET_OF_K:12.5", "--account", "L:S:1", "--symbols", "BTCUSDT", "--symbols", "ethusdt,XRPUSDT"])
    assert [(a.key, a.secret, str(a.balance)) for a in options.accounts] == [("K", "not:told", "12.5"), ("L", "S", "1")]
    assert options.symbols == ("BTCUSDT", "ETHUSDT", "XRPUSDT")


def test_help_names_every_option_switch_limit_and_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name in (*(f.name for f in fields(Switches)), *(f.name for f in fields(Limits)), *Kind):
        assert name in told
    for line in told.split("options:")[1].split("switches,")[0].split("\n  -")[1:]:
        assert len(line.split("  ", 1)[-1].split()) >= 2, f"no help: {line}"


def test_switches_and_limits_are_set_by_name() -> None:
    given = options_of(["--switch", "retry_after=1", "--switch", "order_limit_status=400", "--limit", "weight_per_minute=6000"])
    assert given.switches == Switches(retry_after=True, order_limit_status=400)
    assert (given.limits.weight_per_minute, given.limits.connections) == (6000, 2000)
