"""Client ids that the venue makes up for orders sent without one: 22 letters and digits, the same for the same order in every run."""

from __future__ import annotations

import hashlib

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def generated_id(number: int, account: int) -> str:
    """22 letters and digits that look random."""
    value = int.from_bytes(hashlib.blake2b(f"{account}:{number}".encode(), digest_size=20).digest(), "big")
    letters = []
    for _ in range(22):
        value, rest = divmod(value, 62)
        letters.append(_ALPHABET[rest])
    return "".join(letters)
