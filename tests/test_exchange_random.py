"""Whatever accounts do, in any order and however often: the books balance to the last digit, and nobody is in debt unseen."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from src.clock import seeded
from tests.crowd import OPERATIONS, PRICES, Crowd
from tests.test_exchange_command import a_client, start
from tests.test_exchange_wire import Client, Socket


def run(seed: int, operations: int) -> Crowd:
    crowd = Crowd(seed)
    for n in range(1, operations + 1):
        crowd.at_random()
        if n % 2000 == 0:
            crowd.oracle.check_indexes()
            crowd.forget()
    crowd.oracle.check_indexes()
    return crowd


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_crowd_leaves_every_ledger_in_balance(seed: int) -> None:
    crowd = run(seed, 3000)
    assert crowd.done.keys() == set(OPERATIONS) or crowd.done["jump"] == 0
    assert sum(crowd.refused.values()) < 0.6 * sum(crowd.done.values())
    assert crowd.oracle.fills > 400


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_two_hundred_thousand_operations_leave_every_ledger_in_balance(seed: int) -> None:
    """Fifty thousand each; figures of a longer run stand in docs/evidence.md."""
    oracle = run(seed, 50_000).oracle
    assert oracle.fills > 10_000 and oracle.funded > 0 and oracle.seized > 50


class AnyOrder(RuleBasedStateMachine):
    """The same operations, chosen and shrunk by hypothesis."""

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.crowd = Crowd(seed, accounts=2)

    @rule(name=st.sampled_from(sorted(OPERATIONS)), account=st.integers(0, 1), symbol=st.integers(0, len(PRICES) - 1),
          rng=st.randoms(use_true_random=False))  # fmt: skip
    def act(self, name: str, account: int, symbol: int, rng: Any) -> None:
        self.crowd.rng = rng
        self.crowd.attempt(name, lambda: getattr(self.crowd, name)(account, symbol))

    @rule(seconds=st.sampled_from([1, 30]))
    def wait(self, seconds: int) -> None:
        self.crowd.run(1000 * seconds)

    @invariant()
    def nothing_is_out_of_place(self) -> None:
        if hasattr(self, "crowd"):
            self.crowd.oracle.check_indexes()
            for account in range(2):
                self.crowd.oracle.compare(account)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


# ---- and again after kill -9 of a real process

USERS = (("key", "secret"), ("key2", "secret2"))


def balanced(book: dict[str, Any]) -> None:
    """One account's ledger, as the control door shows it, against nothing but its fills."""
    number = {name: Decimal(book[name]) for name in ("wallet", "deposits", "realised", "commission", "funding", "insurance")}
    assert number["wallet"] == number["deposits"] + number["realised"] - number["commission"] + number["funding"] + number["insurance"]
    fills = book["fills"]
    assert len({f["id"] for f in fills}) == len(fills)
    assert number["realised"] == sum((Decimal(f["realised"]) for f in fills), Decimal(0))
    assert number["commission"] == sum((Decimal(f["commission"]) for f in fills), Decimal(0))
    held, cash = Counter[str](), Counter[str]()
    for fill in fills:
        place, sign = f"{fill['symbol']}:{fill['position_side']}", 1 if fill["side"] == "BUY" else -1
        held[place] += sign * Decimal(fill["qty"])  # type: ignore[assignment]
        cash[place] -= sign * Decimal(fill["qty"]) * Decimal(fill["price"]) + Decimal(fill["realised"])  # type: ignore[assignment]
    positions = {place: (Decimal(p["qty"]), Decimal(p["cost"])) for place, p in book["positions"].items()}
    assert positions == {place: (qty, -cash[place] if qty > 0 else cash[place]) for place, qty in held.items() if qty}


