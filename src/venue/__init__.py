"""Binance's USDⓈ-M protocol, state of November 2026: message types, signing, REST, WebSocket API, user stream, limits and error map.

Everything that is particular to the venue ends in this room: what leaves it are the words of ``src.models`` and errors sorted by reaction.
"""
