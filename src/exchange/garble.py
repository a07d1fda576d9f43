"""Frames and answers as they should not be: cut off, of an unknown kind, with fields that nobody has heard of."""

from __future__ import annotations

from src.exchange.faults import Kind

_FIELD = b',"zz":{"new":[1,"x",null]}'
_ELEMENT = b'{"e":"neverHeardOf","zz":1}'


def frames_of(kind: Kind, payload: bytes, now_ms: int) -> list[bytes]:
    """What is sent in the place of one JSON payload. ``delay`` is the sender's own business: the payload itself."""
    match kind:
        case Kind.DROP:
            return []
        case Kind.DUPLICATE:
            return [payload, payload]
        case Kind.MALFORMED:
            return [cut(payload)]
        case Kind.UNKNOWN_FRAME:
            return [b'{"e":"neverHeardOf","E":%d,"T":%d,"o":{"zz":[1,2]}}' % (now_ms, now_ms), payload]
        case Kind.UNKNOWN_FIELD:
            return [extended(payload)]
    return [payload]


def spoiled(kind: Kind, body: bytes) -> bytes:
    """A whole answer, cut off or with what nobody has heard of."""
    return cut(body) if kind is Kind.CUT_ANSWER else extended(body)


def cut(payload: bytes) -> bytes:
    """The first half, which is never JSON; a character of several bytes stays whole."""
    return payload[: max(1, len(payload) // 2)].decode("utf-8", "ignore").encode()


def extended(payload: bytes) -> bytes:
    """With a field nobody knows; a list gets an element nobody knows."""
    if payload.endswith(b"}"):
        return payload[:-1] + (_FIELD if len(payload) > 2 else _FIELD[1:]) + b"}"
    if payload.endswith(b"]"):
        return payload[:-1] + (b"," if len(payload) > 2 else b"") + _ELEMENT + b"]"
    return payload
