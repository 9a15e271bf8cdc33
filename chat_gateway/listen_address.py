"""Where a listener accepts, as the configuration and the command line spell it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["ListenAddress", "split_host_port"]

_SCHEMES = ("line",)
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\[\]\s]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


def split_host_port(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 host stands in brackets and is returned without them, compressed.

    Raises:
        ValueError: with words that can follow the text, such as "has a port above 65535".
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError("is not HOST:PORT")
    port = int(match["port"])
    if port > 65535:
        raise ValueError("has a port above 65535")
    return _canonical_host(match["six"], match["name"]), port


def _canonical_host(six: str | None, name: str | None) -> str:
    try:
        if six is not None:
            return str(ipaddress.IPv6Address(six))
        assert name is not None
        if re.fullmatch(r"[0-9.]+", name):
            return str(ipaddress.IPv4Address(name))
    except ValueError:
        raise ValueError("has a host that is not an IP address") from None
    return name.lower()


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a listener accepts: made from a url of the configuration, or directly in tests."""

    scheme: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> ListenAddress:
        """Read `line://HOST:PORT`; port 0 lets the system choose one.

        Raises:
            ValueError: with words that can follow the url, such as "is not HOST:PORT".
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError('does not begin with "line://"')
        host, port = split_host_port(rest)
        return cls(scheme, host, port)

    @property
    def url(self) -> str:
        """The address as the configuration spells it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
