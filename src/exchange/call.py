"""One request, whichever door it came through: REST and WS API share the operations that answer it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from src.exchange.errors import ApiError
from src.exchange.ledger import AccountState
from src.exchange.limits import Pool
from src.exchange.params import Params
from src.exchange.venue import Venue


class Security(Enum):
    """What a request must bring: nothing, a key, or a key and a signature."""

    NONE = 0
    KEY = 1
    SIGNED = 2


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has passed its security check. ``sent_ms`` and ``window_ms``: its timestamp and recvWindow, 0 if unsigned.

    ``lag_ms``: how old what it reads is, by a fault.
    """

    venue: Venue
    params: Params
    account_index: int = -1
    sent_ms: int = 0
    window_ms: int = 0
    lag_ms: int = 0

    @property
    def account(self) -> AccountState:
        assert self.account_index >= 0, "only a request with a key has an account"
        return self.venue.state.accounts[self.account_index]

    @property
    def read_ms(self) -> int:
        """The moment as of which it reads orders."""
        return self.venue.state.now_ms - self.lag_ms

    def check_engine_window(self) -> None:
        """-5028 when the request is too old by the time it reaches the book."""
        if self.sent_ms and self.venue.state.now_ms - self.sent_ms > self.window_ms * self.venue.clock.speed:
            raise ApiError(-5028)


Operation = Callable[[Call], "Any | Awaitable[Any]"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operation with its price. ``weight`` may depend on parameters. ``orders``: what it adds to the 10 s and 1 min order counts.

    ``pool``: it has no weight, and is counted there. ``history``: offered only where the exchange makes or plays the market itself.
    """

    operation: Operation
    security: Security = Security.NONE
    weight: int | Callable[[Params], int] = 1
    orders: tuple[int, int] | None = None
    pool: Pool | None = None
    history: bool = False

    def cost(self, params: Params) -> int:
        """Parameters that say nothing sensible cost 1: the operation will refuse them."""
        if isinstance(self.weight, int):
            return self.weight
        try:
            return self.weight(params)
        except ApiError:
            return 1
