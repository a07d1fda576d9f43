"""``python -m src.main exchange``: the local exchange by itself, for tests and for clients that we did not write."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from textwrap import fill

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

from src.clock import SPEED_MAX
from src.config import EDGE_MAX
from src.error_handler import AegisError, Fatal, failure, setup_logging
from src.exchange.auth import ED25519_PREFIX, KEY, public_key
from src.exchange.faults import Kind, Rule, parse_rule, read_rules
from src.exchange.market import KINDS
from src.exchange.opening import open_market
from src.exchange.options import DEFAULT_ACCOUNT, LATENCY_MS_MAX, Account, ExchangeOptions, Limits, Switches, VenueUrls
from src.exchange.server import Ready, serve

SHOWN = 40
"""So much of a wrong value is quoted."""
BALANCE_MAX = 10**12
NUMBER_MAX = 10**12
OPTIONS = {"SYMBOLS": "--symbols", "SIM_MARKET": "--market", "SIM_DATA": "--path", "SIM_START": "--start", "BOOKS": "--books", "FAULT": "--fault",
           "PORT": "--port"}  # fmt: skip
"""The names that settings of the exchange have elsewhere."""


class _Parser(argparse.ArgumentParser):
    """One clear line for a wrong option, and exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"exchange: {message}\n")


def _account(text: str) -> Account:
    """``KEY:SECRET:BALANCE``; the secret may hold colons, is never shown, and with ``env=NAME`` stays out of the list of processes."""
    key, _, rest = text.partition(":")
    secret, _, balance = rest.rpartition(":")
    if secret.startswith("env="):
        name = secret.removeprefix("env=")
        secret = os.environ.get(name, "")
        if not secret:
            raise argparse.ArgumentTypeError(f"{key}: the variable {name!r} is not set, or empty; it should hold the account's secret")
    try:
        amount = Decimal(balance)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not KEY.fullmatch(key) or not secret:
        raise argparse.ArgumentTypeError(f"{key[:SHOWN]!r} is not KEY:SECRET:BALANCE, with a key of letters, digits, - and _")
    if amount.is_nan() or not 0 <= amount <= BALANCE_MAX:
        raise argparse.ArgumentTypeError(f"{key[:SHOWN]!r} has a balance of {balance[:SHOWN]!r}: it is from 0 to {BALANCE_MAX:,}")
    if secret.startswith(ED25519_PREFIX):
        try:
            public_key(secret)
        except AegisError as error:
            raise argparse.ArgumentTypeError(f"{key[:SHOWN]!r}: {error}") from None
    return Account(key, secret, amount)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed <= SPEED_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed above 0 and at most {SPEED_MAX:g}")
    return speed


def _edge(text: str) -> float:
    try:
        edge = float(text)
    except ValueError:
        edge = -1.0
    if not 0 <= edge <= EDGE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not an edge from 0 to {EDGE_MAX:g}")
    return edge


def _fault(text: str) -> Rule:
    try:
        return parse_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is no fault: {error}") from None


def _fault_file(name: str) -> tuple[Rule, ...]:
    try:
        return read_rules(Path(name).read_bytes())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.strerror}") from None
    except AegisError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


def _of(fields: Limits | Switches) -> Callable[[str], tuple[str, float]]:
    """Reads a name of these with a value of its type; yes and no are 1 and 0."""
    kinds = {name: type(default) for name, default in asdict(fields).items()}

    def parse(text: str) -> tuple[str, float]:
        name, _, value = text.partition("=")
        if name not in kinds:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is not NAME=VALUE, with a name of {', '.join(kinds)}")
        try:
            number: float = {"0": False, "1": True}[value] if kinds[name] is bool else kinds[name](value)
        except (KeyError, ValueError):
            wanted = {bool: "0 or 1", int: "a whole number", float: "a number"}[kinds[name]]
            raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} needs a value that is {wanted}") from None
        least, most = (400, 599) if name.endswith("_status") else (0, NUMBER_MAX)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is not from {least} to {most:,}")
        return name, number

    return parse


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a directory")
    return text


