"""The venue at its rudest: one position or none, never two; a stop within the naked limit; and three books that agree to the last digit."""

from __future__ import annotations

import asyncio
from decimal import Decimal as D
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from src.bus import Topic
from src.models import Role
from src.recovery import reconcile
from src.slots import MS_NS, Ask, Patience
from src.venue.errors import to_error
from src.venue.governor import Governor, Priority
from tests.test_trade import DEAD_WS, NAKED_S, QUICK, Daemon, World, bench, table, until

pytestmark = pytest.mark.slow  # every mishap takes its time

EXECUTED = {
    "unknown_before": False, "unknown_after": True, "timeout_before": False, "timeout_after": True, "reset_before": False, "reset_after": True,
    "silent_after": True, "unavailable": False, "throttled": False, "internal": False,
}  # fmt: skip
SURE = ("unavailable", "throttled", "internal")
"""The venue says that nothing was executed."""


async def entries(venue: World) -> list[dict[str, Any]]:
    """Our entries at the venue that executed something."""
    return [o for o in (await venue.books())["orders"] if o["client_id"].endswith("-e") and float(o["executed"]) > 0]


async def ended_well(venue: World, d: Daemon, executed: bool) -> None:
    """One protected position, or none and a free slot."""
    if executed:
        await until(d.protected, "the position is open and protected")
        await until(lambda: d.slot() is None or d.slot().qty > 0, "its fills are counted")
    else:
        await until(d.gone, "the slot is free")
    assert len(await entries(venue)) == executed
    assert bool(await venue.held()) == executed
    assert venue.watch.naked_s <= NAKED_S
    await d.agree()


# ------------------------------------------------------------------ the entry's answer


async def test_an_entry_with_a_rude_answer_is_one_position_or_none(tmp_path: Path) -> None:
    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            await venue.fault("order.place", kind)
            d.hear()
            await ended_well(venue, d, EXECUTED[kind])
            assert EXECUTED[kind] or (kind in SURE) == ("never reached" not in d.refused[0][1])

    await table(EXECUTED, row)


async def test_the_same_over_rest_where_the_ws_api_is_down(tmp_path: Path) -> None:
    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, ws_url=DEAD_WS, patience=QUICK) as (venue, d):
            await venue.fault("POST v1/order", kind)
            d.hear()
            await ended_well(venue, d, EXECUTED[kind])

    await table(EXECUTED, row)


async def test_the_same_while_the_user_stream_is_connected_and_mute(tmp_path: Path) -> None:
    """What nobody tells is found by asking, and within the naked limit."""

    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            await venue.client.control("mute", route="private", on=True)
            await venue.fault("order.place", kind)
            d.hear()
            await ended_well(venue, d, EXECUTED[kind])

    await table(EXECUTED, row)


async def test_the_same_while_queries_lag_too(tmp_path: Path) -> None:
    """The order 'does not exist' for a while, nothing is told, and the position is held all the same."""

    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            await venue.client.control("mute", route="private", on=True)
            await venue.fault("order.place", kind)
            await venue.fault("GET v1/order", "stale", count=3)
            d.hear()
            await ended_well(venue, d, EXECUTED[kind])

    await table(["unknown_after", "unknown_before", "silent_after", "reset_after"], row)


async def test_a_stop_stands_in_time_though_nothing_at_all_is_told_or_readable(tmp_path: Path) -> None:
    """No answer, no event, and reads that fail: only the matching engine knows, and it takes a closing order where there is something to
    close."""
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await venue.client.control("mute", route="private", on=True)
        await venue.fault("order.place", "silent_after")
        for door in ("GET v1/order", "GET v1/userTrades", "GET v3/positionRisk"):
            await venue.fault(door, "unavailable", count=1000)
        d.hear()
        await until(venue.standing, "a stop")
        await asyncio.sleep(1.0)
        assert venue.watch.naked_s <= NAKED_S and d.slot().protected
        await venue.client.control("clear_faults")
        await ended_well(venue, d, True)


