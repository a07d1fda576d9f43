"""Starting is recovering: at whatever step the process died, the next one finds what is held, protects it, and lets go of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from src.bus import Topic
from src.error_handler import Rejected
from src.journal import Journal
from src.models import AccountUpdate, Fill, Role, Side
from src.recovery import EMERGENCY_DISTANCE, ORPHAN_S, opening_of, reconcile
from src.slots import State
from src.transfers import TOLD_MAX
from src.venue.orders import ClientIds
from tests.test_exchange_wire import KEY
from tests.test_trade import NAKED_S, QUICK, Daemon, World, bench, daemon, until, world


@asynccontextmanager
async def restarted(venue: World, folder: Path, **words: Any) -> AsyncIterator[Daemon]:
    async with daemon(venue, folder, **({"patience": QUICK} | words)) as second:
        yield second


# ------------------------------------------------------------------ an entry on its way


async def test_an_intent_that_never_left_dies(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            venue.relay.hole = True
            first.hear()
            await first.kill()
        venue.relay.hole = False
        async with restarted(venue, tmp_path) as d:
            slot = d.slot()
            assert slot is not None and slot.state is State.OPENING
            await until(d.gone, "the slot is free")
            assert d.refused[0][1] == "never reached the venue" and not (await venue.books())["orders"]
            d.hear()
            assert d.refused[-1][1] == "cooling down"
            await d.agree()


async def test_an_entry_that_executed_unheard_is_protected_by_the_next_start(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await venue.fault("order.place", "silent_after")
            await venue.client.control("mute", route="private", on=True)
            first.hear()
            await until(venue.held)
            await first.kill()
        await venue.client.control("mute", route="private", on=False)
        async with restarted(venue, tmp_path) as d:
            await until(venue.standing, "a stop, which was sent before the start was over", 0.2)
            await until(d.protected)
            await d.agree()


async def test_a_fill_without_its_stop_is_protected_first_by_the_next_start(tmp_path: Path) -> None:
    """Before its fills are fetched, which takes long here."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            for door in ("algoOrder.place", "POST v1/algoOrder"):
                await venue.fault(door, "internal", count=1000)
            first.hear()
            await until(lambda: first.slot() and first.slot().qty > 0)
            await first.kill()
        await venue.client.control("clear_faults")
        await venue.fault("GET v1/userTrades", "slow", delay_s=0.7)
        second = Daemon(venue, tmp_path, patience=QUICK)
        starting = asyncio.ensure_future(second.start())
        await until(lambda: getattr(second, "trade", None) is not None and second.trade.recovering)
        now = asyncio.get_running_loop().time()
        await until(venue.standing, "a stop")
        assert asyncio.get_running_loop().time() - now < 0.3
        await starting
        await until(second.protected)
        await second.agree()
        await second.kill()


@pytest.mark.slow
async def test_the_naked_limit_holds_while_the_start_is_still_busy_with_other_things(tmp_path: Path) -> None:
    """The first stop is refused, and then an old guard of ours is looked at twice before it is cancelled."""
    async with world() as venue:
        stop, _, _ = await opened_and_killed(venue, tmp_path)
        old = ClientIds(venue.clock.market_ms() - 3_600_000).next(Role.STOP)
        await venue.user("BUY", "1", "SOLUSDT")
        await venue.client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="SOLUSDT", side="SELL", type="STOP_MARKET", triggerPrice="100",
                                closePosition="true", clientAlgoId=old)  # fmt: skip
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=stop)
        for door in ("algoOrder.place", "POST v1/algoOrder"):
            await venue.fault(door, "internal", count=1)
        second = Daemon(venue, tmp_path, patience=QUICK)
        starting = asyncio.ensure_future(second.start())
        await until(venue.standing, "a stop", NAKED_S)
        assert not starting.done()
        await starting
        assert second.protected() and not second.closed
        await second.kill()


# ------------------------------------------------------------------ an open position


