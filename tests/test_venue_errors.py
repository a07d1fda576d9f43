"""Every refusal of the venue asks for one reaction, and an uncertain write is never called certain."""

import re
from pathlib import Path

import pytest

from src.error_handler import AegisError, Degraded, Fatal, Halt, Rejected, Retryable, Unknown
from src.venue.errors import REACTIONS, Reaction, code_of, from_transport, header_s, is_fine, to_error

OVERLOAD = "Request throttled by system-level protection. Reduce-only/close-position orders are exempt. Please try again."
UNSURE = "Unknown error, please check your request or try again later."
ANSWERS: list[tuple[int, int, str, type[AegisError], type[AegisError]]] = [
    # status, code, text, reaction to a read, reaction to a write
    (503, 0, UNSURE, Retryable, Unknown),
    (503, -1000, UNSURE, Retryable, Unknown),
    (503, 0, "Service Unavailable.", Retryable, Retryable),
    (503, -1008, OVERLOAD, Retryable, Retryable),
    (503, -1001, "Internal error; unable to process your request. Please try again.", Retryable, Retryable),
    (503, 0, "<html><h1>503 Service Unavailable</h1></html>", Retryable, Unknown),
    (500, -1001, "Internal error; unable to process your request.", Retryable, Unknown),
    (500, 0, "", Retryable, Unknown),
    (502, 0, "<html>Bad Gateway</html>", Retryable, Unknown),
    (504, 0, "", Retryable, Unknown),
    (500, -2019, "Margin is insufficient.", Retryable, Unknown),
    (408, -1007, "Timeout waiting for response from backend server.", Retryable, Unknown),
    (408, 0, "", Retryable, Unknown),
    (400, -1006, "An unexpected response was received from the message bus.", Retryable, Unknown),
    (400, -1007, "Timeout waiting for response from backend server.", Retryable, Unknown),
    (400, -1000, "An unknown error occurred while processing the request.", Retryable, Unknown),
    (200, 0, "{\"orderId\":12", Retryable, Unknown),
    (202, 0, "", Retryable, Unknown),
    (400, -1021, "Timestamp for this request is outside of the recvWindow.", Retryable, Retryable),
    (400, -5028, "Timestamp for this request is outside of the ME recvWindow.", Retryable, Retryable),
    (500, -1021, "Timestamp for this request is outside of the recvWindow.", Retryable, Retryable),
    (429, -1003, "Too many requests; current limit is 2400 requests per minute.", Retryable, Retryable),
    (418, -1003, "Way too many requests; IP banned until 1796000000000.", Retryable, Retryable),
    (429, -1015, "Too many new orders; current limit is 300 orders per TEN_SECONDS.", Retryable, Retryable),
    (429, 0, "", Retryable, Retryable),
    (403, 0, "<html>", Retryable, Retryable),
    (404, 0, "", Rejected, Rejected),
    (451, 0, "Service unavailable from a restricted location", Fatal, Fatal),
    (401, -2014, "API-key format invalid.", Fatal, Fatal),
    (401, -2015, "Invalid API-key, IP, or permissions for action.", Fatal, Fatal),
    (401, 0, "", Fatal, Fatal),
    (400, -1022, "Signature for this request is not valid.", Fatal, Fatal),
    (400, -4061, "Order's position side does not match user's setting.", Fatal, Fatal),
    (400, -2019, "Margin is insufficient.", Rejected, Rejected),
    (400, -2022, "ReduceOnly Order is rejected.", Rejected, Rejected),
    (400, -4116, "ClientOrderId is duplicated.", Rejected, Rejected),
    (400, -4130, "", Rejected, Rejected),
    (400, -4046, "No need to change margin type.", Rejected, Rejected),
    (400, -4400, "Futures Trading Quantitative Rules violated", Degraded, Degraded),
    (400, -4087, "User can only place reduce only order", Degraded, Degraded),
    (400, -2023, "User in liquidation mode now.", Halt, Halt),
    (400, -4192, "", Halt, Halt),
    (400, -99999, "a code of next year", Rejected, Rejected),
    (400, 0, "<html>", Rejected, Rejected),
]


