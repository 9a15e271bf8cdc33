"""What is asked of real sockets and of the process' limits; nothing leaves this process."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from chat_gateway.sockets import (
    SHORTAGES,
    has_peer_ended,
    is_broken,
    listening_url,
    open_listening,
    open_shared_listening,
    prepare_accepted,
    raise_file_limit,
    reset_when_closed,
    unsent_bytes,
)
from tests.chat_gateway.fakes import configured
from tests.e2e.tcp_states import TCP_FIN_WAIT1, tcp_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection on this machine, ours first."""
    with open_listening("127.0.0.1", 0) as listening:
        listening.setblocking(True)
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    with ours, theirs:
        yield ours, theirs


def test_open_listening_does_not_block_when_nobody_comes() -> None:
    """An accept loop must get control back; the port was chosen by the system."""
    with open_listening("127.0.0.1", 0) as listening:
        assert not listening.getblocking()
        assert listening.getsockname()[1] > 0
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_open_listening_takes_a_port_again_when_old_connections_linger_on_it() -> None:
    """A restart must not wait for the kernel to forget closed connections."""
    with tcp_pair() as (ours, _theirs):
        port = ours.getsockname()[1]
        ours.close()
        open_listening("127.0.0.1", port).close()


def test_open_listening_raises_and_leaves_nothing_open_when_the_port_is_taken() -> None:
    """Two gateways on one port is an error that is seen; the socket that could not be bound is closed."""
    with open_listening("127.0.0.1", 0) as first:
        with pytest.raises(OSError, match="Address already in use") as raised:
            open_listening("127.0.0.1", first.getsockname()[1])
        assert raised.value.errno == errno.EADDRINUSE


def test_open_shared_listening_gives_each_socket_a_part_of_the_connections() -> None:
    """One port for all, also when the system chooses it; the kernel spreads by hash."""
    sockets = open_shared_listening("127.0.0.1", 0, 3)
    address = sockets[0].getsockname()
    assert {one.getsockname() for one in sockets} == {address}
    theirs = [socket.create_connection(address) for _ in range(100)]
    accepted = [0, 0, 0]
    for index, one in enumerate(sockets):
        with contextlib.suppress(BlockingIOError):
            while True:
                one.accept()[0].close()
                accepted[index] += 1
    assert sum(accepted) == 100
    assert min(accepted) > 0
    for each in (*sockets, *theirs):
        each.close()


def test_open_shared_listening_raises_when_another_gateway_has_the_address() -> None:
    """Also one that shares it among its own workers, which the kernel would let us join."""
    others = open_shared_listening("127.0.0.1", 0, 2)
    port = others[0].getsockname()[1]
    for count in (1, 2):
        with pytest.raises(OSError, match="Address already in use"):
            open_shared_listening("127.0.0.1", port, count)
    with pytest.raises(OSError, match="Address already in use"):
        open_listening("127.0.0.1", port)
    for one in others:
        one.close()
    for one in open_shared_listening("127.0.0.1", port, 2):  # the failed ones have left nothing
        one.close()


def test_listening_url_has_the_port_that_the_system_chose() -> None:
    """An IPv6 host stands in brackets."""
    with open_listening("127.0.0.1", 0) as listening:
        assert listening_url(listening) == f"line://127.0.0.1:{listening.getsockname()[1]}"
    with open_listening("::1", 0) as listening:
        assert listening_url(listening) == f"line://[::1]:{listening.getsockname()[1]}"


def test_prepare_accepted_sets_every_option_when_given_a_connection() -> None:
    """It does not block, holds little, sends at once, and finds out about peers that vanish."""
    tcp = configured(
        "tcp.keepalive_idle_s=11",
        "tcp.keepalive_interval_s=3",
        "tcp.keepalive_probes=5",
        "tcp.user_timeout_s=7",
    ).tcp
    with tcp_pair() as (ours, _theirs):
        prepare_accepted(ours, 8192, tcp)
        assert not ours.getblocking()
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (8192, 2 * 8192)  # Linux doubles it
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = {
            socket.TCP_NODELAY: 1,
            socket.TCP_KEEPIDLE: 11,
            socket.TCP_KEEPINTVL: 3,
            socket.TCP_KEEPCNT: 5,
            socket.TCP_USER_TIMEOUT: 7000,
        }
        assert {name: ours.getsockopt(socket.IPPROTO_TCP, name) for name in options} == options


