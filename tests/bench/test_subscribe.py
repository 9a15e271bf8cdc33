"""Specification of bench.subscribe, against scripted servers on real sockets."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from bench.login import LoginError
from bench.protocols import SUBSCRIBED
from bench.subscribe import open_subscribed, subjects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NATS = SUBSCRIBED["nats"]


def test_subjects_are_one_for_each_group_and_the_own_name_of_idle_sessions() -> None:
    """Senders listen to nothing, receivers of one line to the name of the first of them."""
    names = ["s0", "s1", "r0", "r1", "r2", "r3", "i0"]
    assert subjects(names, pairs=2, fanout=2) == ["", "", "r0", "r0", "r2", "r2", "i0"]


@contextlib.contextmanager
def scripted(answers: Sequence[bytes], heard: list[bytes]) -> Iterator[tuple[str, int]]:
    """A server for one connection: it says each answer after it has heard something, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                for one in answers:
                    heard.append(sock.recv(4096))
                    sock.sendall(one)
                while data := sock.recv(4096):
                    heard.append(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join(10)


def open_one(address: tuple[str, int]) -> None:
    """Open a session that listens to r0, and close it."""
    with select.epoll() as poll:
        for sock in open_subscribed(poll, address, NATS, ["r0"]):
            assert not sock.getblocking()
            poll.unregister(sock)  # fails if it was not registered
            sock.close()


def test_login_passes_over_news_and_answers_questions_when_they_come_with_its_proof() -> None:
    """A server may say who it is before, and ask who is there right behind the confirmation."""
    heard: list[bytes] = []
    with scripted([b'INFO {"port":1} \r\nPONG\r\nPING\r\n'], heard) as address:
        open_one(address)
    assert b"".join(heard) == NATS.login("r0")[0] + b"PONG\r\n"


class PieceSocket(socket.socket):
    """Gives what a server says in the pieces that the test wants."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__()
        self.pieces = list(pieces)
        self.heard = b""

    def sendall(self, data: object, flags: int = 0) -> None:
        """Keep what is sent."""
        assert isinstance(data, bytes)
        self.heard += data

    def recv(self, size: int, flags: int = 0) -> bytes:
        """The next piece."""
        return self.pieces.pop(0)


def test_login_waits_for_the_end_of_a_question_that_begins_behind_its_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who reads the session later finds the beginning of a frame there."""
    sock = PieceSocket([b"INFO {}\r\nPO", b"NG\r\nPI", b"NG\r\n"])
    monkeypatch.setattr("bench.subscribe.connect", lambda _: sock)
    open_one(("127.0.0.1", 1))
    assert sock.heard == NATS.login("r0")[0] + b"PONG\r\n"


def test_login_is_refused_with_the_servers_words_when_it_complains() -> None:
    """A complaint is an error, not a figure of 0."""
    refused = pytest.raises(LoginError, match="maximum connections")
    with scripted([b"-ERR 'maximum connections exceeded'\r\n"], []) as address, refused:
        open_one(address)


def test_login_is_refused_when_the_server_closes() -> None:
    """An end in the middle of the proof is an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            sock.recv(4096)
            sock.sendall(b"PON")
            sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(LoginError, match="closed a connection during login"):
            open_one(listener.getsockname())
        thread.join(10)
