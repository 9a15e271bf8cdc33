"""The link between supervisor and worker: frames in and out, and what happens when one side does not read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from chat_gateway.bus_frames import Frames, encode_frame
from chat_gateway.control import ControlLink
from chat_gateway.control_frames import (
    TO_SUPERVISOR,
    TO_WORKER,
    Beat,
    Close,
    Drain,
    Drained,
    Hello,
    Members,
    PleaseDrain,
    Ready,
    Snapshot,
)
from tests.chat_gateway.fakes import passed, virtual_time

if TYPE_CHECKING:
    import msgspec

FROM_WORKER = [
    Hello(3, 4711),
    Ready(),
    Beat(10, 6, 1, {"gone": 2}, 1),
    Snapshot({"stages": {"parse": {"in": 1}}, "send_wait_us": [1, 2], "busy_s": 0.5}),
    Drained(7),
    PleaseDrain(),
]
FROM_SUPERVISOR = [Members(2, [(0, 1, True), (0, 3, False)]), Drain("restarting", 2.5), Close()]


class FakeTransport:
    """Takes what is written; ends when the loop turns after `close`."""

    def __init__(self) -> None:
        self.written = b""
        self.link: ControlLink | None = None
        self.is_closed = False
        self.is_deaf = False  # it never gets to its end

    def write(self, data: bytes) -> None:
        """Take it."""
        self.written += data

    def close(self) -> None:
        """End the link in the next turn."""
        self.is_closed = True
        if not self.is_deaf:
            assert self.link is not None
            asyncio.get_running_loop().call_soon(self.link.connection_lost, None)


class End:
    """One end of a link, with what it was told."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[object]) -> None:
        self.messages: list[object] = []
        self.lost: list[str] = []
        self.link = ControlLink(
            decoder,
            lambda link, message: self.messages.append((link, message)),
            lambda _, problem: self.lost.append(problem),
        )
        self.transport = FakeTransport()
        self.transport.link = self.link

    def connect(self) -> None:
        """It has a transport now."""
        self.link.connection_made(cast("asyncio.BaseTransport", self.transport))


@pytest.mark.parametrize("message", FROM_WORKER)
def test_supervisor_hears_what_a_worker_says(message: msgspec.Struct) -> None:
    """Every message arrives as it was."""
    assert list(Frames(TO_SUPERVISOR).feed(encode_frame(message))) == [message]


@pytest.mark.parametrize("message", FROM_SUPERVISOR)
def test_worker_hears_what_the_supervisor_says(message: msgspec.Struct) -> None:
    """Every message arrives as it was."""
    assert list(Frames(TO_WORKER).feed(encode_frame(message))) == [message]


@virtual_time
async def test_link_carries_messages_in_both_directions() -> None:
    """However the bytes are cut; each comes with its link."""
    end = End(TO_WORKER)
    end.connect()
    for byte in b"".join(map(encode_frame, FROM_SUPERVISOR)):
        end.link.data_received(bytes([byte]))
    assert end.messages == [(end.link, message) for message in FROM_SUPERVISOR]
    end.link.send(Ready())
    assert end.transport.written == encode_frame(Ready())


@virtual_time
async def test_link_leaves_out_what_will_be_said_again_when_the_other_side_does_not_read() -> None:
    """So that it does not grow for a supervisor that is stopped; what is said once is said all the same."""
    end = End(TO_WORKER)
    end.connect()
    end.link.pause_writing()
    end.link.send_if_read(FROM_WORKER[2])
    assert end.transport.written == b""
    end.link.send(PleaseDrain())
    end.link.resume_writing()
    end.link.send_if_read(Ready())
    assert end.transport.written == encode_frame(PleaseDrain()) + encode_frame(Ready())


@virtual_time
async def test_link_is_ended_when_the_other_side_says_what_is_no_message() -> None:
    """Its owner is told why."""
    end = End(TO_SUPERVISOR)
    end.connect()
    end.link.data_received(encode_frame(Ready()) + encode_frame(Close()))
    assert end.transport.is_closed
    await passed(0)
    (problem,) = end.lost
    assert problem.startswith("a frame that is no message")


@virtual_time
async def test_link_says_nothing_when_it_has_no_transport() -> None:
    """Before it has one and after it has ended; closing it then does no harm."""
    end = End(TO_WORKER)
    end.link.send(Ready())
    end.link.close()
    await end.link.aclose()
    end.connect()
    end.link.connection_lost(ConnectionResetError("reset"))
    assert end.lost == ["reset"]
    end.link.send(Ready())
    end.link.close()
    assert (end.transport.written, end.transport.is_closed) == (b"", False)


@virtual_time
async def test_aclose_waits_until_the_link_has_ended_but_not_for_ever() -> None:
    """What was said last is on its way then; a supervisor that is stopped keeps nobody."""
    end = End(TO_WORKER)
    end.connect()
    await end.link.aclose()
    assert end.lost == [""]
    deaf = End(TO_WORKER)
    deaf.connect()
    deaf.transport.is_deaf = True
    began = asyncio.get_running_loop().time()
    await deaf.link.aclose()
    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
    assert deaf.lost == []