async def opened_and_killed(venue: World, folder: Path) -> tuple[str, str, D]:
    """(stop id, target id, quantity) of a position whose daemon is dead."""
    async with daemon(venue, folder) as first:
        slot = await first.opened()
        assert slot.stop is not None and slot.target is not None
        found = slot.stop.client_id, slot.target.client_id, slot.qty
        await until(lambda: slot.entry.word == "gone")
        await first.kill()
    return found


async def test_what_stands_is_taken_up_again_and_nothing_is_sent(tmp_path: Path) -> None:
    async with world() as venue:
        stop, target, qty = await opened_and_killed(venue, tmp_path)
        before = len((await venue.books())["algo"])
        async with restarted(venue, tmp_path) as d:
            await until(d.protected)
            slot = d.slot()
            assert slot is not None and slot.stop and slot.target and (slot.stop.client_id, slot.target.client_id, slot.qty) == (stop, target, qty)
            assert len((await venue.books())["algo"]) == before and venue.watch.naked_s < 0.5
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone)
            assert d.closed[0].reason == "target" and d.closed[0].confidence == 0.7
            await d.agree()


@pytest.mark.parametrize("gone", ["stop", "target", "both"])
async def test_guards_that_went_meanwhile_are_put_up_before_the_start_is_over(tmp_path: Path, gone: str) -> None:
    async with world() as venue:
        stop, target, _ = await opened_and_killed(venue, tmp_path)
        for client_id, name in ((stop, "stop"), (target, "target")):
            if gone in (name, "both"):
                await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=client_id)
        async with restarted(venue, tmp_path) as d:
            await until(venue.standing, "a stop, which was sent before the start was over", 0.2)
            await until(d.protected)
            assert len(await venue.standing()) == len(await venue.standing(kind="TAKE_PROFIT_MARKET")) == 1
            await d.agree()


@pytest.mark.parametrize("cause", ["stop", "target", "closed from outside"])
async def test_a_position_that_closed_meanwhile_is_accounted_for(tmp_path: Path, cause: str) -> None:
    async with world() as venue:
        _, _, qty = await opened_and_killed(venue, tmp_path)
        if cause == "closed from outside":
            await venue.user("SELL", str(qty))
        else:
            await venue.move("BTCUSDT", 59_000 if cause == "stop" else 61_000)
        await until(lambda: flat(venue))
        async with restarted(venue, tmp_path) as d:
            await until(d.gone, "the slot is free")
            assert [t.reason for t in d.closed] == [cause]
            await d.agree()


async def flat(venue: World, symbol: str = "BTCUSDT") -> bool:
    return await venue.held(symbol) == 0


async def test_a_position_that_shrank_meanwhile_is_counted_right(tmp_path: Path) -> None:
    async with world() as venue:
        _, _, qty = await opened_and_killed(venue, tmp_path)
        await venue.user("SELL", "0.05")
        async with restarted(venue, tmp_path) as d:
            await until(d.protected)
            slot = d.slot()
            assert slot is not None and slot.qty == qty - D("0.05")
            await d.agree()


