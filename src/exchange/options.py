"""What the local exchange is started with: one frozen value, and the switches for what nobody outside the venue knows for certain.

Every switch defaults to the ruder behaviour, so that a client which survives here survives there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from src.exchange.faults import Rule


@dataclass(frozen=True, slots=True)
class Account:
    """One user. ``secret`` is an HMAC secret, or ``ed25519=`` followed by a public key (PEM, or its base64 body)."""

    key: str
    secret: str
    balance: Decimal


LATENCY_MS_MAX = 60_000
DEFAULT_ACCOUNT = Account("k" * 64, "s" * 64, Decimal(10_000))


@dataclass(frozen=True, slots=True)
class Switches:
    """Open questions of the protocol, decided here and nowhere else."""

    key_in_path_delivers: bool = False  # /private/ws/<listenKey> is silent
    events_required: bool = True  # /private/ws?listenKey=K without events= is silent; else it delivers all
    close_position_needs_position: bool = True  # a closePosition order is refused while flat
    gtc_close_position_survives: bool = True  # a plain GTC closePosition order outlives the position
    client_id_unique_per_account: bool = True  # else per symbol
    order_test_body: bool = False  # order/test answers {} rather than an order
    bracket_as_array: bool = True  # leverageBracket?symbol= answers an array
    triggered_before_new: bool = False  # the spawned order's event comes before ALGO_UPDATE TRIGGERED
    unrouted_delivers_all: bool = False  # sockets without a route deliver public streams alone; the demo venue delivers all, user events too
    mixed_routes_deliver: bool = False  # a stream of another route is acknowledged and silent
    stp_default_everywhere: bool = True  # EXPIRE_MAKER unless said otherwise; else NONE for batches, the WS API and conditional orders
    decoded_signature_accepted: bool = False  # only over the bytes as they came, not over what they decode to
    retry_after: bool = False  # 429 and 418 carry no Retry-After; a ban's end stands in its text
    order_windows_slide: bool = True  # orders of the last 10 s and minute count; else of the window on the clock
    ws_api_weight_shared: bool = True  # the WS API uses up the weight of REST
    open_order_margin_rounds_up: bool = True  # margin of open orders to the next 1e-8 above; else cut off there
    order_limit_status: int = 429  # the HTTP status of -1015
    timeout_status: int = 408  # the HTTP status of -1007


@dataclass(frozen=True, slots=True)
class Limits:
    """The venue's limits. Spans are wall time: a network is protected in real seconds at any speed of the market."""

    weight_per_minute: int = 2400
    funding_requests_per_5min: int = 500  # fundingRate and fundingInfo, which have no weight
    statistics_requests_per_5min: int = 1000  # /futures/data, the same
    orders_per_10s: int = 300
    orders_per_minute: int = 1200
    open_orders_per_symbol: int = 200
    open_algo_orders: int = 200
    streams_per_connection: int = 1024
    messages_per_second: int = 10  # a stream connection's
    pings_per_second: int = 5  # a WS API connection's, pongs too
    connections: int = 2000
    send_buffer_bytes: int = 8 << 20
    ping_every_s: float = 180.0
    pong_within_s: float = 600.0
    connection_life_s: float = 86_400.0
    listen_key_life_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class VenueUrls:
    """Where a real venue's public data are: REST, and the stream bases of the two routes (without ``/ws``)."""

    rest: str
    market: str
    public: str


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """Everything ``serve`` needs. ``port`` 0 takes a free one. ``symbols`` empty leaves the choice to the market source.

    ``edge``: planted into the synthetic market. ``start``: where live trading begins in a recording, in its own UTC time. ``venue``: for
    market ``binance``, whose speed is 1. ``faults``: what goes wrong from the start on; ``chaos`` seeds a sequence of more.
    """

    host: str = "127.0.0.1"
    port: int = 0
    market: str = "synthetic"
    symbols: tuple[str, ...] = ()
    seed: int = 1
    edge: float = 0.0
    path: str | None = None
    start: str = ""
    venue: VenueUrls | None = None
    speed: float = 1.0
    latency_ms: int = 20
    accounts: tuple[Account, ...] = (DEFAULT_ACCOUNT,)
    books_dir: str | None = None
    control: bool = False
    faults: tuple[Rule, ...] = ()
    chaos: int | None = None
    trigger_latency_ms: int = 10
    maker_fee: Decimal = Decimal("0.0002")
    taker_fee: Decimal = Decimal("0.0005")
    leverage_default: int = 20
    switches: Switches = field(default_factory=Switches)
    limits: Limits = field(default_factory=Limits)
