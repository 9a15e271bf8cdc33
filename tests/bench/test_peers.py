"""Specification of bench.peers, over socket pairs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from bench.histogram import Histogram
from bench.peers import ReadBuffer, Receiver, Sender, hear_idle
from bench.protocols import DIALECTS
from bench.wire import Mixture, Script, payloads

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = payloads(64, 1000, 1000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets that do not wait, the first with a small buffer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    """What the socket holds."""
    data = b""
    while True:
        try:
            data += sock.recv(65_536)
        except BlockingIOError:
            return data


def test_sender_sends_whole_lines_in_order_when_the_peer_reads_late(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A full socket blocks the sender; the rest follows, over the end of a period, when it is read."""
    ours, theirs = pair
    script = Script(b"r0: ", TEXTS)
    sender = Sender(ours, script, 1)
    sender.queue(100, 0.0)
    assert sender.is_blocked
    data = read_all(theirs)
    while sender.is_blocked:
        sender.flush()
        data += read_all(theirs)
    assert data == (script.text + script.text)[: script.offset(100)]


def test_sender_forgets_only_lines_not_begun_when_it_drops_unsent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Lines of which a byte was sent are finished, all others are neither sent nor in flight."""
    ours, theirs = pair
    script = Script(b"r0,r1: ", TEXTS)
    sender = Sender(ours, script, 2)
    sender.queue(64, 0.0)
    dropped = sender.drop_unsent()
    assert 0 < dropped < 64
    assert sender.in_flight == 2 * (64 - dropped)
    data = read_all(theirs)
    sender.flush()
    data += read_all(theirs)
    assert data == script.text[: script.offset(64 - dropped)]


def test_sender_has_room_for_whole_lines_only_when_copies_are_in_flight(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """With 3 receivers a line fits when all 3 copies of one before it have arrived."""
    sender = Sender(pair[0], Script(b"r0,r1,r2: ", TEXTS), 3)
    assert sender.room(4) == 4
    sender.queue(4, 0.0)
    sender.in_flight -= 2
    assert sender.room(4) == 0
    sender.in_flight -= 1
    assert sender.room(4) == 1


def test_sender_counts_a_copy_for_each_recipient_when_some_lines_go_to_several(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A line to 5 is 5 copies, and a window of lines has room again when all copies of one have arrived."""
    sender = Sender(pair[0], Script(b"r0: ", payloads(64, 16, 16)), 1, mixture=Mixture(4, 4, 1))
    sender.queue(3, 0.0)
    assert (sender.in_flight, sender.due_copies, sender.room(3)) == (7, 7, 0)
    sender.in_flight -= 1
    assert (sender.resolved, sender.room(3)) == (1, 1)
    sender.in_flight -= 4
    assert (sender.resolved, sender.room(3)) == (5, 1)
    sender.in_flight -= 1
    assert (sender.resolved, sender.room(3)) == (6, 2)


def test_sender_forgets_all_copies_of_lines_not_begun_when_it_drops_unsent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """What stays in flight are the copies of the lines begun, those for several among them."""
    mixture = Mixture(4, 4, 1)
    sender = Sender(pair[0], Script(b"r0: ", TEXTS), 1, mixture=mixture)
    sender.queue(64, 0.0)
    begun = 64 - sender.drop_unsent()
    assert 4 < begun < 64
    assert sender.in_flight == mixture.copies(begun, 1)


@pytest.mark.parametrize("lines", [1, 3])
def test_ragged_sender_ends_each_write_in_the_middle_of_the_next_line(
    pair: tuple[socket.socket, socket.socket], lines: int
) -> None:
    """All lines due are whole, the next one is never, and the stream is the script."""
    ours, theirs = pair
    script = Script(b"r0: ", payloads(64, 16, 2048))
    sender = Sender(ours, script, 1, mixture=Mixture(is_ragged=True))
    data = b""
    for turn in range(1, 100):
        sender.queue(lines, 0.0)
        data += read_all(theirs)
        assert script.offset(turn * lines) < len(data) < script.offset(turn * lines + 1)
    assert sender.in_flight == 99 * lines
    assert (script.text * 6).startswith(data)


