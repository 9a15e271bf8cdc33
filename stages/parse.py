"""The first stage: a block of lines becomes a batch whose copies are accepted, or notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.message import Batch

if TYPE_CHECKING:
    from stages.line_codec import LineCodec
    from stages.message import Block, Ledger

__all__ = ["Parse", "rejection_words"]

_REJECTIONS = {
    "bad-line": 'expected "login1, login2: message"',
    "bad-text": "a message is UTF-8 without control characters",
}


def rejection_words(max_recipients: int) -> dict[str, str]:
    """What a Notice says to people about each machine word of a rejected line."""
    return _REJECTIONS | {"too-many-recipients": f"at most {max_recipients} in one line"}


class Parse:
    """Handler of the parse stage; made once for a worker.

    Args:
        codec: how bytes become messages.
        ledger: where accepted copies and rejected lines are counted.
        words: for each machine word of a rejected line, the words for people.
    """

    def __init__(self, codec: LineCodec, ledger: Ledger, words: dict[str, str]) -> None:
        self._codec = codec
        self._ledger = ledger
        self._words = words

    def __call__(self, block: Block) -> Batch | None:
        """Parse one block; None when nothing in it has to be routed, its credit is then returned."""
        sender, data, lines, cost_bytes, counted_bytes = block
        runs, rejected = self._codec.parse(data, lines)
        for word, count in rejected.items():
            self._ledger.rejected[word] += count
            sender.notify(word, self._words[word], count=count)
        if not runs:
            block.discard(self._ledger)
            return None
        return Batch(
            sender,
            runs,
            messages=lines,
            nbytes=cost_bytes,
            ledger=self._ledger,
            counted_bytes=counted_bytes,
        )
