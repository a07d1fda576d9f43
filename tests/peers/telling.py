"""What the peers' scripts share. They run inside a peer's virtual environment: the standard library alone.

A script trades on a running exchange and tells what its client made of it: one JSON object a line, ``{"step": …, …}``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

DEADLINE_S = 20.0
SYMBOL = "BTCUSDT"


def given() -> dict[str, str]:
    """The exchange's addresses, and the account: ``rest``, ``public``, …, ``base`` (of the streams), ``key``, ``secret``."""
    found: dict[str, str] = json.loads(sys.argv[1])
    return found | {"base": found["public"].removesuffix("/public")}


def tell(step: str, **seen: Any) -> None:
    sys.stdout.write(json.dumps({"step": step, **seen}, default=str) + "\n")
    sys.stdout.flush()


def below(price: float, percent: float) -> float:
    """A price on BTCUSDT's tick so much below."""
    return round(price * (1 - percent / 100), 1)


def jump(exchange: dict[str, str], price: float) -> None:
    """The market leaps there: what the control door is for."""
    body = json.dumps({"symbol": SYMBOL, "price": f"{price:.1f}"}).encode()
    with urllib.request.urlopen(urllib.request.Request(exchange["rest"] + "/control/price", data=body, method="POST"), timeout=DEADLINE_S):
        return


class Heard:
    """Events as they come in, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._news = asyncio.Event()

    def add(self, event: Any) -> None:
        self.events.append(event)
        self._news.set()

    async def first(self, wanted: Callable[[Any], bool], within_s: float = DEADLINE_S) -> Any:
        """The first event, past or to come, that is wanted."""
        seen = 0
        async with asyncio.timeout(within_s):
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                self._news.clear()
                await self._news.wait()
