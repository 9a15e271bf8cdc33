"""Credit, stalls and notices of one session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chat_gateway.fakes import fake_session, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.session import Session


class FakeReading:
    """A connection that follows its session's `may_read`, and counts."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.is_reading = True
        self.updates = 0
        self.settled = 0
        self.is_read_little = False
        self.pauses_s: list[float] = []

    def update_reading(self) -> None:
        assert self.session is not None
        self.updates += 1
        self.is_reading = self.session.may_read

    def on_settled(self) -> None:
        self.settled += 1

    def pause_for(self, seconds: float) -> None:
        self.pauses_s.append(seconds)

    def read_little(self) -> None:
        self.is_read_little = True

    def nudge(self) -> None:
        pass

    def has_peer_ended(self) -> bool:
        raise AssertionError

    def end_if_gone(self) -> bool:
        return False


def made(
    *sets: str, random: Callable[[], float] = lambda: 0.0
) -> tuple[Session, FakeReading, list[tuple[Any, ...]]]:
    """A session with a credit of 4 messages and 16 KiB, its connection, and its notices."""
    notices: list[tuple[Any, ...]] = []

    def notify(word: str, reason: str, *, name: str, count: int) -> None:
        notices.append((word, reason, name, count))

    reading = FakeReading()
    credit = ("limits.max_inflight_messages=4", "limits.max_inflight_bytes=16384")
    session = reading.session = fake_session(reading, notify, *credit, *sets, random=random)
    return session, reading, notices


def test_session_may_read_until_its_credit_in_messages_is_spent() -> None:
    """The last message of the credit ends it."""
    session, _, _ = made()
    take(session, 3)
    assert session.may_read
    take(session, 1)
    assert not session.may_read


def test_session_may_read_until_its_credit_in_bytes_is_spent() -> None:
    """A block counts at least its bytes; when they reach the credit, that is its end."""
    session, _, _ = made()
    cost_bytes = take(session, 1, 8000)
    assert 8000 <= cost_bytes == session.inflight_bytes < 16384
    assert session.may_read
    take(session, 1, 16384 - cost_bytes)
    assert not session.may_read


def test_session_stays_unread_when_overdrawn_credit_comes_back_in_part() -> None:
    """One read may overdraw it; reading goes on only when it is below its bounds again."""
    session, reading, _ = made()
    cost_bytes = take(session, 6, 9)
    rest_bytes = take(session, 3, 9)
    reading.update_reading()
    session.give_back(5, cost_bytes, 0)
    assert not reading.is_reading
    session.give_back(1, 0, 0)
    assert reading.is_reading
    session.give_back(3, rest_bytes, 0)
    assert (session.inflight_messages, session.inflight_bytes) == (0, 0)


def test_session_does_not_touch_its_connection_when_that_is_read() -> None:
    """A batch that comes back costs the connection nothing as long as it is read anyway."""
    session, reading, _ = made()
    take(session, 3, 30)
    session.give_back(2, 20, 0)
    session.finish(1, 10)
    session.settle(2, 0)
    assert reading.updates == 0
    assert reading.settled == 0


@pytest.mark.parametrize("in_one", [False, True])
def test_session_tells_its_connection_once_when_it_is_leaving_and_nothing_is_in_flight(in_one: bool) -> None:
    """With the last batch, not before; and its credit is whole again."""
    session, reading, _ = made()
    session.is_leaving = True
    first, second = take(session, 1, 10), take(session, 2, 20)
    session.give_back(2, second, 0)
    assert reading.settled == 0
    session.settle(2, 0)
    assert reading.settled == 0
    if in_one:
        session.finish(1, first)
    else:
        session.give_back(1, first, 0)
        session.settle(1, 0)
    assert reading.settled == 1
    assert (session.inflight_messages, session.inflight_bytes, session.unsettled_messages) == (0, 0, 0)


def test_session_is_read_again_when_a_finished_batch_has_held_its_credit() -> None:
    """The credit comes back with the outcome."""
    session, reading, _ = made()
    cost_bytes = take(session, 6, 9)
    reading.update_reading()
    assert not reading.is_reading
    session.finish(6, cost_bytes)
    assert reading.is_reading


def test_session_is_read_again_when_the_last_of_its_stalls_ends() -> None:
    """Several outboxes may stall it; only the first and the last change anything."""
    session, reading, _ = made()
    session.stall()
    session.stall()
    assert not reading.is_reading
    session.unstall()
    assert not reading.is_reading
    assert reading.updates == 1
    session.unstall()
    assert reading.is_reading
    assert reading.updates == 2


def test_session_stays_unread_when_it_is_let_go_on_without_credit() -> None:
    """Stall and credit both have to allow it."""
    session, reading, _ = made()
    take(session, 4)
    session.stall()
    session.unstall()
    assert not reading.is_reading
    session.give_back(1, 0, 0)
    assert reading.is_reading


def test_session_passes_notices_on_when_they_are_wanted() -> None:
    """Word, reason, name and count arrive as they were given."""
    session, _, notices = made()
    session.notify("refused", "full", name="bob", count=3)
    session.notify("bad-line", "no colon")
    assert notices == [("refused", "full", "bob", 3), ("bad-line", "no colon", "", 1)]


def test_session_keeps_silent_when_notices_are_off() -> None:
    """`notices = false` is silence."""
    session, _, notices = made("limits.notices=false")
    session.notify("refused", "full", name="bob", count=3)
    assert notices == []


