"""Paper mode whole: the daemon trades against a venue's public market, and no order of its ever reaches the venue.

"The venue" is a second local exchange, which would take orders with the very keys that the daemon has.
"""

from __future__ import annotations

from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from src.config import SIM_KEY, SIM_SECRET
from tests.daemon import Process, daemon_env, exchange, get, health_url, post, running, until
from tests.test_end_to_end import signed

SYMBOLS = "BTCUSDT,ETHUSDT,SOLUSDT,XRPUSDT"


def paper_env(folder: Path, venue: dict[str, str], **settings: str) -> dict[str, str]:
    urls = {"REST_URL": venue["rest"], "MARKET_URL": venue["market"], "PUBLIC_URL": venue["public"]}
    return daemon_env(folder, TRADING_MODE="paper", UNIVERSE_SIZE="3", SETUP_INTERVAL="5m", LOG_LEVEL="INFO", **urls) | settings


def local_exchange(process: Process) -> dict[str, str]:
    line = process.wait_line("the local exchange answers rest=")
    return {"rest": line.split("rest=")[1].split()[0]}


def ask_price(venue: dict[str, str], symbol: str) -> D:
    return D(get(f"{venue['rest']}/fapi/v1/ticker/bookTicker?symbol={symbol}")[1]["askPrice"])


def bought(local: dict[str, str], venue: dict[str, str], symbol: str, quantity: str) -> tuple[set[D], dict[str, Any]]:
    """The venue's ask before and after, and the fill between them."""
    asks = {ask_price(venue, symbol)}
    status, _ = signed(local, "POST", "/fapi/v1/order", symbol=symbol, side="BUY", type="MARKET", quantity=quantity, newOrderRespType="RESULT")
    asks.add(ask_price(venue, symbol))
    assert status == 200
    _, fills = signed(local, "GET", "/fapi/v1/userTrades", symbol=symbol)
    return asks, fills[-1]


@pytest.mark.slow
def test_paper_trades_the_venues_market_and_never_at_the_venue(tmp_path: Path) -> None:
    account = ("--account", f"{SIM_KEY}:{SIM_SECRET}:10000")
    with exchange(tmp_path / "venue", "--speed", "1", "--symbols", SYMBOLS, *account) as (_, venue):
        env = paper_env(tmp_path / "daemon", venue)
        with running([], env) as process:
            process.wait_line("✅ All processes running")
            local = local_exchange(process)
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")
            process.wait_line("history of 3 symbols read", 30)  # from the venue: the local exchange has none
            assert get(f"{local['rest']}/fapi/v1/klines?symbol=ETHUSDT&interval=1m")[1]["code"] == -1020

            settled = None
            for _ in range(20):
                asks, fill = bought(local, venue, "ETHUSDT", "0.05")
                if len(asks) == 1:
                    settled = fill
                    break
            assert settled is not None and D(settled["price"]) == asks.pop(), "at the venue's own ask"

            (position,) = signed(local, "GET", "/fapi/v3/positionRisk")[1]
            assert position["symbol"] == "ETHUSDT" and D(position["positionAmt"]) > 0
            assert process.stop() == 0
        with running([], env) as again:
            again.wait_line("✅ All processes running")
            (found,) = signed(local_exchange(again), "GET", "/fapi/v3/positionRisk")[1]
            assert (found["symbol"], found["positionAmt"]) == (position["symbol"], position["positionAmt"]), "the books are in STATE_DIR"
            until(lambda: get(health_url(again))[0] in (200, 503), 10, what="/health")
            assert again.stop() == 0
        theirs = get(venue["rest"] + "/control/books")[1][SIM_KEY]
        assert not (theirs["orders"] or theirs["algo"] or theirs["fills"] or theirs["positions"]) and D(theirs["wallet"]) == 10_000


@pytest.mark.slow
def test_paper_goes_on_when_the_venues_streams_are_cut(tmp_path: Path) -> None:
    with exchange(tmp_path / "venue", "--speed", "1", "--symbols", SYMBOLS) as (_, venue):
        with running([], paper_env(tmp_path / "daemon", venue)) as process:
            process.wait_line("✅ All processes running")
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200")
            before = len(process.lines)
            assert post(venue["rest"] + "/control/drop_streams", {})["dropped"] >= 4
            process.wait_line("the venue's market is not seen", 10, after=before)
            process.wait_line("👁️ The venue's market is seen", 10, after=before)
            until(lambda: get(health_url(process))[0] == 200, 30, what="/health 200 again")
            assert process.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "texts"),
    [
        ({"REST_URL": "http://127.0.0.1:1"}, ["http://127.0.0.1:1"]),
        ({"WS_API_URL": "ws://127.0.0.1:1"}, ["WS_API_URL", "EXCHANGE_URL"]),
        ({"SYMBOLS": "NOSUCHUSDT"}, ["SYMBOLS", "NOSUCHUSDT"]),
    ],
)
def test_what_paper_cannot_do_is_named_at_the_start(tmp_path: Path, env: dict[str, str], texts: list[str]) -> None:
    with exchange(tmp_path / "venue", "--speed", "1", "--symbols", SYMBOLS) as (_, venue):
        with running([], paper_env(tmp_path / "daemon", venue, **env)) as process:
            assert process.wait(60) in (1, 2)
            for text in texts:
                assert text in process.output
            assert "Traceback" not in process.output