def test_unsent_bytes_shrink_when_the_peer_reads() -> None:
    """What the peer's kernel has no room for is counted, and less of it once the peer has read."""
    with tcp_pair() as (ours, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert unsent_bytes(ours) == 0
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65_536))
        before = unsent_bytes(ours)
        assert before > 0
        left = before
        while left >= before:  # a window is opened in its own time
            assert theirs.recv(65_536)
            left = unsent_bytes(ours)


def test_unsent_bytes_is_zero_when_the_socket_is_closed() -> None:
    """Who asks late gets an answer, not an error."""
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    assert unsent_bytes(ours) == 0


def stay(_theirs: socket.socket) -> None:
    pass


def half_close(theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)


def close(theirs: socket.socket) -> None:
    theirs.close()


def reset(theirs: socket.socket) -> None:
    reset_when_closed(theirs)
    theirs.close()


@pytest.mark.parametrize(
    ("leave", "is_it_broken", "has_it_ended"),
    [(stay, False, False), (half_close, False, True), (close, False, True), (reset, True, True)],
)
def test_socket_tells_what_has_become_of_the_peer_when_nobody_reads(
    leave: Callable[[socket.socket], None], is_it_broken: bool, has_it_ended: bool
) -> None:
    """At once, also behind bytes that are unread. Nobody knows of a closed side whether it awaits answers."""
    with tcp_pair() as (ours, theirs):
        theirs.send(b"unread")
        leave(theirs)
        assert is_broken(ours) == is_it_broken
        assert has_peer_ended(ours) == has_it_ended


def test_shortages_have_a_hint_when_the_process_or_the_machine_is_short() -> None:
    """These four and no others, each with what an operator can do."""
    assert set(SHORTAGES) == {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
    assert "ulimit -n" in SHORTAGES[errno.EMFILE]
    assert "fs.file-max" in SHORTAGES[errno.ENFILE]


class FakeLimits:
    """The limit of open files of a process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, error: Exception | None = None
    ) -> None:
        self.soft, self.hard, self.error = soft, hard, error
        self.sets = 0
        monkeypatch.setattr(resource, "getrlimit", lambda _: (self.soft, self.hard))
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.sets += 1
        if self.error is not None:
            raise self.error
        self.soft, self.hard = limits


def test_raise_file_limit_raises_the_soft_limit_to_the_hard_one_when_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hard limit stays as it is."""
    limits = FakeLimits(monkeypatch, 1024, 4096)
    assert raise_file_limit() == 4096
    assert (limits.soft, limits.hard) == (4096, 4096)


def test_raise_file_limit_does_nothing_when_both_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal limits are left alone."""
    limits = FakeLimits(monkeypatch, 4096, 4096)
    assert raise_file_limit() == 4096
    assert limits.sets == 0


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), ValueError("no")])
def test_raise_file_limit_returns_what_holds_when_the_system_refuses(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is no reason not to start."""
    FakeLimits(monkeypatch, 1024, 4096, error)
    assert raise_file_limit() == 1024


@pytest.mark.parametrize("is_told", [False, True])
def test_reset_when_closed_frees_what_the_peer_does_not_take(is_told: bool) -> None:
    """Without it the kernel keeps a closed socket in FIN-WAIT-1 for as long as its peer does not read."""
    with tcp_pair() as (ours, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65_536))
        ends = ours.getsockname()[1], theirs.getsockname()[1]
        if is_told:
            reset_when_closed(ours)
        ours.close()
        assert tcp_state(*ends) == (None if is_told else TCP_FIN_WAIT1)


def test_reset_when_closed_does_nothing_when_the_socket_is_closed() -> None:
    """Who comes late changes nothing."""
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    reset_when_closed(ours)