async def test_one_source_that_fails_does_not_hide_what_the_others_say(tmp_path: Path) -> None:
    async def row(door: str) -> None:
        async with bench(tmp_path / door.replace("/", " "), patience=QUICK) as (venue, d):
            await venue.client.control("mute", route="private", on=True)
            await venue.fault("order.place", "unknown_after")
            await venue.fault("algoOrder.place", "internal")  # so that the stop in advance does not do it
            await venue.fault(door, "unavailable", count=1000)
            d.hear()
            await until(d.protected)
            await venue.client.control("clear_faults")
            await ended_well(venue, d, True)

    await table(["GET v1/userTrades", "GET v3/positionRisk", "GET v1/order"], row)


async def test_a_wire_that_is_cut_right_after_the_send_leaves_one_position_or_none(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        d.hear()
        venue.relay.cut()
        await until(lambda: d.protected() or d.gone(), "it is clear")
        assert len(await entries(venue)) <= 1
        await until(lambda: d.ws.is_up and d.stream.is_up and not d.trade.halted, "connected again")
        await d.agree()
        assert venue.watch.naked_s <= NAKED_S


async def test_a_slow_answer_overtaken_by_its_fill_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.fault("order.place", "slow", delay_s=1.0)
        d.hear()
        await until(d.protected)
        await asyncio.sleep(1.1)
        assert d.protected()
        await d.agree()


# ------------------------------------------------------------------ what the user stream tells


@pytest.mark.parametrize("ws_url", ["", DEAD_WS])
async def test_an_entry_that_the_venue_finds_too_old_is_not_sent_again_and_the_clock_is_set_right(tmp_path: Path, ws_url: str) -> None:
    """Also over REST, whose other writes are repeated after that: by then the signal is stale."""
    async with bench(tmp_path, ws_url=ws_url, cooldown_ms=0) as (venue, d):
        d.rest.offset_ms = -60_000
        d.hear()
        await until(d.gone, "the slot is free")
        assert "-1021" in d.refused[-1][1] and not (await venue.books())["orders"]
        await until(lambda: abs(d.rest.offset_ms) < 1000, "the clock is right")
        await d.opened()
        await d.agree()


async def test_an_entry_does_not_wait_for_request_weight(tmp_path: Path) -> None:
    async with bench(tmp_path, ws_url=DEAD_WS) as (venue, d):
        governor = d.rest.governor
        d.rest.governor = Governor(lambda: 59_000, speed=60.0)
        d.rest.governor.take_now(2390, Priority.PROTECT)
        d.hear()
        await until(d.gone, "the slot is free")
        d.rest.governor = governor
        await asyncio.sleep(0.2)
        assert not (await venue.books())["orders"] and "takes no requests" in d.refused[-1][1]



@pytest.mark.parametrize("kind", ["duplicate", "delay", "drop"])
async def test_events_that_come_twice_late_or_never(tmp_path: Path, kind: str) -> None:
    """A whole life, from the entry to a target that is reached, while every event of a sort is lost, doubled or 400 ms late."""

    async def row(event: str) -> None:
        async with bench(tmp_path / event.replace("*", "all"), patience=QUICK) as (venue, d):
            await venue.fault(event, kind, count=1000, delay_s=0.4)
            d.hear()
            await until(d.protected)
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone, "the slot is free")
            assert [t.reason for t in d.closed] == ["target"]
            assert await venue.held() == 0 and not await venue.standing()
            assert venue.watch.naked_s <= NAKED_S
            await until(lambda: not d.portfolio.foreign)
            await d.agree()

    await table(["ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ALGO_UPDATE", "*"], row)


