"""Running the gateway in this process: loops, what keeps it from starting, signals, exit statuses."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from chat_gateway import gateway, process
from chat_gateway.config_sources import ConfigError, Problem, load
from chat_gateway.gateway import run_gateway
from chat_gateway.process import CannotStartError, loop_factory
from chat_gateway.shutdown import DrainReport
from tests.chat_gateway.fakes import FakeListening, FakeLog, turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chat_gateway.config import Config


class Run:
    """What a run of the gateway around a fake worker did; each part can be told to behave otherwise."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.opened: list[FakeListening] = []
        self.open_errors: dict[int, Exception] = {}  # by port
        self.report = DrainReport(undelivered=0, took_s=1.25)
        self.during: Callable[[asyncio.Event], None] = lambda stop: stop.set()  # while it serves
        self.error: Exception | None = None  # of the worker
        self.loop_name = ""

    def open_listening(self, host: str, port: int) -> FakeListening:
        if port in self.open_errors:
            raise self.open_errors[port]
        self.opened.append(FakeListening(port))
        return self.opened[-1]

    def worker(self, _config: Config, listening: list[FakeListening], *_others: object) -> SimpleNamespace:
        urls = [SimpleNamespace(url=f"line://127.0.0.1:{one.name[1]}") for one in listening]
        return SimpleNamespace(listeners=urls, serve=self.serve)

    async def serve(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> DrainReport:
        on_ready()
        self.loop_name = type(asyncio.get_running_loop()).__module__.split(".")[0]
        if self.error is not None:
            raise self.error
        self.during(stop)
        await asyncio.wait_for(stop.wait(), 30)
        return self.report


@pytest.fixture(name="run")
def fixture_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run that touches neither sockets nor the limits of this process."""
    run = Run()
    monkeypatch.setattr(process, "open_listening", run.open_listening)
    monkeypatch.setattr(gateway, "open_process_log", lambda _: run.log)
    monkeypatch.setattr(gateway, "Worker", run.worker)
    monkeypatch.setattr(process, "raise_file_limit", lambda: 1 << 20)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def configured(*sets: str) -> Config:
    """The defaults with one worker and some keys set."""
    return load(None, {}, ["runtime.workers=1", *sets], [])


def addressed(*ports: int) -> Config:
    """A configuration of one worker with these listeners."""
    return load(None, {}, ["runtime.workers=1"], [f"line://127.0.0.1:{port}" for port in ports])


# Which loop.


def test_loop_factory_gives_asyncio_when_asked_for_it() -> None:
    """Even where uvloop is installed."""
    new_loop, name = loop_factory("asyncio")
    assert (new_loop, name) == (asyncio.new_event_loop, "asyncio")


@pytest.mark.parametrize("wanted", ["auto", "uvloop"])
def test_loop_factory_gives_uvloop_when_it_is_installed(wanted: str) -> None:
    """By default and when asked for."""
    uvloop = pytest.importorskip("uvloop")
    new_loop, name = loop_factory(wanted)
    assert (new_loop, name) == (uvloop.new_event_loop, "uvloop")


def test_loop_factory_falls_back_to_asyncio_when_uvloop_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """auto means: the best there is."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") == (asyncio.new_event_loop, "asyncio")


def test_loop_factory_raises_when_uvloop_is_asked_for_and_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks for it wants to know."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(CannotStartError, match="uvloop, which is not installed"):
        loop_factory("uvloop")


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_run_gateway_runs_on_the_loop_that_is_configured(name: str, run: Run) -> None:
    """And says in its first record which one it is."""
    pytest.importorskip(name)
    assert run_gateway(configured(f"runtime.loop={name}")) == 0
    assert run.loop_name == name
    assert run.log.found("gateway.ready")[0]["loop"] == name


# What keeps it from starting.


