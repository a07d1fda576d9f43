"""aiohttp as its documents show it, frames not looked at: https://docs.aiohttp.org/en/stable/client_quickstart.html#websockets"""

import asyncio

import aiohttp
import uvloop
from counted import QUOTES, REST, TRADES, WS, Counted


async def main() -> None:
    counted = Counted()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{WS}/stream?streams={'/'.join(TRADES + QUOTES)}") as socket:
        async for _message in socket:
            if counted():
                counted.over()


(uvloop.run if REST == ["uvloop"] else asyncio.run)(main())
