"""Frames of the two busy streams, aggregate trades and best quotes, read in a kernel: straight from the venue's text into rows.

Only what has the venue's plain form is read here: one object in ``data``, its values whole numbers, strings without an escape, or literals.
Whatever is not exactly that is *declined*, and somebody else reads it or calls it rubbish; so declining is always safe, and what is read
equals what a full JSON decoder would say, floats to the last bit (a mantissa below 2**53 divided by a power of ten up to 10**22). Values that
no row has are passed over, whatever their type.

Text is looked at eight bytes at a time, as words whose lowest byte is the first letter, as ``strlen`` of C libraries and simdjson do. Arithmetic
on all eight at once marks bytes by their highest bit; what is above the lowest mark may be wrong, and is never used.

Invariant: no scan goes beyond a TEXT_END, and a text has eight of them behind its last frame; so a word can be loaded wherever a scan is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from src.compiler import lean_njit
from src.conflate import ROWS_MAX, Staged, staging
from src.ring_buffer import intrinsic

TEXT_END = 0
"""Stands between two frames of one text, and eight times behind the last."""
WORD_BYTES = 8
QUOTATION, BACKSLASH, COMMA, COLON, OPENS, CLOSES, SPACE, POINT, ZERO, NINE = (ord(letter) for letter in '"\\,:{} .09')
ABSENT, NUMBER, STRING, TRUE, FALSE, NULL = range(6)
DIGITS_MAX = 18
MANTISSA_MAX = 1 << 53
TENS = np.array([10.0**power for power in range(23)])
WHOLE_TENS = np.array([10**power for power in range(19)], np.int64)
MIX = np.uint64(0x9E3779B97F4A7C15)


def _every(byte: int) -> np.uint64:
    return np.uint64(0x0101_0101_0101_0101 * byte)


def _word(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text[:WORD_BYTES], "little"))


ONES, HIGHEST, QUOTATIONS, BACKSLASHES, SPACES, ZEROS = (_every(byte) for byte in (1, 0x80, QUOTATION, BACKSLASH, SPACE, ZERO))
PAST_NINE = _every(0x80 - 10)
ONE_LETTER, ONE_LETTER_MASK = _word(b'"\0":'), _word(b"\xff\0\xff\xff")
TRUE_WORD, FALSE_WORD, NULL_WORD, DATA_WORD = (_word(text) for text in (b"true", b"false", b"null", b"data"))
FOUR_BYTES, FIVE_BYTES = (_word(b"\xff" * count) for count in (4, 5))
AGG_TRADE, BOOK_TICKER = (np.frombuffer(word, np.uint8) for word in (b"aggTrade", b"bookTicker"))
LETTER = np.uint64(0xFF)
PAIRS = np.uint64(0x0000_00FF_0000_00FF)
PAIRS_AT_0, PAIRS_AT_2 = np.uint64((1_000_000 << 32) + 100), np.uint64((10_000 << 32) + 1)
U8, U10, U16, U32 = (np.uint64(number) for number in (8, 10, 16, 32))

Text = npt.NDArray[np.uint8]
Int = Any
"""int64 in kernels."""
Values = npt.NDArray[np.int64]
"""A column for each letter from ``@`` on, by which a value was named: its kind, its number or where its text begins, where that ends."""


# --- words -------------------------------------------------------------------------------------------------------------------------------

@intrinsic
def word_at(typing: Any, text: Any, at: Any) -> Any:
    """``word_at(text, at) -> u64``: eight bytes from there on, the first of them lowest."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(text, types.intp), code


