"""Addresses of listeners as people spell them."""

from __future__ import annotations

import pytest

from chat_gateway.listen_address import ListenAddress, split_host_port


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("line://127.0.0.1:8080", "127.0.0.1", 8080),
        ("line://chat.example.org:0", "chat.example.org", 0),
        ("line://[::1]:65535", "::1", 65535),
        ("line://[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_listen_address_is_read_when_the_url_is_good(url: str, host: str, port: int) -> None:
    """A url gives scheme, host without brackets and port, and is written back as it was."""
    address = ListenAddress.from_url(url)
    assert address == ListenAddress("line", host, port)
    assert address.url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("127.0.0.1:8080", "does not begin with"),
        ("http://127.0.0.1:8080", "does not begin with"),
        ("line:/127.0.0.1:8080", "does not begin with"),
        ("line://127.0.0.1", "is not HOST:PORT"),
        ("line://:8080", "is not HOST:PORT"),
        ("line://::1:8080", "is not HOST:PORT"),
        ("line://127.0.0.1:8080/", "is not HOST:PORT"),
        ("line://127.0.0.1:-1", "is not HOST:PORT"),
        ("line://127.0.0.1:٨٠", "is not HOST:PORT"),
        ("line://127.0.0.1:8080\n", "is not HOST:PORT"),
        ("line://127.0.0.1:65536", "has a port above 65535"),
        ("line://[127.0.0.1]:80", "has a host that is not an IP address"),
        ("line://[::1::]:80", "has a host that is not an IP address"),
        ("line://256.0.0.1:80", "has a host that is not an IP address"),
    ],
)
def test_listen_address_is_refused_when_the_url_is_bad(url: str, why: str) -> None:
    """Every wrong url has words that say what is wrong with it."""
    with pytest.raises(ValueError, match=why):
        ListenAddress.from_url(url)


def test_host_is_made_uniform_when_it_can_be_spelled_in_several_ways() -> None:
    """Two spellings of one address are equal, so that duplicates are seen."""
    assert split_host_port("[0:0::0:1]:80") == split_host_port("[::1]:80")
    assert split_host_port("LocalHost:80") == ("localhost", 80)
