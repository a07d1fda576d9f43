"""Who asks: keys, HMAC-SHA256 and Ed25519 signatures over the bytes as they came, and the recvWindow in market time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from src.error_handler import Fatal
from src.exchange.errors import AHEAD_TEXT, ApiError
from src.exchange.options import Account
from src.exchange.params import Params

ED25519_PREFIX = "ed25519="
RECV_WINDOW_DEFAULT_MS = 5000
RECV_WINDOW_MAX_MS = 60_000
AHEAD_MAX_MS = 1000
KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


def public_key(secret: str) -> Ed25519PublicKey:
    """The Ed25519 key of an account: PEM text, that PEM in base64, or the base64 body of the PEM."""
    body = secret.removeprefix(ED25519_PREFIX)
    try:
        if "BEGIN" in body:
            pem = body.encode()
        else:
            raw = base64.b64decode(body, validate=False)
            pem = raw if b"BEGIN" in raw else b"-----BEGIN PUBLIC KEY-----\n" + body.encode() + b"\n-----END PUBLIC KEY-----\n"
        key = load_pem_public_key(pem)
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        raise Fatal(f"this is not an Ed25519 public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Fatal("this public key is not an Ed25519 one")
    return key


class Keyring:
    """The accounts by key."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._index = {a.key: i for i, a in enumerate(accounts)}
        self._hmac = {a.key: a.secret.encode() for a in accounts if not a.secret.startswith(ED25519_PREFIX)}
        self._ed25519 = {a.key: public_key(a.secret) for a in accounts if a.secret.startswith(ED25519_PREFIX)}

    def account(self, key: str) -> int:
        """The account of a key, or -2014, -2015."""
        if not KEY.fullmatch(key):
            raise ApiError(-2014)
        if key not in self._index:
            raise ApiError(-2015)
        return self._index[key]

    def is_ed25519(self, key: str) -> bool:
        return key in self._ed25519

    def verify(self, key: str, payload: bytes, signature: str) -> None:
        """-1022 unless the signature (hex, or base64 for Ed25519) is that key's over that payload."""
        if key in self._ed25519:
            try:
                self._ed25519[key].verify(base64.b64decode(signature, validate=True), payload)
            except (InvalidSignature, ValueError, binascii.Error):
                raise ApiError(-1022) from None
        else:
            expected = hmac.new(self._hmac[key], payload, hashlib.sha256).hexdigest()
            if not hmac.compare_digest(expected.encode(), signature.lower().encode()):
                raise ApiError(-1022)


def signed_part(query: str, body: str) -> tuple[bytes, str]:
    """The bytes that were signed, and the signature: both parts without it, joined by nothing."""
    signature = ""
    kept = []
    for part in (query, body):
        pieces = []
        for piece in part.split("&") if part else ():
            if piece.startswith("signature="):
                signature = unquote_to_bytes(piece[10:].encode("utf-8", "surrogateescape")).decode("ascii", "replace")
            else:
                pieces.append(piece)
        kept.append("&".join(pieces))
    return "".join(kept).encode("utf-8", "surrogateescape"), signature


def check_time(params: Params, now_ms: int, speed: float) -> tuple[int, int]:
    """Timestamp and recvWindow (ms of wall time), or -1102, -1131, -1021. The window is as long in wall time at any speed of the market."""
    if not params.get("timestamp"):
        raise ApiError(-1102, "timestamp")
    timestamp = params.integer("timestamp")
    window = params.integer("recvWindow")
    assert timestamp is not None
    if window is None:
        window = RECV_WINDOW_DEFAULT_MS
    if window > RECV_WINDOW_MAX_MS:
        raise ApiError(-1131)
    if timestamp >= now_ms + AHEAD_MAX_MS * speed:
        raise ApiError(-1021, msg=AHEAD_TEXT)
    if now_ms - timestamp > window * speed:
        raise ApiError(-1021)
    return timestamp, window
