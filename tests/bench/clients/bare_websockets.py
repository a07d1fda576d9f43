"""websockets as its documents show it, frames not looked at: https://websockets.readthedocs.io/en/stable/howto/quickstart.html"""

import asyncio

import uvloop
from counted import QUOTES, REST, TRADES, WS, Counted
from websockets.asyncio.client import connect


async def main() -> None:
    counted = Counted()
    async with connect(f"{WS}/stream?streams={'/'.join(TRADES + QUOTES)}") as socket:
        async for _message in socket:
            if counted():
                counted.over()


(uvloop.run if REST == ["uvloop"] else asyncio.run)(main())