async def test_a_time_limit_that_passed_meanwhile_closes_at_once(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await first.opened(limit_ms=venue.clock.market_ms() + 200)
            await first.kill()
        await asyncio.sleep(0.2)
        async with restarted(venue, tmp_path) as d:
            await until(d.gone)
            assert d.closed[0].reason == "time limit"
            await d.agree()


async def test_an_exit_under_way_goes_on(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await first.opened()
            await venue.fault("order.place", "unavailable", count=1)
            first.trade.flatten("asked by the test")
            await until(lambda: first.slot().exit is None, "the exit is refused")
            await first.kill()
        async with restarted(venue, tmp_path) as d:
            await until(d.gone, "the slot is free")
            assert d.closed[0].reason == "asked by the test" and await flat(venue)
            await d.agree()


async def test_an_exit_that_executed_unheard_is_not_done_again(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await first.opened()
            await venue.client.control("mute", route="private", on=True)
            await venue.fault("order.place", "silent_after")
            first.trade.flatten("asked by the test")
            await until(lambda: flat(venue))
            await first.kill()
        await venue.client.control("mute", route="private", on=False)
        async with restarted(venue, tmp_path) as d:
            await until(d.gone, "the slot is free")
            assert len([o for o in (await venue.books())["orders"] if o["client_id"].endswith("-x")]) == 1
            await d.agree()


async def test_a_guard_that_survived_its_position_is_cancelled(tmp_path: Path) -> None:
    """The stop executed, the cancel of the target was refused, the process died."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            slot = await first.opened()
            await venue.fault("ALGO_UPDATE", "drop", count=1000)
            for door in ("algoOrder.cancel", "DELETE v1/algoOrder", "GET v1/algoOrder"):
                await venue.fault(door, "internal", count=1000)
            await venue.user("SELL", str(slot.qty))
            await until(lambda: slot.state is State.CLOSING)
            await first.kill()
        await venue.client.control("clear_faults")
        async with restarted(venue, tmp_path) as d:
            await until(d.gone, "the slot is free")
            assert not await venue.standing() and not await venue.standing(kind="TAKE_PROFIT_MARKET")
            await d.agree()


# ------------------------------------------------------------------ positions without a slot


async def test_a_position_whose_slot_was_lost_with_the_power_is_taken_over_by_its_plan(tmp_path: Path) -> None:
    """The slot's row did not reach the disk, the intent did."""
    async with world() as venue:
        stop, target, qty = await opened_and_killed(venue, tmp_path)
        for client_id in (stop, target):
            await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=client_id)
        journal = Journal(tmp_path)
        journal.drop_slot("BTCUSDT")
        journal.close()
        async with restarted(venue, tmp_path) as d:
            await until(venue.standing, "a stop, which was sent before the start was over", 0.2)
            await until(d.protected)
            slot = d.slot()
            assert slot is not None and (slot.qty, slot.confidence, slot.source) == (qty, 0.7, "teacher")
            assert D((await venue.standing())[0]["trigger_price"]) == slot.stop_price and 59_390 < slot.stop_price < 59_410
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone)
            assert d.closed[0].reason == "target"
            await d.agree()


async def test_a_position_of_which_no_journal_knows_gets_an_emergency_stop(tmp_path: Path) -> None:
    async with world() as venue:
        stop, target, qty = await opened_and_killed(venue, tmp_path / "lost")
        for client_id in (stop, target):
            await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=client_id)
        async with restarted(venue, tmp_path / "new") as d:
            await until(d.protected)
            slot = d.slot()
            assert slot is not None and slot.qty == qty and slot.source == "adopted"
            assert abs(slot.stop_price / slot.entry_price - (1 - EMERGENCY_DISTANCE)) < D("0.0001")
            await venue.move("BTCUSDT", 58_500)
            await until(d.gone)
            assert d.closed[0].reason == "stop" and await flat(venue)


async def test_guards_of_a_lost_position_that_stand_are_kept(tmp_path: Path) -> None:
    async with world() as venue:
        stop, target, _ = await opened_and_killed(venue, tmp_path / "lost")
        async with restarted(venue, tmp_path / "new") as d:
            await until(d.protected)
            slot = d.slot()
            assert slot is not None and slot.stop and slot.target and (slot.stop.client_id, slot.target.client_id) == (stop, target)
            assert 59_390 < slot.stop_price < 59_410
            assert len(await venue.standing()) == 1 and venue.watch.naked_s < 0.5


@pytest.mark.slow
async def test_guards_of_a_position_whose_fills_cannot_be_read_are_left_standing_until_they_can(tmp_path: Path) -> None:
    """The journal is lost, and the venue's list of trades lags or does not reach that far: nobody can say that the guards protect nothing."""
    async with world() as venue:
        stop, target, qty = await opened_and_killed(venue, tmp_path / "lost")
        await venue.fault("GET v1/userTrades", "lag", count=0, delay_s=3600)
        async with restarted(venue, tmp_path / "new") as d:
            assert d.portfolio.foreign == {"BTCUSDT": qty}
            await asyncio.sleep(ORPHAN_S + 0.5)
            assert [a["client_id"] for a in await venue.standing()] == [stop]
            assert [a["client_id"] for a in await venue.standing(kind="TAKE_PROFIT_MARKET")] == [target]
            await venue.client.control("clear_faults")
            await reconcile(d.trade, d.portfolio, d.gateway, venue.clock)
            assert d.slot() is not None and d.slot().qty == qty and d.slot().stop.client_id == stop
            assert venue.watch.naked_s < 0.5


