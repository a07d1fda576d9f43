"""Frames of the two busy streams, aggregate trades and best quotes, read in a kernel: straight from the venue's text into rows.

Only what has the venue's plain form is read here: one object in ``data``, its values whole numbers, strings without an escape, or literals.
Whatever is not exactly that is *declined*, and somebody else reads it or calls it rubbish; so declining is always safe, and what is read
equals what a full JSON decoder would say, floats to the last bit (a mantissa below 2**53 divided by a power of ten up to 10**22).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from src.compiler import njit
from src.conflate import ROWS_MAX, Staged, staging

TEXT_END = 0
"""Stands between two frames of one text, and behind the last."""
QUOTATION, COMMA, COLON, OPENS, CLOSES, BACKSLASH, SPACE, POINT, ZERO, NINE = (ord(letter) for letter in '",:{}\\ .09')
ABSENT, NUMBER, STRING, TRUE, FALSE, NULL = range(6)
DIGITS_MAX = 18
MANTISSA_MAX = 1 << 53
TENS = np.array([10.0**power for power in range(23)])
FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
DATA, AGG_TRADE, BOOK_TICKER = (np.frombuffer(word, np.uint8) for word in (b"data", b"aggTrade", b"bookTicker"))
TRUE_TEXT, FALSE_TEXT, NULL_TEXT = (np.frombuffer(word, np.uint8) for word in (b"true", b"false", b"null"))

Text = npt.NDArray[np.uint8]
Int = Any
"""int64 in kernels."""
Values = npt.NDArray[np.int64]
"""A column for each letter from ``@`` on, by which a value was named: its kind, its number or where its text begins, where that ends."""


@njit(cache=True)
def _is(text: Text, at: int, end: int, word: Text) -> bool:
    if end - at != len(word):
        return False
    same = True
    for i in range(len(word)):
        same &= text[at + i] == word[i]
    return same


@njit(cache=True)
def _string_end(text: Text, at: int) -> int:
    """Of a string whose text begins at ``at``: where its closing quotation mark is. -1: declined."""
    while at < len(text):
        letter = text[at]
        if letter == QUOTATION:
            return at
        if letter < SPACE or letter == BACKSLASH or letter > 126:
            return -1
        at += 1
    return -1


@njit(cache=True)
def _number(text: Text, at: int, values: Values, slot: Int) -> Int:
    """A whole number into the slot's column. Where it ends; -1: declined."""
    start, number = at, np.int64(0)
    while at < len(text) and ZERO <= text[at] <= NINE:
        number = number * 10 + np.int64(text[at]) - ZERO
        at += 1
    if at == start or at - start > DIGITS_MAX or (text[start] == ZERO and at - start > 1):
        return -1
    values[0, slot], values[1, slot] = NUMBER, number
    return at


@njit(cache=True)
def _value(text: Text, at: int, values: Values, slot: Int) -> Int:
    """A plain value into the slot's column. Where it ends; -1: declined."""
    if at >= len(text):
        return -1
    first = text[at]
    if first == QUOTATION:
        end = _string_end(text, at + 1)
        values[0, slot], values[1, slot], values[2, slot] = STRING, at + 1, end
        return end + 1 if end >= 0 else -1
    if ZERO <= first <= NINE:
        return _number(text, at, values, slot)
    kind, word = (TRUE, TRUE_TEXT) if first == TRUE_TEXT[0] else (FALSE, FALSE_TEXT) if first == FALSE_TEXT[0] else (NULL, NULL_TEXT)
    end = at + len(word)
    if end > len(text) or not _is(text, at, end, word):
        return -1
    values[0, slot] = kind
    return end


@njit(cache=True)
def _past(text: Text, at: int, letter: int) -> int:
    """Behind this letter, and the spaces on both sides of it. -1: something else stands there."""
    if at < 0:
        return -1
    while at < len(text) and text[at] == SPACE:
        at += 1
    if at >= len(text) or text[at] != letter:
        return -1
    at += 1
    while at < len(text) and text[at] == SPACE:
        at += 1
    return at


@njit(cache=True)
def _event(text: Text, at: int, values: Values) -> int:
    """An object's values by the letters that name them; those with longer names are passed over. Behind the object; -1: declined."""
    values[0, :] = ABSENT
    at = _past(text, at, OPENS)
    while at >= 0:
        start = _past(text, at, QUOTATION)
        if start < 0 or text[start - 1] != QUOTATION:
            return -1
        end = _string_end(text, start)
        slot: Int = np.int64(text[start]) - 64 if end == start + 1 else 0
        if not 0 <= slot < values.shape[1] or (slot > 0 and values[0, slot] != ABSENT):
            return -1
        at = _past(text, end + 1, COLON) if end >= 0 else -1
        at = _value(text, at, values, slot) if at >= 0 else -1
        behind = _past(text, at, COMMA)
        if behind < 0:
            return _past(text, at, CLOSES)
        at = behind
    return -1


@njit(cache=True)
def _frame(text: Text, at: int, values: Values) -> int:
    """Where a frame ends whose event is now in ``values``. -1: declined."""
    at = _past(text, at, OPENS)
    seen = False
    while at >= 0:
        start = _past(text, at, QUOTATION)
        if start < 0 or text[start - 1] != QUOTATION:
            return -1
        end = _string_end(text, start)
        at = _past(text, end + 1, COLON) if end >= 0 else -1
        if at < 0:
            return -1
        if _is(text, start, end, DATA):
            if seen:
                return -1
            seen = True
            at = _event(text, at, values)
        elif text[at] != QUOTATION:
            return -1
        else:
            at = _string_end(text, at + 1) + 1
            if at == 0:
                return -1
        behind = _past(text, at, COMMA)
        if behind < 0:
            at = _past(text, at, CLOSES)
            return at if seen and at < len(text) and text[at] == TEXT_END else -1
        at = behind
    return -1


