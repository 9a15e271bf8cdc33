"""The parse stage: blocks in, accepted batches or notices out."""

from __future__ import annotations

from stages.line_codec import LineCodec
from stages.message import Batch, Block, Ledger
from stages.parse import Parse, rejection_words
from tests.stages.fakes import FakeSender


def _parse(data: bytes, *, max_recipients: int = 3) -> tuple[Batch | None, FakeSender, Ledger]:
    ledger, sender = Ledger(), FakeSender()
    parse = Parse(LineCodec(max_recipients), ledger, rejection_words(max_recipients))
    return parse(Block(sender, data, data.count(b"\n"), len(data) + 100, 0)), sender, ledger


def test_parse_makes_a_batch_when_lines_are_messages() -> None:
    """Copies are accepted, and the batch holds the credit of the whole block, empty lines included."""
    batch, sender, ledger = _parse(b"bob: a\nbob: b\n\nbob, eve: c\n")
    assert batch is not None
    runs = [(run.recipients, run.texts) for run in batch.runs]
    assert runs == [(("bob",), b"a\nb\n"), (("bob", "eve"), b"c\n")]
    assert (batch.messages, batch.nbytes, batch.copies) == (4, 127, 4)
    assert ledger.accepted == 4
    assert sender.notices == []
    assert sender.given_back == []


def test_parse_returns_credit_when_nothing_is_to_be_routed() -> None:
    """A block of rejected and empty lines costs its sender no credit for longer than the call."""
    batch, sender, ledger = _parse(b"\nhello\n\r\n")
    assert batch is None
    assert sender.given_back == [(3, 109)]
    assert ledger.accepted == 0


def test_parse_notifies_once_for_each_word_when_lines_are_rejected() -> None:
    """Rejected lines are counted by word and told with one merged Notice each; good ones go on."""
    batch, sender, ledger = _parse(b"x\nbob: hi\n\xff: x\ny\na,b,c,d: x\nbob: \x00\n")
    assert batch is not None
    assert batch.copies == 1
    assert ledger.rejected == {"bad-line": 2, "bad-text": 2, "too-many-recipients": 1}
    assert sorted(sender.notices) == [
        ("bad-line", 'expected "login1, login2: message"', "", 2),
        ("bad-text", "a message is UTF-8 without control characters", "", 2),
        ("too-many-recipients", "at most 3 in one line", "", 1),
    ]
    assert ledger.is_balanced
