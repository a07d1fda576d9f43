"""Settings: defaults per mode, every wrong value named at once, secrets hidden."""

from __future__ import annotations

from decimal import Decimal

import pytest

from src import config
from src.error_handler import Fatal

KEYS = {"BINANCE_API_KEY": "k" * 20, "BINANCE_API_SECRET": "s" * 20}


def load(**env: str) -> config.Settings:
    return config.load(env, dotenv=None)


def test_defaults_are_a_safe_simulation() -> None:
    s = load()
    assert (s.trading_mode, s.max_open_positions, s.risk_per_trade, s.min_confidence) == ("sim", 3, Decimal("0.02"), Decimal("0.55"))
    assert (s.setup_interval, s.sim_speed, s.require_evidence, s.cooldown_seconds) == ("15m", 60.0, False, 60)


def test_live_defaults_differ_where_money_is_real() -> None:
    s = load(TRADING_MODE="live", **KEYS)
    assert (s.setup_interval, s.sim_speed, s.require_evidence, s.universe_size) == ("4h", 1.0, True, 300)


@pytest.mark.parametrize(
    ("env", "texts"),
    [
        (
            {"MAX_OPEN_POSITIONS": "seven", "RISK_PER_TRADE": "0.5"},
            ["MAX_OPEN_POSITIONS='seven'", "whole number", "RISK_PER_TRADE='0.5'", "at most 0.02"],
        ),
        ({"TRADING_MODE": "live"}, ["BINANCE_API_KEY is empty", "BINANCE_API_SECRET is empty"]),
        ({"TRADING_MODE": "Liv"}, ["TRADING_MODE='Liv'", "did you mean live"]),
        ({"SETUP_INTERVAL": "7m"}, ["SETUP_INTERVAL='7m'", "15m"]),
        ({"CANDLE_INTERVAL": "1h", "SETUP_INTERVAL": "15m"}, ["SETUP_INTERVAL='15m'", "CANDLE_INTERVAL=1h"]),
        ({"SIM_MARKET": "replay"}, ["SIM_DATA is empty"]),
        ({"SIM_MARKET": "frames", "SIM_DATA": "x.jsonl"}, ["SIM_MARKET='frames'", "synthetic, replay"]),
        ({"SIM_MARKET": "replay", "SIM_DATA": "/nowhere/x.parquet"}, ["SIM_DATA='/nowhere/x.parquet'", "no such"]),
        ({"SIM_START": "yesterday"}, ["SIM_START='yesterday'", "2025-05-05T14:30"]),
        ({"SIM_SPEED": "61"}, ["SIM_SPEED='61'", "at most 60"]),
        ({"SIM_SPEED": "nan"}, ["SIM_SPEED='nan'"]),
        ({"RISK_PER_TRADE": "0"}, ["RISK_PER_TRADE='0'", "above 0"]),
        ({"RISK_PER_TRADE": "NaN"}, ["RISK_PER_TRADE='NaN'"]),
        ({"REST_URL": "ftp://x"}, ["REST_URL='ftp://x'", "http://"]),
        ({"TRADING_MODE": "live", "REST_URL": "http://127.0.0.1:1", **KEYS}, ["REST_URL", "TLS"]),
        ({"TRADING_MODE": "live", "REST_URL": "https://binance.com.evil.net", **KEYS}, ["REST_URL", "TLS"]),
        ({"TRADING_MODE": "live", "SIM_SPEED": "5", **KEYS}, ["SIM_SPEED=5", "real markets run at 1"]),
        ({"TRADING_MODE": "live", "MIN_CONFIDENCE": "0.1", **KEYS}, ["MIN_CONFIDENCE=0.1", "0.55"]),
        ({"COOLDOWN_SECONDS": "60", "COOLDOWN_DURATION": "90"}, ["COOLDOWN_SECONDS", "COOLDOWN_DURATION"]),
        ({"REQUIRE_EVIDENCE": "maybe"}, ["REQUIRE_EVIDENCE='maybe'", "0 or 1"]),
        ({"SYMBOLS": "BTC/USDT"}, ["SYMBOLS='BTC/USDT'", "BTCUSDT"]),
        ({"TRADING_MODE": "paper", "SIM_SPEED": "2"}, ["SIM_SPEED=2", "real markets run at 1"]),
        ({"TRADING_MODE": "paper", "WS_API_URL": "wss://ws-fapi.binance.com/ws-fapi/v1"}, ["WS_API_URL", "EXCHANGE_URL"]),
        ({"TRADING_MODE": "paper", "SIM_MARKET": "replay", "SIM_DATA": "x"}, ["SIM_MARKET='replay'", "SIM_DATA='x'", "the venue's own"]),
        ({"RING_SLOTS": "100"}, ["RING_SLOTS='100'", "at least 10000"]),
        ({"PORT": "abc", "TRADING_MODE": "live"}, ["PORT='abc'", "BINANCE_API_KEY is empty"]),
        ({"MIN_CONFIDENCE": "sNaN"}, ["MIN_CONFIDENCE='sNaN'", "at least 0 and at most 1"]),
        ({"TRADING_MODE": "live", "REST_URL": "http://[::1", **KEYS}, ["REST_URL='http://[::1'", "http://"]),
        ({"PROXY": "socks5://me:hunter22@host:1"}, ["PROXY='socks5://***@host:1'", "http://"]),
        ({"RISK_PER_TRAD": "0.01"}, ["RISK_PER_TRAD='0.01'", "did you mean RISK_PER_TRADE?"]),
        ({"MAX_OPEN_POSITION": "1", "PORT": "-1"}, ["MAX_OPEN_POSITION='1'", "did you mean MAX_OPEN_POSITIONS?", "PORT='-1'"]),
    ],
)
def test_wrong_values_name_the_setting_the_value_and_what_is_right(env: dict[str, str], texts: list[str]) -> None:
    with pytest.raises(Fatal) as caught:
        load(**env)
    for text in texts:
        assert text in str(caught.value)