async def test_a_lost_short_position_is_protected_above(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path / "lost") as first:
            slot = await first.opened(side=Side.SELL)
            await first.kill()
        await venue.client.good("DELETE", "v1/algoOpenOrders", symbol="BTCUSDT")
        async with restarted(venue, tmp_path / "new") as d:
            await until(d.protected)
            again = d.slot()
            assert again is not None and again.side is Side.SELL and again.qty == slot.qty
            assert again.stop_price > again.entry_price > again.target_price


async def test_a_position_of_others_is_left_alone_by_the_start(tmp_path: Path) -> None:
    async with bench(tmp_path / "once") as (venue, first):
        await first.opened("BTCUSDT")
        await venue.move("BTCUSDT", 61_000)
        await until(first.gone)  # our own trades of the symbol lie before his
        await venue.user("BUY", "0.3", "BTCUSDT")
        await venue.user("SELL", "2", "ETHUSDT")
        await first.kill()
        orders = len((await venue.books())["orders"])
        async with restarted(venue, tmp_path / "again") as d:
            assert d.portfolio.foreign == {"BTCUSDT": D("0.3"), "ETHUSDT": D(-2)} and not d.portfolio.slots
            await asyncio.sleep(0.3)
            books = await venue.books()
            assert len(books["orders"]) == orders and not [a for a in books["algo"] if a["status"] == "NEW"]
            d.hear("BTCUSDT")
            assert d.refused[-1] == ("BTCUSDT", "already held")


@pytest.mark.slow
async def test_a_guard_of_ours_that_protects_nothing_of_ours_is_cancelled(tmp_path: Path) -> None:
    async with world() as venue:
        await venue.user("BUY", "0.3")
        old = ClientIds(venue.clock.market_ms() - 3_600_000).next(Role.STOP)
        for name in (old, "web_stop_of_his"):
            kind, price = ("STOP_MARKET", "50000") if name == old else ("TAKE_PROFIT_MARKET", "70000")
            await venue.client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="BTCUSDT", side="SELL", type=kind, triggerPrice=price,
                                    closePosition="true", clientAlgoId=name)  # fmt: skip
        async with restarted(venue, tmp_path):
            await until(lambda: gone(venue, old), "our old stop is gone")
            assert [a["client_id"] for a in await venue.standing(kind="TAKE_PROFIT_MARKET")] == ["web_stop_of_his"]


async def gone(venue: World, client_id: str) -> bool:
    return client_id not in [a["client_id"] for a in await venue.standing()]


async def test_a_symbol_that_is_not_of_this_run_any_more_is_managed_all_the_same(tmp_path: Path) -> None:
    async with world() as venue:
        stop, _, _ = await opened_and_killed(venue, tmp_path)
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=stop)
        async with restarted(venue, tmp_path, symbols=("ETHUSDT", "SOLUSDT")) as d:
            await until(d.protected)
            d.trade.tick()
            d.trade.flatten("asked by the test")
            await until(d.gone)
            await d.agree()


def fill(trade_id: int, side: Side, qty: str) -> Fill:
    return Fill("BTCUSDT", trade_id, "", trade_id, side, D(100), D(qty), D(0), "USDT", D(0), False, trade_id)


@pytest.mark.parametrize(
    ("amount", "trades", "first"),
    [
        ("1", [("BUY", "1")], 0),
        ("1", [("BUY", "2"), ("SELL", "2"), ("BUY", "0.4"), ("BUY", "0.6")], 2),
        ("-3", [("BUY", "1"), ("SELL", "1"), ("SELL", "2"), ("SELL", "1")], 2),
        ("0.5", [("BUY", "1"), ("SELL", "0.5")], 0),
        ("2", [("BUY", "1")], None),
        ("1", [], None),
    ],
)
def test_the_fills_that_make_up_a_position_begin_where_it_was_flat(amount: str, trades: list[tuple[str, str]], first: int | None) -> None:
    fills = [fill(i, Side(side), qty) for i, (side, qty) in enumerate(trades)]
    assert opening_of(D(amount), fills) == ([] if first is None else fills[first:])