@intrinsic
def first_mark(typing: Any, marks: Any) -> Any:
    """``first_mark(u64) -> i64``: the place of the lowest marked byte; 8 when there is none."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))
        return builder.lshr(bits, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), code


@lean_njit(cache=True)
def _string_end(text: Text, at: int) -> int:
    """Of a string whose text begins at ``at``: where its closing quotation mark is. -1: declined."""
    while True:
        word = word_at(text, at)
        quotation, backslash = word ^ QUOTATIONS, word ^ BACKSLASHES
        odd = ((quotation - ONES) & ~quotation) | ((backslash - ONES) & ~backslash) | ((word - SPACES) & ~word) | (word + ONES) | word
        place = first_mark(odd & HIGHEST)
        at += place
        if place < WORD_BYTES:
            return at if text[at] == QUOTATION else -1


@lean_njit(cache=True)
def _eight_digits(word: Int) -> Int:
    """The number that eight digits are, each less ZERO: pairs, then all four pairs with two multiplications."""
    word = word * U10 + (word >> U8)
    return np.int64(((word & PAIRS) * PAIRS_AT_0 + ((word >> U16) & PAIRS) * PAIRS_AT_2) >> U32)


@lean_njit(cache=True)
def _digits(text: Text, at: int) -> tuple[Int, int]:
    """(the whole number that is there, where it ends). Meaningless when it has more than DIGITS_MAX digits."""
    number, start = np.int64(0), at
    while at - start <= DIGITS_MAX:
        word = word_at(text, at) ^ ZEROS
        count = first_mark(((word + PAST_NINE) | word) & HIGHEST)
        if count == 0:
            break
        number = number * WHOLE_TENS[count] + _eight_digits(word << np.uint64(64 - 8 * count))
        at += count
        if count < WORD_BYTES:
            break
    return number, at


# --- JSON --------------------------------------------------------------------------------------------------------------------------------

@lean_njit(cache=True)
def _no_space(text: Text, at: int) -> int:
    while text[at] == SPACE:
        at += 1
    return at


@lean_njit(cache=True)
def _past(text: Text, at: int, letter: int) -> int:
    """Behind this letter, and the spaces on both sides of it. -1: something else stands there."""
    at = _no_space(text, at)
    return _no_space(text, at + 1) if text[at] == letter else -1


@lean_njit(cache=True)
def _value(text: Text, at: int, values: Values, slot: Int) -> Int:
    """A plain value into the slot's column. Where it ends; -1: declined."""
    first = text[at]
    if first == QUOTATION:
        end = _string_end(text, at + 1)
        values[0, slot], values[1, slot], values[2, slot] = STRING, at + 1, end
        return end + 1 if end >= 0 else -1
    if ZERO <= first <= NINE:
        number, end = _digits(text, at)
        values[0, slot], values[1, slot] = NUMBER, number
        return -1 if end - at > DIGITS_MAX or (first == ZERO and end - at > 1) else end
    word = word_at(text, at)
    if word & FOUR_BYTES == TRUE_WORD:
        values[0, slot] = TRUE
        return at + 4
    if word & FIVE_BYTES == FALSE_WORD:
        values[0, slot] = FALSE
        return at + 5
    values[0, slot] = NULL
    return at + 4 if word & FOUR_BYTES == NULL_WORD else -1


@lean_njit(cache=True)
def _name(text: Text, at: int) -> tuple[int, int]:
    """(where the text of a name begins, where it ends), or -1 as its end: declined."""
    return at + 1, _string_end(text, at + 1) if text[at] == QUOTATION else -1


@lean_njit(cache=True)
def _event(text: Text, at: int, values: Values) -> int:
    """An object's values by the letters that name them; those with longer names are passed over. Behind the object; -1: declined."""
    values[0, :] = ABSENT
    at = _past(text, at, OPENS)
    while at >= 0:
        word, slot = word_at(text, at), np.int64(0)
        letter = np.int64((word >> U8) & LETTER)
        if word & ONE_LETTER_MASK == ONE_LETTER and letter != BACKSLASH:
            slot = letter - 64
            at = _no_space(text, at + 4)
        else:
            start, end = _name(text, at)
            if end == start + 1:
                slot = np.int64(text[start]) - 64
            at = _past(text, end + 1, COLON) if end >= 0 else -1
        if at < 0 or not 0 <= slot < values.shape[1] or (slot > 0 and values[0, slot] != ABSENT):
            return -1
        at = _value(text, at, values, slot)
        if at < 0:
            return -1
        behind = _past(text, at, COMMA)
        if behind < 0:
            return _past(text, at, CLOSES)
        at = behind
    return -1


@lean_njit(cache=True)
def _frame(text: Text, at: int, values: Values) -> int:
    """Where a frame ends whose event is now in ``values``. -1: declined."""
    at = _past(text, at, OPENS)
    seen = False
    while at >= 0:
        start, end = _name(text, at)
        at = _past(text, end + 1, COLON) if end >= 0 else -1
        if at < 0:
            return -1
        if end - start == 4 and word_at(text, start) & FOUR_BYTES == DATA_WORD:
            if seen:
                return -1
            seen = True
            at = _event(text, at, values)
        else:
            _, end = _name(text, at)
            at = end + 1 if end >= 0 else -1
        if at < 0:
            return -1
        behind = _past(text, at, COMMA)
        if behind < 0:
            at = _past(text, at, CLOSES)
            return at if seen and at >= 0 and text[at] == TEXT_END else -1
        at = behind
    return -1


# --- events ------------------------------------------------------------------------------------------------------------------------------

