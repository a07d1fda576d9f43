"""``python -m src.main exchange``: the local exchange by itself, for tests and for clients that we did not write."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

from src.clock import SPEED_MAX
from src.error_handler import AegisError, Fatal, failure, setup_logging
from src.exchange.auth import ED25519_PREFIX, KEY, public_key
from src.exchange.faults import Rule, parse_rule, read_rules
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
    """``KEY:SECRET:BALANCE``; the secret may hold colons, and is never shown."""
    key, _, rest = text.partition(":")
    secret, _, balance = rest.rpartition(":")
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


def options_of(argv: list[str]) -> ExchangeOptions:
    """Options from the command line; a wrong one ends the process with code 2."""
    parser = _Parser(prog="exchange", description="A local Binance USDⓈ-M venue on loopback.")
    parser.add_argument("--port", type=_whole(0, 65535), default=8900, help="0 takes a free one (default 8900)")
    parser.add_argument("--market", choices=KINDS, default="synthetic")
    parser.add_argument("--seed", type=_whole(0, 2**63), default=1)
    parser.add_argument("--symbols", default="", help="BTCUSDT,ETHUSDT; the market's own choice when left out")
    parser.add_argument("--account", type=_account, action="append", help="KEY:SECRET:BALANCE, once for each account; SECRET may be ed25519=PEM")
    parser.add_argument("--speed", type=_speed, default=1.0)
    parser.add_argument("--latency-ms", type=_whole(0, LATENCY_MS_MAX), default=20)
    parser.add_argument("--books", type=_folder, help="directory in which to keep the books and find them again")
    parser.add_argument("--path", help="the recording, for --market replay and frames")
    parser.add_argument("--start", default="", help="where live trading begins in the recording, such as 2025-05-05T14:30 (UTC)")
    parser.add_argument("--rest-url", default="", help="the venue's public REST, for --market binance")
    parser.add_argument("--market-url", default="", help="its /market streams, such as wss://fstream.binance.com/market")
    parser.add_argument("--public-url", default="", help="its /public streams")
    parser.add_argument("--control", action="store_true", help="open /control for tests")
    parser.add_argument("--fault", type=_fault, action="append", default=[], help="KIND,name=value,… as docs/exchange.md lists them")
    parser.add_argument("--faults", type=_fault_file, default=(), help="a JSON file with a list of faults")
    parser.add_argument("--chaos", type=_whole(0, 2**63), help="a seed: something goes wrong about every 20 seconds")
    parser.add_argument("--limit", type=_of(Limits()), action="append", default=[], help="NAME=VALUE, such as connection_life_s=60")
    parser.add_argument("--switch", type=_of(Switches()), action="append", default=[], help="NAME=0 or 1, an open question of the protocol")
    given = parser.parse_args(argv)
    if given.market in ("replay", "frames") and not given.path:
        parser.error(f"--market {given.market} needs --path")
    if given.market not in ("replay", "frames") and (given.path or given.start):
        parser.error("--path and --start go with --market replay and frames")
    venue = _venue(parser, given)
    accounts = tuple(given.account or (DEFAULT_ACCOUNT,))
    if len({a.key for a in accounts}) != len(accounts):
        parser.error("two accounts have the same key")
    return ExchangeOptions(
        port=given.port, market=given.market, symbols=tuple(dict.fromkeys(s for s in given.symbols.upper().split(",") if s)), seed=given.seed,
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