# ------------------------------------------------------------------ when nothing may open


async def test_without_the_user_stream_nothing_opens_after_a_start_either(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path, stream=False) as d:
        d.hear()
        assert "user stream" in d.refused[-1][1] and d.gone()


@pytest.mark.slow
async def test_a_reconciliation_that_fails_is_tried_again_and_latches_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await d.opened()
        await venue.fault("GET v1/openAlgoOrders", "stale", count=2)
        await venue.client.control("drop_streams")
        await until(lambda: not d.stream.is_up)
        await until(lambda: d.stream.is_up)
        await asyncio.sleep(1.0)
        assert "reconciling" in d.trade.halted and not d.trade.latches
        d.hear("ETHUSDT")
        assert "reconciling" in d.refused[-1][1]
        await until(lambda: not d.trade.halted, "it has passed", 15)
        await d.agree()


@pytest.mark.slow
@pytest.mark.parametrize("door", ["GET v1/userTrades", "GET v1/order", "GET v3/positionRisk"])
async def test_a_start_to_which_the_venue_does_not_say_everything_looks_after_what_is_held(tmp_path: Path, door: str) -> None:
    """One slow read is no reason to begin anew: positions are protected by then, and their stops and time limits go on."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            slot = await first.opened()
            stop = slot.stop.client_id if slot.stop else ""
            await first.kill()
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=stop)
        await venue.fault(door, "slow", count=4, delay_s=1.8)
        async with restarted(venue, tmp_path) as d:
            assert "reconciling" in d.trade.halted and not d.trade.latches
            await until(d.protected, "open and protected")
            await until(lambda: not d.trade.halted, "reconciled", 30)
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone, "the slot is free")
            await d.agree()


async def test_a_start_that_the_venue_refuses_says_so(tmp_path: Path) -> None:
    async with world() as venue:
        await venue.fault("GET v3/account", "stale", count=100)
        d = Daemon(venue, tmp_path)
        with pytest.raises(Rejected):
            await d.start()
        await d.kill()


# ------------------------------------------------------------------ copies of the daemon


async def test_an_older_copy_stops_opening_for_good_once_it_sees_a_newer_one_trade(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path / "old") as old:
        await asyncio.sleep(0.01)
        async with daemon(venue, tmp_path / "new") as new:
            await new.opened("ETHUSDT")
            await until(lambda: "newer copy" in old.trade.halted)
            old.hear("BTCUSDT")
            assert "newer copy" in old.refused[-1][1] and old.gone()
            assert old.portfolio.foreign and "copy" not in new.trade.holds
            await venue.client.control("drop_streams")
            await until(lambda: not old.stream.is_up)
            await until(lambda: old.stream.is_up and not old.trade.reconciliations_wanted)
            assert "newer copy" in old.trade.halted, "a reconciliation does not end it"
            assert old.gone("ETHUSDT") and new.protected("ETHUSDT"), "the newer one's position is not taken over"


async def test_an_older_copy_that_trades_after_our_start_makes_us_wait(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path / "old") as old:
        await asyncio.sleep(0.01)
        async with daemon(venue, tmp_path / "new") as new:
            await old.opened("ETHUSDT")
            await until(lambda: "ETHUSDT" in new.portfolio.foreign)
            new.hear("BTCUSDT")
            assert "older copy" in new.refused[-1][1] and new.gone()


async def test_orders_of_the_run_before_are_not_taken_for_a_copy(tmp_path: Path) -> None:
    async with world() as venue:
        await opened_and_killed(venue, tmp_path)
        async with restarted(venue, tmp_path) as d:
            await until(d.protected)
            await venue.move("BTCUSDT", 61_000)
            await until(d.gone)
            await d.opened("ETHUSDT")
            await d.agree()


# ------------------------------------------------------------------ what a restart remembers


async def test_a_latch_survives_restarts_until_it_is_released(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            first.trade.latch("daily_loss", "said by the test")
            first.trade.remember()
            await first.kill()
        async with restarted(venue, tmp_path) as d:
            d.hear()
            assert "latched: daily_loss" in d.refused[-1][1]
            operator = Journal(tmp_path)
            assert operator.release() == ["daily_loss"]
            operator.close()
            d.trade.remember()
            await d.opened()
            await d.agree()


async def test_a_latch_released_while_it_runs_forgives_nothing_of_the_others(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path) as d:
        limits = d.trade.limits
        await until(lambda: limits.peak == 10_000)
        limits.peak = D(20_000)  # as after an old loss
        await until(lambda: "drawdown" in d.trade.latches)
        d.trade.latch("halt", "said by the test")
        operator = Journal(tmp_path)
        assert operator.release("halt") == ["halt"]
        d.trade.remember()
        assert list(d.trade.latches) == ["drawdown"] and limits.peak == 20_000
        assert operator.release("drawdown") == ["drawdown"]
        d.trade.remember()
        d.trade.tick()
        assert not d.trade.latches and limits.peak == limits.start == 10_000
        operator.close()


# ------------------------------------------------------------------ money that is moved


async def moved(venue: World, amount: str) -> None:
    await venue.client.control("transfer", key=KEY, amount=amount)


def figures(d: Daemon) -> tuple[D, D, D]:
    limits = d.trade.limits
    return d.trade.equity, limits.start, limits.peak


@pytest.mark.parametrize("amount", ["5000", "-5000"])
async def test_a_transfer_while_the_daemon_is_down_is_neither_profit_nor_loss(tmp_path: Path, amount: str) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await until(lambda: first.trade.limits.peak == 10_000)
            first.trade.remember()
            await first.kill()
        await moved(venue, amount)
        async with restarted(venue, tmp_path) as d:
            assert figures(d) == (10_000 + D(amount),) * 3
            await asyncio.sleep(0.1)
            assert not d.trade.latches and not d.trade.halted
            await d.opened()


async def test_a_crash_between_a_transfer_and_what_is_remembered_of_it_counts_it_once(tmp_path: Path) -> None:
    """Also the next time that the statement is read."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await until(lambda: first.trade.limits.peak == 10_000)
            first.trade.remember()
            await moved(venue, "-4000")
            await until(lambda: figures(first) == (6_000,) * 3)
            await first.kill()
        for amount in (6_000, 6_000):
            async with restarted(venue, tmp_path) as d:
                assert figures(d) == (amount,) * 3 and not d.trade.latches
                d.trade.remember()
                await d.kill()