@njit(cache=True)
def _decimal(text: Text, values: Values, letter: int) -> float:
    """The float nearest to a decimal; -1: declined."""
    slot = letter - 64
    if values[0, slot] != STRING:
        return -1.0
    at, end = values[1, slot], values[2, slot]
    mantissa, behind, point = np.int64(0), 0, -1
    if end - at > DIGITS_MAX or end == at or (end - at > 1 and text[at] == ZERO and text[at + 1] != POINT):
        return -1.0
    for i in range(at, end):
        if ZERO <= text[i] <= NINE:
            mantissa = mantissa * 10 + np.int64(text[i]) - ZERO
        elif text[i] == POINT and point < 0 and at < i < end - 1:
            point, behind = i, end - 1 - i
        else:
            return -1.0
    return float(mantissa / TENS[behind]) if mantissa < MANTISSA_MAX else -1.0


@njit(cache=True)
def _key(text: Text, values: Values, names: Any) -> Int:
    """The first word of the symbol's rows; -1: nobody we know."""
    if values[0, ord("s") - 64] != STRING:
        return -1
    digest = FNV_OFFSET
    for i in range(values[1, ord("s") - 64], values[2, ord("s") - 64]):
        digest = (digest ^ np.uint64(text[i])) * FNV_PRIME
    place = digest & np.uint64(len(names) - 1)
    while names[place, 0] != digest:
        if names[place, 0] == 0:
            return -1
        place = (place + np.uint64(1)) & np.uint64(len(names) - 1)
    return np.int64(names[place, 1])


@njit(cache=True)
def _is_event(text: Text, values: Values, word: Text, numbers: Any) -> bool:
    """Whether it is that event, and has a whole number under each of these letters."""
    for letter in numbers:
        if values[0, letter - 64] != NUMBER:
            return False
    return values[0, ord("e") - 64] == STRING and _is(text, values[1, ord("e") - 64], values[2, ord("e") - 64], word)


_TRADE_NUMBERS = np.frombuffer(b"aflTE", np.uint8).astype(np.int64)
_QUOTE_NUMBERS = np.frombuffer(b"TE", np.uint8).astype(np.int64)


@njit(cache=True)
def _trade(text: Text, values: Values, names: Any, staged: Staged, row: int) -> bool:
    ints, floats = staged.ints, staged.floats
    maker = values[0, ord("m") - 64]
    if not _is_event(text, values, AGG_TRADE, _TRADE_NUMBERS) or maker not in (TRUE, FALSE):
        return False
    key, price, qty = _key(text, values, names), _decimal(text, values, ord("p")), _decimal(text, values, ord("q"))
    if key < 0 or price < 0 or qty < 0:
        return False
    ints[row, 0], ints[row, 1], floats[row, 2], floats[row, 3] = key, values[1, ord("T") - 64], price, qty
    ints[row, 4], ints[row, 5] = maker == TRUE, values[1, ord("a") - 64]
    ints[row, 6], ints[row, 7] = values[1, ord("f") - 64], values[1, ord("l") - 64]
    return True


@njit(cache=True)
def _quote(text: Text, values: Values, names: Any, staged: Staged, row: int) -> bool:
    ints, floats = staged.ints, staged.floats
    if not _is_event(text, values, BOOK_TICKER, _QUOTE_NUMBERS):
        return False
    key, bid, ask = _key(text, values, names), _decimal(text, values, ord("b")), _decimal(text, values, ord("a"))
    bid_qty, ask_qty = _decimal(text, values, ord("B")), _decimal(text, values, ord("A"))
    if key < 0 or bid < 0 or ask < 0 or bid_qty < 0 or ask_qty < 0:
        return False
    ints[row, 0], ints[row, 1] = key, values[1, ord("T") - 64]
    floats[row, 2], floats[row, 3], floats[row, 4], floats[row, 5] = bid, ask, bid_qty, ask_qty
    return True


@njit(cache=True)
def frames_in(text: Text) -> int:
    """How many frames end in the text. More than were put into it: one of them has an end inside."""
    ends = 0
    for letter in text:
        ends += letter == TEXT_END
    return ends


@njit(cache=True)
def read_rows(text: Text, names: Any, values: Values, staged: Staged, trades: bool, at: int, row: int) -> tuple[int, int, Int]:
    """Frames from ``at`` on into rows from ``row`` on, until one is declined or the rows are full. ``trades``: which of the two streams.
    (where the next frame begins, the next row, the event time of the last one or 0)"""
    event_ms = np.int64(0)
    while at < len(text) and row < ROWS_MAX:
        end = _frame(text, at, values)
        if end < 0:
            break
        if not (_trade(text, values, names, staged, row) if trades else _quote(text, values, names, staged, row)):
            break
        event_ms = values[1, ord("E") - 64]
        at, row = end + 1, row + 1
    return at, row, event_ms


def names_table(keys: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Symbols' first words by the hash of their names, as ``read_rows`` looks them up."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    table = np.zeros((size, 2), np.uint64)
    for name, key in keys.items():
        digest = int(FNV_OFFSET)
        for letter in name.encode():
            digest = (digest ^ letter) * int(FNV_PRIME) % 2**64
        place = digest % size
        while table[place, 0]:
            place = (place + 1) % size
        table[place] = digest, key
    return table


def scratch() -> Values:
    """What ``read_rows`` works in."""
    return np.zeros((3, ord("z") - 63), np.int64)


def compile_reading() -> None:
    """Compile the kernels, or load them."""
    text = np.frombuffer(b"", np.uint8)
    read_rows(text, names_table({}), scratch(), staging()[1], True, 0, frames_in(text))
