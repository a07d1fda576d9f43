"""python-binance as its documents show it: a multiplex socket for trades and one for quotes, received in a loop each.

https://python-binance.readthedocs.io/en/latest/websockets.html
"""

import asyncio

from binance import AsyncClient, BinanceSocketManager
from counted import QUOTES, TRADES, WS, Counted


class Manager(BinanceSocketManager):
    FSTREAM_URL = f"{WS}/"


async def listen(socket: object, counted: Counted) -> None:
    async with socket as stream:  # type: ignore[attr-defined]
        while True:
            message = await stream.recv()
            assert "data" in message, message
            if counted():
                counted.over()


async def main() -> None:
    manager, counted = Manager(AsyncClient()), Counted()
    sockets = manager.futures_multiplex_socket(TRADES), manager.futures_multiplex_socket(QUOTES, category="public")
    await asyncio.gather(*(listen(socket, counted) for socket in sockets))


asyncio.run(main())