@pytest.mark.parametrize("amount", ["5000", "-5000"])
async def test_a_transfer_while_the_user_stream_is_down_is_found_before_anything_may_open(tmp_path: Path, amount: str) -> None:
    async with world() as venue, daemon(venue, tmp_path, patience=QUICK) as d:
        await until(lambda: d.trade.limits.peak == 10_000)
        await moved(venue, "200")
        await until(lambda: figures(d) == (10_200,) * 3)
        venue.relay.down()
        await until(lambda: "stream" in d.trade.holds)
        await moved(venue, amount)
        await venue.relay.up()
        await until(lambda: not d.trade.halted, "reconciled")
        assert figures(d) == (10_200 + D(amount),) * 3
        await moved(venue, "-100")
        await until(lambda: figures(d) == (10_100 + D(amount),) * 3)
        await reconcile(d.trade, d.portfolio, d.gateway, venue.clock)
        assert figures(d) == (10_100 + D(amount),) * 3 and not d.trade.latches


async def test_a_transfer_that_is_told_late_counts_once(tmp_path: Path) -> None:
    """The statement says it first, and the wallet that came with it judges nothing before that."""
    async with world() as venue, daemon(venue, tmp_path) as d:
        await until(lambda: d.trade.limits.peak == 10_000)
        await venue.fault("ACCOUNT_UPDATE", "drop", count=1)
        await moved(venue, "-5000")
        assert figures(d) == (10_000,) * 3
        await reconcile(d.trade, d.portfolio, d.gateway, venue.clock)
        assert figures(d) == (5_000,) * 3
        d.trade.on_event(AccountUpdate("WITHDRAW", D(5_000), D(-5_000), (), venue.clock.market_ms()))
        assert figures(d) == (5_000,) * 3 and not d.trade.latches


