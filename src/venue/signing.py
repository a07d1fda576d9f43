"""Credentials and signatures.

Promises:

* the secret appears in no ``repr`` or ``str`` of ours (a printed pickle shows it encoded, which is no protection but no accident either);
* what is signed is exactly what is sent: REST parameters are percent-encoded first and the encoded bytes signed, with the signature last;
  parameters of the WebSocket API are signed sorted by name and not encoded, as the venue asks for there.

A secret is an HMAC secret, or an Ed25519 private key: PEM text (line ends may be written as ``\\n`` in one line, as environment variables
need them) or base64 of its PKCS#8 form. Only Ed25519 keys may log on to a session of the WebSocket API.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode, b85decode, b85encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from src.error_handler import Fatal, mask

Params = Mapping[str, Any] | Iterable[tuple[str, Any]]
"""Request parameters. Values are str, int or Decimal; booleans are the venue's words ``true`` and ``false``."""

_PKCS8_ED25519 = ("MC4CAQAwBQYDK2Vw", "MFECAQEwBQYDK2Vw", "MFMCAQEwBQYDK2Vw")
"""How the base64 of a PKCS#8 Ed25519 key begins, without and with its public key."""


def encode_query(params: Params) -> str:
    """``a=1&b=x%2Fy``: percent-encoded UTF-8 in the given order, without a signature."""
    pairs = params.items() if isinstance(params, Mapping) else params
    return "&".join([f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in pairs])


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """An API key and its secret. Raises Fatal where the secret looks like a private key but is none that the venue takes."""

    key: str
    secret: str
    is_ed25519: bool = field(init=False, compare=False)
    _sign: Callable[[bytes], str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        private_key = _private_key(self.secret)
        object.__setattr__(self, "is_ed25519", private_key is not None)
        object.__setattr__(self, "_sign", _hmac_signer(self.secret) if private_key is None else _ed25519_signer(private_key))

    def __repr__(self) -> str:
        return f"Credentials({mask(self.key)}, {'Ed25519' if self.is_ed25519 else 'HMAC'})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Callable[[bytes], Credentials], tuple[bytes]]:
        return _unpickled, (b85encode(f"{self.key}\0{self.secret}".encode()),)

    def sign_query(self, params: Params) -> str:
        """The query string to send, signature last."""
        query = encode_query(params)
        signature = self._sign(query.encode())
        return f"{query}&signature={quote(signature, safe='') if self.is_ed25519 else signature}"

    def sign_ws(self, params: Mapping[str, Any]) -> str:
        """The signature alone, over all parameters (``apiKey`` and ``timestamp`` included, ``signature`` not among them)."""
        return self._sign("&".join([f"{name}={params[name]}" for name in sorted(params)]).encode())


def _unpickled(encoded: bytes) -> Credentials:
    key, secret = b85decode(encoded).decode().split("\0", 1)
    return Credentials(key, secret)


def _hmac_signer(secret: str) -> Callable[[bytes], str]:
    raw = secret.strip().encode()
    return lambda payload: hmac.digest(raw, payload, "sha256").hex()


def _ed25519_signer(private_key: Ed25519PrivateKey) -> Callable[[bytes], str]:
    sign = private_key.sign
    return lambda payload: b64encode(sign(payload)).decode()


def _private_key(secret: str) -> Ed25519PrivateKey | None:
    """The Ed25519 key in the secret, or None where it is an HMAC secret."""
    text = secret.strip().replace("\\n", "\n")
    is_pem = "-----BEGIN" in text
    if not is_pem and not text.startswith(_PKCS8_ED25519):
        return None
    try:
        loaded = load_pem_private_key(text.encode(), None) if is_pem else load_der_private_key(b64decode(text, validate=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is not chained: its text may quote the key.
        raise Fatal("the API secret looks like a private key but cannot be read: give the whole PEM block, without a pass phrase") from None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise Fatal("the API secret is a private key of another kind: use an Ed25519 key, or an HMAC key and its secret")
    return loaded