def test_a_wrong_value_is_not_blamed_for_more_than_it_is() -> None:
    """What it would have contradicted is not known."""
    with pytest.raises(Fatal) as caught:
        load(SETUP_INTERVAL="7m", CANDLE_INTERVAL="1h")
    assert "CANDLE_INTERVAL=" not in str(caught.value)


def test_the_value_of_a_misspelt_secret_is_not_shown() -> None:
    with pytest.raises(Fatal) as caught:
        load(BINANCE_API_SECRETS="do-not-show-this")
    assert "did you mean BINANCE_API_SECRET?" in str(caught.value) and "do-not-show-this" not in str(caught.value)


def test_variables_of_other_programs_are_left_alone() -> None:
    load(PATH="/bin", HOSTNAME="x", LOGLEVEL="debug", DATABASE_URL="x", REDIS_URL="x", HTTP_PROXY="http://x:1", RECORDED_DATA="x", SYMBOL_LINK="x")


def test_the_owners_alias_and_lists_are_understood() -> None:
    s = load(COOLDOWN_DURATION="90", SYMBOLS="btcusdt, ETHUSDT,btcusdt", LOG_LEVEL="info")
    assert (s.cooldown_seconds, s.symbols, s.log_level) == (90, ("BTCUSDT", "ETHUSDT"), "INFO")


def test_secrets_are_in_no_repr_and_can_be_dropped() -> None:
    s = load(TRADING_MODE="live", **KEYS)
    assert KEYS["BINANCE_API_SECRET"] not in repr(s) and KEYS["BINANCE_API_KEY"] not in repr(s)
    assert s.without_secrets().binance_api_secret == ""


def test_a_secret_is_not_in_the_error_about_other_settings() -> None:
    with pytest.raises(Fatal) as caught:
        load(TRADING_MODE="live", PORT="-1", **KEYS)
    assert KEYS["BINANCE_API_SECRET"] not in str(caught.value)


def test_the_environment_wins_over_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / ".env"
    file.write_text("PORT=9000\nSIM_SEED=7\n")
    s = config.load({"PORT": "9001"}, dotenv=file)
    assert (s.port, s.sim_seed) == (9001, 7)


def test_each_mode_has_its_urls_and_overrides_win() -> None:
    live = config.endpoints(load(TRADING_MODE="live", **KEYS))
    assert live.rest == "https://fapi.binance.com" and live.market.startswith("wss://fstream.binance.com/market")
    assert live.data == live.rest
    local = config.endpoints(load(MARKET_URL="ws://127.0.0.1:9/market"), config.local_endpoints("http://127.0.0.1:5"))
    assert (local.rest, local.market, local.ws_api) == ("http://127.0.0.1:5", "ws://127.0.0.1:9/market", "ws://127.0.0.1:5/ws-fapi/v1")


def test_in_paper_the_market_is_the_venues_and_orders_are_the_local_exchanges() -> None:
    exchange = config.local_endpoints("http://127.0.0.1:5")
    urls = config.endpoints(load(TRADING_MODE="paper"), exchange)
    assert (urls.rest, urls.private, urls.ws_api) == (exchange.rest, exchange.private, exchange.ws_api)
    live = config.endpoints(load(TRADING_MODE="live", **KEYS))
    assert (urls.data, urls.market, urls.public) == (live.data, live.market, live.public)
    other = load(TRADING_MODE="paper", REST_URL="http://127.0.0.1:9", MARKET_URL="ws://127.0.0.1:9/market", PUBLIC_URL="ws://127.0.0.1:9/public")
    urls = config.endpoints(other, exchange)
    assert (urls.rest, urls.data, urls.market, urls.public) == (exchange.rest, "http://127.0.0.1:9", "ws://127.0.0.1:9/market", "ws://127.0.0.1:9/public")
    assert config.endpoints(other).rest == "", "before there is a local exchange nothing takes orders"
