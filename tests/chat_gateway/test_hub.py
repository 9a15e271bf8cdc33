"""The registry of sessions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from chat_gateway.hub import Hub

if TYPE_CHECKING:
    from chat_gateway.session import Session


def session_of(login: str) -> Session:
    """As much of a session as the hub looks at."""
    return cast("Session", SimpleNamespace(login=login, outbox=object()))


def test_hub_finds_session_and_outbox_when_claimed() -> None:
    """Both answers change together."""
    hub, alice = Hub(), session_of("alice")
    assert hub.holder("alice") is None
    assert hub.claim(alice)
    assert hub.holder("alice") is alice
    assert hub.routes == {"alice": alice.outbox}
    assert hub.sessions == [alice]
    assert len(hub) == 1


def test_hub_refuses_a_claim_when_the_login_is_held() -> None:
    """A login belongs to one session; the first one is not disturbed."""
    hub, first, second = Hub(), session_of("alice"), session_of("alice")
    assert hub.claim(first)
    assert not hub.claim(second)
    assert hub.holder("alice") is first
    assert hub.routes["alice"] is first.outbox


def test_hub_lets_a_login_be_claimed_when_it_was_released() -> None:
    """Released means gone from both tables."""
    hub, first, second = Hub(), session_of("alice"), session_of("alice")
    hub.claim(first)
    hub.release(first)
    assert hub.holder("alice") is None
    assert hub.routes == {}
    assert len(hub) == 0
    assert hub.claim(second)


def test_hub_keeps_the_new_holder_when_the_old_one_is_released_late() -> None:
    """A late release of an old session removes nothing of the new one; nor does a second release."""
    hub, old, new = Hub(), session_of("alice"), session_of("alice")
    hub.claim(old)
    hub.release(old)
    hub.claim(new)
    hub.release(old)
    assert hub.holder("alice") is new
    assert hub.routes["alice"] is new.outbox


def test_hub_gives_a_list_of_its_own_when_asked_for_sessions() -> None:
    """Who walks over the sessions may release them meanwhile."""
    hub = Hub()
    for name in ("a", "b"):
        hub.claim(session_of(name))
    for session in hub.sessions:
        hub.release(session)
    assert len(hub) == 0
