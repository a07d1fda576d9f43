"""The venue's refusals, sorted once by what we do next.

One table: code → (reaction, what would be right). ``to_error`` reads status, code and text of an answer; ``from_transport`` an error of a
socket. Invariants:

* a write whose outcome is not certain is ``Unknown``: HTTP 408, 500, 502, 504, one kind of 503, an unreadable answer, a cut after the send;
* codes that say "not executed" win over the status;
* every error carries ``status`` and ``code`` in its fields, and where the venue names them ``retry_after_s`` and ``banned_until_ms``
  (by its own clock); ``close_only=True`` marks a refusal to open that concerns one symbol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from src.clock import Clock
from src.error_handler import AegisError, Degraded, Fatal, Halt, Rejected, Retryable, Unknown


class Reaction(Enum):
    """What a code asks for. FINE: nothing had to be done; it arrives as ``Rejected`` and ``is_fine`` knows it."""

    RETRY = "retry"
    REJECT = "reject"
    UNKNOWN = "unknown"
    DEGRADE = "degrade"
    HALT = "halt"
    FATAL = "fatal"
    FINE = "fine"


RETRY, REJECT, UNKNOWN, DEGRADE, HALT, FATAL, FINE = Reaction
_CLASSES: dict[Reaction, type[AegisError]] = {RETRY: Retryable, REJECT: Rejected, UNKNOWN: Unknown, DEGRADE: Degraded, HALT: Halt,
                                              FATAL: Fatal, FINE: Rejected}
TOO_MANY_REQUESTS, TOO_MANY_ORDERS = -1003, -1015
CLOCK_SKEW = -1021
NO_SUCH_ORDER = -2013
CANCEL_REJECTED = -2011
DUPLICATE_CLIENT_ID = -4116
STOP_EXISTS = -4130
LISTEN_KEY_GONE = -1125
SURELY_NOT_EXECUTED = frozenset({-1003, -1008, -1015, CLOCK_SKEW, -5028})
"""These outrank the HTTP status."""
_CLOSE_ONLY = frozenset({-2016, -4105, -4106, -4107, -4140, -4141, -4189, -4411})
_WRONG_KEY = ("check that API key and secret belong together and to this venue (production or demo), "
              "and that this machine's address is on the key's list")

REACTIONS: dict[int, tuple[Reaction, str]] = {
    # Server, network, authority
    -1000: (UNKNOWN, "the venue does not know what happened"),
    -1001: (RETRY, "the venue failed inside and executed nothing"),
    -1002: (FATAL, "give the API key the right to trade futures"),
    -1003: (RETRY, "too many requests from this address: wait"),
    -1004: (FATAL, "the key's address list is being changed"),
    -1005: (FATAL, "put this machine's address on the key's list"),
    -1006: (UNKNOWN, "execution status unknown"),
    -1007: (UNKNOWN, "execution status unknown"),
    -1008: (RETRY, "the venue is overloaded and executed nothing; orders that reduce are exempt"),
    -1010: (REJECT, "refused"),
    -1011: (FATAL, "this machine's address may not use this route: put it on the key's list"),
    -1013: (REJECT, "malformed, or outside a filter of the symbol"),
    -1014: (REJECT, "this combination of order parameters is not offered"),
    -1015: (RETRY, "too many orders: wait for the next window"),
    -1016: (HALT, "the venue has retired this endpoint: the program needs an update"),
    -1020: (REJECT, "this operation is not offered"),
    -1021: (RETRY, "clock or path is off by more than recvWindow: synchronise the machine's clock"),
    -1022: (FATAL, "signature refused: the secret does not belong to the API key"),
    -1023: (REJECT, "the start lies after the end"),
    -1099: (FATAL, _WRONG_KEY),
    -2014: (FATAL, "the API key is not one of the venue's: 64 letters and digits, without spaces or quotes"),
    -2015: (FATAL, _WRONG_KEY),
    -2017: (FATAL, "the API keys are locked: unlock them at the venue"),
    -4056: (FATAL, "this kind of key cannot trade futures"),
    -4057: (FATAL, "this kind of key cannot trade futures"),
    -4109: (FATAL, "the futures account is inactive: transfer any asset into it"),
    # The request
    -1100: (REJECT, "illegal letters in a parameter"),
    -1101: (REJECT, "a parameter twice, or too many"),
    -1102: (REJECT, "a parameter is missing"),
    -1103: (REJECT, "unknown parameter"),
    -1104: (REJECT, "surplus parameter"),
    -1105: (REJECT, "a parameter is empty"),
    -1106: (REJECT, "a parameter that does not belong here"),
    -1111: (REJECT, "more decimals than the symbol's steps"),
    -1112: (RETRY, "the book is empty"),
    -1120: (REJECT, "this interval is not offered"),
    -1121: (REJECT, "no such symbol"),
    -1122: (REJECT, "the symbol's status does not allow it"),
    -1125: (RETRY, "the listen key is gone: ask for a new one"),
    -1130: (REJECT, "a parameter's value is outside its range"),
    -1131: (REJECT, "recvWindow may be 60000 at most"),
    # Orders
    -2010: (REJECT, "refused by the matching engine"),
    -2011: (REJECT, "nothing to cancel: it has ended, or is an order of the other kind (plain, algo)"),
    -2013: (REJECT, "no such order, or not yet readable"),
    -2016: (REJECT, "no trading at this time"),
    -2018: (REJECT, "balance insufficient"),
    -2019: (REJECT, "margin insufficient"),
    -2020: (REJECT, "unable to fill"),
    -2021: (REJECT, "it would trigger at once: its price is on the wrong side of the market"),
    -2022: (REJECT, "reduce-only: there is nothing to reduce in that direction"),
    -2023: (HALT, "the account is being liquidated"),
    -2024: (REJECT, "more than the position"),
    -2025: (REJECT, "too many open orders"),
    -2026: (REJECT, "this order type cannot be reduce-only"),
    -2027: (REJECT, "beyond the largest position at this leverage"),
    -2028: (REJECT, "too little margin for this leverage"),
    -4116: (REJECT, "an open order has this client id already"),
    -4117: (REJECT, "the conditional order is triggering right now"),
    -4118: (REJECT, "reduce-only margin check: an open order on the same side is in the way"),
    -4120: (REJECT, "conditional orders go to the algo service"),
    -4130: (REJECT, "the position has a closing order of this kind already"),
    -4131: (RETRY, "the book's best price is outside the allowed band"),
    -4140: (REJECT, "the symbol is closed for opening"),
    -4141: (REJECT, "the symbol is closed"),
    -4142: (REJECT, "it would trigger at once: its price is on the wrong side of the market"),
    -4164: (REJECT, "notional below the symbol's minimum"),
    -5021: (REJECT, "could not be filled whole"),
    -5022: (REJECT, "would have taken liquidity"),
    -5027: (FINE, "nothing to modify"),
    -5028: (RETRY, "too old when the matching engine saw it: not executed"),
    -5041: (RETRY, "no price in the book to match"),
    -5043: (RETRY, "a modification is pending"),
    # Filters
    -4003: (REJECT, "quantity is zero or less"),
    -4004: (REJECT, "quantity below the minimum"),
    -4005: (REJECT, "quantity above the maximum"),
    -4013: (REJECT, "price below the minimum"),
    -4014: (REJECT, "price is not on the tick"),
    -4015: (REJECT, "client id has wrong letters or more than 36"),
    -4016: (REJECT, "price above the allowed band around mark"),
    -4023: (REJECT, "quantity is not on the step"),
    -4024: (REJECT, "price below the allowed band around mark"),
    -4045: (REJECT, "200 conditional orders are open already"),
    # Account
    -4046: (FINE, "the margin type is set already"),
    -4047: (REJECT, "margin type cannot change while orders are open"),
    -4048: (REJECT, "margin type cannot change while a position is open"),
    -4059: (FINE, "the position mode is set already"),
    -4061: (FATAL, "the account is in hedge mode: switch it to one-way mode"),
    -4067: (REJECT, "position mode cannot change while orders are open"),
    -4068: (REJECT, "position mode cannot change while a position is open"),
    -4087: (DEGRADE, "the venue lets this account reduce only"),
    -4088: (HALT, "the venue takes no orders from this account"),
    -4105: (REJECT, "the symbol is under risk control: reduce only"),
    -4106: (REJECT, "the symbol is under risk control: buying may reduce only"),
    -4107: (REJECT, "the symbol is under risk control: selling may reduce only"),
    -4161: (REJECT, "leverage cannot be lowered while an isolated position is open"),
    -4168: (REJECT, "isolated margin is not offered in multi-asset mode"),
    -4171: (FINE, "the multi-asset mode is set already"),
    -4189: (REJECT, "the account may only reduce on this symbol"),
    -4192: (HALT, "the account is in a cooling-off period"),
    -4400: (DEGRADE, "the venue's quantitative rules were broken: reduce only, and wait"),
    -4401: (DEGRADE, "the venue's large-position rule: reduce only"),
    -4402: (HALT, "this region is restricted"),
    -4403: (HALT, "leverage is limited in this region"),
    -4411: (REJECT, "sign the TradFi agreement at the venue, or leave these symbols out"),
}
_BANNED_UNTIL = re.compile(r"until (\d{13})")
WAF_PAUSE_S = 300.0
"""After HTTP 403: the firewall in front of the venue dislikes our pattern."""
BAN_S = 120.0
"""After HTTP 418 that names no end: the venue's shortest ban."""


