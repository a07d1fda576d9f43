"""Errors sorted by what we do next, the log set-up, and the hiding of secrets.

Every error of ours is one of six, and its class says the reaction. Errors of the venue, of sockets and of files are turned into one of
them once, where they enter. What cannot be handled is logged once with its traceback and counted; nothing is swallowed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import wraps
from typing import Any, TextIO, TypeVar

from src.clock import iso


class AegisError(Exception):
    """What all six have in common: a message a person can read, and fields for the log. Never raised itself."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


class Retryable(AegisError):
    """Back off with jitter and try again, a bounded number of times: nothing was executed. ``retry_after_s`` where the venue names it."""


class Rejected(AegisError):
    """That order ends here, with its reason. ``code``: the venue's code, where it has one."""

    @property
    def code(self) -> int:
        return int(self.fields.get("code", 0))


class Unknown(AegisError):
    """It may have been executed: ask the venue, never resend an entry."""


class Degraded(AegisError):
    """Stop opening, reduce only, until the cause is gone."""


class Halt(AegisError):
    """Reduce only, latch, alert: an operator must release it. A failed assertion in the money path is this."""


class Fatal(AegisError):
    """Exit; restarting will not help: bad key, wrong account mode, invalid setting."""


LIFECYCLE = 35
"""Between WARNING and ERROR, so that life-cycle and heartbeat lines are shown at the default level."""

_secrets: set[str] = set()
_log = logging.getLogger("aegis")


def hide(values: Iterable[str]) -> None:
    """From now on these strings appear in no log line of this process. Strings shorter than 6 characters are left alone."""
    _secrets.update(v for v in values if len(v) >= 6)


def mask(secret: str) -> str:
    """``abc***xyz``; a short one shows nothing at all."""
    return f"{secret[:3]}***{secret[-3:]}" if len(secret) >= 12 else "***"


_SIGNED = re.compile(r"(signature|listenKey|apiKey|secret)([\"']?\s*[=:]\s*[\"']?)([^&\s\"',}]{6,})", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with every known secret, signature and listen key masked."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, mask(secret))
    return _SIGNED.sub(lambda m: f"{m[1]}{m[2]}{mask(m[3])}", text)


class _Formatter(logging.Formatter):
    """One line a record: human text, or one JSON object."""

    def __init__(self, process: str, as_json: bool) -> None:
        super().__init__()
        self._process = process
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        level = "INFO" if record.levelno == LIFECYCLE else record.levelname
        fields: dict[str, Any] = getattr(record, "fields", {})
        if self._json:
            row = {"time": iso(record.created * 1000), "level": level, "process": self._process, "message": message, **fields}
            return redact(json.dumps(row | ({"trace": trace} if trace else {}), ensure_ascii=False, default=str))
        extra = "".join(f" {k}={v}" for k, v in fields.items())
        return redact(f"{iso(record.created * 1000)} {level:<8} {self._process:<12} {message}{extra}" + (f"\n{trace}" if trace else ""))


def setup_logging(process: str, level: str = "WARNING", fmt: str = "text", out: TextIO | None = None) -> None:
    """Root logger to standard output, or to ``out``, one line a record. ``fmt``: ``text`` or ``json``."""
    handler = logging.StreamHandler(out or sys.stdout)
    handler.setFormatter(_Formatter(process, fmt == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    _log.setLevel(min(root.level, LIFECYCLE))


def lifecycle(message: str, **fields: Any) -> None:
    """A line that is shown at every level: start, stop, heartbeat, orders and fills."""
    _log.log(LIFECYCLE, message, extra={"fields": fields})


def warn(message: str, **fields: Any) -> None:
    _log.warning(message, extra={"fields": fields})


def info(message: str, **fields: Any) -> None:
    _log.info(message, extra={"fields": fields})


def critical(message: str, **fields: Any) -> None:
    _log.critical(message, extra={"fields": fields})


def failure(what: str, error: BaseException) -> None:
    """Log an error once: one line for ours, with a traceback for a bug."""
    fields = {k: v for k, v in getattr(error, "fields", {}).items() if v is not None}
    expected = isinstance(error, AegisError) and not isinstance(error, Halt)
    _log.error(f"{what}: {error}" if expected else f"{what}: {type(error).__name__}: {error}",
               exc_info=None if expected else error, extra={"fields": fields})


class Throttle:
    """Lets one of many like lines through: ``due(now_ns)`` is True at most once in ``every_s`` wall seconds."""

    __slots__ = ("_every_ns", "_next_ns", "held_back")

    def __init__(self, every_s: float) -> None:
        self._every_ns = int(every_s * 1e9)
        self._next_ns = 0
        self.held_back = 0

    def due(self, now_ns: int) -> bool:
        if now_ns < self._next_ns:
            self.held_back += 1
            return False
        self._next_ns = now_ns + self._every_ns
        self.held_back = 0
        return True


T = TypeVar("T")


def catch_and_log(what: str) -> Callable[[Callable[..., Awaitable[T]]], Callable[..., Coroutine[Any, Any, T | None]]]:
    """For the end of a chore: its error is logged and the daemon lives on. Fatal and Halt pass through."""

    def decorate(function: Callable[..., Awaitable[T]]) -> Callable[..., Coroutine[Any, Any, T | None]]:
        @wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> T | None:
            try:
                return await function(*args, **kwargs)
            except (Fatal, Halt):
                raise
            except Exception as error:
                failure(what, error)
                return None

        return guarded

    return decorate
