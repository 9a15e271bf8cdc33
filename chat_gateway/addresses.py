"""What each address has: connections at the same time, and new ones lately. Knows no sockets."""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from pipeline.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.config import LimitsConfig

__all__ = ["Addresses"]

# Addresses whose rate is remembered after their last connection; the one unused for longest is forgotten.
_MAX_IDLE = 4096


class _Address:
    __slots__ = ("bucket", "connections")

    def __init__(self) -> None:
        self.connections = 0  # now
        self.bucket: TokenBucket | None = None  # of new connections; where their rate is limited


class Addresses:
    """Made by a worker, asked by its connections. Loopback is exempt unless `limits.limit_loopback`."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._known: dict[str, _Address] = {}  # idle ones in the order in which they became so
        self._idle: dict[str, None] = {}

    def enter(self, address: str) -> tuple[bool, float]:
        """Count a new connection. Returns whether it may stay, and for how many seconds not to read it.

        Whether it may or not, `leave` must be called for it.
        """
        if not self._is_limited(address):
            return True, 0.0
        entry = self._known.get(address)
        if entry is None:
            entry = self._known[address] = _Address()
        self._idle.pop(address, None)
        entry.connections += 1
        limit = self._limits.connections_per_address
        return not limit or entry.connections <= limit, self._delay_s(entry)

    def leave(self, address: str) -> None:
        """A connection that was counted has ended."""
        entry = self._known.get(address)
        if entry is None:
            return
        entry.connections -= 1
        if entry.connections:
            return
        if entry.bucket is None:
            del self._known[address]
            return
        self._idle[address] = None
        if len(self._idle) > _MAX_IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._known[oldest]

    def __len__(self) -> int:
        return len(self._known)

    def _is_limited(self, address: str) -> bool:
        limits = self._limits
        if not (limits.connections_per_address or limits.new_connections_per_s):
            return False
        return limits.limit_loopback or not ipaddress.ip_address(address.partition("%")[0]).is_loopback

    def _delay_s(self, entry: _Address) -> float:
        rate = self._limits.new_connections_per_s
        if not rate:
            return 0.0
        if entry.bucket is None:
            entry.bucket = TokenBucket(rate, self._limits.new_connections_burst, self._clock)
        return entry.bucket.take()