def is_fine(error: AegisError) -> bool:
    """The venue refused because it already is as asked."""
    return REACTIONS.get(code_of(error), (REJECT,))[0] is FINE


def code_of(error: AegisError) -> int:
    return int(error.fields.get("code") or 0)


def is_throttle(error: AegisError) -> bool:
    """Too many requests or orders: the governor is to know, whatever the HTTP status is."""
    return error.fields.get("status") in (418, 429) or code_of(error) in (TOO_MANY_REQUESTS, TOO_MANY_ORDERS)


def to_error(status: int, code: int, msg: str, *, write: bool, retry_after_s: float | None = None) -> AegisError:
    """An answer that is not a success. ``write``: the request could have changed something. ``code`` 0: the body had none."""
    reaction, hint = _judge(status, code, msg.strip(), write)
    fields: dict[str, object] = {"status": status, "code": code}
    if retry_after_s is not None:
        fields["retry_after_s"] = retry_after_s
    if status in (418, 429) and (until := _BANNED_UNTIL.search(msg)):
        fields["banned_until_ms"] = int(until[1])
    if status == 403:
        fields.setdefault("retry_after_s", WAF_PAUSE_S)
    if status == 418 and "banned_until_ms" not in fields:
        fields.setdefault("retry_after_s", BAN_S)
    if code in _CLOSE_ONLY:
        fields["close_only"] = True
    said = " ".join(part for part in (f"{code}" if code else f"HTTP {status}", _short(msg)) if part)
    return _CLASSES[reaction](f"venue {said}: {hint}", **fields)