def _whole(least: int, most: int) -> type[int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > SHOWN or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse  # type: ignore[return-value]


def _names(text: str) -> list[str]:
    return [name.strip().upper() for name in text.split(",") if name.strip()]


def _listed(fields: Limits | Switches) -> str:
    return fill(", ".join(f"{name}={+value}" for name, value in asdict(fields).items()), 110, initial_indent="  ", subsequent_indent="  ")


def _epilog() -> str:
    """The names that --switch, --limit and --fault take."""
    kinds = fill(", ".join(Kind), 110, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(["switches, with their defaults:", _listed(Switches()), "", "limits, with their defaults:", _listed(Limits()), "",
                      "kinds of faults:", kinds, "", "docs/exchange.md says what each of them does."])  # fmt: skip


def _parser() -> _Parser:
    parser = _Parser(prog="python -m src.main exchange", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_epilog(),
                     description="A local Binance USDⓈ-M venue on 127.0.0.1. It prints one line of JSON with its URLs and runs until SIGTERM.")
    parser.add_argument("--port", type=_whole(0, 65535), default=8900, metavar="PORT", help="0 takes a free one (default 8900)")
    parser.add_argument("--market", choices=KINDS, default="synthetic", help="where prices come from (default synthetic)")
    parser.add_argument("--seed", type=_whole(0, 2**63), default=1, metavar="SEED", help="of the synthetic market (default 1)")
    parser.add_argument("--edge", type=_edge, default=0.0, metavar="X",
                        help=f"planted into the synthetic market: drift of a minute along a hidden direction, in its standard deviations, at most "
                             f"{EDGE_MAX:g} (default 0: none)")  # fmt: skip
    parser.add_argument("--symbols", type=_names, action="extend", default=[], metavar="NAMES", help="BTCUSDT,ETHUSDT (default: the market's own)")
    parser.add_argument("--account", type=_account, action="append", metavar="KEY:SECRET:BALANCE",
                        help="once for each account, with its USDT (default: one of 10000); SECRET may be env=NAME, which reads it from that "
                             "variable, and it may be ed25519= with a public key in PEM")  # fmt: skip
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="X", help=f"market seconds in a second, at most {SPEED_MAX:g} (default 1)")
    parser.add_argument("--latency-ms", type=_whole(0, LATENCY_MS_MAX), default=20, metavar="MS", help="market time of an order (default 20)")
    parser.add_argument("--books", type=_folder, metavar="FOLDER", help="where to keep the books and find them again (default: nothing is kept)")
    parser.add_argument("--path", help="the recording, for --market replay and frames")
    parser.add_argument("--start", default="", metavar="TIME", help="where live trading begins in the recording, such as 2025-05-05T14:30 (UTC)")
    parser.add_argument("--rest-url", default="", metavar="URL", help="the venue's public REST, for --market binance")
    parser.add_argument("--market-url", default="", metavar="URL", help="its /market streams, such as wss://fstream.binance.com/market")
    parser.add_argument("--public-url", default="", metavar="URL", help="its /public streams, such as wss://fstream.binance.com/public")
    parser.add_argument("--control", action="store_true", help="open /control, for tests (default: closed)")
    parser.add_argument("--fault", type=_fault, action="append", default=[], metavar="KIND,NAME=VALUE,…", help="what goes wrong; once for each")
    parser.add_argument("--faults", type=_fault_file, default=(), metavar="FILE", help="a JSON file with a list of faults")
    parser.add_argument("--chaos", type=_whole(0, 2**63), metavar="SEED", help="something drawn from the seed goes wrong about every 20 seconds")
    parser.add_argument("--limit", type=_of(Limits()), action="append", default=[], metavar="NAME=VALUE", help="such as connections=5; once for each")
    parser.add_argument("--switch", type=_of(Switches()), action="append", default=[], metavar="NAME=VALUE",
                        help="an open question of the protocol, 0 or 1, or a status; once for each")  # fmt: skip
    return parser


def options_of(argv: list[str]) -> ExchangeOptions:
    """Options from the command line; a wrong one ends the process with code 2."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.market in ("replay", "frames") and not given.path:
        parser.error(f"--market {given.market} needs --path")
    if given.edge and given.market != "synthetic":
        parser.error("--edge goes with --market synthetic")
    if given.market not in ("replay", "frames") and (given.path or given.start):
        parser.error("--path and --start go with --market replay and frames")
    venue = _venue(parser, given)
    accounts = tuple(given.account or (DEFAULT_ACCOUNT,))
    if len({a.key for a in accounts}) != len(accounts):
        parser.error("two accounts have the same key")
    return ExchangeOptions(
        port=given.port, market=given.market, symbols=tuple(dict.fromkeys(given.symbols)), seed=given.seed, edge=given.edge,
        path=given.path, start=given.start, venue=venue,
        speed=given.speed, latency_ms=given.latency_ms, accounts=accounts,
        books_dir=given.books, control=given.control, faults=(*given.faults, *given.fault), chaos=given.chaos,
        limits=replace(Limits(), **dict(given.limit)), switches=replace(Switches(), **dict(given.switch)),
    )  # fmt: skip


def _venue(parser: _Parser, given: argparse.Namespace) -> VenueUrls | None:
    urls = (given.rest_url, given.market_url, given.public_url)
    if given.market != "binance":
        if any(urls):
            parser.error("--rest-url, --market-url and --public-url go with --market binance")
        return None
    if not all(urls):
        parser.error("--market binance needs --rest-url, --market-url and --public-url")
    for name, url, schemes in (("--rest-url", urls[0], ("http://", "https://")), ("--market-url", urls[1], ("ws://", "wss://")),
                               ("--public-url", urls[2], ("ws://", "wss://"))):  # fmt: skip
        if not url.startswith(schemes):
            parser.error(f"{name} {url!r} must begin with {' or '.join(schemes)}")
    if given.speed != 1:
        parser.error("--market binance runs at --speed 1")
    return VenueUrls(*urls)


def _worded(error: Fatal) -> str:
    """What is wrong with what was asked for, in one line and in the names of the command line."""
    setting = str(error.fields.get("setting", ""))
    option, text = OPTIONS.get(setting, ""), " ".join(str(error).split()).replace("STATE_DIR", "--books")
    text = text.replace(f"{setting}=", f"{option} ").replace(setting, option) if option else text
    return f"argument {option}: {text}" if option and option not in text else text


async def _run(options: ExchangeOptions, started: asyncio.Event) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def on_ready(ready: Ready) -> None:
        print(ready.as_json(), flush=True)
        started.set()

    await serve(options, on_ready, stop, open_market=open_market)


def main(argv: list[str]) -> int:
    """Run until SIGTERM or SIGINT. Returns 0, 1 when it could not go on, 2 when it cannot begin with these options.

    Standard output gets the line with the addresses and nothing else; the log goes to standard error.
    """
    try:
        options = options_of(argv)
    except SystemExit as wrong:
        return int(wrong.code or 0)
    setup_logging("exchange", out=sys.stderr)
    started = asyncio.Event()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(options, started))
    except AegisError as error:
        if isinstance(error, Fatal) and not started.is_set():
            print(f"exchange: {_worded(error)}", file=sys.stderr)
            return 2
        failure("the local exchange", error)
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    return uvloop.new_event_loop if uvloop is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
