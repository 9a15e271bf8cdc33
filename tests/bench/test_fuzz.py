"""The properties that the fuzzer holds the line codec against: they hold, planted defects break them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fuzz import SEEDS, check
from stages.line_codec import LineCodec, LineFramer


@pytest.mark.parametrize("seed", SEEDS)
def test_check_passes_when_the_input_is_a_seed(seed: bytes) -> None:
    """Fuzzing begins with inputs that are in order."""
    check(seed)


@given(st.binary(max_size=300))
def test_check_passes_when_the_input_is_anything(data: bytes) -> None:
    """No input is needed to have a certain form."""
    check(data)


def test_check_fails_when_the_end_of_a_stream_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last line without its end counts."""
    monkeypatch.setattr(LineFramer, "finish", lambda _: b"")
    with pytest.raises(AssertionError, match="a line got lost"):
        check(SEEDS[1])


def test_check_fails_when_recipients_would_get_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix stands before every line of a run."""
    monkeypatch.setattr(LineCodec, "encode", staticmethod(lambda prefix, texts: prefix + texts))
    with pytest.raises(AssertionError, match="would get other lines"):
        check(SEEDS[1] + b"\nbob: 1\nbob: 2\n")
