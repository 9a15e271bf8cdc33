"""A log that is written into a pipe, and what comes out of it."""

from __future__ import annotations

import os
import unicodedata
from datetime import UTC, datetime
from typing import Any

import orjson
from hypothesis import strategies as st

from chat_gateway.logs import Log, open_log

__all__ = ["ANY_TEXT", "NOW", "PATIENCE_S", "Tap", "is_clean", "raises"]

# Far longer than anything here takes; only a broken log waits for it.
PATIENCE_S = 20.0

NOW = datetime(2024, 2, 29, 12, 34, 56, 789_000, tzinfo=UTC).timestamp()

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.text(
    st.sampled_from(BIDI + '\0\n\r\x1b\x7f\x80\x85\x9f\u2028\u2029\ud800\udcff\ufeff\U000e0001a"\\= ')
)


class Tap:
    """A log into a pipe, a clock to move, and the lines that came out."""

    def __init__(self, **chosen: Any) -> None:
        self.now = 1_000.0
        self._read_fd, write_fd = os.pipe()
        usual: dict[str, Any] = {
            "format": "json",
            "level": "debug",
            "queue_records": 1_000,
            "flood_per_s": 10,
            "clock": lambda: self.now,
            "now": lambda: NOW,
        }
        self.log: Log = open_log(**(usual | chosen), fd=write_fd)
        os.close(write_fd)

    def output(self) -> bytes:
        """Close the log; all that was written (a pipe holds 64 KiB, which is enough here)."""
        assert self.log.close(PATIENCE_S) == 0
        with os.fdopen(self._read_fd, "rb") as file:
            return file.read()

    def records(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.output().splitlines()]

    def lines(self) -> list[str]:
        return self.output().decode().splitlines()


def raises(message: str) -> None:
    raise ValueError(message)


def is_clean(text: str) -> bool:
    """No control, format, line or surrogate character, so nothing that acts on a terminal."""
    return all(unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)
