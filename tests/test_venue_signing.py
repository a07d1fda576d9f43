"""Signatures are byte-exact, and the secret is never shown."""

import hmac
import pickle
from base64 import b64decode, b64encode
from decimal import Decimal
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from src.error_handler import Fatal
from src.venue.signing import Credentials, encode_query

SECRET = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
ORDER = [("symbol", "BTCUSDT"), ("side", "BUY"), ("type", "LIMIT"), ("quantity", "1"), ("price", "9000"), ("timeInForce", "GTC"),
         ("recvWindow", 5000), ("timestamp", 1591702613943)]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
DER = b64encode(KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()


def test_the_venues_published_example_is_reproduced() -> None:
    query = Credentials("k" * 64, SECRET).sign_query(ORDER)
    assert query.endswith("&timestamp=1591702613943&signature=3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9")


def test_values_are_encoded_before_they_are_signed() -> None:
    query = Credentials("k" * 64, SECRET).sign_query({"symbol": "币安人生USDT", "origClientOrderId": "a/b:c", "quantity": Decimal("0.10")})
    payload, signature = query.split("&signature=")
    assert payload == "symbol=%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9FUSDT&origClientOrderId=a%2Fb%3Ac&quantity=0.10"
    assert signature == hmac.digest(SECRET.encode(), payload.encode(), "sha256").hex()


def test_a_websocket_signature_covers_sorted_unencoded_parameters() -> None:
    signature = Credentials("k" * 64, SECRET).sign_ws({"timestamp": 2, "apiKey": "K", "symbol": "A/B"})
    assert signature == hmac.digest(SECRET.encode(), b"apiKey=K&symbol=A/B&timestamp=2", "sha256").hex()


@pytest.mark.parametrize("secret", [PEM, PEM.replace("\n", "\\n"), DER, f"  {DER}\n"], ids=["pem", "pem-one-line", "pkcs8", "spaces"])
def test_an_ed25519_key_is_recognised_in_every_form(secret: str) -> None:
    credentials = Credentials("k" * 64, secret)
    payload, signature = credentials.sign_query(ORDER).split("&signature=")
    assert credentials.is_ed25519
    KEY.public_key().verify(b64decode(unquote(signature)), payload.encode())
    assert "+" not in signature and "/" not in signature and "=" not in signature


def test_an_hmac_secret_of_base64_letters_stays_an_hmac_secret() -> None:
    assert not Credentials("k" * 64, "M" * 64).is_ed25519


def test_a_key_that_cannot_be_read_is_fatal_and_not_quoted() -> None:
    broken = PEM.replace("MC4CAQ", "XXXXXX")
    with pytest.raises(Fatal) as caught:
        Credentials("k" * 64, broken)
    assert "XXXXXX" not in repr(caught.value) and caught.value.__cause__ is None


def test_a_key_of_another_kind_is_fatal() -> None:
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(Fatal, match="another kind"):
        Credentials("k" * 64, other)


@pytest.mark.parametrize("secret", [SECRET, PEM], ids=["hmac", "ed25519"])
def test_the_secret_is_in_no_text_of_the_credentials(secret: str) -> None:
    credentials = Credentials("key-of-sixty-four-letters", secret)
    shown = f"{credentials} {credentials!r} {[credentials]} {pickle.dumps(credentials)!r}"
    assert secret not in shown and secret[30:50] not in shown and "key-of-sixty-four-letters" not in shown


def test_credentials_reach_a_child_process_whole() -> None:
    credentials = Credentials("key", PEM)
    copy = pickle.loads(pickle.dumps(credentials))
    assert copy == credentials and copy.sign_ws({"a": 1}) == credentials.sign_ws({"a": 1})


def test_the_query_of_an_unsigned_call_is_encoded_too() -> None:
    assert encode_query({"symbol": "币USDT", "limit": 5}) == "symbol=%E5%B8%81USDT&limit=5"
