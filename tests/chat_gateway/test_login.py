"""What a connection does while others are asked whether it may have its login."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chat_gateway.fakes import FakeGateway, turns, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = b"x" * 20_000


class Others:
    """Other workers that answer when the test says so."""

    def __init__(self, gateway: FakeGateway) -> None:
        gateway.connections.claims.others = self
        self.verdicts: dict[str, Callable[[bool], None]] = {}  # claims that wait, by login
        self.taken_back: list[str] = []
        self.released: list[str] = []

    def claim(self, login: str, address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """See `Others`."""
        assert address == "127.0.0.1"
        self.verdicts[login] = on_verdict
        return lambda: self.taken_back.append(login)

    def release(self, login: str) -> None:
        """See `Others`."""
        self.released.append(login)


@virtual_time
async def test_login_holds_the_lines_that_came_with_it_until_it_is_granted() -> None:
    """Nothing is read meanwhile; then they are routed, and everything goes on."""
    gateway = FakeGateway()
    bob = gateway.login("bob")
    others = Others(gateway)
    alice = gateway.connect()
    alice.send(b"alice\nbob: 1\nbob: 2\nbob:")
    await turns()
    assert (alice.is_read, bob.take()) == (False, b"")
    alice.send(b" 3\n")
    others.verdicts["alice"](True)
    await turns()
    assert alice.is_read
    assert bob.take() == b"from alice: 1\nfrom alice: 2\nfrom alice: 3\n"
    await gateway.close()


@virtual_time
async def test_login_is_refused_when_others_say_so_later() -> None:
    """As if it was known at once; what came with it is lost."""
    gateway = FakeGateway()
    bob = gateway.login("bob")
    others = Others(gateway)
    alice = gateway.connect()
    alice.send(b"alice\nbob: 1\n")
    others.verdicts["alice"](False)
    await turns()
    assert alice.take().startswith(b"! login-taken ")
    assert (bob.take(), others.taken_back, others.released) == (b"", [], [])
    await gateway.close()


@virtual_time
async def test_login_goes_on_to_the_end_when_the_stream_has_ended_meanwhile() -> None:
    """What was said is routed, then the connection is closed in order."""
    gateway = FakeGateway()
    bob = gateway.login("bob")
    others = Others(gateway)
    alice = gateway.connect()
    alice.send(b"alice\nbob: 1\nbob: 2")
    assert alice.connection.eof_received()
    others.verdicts["alice"](True)
    await turns()
    assert bob.take() == b"from alice: 1\nfrom alice: 2\n"
    assert alice.transport.is_lost
    assert others.released == ["alice"]
    await gateway.close()


@pytest.mark.parametrize("is_reset", [True, False])
@virtual_time
async def test_claim_is_taken_back_when_the_connection_ends_before_its_verdict(is_reset: bool) -> None:
    """Whoever ends it; a verdict that comes all the same is nobody's."""
    gateway = FakeGateway()
    others = Others(gateway)
    alice = gateway.connect()
    alice.send(b"alice\n" + (b"" if is_reset else LONG))
    if is_reset:
        alice.transport.abort()
    await turns()
    assert others.taken_back == ["alice"]
    assert alice.connection.session is None
    assert (b"! line-too-long" in alice.take()) is not is_reset
    assert gateway.connections.logins == 0
    await gateway.close()
