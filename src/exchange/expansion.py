"""Candles into trades and trades into candles, in whole ticks and steps."""

from __future__ import annotations

import numpy as np

TRADE_DTYPE = np.dtype([
    ("time_ms", "i8"), ("symbol", "u2"), ("price", "i8"), ("qty", "i8"), ("buyer_is_maker", "u1"), ("agg_id", "i8"), ("first_id", "i8"),
    ("last_id", "i8"), ("bid", "i8"), ("ask", "i8"), ("bid_qty", "i8"), ("ask_qty", "i8"),
], align=True)

KLINE_DTYPE = np.dtype([
    ("open_ms", "i8"), ("open", "i8"), ("high", "i8"), ("low", "i8"), ("close", "i8"), ("volume", "i8"), ("taker_volume", "i8"),
    ("trades", "i8"), ("quote_volume", "f8"), ("taker_quote_volume", "f8"),
])
