"""ccxt.pro as its documents show it: watchTradesForSymbols and watchBidsAsks in loops. A frame counts when ccxt's own handler is done with it.

https://docs.ccxt.com/#/ccxt.pro.manual
"""

import asyncio

import ccxt.pro
from counted import PORT, SYMBOLS, WS, Counted

counted = Counted()
NAMES = [f"{name[:4]}/USDT:USDT" for name in SYMBOLS]


class Venue(ccxt.pro.binanceusdm):
    def handle_message(self, client: object, message: dict) -> None:
        super().handle_message(client, message)
        if "e" in message and counted():
            counted.over()


async def forever(watch: object, names: list[str], **parameters: object) -> None:
    while True:
        await watch(names, **parameters)  # type: ignore[operator]


async def main() -> None:
    venue = Venue()
    venue.options["fetchMarkets"] = {"types": ["linear"]}
    venue.urls["api"]["fapiPublic"] = f"http://127.0.0.1:{PORT}/fapi/v1"
    venue.urls["api"]["ws"]["linear"] = f"{WS}/ws"
    parts = [NAMES[:150], NAMES[150:]]
    trades = [forever(venue.watch_trades_for_symbols, part, params={"name": "aggTrade"}) for part in parts]
    await venue.load_markets()
    await asyncio.gather(*trades, *(forever(venue.watch_bids_asks, part) for part in parts))


asyncio.run(main())