@lean_njit(cache=True)
def _decimal(text: Text, values: Values, letter: int) -> float:
    """The float nearest to a decimal; -1: declined."""
    slot = letter - 64
    if values[0, slot] != STRING:
        return -1.0
    start, end = values[1, slot], values[2, slot]
    if end - start > DIGITS_MAX or (text[start] == ZERO and end - start > 1 and text[start + 1] != POINT):
        return -1.0
    mantissa, at = _digits(text, start)
    behind = 0
    if at > start and at < end and text[at] == POINT:
        fraction, stop = _digits(text, at + 1)
        behind, at = stop - at - 1, stop
        if behind == 0:
            return -1.0
        mantissa = mantissa * WHOLE_TENS[behind] + fraction
    if at != end or at == start or mantissa >= MANTISSA_MAX:
        return -1.0
    return float(mantissa / TENS[behind])


@lean_njit(cache=True)
def _mixed(digest: Int, word: Int) -> Int:
    digest = (digest ^ word) * MIX
    return digest ^ (digest >> U32)


@lean_njit(cache=True)
def name_digest(text: Text, at: int, end: int) -> Int:
    """A name's hash, word by word, in 63 bits: never 0. Names that were made to have the hash of another are not told apart from it."""
    digest = np.uint64(end - at + 1)
    while at < end:
        word = word_at(text, at)
        if end - at < WORD_BYTES:
            word &= (np.uint64(1) << np.uint64(8 * (end - at))) - np.uint64(1)
        digest = _mixed(digest, word)
        at += WORD_BYTES
    return digest | np.uint64(1)


@lean_njit(cache=True)
def _key(text: Text, values: Values, names: Any) -> Int:
    """The first word of the symbol's rows; -1: nobody we know."""
    slot = ord("s") - 64
    if values[0, slot] != STRING:
        return -1
    digest = name_digest(text, values[1, slot], values[2, slot])
    place = (digest >> U32) & np.uint64(len(names) - 1)
    while names[place, 0] != digest:
        if names[place, 0] == 0:
            return -1
        place = (place + np.uint64(1)) & np.uint64(len(names) - 1)
    return np.int64(names[place, 1])


@lean_njit(cache=True)
def _is_event(text: Text, values: Values, word: Text, numbers: Any) -> bool:
    """Whether it is that event, and has a whole number under each of these letters."""
    slot = ord("e") - 64
    start = values[1, slot]
    if values[0, slot] != STRING or values[2, slot] - start != len(word):
        return False
    same = True
    for i in range(len(word)):
        same &= text[start + i] == word[i]
    for letter in numbers:
        same &= values[0, letter - 64] == NUMBER
    return same


_TRADE_NUMBERS = np.frombuffer(b"aflTE", np.uint8).astype(np.int64)
_QUOTE_NUMBERS = np.frombuffer(b"TE", np.uint8).astype(np.int64)


@lean_njit(cache=True)
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


@lean_njit(cache=True)
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


@lean_njit(cache=True)
def frames_in(text: Text) -> int:
    """How many frames the text has. More than were put into it: one of them has an end inside."""
    ends = 0
    for letter in text:
        ends += letter == TEXT_END
    return ends - WORD_BYTES + 1


@lean_njit(cache=True)
def read_rows(text: Text, names: Any, values: Values, staged: Staged, trades: bool, at: int, row: int) -> tuple[int, int, Int]:
    """Frames from ``at`` on into rows from ``row`` on, until one is declined or the rows are full. ``trades``: which of the two streams.
    (where the next frame begins, the next row, the event time of the last one or 0)"""
    event_ms = np.int64(0)
    while at < len(text) - WORD_BYTES and row < ROWS_MAX:
        end = _frame(text, at, values)
        if end < 0:
            break
        if not (_trade(text, values, names, staged, row) if trades else _quote(text, values, names, staged, row)):
            break
        event_ms = values[1, ord("E") - 64]
        at, row = end + 1, row + 1
    return at, row, event_ms


def text_of(frames: Sequence[bytes]) -> Text:
    """Frames as one text for ``read_rows``."""
    return np.frombuffer(bytes([TEXT_END]).join(frames) + bytes([TEXT_END]) * WORD_BYTES, np.uint8)


def names_table(keys: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Symbols' first words by the hash of their names, as ``read_rows`` looks them up."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    table = np.zeros((size, 2), np.uint64)
    for name, key in keys.items():
        letters = text_of([name.encode()])
        digest = name_digest(letters, 0, len(letters) - WORD_BYTES)
        place = (int(digest) >> 32) % size  # the lowest bit is the same in all
        while table[place, 0]:
            place = (place + 1) % size
        table[place] = digest, key
    return table


def scratch() -> Values:
    """What ``read_rows`` works in."""
    return np.zeros((3, ord("z") - 63), np.int64)


def compile_reading() -> None:
    """Compile the kernels, or load them."""
    text = text_of([])
    read_rows(text, names_table({"": 0}), scratch(), staging()[1], True, 0, frames_in(text))
