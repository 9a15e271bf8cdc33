"""What an arrival reports: in frames that the other end takes."""

from __future__ import annotations

from chat_gateway.bus_frames import MAX_FRAME_BYTES, Carry, Cut, encode_frame
from chat_gateway.crossing import Arrival, gathered
from stages.message import Ledger


class FakeDestination:
    """A link that is told and does nothing."""

    def on_outcome(self, arrival: Arrival) -> None:
        """See `Destination`."""

    def report_soon(self) -> None:
        """See `Destination`."""


def arrival_of(number: int, names: list[str], payload: bytes = b"x\n") -> Arrival:
    """One line to each of these names, come in one frame."""
    return Arrival(Carry(number, "alice", False, [Cut(names, payload, 1)]), FakeDestination(), Ledger())


def test_reports_take_several_frames_when_a_text_comes_back_from_many() -> None:
    """It crossed once for all of them and returns once for each; every copy is told of once, in order."""
    names = [f"bob{i}" for i in range(100)]
    payload = b"x" * 60_000 + b"\n"
    first, last = arrival_of(1, ["carol"]), arrival_of(3, ["carol"])
    many = arrival_of(2, [*names, "eve"], payload)
    first.deliver(1)
    for name in names:
        many.give_back(name, payload, 1)
    many.refuse(1, "full", "eve")
    last.deliver(1)
    frames = gathered([first, many, last])
    assert all(len(encode_frame(frame)) < MAX_FRAME_BYTES / 4 for frame in frames)
    parts = [part for frame in frames for part in frame.parts]
    assert [one.name for part in parts for one in part.returned] == names
    assert [(one.name, one.copies) for part in parts for one in part.refused] == [("eve", 1)]
    assert {part.id for part in parts} == {2}
    assert (frames[0].delivered, frames[-1].delivered) == ([1], [3])


def test_reports_take_one_frame_when_little_comes_back() -> None:
    """What is gathered in a turn is one frame."""
    arrivals = [arrival_of(number, ["bob"]) for number in range(50)]
    for arrival in arrivals:
        arrival.give_back("bob", b"x\n", 1)
    (frame,) = gathered(arrivals)
    assert [part.id for part in frame.parts] == list(range(50))
