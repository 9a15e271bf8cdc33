"""What is asked of sockets and of the process' open files, beyond what the event loop does."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import resource
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chat_gateway.config import TcpConfig

__all__ = [
    "SHORTAGES",
    "has_peer_ended",
    "is_broken",
    "listening_url",
    "open_listening",
    "open_shared_listening",
    "prepare_accepted",
    "raise_file_limit",
    "reset_when_closed",
    "unsent_bytes",
]

# Errors of accept that concern the process or the machine, and how an operator mends them. Everything
# else that accept raises concerns that one connection only.
SHORTAGES = {
    errno.EMFILE: "raise the limit of open files of this process (ulimit -n, LimitNOFILE=) or lower "
    "limits.max_connections",
    errno.ENFILE: "the system is out of open files: raise fs.file-max",
    errno.ENOBUFS: "the kernel is out of socket buffers: raise net.ipv4.tcp_mem or "
    "lower limits.max_connections",
    errno.ENOMEM: "the machine is out of memory: lower limits.max_connections or outbox.max_outbox_bytes",
}

# Linux: SIOCOUTQ has the number of TIOCOUTQ; unsent and unacknowledged bytes of a TCP socket (tcp(7)).
_SIOCOUTQ = termios.TIOCOUTQ

# For SO_LINGER: on, for no time; a close then drops what is unsent and resets the connection (socket(7)).
_LINGER_NOT = struct.pack("ii", 1, 0)

BACKLOG = 4096  # connections that wait to be accepted; the kernel caps it at net.core.somaxconn


def open_listening(host: str, port: int) -> socket.socket:
    """A listening socket that does not block.

    Raises:
        OSError: the address is in use, not ours, or unknown.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return _listening(family, address)


def open_shared_listening(host: str, port: int, count: int) -> list[socket.socket]:
    """Several listening sockets for one address, among which the kernel spreads connections.

    The first one is bound and listens alone, which nobody else can do beside it or before it; only then is
    the address shared, so that another gateway never gets a part of our connections.

    Args:
        host: see `open_listening`.
        port: 0 for one that the system chooses, the same for all.
        count: how many sockets, at least 1.

    Raises:
        OSError: the address is in use, not ours, or unknown.
    """
    opened = [open_listening(host, port)]
    try:
        opened[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(count - 1):
            opened.append(_listening(opened[0].family, opened[0].getsockname(), is_shared=True))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def _listening(family: int, address: Any, *, is_shared: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def listening_url(listening: socket.socket) -> str:
    """Where it listens, with the port that the system chose."""
    host, port = listening.getsockname()[:2]
    return f"line://[{host}]:{port}" if ":" in host else f"line://{host}:{port}"


def prepare_accepted(sock: socket.socket, send_buffer_bytes: int, tcp: TcpConfig) -> None:
    """Options of an accepted connection; the send buffer is bounded, or the kernel hides megabytes."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tcp.keepalive_idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tcp.keepalive_interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tcp.keepalive_probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tcp.user_timeout_s * 1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes in the kernel that the peer has not acknowledged; 0 for a socket that is closed."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), _SIOCOUTQ, count)
    except (OSError, ValueError):
        return 0
    return count[0]


def is_broken(sock: socket.socket) -> bool:
    """Whether the connection is: told without reading, also behind bytes that nobody has read."""
    return _polled(sock, 0)


def has_peer_ended(sock: socket.socket) -> bool:
    """Whether it is broken or the peer has closed its side; such a peer may still await answers."""
    return _polled(sock, select.POLLRDHUP)


def _polled(sock: socket.socket, mask: int) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), mask)  # that the connection is broken is told unasked (poll(2))
    return bool(poll.poll(0))


def reset_when_closed(sock: socket.socket) -> None:
    """Have the next close reset the connection and free at once what the kernel still holds for its peer."""
    with contextlib.suppress(OSError, ValueError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems refuse an unlimited soft limit
            return soft
    return hard
