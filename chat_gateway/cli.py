"""The command `chat-gateway`: reads options, and hands over to what does the work.

Everything but the options is imported inside the commands, so that `--help` answers at once. Exit status 2
is a usage error or a configuration that cannot be used.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from chat_gateway.config import Config

app = typer.Typer(
    name="chat-gateway",
    help="A chat server whose back-pressure reaches the sender's socket.",
    epilog="\b\nTo try it, in two terminals:\n  chat-gateway serve\n  chat-gateway connect alice\n"
    "\b\nAll keys that can be set, with their values:\n  chat-gateway check",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A TOML file; a key that is not in it has its default."),
]
ListenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        metavar="URL",
        help="Where to listen, such as line://127.0.0.1:8080; replaces the listeners of the file. May be "
        "repeated; port 0 lets the system choose.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any key of the file, such as stages.route.capacity=4096. May be repeated. "
        "`chat-gateway check` prints all keys.",
    ),
]
LogFormatOption = Annotated[
    Literal["auto", "json", "text"] | None,
    typer.Option("--log-format", help="The form of the log; auto is text on a terminal and json elsewhere."),
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        help="How many worker processes; auto is one for each processor that may be used.",
    ),
]
LoopOption = Annotated[
    Literal["auto", "uvloop", "asyncio"] | None,
    typer.Option("--loop", help="The event loop; auto is uvloop where it is installed."),
]


def main() -> None:
    """Run the command with the arguments of this process."""
    app(prog_name="chat-gateway")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chat-gateway {version('chat-gateway')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    pass


@app.command(
    epilog="\b\nExamples:\n"
    "  chat-gateway serve --listen line://127.0.0.1:9000\n"
    "  chat-gateway serve --config gateway.toml --set limits.max_connections=500\n"
    "  CHAT_GATEWAY_LOG__LEVEL=debug chat-gateway serve"
)
def serve(
    config: ConfigOption = None,
    listen: ListenOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    log_format: LogFormatOption = None,
    loop: LoopOption = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C.

    These drain it: what was accepted is delivered first. A second Ctrl-C ends it at once. SIGHUP reads the
    configuration again; several workers are then replaced one by one, while nobody is refused a connection.

    Environment variables override the file: CHAT_GATEWAY_ and the key, with __ for each dot, such as
    CHAT_GATEWAY_STAGES__ROUTE__CAPACITY=4096. Options override both; --listen overrides --set.

    The exit status is 0 when everything that was accepted had its outcome, 1 when shutdown.drain_timeout_s
    ran out before that or the workers died again and again, 2 when it could not start.
    """
    shorthands = {"runtime.workers": workers, "log.format": log_format, "runtime.loop": loop}
    effective = _load(config, listen, set_, shorthands)
    from chat_gateway.gateway import run_gateway

    raise SystemExit(run_gateway(effective, lambda: _read(config, listen, set_, shorthands)))


@app.command(
    epilog="\b\nExamples:\n"
    "  chat-gateway check --config gateway.toml\n"
    "  chat-gateway check --set limits.max_connections=500 > gateway.toml"
)
def check(
    config: ConfigOption = None,
    listen: ListenOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    log_format: LogFormatOption = None,
    loop: LoopOption = None,
) -> None:
    """Print the configuration, or what is wrong with it.

    Below it stands the most memory that messages can take. What is printed is a configuration file
    itself. The exit status is 0, also with a warning, or 2 when something is wrong.
    """
    shorthands = {"runtime.workers": workers, "log.format": log_format, "runtime.loop": loop}
    effective = _load(config, listen, set_, shorthands)
    from chat_gateway.check import physical_memory_bytes, report

    typer.echo(report(effective, physical_memory_bytes()), nl=False)


@app.command(
    epilog="\b\nExamples:\n"
    "  chat-gateway connect alice\n"
    '  echo "alice: the build is green" | chat-gateway connect bot --to 127.0.0.1:9000'
)
def connect(
    login: Annotated[str, typer.Argument(metavar="LOGIN", help="Who you are to the others.")],
    to: Annotated[
        str, typer.Option("--to", metavar="HOST:PORT", help="The gateway; an IPv6 host in brackets.")
    ] = "127.0.0.1:8080",
) -> None:
    """Chat from the terminal, or through a pipe: lines in, lines out.

    Type "bob: hello" to write to bob, "bob, carol: hello" to write to both. Ctrl-D ends.
    """
    host, port = _host_port(to)
    from chat_gateway.client import run_client

    raise SystemExit(run_client(login, host, port))


def _load(
    path: Path | None, listen: list[str] | None, sets: list[str] | None, shorthands: dict[str, str | None]
) -> Config:
    """The effective configuration; or one line for each problem, and the end with status 2."""
    from chat_gateway.config_sources import ConfigError

    try:
        return _read(path, listen, sets, shorthands)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _read(
    path: Path | None, listen: list[str] | None, sets: list[str] | None, shorthands: dict[str, str | None]
) -> Config:
    """The configuration as its sources are now; `shorthands` are keys that have an option of their own."""
    from chat_gateway.config_sources import load

    short_sets = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    return load(path, os.environ, [*(sets or ()), *short_sets], listen or ())


def _host_port(text: str) -> tuple[str, int]:
    from chat_gateway.listen_address import split_host_port

    try:
        host, port = split_host_port(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}", param_hint="--to") from None
    if port == 0:
        raise typer.BadParameter("port 0 cannot be connected to", param_hint="--to")
    return host, port
