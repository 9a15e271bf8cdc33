"""What each address has: connections at the same time, and new ones lately. Knows no sockets.

An address of IPv6 counts as its network of `_IPV6_PREFIX_BITS`: one host easily has all addresses of that.
"""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.config import LimitsConfig

__all__ = ["Addresses"]

# Addresses whose rate is remembered after their last connection; the one unused for longest is forgotten.
_MAX_IDLE = 4096

_IPV6_PREFIX_BITS = 64  # the rest a host chooses for itself, as often as it likes (RFC 4291, 2.5.4; RFC 8981)


class _Address:
    """Made at its first connection, dropped after its last one once its rate need not be remembered."""

    __slots__ = ("bucket", "connections")

    def __init__(self) -> None:
        self.connections = 0  # now
        self.bucket: TokenBucket | None = None  # of new connections; where their rate is limited


class Addresses:
    """Made by a worker, asked by its connections. Loopback is exempt unless `limits.limit_loopback`."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._known: dict[str, _Address] = {}
        self._idle: dict[str, None] = {}  # of these, those without a connection, in the order they became so

    def enter(self, address: str) -> tuple[bool, float]:
        """Count a new connection. Returns whether it may stay, and for how many seconds not to read it.

        Whether it may or not, `leave` must be called for it. One that may not takes nothing from the rate.
        """
        key = self._key(address)
        if key is None:
            return True, 0.0
        entry = self._known.get(key)
        if entry is None:
            entry = self._known[key] = _Address()
        self._idle.pop(key, None)
        entry.connections += 1
        limit = self._limits.connections_per_address
        if limit and entry.connections > limit:
            return False, 0.0
        return self._pace(entry)

    def leave(self, address: str) -> None:
        """A connection has ended; one that could not be counted, since making it failed, changes nothing."""
        key = self._key(address)
        entry = self._known.get(key) if key is not None else None
        if key is None or entry is None:
            return
        entry.connections -= 1
        if entry.connections:
            return
        if entry.bucket is None:
            del self._known[key]
            return
        self._idle[key] = None
        if len(self._idle) > _MAX_IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._known[oldest]

    def __len__(self) -> int:
        return len(self._known)

    def _key(self, address: str) -> str | None:
        """Under which name it is counted; None for one without limits."""
        limits = self._limits
        if not (limits.connections_per_address or limits.new_connections_per_s):
            return None
        is_loopback, name = _host_of(address)
        return None if is_loopback and not limits.limit_loopback else name

    def _pace(self, entry: _Address) -> tuple[bool, float]:
        """What `enter` returns, as far as the rate of new connections goes.

        One that would not be read before its time to log in is over is turned away at once. So the debt of an
        address is bounded, and a flood does not lock those out who share the address and come after it.
        """
        limits = self._limits
        if not limits.new_connections_per_s:
            return True, 0.0
        if entry.bucket is None:
            entry.bucket = TokenBucket(
                limits.new_connections_per_s, limits.new_connections_burst, self._clock
            )
        if (1 - entry.bucket.level) / limits.new_connections_per_s >= limits.login_timeout_s:
            return False, 0.0
        return True, entry.bucket.take()


@lru_cache(maxsize=4096)
def _host_of(address: str) -> tuple[bool, str]:
    """Whether an address is this machine's own, and the host, or the IPv6 network, that it counts for."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # the same host, through a listener for both kinds of addresses
    if isinstance(ip, ipaddress.IPv6Address) and not ip.is_loopback:
        return False, str(ipaddress.IPv6Network((int(ip), _IPV6_PREFIX_BITS), strict=False))
    return ip.is_loopback, str(ip)