async def test_many_transfers_that_were_told_are_found_in_the_statement_and_need_no_memory(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path) as d:
        await until(lambda: d.trade.limits.peak == 10_000)
        for _ in range(TOLD_MAX):
            await moved(venue, "1")
        await until(lambda: figures(d) == (10_000 + TOLD_MAX,) * 3 and not d.trade.limits.transfers.told and not d.trade.halted)
        assert figures(d) == (10_000 + TOLD_MAX,) * 3


async def test_without_the_statement_what_is_held_is_protected_and_nothing_opens(tmp_path: Path) -> None:
    """And no limit is judged: nobody knows what of the wallet was moved."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            stop = (await first.opened()).stop
            assert stop is not None
            first.trade.remember()
            await first.kill()
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=stop.client_id)
        await moved(venue, "-5000")
        await venue.fault("GET v1/income", "internal", count=1000)
        async with restarted(venue, tmp_path) as d:
            await until(d.protected)
            d.hear("ETHUSDT")
            assert "reconciling" in d.refused[-1][1]
            await asyncio.sleep(0.2)
            assert not d.trade.latches and d.trade.limits.start > 9_900 and d.trade.equity < 5_001
            await venue.client.control("clear_faults")
            await until(lambda: not d.trade.halted, "reconciled", 15)
            assert not d.trade.latches and d.trade.limits.start < 5_001
            await d.opened("ETHUSDT")


async def test_a_loss_while_the_statement_cannot_be_read_trips_before_anything_opens(tmp_path: Path) -> None:
    async with world() as venue, daemon(venue, tmp_path) as d:
        await venue.user("BUY", "3", "ETHUSDT")
        await until(lambda: d.portfolio.foreign)
        await venue.fault("GET v1/income", "slow", count=1, delay_s=0.3)
        comparing = asyncio.ensure_future(reconcile(d.trade, d.portfolio, d.gateway, venue.clock))
        await venue.move("ETHUSDT", 2_700)
        await until(lambda: d.trade.equity < 9_200)
        assert not d.trade.latches and d.trade.halted
        d.trade._desk.bus.subscribe(Topic.ORDER_REQUEST, lambda order: pytest.fail("it opened"))
        await comparing
        d.hear()
        assert "latched: daily_loss" in d.refused[-1][1]


async def test_what_was_earned_today_survives_a_restart(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await first.opened()
            await venue.move("BTCUSDT", 61_000)
            await until(first.gone)
            net = first.closed[0].net
            await first.kill()
        async with restarted(venue, tmp_path) as d:
            await until(lambda: d.counters.get("brain", "realised_today") == float(net) != 0, "today's result is shown")


async def test_the_days_start_and_the_peak_survive_a_restart_while_no_price_is_known_yet(tmp_path: Path) -> None:
    """A position in profit is worth what the venue says until the first price comes: no limit trips for want of one."""
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            await first.opened(target=70_000.0)
            await venue.move("BTCUSDT", 66_000)
            await until(lambda: first.trade.equity > 10_900)
            await asyncio.sleep(0.1)
            first.trade.remember()
            await first.kill()
        second = Daemon(venue, tmp_path, patience=QUICK)
        quote = venue.quote
        venue.quote = lambda symbol: replace(quote(symbol), bid=0.0, ask=0.0, mark=0.0)  # type: ignore[method-assign]
        await second.start()
        await asyncio.sleep(0.2)
        assert second.trade.equity > 10_900 and not second.trade.latches
        await second.kill()


async def test_naked_time_at_the_venue_stays_within_its_limit_over_a_restart_that_is_quick(tmp_path: Path) -> None:
    async with world() as venue:
        async with daemon(venue, tmp_path) as first:
            first.hear()
            await until(venue.held)
            await first.kill()
        async with restarted(venue, tmp_path) as d:
            await until(d.protected)
            assert venue.watch.naked_s <= NAKED_S
            await d.agree()
