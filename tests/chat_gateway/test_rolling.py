"""Replacing workers one by one: in which order, who is told what, and what if one fails; in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat_gateway.config_sources import ConfigError, Problem
from tests.chat_gateway.crew_world import World
from tests.chat_gateway.fakes import configured, passed, turns, virtual_time

if TYPE_CHECKING:
    from chat_gateway.config import Config


@virtual_time
async def test_new_worker_accepts_before_the_old_one_drains() -> None:
    """One place after the other, in the same place and on the same sockets."""
    world = World(2)
    await passed(1)
    world.prepare = lambda worker: setattr(worker, "drains", worker.start.wid > 2)
    world.worker(1).drains = False
    world.supervisor.reload()
    await passed(0.2)
    assert (world.living, world.worker(1).orders()) == ([1, 2, 3], [])
    assert world.worker(3).start.listening == world.worker(1).start.listening
    await passed(0.5)
    assert world.worker(1).orders() == ["restarting"]
    for wid in (1, 2, 3):
        assert world.worker(wid).members == [(0, 1, True), (1, 2, False), (0, 3, False)]
    assert len(world.workers) == 3  # the other place waits for its turn
    await passed(5)
    world.worker(1).end(0)
    await passed(5)
    assert world.living == [3, 4]
    assert world.worker(2).orders() == ["restarting", "close"]
    assert world.worker(3).members == [(0, 3, False), (1, 4, False)]
    assert len(world.log.found("restart.done")) == 1
    assert not world.log.found("worker.lost")
    assert not (await world.end()).is_failure


@virtual_time
async def test_new_workers_have_the_configuration_that_was_read_again() -> None:
    """Also those that replace a dead one later; what cannot change without a new start stays."""
    world = World(2)
    await passed(1)
    world.next_config = lambda: configured("limits.max_recipients=7", "supervisor.max_restarts=9")
    world.supervisor.reload()
    await passed(5)
    assert [worker.start.config.limits.max_recipients for worker in world.workers] == [256, 256, 7, 7]
    assert world.worker(4).start.config.supervisor == world.config.supervisor
    assert world.log.found("config.taken") == [
        {"changed": ["limits.max_recipients"], "needs_restart": ["supervisor.max_restarts"]}
    ]
    world.worker(3).end(1)
    await passed(1)
    assert world.worker(5).start.config.limits.max_recipients == 7
    await world.end()


@virtual_time
async def test_nothing_changes_when_the_configuration_is_bad() -> None:
    """It is reported, and the workers go on."""
    world = World(2)
    await passed(1)

    def refuse() -> Config:
        raise ConfigError([Problem("log.level", '"x" is none of the choices', "others", "a file")])

    world.next_config = refuse
    world.supervisor.reload()
    await passed(5)
    assert world.living == [1, 2]
    (record,) = world.log.found("config.refused")
    assert record["problems"] == ['log.level: "x" is none of the choices; allowed: others (from a file)']
    await world.end()


@virtual_time
async def test_old_workers_go_on_when_a_new_one_does_not_get_ready() -> None:
    """It dies or is killed; what has not been replaced keeps its configuration, also after a restart."""
    world = World(2, "supervisor.start_timeout_s=10")
    await passed(1)
    world.next_config = lambda: configured("limits.max_recipients=7", "supervisor.start_timeout_s=10")
    world.prepare = lambda worker: setattr(worker, "gets_ready", False)
    world.supervisor.reload()
    await passed(15)
    assert world.worker(3).is_killed
    assert world.living == [1, 2]
    assert world.log.found("restart.failed")[0]["of"] == 1
    assert world.worker(1).members == [(0, 1, False), (1, 2, False)]
    world.prepare = lambda _: None
    world.worker(1).end(1)
    await passed(1)
    assert world.worker(4).start.config.limits.max_recipients == 256
    await world.end()


@virtual_time
async def test_restart_fails_when_a_worker_cannot_be_started() -> None:
    """And another one can be asked for afterwards."""
    world = World(2)
    await passed(1)
    world.launch_error = OSError(12, "Cannot allocate memory")
    world.supervisor.reload()
    await passed(1)
    (record,) = world.log.found("restart.failed")
    assert record["exc_info"] is world.launch_error
    world.launch_error = None
    world.supervisor.reload()
    await passed(5)
    assert world.living == [4, 5]  # a number is never used twice
    await world.end()


@virtual_time
async def test_old_worker_is_killed_when_it_does_not_drain_in_time() -> None:
    """Then it is lost, but not replaced once more."""
    world = World(2, "shutdown.drain_timeout_s=3")
    await passed(1)
    world.worker(1).drains = False
    world.supervisor.reload()
    await passed(10)
    assert world.worker(1).is_killed
    assert world.living == [3, 4]
    (lost,) = world.log.found("worker.lost")
    assert (lost["wid"], "restart_in_s" in lost) == (1, False)
    await world.end()


@virtual_time
async def test_new_worker_takes_over_when_the_old_one_dies_meanwhile() -> None:
    """There is one to come already, so no other one is started."""
    world = World(2)
    await passed(1)
    world.supervisor.reload()
    await turns()
    world.worker(1).end(-9)
    await passed(5)
    assert world.living == [3, 4]
    await world.end()


@virtual_time
async def test_place_without_a_worker_gets_the_new_configuration_with_its_next_one() -> None:
    """One that waits for its restart is not replaced."""
    world = World(2, "supervisor.restart_base_delay_s=4", "supervisor.restart_max_delay_s=4")
    await passed(1)
    world.worker(1).end(1)
    await passed(1)
    world.worker(3).end(1)
    await turns()
    world.next_config = lambda: configured("limits.max_recipients=7")
    world.supervisor.reload()
    await passed(5)
    assert [worker.start.slot for worker in world.workers] == [0, 1, 0, 1, 0]
    assert world.worker(5).start.config.limits.max_recipients == 7
    await world.end()


@virtual_time
async def test_restart_is_repeated_once_when_it_is_asked_for_while_one_is_under_way() -> None:
    """However often."""
    world = World(2)
    await passed(1)
    for _ in range(3):
        world.supervisor.reload()
        await passed(0.1)
    await passed(10)
    assert world.living == [5, 6]
    assert len(world.log.found("restart.done")) == 2
    await world.end()


@virtual_time
async def test_drain_ends_old_and_new_workers_when_a_restart_is_under_way() -> None:
    """Those that drained already are closed with the others; one that has not begun is just ended."""
    world = World(2)
    await passed(1)
    world.worker(1).drains = False
    world.supervisor.reload()
    await passed(1)
    assert world.worker(1).orders() == ["restarting"]
    world.worker(1).drains = True
    report = await world.end()
    assert world.living == []
    assert not report.is_failure
    assert world.worker(3).orders() == ["shutdown", "close"]
