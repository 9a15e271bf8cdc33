"""Several worker processes behind one address, and what happens when they or their supervisor die or are told
to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import WAIT_S, GatewayProcess, LineClient
from tests.e2e.processes import commands, names_in, nobody_left, pids
from tests.e2e.room import same_loop
from tests.e2e.workers import SOON, assert_accounted, each_loop_once, replaced, several, worker_pid

if TYPE_CHECKING:
    from collections.abc import Iterator

def one_loop_only() -> None:
    """Leave a test out on the second event loop: the processes are the same."""
    if same_loop() != "uvloop":
        pytest.skip("once is enough")


@pytest.fixture(name="base")
def fixture_base() -> Iterator[Path]:
    """Where run directories are made; its path is short, as sockets need it."""
    path = Path(tempfile.mkdtemp(prefix="gw"))
    yield path
    shutil.rmtree(path)


async def logins_on(gateway: GatewayProcess, worker: int, count: int) -> list[LineClient]:
    """Log clients in until so many are on this worker, which the kernel decides; the others are closed."""
    found: list[LineClient] = []
    for number in range(200):
        name = f"w{worker}n{number}"
        client = await LineClient.login(gateway.port, name)
        record = await gateway.wait_record("session.login", lambda record: record["login"] == name)  # noqa: B023
        if record["worker"] != worker:
            await client.close()
            continue
        found.append(client)
        if len(found) == count:
            return found
    raise AssertionError("the kernel gives this worker nobody")


async def test_workers_serve_one_address_together_and_end_together(base: Path) -> None:
    """Both answer, nobody else is needed, a SIGTERM of a worker ends all of them, and nothing is left."""
    async with several(base=base) as gateway:
        (ready,) = gateway.found("gateway.ready")
        assert (ready["workers"], ready["worker"], len(ready["listen"])) == (2, "supervisor", 1)
        assert sorted(record["worker"] for record in gateway.found("worker.ready")) == [1, 2]
        (run_dir,) = names_in(base)
        assert stat.S_IMODE(os.stat(base / run_dir).st_mode) == 0o700
        assert not [line for line in commands(gateway.process.pid) if "manager" in line]
        # Itself, what Python needs to clean up behind processes that were killed, and the workers.
        assert len(pids(gateway.process.pid)) == 4
        (alice,) = await logins_on(gateway, 1, 1)
        (bob,) = await logins_on(gateway, 2, 1)
        os.kill(worker_pid(gateway, 2), signal.SIGTERM)
        for client in (alice, bob):
            assert await client.rest() == b"! shutdown the gateway stops\n"
            await client.close()
        assert await gateway.wait() == 0
        assert not gateway.stderr
        await nobody_left(gateway.process.pid)
        assert names_in(base) == set()
        last = assert_accounted(gateway)
        assert last["accepted"] == last["delivered"] == last["logins"]
        assert len(gateway.found("worker.stopped")) == 2
        assert not gateway.found("worker.lost")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_gateway_ends_in_order_when_the_whole_group_is_told_to(number: signal.Signals) -> None:
    """As Ctrl-C or a service manager does: no worker is killed by what concerns the supervisor."""
    async with several(workers=3) as gateway:
        clients = [await LineClient.login(gateway.port, f"c{each}") for each in range(6)]
        os.killpg(gateway.process.pid, number)
        for client in clients:
            assert await client.rest() == b"! shutdown the gateway stops\n"
            await client.close()
        assert await gateway.wait() == 0
        await nobody_left(gateway.process.pid)
        assert gateway.found("gateway.stopped")[0]["undelivered"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_gateway_ends_at_once_when_it_is_told_to_while_it_starts(number: signal.Signals) -> None:
    """Workers that have not begun are not waited for, and a signal to the group cannot kill them unseen."""
    one_loop_only()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_gateway", "serve", "--listen", "line://127.0.0.1:0"),
        *("--workers", "3", "--log-format", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    gateway = GatewayProcess(process)
    try:
        await gateway.wait_record("worker.started")
        os.killpg(process.pid, number)
        assert await gateway.wait() == 0
        await nobody_left(process.pid)
        assert not gateway.found("worker.lost")
    finally:
        await gateway.kill()


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_worker_is_replaced_when_it_is_killed(workers: int) -> None:
    """Its clients are cut off, the others notice nothing, and its place is taken while newcomers wait."""
    each_loop_once(workers)
    async with several(*SOON, workers=workers) as gateway:
        (gone,) = await logins_on(gateway, 1, 1)
        (other,) = await logins_on(gateway, 2, 1)
        successor = asyncio.create_task(replaced(gateway, 1))
        os.kill(worker_pid(gateway, 1), signal.SIGKILL)
        began = time.monotonic()
        newcomers = await asyncio.gather(*(LineClient.login(gateway.port, f"n{each}") for each in range(20)))
        await successor
        assert time.monotonic() - began < 10  # what it takes is some tenths of a second
        with contextlib.suppress(ConnectionError):  # a reset tells the same
            assert await gone.line() == b""
        await gone.close()
        again = await logins_on(gateway, 1, 1)
        for client in (other, *newcomers, *again):
            await client.close()
        lost = await gateway.wait_record("worker.lost")
        assert (lost["of"], lost["signal"], lost["restart_in_s"]) == (1, "SIGKILL", 0)
        assert await gateway.stop() == 0
        assert assert_accounted(gateway)["workers"] == {"live": 0, "restarts": 1}


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_gateway_ends_with_1_and_says_why_when_a_worker_dies_again_and_again(workers: int) -> None:
    """Restarted twice, as allowed, and no more; the other workers drain in order."""
    each_loop_once(workers)
    allowed = ("--set", "supervisor.max_restarts=2")
    async with several(*SOON, *allowed, workers=workers) as gateway:
        (other,) = await logins_on(gateway, 2, 1)
        for _ in range(2):
            os.kill(worker_pid(gateway, 1), signal.SIGKILL)
            await replaced(gateway, 1)
        os.kill(worker_pid(gateway, 1), signal.SIGKILL)
        assert await other.rest() == b"! shutdown the gateway stops\n"
        await other.close()
        assert await gateway.wait() == 1
        await nobody_left(gateway.process.pid)
        (why,) = gateway.found("gateway.gives_up")
        assert (why["of"], why["restarts"], why["level"]) == (1, 2, "error")
        assert why["hint"] == "this worker dies again and again; the records before say how"
        assert [lost["restart_in_s"] is None for lost in gateway.found("worker.lost")] == [False, False, True]


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_nothing_is_left_when_the_supervisor_is_killed(workers: int, base: Path) -> None:
    """Workers drain and end by themselves; the next gateway cleans up what only a living one can."""
    each_loop_once(workers)
    async with several(workers=workers, base=base) as gateway:
        clients = [await LineClient.login(gateway.port, f"c{each}") for each in range(6)]
        gateway.signal(signal.SIGKILL)
        began = time.monotonic()
        for client in clients:
            assert await client.rest() == b"! shutdown the gateway stops\n"
            await client.close()
        assert await gateway.wait() == -signal.SIGKILL
        await nobody_left(gateway.process.pid)
        assert time.monotonic() - began < 10
    left = names_in(base)
    assert len(left) == 1
    async with several(base=base) as gateway:
        assert not left & names_in(base)
        assert await gateway.stop() == 0
    assert names_in(base) == set()


async def test_worker_that_has_just_begun_ends_when_the_supervisor_is_killed() -> None:
    """It finds nobody to say hello to."""
    one_loop_only()
    async with several(*SOON) as gateway:
        os.kill(worker_pid(gateway, 1), signal.SIGKILL)
        await gateway.wait_record("worker.started", lambda record: record["wid"] == 3)
        gateway.signal(signal.SIGKILL)
        await gateway.wait()
        await nobody_left(gateway.process.pid)


async def test_gateway_ends_at_once_when_it_is_interrupted_twice(base: Path) -> None:
    """Who presses Ctrl-C again does not wait for slow clients; nothing is left all the same."""
    patience = ("--set", "shutdown.drain_timeout_s=600", "--set", "outbox.linger_s=600")
    async with several(*patience, base=base) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        os.killpg(gateway.process.pid, signal.SIGINT)
        assert await alice.line() == b"! shutdown the gateway stops\n"  # and stays connected
        os.killpg(gateway.process.pid, signal.SIGINT)
        assert await gateway.wait() == 130
        await nobody_left(gateway.process.pid)
        assert names_in(base) == set()
        await alice.close()


async def keep_connecting(port: int, name: str, stop: asyncio.Event, answers: Counter[str]) -> None:
    """Connect and log in again and again; counts what came of it."""
    while not stop.is_set():
        try:
            client = await LineClient.connect(port)
            client.send(f"{name}\n{name}: in\n".encode())
            line = await client.line()
            client.end()
            await client.rest()
            await client.close()
        except OSError as error:
            answers[f"{error!r}"] += 1
        else:
            answers["in" if line == f"from {name}: in\n".encode() else line.decode()] += 1


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_workers_are_replaced_one_by_one_when_the_gateway_is_told_to_restart(
    workers: int, tmp_path: Path
) -> None:
    """Nobody is refused meanwhile, those who were there are told, and the new configuration holds."""
    each_loop_once(workers)
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nmax_recipients = 256\n")
    async with several(*SOON, "--config", str(path), workers=workers) as gateway:
        before = {worker: worker_pid(gateway, worker) for worker in range(1, workers + 1)}
        told = [one for worker in before for one in await logins_on(gateway, worker, 2)]
        path.write_text("[limits]\nmax_recipients = 2\n[supervisor]\nmax_restarts = 3\n")
        stop = asyncio.Event()
        answers: Counter[str] = Counter()
        connecting = [
            asyncio.create_task(keep_connecting(gateway.port, f"k{each}", stop, answers)) for each in range(3)
        ]
        gateway.signal(signal.SIGHUP)
        for client in told:
            assert await client.rest() == b"! restarting connect again\n"
            await client.close()
        await gateway.wait_record("restart.done")
        stop.set()
        await asyncio.gather(*connecting)
        # One that the old worker took just before it left is told so; it is not refused.
        assert answers.pop("! restarting connect again\n", 0) < answers["in"]
        assert set(answers) == {"in"}
        assert all(worker_pid(gateway, worker) != pid for worker, pid in before.items())
        taken = gateway.found("config.taken")[0]
        assert (taken["changed"], taken["needs_restart"]) == (
            ["limits.max_recipients"],
            ["supervisor.max_restarts"],
        )
        alice = await LineClient.login(gateway.port, "alice")
        alice.send(b"a,b,c: x\n")
        assert (await alice.line()).startswith(b"! too-many-recipients")
        await alice.close()
        assert not gateway.found("worker.lost")
        assert await gateway.stop() == 0
        last = assert_accounted(gateway)
        assert last["workers"]["restarts"] == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_nothing_changes_when_the_configuration_that_is_read_again_is_bad(
    workers: int, tmp_path: Path
) -> None:
    """It is reported with its problem; with one worker a good one is only reported too."""
    path = tmp_path / "gateway.toml"
    path.write_text("")
    async with several("--config", str(path), workers=workers) as gateway:
        before = pids(gateway.process.pid)
        path.write_text("[limits]\nmax_recipients = 0\n")
        gateway.signal(signal.SIGHUP)
        refused = await gateway.wait_record("config.refused")
        (problem,) = refused["problems"]
        assert problem.startswith("limits.max_recipients: 0 is too small; allowed: ")
        alice = await LineClient.login(gateway.port, "alice")
        await alice.close()
        if workers == 1:
            path.write_text("[limits]\nmax_recipients = 3\n")
            gateway.signal(signal.SIGHUP)
            checked = await gateway.wait_record("config.checked")
            assert checked["changed"] == ["limits.max_recipients"]
        assert pids(gateway.process.pid) == before
        assert not gateway.found("restart.began")
        assert await gateway.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_gateway_drains_when_its_terminal_closes(workers: str, tmp_path: Path) -> None:
    """A hang-up of the terminal it runs on is no wish for a new configuration."""
    log = tmp_path / "log"
    command = f"exec {sys.executable} -m chat_gateway serve --listen line://127.0.0.1:0 --workers {workers}"
    pid, terminal = pty.fork()
    if pid == 0:  # the child, in a session whose terminal is ours
        os.execv("/bin/sh", ["/bin/sh", "-c", f"{command} --log-format json >{log}"])
    deadline = time.monotonic() + WAIT_S
    while not log.exists() or "gateway.ready" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "gateway.stopped" in log.read_text()
    assert "config." not in log.read_text()
