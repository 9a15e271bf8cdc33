"""The command as a process: exit statuses, what it prints, its signals, and where its settings come from."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.gateway_process import WAIT_S, GatewayProcess, LineClient, running_gateway
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = ["asyncio", "uvloop"] if find_spec("uvloop") else ["asyncio"]
MODULE = [sys.executable, "-m", "chat_gateway"]
ANY_PORT = "line://127.0.0.1:0"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell changes what is tested."""
    for name in [name for name in os.environ if name.upper().startswith("CHAT_GATEWAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket of another program that listens on an address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


class Done(NamedTuple):
    """How a command ended and what it printed."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: str, stdin: str = "", program: list[str] | None = None, **environment: str) -> Done:
    """Run a command that ends by itself."""
    done = subprocess.run(
        [*(program or MODULE), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=WAIT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def port_of(url: str) -> int:
    """The port at the end of an address."""
    return int(url.rsplit(":", 1)[1])


FROM_SET = "(from --set)"
NO_SUCH_KEY = "log.levl: is not a known key, did you mean log.level?; allowed: in [log] format, level, "
INTEGER = "allowed: an integer from 1 to 1000000"

# Arguments of serve and check, and the beginning and the end of the one line that says what is wrong.
BAD_CONFIGURATIONS = [
    (["--set", "limits.max_connections=0"], f"limits.max_connections: 0 is too small; {INTEGER} ", FROM_SET),
    (
        ["--set", "limits.max_connections"],
        "limits.max_connections: has no value; allowed: KEY=VALUE, ",
        FROM_SET,
    ),
    (["--set", "log.levl=info"], NO_SUCH_KEY, FROM_SET),
    (
        ["--listen", "127.0.0.1:0"],
        'listen[0].url: "127.0.0.1:0" does not begin with "line://"; ',
        "(from --listen)",
    ),
    (["--listen", "line://localhost:65536"], "listen[0].url: ", "(from --listen)"),
    (["--config", "/nowhere/x.toml"], "/nowhere/x.toml: cannot be read: No such file ", "(from --config)"),
    (
        ["--config", "/"],
        "/: cannot be read: Is a directory; allowed: a readable TOML file ",
        "(from --config)",
    ),
]

USAGE_ERRORS = [
    (["serve", "--workers"], "Error: Option '--workers' requires an argument."),
    (["serve", "--loop", "twisted"], "Error: Invalid value for '--loop': "),
    (["serve", "--log-format", "xml"], "Error: Invalid value for '--log-format': "),
    (["serve", "here"], "Error: Got unexpected extra argument"),
    (["connect"], "Error: Missing argument 'LOGIN'"),
    (
        ["connect", "alice", "--to", "localhost"],
        "Error: Invalid value for --to: 'localhost' is not HOST:PORT",
    ),
    (["start"], "Error: No such command 'start'."),
]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_command_ends_with_2_and_one_line_when_the_configuration_is_bad(command: str) -> None:
    """The line names the key, what is wrong, what is allowed and where it came from; nothing is started."""
    for arguments, begin, end in BAD_CONFIGURATIONS:
        done = run(command, *arguments)
        assert (done.status, done.stdout) == (2, ""), arguments
        assert re.fullmatch(re.escape(begin) + ".*" + re.escape(end) + "\n", done.stderr), done.stderr


def test_command_ends_with_2_when_the_environment_or_the_file_is_bad(tmp_path: Path) -> None:
    """Every problem of every source is one line, and all are told at once."""
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nmax_recipients = 'many'\n[log]\nlevel = 'loud'\n")
    done = run("serve", "--config", str(path), CHAT_GATEWAY_METRICS__INTERVAL_S="soon")
    assert (done.status, done.stdout) == (2, "")
    assert [(line.split(":")[0], line.rsplit("(from ")[1]) for line in done.stderr.splitlines()] == [
        ("limits.max_recipients", f"{path})"),
        ("log.level", f"{path})"),
        ("metrics.interval_s", "environment variable CHAT_GATEWAY_METRICS__INTERVAL_S)"),
    ]
    path.write_text("[limits\n")
    done = run("serve", "--config", str(path))
    assert (done.status, done.stdout) == (2, "")
    assert re.fullmatch(re.escape(f"{path}: is not TOML: ") + ".*\n", done.stderr)


def test_command_ends_with_2_and_one_error_when_it_is_used_wrongly() -> None:
    """Behind the usage stands one line that says what is wrong."""
    for arguments, begin in USAGE_ERRORS:
        done = run(*arguments)
        assert (done.status, done.stdout) == (2, ""), arguments
        assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [
            done.stderr.splitlines()[-1]
        ]
        assert done.stderr.splitlines()[-1].startswith(begin), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("loop", LOOPS)
def test_serve_ends_with_2_and_one_line_when_an_address_cannot_be_used(
    loop: str, listening: socket.socket
) -> None:
    """An address in use, of another machine, or of no machine at all; no other address is served either."""
    taken = f"line://127.0.0.1:{listening.getsockname()[1]}"
    impossible = f"line://{'a' * 64}:0"
    for url, reason in {
        taken: "address already in use",
        "line://192.0.2.1:0": "cannot assign requested address",
        "line://a..b:0": "no such host name can exist",
        impossible: "no such host name can exist",
    }.items():
        done = run("serve", "--loop", loop, "--listen", ANY_PORT, "--listen", url)
        assert done == (2, "", f"chat-gateway: cannot listen on {url}: {reason}\n")


async def test_serve_ends_with_2_when_another_gateway_has_the_address() -> None:
    """Two gateways never share an address by accident; the first one goes on."""
    async with running_gateway() as gateway:
        url = f"line://127.0.0.1:{gateway.port}"
        done = await asyncio.to_thread(run, "serve", "--listen", url)
        assert done == (2, "", f"chat-gateway: cannot listen on {url}: address already in use\n")
        alice = await LineClient.login(gateway.port, "alice")
        await alice.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", LOOPS)
def test_serve_ends_with_0_when_a_signal_asks_for_it(loop: str, number: signal.Signals) -> None:
    """The log ends with gateway.stopped, nothing goes to standard error."""
    with started("--loop", loop, "--log-format", "json") as process:
        ready = json.loads(first_line(process))
        assert (ready["event"], ready["loop"]) == ("gateway.ready", loop)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=WAIT_S)
    events = [json.loads(line)["event"] for line in stdout.splitlines()]
    assert (process.returncode, stderr) == (0, "")
    assert [events[0], events[-1]] == ["gateway.draining", "gateway.stopped"]


def started(*arguments: str) -> subprocess.Popen[str]:
    """A gateway that serves until it gets a signal."""
    return subprocess.Popen(
        [*MODULE, "serve", "--listen", ANY_PORT, "--workers", "1", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line of its log, which it writes when it is ready."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
async def test_serve_ends_at_once_when_it_is_interrupted_while_it_drains(first: signal.Signals) -> None:
    """Who presses Ctrl-C while the gateway waits for a slow client does not wait; the status says so."""
    patience = ["--set=shutdown.drain_timeout_s=600", "--set=outbox.linger_s=600"]
    async with running_gateway("--loop", same_loop(), *patience) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        gateway.signal(first)
        assert await alice.line() == b"! shutdown the gateway stops\n"
        gateway.signal(signal.SIGINT)
        assert await gateway.wait() == 130
        assert (gateway.found("gateway.stopped"), gateway.stderr) == ([], b"")
        await alice.close()


async def test_serve_names_every_port_when_the_system_chooses_them() -> None:
    """gateway.ready has the addresses as they are, and what to type to join; each one can be connected to."""
    async with running_gateway("--listen", ANY_PORT) as gateway:
        (ready,) = gateway.found("gateway.ready")
        ports = {port_of(url) for url in ready["listen"]}
        assert [url.rsplit(":", 1)[0] for url in ready["listen"]] == ["line://127.0.0.1"] * 2
        assert len(ports) == 2
        assert 0 not in ports
        assert ready["join"].endswith(f"connect alice --to 127.0.0.1:{gateway.port}")
        alice, bob = [await LineClient.login(port, f"at{port}") for port in ports]
        for client in (alice, bob):
            await client.close()


async def test_serve_obeys_the_strongest_source_when_several_set_a_key(tmp_path: Path) -> None:
    """Options override the environment, which overrides the file, which overrides the defaults."""
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nmax_line_bytes = 128\nmax_recipients = 2\nmax_connections = 7\n")
    environment = {"CHAT_GATEWAY_LIMITS__MAX_RECIPIENTS": "3", "CHAT_GATEWAY_LIMITS__MAX_CONNECTIONS": "8"}
    options = ["--config", str(path), "--set", "limits.max_connections=9"]
    async with running_gateway(*options, environment=environment) as gateway:
        assert gateway.found("gateway.ready")[0]["max_connections"] == 9
        alice = await LineClient.login(gateway.port, "alice")
        alice.send(b"a, b, c, d: x\n")
        assert await alice.line() == b"! too-many-recipients at most 3 in one line\n"
        alice.send(b"x" * 129 + b"\n")
        assert await alice.rest() == b"! line-too-long a line is longer than allowed\n"
        await alice.close()


TEXT_READY = re.compile(
    r"\d\d:\d\d:\d\d\.\d{3} info  gateway\.ready  listen=\S+ loop=\w+ max_connections=10000 .*\n"
)


@pytest.mark.parametrize("arguments", [["--log-format", "text"], ["--set", "log.format=text"]])
def test_serve_logs_for_people_when_the_format_is_text(arguments: list[str]) -> None:
    """Time, level, event and fields on one line, without colours in a pipe."""
    with started(*arguments) as process:
        assert TEXT_READY.fullmatch(first_line(process))
        process.terminate()
        stdout, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert stdout.replace("\n", "").isprintable()


@pytest.mark.parametrize("arguments", [[], ["--log-format", "auto"], ["--log-format", "json"]])
def test_serve_logs_for_programs_when_its_output_is_a_pipe(arguments: list[str]) -> None:
    """Each line is one JSON object with the time, the level, the event and the process."""
    with started(*arguments) as process:
        ready = json.loads(first_line(process))
        process.terminate()
        stdout, _ = process.communicate(timeout=WAIT_S)
    assert list(ready)[:5] == ["ts", "level", "event", "worker", "pid"]
    assert (ready["level"], ready["pid"]) == ("info", process.pid)
    assert all(json.loads(line)["pid"] == process.pid for line in stdout.splitlines())


def test_check_prints_what_serve_takes_when_it_is_given_back(tmp_path: Path) -> None:
    """What is printed is a configuration file with all that is in force."""
    done = run("check", "--set", "limits.max_connections=7", CHAT_GATEWAY_LOG__LEVEL="debug")
    assert (done.status, done.stderr) == (0, "")
    path = tmp_path / "gateway.toml"
    path.write_text(done.stdout)
    again = run("check", "--config", str(path))
    assert again == done
    values = tomllib.loads(again.stdout)
    assert (values["limits"]["max_connections"], values["log"]["level"]) == (7, "debug")


async def test_connect_chats_through_a_pipe_when_a_gateway_is_there() -> None:
    """Lines in, lines out; at the end of its input it waits for what is on its way and ends with 0."""
    async with running_gateway() as gateway:
        bob = await LineClient.login(gateway.port, "bob")
        to = f"127.0.0.1:{gateway.port}"
        done = await asyncio.to_thread(run, "connect", "alice", "--to", to, stdin="bob, alice: hi\ncarol: x")
        assert (done.status, done.stderr) == (0, "")
        assert sorted(done.stdout.splitlines()) == [  # a Notice does not wait behind messages
            "! unknown-recipient carol: not logged in",
            "from alice: hi",
        ]
        assert await bob.line() == b"from alice: hi\n"
        taken = await asyncio.to_thread(run, "connect", "bob", "--to", to)
        assert taken == (0, "! login-taken someone is logged in under that name\n", "")
        await bob.close()


async def test_connect_ends_with_130_when_it_is_interrupted() -> None:
    """Ctrl-C ends a client without a traceback, and its login is free again."""
    async with running_gateway() as gateway:
        process = await asyncio.create_subprocess_exec(
            *MODULE,
            *("connect", "alice", "--to", f"127.0.0.1:{gateway.port}"),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await logged(gateway, "session.login")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            _, stderr = await process.communicate()
        assert (process.returncode, stderr) == (130, b"")
        await logged(gateway, "session.closed")


async def logged(gateway: GatewayProcess, event: str) -> None:
    """Wait until the gateway has told this of alice."""
    await gateway.wait_record(event, lambda record: record["login"] == "alice")


def test_connect_ends_with_1_and_one_line_when_nobody_listens() -> None:
    """The line says where it wanted to connect to and why it could not."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    done = run("connect", "alice", "--to", f"127.0.0.1:{port}")
    assert done == (1, "", f"chat-gateway: cannot connect to 127.0.0.1:{port}: Connection refused\n")


def test_connect_ends_with_2_and_one_line_when_the_login_cannot_be_used() -> None:
    """It is refused before anything is sent."""
    done = run("connect", "al,ice", "--to", "127.0.0.1:1")
    words = "unusable login: it must not contain white space, ',' or ':'"
    assert done == (2, "", f"chat-gateway: {words}\n")


def test_installed_command_is_the_module_when_it_is_called_by_name() -> None:
    """The package puts `chat-gateway` beside its Python; both say the same."""
    script = Path(sys.executable).with_name("chat-gateway")
    done = run("--version", program=[str(script)])
    assert done == run("--version")
    assert re.fullmatch(r"chat-gateway \d+\.\d+\.\d+\n", done.stdout)