def request(rng: Any) -> tuple[str, str, dict[str, Any]]:
    """Something that an account asks for."""
    symbol, side = rng.choice((("BTCUSDT", "BUY"), ("BTCUSDT", "SELL"), ("ETHUSDT", "BUY"), ("ETHUSDT", "SELL")))
    qty = f"{rng.randrange(5, 60) / 1000 * (1 if symbol == 'BTCUSDT' else 20):.3f}"
    order = {"symbol": symbol, "side": side, "quantity": qty, "newClientOrderId": f"c{rng.randrange(10**12)}"}
    return rng.choice((
        ("POST", "v1/order", order | {"type": "MARKET", "newOrderRespType": "RESULT"}),
        ("POST", "v1/order", order | {"type": "MARKET"}),
        ("POST", "v1/order", order | {"type": "LIMIT", "timeInForce": "GTC", "priceMatch": rng.choice(("QUEUE", "OPPONENT"))}),
        ("DELETE", "v1/allOpenOrders", {"symbol": symbol}),
        ("POST", "v1/leverage", {"symbol": symbol, "leverage": rng.randrange(5, 60)}),
        ("POST", "v1/algoOrder", {"algoType": "CONDITIONAL", "symbol": symbol, "side": side, "type": "TRAILING_STOP_MARKET", "callbackRate": "0.1",
                                  "quantity": qty}),
    ))  # fmt: skip


class Witness:
    """What the clients were told before the process died."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.fills: dict[int, tuple[str, str]] = {}

    async def trade(self, client: Client, rng: Any) -> None:
        """Until the connection breaks."""
        while True:
            method, path, params = request(rng)
            status, body = await client.signed(method, path, **params)
            assert status < 500, body
            if status == 200 and path == "v1/order":
                self.accepted.add(body["clientOrderId"])

    async def listen(self, socket: Socket) -> None:
        while (message := await socket.socket.receive()).type is aiohttp.WSMsgType.TEXT:
            event = message.json()
            if event["e"] == "ORDER_TRADE_UPDATE" and event["o"]["x"] == "TRADE":
                self.fills[event["o"]["t"]] = event["o"]["L"], event["o"]["l"]


async def until_killed(process: asyncio.subprocess.Process, urls: dict[str, str], witness: list[Witness], rng: Any) -> None:
    async with aiohttp.ClientSession() as session:
        tasks = []
        for (key, secret), one in zip(USERS, witness, strict=True):
            client = await a_client(session, urls)
            client.key, client.secret = key, secret
            tasks.append(asyncio.ensure_future(one.listen(await client.user_stream())))
            tasks += [asyncio.ensure_future(one.trade(client, seeded(rng.randrange(2**32)))) for _ in range(3)]
        await asyncio.wait(tasks, timeout=rng.uniform(0.2, 1.5), return_when=asyncio.FIRST_EXCEPTION)
        broken = [t.exception() for t in tasks if t.done()]
        process.kill()
        await process.wait()
        assert broken == []
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, aiohttp.ClientError | ConnectionError), ended


@pytest.mark.slow
async def test_books_balance_after_kill_9_at_any_instant(tmp_path: Path) -> None:
    rng, witness = seeded(9), [Witness(), Witness()]
    argv = ("--books", str(tmp_path), "--speed", "10", "--latency-ms", "5", "--account", f"{USERS[1][0]}:{USERS[1][1]}:5000",
            *(word for name in ("orders_per_10s", "orders_per_minute", "weight_per_minute") for word in ("--limit", f"{name}=1000000")))  # fmt: skip
    for turn in range(8):
        process, urls = await start(*argv)
        try:
            async with aiohttp.ClientSession() as session:
                books = (await (await a_client(session, urls)).raw("GET", "/control/books"))[1]
            for (key, _), told in zip(USERS, witness, strict=True):
                balanced(books[key])
                assert told.accepted <= {o["client_id"] for o in books[key]["orders"]}, f"a {turn}. restart has lost an order that was acknowledged"
                kept = {f["id"]: (Decimal(f["price"]), Decimal(f["qty"])) for f in books[key]["fills"]}
                for trade, (price, qty) in told.fills.items():
                    assert kept[trade] == (Decimal(price), Decimal(qty)), f"a {turn}. restart has lost a fill that was told"
            await until_killed(process, urls, witness, rng)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    assert sum(len(w.fills) for w in witness) > 200 and sum(len(w.accepted) for w in witness) > 100
