"""Of what the account holds the newest word counts, by whichever way it came."""

from __future__ import annotations

from decimal import Decimal as D

from src.account_view import AccountView
from src.models import Account, AccountUpdate, PositionUpdate


def held(symbol: str, amount: int, *, unrealised: int = 0, isolated: bool = True) -> PositionUpdate:
    return PositionUpdate(symbol, D(amount), D(100), D(unrealised), isolated, "BOTH", 0)


def told(*positions: PositionUpdate, wallet: int | None = None) -> AccountUpdate:
    return AccountUpdate("ORDER", None if wallet is None else D(wallet), D(0), positions, 7)


def test_an_answer_does_not_undo_what_was_told_while_it_was_on_its_way() -> None:
    view = AccountView()
    view.read(Account(D(1000), D(0), (held("BTCUSDT", 1), held("ETHUSDT", 2)), 5), 10, 0)
    view.tell(told(held("BTCUSDT", 0), wallet=1010), 20)
    view.read(Account(D(1000), D(0), (held("BTCUSDT", 1), held("SOLUSDT", 3)), 5), 15, 0)
    assert view.account.wallet == 1010 and {p.symbol for p in view.account.positions} == {"SOLUSDT"}
    assert {p.symbol for p in view.read_positions((held("BTCUSDT", 1),), 15)} == set()


def test_an_answer_to_a_later_question_counts() -> None:
    view = AccountView()
    view.tell(told(held("BTCUSDT", 1), wallet=990), 20)
    view.read(Account(D(1000), D(0), (), 5), 21, 0)
    assert (view.account.wallet, view.account.positions) == (D(1000), ())


def test_open_profit_is_no_margin_and_an_open_loss_takes_some_only_in_cross_margin() -> None:
    view = AccountView()
    positions = (held("BTCUSDT", 1, unrealised=50), held("ETHUSDT", 1, unrealised=-30), held("SOLUSDT", 1, unrealised=-20, isolated=False))
    view.read(Account(D(1000), D(0), positions, 5), 1, 0)
    assert view.free() == 980 and view.notional_of(["ETHUSDT", "XRPUSDT"]) == 100
