"""What became of the copies of a test: as the clients were told, and as the gateway's metrics say."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.gateway_process import GatewayProcess

__all__ = ["assert_adds_up", "notice_counts", "options", "whole_lines"]

_REFUSED = re.compile(r"! (refused|unknown-recipient)(?: (\S+):)? (?:(\d+) messages?, )?[a-z ]+")


def options(**values: object) -> list[str]:
    """Arguments for a gateway: `outbox__linger_s=1` sets `outbox.linger_s`."""
    return [f"--set={key.replace('__', '.')}={value}" for key, value in values.items()]


def whole_lines(received: bytes | bytearray) -> bytes:
    """Without a last line that is torn."""
    return bytes(received[: received.rfind(b"\n") + 1])


def notice_counts(received: bytes | bytearray) -> Counter[str]:
    """How many copies were refused, by recipient, as the Notices among these lines say.

    Those for which the recipient is not named count under the empty name.
    """
    counts: Counter[str] = Counter()
    for line in whole_lines(received).decode().split("\n"):
        if line.startswith("! "):
            found = _REFUSED.fullmatch(line)
            assert found is not None, line
            counts[found[2] or ""] += int(found[3] or 1)
    return counts


def assert_adds_up(gateway: GatewayProcess) -> None:
    """In every metrics record so far each accepted copy has exactly one outcome, or is in flight."""
    records = gateway.found("metrics")
    assert records
    for record in records:
        ended = record["delivered"] + record["stored"] + record["refused"]
        assert record["accepted"] == ended + record["in_flight"], record
        assert record["in_flight"] >= 0
    assert not gateway.found("loop.error")
