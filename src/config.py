"""Settings: read once from the environment and ``.env``, checked all together, then frozen.

The fields of ``Settings`` are the one list of what can be set: a field's name in capitals is the variable, and its metadata carry the
default, the unit, the bounds and the sentence of ``.env.example``. Every wrong value is found in one go, and the error names the variable,
the value and what would be right. Secrets are never in ``repr``, and ``without_secrets`` is what processes get that need none.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from dotenv import dotenv_values

from src.clock import SPEED_MAX, parse_utc
from src.error_handler import Fatal

MODES = ("sim", "paper", "testnet", "live")
INTERVALS_MS = {
    "1s": 1_000, "5s": 5_000, "15s": 15_000, "30s": 30_000, "1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "30m": 1_800_000,
    "1h": 3_600_000, "2h": 7_200_000, "4h": 14_400_000, "6h": 21_600_000, "8h": 28_800_000, "12h": 43_200_000, "1d": 86_400_000,
}  # fmt: skip
EDGE_MAX = 0.2
"""The most that SIM_EDGE plants."""
SIM_KEY = "playmoney" * 7 + "x"
SIM_SECRET = "onloopback" * 6 + "only"
"""The local exchange's account unless another is named: 64 characters each, as the venue's are. They open nothing but play money."""
VENUE_DOMAINS = ("binance.com", "binancefuture.com")

Default = Any | Callable[[str], Any]


def _setting(default: Default, unit: str, doc: str, **checks: Any) -> Any:
    """A field of ``Settings``. ``default``: a value, or a function of the mode. Checks: low, high, above, choices, alias, empty."""
    secret = checks.pop("secret", False)
    return field(repr=not secret, metadata={"default": default, "unit": unit, "doc": doc, "secret": secret, **checks})


def _by_mode(otherwise: Any, **modes: Any) -> Callable[[str], Any]:
    return lambda mode: modes.get(mode, otherwise)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. ``Decimal`` where money is multiplied by it, ``int`` for whole units."""

    trading_mode: str = _setting("sim", "", "sim: local exchange. paper: real market, play money. testnet. live: money", choices=MODES)
    binance_api_key: str = _setting("", "", "the venue's API key; needed in testnet and live", secret=True, empty=True)
    binance_api_secret: str = _setting("", "", "the HMAC secret, or an Ed25519 private key in PEM", secret=True, empty=True)
    port: int = _setting(8080, "TCP port", "where /health, /health/live and /metrics answer; 0 picks a free one", low=0, high=65535)
    host: str = _setting("0.0.0.0", "address", "the address PORT is bound to")

    max_open_positions: int = _setting(3, "positions", "slots; in-flight orders count", low=1, high=3)
    risk_per_trade: Decimal = _setting(Decimal("0.02"), "share of equity", "most that one trade may lose at its stop", above=0, high=0.02)
    min_confidence: Decimal = _setting(Decimal("0.55"), "0 to 1", "a signal's confidence must be above this", low=0, high=1)
    cooldown_seconds: int = _setting(60, "s, market time", "a symbol waits after a failed order", low=0, high=86400, alias="COOLDOWN_DURATION")
    max_leverage_teacher: int = _setting(3, "×", "account-wide cap while the teacher decides", low=1, high=3)
    max_leverage_student: int = _setting(10, "×", "account-wide cap once a student is promoted", low=1, high=10)
    teacher_threshold: int = _setting(50, "closed trades", "the teacher decides at least until then", low=0, high=1_000_000)
    max_slippage_bps: Decimal = _setting(Decimal(5), "0.01 %", "how far from the signal's price an entry may fill", low=0, high=100)
    max_spread_bps: Decimal = _setting(Decimal(10), "0.01 %", "no entry while the spread is wider", above=0, high=1000)
    daily_loss_limit: Decimal = _setting(Decimal("0.06"), "share of equity", "loss since midnight UTC that stops opening", above=0, high=1)
    max_drawdown: Decimal = _setting(Decimal("0.20"), "share of equity", "fall from the peak that stops opening", above=0, high=1)
    naked_limit_ms: int = _setting(2000, "ms, wall time", "a position without a confirmed stop is flattened after this", low=100, high=60000)
    signal_age_ms: int = _setting(1500, "ms, wall time", "an older signal is not traded", low=10, high=60000)
    stale_ms: int = _setting(5000, "ms, wall time", "data older than this is stale: no entry, and /health says so", low=500, high=600000)
    protection_price: str = _setting("CONTRACT_PRICE", "", "price that triggers stops", choices=("CONTRACT_PRICE", "MARK_PRICE"))
    require_evidence: bool = _setting(_by_mode(False, live=True), "0 or 1", "opening needs a promoted student with positive expectation")
    on_shutdown: str = _setting("leave", "", "leave: stops stay on the exchange. flatten: close everything", choices=("leave", "flatten"))

    atr_period: int = _setting(14, "candles", "Wilder's average true range", low=2, high=200)
    rsi_period: int = _setting(14, "candles", "Wilder's relative strength index", low=2, high=200)
    candle_interval: str = _setting("1m", "interval", "the candles everything is built from", choices=tuple(INTERVALS_MS))
    setup_interval: str = _setting(_by_mode("4h", sim="15m"), "interval", "the candles setups are found on", choices=tuple(INTERVALS_MS))
    close_grace_ms: int = _setting(250, "ms, market time", "how long a candle waits for late prints", low=0, high=60000)
    symbols: tuple[str, ...] = _setting((), "names", "trade only these (comma-separated); empty: by volume", empty=True)
    exclude_symbols: tuple[str, ...] = _setting((), "names", "never these (comma-separated); patterns as in SYMBOLS", empty=True)
    tradfi: bool = _setting(False, "0 or 1", "TradFi perpetuals too; without it only those that SYMBOLS names")
    min_quote_volume: Decimal = _setting(Decimal(0), "USDT a day", "no symbol that trades less in 24 hours", low=0, high=10**12)
    min_age_days: int = _setting(0, "days", "no symbol that was listed later", low=0, high=10_000)
    universe_spread_bps: Decimal = _setting(Decimal(0), "0.01 %", "no symbol whose spread is wider when it is chosen; 0: any", low=0, high=10_000)
    universe_size: int = _setting(_by_mode(300, sim=30), "symbols", "how many of the most traded symbols", low=1, high=600)
    universe_seconds: int = _setting(900, "s, market time", "the venue is asked what it lists: symbols begin and end", low=10, high=86400)
    leave_lead_seconds: int = _setting(3600, "s, market time", "a position is closed so long before its contract ends", low=0, high=864000)

    reconcile_seconds: int = _setting(900, "s, market time", "the Orchestrator compares with the venue", low=1, high=86400)
    heartbeat_seconds: int = _setting(900, "s, market time", "the Orchestrator writes its block", low=1, high=86400)
    maintenance_seconds: int = _setting(21600, "s, market time", "prune, universe, disk, report", low=1, high=604800)
    hung_seconds: int = _setting(15, "s, wall time", "a process without a beat for this long is hung", low=2, high=600)
    log_level: str = _setting("WARNING", "", "life-cycle lines are always shown", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
    log_format: str = _setting("text", "", "text, or json: one object a line", choices=("text", "json"))
    ring_slots: int = _setting(16384, "slots of 128 B", "rounded up to a power of two", low=10000, high=1 << 20)

    proxy: str = _setting("", "URL", "HTTP proxy to the venue; empty: HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment", empty=True)
    ca_file: str = _setting("", "path", "certificates (PEM) that are trusted beside the system's", empty=True)
    rest_url: str = _setting("", "URL", "override: REST; in paper of market data only, orders stay local", empty=True)
    market_url: str = _setting("", "URL", "override: /market streams", empty=True)
    public_url: str = _setting("", "URL", "override: /public streams", empty=True)
    private_url: str = _setting("", "URL", "override: /private streams", empty=True)
    ws_api_url: str = _setting("", "URL", "override: WebSocket API", empty=True)
    state_dir: str = _setting("data/state", "folder", "journal, and the local exchange's books")
    data_dir: str = _setting("data", "folder", "market data and reports")
    models_dir: str = _setting("models", "folder", "trained models")

    record: bool = _setting(False, "0 or 1", "record the Feed's frames and ring slots to DATA_DIR/recordings")
    record_max_gb: Decimal = _setting(Decimal(10), "GB", "all recordings together; the oldest files go first", low=Decimal("0.01"), high=10_000)

    sim_market: str = _setting("synthetic", "", "the local exchange's market", choices=("synthetic", "replay"))
    sim_data: str = _setting("", "path", "replay: a Parquet file or folder of trades or candles", empty=True)
    sim_start: str = _setting("", "UTC", "replay: where live trading begins, such as 2025-05-05T14:30; what lies before is history", empty=True)
    sim_seed: int = _setting(1, "number", "the synthetic market's seed", low=0, high=2**63 - 1)
    sim_edge: float = _setting(0.0, "standard deviations", "drift of a minute along a hidden direction, planted into the synthetic market", low=0,
                               high=EDGE_MAX)  # fmt: skip
    sim_speed: float = _setting(_by_mode(1.0, sim=60.0), "market s per s", "how fast the local market runs", above=0, high=SPEED_MAX)
    sim_latency_ms: int = _setting(20, "ms, market time", "an order reaches the local book this much later", low=0, high=10000)
    sim_balance: Decimal = _setting(Decimal(10000), "USDT", "the local account's first deposit", above=0, high=10**12)
    exchange_url: str = _setting("", "URL", "a local exchange that already runs, instead of spawning one", empty=True)

    @property
    def candle_ms(self) -> int:
        return INTERVALS_MS[self.candle_interval]

    @property
    def setup_ms(self) -> int:
        return INTERVALS_MS[self.setup_interval]

    @property
    def local_exchange(self) -> bool:
        """Whether orders go to the local exchange (its protocol is the venue's)."""
        return self.trading_mode in ("sim", "paper")

    def without_secrets(self) -> Settings:
        return dataclasses.replace(self, binance_api_key="", binance_api_secret="")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A mode is a set of URLs. ``rest`` takes orders and knows the account; ``market``, ``public`` and ``private`` are the routed streams.

    ``data``: REST of the market that is traded: rules, history, trades. In paper it is the venue's, everywhere else it is ``rest``.
    """

    rest: str
    public: str
    market: str
    private: str
    ws_api: str
    data: str


_URLS = {
    "live": Endpoints("https://fapi.binance.com", "wss://fstream.binance.com/public", "wss://fstream.binance.com/market",
                      "wss://fstream.binance.com/private", "wss://ws-fapi.binance.com/ws-fapi/v1",
                      "https://fapi.binance.com"),
    "testnet": Endpoints("https://demo-fapi.binance.com", "wss://fstream.binancefuture.com/public", "wss://fstream.binancefuture.com/market",
                         "wss://fstream.binancefuture.com/private", "wss://testnet.binancefuture.com/ws-fapi/v1",
                         "https://demo-fapi.binance.com"),
}  # fmt: skip


def endpoints(settings: Settings, local: Endpoints | None = None) -> Endpoints:
    """The URLs of the mode, with the overrides applied. ``local``: what the local exchange reported, in sim and paper.

    In paper orders and account are the local exchange's (empty while there is none), everything public is the venue's.
    """
    s = settings
    if s.trading_mode == "paper":
        venue, orders = _URLS["live"], local or Endpoints("", "", "", "", "", "")
        urls = (orders.rest, s.public_url or venue.public, s.market_url or venue.market, orders.private, orders.ws_api, s.rest_url or venue.data)
    else:
        found = local or _URLS[s.trading_mode]
        urls = (s.rest_url or found.rest, s.public_url or found.public, s.market_url or found.market, s.private_url or found.private,
                s.ws_api_url or found.ws_api, s.rest_url or found.data)
    return Endpoints(*(url.rstrip("/") for url in urls))


def local_endpoints(url: str) -> Endpoints:
    """The URLs of a local exchange at ``http://host:port``: one port serves all."""
    rest = url.rstrip("/")
    ws = "ws" + rest.removeprefix("http")
    return Endpoints(rest, f"{ws}/public", f"{ws}/market", f"{ws}/private", f"{ws}/ws-fapi/v1", rest)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this URL: HTTPS_PROXY or HTTP_PROXY, unless NO_PROXY excludes the host. Hosts of this machine
    are spoken to directly."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return None
    found = getproxies_environment()
    return None if proxy_bypass(host, found) else found.get("https" if parts.scheme in ("https", "wss") else "http")


@cache
def _trusting(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def tls_for(url: str) -> ssl.SSLContext | None:
    """What is trusted for this URL where CA_FILE of the environment adds to the system's certificates; None: no more than these, or no TLS."""
    ca_file = os.environ.get("CA_FILE", "")
    return _trusting(ca_file) if ca_file and urlsplit(url).scheme in ("https", "wss") else None


def network_environment(settings: Settings) -> dict[str, str]:
    """The variables that tell PROXY and CA_FILE to this process, its children and its libraries; where they are empty, what is there stays."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), settings.proxy) if settings.proxy else {}
    return proxies | ({"CA_FILE": settings.ca_file} if settings.ca_file else {})


def load(environ: Mapping[str, str] | None = None, dotenv: str | Path | None = ".env") -> Settings:
    """Settings from ``.env`` and the environment, which wins. Raises ``Fatal`` that lists every wrong value."""
    given = {k: v for k, v in dotenv_values(dotenv).items() if v is not None} if dotenv and Path(dotenv).is_file() else {}
    given |= os.environ if environ is None else environ
    mode = given.get("TRADING_MODE", "").strip().lower() or "sim"
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for spec in dataclasses.fields(Settings):
        try:
            values[spec.name] = _value(spec, given, mode)
        except ValueError as error:
            wrong.append(str(error))
    bad = {spec.name for spec in dataclasses.fields(Settings)} - values.keys()
    settings = Settings(**{spec.name: _default(spec, mode) for spec in dataclasses.fields(Settings)} | values)
    wrong += [line for line in _contradictions(settings) if not any(re.search(rf"\b{name.upper()}\b", line) for name in bad)]
    wrong += _misspelt(given)
    if wrong:
        raise Fatal("wrong settings:\n" + "\n".join(f"  {line}" for line in wrong))
    return settings


def _misspelt(given: Mapping[str, str]) -> list[str]:
    """Names that are all but a setting's: what they were meant to say must not be lost."""
    known = {spec.name.upper(): spec for spec in dataclasses.fields(Settings)}
    aliases = {spec.metadata["alias"] for spec in known.values() if "alias" in spec.metadata}
    plain = {name.replace("_", "") for name in known}  # LOGLEVEL is a word of other programs
    found = []
    for name, value in sorted(given.items()):
        if name in known or name in aliases or name.replace("_", "") in plain:
            continue
        if near := difflib.get_close_matches(name, known, 1, 0.9):
            shown = "" if known[near[0]].metadata["secret"] else f"={value!r}"
            found.append(f"{name}{shown}: there is no such setting; did you mean {near[0]}?")
    return found


def _value(spec: dataclasses.Field[Any], given: Mapping[str, str], mode: str) -> Any:
    meta, name = spec.metadata, spec.name.upper()
    alias = meta.get("alias", "")
    if alias and alias in given and given.get(name, given[alias]) != given[alias]:
        raise ValueError(f"{name}={given[name]!r} and its alias {alias}={given[alias]!r} differ: set one of them")
    raw = given.get(name, given.get(alias, "")).strip()
    if raw == "":
        return _default(spec, mode)
    parsed = _parse(str(spec.type), name, raw, meta)
    _check_bounds(name, raw, parsed, meta)
    return parsed


def _default(spec: dataclasses.Field[Any], mode: str) -> Any:
    default = spec.metadata["default"]
    return default(mode) if callable(default) else default


def _parse(kind: str, name: str, raw: str, meta: Mapping[str, Any]) -> Any:
    try:
        match kind:
            case "int":
                return int(raw)
            case "float":
                return float(raw)
            case "Decimal":
                return Decimal(raw) if not Decimal(raw).is_snan() else Decimal("NaN")
            case "bool":
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[raw.lower()]
            case "tuple[str, ...]":
                return tuple(dict.fromkeys(s.strip().upper() for s in raw.split(",") if s.strip()))
    except (ValueError, InvalidOperation, KeyError):
        raise ValueError(f"{name}={raw!r}: {_expected(kind, meta)}") from None
    if "choices" not in meta:
        return raw
    for choice in meta["choices"]:
        if raw.lower() == choice.lower():
            return choice
    near = difflib.get_close_matches(raw.lower(), meta["choices"], 1) or difflib.get_close_matches(raw.upper(), meta["choices"], 1)
    raise ValueError(f"{name}={raw!r}: must be one of {', '.join(meta['choices'])}" + (f"; did you mean {near[0]}?" if near else ""))


def _expected(kind: str, meta: Mapping[str, Any]) -> str:
    if kind == "bool":
        return "must be 0 or 1"
    bounds = [f"above {meta['above']}"] if "above" in meta else [f"at least {meta['low']}"] if "low" in meta else []
    bounds += [f"at most {meta['high']}"] if "high" in meta else []
    return f"must be a {'whole ' if kind == 'int' else ''}number" + (f", {' and '.join(bounds)}" if bounds else "") + (
        f" ({meta['unit']})" if meta["unit"] else "")


def _check_bounds(name: str, raw: str, value: Any, meta: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        return
    inside = math.isfinite(value) and value >= meta.get("low", value) and value <= Decimal(str(meta.get("high", value)))
    if not inside or ("above" in meta and value <= meta["above"]):
        kind = "int" if isinstance(value, int) else "number"
        raise ValueError(f"{name}={raw!r}: {_expected(kind, meta)}")


def _contradictions(s: Settings) -> list[str]:
    """What no single value shows: settings that do not go together."""
    wrong = []
    if s.trading_mode in ("testnet", "live"):
        wrong += [f"{name} is empty: TRADING_MODE={s.trading_mode} needs both keys" for name, value in
                  (("BINANCE_API_KEY", s.binance_api_key), ("BINANCE_API_SECRET", s.binance_api_secret)) if not value]
        wrong += [f"{name}={value!r}: only the local exchange of sim and paper can do that; leave it unset in {s.trading_mode}" for name, value in
                  (("EXCHANGE_URL", s.exchange_url), ("SIM_DATA", s.sim_data)) if value]
    if s.trading_mode != "sim" and s.sim_speed != 1:
        wrong.append(f"SIM_SPEED={s.sim_speed:g}: real markets run at 1; unset it, or set TRADING_MODE=sim")
    if s.sim_edge and (s.trading_mode, s.sim_market) != ("sim", "synthetic"):
        wrong.append(f"SIM_EDGE={s.sim_edge:g}: only the synthetic market of TRADING_MODE=sim can have one; unset it")
    if s.trading_mode == "live":
        wrong += _live_rules(s)
    if s.trading_mode == "paper":
        wrong += _paper_rules(s)
    if s.setup_ms % s.candle_ms:
        wrong.append(f"SETUP_INTERVAL={s.setup_interval!r}: must be a whole number of candles of CANDLE_INTERVAL={s.candle_interval}")
    if s.trading_mode == "sim" and s.sim_market == "replay" and not s.exchange_url:
        if not s.sim_data:
            wrong.append("SIM_DATA is empty: SIM_MARKET=replay needs a Parquet file or folder of trades or candles")
        elif not Path(s.sim_data).exists():
            wrong.append(f"SIM_DATA={s.sim_data!r}: there is no such file or folder")
    if s.sim_start:
        try:
            parse_utc(s.sim_start)
        except ValueError:
            wrong.append(f"SIM_START={s.sim_start!r}: must be a time in UTC such as 2025-05-05T14:30")
    wrong += [f"{setting}={name!r}: must be names of the venue such as BTCUSDT, or patterns such as *USDT"
              for setting, names in (("SYMBOLS", s.symbols), ("EXCLUDE_SYMBOLS", s.exclude_symbols))
              for name in names if not re.fullmatch(r"[\w*?]+", name)]  # fmt: skip
    if s.ca_file and not Path(s.ca_file).is_file():
        wrong.append(f"CA_FILE={s.ca_file!r}: there is no such file")
    elif s.ca_file:
        try:
            _trusting(s.ca_file)
        except OSError as error:
            wrong.append(f"CA_FILE={s.ca_file!r}: must hold certificates in PEM ({error})")
    schemes = {"rest_url": ("http", "https"), "exchange_url": ("http", "https"), "proxy": ("http",)}
    for name in ("rest_url", "market_url", "public_url", "private_url", "ws_api_url", "exchange_url", "proxy"):
        value, right = getattr(s, name), schemes.get(name, ("ws", "wss"))
        scheme, host = _split(value)
        if value and (scheme not in right or not host):
            wrong.append(f"{name.upper()}={_shown(value)!r}: must be a URL that begins with {' or '.join(f'{r}://' for r in right)}")
    return wrong


def _split(url: str) -> tuple[str, str]:
    """(scheme, host); empty where it is no URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or ""
    except ValueError:
        return "", ""


def _shown(url: str) -> str:
    """Without the password that a URL may hold."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def _paper_rules(s: Settings) -> list[str]:
    """The market is the venue's, orders are the local exchange's: what would mix them up."""
    wrong = [f"{name}={value!r}: in paper orders go to the local exchange; unset it, or name one that runs by EXCHANGE_URL"
             for name, value in (("PRIVATE_URL", s.private_url), ("WS_API_URL", s.ws_api_url)) if value]
    made = (("SIM_MARKET", "" if s.sim_market == "synthetic" else s.sim_market), ("SIM_DATA", s.sim_data), ("SIM_START", s.sim_start))
    return wrong + [f"{name}={value!r}: in paper the market is the venue's own; unset it, or set TRADING_MODE=sim" for name, value in made if value]


def _live_rules(s: Settings) -> list[str]:
    """Real money: the mission's limits are bounds, and only TLS hosts of the venue are spoken to."""
    wrong = []
    if s.min_confidence < Decimal("0.55"):
        wrong.append(f"MIN_CONFIDENCE={s.min_confidence}: must be at least 0.55 in live")
    if s.cooldown_seconds < 60:
        wrong.append(f"COOLDOWN_SECONDS={s.cooldown_seconds}: must be at least 60 in live")
    for name in ("rest_url", "market_url", "public_url", "private_url", "ws_api_url"):
        value = getattr(s, name)
        scheme, host = _split(value)
        ours = any(host == d or host.endswith("." + d) for d in VENUE_DOMAINS)
        if value and not (ours and scheme in ("https", "wss")):
            wrong.append(f"{name.upper()}={_shown(value)!r}: live speaks only to TLS hosts of {' or '.join(VENUE_DOMAINS)}")
    return wrong


def example() -> str:
    """The text of ``.env.example``: every setting with its unit, its default and what it does."""
    lines = ["# Every setting, with its default. Copy to .env and change what you need; the environment wins over .env.", ""]
    for spec in dataclasses.fields(Settings):
        meta, name = spec.metadata, spec.name.upper()
        default = meta["default"]
        shown = default("live" if spec.name == "require_evidence" else "") if callable(default) else default
        note = "; ".join(f"{mode}: {_text(default(mode))}" for mode in ("sim", "live")) if callable(default) else _text(default)
        alias = f" (alias {meta['alias']})" if "alias" in meta else ""
        unit = f" [{meta['unit']}]" if meta["unit"] else ""
        choices = f" One of: {', '.join(meta['choices'])}." if "choices" in meta and len(meta["choices"]) < 8 else ""
        lines += [f"# {meta['doc'][0].upper()}{meta['doc'][1:]}{unit}.{choices} Default {note or 'empty'}{alias}.", f"# {name}={_text(shown)}", ""]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