def test_session_is_held_back_when_it_is_refused_a_lot() -> None:
    """Little is read after a refusal; what is beyond burst and rate costs time, which is bounded."""
    session, reading, _ = made("limits.refused_per_s=100", "limits.refused_burst=50")
    assert not reading.is_read_little
    session.notify("refused", "full", name="bob", count=50)
    assert reading.is_read_little
    assert reading.pauses_s == []
    session.notify("refused", "full", name="bob", count=100)
    session.notify("refused", "full", name="bob", count=1_000_000)
    first, second = reading.pauses_s
    assert 0 < first <= 1.0
    assert second == 5.0


@pytest.mark.parametrize("per_s", [0, 10])
def test_session_is_read_a_little_when_refusals_are_to_be_expected(per_s: int) -> None:
    """Nothing was refused yet, so it costs no time; and nothing at all where refusals are not limited."""
    session, reading, _ = made(f"limits.refused_per_s={per_s}")
    session.expect_refusals()
    assert reading.is_read_little == bool(per_s)
    assert reading.pauses_s == []


@pytest.mark.parametrize("per_s", [0, 10])
def test_session_that_was_stalled_comes_back_at_a_moment_of_its_own_to_be_refused(per_s: int) -> None:
    """Breakers that open together do not bring all their senders back in the same moment."""
    session, reading, _ = made(f"limits.refused_per_s={per_s}", random=lambda: 0.5)
    session.stall()
    session.expect_refusals()
    assert reading.pauses_s == ([0.25] if per_s else [])


def test_sessions_come_back_at_different_times_when_they_were_refused_together() -> None:
    """The wait is up to half as long again, by chance."""
    session, reading, _ = made(random=lambda: 0.5)
    session.notify("refused", "full", name="bob", count=1_000_000)
    assert reading.pauses_s == [6.25]


def test_session_pays_for_a_part_of_a_line_when_that_part_was_refused() -> None:
    """A slow member of a group does not hold those that write to the group."""
    session, reading, _ = made("limits.refused_per_s=1", "limits.refused_burst=100")
    for _ in range(100):
        session.notify("refused", "full", name="bob", count=100, lines=1.0)
    assert reading.pauses_s == []
    session.notify("refused", "full", name="bob", count=100, lines=1.0)
    assert len(reading.pauses_s) == 1


def test_session_is_not_held_back_when_refusals_are_not_limited() -> None:
    """0 is no limit."""
    session, reading, _ = made("limits.refused_per_s=0")
    session.notify("refused", "full", name="bob", count=1_000_000)
    assert reading.pauses_s == []


def test_session_pays_all_it_owes_when_it_said_much_more_than_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No pause is long, but one follows the other until the rate holds; refusals are forgiven after one."""
    now_s = 100.0
    monkeypatch.setattr("chat_gateway.session.time", SimpleNamespace(monotonic=lambda: now_s))
    session, reading, _ = made("limits.messages_per_s=10", "limits.messages_burst=20")
    take(session, 140)  # 120 beyond the burst: 12 seconds
    for _ in range(3):
        now_s += reading.pauses_s[-1]
        session.on_pause_over()
    assert reading.pauses_s == pytest.approx([5.0, 5.0, 2.0])
    refused, reading, _ = made()
    refused.notify("refused", "full", name="bob", count=1_000_000)
    refused.on_pause_over()
    assert reading.pauses_s == [5.0]


def test_session_is_held_for_what_it_has_waiting_when_memory_is_short() -> None:
    """Copies that wait without its credit are still its own; it goes on once they have their outcome."""
    session, reading, _ = made("limits.max_buffered_bytes=1048576")
    cost_bytes = take(session, 1, 100)
    session._ceiling.count(900_000)
    session.give_back(1, cost_bytes, 900_000)
    reading.update_reading()
    assert reading.is_reading == session.may_read
    assert not reading.is_reading
    session.settle(1, 900_000)
    assert reading.is_reading
    assert session.waiting_bytes == 0


def test_session_is_held_back_when_it_says_more_than_its_rate() -> None:
    """Messages beyond burst and rate cost time; nothing is refused."""
    session, reading, notices = made("limits.messages_per_s=10", "limits.messages_burst=20")
    take(session, 20)
    assert reading.pauses_s == []
    take(session, 5)
    assert len(reading.pauses_s) == 1
    assert 0 < reading.pauses_s[0] <= 0.5
    assert notices == []


@given(st.lists(st.tuples(st.sampled_from(["take", "back", "stall", "unstall"]), st.integers(1, 6))))
def test_session_is_read_exactly_when_neither_stalled_nor_out_of_credit(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order, its connection is told of every change."""
    session, reading, _ = made()
    held: list[tuple[int, int]] = []
    stalls = 0
    for what, size in steps:
        if what == "take" and reading.is_reading:
            held.append((size, take(session, size, 1000 * size)))
            reading.update_reading()  # a connection looks for itself after it has taken
        elif what == "back" and held:
            session.give_back(*held.pop(0), 0)
        elif what == "stall":
            stalls += 1
            session.stall()
        elif what == "unstall" and stalls:
            stalls -= 1
            session.unstall()
        messages, nbytes = (sum(column) for column in zip(*held, strict=True)) if held else (0, 0)
        assert reading.is_reading == (messages < 4 and nbytes < 16384 and not stalls)
