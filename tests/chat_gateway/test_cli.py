"""The command: what it hands over, its exit statuses, and what it prints when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from types import ModuleType
from typing import TYPE_CHECKING, get_args

import pytest
from typer.testing import CliRunner

from chat_gateway import cli
from chat_gateway.config import Config
from chat_gateway.config_process import LogConfig, RuntimeConfig
from chat_gateway.config_sources import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result


class FakeGateway:
    """Stands for the gateway: remembers the configuration it was run with."""

    def __init__(self) -> None:
        self.configs: list[Config] = []  # one for each run
        self.status = 0  # what the next run returns

    def run_gateway(self, config: Config, load_config: Callable[[], Config]) -> int:
        """Take the place of the real one."""
        self.configs.append(config)
        self.load_config = load_config
        return self.status


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell changes what is tested."""
    for name in [name for name in os.environ if name.upper().startswith("CHAT_GATEWAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    """A gateway that only remembers the configuration it is run with."""
    fake, module = FakeGateway(), ModuleType("chat_gateway.gateway")
    module.__dict__["run_gateway"] = fake.run_gateway
    monkeypatch.setitem(sys.modules, "chat_gateway.gateway", module)
    return fake


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The calls of the client, which only remembers and returns 3."""
    made: list[tuple[str, str, int]] = []

    def run_client(login: str, host: str, port: int) -> int:
        made.append((login, host, port))
        return 3

    module = ModuleType("chat_gateway.client")
    module.__dict__["run_client"] = run_client
    monkeypatch.setitem(sys.modules, "chat_gateway.client", module)
    return made


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, list(arguments), env=env, prog_name="chat-gateway")


def test_serve_runs_the_defaults_when_no_option_is_given(gateway: FakeGateway) -> None:
    """`chat-gateway serve` alone starts what is packaged."""
    assert run("serve").exit_code == 0
    assert gateway.configs == [Config()]


def test_serve_hands_over_all_sources_when_all_are_given(gateway: FakeGateway, tmp_path: Path) -> None:
    """File, environment and every option reach the configuration, in their order of precedence."""
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nmax_recipients = 1\nmax_connections = 1\n[log]\nqueue_records = 1\n")
    env = {"CHAT_GATEWAY_LIMITS__MAX_RECIPIENTS": "2", "CHAT_GATEWAY_LIMITS__MAX_CONNECTIONS": "2"}
    options = ["--config", str(path), "--set", "limits.max_connections=3", "--set", "log.level=debug"]
    options += ["--listen", "line://127.0.0.1:0", "--listen", "line://[::1]:0", "--log-format", "json"]
    assert run("serve", *options, "--loop", "asyncio", "--workers", "3", env=env).exit_code == 0
    (config,) = gateway.configs
    assert (config.log.queue_records, config.limits.max_recipients, config.limits.max_connections) == (
        1,
        2,
        3,
    )
    assert (config.log.level, config.log.format, config.runtime.loop) == ("debug", "json", "asyncio")
    assert config.runtime.workers == 3
    assert [address.url for address in config.listen] == ["line://127.0.0.1:0", "line://[::1]:0"]


def test_serve_hands_over_how_the_sources_are_read_again(gateway: FakeGateway, tmp_path: Path) -> None:
    """All of them, as they are then; a problem is raised, since nobody looks at the terminal any more."""
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nmax_recipients = 1\n")
    run("serve", "--config", str(path), "--workers", "2", "--set", "log.level=debug")
    path.write_text("[limits]\nmax_recipients = 2\n")
    config = gateway.load_config()
    assert (config.limits.max_recipients, config.runtime.workers, config.log.level) == (2, 2, "debug")
    path.write_text("[limits]\nmax_recipients = 0\n")
    with pytest.raises(ConfigError):
        gateway.load_config()


def test_serve_ends_with_the_status_of_the_gateway_when_it_returns(gateway: FakeGateway) -> None:
    """The exit status says how the gateway ended."""
    gateway.status = 1
    assert run("serve").exit_code == 1


@pytest.mark.parametrize("command", ["serve", "check"])
def test_command_ends_with_2_and_a_line_for_each_problem_when_the_configuration_is_bad(
    command: str, gateway: FakeGateway
) -> None:
    """Problems go to standard error, one a line, without a traceback, and nothing is started."""
    result = run(command, "--set", "limits.max_connections=0", "--set", "log.levl=info", "--listen", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "log.levl",
        "listen[0].url",
        "limits.max_connections",
    ]
    assert gateway.configs == []


def test_check_prints_the_effective_configuration_when_it_is_good() -> None:
    """Standard output is TOML with what is in force, and the memory it may take."""
    result = run("check", "--set", "limits.max_connections=7", "--workers", "1")
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["limits"]["max_connections"] == 7
    assert "7 connections" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (["alice"], ("alice", "127.0.0.1", 8080)),
        (["alice", "--to", "chat.example.org:9000"], ("alice", "chat.example.org", 9000)),
        (["bob", "--to", "[::1]:1"], ("bob", "::1", 1)),
    ],
)
def test_connect_runs_the_client_when_the_address_is_good(
    options: list[str], call: tuple[str, str, int], calls: list[tuple[str, str, int]]
) -> None:
    """Login and address reach the client; its status is that of the command."""
    assert run("connect", *options).exit_code == 3
    assert calls == [call]