def say_wait(error: AegisError, clock: Clock, offset_ms: int) -> None:
    """The venue names a ban's end by its own clock (``offset_ms`` ahead of ours): in wall seconds from now it suits whoever waits."""
    if "banned_until_ms" in error.fields:
        error.fields.setdefault("retry_after_s", clock.wall_s_until(error.fields["banned_until_ms"] - offset_ms))


def _judge(status: int, code: int, msg: str, write: bool) -> tuple[Reaction, str]:
    known = REACTIONS.get(code)
    if known and code in SURELY_NOT_EXECUTED:
        return known
    if status in (418, 429):
        return RETRY, "too many requests from this address: wait"
    if status == 451:
        return FATAL, "the venue does not serve this region: run it elsewhere"
    if status >= 500 or status == 408:
        return _server_failure(status, code, msg, write)
    if known:
        return (RETRY, known[1]) if known[0] is UNKNOWN and not write else known
    if 200 <= status < 300:
        return (UNKNOWN if write else RETRY), "the answer cannot be read"
    if status == 401:
        return FATAL, _WRONG_KEY
    if status == 403:
        return RETRY, "the firewall in front of the venue refused: wait some minutes"
    if status == 404:
        return REJECT, "no such path: check the URL of the exchange"
    return REJECT, "refused"


def _server_failure(status: int, code: int, msg: str, write: bool) -> tuple[Reaction, str]:
    """5xx and 408. Of the four kinds of 503 three are certain not to have executed."""
    if status == 503 and (code == -1001 or msg == "Service Unavailable."):
        return RETRY, "the venue executed nothing"
    if write:
        return UNKNOWN, "it may have been executed: ask for it, never send it again"
    return RETRY, "the venue failed to answer"


def _short(text: str) -> str:
    """The venue's words in one line of a bearable length (an error page is a page)."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:200] + "…"


def header_s(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` in seconds, where it is there and a number."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def from_transport(error: BaseException, *, sent: bool, write: bool) -> AegisError:
    """An error of the connection. ``sent``: bytes of the request may have left this machine."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not sent:
        return Retryable(f"not connected, nothing was sent: {what}", status=0, code=0, sent=False)
    if write:
        return Unknown(f"cut after the request was sent, it may have been executed: {what}", status=0, code=0, sent=True)
    return Retryable(f"cut before the answer came: {what}", status=0, code=0, sent=True)
