"""The table of reasons: operators' dashboards and clients depend on its labels and words."""

from __future__ import annotations

import dataclasses

import pytest

from chat_gateway.disconnect import Disconnect, Reason
from stages.notices import notice_line

REASONS = {name: value for name, value in vars(Disconnect).items() if isinstance(value, Reason)}


def test_disconnect_has_these_labels_and_words_when_listed() -> None:
    """Labels are in metrics and words on the wire, so that neither changes unnoticed."""
    assert {reason.label: reason.word for reason in REASONS.values()} == {
        "client_closed": "",
        "client_lost": "",
        "not_line_protocol": "",
        "bad_login": "bad-login",
        "login_taken": "login-taken",
        "login_timeout": "login-timeout",
        "line_too_long": "line-too-long",
        "busy": "busy",
        "shutdown": "shutdown",
        "restarting": "restarting",
        "slow_consumer": "slow-consumer",
        "error": "error",
    }


@pytest.mark.parametrize("name", REASONS)
def test_disconnect_label_is_the_constant_in_small_letters_when_looked_up(name: str) -> None:
    """Whoever finds a label in a log finds its constant in the code."""
    assert REASONS[name].label == name.lower()


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
def test_disconnect_words_fit_into_one_line_when_there_is_a_word(reason: Reason) -> None:
    """A Notice has a machine word without spaces, then words for people; without the first no second."""
    assert bool(reason.word) == bool(reason.words)
    if reason.word:
        assert notice_line(reason.word, reason.words) == f"! {reason.word} {reason.words}\n".encode()
        assert len((reason.word + reason.words).split()) == len(reason.words.split())


def test_reason_cannot_be_changed_when_it_is_shared() -> None:
    """All connections share the constants."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Disconnect.BUSY.word = "x"  # type: ignore[misc]  # the point of the test