async def test_a_fill_of_the_entry_that_is_lost_is_found(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.fault("ORDER_TRADE_UPDATE", "drop", count=2)
        d.hear()
        await until(lambda: d.protected() and (slot := d.slot()) is not None and slot.qty > 0, "open, protected and counted")
        assert venue.watch.naked_s < 0.5
        await d.agree()


# ------------------------------------------------------------------ guards


@pytest.mark.parametrize("mute", [False, True], ids=["told", "mute"])
async def test_a_stop_with_a_rude_answer_stands_once_and_in_time(tmp_path: Path, mute: bool) -> None:
    """``stale`` is a refusal with a code that says nothing about stops."""

    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            await venue.fault("algoOrder.place", kind)
            if mute:
                await venue.fault("ALGO_UPDATE", "drop", count=1000)
            d.hear()
            await until(d.protected)
            assert len(await venue.standing()) == 1 and venue.watch.naked_s <= NAKED_S
            stop = d.slot().stop
            assert stop is not None and stop.client_id == (await venue.standing())[0]["client_id"]
            await d.agree()
            await venue.client.control("clear_faults")
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone, "the slot is free")
            assert not await venue.standing()
            await d.agree()

    await table([*EXECUTED, "stale"], row)


async def test_a_position_whose_stop_is_refused_again_and_again_is_flattened_at_the_naked_limit(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        for door in ("algoOrder.place", "POST v1/algoOrder"):
            await venue.fault(door, "internal", count=1000)
        d.hear()
        await until(lambda: d.closed, "it is closed")
        assert d.closed[0].reason == "naked" and await venue.held() == 0
        assert NAKED_S - 0.1 <= venue.watch.naked_s <= NAKED_S + 0.3
        await d.agree()


async def test_a_price_that_is_past_the_stop_before_it_stands_means_leave(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.client.control("latency", latency_ms=150)
        d.hear()
        await until(lambda: d.slot() is not None and d.slot().qty > 0)
        await venue.move("BTCUSDT", 59_000)
        await venue.client.control("latency", latency_ms=2)
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "stop passed before it stood"
        await d.agree()


@pytest.mark.parametrize("role", ["stop", "target"])
async def test_a_guard_that_vanishes_unheard_is_missed_and_put_back(tmp_path: Path, role: str) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        slot = await d.opened()
        gone = getattr(slot, role).client_id
        await venue.fault("ALGO_UPDATE", "drop", count=1)
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=gone)
        await until(lambda: d.protected() and getattr(slot, role).client_id != gone, f"a new {role}")
        assert len(await venue.standing()) == len(await venue.standing(kind="TAKE_PROFIT_MARKET")) == 1
        await d.agree()


async def test_the_owners_own_stop_protects_and_stays_his(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await venue.fault("algoOrder.place", "internal", count=2)
        d.hear()
        await until(venue.held)
        his = await venue.client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="BTCUSDT", side="SELL", type="STOP_MARKET",
                                      triggerPrice="58000", closePosition="true", clientAlgoId="web_mine")  # fmt: skip
        await until(lambda: d.slot().stop is not None and d.slot().stop.client_id == "web_mine", "his stop is taken for ours")
        await asyncio.sleep(NAKED_S + 0.3)
        assert d.protected() and venue.watch.naked_s <= NAKED_S
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        assert [a["id"] for a in await venue.standing()] == [his["algoId"]], "a plain GTC stop survives, and is not ours to cancel"
        await d.agree()


async def test_a_stop_that_was_put_up_and_never_answered_is_not_put_up_twice(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await venue.fault("algoOrder.place", "silent_after", count=2)
        await venue.fault("GET v1/algoOrder", "stale", count=5)
        await venue.fault("ALGO_UPDATE", "drop", count=1000)
        d.hear()
        await until(d.protected)
        assert len([a for a in (await venue.books())["algo"] if a["type"] == "STOP_MARKET"]) == 1
        assert venue.watch.naked_s <= NAKED_S
        await d.agree()


# ------------------------------------------------------------------ exits and cancels


@pytest.mark.parametrize("mute", [False, True], ids=["told", "mute"])
async def test_an_exit_with_a_rude_answer_ends_flat(tmp_path: Path, mute: bool) -> None:
    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            await d.opened()
            await venue.fault("order.place", kind)
            await venue.client.control("mute", route="private", on=mute)
            d.trade.flatten("asked by the test")
            await until(d.gone, "the slot is free")
            assert await venue.held() == 0 and d.closed[0].reason == "asked by the test"
            assert not await venue.standing()
            await d.agree()

    await table(EXECUTED, row)


async def test_a_cancel_with_a_rude_answer_is_repeated_until_nothing_stands(tmp_path: Path) -> None:
    """His sale closes the position, and the venue does not tell what becomes of the guards."""

    async def row(kind: str) -> None:
        async with bench(tmp_path / kind, patience=QUICK) as (venue, d):
            slot = await d.opened()
            await venue.fault("ALGO_UPDATE", "drop", count=1000)
            await venue.fault("algoOrder.cancel", kind)
            await venue.user("SELL", str(slot.qty))
            await until(d.gone, "the slot is free")
            assert not await venue.standing() and not await venue.standing(kind="TAKE_PROFIT_MARKET")
            await d.agree()

    await table(EXECUTED, row)


# ------------------------------------------------------------------ connections


async def test_a_stop_that_fires_while_the_stream_is_mute_is_found(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await d.opened()
        await venue.client.control("mute", route="private", on=True)
        await venue.move("BTCUSDT", 59_000)
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "stop"
        await d.agree()


@pytest.mark.parametrize("how", ["cut", "expired"])
async def test_what_happens_while_the_stream_is_away_is_known_after_it(tmp_path: Path, how: str) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened("BTCUSDT")
        slot = await d.opened("ETHUSDT")
        await venue.client.control("mute", route="private", on=True)
        await venue.user("SELL", str(slot.qty), "ETHUSDT")
        await venue.user("BUY", "100", "SOLUSDT")
        await venue.client.control("mute", route="private", on=False)
        await venue.client.control("drop_streams" if how == "cut" else "expire_listen_keys")
        await until(lambda: d.trade.halted, "nothing opens")
        await until(lambda: not d.trade.halted and d.gone("ETHUSDT"), "reconciled")
        assert d.protected("BTCUSDT") and d.portfolio.foreign == {"SOLUSDT": 100}
        await d.agree()


@pytest.mark.parametrize("role", ["stop", "target"])
async def test_a_guard_that_vanished_while_the_stream_was_away_is_put_back_when_it_is_there_again(tmp_path: Path, role: str) -> None:
    """Not only at the next look-up, ten seconds later."""
    async with bench(tmp_path, patience=Patience(lookup_ns=60_000 * MS_NS)) as (venue, d):
        slot = await d.opened()
        gone = getattr(slot, role).client_id
        await venue.client.control("mute", route="private", on=True)
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=gone)
        await venue.client.control("mute", route="private", on=False)
        await venue.client.control("drop_streams")
        await until(lambda: d.protected() and getattr(slot, role).client_id != gone, f"a new {role}")
        assert len(await venue.standing()) == len(await venue.standing(kind="TAKE_PROFIT_MARKET")) == 1
        await until(lambda: not d.trade.halted, "reconciled")
        await d.agree()


async def test_an_answer_that_is_older_than_what_the_stream_told_changes_nothing(tmp_path: Path) -> None:
    """Positions are read at once, the fills of the same question take a second, and meanwhile the position is closed."""
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        await until(lambda: slot.entry.word == "gone")
        await venue.fault("GET v1/userTrades", "slow", delay_s=1.0)
        asking = asyncio.ensure_future(d.trade._ask(Ask("BTCUSDT", "", Role.EXIT, slot.made_ms, min(slot.trades))))
        await asyncio.sleep(0.2)
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        await asking
        assert not d.portfolio.foreign and not d.trade.account.positions and d.trade.equity == d.trade.account.wallet
        await d.agree()


async def test_a_reconciliation_that_read_before_a_close_does_not_undo_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        await until(lambda: slot.entry.word == "gone")
        await venue.fault("GET v1/openAlgoOrders", "slow", delay_s=1.0)
        passing = asyncio.ensure_future(reconcile(d.trade, d.portfolio, d.gateway, venue.clock))
        await asyncio.sleep(0.2)
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        await passing
        assert not d.portfolio.foreign and not d.trade.account.positions
        assert d.trade.account.wallet == D((await venue.books())["wallet"])
        await d.agree()


async def test_nothing_opens_between_a_reconnect_and_the_end_of_reconciliation(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.fault("GET v3/account", "slow", delay_s=0.4, count=2)
        await venue.client.control("drop_streams")
        await until(lambda: not d.stream.is_up)
        await until(lambda: d.stream.is_up)
        assert "reconciling" in d.trade.halted
        await venue.client.control("drop_streams")
        await until(lambda: not d.stream.is_up)
        await until(lambda: d.stream.is_up)
        started = asyncio.get_running_loop().time()
        await until(lambda: not d.trade.halted)
        assert asyncio.get_running_loop().time() - started > 0.25, "the second reconciliation has passed, not only the first"
        await d.opened()


async def test_orders_go_over_rest_while_the_ws_api_is_down_and_a_whole_life_passes(tmp_path: Path) -> None:
    async with bench(tmp_path, ws_url=DEAD_WS) as (venue, d):
        await d.opened()
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone)
        assert d.closed[0].reason == "target" and venue.watch.naked_s < 0.5
        await d.agree()


async def test_what_is_due_is_done_while_the_venue_takes_only_what_weighs_nothing(tmp_path: Path) -> None:
    """After a 429, and without the WS API: nobody can be asked whether the venue is there, and it has said that it is."""
    async with bench(tmp_path, ws_url=DEAD_WS) as (venue, d):
        await d.opened(limit_ms=venue.clock.market_ms() + 7_000)
        await d.opened("ETHUSDT", limit_ms=venue.clock.market_ms() + 14_000)
        await venue.fault("ALGO_UPDATE", "drop", count=1000)  # so that cancels are wanted, which weigh
        governor, d.rest.governor, calls = d.rest.governor, Governor(lambda: 1_000), d.rest.calls
        d.rest.governor.throttled(to_error(429, -1003, "Too many requests", write=False))

        async def left() -> bool:
            return not await venue.held() and not await venue.held("ETHUSDT")

        await until(left, "both are left", 20)
        assert d.rest.calls - calls == 2, "the two exits; who goes on with cancels is banned"
        d.rest.governor = governor
        await until(lambda: d.gone() and d.gone("ETHUSDT"), "the slots are free", 15)
        assert {trade.reason for trade in d.closed} == {"time limit"}
        await d.agree()


async def test_protection_is_the_first_write_when_contact_returns(tmp_path: Path) -> None:
    """The wire dies with the entry's fill, or under an open position whose stop then goes; for longer than the naked limit, and nobody flattens
    for that alone."""

    async def row(case: tuple[str, str]) -> None:
        when, how = case
        async with bench(tmp_path / f"{when} {how}", patience=QUICK) as (venue, d):

            def cut(_position: Any = None) -> None:
                venue.relay.hole = True
                if how == "down":
                    venue.relay.down()

            if when == "with the fill":
                d.bus.subscribe(Topic.POSITION_OPENED, cut)
                d.hear()
                await until(venue.held)
            else:
                slot = await d.opened()
                cut()
                await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=slot.stop.client_id if slot.stop else "")
            await asyncio.sleep(NAKED_S + 1.0)
            assert not await venue.standing() and not d.closed
            venue.relay.hole = False
            if how == "down":
                await venue.relay.up()
            started = monotonic()
            await until(venue.standing, "a stop", 15)
            assert monotonic() - started < NAKED_S + 0.2
            await until(d.protected, "all is well", 15)
            await until(lambda: not d.trade.halted, "reconciled", 15)
            assert not d.closed
            await d.agree()

    await table([(when, how) for when in ("with the fill", "open") for how in ("down", "hole")], row)
