"""Market-stream payloads as typed structs, named by the venue's own letters, and one decoder for each route.

Promises:

* prices and quantities stay the venue's text: who reads them chooses float (market) or Decimal (money);
* unknown fields are skipped, so a field that the venue adds breaks nothing;
* a frame that is not one of these raises ``msgspec.DecodeError`` (``ValidationError`` for a wrong type is one of it): count it, go on;
* control answers (``{"result":null,"id":1}``, ``{"code":2,"msg":"…"}``) decode to a frame whose ``data`` is None.

All times are venue milliseconds since 1970. Letters, once: ``s`` symbol, ``E`` event time, ``T`` trade or transaction time, ``p`` price,
``q`` quantity, ``m`` buyer is maker.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

Buffer = bytes | bytearray | memoryview | str


class AggTrade(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="aggTrade"):
    """Trades of one taker order at one price. ``a`` rises by one per symbol; ``f``, ``l``: first and last trade id; ``nq``: ``q`` without
    retail-price-improvement fills (None before it was introduced)."""

    s: str
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741  (the venue's letter)
    T: int
    m: bool
    E: int = 0
    nq: str | None = None


class BookTicker(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="bookTicker"):
    """Best bid ``b`` with quantity ``B``, best ask ``a`` with quantity ``A``; ``u``: order-book update id."""

    s: str
    b: str
    B: str
    a: str
    A: str
    T: int
    E: int = 0
    u: int = 0


class MarkPrice(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="markPriceUpdate"):
    """Mark price ``p``, index price ``i``, funding rate ``r`` (empty for delivery contracts) due at ``T`` (0 for delivery contracts)."""

    s: str
    p: str
    E: int
    i: str = "0"
    r: str = ""
    T: int = 0


class KlineBody(msgspec.Struct, frozen=True, gc=False):
    """One candle: ``t`` opening, ``T`` last millisecond, ``i`` interval, ``x`` closed, ``v`` base and ``q`` quote volume, ``n`` trades,
    ``V``, ``Q``: the takers' bought part of base and quote volume. ``f``, ``L``: first and last trade id, −1 without a trade."""

    t: int
    T: int
    i: str
    o: str
    c: str
    h: str
    l: str  # noqa: E741  (the venue's letter)
    v: str
    n: int
    x: bool
    q: str
    V: str
    Q: str
    f: int = -1
    L: int = -1


class Kline(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="kline"):
    s: str
    k: KlineBody
    E: int


class ContinuousKline(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="continuous_kline"):
    """``ps``: the pair; ``ct``: the contract type. The only stream with an interval below one minute."""

    ps: str
    ct: str
    k: KlineBody
    E: int


class ContractInfo(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="contractInfo"):
    """A symbol was listed, changed its status ``cs`` or got a delivery time ``dt``."""

    s: str
    cs: str
    E: int
    ct: str = ""
    dt: int = 0
    ot: int = 0


MarketEvent = AggTrade | MarkPrice | Kline | ContinuousKline | ContractInfo
PublicEvent = BookTicker


class MarketFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame of ``/market/stream``: ``data`` is one event, a list for ``!markPrice@arr``, or None for a control answer."""

    data: MarketEvent | list[MarkPrice] | None = None
    id: int | None = None
    code: int | None = None
    msg: str = ""


class PublicFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame of ``/public/stream``: ``data`` is one event, or None for a control answer."""

    data: PublicEvent | None = None
    id: int | None = None
    code: int | None = None
    msg: str = ""


decode_market: Callable[[Buffer], MarketFrame] = msgspec.json.Decoder(MarketFrame).decode
"""Combined-stream frame of the ``/market`` route → ``MarketFrame``. Raises ``msgspec.DecodeError``."""
decode_public: Callable[[Buffer], PublicFrame] = msgspec.json.Decoder(PublicFrame).decode
"""Combined-stream frame of the ``/public`` route → ``PublicFrame``. Raises ``msgspec.DecodeError``."""
