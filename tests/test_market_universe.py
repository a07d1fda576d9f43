"""The choice of symbols: who is in, in which order, and why the others are not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from src.error_handler import Fatal
from src.market_universe import DAY_MS, FALLBACK, PERPETUAL_END_MS, Reason, Terms, chosen, judge, select
from src.models import SymbolRules
from src.venue.answers import exchange_info

NOW_MS = 1_763_600_000_000
ONE = Decimal(1)


def rules(symbol: str, **changes: object) -> SymbolRules:
    return replace(SymbolRules(symbol, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE), **changes)


MARKET = {one.symbol: one for one in (
    rules("BTCUSDT"), rules("ETHUSDT"), rules("SOLUSDT"), rules("1000PEPEUSDT"), rules("BTCUSDC", quote="USDC"),
    rules("BTCUSDT_260327", contract_type="CURRENT_QUARTER", delivery_ms=1_774_598_400_000),
    rules("TSLAUSDT", contract_type="TRADIFI_PERPETUAL"), rules("FTTUSDT", status="SETTLING"),
    rules("GONEUSDT", delivery_ms=NOW_MS + DAY_MS), rules("NEWUSDT", onboard_ms=NOW_MS - DAY_MS))}
VOLUMES = {"BTCUSDT": Decimal(900), "ETHUSDT": Decimal(500), "SOLUSDT": Decimal(500), "1000PEPEUSDT": Decimal(50), "TSLAUSDT": Decimal(10**6),
           "NEWUSDT": Decimal(800)}


def names(**terms: object) -> list[str]:
    return [one.symbol for one in select(MARKET, VOLUMES, **{"size": 100, "now_ms": NOW_MS} | terms)]


def test_the_order_is_by_volume_then_by_name() -> None:
    assert names() == ["BTCUSDT", "NEWUSDT", "ETHUSDT", "SOLUSDT", "1000PEPEUSDT"]


def test_the_order_of_the_venue_does_not_matter() -> None:
    backwards = dict(reversed(MARKET.items()))
    assert select(backwards, VOLUMES, size=3, now_ms=NOW_MS) == select(MARKET, VOLUMES, size=3, now_ms=NOW_MS)


@pytest.mark.parametrize(("symbol", "reason"), [
    ("BTCUSDT", None), ("BTCUSDC", Reason.OTHER_QUOTE), ("BTCUSDT_260327", Reason.NOT_PERPETUAL), ("TSLAUSDT", Reason.TRADFI),
    ("FTTUSDT", Reason.NOT_TRADING), ("GONEUSDT", Reason.LEAVING), ("NEWUSDT", None)])
def test_each_symbol_is_left_out_for_its_reason(symbol: str, reason: Reason | None) -> None:
    assert judge(MARKET[symbol], Decimal(1), Terms(), NOW_MS) is reason


def test_reasons_are_counted() -> None:
    kept, left_out = chosen(MARKET, VOLUMES, Terms(min_quote_volume=Decimal(100), min_age_days=30), size=2, now_ms=NOW_MS)
    assert [one.symbol for one in kept] == ["BTCUSDT", "ETHUSDT"]
    assert left_out == {Reason.OTHER_QUOTE: 1, Reason.NOT_PERPETUAL: 1, Reason.TRADFI: 1, Reason.NOT_TRADING: 1, Reason.LEAVING: 1,
                        Reason.YOUNG: 1, Reason.THIN: 1, Reason.RANK: 1}
    assert len(kept) + left_out.total() == len(MARKET)


def test_a_delivery_date_that_moved_closer_takes_a_symbol_out_before_it_stops_trading() -> None:
    moved = replace(MARKET["BTCUSDT"], delivery_ms=PERPETUAL_END_MS - 1)
    assert moved.tradable
    assert judge(moved, Decimal(10**9), Terms(), NOW_MS) is Reason.LEAVING


def test_tradfi_only_where_it_is_asked_for() -> None:
    assert "TSLAUSDT" not in names()
    assert names(include=("TSLAUSDT", "BTCUSDT")) == ["TSLAUSDT", "BTCUSDT"]


def test_patterns_include_and_exclude() -> None:
    assert names(include=("*PEPE*", "eth*")) == ["ETHUSDT", "1000PEPEUSDT"]
    assert names(exclude=("btc*", "NEWUSDT")) == ["ETHUSDT", "SOLUSDT", "1000PEPEUSDT"]


def test_size_cuts_patterns_but_not_names() -> None:
    assert names(size=1) == ["BTCUSDT"]
    assert names(size=1, include=("SOLUSDT", "1000PEPEUSDT")) == ["SOLUSDT", "1000PEPEUSDT"]
    assert names(size=2, include=("SOLUSDT", "*")) == ["TSLAUSDT", "SOLUSDT"]


@pytest.mark.parametrize(("name", "meant"), [("BTCUSD", "BTCUSDT"), ("PEPEUSDT", "1000PEPEUSDT"), ("ETHUSTD", "ETHUSDT")])
def test_a_name_that_does_not_exist_is_fatal_and_says_what_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(Fatal, match=f"SYMBOLS='{name}'.*{meant}") as caught:
        names(include=("BTCUSDT", name))
    assert caught.value.fields["setting"] == "SYMBOLS" and meant in caught.value.fields["near"]


def test_a_pattern_that_matches_nothing_is_fatal() -> None:
    with pytest.raises(Fatal, match="SYMBOLS"):
        names(include=("XYZ*",))


def test_nothing_that_may_be_traded_is_fatal_with_the_reasons() -> None:
    with pytest.raises(Fatal, match="1 not trading"):
        names(include=("FTTUSDT",))


def test_the_fallback_is_twenty_liquid_pairs_on_their_grids() -> None:
    assert len({one.symbol for one in FALLBACK}) == 20
    assert all(judge(one, Decimal(0), Terms(), NOW_MS) is None for one in FALLBACK)
    assert FALLBACK[0].symbol == "BTCUSDT" and FALLBACK[0].step == Decimal("0.001")


def test_a_recorded_exchange_info_gives_a_universe_in_which_the_fallback_has_its_grids(recorded_data: Path) -> None:
    found, _ = exchange_info((recorded_data / "exchangeInfo.json").read_bytes())
    kept, left_out = chosen(found, {}, Terms(), size=600, now_ms=NOW_MS)
    assert len(kept) > 400 and left_out[Reason.NOT_TRADING] > 0
    assert all(one.quote == "USDT" for one in kept)
    for one in FALLBACK:
        assert (found[one.symbol].tick, found[one.symbol].step, found[one.symbol].market_max_qty) == (one.tick, one.step, one.market_max_qty)
