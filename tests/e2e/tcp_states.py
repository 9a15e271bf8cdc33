"""What the kernel says of the TCP connections of this machine, also of those that no process has open."""

from __future__ import annotations

from pathlib import Path

__all__ = ["TCP_ESTABLISHED", "TCP_FIN_WAIT1", "tcp_state"]

TCP_ESTABLISHED = 1  # as the kernel numbers them (include/net/tcp_states.h)
TCP_FIN_WAIT1 = 4


def tcp_state(local_port: int, remote_port: int) -> int | None:
    """The state of the IPv4 socket with these ports; None when there is none."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if (_port(local), _port(remote)) == (local_port, remote_port):
            return int(state, 16)
    return None


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1], 16)