def test_ragged_sender_has_a_line_to_finish_when_it_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    """The line begun early is finished by queueing it; nothing is half sent then, and nothing is dropped."""
    ours, theirs = pair
    script = Script(b"r0: ", TEXTS)
    sender = Sender(ours, script, 1, mixture=Mixture(is_ragged=True))
    assert not sender.end_ragged()
    sender = Sender(ours, script, 1, mixture=Mixture(is_ragged=True))
    sender.queue(2, 0.0)
    assert sender.end_ragged()
    sender.queue(1, 0.0)
    assert (sender.in_flight, sender.drop_unsent()) == (3, 0)
    assert read_all(theirs) == script.text[: script.offset(3)]


def test_ragged_sender_has_nothing_to_finish_when_the_server_did_not_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A line that is half sent because the kernel took no more was due, and is not queued twice."""
    sender = Sender(pair[0], Script(b"r0: ", TEXTS), 1, mixture=Mixture(is_ragged=True))
    sender.queue(100, 0.0)
    assert sender.is_blocked
    assert not sender.end_ragged()
    assert 0 < sender.drop_unsent() < 100


def test_further_receiver_is_charged_from_the_time_its_own_lines_were_due(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Its first line is the second of its sender, its next one the sixth."""
    ours, theirs = pair
    script = Script(b"from s0: ", payloads(64, 16, 16))
    sender = Sender(ours, Script(b"r0: ", payloads(64, 16, 16)), 1, mixture=Mixture(1, 4, 1))
    for line in range(6):
        sender.queue(1, float(line))
    receiver = Receiver(ours, script, sender, is_further=True)
    assert read_all(theirs)
    theirs.send(script.text[: script.offset(2)])
    assert receiver.on_readable(ReadBuffer()) == 2
    latencies = Histogram()
    receiver.arrivals.arrive(1, 10.0, 0.0, latencies)
    assert latencies.max_s == 9.0
    receiver.arrivals.arrive(1, 20.0, 0.0, latencies)
    assert (latencies.count, latencies.max_s) == (2, 15.0)


def test_receiver_returns_room_to_its_sender_when_lines_arrive(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Whole lines count, an unfinished one does not, and a read that finds nothing is no loss."""
    ours, theirs = pair
    sender = Sender(ours, Script(b"r0: ", TEXTS), 1)
    sender.queue(3, 1.0)
    script = Script(b"from s0: ", TEXTS)
    receiver = Receiver(ours, script, sender)
    theirs.send(script.text[: script.offset(2) + 5])
    assert receiver.on_readable(ReadBuffer()) == 2
    assert receiver.on_readable(ReadBuffer()) == 0
    assert sender.in_flight == 1
    latencies = Histogram()
    receiver.arrivals.arrive(2, 1.25, 0.0, latencies)
    assert (latencies.count, latencies.max_s) == (2, 0.25)


def test_reading_raises_when_the_server_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """The end of the stream is a lost connection."""
    ours, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionError):
        ReadBuffer().read(ours)


def test_sender_answers_a_question_only_between_two_messages(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """While a message is half sent the answer waits, and it is no notice."""
    ours, theirs = pair
    texts = [DIALECTS["nats"].sent(["r0"], text) for text in TEXTS]
    script = Script(b"", texts, b"")
    sender = Sender(ours, script, 1, DIALECTS["nats"])
    sender.queue(100, 0.0)
    assert sender.is_blocked
    data = read_all(theirs)  # so that the kernel would take the answer
    theirs.send(b"PI")
    sender.on_readable(ReadBuffer())
    theirs.send(b"NG\r\n-ERR 'slow'\r\n")
    sender.on_readable(ReadBuffer())
    while sender.is_blocked:
        sender.flush()
        data += read_all(theirs)
    assert data == (script.text + script.text)[: script.offset(100)] + b"PONG\r\n"
    assert sender.notices == 1


def test_receiver_and_idle_session_answer_a_question(pair: tuple[socket.socket, socket.socket]) -> None:
    """A server that asks who is there is answered once by each, and no message is counted."""
    ours, theirs = pair
    script = Script(b"", [DIALECTS["nats"].received("s0", ["r0"], text) for text in TEXTS], b"")
    receiver = Receiver(ours, script, Sender(ours, script, 1), DIALECTS["nats"])
    theirs.send(b"PING\r\n")
    assert receiver.on_readable(ReadBuffer()) == 0
    theirs.send(script.text[:10])
    receiver.on_readable(ReadBuffer())
    assert read_all(theirs) == b"PONG\r\n"
    theirs.send(b"PING\r\n")
    hear_idle(ours, ReadBuffer(), DIALECTS["nats"])
    assert read_all(theirs) == b"PONG\r\n"
