"""The books on disk: whatever moment the exchange is killed at, it comes back as of its last whole line."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from src.clock import seeded
from src.error_handler import Fatal
from src.exchange.books import SNAPSHOT, Books
from src.exchange.core import Core
from src.exchange.errors import ApiError
from src.exchange.jumps import JumpingMarket
from src.exchange.options import Account, ExchangeOptions
from src.exchange.orders import AlgoStatus
from src.exchange.server import UNSAVED_S, build
from src.exchange.settings import set_leverage, set_margin_type
from src.exchange.state import Ids
from tests.test_exchange_fake import T0, Desk, FakeMarket
from tests.test_exchange_ledger import act

SYMBOLS = (("BTCUSDT", "60000"), ("ETHUSDT", "3000"))


def reopened(directory: Path, market: FakeMarket, *, accounts: tuple[Account, ...] | None = None) -> Core:
    """A fresh core from what the directory holds."""
    kept = Books(str(directory)).load()
    assert kept is not None
    core = Core(ExchangeOptions(accounts=accounts or (Account("k", "s", Decimal(20_000)),)), JumpingMarket(market), kept.now_ms)
    kept.restore(core)
    core.look_back()
    core.algo.resume()
    return core


def picture(core: Core) -> dict[str, Any]:
    """All that must survive."""
    state = core.state
    account = state.accounts[0]
    return core.books() | {
        "open": sorted(state.open_orders[0]), "open_algos": sorted(state.open_algos[0]),
        "settings": {k: (v.leverage, v.isolated) for k, v in account.settings.items()}, "hedge": account.hedge,
        "ids": dict(vars(state.ids)), "incomes": [(r.id, r.type, r.amount) for r in state.incomes[0]], "jumps": list(core.market.jumps),
        "queues": {o.id: o.queue_steps for o in state.open_orders[0].values()},
    }  # fmt: skip


def kept_desk(directory: Path) -> tuple[Desk, Books]:
    desk = Desk(*SYMBOLS, balance="20000", seconds=120)
    books = Books(str(directory))
    assert books.load() is None
    books.begin(desk.core, {"seed": 1})
    desk.state.changes.clear()
    return desk, books


def test_a_log_cut_anywhere_gives_the_last_whole_step(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    rng, pictures = seeded(11), [picture(desk.core)]
    for _ in range(400):
        with suppress(ApiError):
            act(desk, rng)
        if desk.state.changes:
            books.write(desk.state.changes)
            desk.state.changes.clear()
            pictures.append(picture(desk.core))
    log = next(tmp_path.glob("log-*.jsonl"))
    whole = log.read_bytes()
    assert len(whole.splitlines()) == len(pictures) - 1 > 100
    for cut in [0, 1, len(whole) - 1, len(whole), *(rng.randrange(len(whole)) for _ in range(40))]:
        log.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        assert picture(reopened(tmp_path, desk.market)) == pictures[lines], f"cut at {cut}"


def test_rubbish_at_the_end_of_the_log_is_left_out(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    desk.order("BUY", "MARKET", "0.1")
    books.write(desk.state.changes)
    wanted = picture(desk.core)
    log = next(tmp_path.glob("log-*.jsonl"))
    for rubbish in (b"\0" * 300, b'{"t":1}\n', b"[]\n", b"\xff\xfe\n"):
        whole = log.read_bytes()
        log.write_bytes(whole + rubbish)
        assert picture(reopened(tmp_path, desk.market)) == wanted
        log.write_bytes(whole)


def test_damage_with_whole_lines_behind_it_stops_the_exchange_and_destroys_nothing(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    for _ in range(3):
        desk.order("BUY", "MARKET", "0.1")
        books.write(desk.state.changes)
        desk.state.changes.clear()
    log = next(tmp_path.glob("log-*.jsonl"))
    first, second, third = log.read_bytes().splitlines(keepends=True)
    for damaged in (b"{" + second, b"\0" * 300 + b"\n", second[:40] + b"\xff" + second[41:]):
        log.write_bytes(first + damaged + third)
        with pytest.raises(Fatal, match=f"damaged {len(first)} bytes"):
            Books(str(tmp_path)).load()


def test_a_log_that_is_missing_stops_the_exchange(tmp_path: Path) -> None:
    kept_desk(tmp_path)
    next(tmp_path.glob("log-*.jsonl")).unlink()
    with pytest.raises(Fatal, match="is missing"):
        Books(str(tmp_path)).load()


def test_what_a_full_disk_cuts_short_is_taken_back_and_nothing_follows_it(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: it too takes a part of a line, and refuses the rest."""
    desk, books = kept_desk(tmp_path)
    desk.order("BUY", "MARKET", "0.1")
    books.write(desk.state.changes)
    wanted = picture(desk.core)
    desk.state.changes.clear()
    log = next(tmp_path.glob("log-*.jsonl"))
    whole = log.stat().st_size
    desk.order("BUY", "MARKET", "0.1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 100, limits[1]))
    try:
        with pytest.raises(Fatal, match="cannot be written"):
            books.write(desk.state.changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.stat().st_size == whole
    with pytest.raises(Fatal, match="failed before"):
        books.write(desk.state.changes)
    books.close()
    assert picture(reopened(tmp_path, desk.market)) == wanted


def test_a_directory_has_one_exchange(tmp_path: Path) -> None:
    first, second = Books(str(tmp_path)), Books(str(tmp_path))
    first.lock()
    with pytest.raises(Fatal, match="another exchange"):
        second.lock()
    second.close()
    first.close()
    second.lock()
    second.close()


def test_a_countdown_goes_on_after_a_restart(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    order = desk.limit("BUY", "0.1", "50000")
    desk.core.settlement.countdown(0, 0, 1500)
    desk.core.settlement.countdown(0, 1, 1500)
    books.write(desk.state.changes)
    desk.state.changes.clear()
    desk.core.settlement.countdown(0, 1, 0)
    books.write(desk.state.changes)
    core = reopened(tmp_path, desk.market)
    assert core.state.countdowns == {(0, 0): T0 + 1500}
    core.advance(T0 + 1499)
    assert core.state.orders[order.id].open
    core.advance(T0 + 1501)
    assert core.state.orders[order.id].status == "CANCELED"


def test_a_new_generation_holds_the_same_and_the_old_log_is_gone(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    set_leverage(desk.state, desk.account, 0, 7)
    set_margin_type(desk.state, desk.account, 1, True)
    desk.order("BUY", "MARKET", "0.1")
    desk.limit("SELL", "0.05", "61000", reduceOnly=True)
    desk.stop("SELL", "59000", timeInForce="GTE_GTC")
    desk.core.jump(0, 25)
    books.write(desk.state.changes)
    books.close()
    wanted = picture(desk.core)
    core = reopened(tmp_path, desk.market)
    again = Books(str(tmp_path))
    assert again.load() is not None
    (tmp_path / "log-0.jsonl").write_text("left behind by a kill")
    again.begin(core, {})
    again.close()
    assert [p.name for p in tmp_path.glob("log-*")] == ["log-2.jsonl"]
    assert picture(reopened(tmp_path, desk.market)) == wanted


def test_what_was_triggering_goes_on_and_new_ids_do_not_repeat(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", timeInForce="GTE_GTC")
    desk.trade("58900", after_ms=1)
    assert stop.status is AlgoStatus.TRIGGERING
    books.write(desk.state.changes)
    core = reopened(tmp_path, desk.market)
    core.advance(core.now_ms + 20)
    assert core.state.algos[stop.id].status is AlgoStatus.FINISHED
    assert core.state.accounts[0].live_positions() == []
    fresh = [f.id for f in core.state.fills[0]]
    assert len(fresh) == len(set(fresh)) == 2


def test_the_market_may_have_moved_while_the_exchange_was_down(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    desk.order("BUY", "MARKET", "0.1")
    order = desk.limit("SELL", "0.1", "60500", reduceOnly=True)
    books.write(desk.state.changes)
    other = FakeMarket(("BTCUSDT", "61000"), ("ETHUSDT", "3000"))
    core = reopened(tmp_path, other)
    core.advance(core.now_ms + 2000)
    assert core.state.orders[order.id].status == "FILLED"
    assert core.state.fills[0][-1].price == Decimal(60500)


def test_symbols_may_change_places_but_held_ones_may_not_go(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    desk.order("BUY", "MARKET", "1", symbol="ETHUSDT")
    books.write(desk.state.changes)
    core = reopened(tmp_path, FakeMarket(("SOLUSDT", "150"), ("ETHUSDT", "3000"), ("BTCUSDT", "60000")))
    assert core.books()["k"]["positions"].keys() == {"ETHUSDT:BOTH"}
    assert core.state.fills[0][0].symbol == 1
    with pytest.raises(Fatal, match="ETHUSDT"):
        reopened(tmp_path, FakeMarket(("BTCUSDT", "60000")))


def test_an_account_may_join_and_another_s_books_are_refused(tmp_path: Path) -> None:
    desk, _books = kept_desk(tmp_path)
    both = (Account("k", "s", Decimal(20_000)), Account("k2", "s2", Decimal(5)))
    core = reopened(tmp_path, desk.market, accounts=both)
    assert [a.wallet.balance for a in core.state.accounts] == [20_000, 5]
    with pytest.raises(Fatal, match="other accounts"):
        reopened(tmp_path, desk.market, accounts=(replace(both[0], key="else"),))


def test_an_unreadable_snapshot_stops_the_exchange(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text('{"version":1')
    with pytest.raises(Fatal):
        Books(str(tmp_path)).load()
    (tmp_path / SNAPSHOT).write_text("")
    with pytest.raises(Fatal):
        Books(str(tmp_path)).load()


def test_a_place_where_nothing_can_be_written_stops_the_exchange() -> None:
    with pytest.raises(Fatal):
        Books("/proc/no/such/place")


def test_beats_keep_the_time(tmp_path: Path) -> None:
    desk, books = kept_desk(tmp_path)
    desk.run(5000)
    books.beat()
    kept = Books(str(tmp_path)).load()
    assert kept is not None and (kept.now_ms, kept.clean) == (T0 + 5000, False)
    books.close()
    kept = Books(str(tmp_path)).load()
    assert kept is not None and kept.clean


def test_time_does_not_go_back_when_a_fast_exchange_was_killed_and_the_next_is_slow(tmp_path: Path) -> None:
    """What it has shown since its last beat, it showed at its own speed."""
    desk = Desk(*SYMBOLS, balance="20000", speed=60.0)
    books = Books(str(tmp_path))
    books.begin(desk.core, {})
    kept = Books(str(tmp_path)).load()
    assert kept is not None and not kept.clean
    venue = build(ExchangeOptions(market="replay", accounts=desk.core.options.accounts), desk.market, None, kept)
    assert venue.clock.t0_ms >= T0 + UNSAVED_S * 1000 * 60


def test_ids_start_where_the_venue_s_would() -> None:
    assert Ids().next("order") > 2**53, "order ids do not fit a float"
