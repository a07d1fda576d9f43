"""cryptofeed as its documents show it: a FeedHandler with trades and tickers of Binance's futures, and a callback each. It takes only TLS.

https://github.com/bmoscon/cryptofeed#basic-usage
"""

from counted import PORT, SYMBOLS, Counted
from cryptofeed import FeedHandler
from cryptofeed.connection import RestEndpoint, Routes, WebsocketEndpoint
from cryptofeed.defines import TICKER, TRADES
from cryptofeed.exchanges import BinanceFutures

counted = Counted()


class Venue(BinanceFutures):
    websocket_endpoints = (WebsocketEndpoint(f"wss://127.0.0.1:{PORT}", options={"compression": None}),)
    rest_endpoints = (RestEndpoint(f"https://127.0.0.1:{PORT}", routes=Routes("/fapi/v1/exchangeInfo")),)


async def seen(event: object, receipt: float) -> None:
    if counted():
        counted.over()


handler = FeedHandler()
names = [f"{name[:4]}-USDT-PERP" for name in SYMBOLS]
handler.add_feed(Venue(symbols=names, channels=[TRADES, TICKER], callbacks={TRADES: seen, TICKER: seen}))
handler.run()
