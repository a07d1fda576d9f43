"""The choice of symbols: who is in, in which order, and why the others are not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from src.error_handler import Fatal
from src.market_universe import (
    AT_ONCE_MS,
    DAY_MS,
    FALLBACK,
    PERPETUAL_END_MS,
    Offer,
    Reason,
    Renewal,
    Standing,
    Terms,
    chosen,
    judge,
    renewed,
    standing,
)
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


OFFER, ANY = Offer(MARKET, VOLUMES), Terms()


def names(size: int = 100, **terms: Any) -> list[str]:
    return [one.symbol for one in chosen(OFFER, Terms(**terms), size=size, now_ms=NOW_MS)[0]]


def test_the_order_is_by_volume_then_by_name() -> None:
    assert names() == ["BTCUSDT", "NEWUSDT", "ETHUSDT", "SOLUSDT", "1000PEPEUSDT"]


def test_the_order_of_the_venue_does_not_matter() -> None:
    backwards = dict(reversed(MARKET.items()))
    assert chosen(Offer(backwards, VOLUMES), Terms(), size=3, now_ms=NOW_MS) == chosen(OFFER, Terms(), size=3, now_ms=NOW_MS)


@pytest.mark.parametrize(("symbol", "reason"), [
    ("BTCUSDT", None), ("BTCUSDC", Reason.OTHER_QUOTE), ("BTCUSDT_260327", Reason.NOT_PERPETUAL), ("TSLAUSDT", Reason.TRADFI),
    ("FTTUSDT", Reason.NOT_TRADING), ("GONEUSDT", Reason.LEAVING), ("NEWUSDT", None)])
def test_each_symbol_is_left_out_for_its_reason(symbol: str, reason: Reason | None) -> None:
    assert judge(MARKET[symbol], Decimal(1), Terms(), NOW_MS) is reason


def test_reasons_are_counted() -> None:
    kept, left_out = chosen(OFFER, Terms(min_quote_volume=Decimal(100), min_age_days=30), size=2, now_ms=NOW_MS)
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
    assert names(tradfi=True)[0] == "TSLAUSDT"


def test_a_spread_that_is_wide_or_not_known_is_left_out_where_one_is_asked() -> None:
    offer = Offer(MARKET, VOLUMES, {"BTCUSDT": Decimal("0.1"), "ETHUSDT": Decimal("3.1"), "SOLUSDT": Decimal(3)})
    kept, left_out = chosen(offer, Terms(max_spread_bps=Decimal(3)), size=100, now_ms=NOW_MS)
    assert [one.symbol for one in kept] == ["BTCUSDT", "SOLUSDT"] and left_out[Reason.WIDE] == 3


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
    kept, left_out = chosen(Offer(found, {}), Terms(), size=600, now_ms=NOW_MS)
    assert len(kept) > 400 and left_out[Reason.NOT_TRADING] > 0
    assert all(one.quote == "USDT" for one in kept)
    for one in FALLBACK:
        assert (found[one.symbol].tick, found[one.symbol].step, found[one.symbol].market_max_qty) == (one.tick, one.step, one.market_max_qty)


# --- while it runs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "stands"), [
    ({}, Standing(True)), ({"status": "SETTLING"}, Standing(False, AT_ONCE_MS)), ({"status": "PRE_DELIVERING"}, Standing(False, AT_ONCE_MS)),
    ({"delivery_ms": NOW_MS + 5}, Standing(False, NOW_MS + 5)), ({"status": "TRADING_HALT"}, Standing(False)),
    ({"status": "SETTLING", "delivery_ms": NOW_MS + 5}, Standing(False, AT_ONCE_MS))])
def test_a_contract_that_ends_is_not_entered_and_says_when(changes: dict[str, Any], stands: Standing) -> None:
    assert standing(replace(MARKET["BTCUSDT"], **changes)) == stands


def test_a_contract_that_is_not_listed_any_more_is_left_at_once() -> None:
    assert standing(None) == Standing(False, AT_ONCE_MS)
    assert standing(MARKET["BTCUSDT"], wanted=False) == Standing(False)


def look(members: tuple[str, ...], offer: Offer = OFFER, terms: Terms = ANY, size: int = 3, held: tuple[str, ...] = ()) -> Renewal:
    return renewed({name: MARKET[name] for name in members}, offer, terms, size=size, held=held, now_ms=NOW_MS)


def names_of(renewal: Renewal) -> tuple[list[str], list[str]]:
    return [one.symbol for one in renewal.begin], list(renewal.end)


def test_where_nothing_changed_nothing_changes() -> None:
    renewal = look(("BTCUSDT", "NEWUSDT", "ETHUSDT"))
    assert names_of(renewal) == ([], [])
    assert renewal.standings == dict.fromkeys(("BTCUSDT", "NEWUSDT", "ETHUSDT"), Standing(True))


def test_a_free_place_goes_to_the_most_traded_and_a_member_a_little_behind_keeps_its_own() -> None:
    assert names_of(look(("BTCUSDT", "SOLUSDT"))) == (["NEWUSDT"], [])
    assert names_of(look(("BTCUSDT", "SOLUSDT", "ETHUSDT"))) == ([], []), "NEWUSDT trades more, and no place is free"
    assert names_of(look(("BTCUSDT", "SOLUSDT", "1000PEPEUSDT"))) == (["NEWUSDT"], ["1000PEPEUSDT"]), "fifth of three is too far behind"


def test_a_member_with_less_volume_than_a_new_one_needs_stays_for_a_while() -> None:
    terms = Terms(min_quote_volume=Decimal(600))
    assert names_of(look(("BTCUSDT", "ETHUSDT"), terms=terms)) == (["NEWUSDT"], [])
    assert names_of(look(("BTCUSDT", "ETHUSDT"), terms=Terms(min_quote_volume=Decimal(700)))) == (["NEWUSDT"], ["ETHUSDT"])


def test_a_leaving_member_makes_room_unless_it_is_held_and_is_never_entered() -> None:
    offer = Offer(MARKET | {"ETHUSDT": replace(MARKET["ETHUSDT"], delivery_ms=NOW_MS + DAY_MS)}, VOLUMES)
    assert names_of(look(("BTCUSDT", "ETHUSDT", "SOLUSDT"), offer)) == (["NEWUSDT"], ["ETHUSDT"])
    held = look(("BTCUSDT", "ETHUSDT", "SOLUSDT"), offer, held=("ETHUSDT",))
    assert names_of(held) == ([], []) and held.standings["ETHUSDT"] == Standing(False, NOW_MS + DAY_MS)


def test_what_is_held_and_not_wanted_any_more_is_kept_and_not_entered() -> None:
    renewal = look(("BTCUSDT", "ETHUSDT"), terms=Terms(exclude=("ETH*",)), held=("ETHUSDT",))
    assert renewal.standings["ETHUSDT"] == Standing(False) and not renewal.end


def test_a_member_that_is_gone_ends() -> None:
    offer = Offer({name: one for name, one in MARKET.items() if name != "BTCUSDT"}, VOLUMES)
    assert look(("BTCUSDT", "ETHUSDT"), offer).end == ("BTCUSDT",)
    assert look(("BTCUSDT", "ETHUSDT"), offer, held=("BTCUSDT",)).standings["BTCUSDT"] == Standing(False, AT_ONCE_MS)


def test_a_member_whose_step_changed_begins_anew() -> None:
    offer = Offer(MARKET | {"ETHUSDT": replace(MARKET["ETHUSDT"], step=Decimal("0.1"))}, VOLUMES)
    assert names_of(look(("BTCUSDT", "ETHUSDT", "SOLUSDT"), offer, held=("ETHUSDT",))) == (["ETHUSDT"], ["ETHUSDT"])


def test_a_symbol_that_is_asked_for_by_name_needs_no_free_place() -> None:
    terms = Terms(include=("BTCUSDT", "ETHUSDT", "SOLUSDT"))
    assert names_of(look(("BTCUSDT", "ETHUSDT"), terms=terms, size=1)) == (["SOLUSDT"], [])