def test_run_gateway_returns_2_and_says_why_when_the_loop_is_not_there(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for the operator, nothing opened."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_gateway(configured("runtime.loop=uvloop")) == 2
    assert capsys.readouterr().err == (
        "chat-gateway: runtime.loop is uvloop, which is not installed here\n"
    )
    assert run.opened == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "address already in use"),
        (OSError(-2, "Name or service not known"), "name or service not known"),
        (OSError("strange"), "strange"),
        (UnicodeError("label too long"), "no such host name can exist"),
    ],
)
def test_run_gateway_returns_2_and_closes_the_others_when_an_address_cannot_be_had(
    error: Exception, words: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """It serves all of its addresses or none, and names the one that is the trouble."""
    run.open_errors[7003] = error
    assert run_gateway(addressed(7001, 7002, 7003)) == 2
    assert capsys.readouterr().err == f"chat-gateway: cannot listen on line://127.0.0.1:7003: {words}\n"
    assert [one.is_closed for one in run.opened] == [True, True]
    assert run.log.records == []


def test_run_gateway_returns_2_when_the_dead_letters_cannot_be_written(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was asked for and cannot be had is an error at the start, not later."""
    path = tmp_path / "missing" / "letters"
    assert run_gateway(configured(f'dead_letters.path="{path}"')) == 2
    assert capsys.readouterr().err == (
        f"chat-gateway: cannot open dead_letters.path {path}: No such file or directory\n"
    )
    assert run.opened == []


def test_run_gateway_opens_and_closes_the_dead_letters_when_they_are_wanted(run: Run, tmp_path: Path) -> None:
    """The file is there, and nothing keeps it open."""
    path = tmp_path / "letters"
    assert run_gateway(configured(f'dead_letters.path="{path}"')) == 0
    assert path.exists()
    assert not any(
        os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd")
    )


# Running.


def test_run_gateway_returns_0_when_everything_was_delivered(run: Run) -> None:
    """Ready, stopped, and the log closed behind the last record."""
    assert run_gateway(addressed(7001, 7002)) == 0
    (ready,) = run.log.found("gateway.ready")
    assert ready["listen"] == ["line://127.0.0.1:7001", "line://127.0.0.1:7002"]
    assert ready["join"].endswith(" connect alice --to 127.0.0.1:7001")
    assert run.log.found("gateway.stopped") == [{"undelivered": 0, "took_s": 1.25}]
    assert run.log.closed_with == 2.0


def test_run_gateway_returns_1_when_copies_were_left_undelivered(run: Run) -> None:
    """A service manager sees that the drain ran out of time."""
    run.report = DrainReport(undelivered=3, took_s=10.0)
    assert run_gateway(configured()) == 1
    assert run.log.found("gateway.stopped")[0]["undelivered"] == 3


def test_run_gateway_closes_its_log_when_the_worker_fails(run: Run) -> None:
    """What was logged on the way is written whatever happens."""
    run.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        run_gateway(configured())
    assert run.log.closed_with == 2.0
    assert run.log.found("gateway.stopped") == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_gateway_drains_when_it_is_told_to_stop(number: signal.Signals, loop: str, run: Run) -> None:
    """Either signal sets the stop and nothing else."""
    pytest.importorskip(loop)
    run.during = lambda _stop: signal.raise_signal(number)
    assert run_gateway(configured(f"runtime.loop={loop}")) == 0


def test_run_gateway_ends_at_once_when_it_is_interrupted_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C is for who does not want to wait; SIGTERM stays patient."""
    exits: list[int] = []
    exited = asyncio.Event()

    def exit_(status: int) -> None:
        exits.append(status)
        exited.set()

    monkeypatch.setattr(os, "_exit", exit_)

    async def serve(stop: asyncio.Event, _on_ready: Callable[[], None]) -> DrainReport:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
            await stop.wait()
            await turns()
        assert exits == []
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait_for(exited.wait(), 30)
        return run.report

    monkeypatch.setattr(run, "serve", serve)
    run_gateway(configured())
    assert exits == [130]


@pytest.mark.parametrize(("files", "warns"), [(1064, False), (1063, True)])
def test_run_gateway_warns_when_it_may_open_fewer_files_than_connections(
    files: int, warns: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both numbers and a hint; it starts all the same."""
    monkeypatch.setattr(process, "raise_file_limit", lambda: files)
    assert run_gateway(configured("limits.max_connections=1000")) == 0
    records = run.log.found("limits.files")
    assert len(records) == warns
    if warns:
        assert (records[0]["max_connections"], records[0]["open_files"]) == (1000, files)
        assert "limits.max_connections" in records[0]["hint"]


def test_run_gateway_checks_the_configuration_when_it_is_hung_up(run: Run) -> None:
    """A bad one is reported; one worker goes on with what it has in any case."""
    problem = Problem("log.level", "is bad", "good ones", "a file")
    results: list[Config | ConfigError] = [ConfigError([problem]), configured("log.level=debug")]

    def load_config() -> Config:
        result = results.pop(0)
        if isinstance(result, ConfigError):
            raise result
        return result

    def during(stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        signal.raise_signal(signal.SIGHUP)
        loop.call_later(0.05, signal.raise_signal, signal.SIGHUP)
        loop.call_later(0.1, stop.set)

    run.during = during
    assert run_gateway(configured(), load_config) == 0
    assert run.log.found("config.refused") == [{"problems": [str(problem)]}]
    assert run.log.found("config.checked")[0]["changed"] == ["log.level"]


def test_run_gateway_is_left_to_a_supervisor_when_there_are_several_workers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number that auto means here, and what it returns is the status."""
    given: list[int] = []

    def run_supervised(_config: Config, workers: int, _load: Callable[[], Config]) -> int:
        given.append(workers)
        return 1

    monkeypatch.setattr("chat_gateway.supervised.run_supervised", run_supervised)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert run_gateway(configured("runtime.workers=auto")) == 1
    assert run_gateway(configured("runtime.workers=5")) == 1
    assert given == [3, 5]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert run_gateway(configured("runtime.workers=auto")) == 0
    assert len(run.opened) == 1


def test_run_gateway_logs_an_error_when_nobody_else_has_caught_it(run: Run) -> None:
    """What a callback raises becomes a record, not a traceback on the terminal."""
    problem = RuntimeError("nobody's")

    def fail() -> None:
        raise problem

    def during(stop: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(fail)
        asyncio.get_running_loop().call_soon(stop.set)

    run.during = during
    assert run_gateway(configured()) == 0
    (record,) = run.log.found("loop.error")
    assert record["exc_info"] is problem


@pytest.mark.parametrize(("found", "program"), [("/bin/gw", "gw"), (None, "chat-gateway")])
def test_run_gateway_tells_how_to_join_in_words_that_can_be_typed(
    found: str | None, program: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name it was called by where that is a command, else its own."""
    which: dict[str, Any] = {"gw": found}
    monkeypatch.setattr(sys, "argv", ["gw", "serve"])
    monkeypatch.setattr("chat_gateway.process.shutil.which", which.get)
    run_gateway(addressed(7001))
    assert run.log.found("gateway.ready")[0]["join"] == f"{program} connect alice --to 127.0.0.1:7001"