@pytest.mark.parametrize("to", ["localhost", "localhost:", ":80", "::1:80", "localhost:0", "localhost:65536"])
def test_connect_ends_with_2_when_the_address_is_bad(to: str, calls: list[tuple[str, str, int]]) -> None:
    """A bad address is a usage error that names the option."""
    result = run("connect", "alice", "--to", to)
    assert result.exit_code == 2
    assert "--to" in result.stderr
    assert calls == []


def test_choices_of_options_are_those_of_the_keys_when_compared() -> None:
    """What an option offers is what the key it is short for takes."""
    for option, model, name in (
        (cli.LogFormatOption, LogConfig, "format"),
        (cli.LoopOption, RuntimeConfig, "loop"),
    ):
        choices = get_args(get_args(get_args(option)[0])[0])
        assert choices == get_args(model.model_fields[name].annotation)


@pytest.mark.parametrize("arguments", [["serve", "--log-format", "xml"], ["serve", "--workers"], ["nothing"]])
def test_command_ends_with_2_when_it_is_used_wrongly(arguments: list[str], gateway: FakeGateway) -> None:
    """Usage errors have the status of bad configurations."""
    assert run(*arguments).exit_code == 2
    assert gateway.configs == []


@pytest.mark.parametrize("command", ["serve", "check", "connect"])
def test_help_shows_an_example_when_it_is_asked_for(command: str) -> None:
    """Help of each command ends with lines that can be copied, and draws no boxes."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"\n    chat-gateway {command} " in result.stdout
    assert result.stdout.isascii()


def test_version_is_printed_when_it_is_asked_for() -> None:
    """The version stands alone on a line."""
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("chat-gateway 0.")
    assert len(result.stdout.splitlines()) == 1


def test_help_loads_no_slow_package_when_it_is_asked_for() -> None:
    """Help answers at once: models, event loops and terminals are loaded by the commands that need them."""
    code = (
        "import sys; from chat_gateway.cli import app; app(['--help'], standalone_mode=False);"
        "sys.exit(','.join({'pydantic', 'uvloop', 'prompt_toolkit', 'structlog'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "serve" in done.stdout


def test_main_ends_with_2_and_no_traceback_when_the_file_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry point of the package reads the arguments of the process."""
    monkeypatch.setattr(sys, "argv", ["chat-gateway", "check", "--config", "/missing/gateway.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "/missing/gateway.toml: cannot be read: No such file or directory; "
        "allowed: a readable TOML file (from --config)\n"
    )
