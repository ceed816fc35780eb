"""Streamed text equals whole text, character by character, and stop strings are found wherever pieces end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import InvalidRequestError
from puna.tokenization import IncrementalDetokenizer, StopStringChecker


class BytesPieces:
    """Pieces given as bytes; ids in `special` are control tokens."""

    def __init__(self, table: Sequence[bytes], special: Sequence[int] = (), *, strip: bool = False) -> None:
        self.table = list(table)
        self.special = frozenset(special)
        self.strip_leading_space = strip

    def bytes_of(self, token_id: int) -> bytes:
        return self.table[token_id] if 0 <= token_id < len(self.table) else b""

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special

    def join(self, ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
        data = b"".join(self.bytes_of(i) for i in ids if not (skip_special_tokens and i in self.special))
        return data[1:] if self.strip_leading_space and data.startswith(b" ") else data


class Stub:
    def __init__(self, pieces: BytesPieces) -> None:
        self.pieces = pieces


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(borders)]


@given(st.text(max_size=40), st.lists(st.integers(0, 200), max_size=40), st.booleans())
def test_text_cut_anywhere_comes_out_whole(text: str, cuts: list[int], strip: bool) -> None:
    parts = cut(text.encode(), cuts)
    detokenizer = IncrementalDetokenizer(Stub(BytesPieces(parts, strip=strip)))
    shown = ""
    for token_id in range(len(parts)):
        piece = detokenizer.add(token_id)
        shown += piece
        assert "\ufffd" not in piece or "\ufffd" in text
    assert detokenizer.flush() == ""
    assert shown == (text[1:] if strip and text.startswith(" ") else text)


@given(st.lists(st.binary(max_size=6), max_size=20))
def test_any_bytes_give_the_replacement_decoding_of_their_sum(parts: list[bytes]) -> None:
    detokenizer = IncrementalDetokenizer(Stub(BytesPieces(parts)))
    shown = "".join(detokenizer.add(i) for i in range(len(parts))) + detokenizer.flush()
    assert shown == b"".join(parts).decode("utf-8", "replace")


@given(
    st.lists(st.sampled_from([b" a", b"b", b"\xe4", b"\xbd", b"\xa0", b" ", b"</s>"]), min_size=1, max_size=16),
    st.integers(0, 15),
    st.booleans(),
    st.booleans(),
)
def test_continuation_is_the_whole_decoding_without_the_prompts(
    parts: list[bytes], split: int, strip: bool, skip: bool
) -> None:
    pieces = BytesPieces(parts, [i for i, p in enumerate(parts) if p == b"</s>"], strip=strip)
    ids = list(range(len(parts)))
    prompt, rest = ids[:split], ids[split:]
    before = pieces.join(prompt, skip_special_tokens=skip)
    whole = pieces.join(ids, skip_special_tokens=skip)
    detokenizer = IncrementalDetokenizer(Stub(pieces), prompt, skip_special_tokens=skip)
    shown = detokenizer.extend(rest) + detokenizer.flush()
    try:
        begin = before.decode()
    except UnicodeDecodeError:
        return  # the next test
    assert begin + shown == whole.decode("utf-8", "replace")


def test_a_character_begun_by_the_prompt_is_completed() -> None:
    pieces = BytesPieces([b"x", b"\xe4\xbd", b"\xa0!", b"\xff"])
    assert IncrementalDetokenizer(Stub(pieces), [0, 1]).add(2) == "你!"
    ended = IncrementalDetokenizer(Stub(pieces), [0, 1])
    assert ended.add(3) == "\ufffd\ufffd"


def test_an_incomplete_character_waits_and_shows_at_the_end_only() -> None:
    detokenizer = IncrementalDetokenizer(Stub(BytesPieces([b"\xf0\x9f", b"\x98", b"\x80", b"\xf0\x9f"])))
    assert [detokenizer.add(i) for i in range(4)] == ["", "", "😀", ""]
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_and_unknown_ids() -> None:
    pieces = BytesPieces([b"<s>", b" hi", b"</s>"], [0, 2], strip=True)
    ids = [0, 1, 2, 99, -1]
    assert IncrementalDetokenizer(Stub(pieces)).extend(ids) == "hi"
    assert IncrementalDetokenizer(Stub(pieces), skip_special_tokens=False).extend(ids) == "<s> hi</s>"
    # A prompt of control tokens shows nothing, so the first word still begins the text.
    assert IncrementalDetokenizer(Stub(pieces), [0]).extend([1]) == "hi"
    assert IncrementalDetokenizer(Stub(pieces), [0, 1]).extend([1]) == " hi"


# --- stop strings


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Reference: the stop string that ends first; the longest of those."""
    best = None
    for stop in stops:
        at = text.find(stop)
        if at >= 0:
            key = (at + len(stop), -len(stop))
            if best is None or key < best[0]:
                best = (key, stop)
    return None if best is None else (best[0][0], best[1])


@given(
    st.text("ab<>", max_size=30),
    st.lists(st.text("ab<>", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 40), max_size=20),
    st.booleans(),
)
def test_stop_strings_do_not_depend_on_pieces(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    checker = StopStringChecker(stops, include_stop=include)
    shown, stopped = "", None
    for piece in (part.decode() for part in cut(text.encode(), cuts)):
        result = checker.add(piece)
        shown += result.text
        stopped = result.stop
        expected_so_far = first_stop(text, stops)
        if expected_so_far is not None and not include:
            # What is out never holds a part of the stop string.
            assert len(shown) <= expected_so_far[0] - len(expected_so_far[1])
    expected = first_stop(text, stops)
    if expected is None:
        assert stopped is None and shown + checker.flush() == text
    else:
        end, stop = expected
        assert stopped == stop == checker.stopped
        assert shown == text[: end if include else end - len(stop)]
        assert checker.flush() == "" and checker.add("more").text == ""


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    checker = StopStringChecker(["\n\nUser:"])
    assert [checker.add(t).text for t in ["Hi\n", "\nUs", "age", ".\n"]] == ["Hi", "", "\n\nUsage", "."]
    assert checker.flush() == "\n"
    assert StopStringChecker().add("x").text == "x"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="stop"):
        StopStringChecker(["a", ""])
