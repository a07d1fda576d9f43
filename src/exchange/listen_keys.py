"""Listen keys: one an account, good for an hour of wall time from the last call that named it."""

from __future__ import annotations

from src.clock import SECOND_NS, monotonic_ns, token
from src.exchange.errors import ApiError


class ListenKeys:
    """Keys by account and back. Times are CLOCK_MONOTONIC."""

    def __init__(self, life_s: float) -> None:
        self._life_ns = int(life_s * SECOND_NS)
        self._by_account: dict[int, str] = {}
        self._expires_ns: dict[str, int] = {}
        self._account: dict[str, int] = {}

    def create(self, account: int) -> str:
        """A new key, or the existing one with its hour begun again."""
        key = self._by_account.get(account)
        if key is None:
            key = self._by_account[account] = token(32)
            self._account[key] = account
        self._expires_ns[key] = monotonic_ns() + self._life_ns
        return key

    def extend(self, account: int) -> str:
        """The key with its hour begun again; -1125 when there is none."""
        if account not in self._by_account:
            raise ApiError(-1125)
        return self.create(account)

    def close(self, account: int) -> None:
        key = self._by_account.pop(account, None)
        if key is not None:
            del self._expires_ns[key], self._account[key]

    def account(self, key: str) -> int | None:
        return self._account.get(key)

    def key(self, account: int) -> str | None:
        return self._by_account.get(account)

    def expired(self) -> list[str]:
        """Take out the keys whose hour is over."""
        now = monotonic_ns()
        over = [key for key, at in self._expires_ns.items() if at <= now]
        for key in over:
            self.close(self._account[key])
        return over

    def age(self) -> None:
        """End every key's hour now, for tests."""
        self._expires_ns = dict.fromkeys(self._expires_ns, 0)
