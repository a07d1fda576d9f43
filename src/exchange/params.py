"""Request parameters: from the wire's text to typed values, or the venue's refusal. Nothing that arrives here can raise anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from urllib.parse import unquote_to_bytes

from src.exchange.errors import ApiError

_DECIMAL = re.compile(r"-?\d{1,20}(\.\d{0,20})?")
_INTEGER = re.compile(r"-?\d{1,19}")
_CLIENT_ID = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")
DECIMAL_RANGE = r"^([0-9]{1,20})(\.[0-9]{1,20})?$"
CLIENT_ID_RANGE = r"^[\.A-Z\:/a-z0-9_-]{1,36}$"
INT64_MAX = 2**63 - 1


def decode(text: str) -> str:
    """One percent-encoded component; refuses what is not UTF-8."""
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("utf-8", "surrogateescape")).decode()
    except UnicodeError:
        raise ApiError(-1100, "query", "UTF-8") from None


def parse_pairs(query: str, body: str) -> dict[str, str]:
    """Parameters of both parts; the query wins where both name one. A name twice within a part is refused."""
    merged: dict[str, str] = {}
    for part in (body, query):
        seen: dict[str, str] = {}
        for piece in part.split("&") if part else ():
            name, _, value = piece.partition("=")
            name = decode(name)
            if not name:
                continue
            if name in seen:
                raise ApiError(-1101, name)
            seen[name] = decode(value)
        merged.update(seen)
    return merged


class Params:
    """A mapping of text with typed getters. A getter returns None for an absent optional parameter."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def also(self, name: str, value: str) -> Params:
        """These and one more."""
        return Params({**self._values, name: value})

    def raw(self, name: str) -> str:
        """What was sent, unchecked; empty where nothing was."""
        return self._values.get(name, "")

    def get(self, name: str) -> str | None:
        value = self._values.get(name)
        if value == "":
            raise ApiError(-1105, name)
        return value

    def need(self, name: str) -> str:
        value = self._values.get(name)
        if not value:
            raise ApiError(-1102, name)
        return value

    def choice(self, name: str, allowed: Iterable[str], code: int) -> str | None:
        value = self.get(name)
        if value is not None and value not in allowed:
            raise ApiError(code, name)
        return value

    def decimal(self, name: str) -> Decimal | None:
        value = self.get(name)
        if value is None:
            return None
        if not _DECIMAL.fullmatch(value) or not value.isascii():
            raise ApiError(-1100, name, DECIMAL_RANGE)
        return Decimal(value)

    def integer(self, name: str, *, least: int = 0, most: int = INT64_MAX) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if not _INTEGER.fullmatch(value) or not value.isascii():
            raise ApiError(-1102, name)
        number = int(value)
        if not least <= number <= most:
            raise ApiError(-1130, name)
        return number

    def flag(self, name: str) -> bool | None:
        value = self.get(name)
        if value is None:
            return None
        if value.lower() not in ("true", "false"):
            raise ApiError(-1130, name)
        return value.lower() == "true"

    def client_id(self, name: str) -> str | None:
        value = self.get(name)
        if value is None:
            return None
        if len(value) > 36:
            raise ApiError(-4015)
        if not _CLIENT_ID.fullmatch(value):
            raise ApiError(-1100, name, CLIENT_ID_RANGE)
        return value
