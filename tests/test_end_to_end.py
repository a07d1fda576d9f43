"""The whole daemon as a user runs it: real processes, sockets, signals and files against the local exchange."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from decimal import Decimal as D
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from src.config import SIM_KEY, SIM_SECRET
from src.journal import Reader
from tests.daemon import Process, alive, daemon_env, descendants, exchange, get, health_url, post, running, until

FAST = {"SIM_SPEED": "60", "UNIVERSE_SIZE": "12", "LOG_LEVEL": "INFO"}
START_LINES = (
    "🚀 A.E.G.I.S. v8.0", "🔇 Log Level: INFO", "💓 System Monitor: Enabled (15-min heartbeat)", "🔄 Ring buffer ready: 2097664 bytes",
    "🚀 Launching Feed + Brain + Orchestrator processes...", "📡 Feed process started (PID=", "🧠 Brain process started (PID=",
    "🔄 Orchestrator process started (PID=", "✅ All processes running", "🔄 Entering Process Monitor Loop (keep-alive)",
)  # fmt: skip
CHILDREN = ("Feed", "Brain", "Orchestrator", "Exchange")


def signed(urls: dict[str, str], verb: str, path: str, key: str = SIM_KEY, secret: str = SIM_SECRET, **params: Any) -> tuple[int, Any]:
    """A signed call of another client on the same account, with the exchange's own time."""
    _, now = get(urls["rest"] + "/fapi/v1/time")
    query = "&".join(f"{k}={v}" for k, v in (params | {"timestamp": now["serverTime"]}).items())
    url = f"{urls['rest']}{path}?{query}&signature=" + hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
    if verb == "GET":
        return get(url, {"X-MBX-APIKEY": key})
    request = urllib.request.Request(url, b"", {"X-MBX-APIKEY": key}, method=verb)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A daemon with its own exchange, shared by the tests that only look."""
    with running([], daemon_env(tmp_path_factory.mktemp("daemon"), **FAST)) as process:
        process.wait_line("🔄 Entering Process Monitor Loop (keep-alive)")
        yield process


def test_the_start_says_the_lines_people_watch_for(started: Process) -> None:
    for text in START_LINES:
        assert started.count(text) == 1, text


def test_health_is_ready_and_live_and_metrics_count(started: Process) -> None:
    url = health_url(started)
    until(lambda: get(url)[0] == 200, 30, what="/health 200")
    status, body = get(url)
    assert (status, body["status"], body["reasons"]) == (200, "healthy", [])
    assert get(url + "/live") == (200, {"status": "live"})
    with urllib.request.urlopen(url.replace("/health", "/metrics"), timeout=5) as answer:
        text = answer.read().decode()
    trades = [line for line in text.splitlines() if line.startswith('aegis_trades{process="feed"}')]
    assert trades and float(trades[0].split()[-1]) > 0


def test_processes_carry_names_and_no_secrets(started: Process) -> None:
    names = [Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0") for pid in descendants(started.process.pid)]
    assert {"aegis: feed", "aegis: brain", "aegis: orchestrator", "aegis: exchange"} <= set(names)
    for pid in descendants(started.process.pid):
        assert SIM_SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_feed_and_orchestrator_never_load_lightgbm(started: Process) -> None:
    for name in ("Feed", "Orchestrator"):
        maps = Path(f"/proc/{started.pid_of(name)}/maps").read_text()
        assert "lightgbm" not in maps, name


@pytest.mark.slow
def test_the_heartbeat_can_be_read(started: Process) -> None:
    started.wait_line("💓 Heartbeat · sim", 40)
    started.wait_line("money      equity", 5)
    started.wait_line("✅ Cache reconciled: ", 10)
    started.wait_line("📊 Report: ", 5)


def test_candles_equal_the_venues_own(started: Process) -> None:
    url = health_url(started).replace("/health", "/metrics")

    def metric(name: str) -> float:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return float(next(line for line in answer.read().decode().splitlines() if line.startswith(f"aegis_{name}{{")).split()[-1])

    until(lambda: metric("audit_equal") > 0, 60, what="an audit")
    assert metric("audit_unexplained") == metric("audit_late") == 0


def test_sigterm_stops_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with running([], daemon_env(tmp_path, **FAST)) as process:
        process.wait_line("✅ All processes running")
        children = descendants(process.process.pid)
        begun = monotonic()
        assert process.stop() == 0
        assert monotonic() - begun < 10
        process.wait_line("👋 All processes stopped")
    until(lambda: not [pid for pid in children if alive(pid)], 3, what="the end of all processes")
    assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.parametrize("name", ["Brain", *(pytest.param(name, marks=pytest.mark.slow) for name in CHILDREN if name != "Brain")])
def test_a_killed_child_is_known_at_once_and_the_daemon_ends_with_1(tmp_path: Path, name: str) -> None:
    with running([], daemon_env(tmp_path, **FAST)) as process:
        process.wait_line("✅ All processes running")
        children = descendants(process.process.pid)
        begun = monotonic()
        os.kill(process.pid_of(name), signal.SIGKILL)
        process.wait_line(f"🔴 CRITICAL: {name} process died! Container will restart.", 5)
        assert monotonic() - begun < 2
        assert process.wait() == 1
    until(lambda: not [pid for pid in children if alive(pid)], 3, what="the end of all processes")


@pytest.mark.slow
def test_a_hung_child_is_a_dead_one(tmp_path: Path) -> None:
    with running([], daemon_env(tmp_path, HUNG_SECONDS="3", **FAST)) as process:
        process.wait_line("✅ All processes running")
        os.kill(process.pid_of("Feed"), signal.SIGSTOP)
        process.wait_line("🔴 CRITICAL: Feed process died! Container will restart.", 10)
        assert process.wait(20) == 1


def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    with running([], daemon_env(tmp_path, **FAST)) as process:
        process.wait_line("✅ All processes running")
        children = descendants(process.process.pid)
        process.process.kill()
        until(lambda: not [pid for pid in children if alive(pid)], 12, what="the end of the children")


def test_a_second_daemon_on_the_same_state_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with running([], daemon_env(tmp_path, **FAST)) as first:
        first.wait_line("🏛️ Exchange process started")
        with running([], daemon_env(tmp_path, **FAST)) as second:
            assert second.wait() == 2
            assert f"another daemon is using it (PID {first.process.pid})" in second.output and "Traceback" not in second.output
        first.wait_line("✅ All processes running")
        assert first.stop() == 0


@pytest.mark.parametrize(
    ("env", "texts"),
    [
        ({"MAX_OPEN_POSITIONS": "9", "RISK_PER_TRADE": "2"}, ["MAX_OPEN_POSITIONS='9'", "RISK_PER_TRADE='2'"]),
        ({"TRADING_MODE": "live"}, ["BINANCE_API_KEY is empty"]),
        ({"EXCHANGE_URL": "http://127.0.0.1:1"}, ["EXCHANGE_URL='http://127.0.0.1:1'"]),
        ({"SIM_MARKET": "replay", "SIM_DATA": __file__}, ["SIM_DATA"]),
        ({"SYMBOLS": "NOSUCHUSDT"}, ["SYMBOLS", "NOSUCHUSDT"]),
    ],
)
def test_a_wrong_setting_stops_the_start_without_a_traceback(tmp_path: Path, env: dict[str, str], texts: list[str]) -> None:
    with running([], daemon_env(tmp_path, **FAST, **env)) as process:
        assert process.wait(40) == 2, process.output
        for text in texts:
            assert text in process.output
        assert "Traceback" not in process.output


@pytest.mark.slow
def test_a_taken_port_is_named(tmp_path: Path, started: Process) -> None:
    port = health_url(started).split(":")[2].split("/")[0]
    with running([], daemon_env(tmp_path, **FAST) | {"PORT": port}) as process:
        assert process.wait(60) == 2 and f"PORT={port}" in process.output


def test_an_unknown_command_is_named() -> None:
    with running(["fly"], {}) as process:
        assert process.wait() == 2 and "unknown command 'fly'" in process.output


# --- an exchange that outlives the daemon ---------------------------------------------------------------------------------------------


def position_of(urls: dict[str, str]) -> dict[str, Any] | None:
    _, rows = signed(urls, "GET", "/fapi/v3/positionRisk")
    return rows[0] if rows else None


def stops_of(urls: dict[str, str], symbol: str) -> list[dict[str, Any]]:
    _, rows = signed(urls, "GET", "/fapi/v1/openAlgoOrders", symbol=symbol)
    return [r for r in rows if r["orderType"] == "STOP_MARKET" and r["closePosition"]]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["Brain", "supervisor"])
def test_a_start_protects_what_it_finds(tmp_path: Path, victim: str) -> None:
    """A position is opened, a process is killed, its stop vanishes from the venue, and the next start puts it back."""
    with exchange(tmp_path, "--speed", "60", "--seed", "3", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000") as (_, urls):
        env = daemon_env(tmp_path, **FAST, EXCHANGE_URL=urls["rest"], MIN_CONFIDENCE="0.3") | {"UNIVERSE_SIZE": "20"}
        with running([], env) as first:
            first.wait_line("📈 opened", 180)
            position = until(lambda: position_of(urls), 5, what="a position on the venue")
            symbol = position["symbol"]
            until(lambda: stops_of(urls, symbol), 5, what="its stop")
            if victim == "Brain":
                os.kill(first.pid_of("Brain"), signal.SIGKILL)
                assert first.wait(20) == 1
            else:
                first.process.kill()
                first.wait(20)
        if position_of(urls) is None:
            pytest.fail("the position was closed before the start could find it")
        for stop in stops_of(urls, symbol):
            signed(urls, "DELETE", "/fapi/v1/algoOrder", algoId=stop["algoId"])
        with running([], env) as second:
            os.kill(second.pid_of("Feed"), signal.SIGSTOP)  # money first: neither a market nor kernels are needed for this
            second.wait_line("♻️ Recovered ", 60)
            until(lambda: stops_of(urls, symbol) or position_of(urls) is None, 5, what="protection before there is a market")
            os.kill(second.pid_of("Feed"), signal.SIGCONT)
            second.wait_line("✅ All processes running")
            until(lambda: stops_of(urls, symbol) or position_of(urls) is None, 5, what="protection")
            assert second.stop() == 0
        assert len(Reader(env["STATE_DIR"]).rows("SELECT 1 FROM fills")) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "secret", "texts"),
    [
        (SIM_KEY, "w" * 64, ["-1022", "BINANCE_API_SECRET"]),
        ("u" * 64, SIM_SECRET, ["-2015", "BINANCE_API_KEY"]),
        ("short", SIM_SECRET, ["BINANCE_API_KEY has 5 characters"]),
    ],
)
def test_keys_that_do_not_work_end_the_start_with_the_venues_code(tmp_path: Path, key: str, secret: str, texts: list[str]) -> None:
    with exchange(tmp_path, "--account", f"{SIM_KEY}:{SIM_SECRET}:10000") as (_, urls):
        env = daemon_env(tmp_path, EXCHANGE_URL=urls["rest"], SIM_SPEED="1", BINANCE_API_KEY=key, BINANCE_API_SECRET=secret)
        with running([], env) as process:
            assert process.wait(60) == 2, process.output
            for text in texts:
                assert text in process.output
            assert "Traceback" not in process.output and secret not in process.output


@pytest.mark.slow
def test_a_venue_that_does_not_say_what_it_trades_leaves_the_fallback_pairs(tmp_path: Path) -> None:
    with exchange(tmp_path, "--speed", "60", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000") as (_, urls):
        post(urls["rest"] + "/control/fault", {"door": "GET v1/exchangeInfo", "kind": "unavailable", "count": 1000})
        with running([], daemon_env(tmp_path, EXCHANGE_URL=urls["rest"])) as process:
            process.wait_line("the 20 fallback pairs are used", 60)
            process.wait_line("✅ All processes running")
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")


@pytest.mark.slow
def test_health_says_why_when_the_market_goes_silent_and_when_it_is_back(tmp_path: Path) -> None:
    with exchange(tmp_path, "--speed", "60", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000") as (_, urls):
        with running([], daemon_env(tmp_path, EXCHANGE_URL=urls["rest"], STALE_MS="1500")) as process:
            process.wait_line("✅ All processes running")
            url = health_url(process)
            until(lambda: get(url)[0] == 200, 30, what="/health 200")
            for route in ("market", "public"):
                post(urls["rest"] + "/control/mute", {"route": route, "on": True})
            reasons = until(lambda: get(url)[1]["reasons"], 10, what="a reason")
            assert get(url)[0] == 503 and "data are stale" in reasons[0]
            assert get(url + "/live")[0] == 200
            for route in ("market", "public"):
                post(urls["rest"] + "/control/mute", {"route": route, "on": False})
            until(lambda: get(url)[0] == 200, 60, what="/health 200 again")


@pytest.mark.slow
def test_the_same_code_runs_as_testnet_with_other_urls(tmp_path: Path) -> None:
    with exchange(tmp_path, "--speed", "1", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000") as (_, urls):
        env = daemon_env(tmp_path, TRADING_MODE="testnet", BINANCE_API_KEY=SIM_KEY, BINANCE_API_SECRET=SIM_SECRET, UNIVERSE_SIZE="10",
                         REST_URL=urls["rest"], MARKET_URL=urls["market"], PUBLIC_URL=urls["public"], PRIVATE_URL=urls["private"],
                         WS_API_URL=urls["ws_api"])  # fmt: skip
        with running([], env) as process:
            process.wait_line("✅ All processes running")
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")
            for pid in descendants(process.process.pid):
                assert SIM_SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            assert process.stop() == 0
            assert SIM_SECRET not in process.output and SIM_KEY not in process.output


@pytest.mark.slow
def test_three_hundred_symbols_start_and_are_healthy(tmp_path: Path) -> None:
    with running([], daemon_env(tmp_path, UNIVERSE_SIZE="300", SIM_SPEED="1")) as process:
        process.wait_line("✅ All processes running")
        until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")
        assert process.stop() == 0


@pytest.mark.slow
def test_intervals_go_down_to_a_second(tmp_path: Path) -> None:
    env = daemon_env(tmp_path, CANDLE_INTERVAL="1s", SETUP_INTERVAL="1s", UNIVERSE_SIZE="5", SIM_SPEED="10", LOG_LEVEL="INFO")
    with running([], env) as process:
        process.wait_line("✅ All processes running")
        url = health_url(process).replace("/health", "/metrics")

        def closes() -> float:
            with urllib.request.urlopen(url, timeout=5) as answer:
                lines = [line for line in answer.read().decode().splitlines() if line.startswith('aegis_closes{process="brain"}')]
            return float(lines[0].split()[-1]) if lines else 0.0

        until(lambda: closes() > 100, 30, what="a hundred closed bars")
        assert process.stop() == 0 and process.count("ERROR") == 0


@pytest.mark.slow
def test_a_cold_start_compiles_once_and_nothing_is_compiled_after_it(tmp_path: Path) -> None:
    env = daemon_env(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kernels"), **FAST)

    def kernels() -> set[Path]:
        return set((tmp_path / "kernels").rglob("*.nbc"))

    with running([], env) as cold:
        cold.wait_line("✅ All processes running", 180)
        compiled = kernels()
        until(lambda: get(health_url(cold))[0] == 200, 30, what="/health 200")
        cold.wait_line("💓 Heartbeat")
        assert cold.count("⏳ Kernels: compiling") == 7 and cold.count("Overflow") == 0, cold.output
        assert cold.stop() == 0
    assert compiled and kernels() == compiled
    with running([], env) as warm:
        warm.wait_line("✅ All processes running")
        assert warm.count("compiling") == 0 and warm.stop() == 0
    assert kernels() == compiled


@pytest.mark.slow
def test_json_logs_are_one_object_a_line(tmp_path: Path) -> None:
    with running([], daemon_env(tmp_path, LOG_FORMAT="json", UNIVERSE_SIZE="5")) as process:
        process.wait_line("✅ All processes running")
        assert process.stop() == 0
    rows = [json.loads(line) for line in process.lines]
    assert {"time", "level", "process", "message"} <= set(rows[0])
    assert {r["process"] for r in rows} >= {"supervisor", "brain", "orchestrator"}


# --- recorded markets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recording", "settings"),
    [
        ("klines/binance_um_1m_2025-05_2025-06.parquet", {"SETUP_INTERVAL": "15m"}),
        ("ticks/binance_spot_BTCUSDT_aggTrades_2024-01-01.parquet", {"SETUP_INTERVAL": "30m", "SIM_START": "2024-01-01T21:20"}),
    ],
)
def test_journal_ledger_and_fills_agree_to_the_last_digit(tmp_path: Path, recorded_data: Path, recording: str, settings: dict[str, str]) -> None:
    """A recorded market at 60 times its speed: positions open and close, and three books say the same."""
    start = ("--start", settings["SIM_START"]) if "SIM_START" in settings else ()
    words = (*start, "--market", "replay", "--path", str(recorded_data / recording), "--speed", "60", "--account", f"{SIM_KEY}:{SIM_SECRET}:10000")
    with exchange(tmp_path, *words) as (_, urls):
        env = daemon_env(tmp_path, **FAST, **settings, EXCHANGE_URL=urls["rest"], MIN_CONFIDENCE="0.3", ON_SHUTDOWN="flatten")
        with running([], env | {"UNIVERSE_SIZE": "18"}) as process:
            process.wait_line("📈 opened", 110)
            assert process.stop() == 0, process.output
        assert position_of(urls) is None
        _, books = get(urls["rest"] + "/control/books")
    ledger = books[SIM_KEY]
    journal = Reader(env["STATE_DIR"])
    theirs = {(f["symbol"], f["id"]): (D(f["price"]), D(f["qty"]), D(f["commission"]), D(f["realised"]), f["side"]) for f in ledger["fills"]}
    rows = journal.rows("SELECT symbol, trade_id, price, qty, commission, realised, side FROM fills")
    ours = {(r[0], r[1]): (D(r[2]), D(r[3]), D(r[4]), D(r[5]), r[6]) for r in rows}
    assert ours == theirs and ours
    commission, realised = sum(f[2] for f in ours.values()), sum(f[3] for f in ours.values())
    assert D(ledger["wallet"]) == D(10000) + realised - commission + D(ledger["funding"])
    trades = journal.rows("SELECT realised, commission FROM trades")
    assert sum(D(t[0]) for t in trades) == realised and sum(D(t[1]) for t in trades) == commission
    held: dict[str, D] = {}
    for (symbol, _), (_, qty, _, _, side) in ours.items():
        held[symbol] = held.get(symbol, D(0)) + (qty if side == "BUY" else -qty)
    assert not any(held.values()) and not ledger["positions"]