@pytest.mark.parametrize(("status", "code", "text", "read", "write"), ANSWERS, ids=[f"{a[0]}_{a[1]}_{i}" for i, a in enumerate(ANSWERS)])
def test_an_answer_asks_for_its_reaction(status: int, code: int, text: str, read: type[AegisError], write: type[AegisError]) -> None:
    assert type(to_error(status, code, text, write=False)) is read
    assert type(to_error(status, code, text, write=True)) is write


def test_no_answer_of_500_and_above_is_certain_unless_the_code_says_so() -> None:
    certain = {-1003, -1008, -1015, -1021, -5028}
    for code in REACTIONS.keys() - certain:
        for status in (500, 502, 504):
            assert type(to_error(status, code, "x", write=True)) is Unknown


def test_the_text_names_the_code_the_venues_words_and_what_would_be_right() -> None:
    error = to_error(400, -1021, "Timestamp for this request is outside of the recvWindow.", write=True)
    assert str(error).startswith("venue -1021 Timestamp for this request is outside of the recvWindow.: clock")
    assert code_of(error) == -1021 and error.fields["status"] == 400


def test_an_error_page_is_told_in_a_bearable_length() -> None:
    assert len(str(to_error(502, 0, "<html>\n" + "x" * 5000, write=False))) < 300


def test_a_ban_carries_its_end() -> None:
    banned = to_error(418, -1003, "Way too many requests; IP banned until 1796000000000. Use ws", write=False)
    assert banned.fields["banned_until_ms"] == 1796000000000
    assert to_error(418, -1003, "Way too many requests", write=False, retry_after_s=7.0).fields["retry_after_s"] == 7.0
    assert to_error(418, 0, "", write=False).fields["retry_after_s"] == 120.0
    assert "retry_after_s" not in to_error(429, -1003, "Too many requests", write=False).fields


def test_a_refusal_that_concerns_one_symbol_says_so() -> None:
    assert to_error(400, -4140, "Invalid symbol status for opening position.", write=True).fields["close_only"] is True
    assert "close_only" not in to_error(400, -2019, "Margin is insufficient.", write=True).fields


@pytest.mark.parametrize("code", [-4046, -4059, -4171, -5027])
def test_what_is_as_asked_already_is_fine(code: int) -> None:
    assert is_fine(to_error(400, code, "", write=True))


@pytest.mark.parametrize("code", [-2011, -2013, -4116, -2019, 0])
def test_other_refusals_are_not_fine(code: int) -> None:
    assert not is_fine(to_error(400, code, "", write=True))


CUTS = [(False, True, Retryable), (False, False, Retryable), (True, False, Retryable), (True, True, Unknown)]


@pytest.mark.parametrize(("sent", "write", "kind"), CUTS)
def test_a_cut_connection_is_unknown_only_for_a_write_that_may_have_left(sent: bool, write: bool, kind: type[AegisError]) -> None:
    error = from_transport(ConnectionResetError("reset by peer"), sent=sent, write=write)
    assert type(error) is kind and "ConnectionResetError: reset by peer" in str(error) and error.fields["sent"] is sent


def test_retry_after_is_read_where_it_is_a_number() -> None:
    assert header_s({"Retry-After": "17"}) == 17.0
    assert header_s({"Retry-After": "Wed, 21 Oct"}) is None and header_s({}) is None


def test_each_code_stands_in_the_table_once() -> None:
    codes = re.findall(r"^    (-\d+): \(", Path("src/venue/errors.py").read_text(), re.MULTILINE)
    assert len(codes) == len(set(codes)) == len(REACTIONS) and all(isinstance(row[0], Reaction) for row in REACTIONS.values())
