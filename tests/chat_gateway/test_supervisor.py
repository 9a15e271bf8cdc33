"""What the supervisor decides about workers that get ready, die, hang or are told to end; in virtual time."""

from __future__ import annotations

from chat_gateway.control_frames import Close, Drain, Drained, Hello, PleaseDrain, Snapshot
from tests.chat_gateway.crew_world import FakeWorker, World
from tests.chat_gateway.fakes import passed, turns, virtual_time

# Starting.


@virtual_time
async def test_workers_hear_of_each_other_once_all_have_said_hello() -> None:
    """Not before: the first owner of a login must know who else is there."""
    world = World(3, begins=False)
    await turns()
    assert [worker.start.slot for worker in world.workers] == [0, 1, 2]
    world.worker(1).begin()
    world.worker(3).begin()
    await turns()
    assert world.worker(1).heard == []
    world.worker(2).begin()
    await turns()
    for worker in world.workers:
        assert worker.members == [(0, 1, False), (1, 2, False), (2, 3, False)]
    assert world.ready == 1
    await world.end()


@virtual_time
async def test_worker_gets_its_share_and_its_own_sockets() -> None:
    """Of the limits of the gateway, and of the sockets it listens on."""
    world = World(2, "limits.max_connections=1000")
    await passed(1)
    for slot, worker in enumerate(world.workers):
        assert worker.start.config.limits.max_connections == 625
        assert worker.start.listening == tuple(world.listening[slot])
        assert (worker.start.slots, worker.start.run_dir) == (2, "/run")
    await world.end()


@virtual_time
async def test_gateway_is_ready_once_and_only_when_every_worker_accepts() -> None:
    """A worker that is replaced later makes no second record."""
    world = World(2)
    world.prepare = lambda worker: setattr(worker, "gets_ready", worker.start.wid != 2)
    await passed(1)
    assert world.ready == 0
    world.prepare = lambda _: None
    world.worker(2).end(1)
    await passed(1)
    assert world.ready == 1
    world.worker(1).end(1)
    await passed(1)
    assert (world.ready, world.living) == (1, [3, 4])
    await world.end()


@virtual_time
async def test_worker_is_killed_when_it_does_not_begin_in_time() -> None:
    """`start_timeout_s` from its start to its hello, and it is replaced like one that died."""
    world = World(2, "supervisor.start_timeout_s=10", begins=False)
    await passed(9.5)
    assert world.living == [1, 2]
    world.worker(1).begin()
    world.begins = True
    await passed(1.5)
    assert not world.worker(1).is_killed
    assert world.worker(2).is_killed
    assert world.log.found("worker.killed")[0]["reason"] == "did not get on in time"
    assert world.living == [1, 3]
    assert world.ready == 1
    await world.end()


@virtual_time
async def test_worker_is_killed_when_it_does_not_get_ready_in_time() -> None:
    """The time counts from when it knows the others, which is not up to it."""
    world = World(2, "supervisor.start_timeout_s=10", begins=False)
    world.prepare = lambda worker: setattr(worker, "gets_ready", False)
    await turns()
    world.worker(1).begin()
    await passed(8)
    world.worker(2).gets_ready = True
    world.worker(1).gets_ready = False
    world.worker(2).begin()
    await passed(9.0)
    assert not world.worker(1).is_killed
    await passed(1.5)
    assert world.worker(1).is_killed
    await world.end()


@virtual_time
async def test_stranger_is_not_listened_to() -> None:
    """A hello with a number or a process that was not started here ends the link."""
    world = World(2)
    await passed(1)
    stranger = FakeWorker(world, world.worker(1).start, lambda _: None)
    stranger.pid = 4711
    stranger.begin()
    await turns()
    stranger.say(PleaseDrain())
    other = FakeWorker(world, world.worker(1).start, lambda _: None)
    other._link = world.supervisor.crew.new_link()
    other._link.connection_made(other)  # type: ignore[arg-type]  # stands for its transport
    other.say(Hello(99, 1001))
    other.say(PleaseDrain())
    await turns()
    assert not world.supervisor.stop.is_set()
    assert stranger.heard == other.heard == []
    await world.end()


# Dying.


@virtual_time
async def test_worker_is_replaced_at_once_when_it_dies() -> None:
    """In the same place, with the same sockets and a new number; the others are told of both changes."""
    world = World(2)
    await passed(1)
    world.worker(1).account(10, in_flight=3)
    world.worker(1).end(-9)
    await turns()
    assert world.worker(2).members == [(1, 2, False)]
    await passed(0)
    assert world.worker(3).start.slot == 0
    assert world.worker(3).start.listening == world.worker(1).start.listening
    await passed(1)
    assert world.worker(2).members == [(1, 2, False), (0, 3, False)]
    assert world.log.found("worker.lost") == [
        {"of": 1, "wid": 1, "signal": "SIGKILL", "in_flight": 3, "restart_in_s": 0.0}
    ]
    await world.end()


@virtual_time
async def test_copies_of_a_dead_worker_are_accounted_for() -> None:
    """What it had in flight when it was heard last is refused as worker_lost, and the sum holds."""
    world = World(2, "metrics.interval_s=5")
    await passed(1)
    first = world.worker(1)
    first.accepted, first.in_flight = 10, 3
    await passed(1)
    first.end(1)
    world.worker(2).accepted = 5
    await passed(5)
    record = world.log.found("metrics")[-1]
    assert (record["accepted"], record["delivered"], record["in_flight"]) == (15, 12, 0)
    assert record["refused_by_reason"] == {"worker_lost": 3}
    assert record["workers"] == {"live": 2, "restarts": 1}
    await world.end()


@virtual_time
async def test_last_words_of_a_worker_count_when_its_end_is_noticed_first() -> None:
    """Its process may be seen to end before what it said last has been read."""
    world = World(2)
    await passed(1)
    world.worker(1).is_alive = False
    world.worker(1)._on_ended(1)
    world.worker(1).say(Snapshot({"accepted": 7, "delivered": 7}))
    world.worker(1).lose_link()
    await turns()
    await world.end()
    assert world.log.found("metrics")[-1]["delivered"] == 7


@virtual_time
async def test_restarts_come_further_apart_when_a_worker_dies_again() -> None:
    """The first at once, then half of the bound that doubles, since chance is one half here; then never."""
    world = World(2, "supervisor.max_restarts=3", "supervisor.restart_base_delay_s=2", begins=True)
    await passed(1)
    for wid in (1, 3, 4):
        world.worker(wid).end(1)
        await passed(3)
    assert [lost["restart_in_s"] for lost in world.log.found("worker.lost")] == [0.0, 1.0, 2.0]
    assert world.living == [2, 5]
    world.worker(5).end(1)
    report = await world.serving
    assert report.is_failure
    assert world.log.found("worker.lost")[-1]["restart_in_s"] is None
    (why,) = world.log.found("gateway.gives_up")
    assert (why["of"], why["restarts"], why["window_s"]) == (1, 3, 60.0)
    assert world.worker(2).orders() == ["shutdown", "close"]


@virtual_time
async def test_restarts_count_for_each_place_and_are_forgotten_after_the_window() -> None:
    """Many deaths of different workers, or over a long time, are no reason to give up."""
    world = World(2, "supervisor.max_restarts=1", "supervisor.restart_window_s=20")
    await passed(1)
    for wid in (1, 2):
        world.worker(wid).end(1)
    await passed(21)
    for worker in [worker for worker in world.workers if worker.is_alive]:
        worker.end(1)
    await passed(1)
    assert len(world.living) == 2
    assert not (await world.end()).is_failure


@virtual_time
async def test_worker_that_cannot_be_started_is_tried_again() -> None:
    """The system may be short of processes or memory for a moment."""
    world = World(2)
    await passed(1)
    world.launch_error = OSError(11, "Resource temporarily unavailable")
    world.worker(1).end(1)
    await passed(0)
    (record,) = world.log.found("worker.not_started")
    assert (record["of"], record["error"]) == (1, "Resource temporarily unavailable")
    world.launch_error = None
    await passed(1)
    assert world.living == [2, 4]
    await world.end()


# Hanging.


@virtual_time
async def test_worker_is_killed_when_it_gives_no_sign_of_life() -> None:
    """After `worker_timeout_s`, not before; and replaced."""
    world = World(2, "supervisor.worker_timeout_s=5")
    await passed(2)
    world.worker(2).is_hanging = True
    await passed(4)
    assert world.living == [1, 2]
    await passed(2)
    assert world.worker(2).is_killed
    assert world.living == [1, 3]
    assert world.log.found("worker.killed") == [{"wid": 2, "of": 2, "reason": "no sign of life"}]
    await world.end()


@virtual_time
async def test_nobody_is_killed_when_it_was_the_supervisor_that_slept() -> None:
    """After a pause of its own it has heard nobody, which is not their fault."""
    world = World(2, "supervisor.worker_timeout_s=5")
    await passed(2)
    loop = world.supervisor._loop
    loop.now += 60  # type: ignore[attr-defined]  # of the virtual loop
    await passed(4)
    assert world.living == [1, 2]
    await world.end()


@virtual_time
async def test_worker_is_killed_when_its_link_ends_and_it_does_not() -> None:
    """A worker that cannot be spoken to is none."""
    world = World(2)
    await passed(1)
    world.worker(1).lose_link()
    await passed(2)
    assert not world.worker(1).is_killed
    await passed(2)
    assert world.worker(1).is_killed
    await world.end()


@virtual_time
async def test_worker_is_killed_when_it_says_what_nobody_understands() -> None:
    """The link ends, and with it the worker."""
    world = World(2)
    await passed(1)
    link = world.worker(1)._link
    assert link is not None
    link.data_received(b"\x00\x00\x00\x01\xc1")
    await passed(4)
    assert world.worker(1).is_killed
    await world.end()


# Ending together.


@virtual_time
async def test_connections_are_closed_when_all_have_drained() -> None:
    """A worker may still deliver for another one, so none is closed before the last has drained."""
    world = World(3, "shutdown.drain_timeout_s=10")
    await passed(1)
    world.worker(2).drains = False
    world.supervisor.stop.set()
    await passed(3)
    assert [worker.orders() for worker in world.workers] == [["shutdown"]] * 3
    assert all(one.is_closed for (one,) in world.listening)
    world.worker(2).say(Drained(0))
    report = await world.serving
    assert [worker.orders() for worker in world.workers] == [["shutdown", "close"]] * 3
    assert (report.undelivered, report.is_failure) == (0, False)
    assert 3 <= report.took_s < 4
    assert len(world.log.found("worker.stopped")) == 3


@virtual_time
async def test_worker_hears_nothing_more_of_the_others_when_it_has_drained() -> None:
    """It may have closed its end of the link, and a failed write would lose what it said last."""
    world = World(3)
    await passed(1)
    await world.end()
    for worker in world.workers:
        assert [type(message) for message in worker.heard[-2:]] == [Drain, Close]


@virtual_time
async def test_worker_has_what_is_left_of_the_time() -> None:
    """`drain_timeout_s` goes with the order."""
    world = World(2, "shutdown.drain_timeout_s=7")
    await passed(1)
    await world.end()
    (order,) = [message for message in world.worker(1).heard if isinstance(message, Drain)]
    assert order.deadline_s == 7


@virtual_time
async def test_gateway_drains_when_a_worker_is_asked_to() -> None:
    """A SIGTERM of one worker is meant for the gateway; nobody is restarted."""
    world = World(2)
    await passed(1)
    world.worker(2).say(PleaseDrain())
    report = await world.serving
    assert (report.is_failure, len(world.workers)) == (False, 2)


@virtual_time
async def test_drain_goes_on_without_a_worker_when_that_dies() -> None:
    """It is not replaced and not waited for; what it had is lost, and the status says so."""
    world = World(2, "shutdown.drain_timeout_s=60")
    await passed(1)
    world.worker(1).account(9, in_flight=2)
    world.worker(1).drains = False
    world.supervisor.stop.set()
    await passed(1)
    world.worker(1).end(-9)
    report = await world.serving
    assert (report.undelivered, report.is_failure) == (2, True)
    assert report.took_s < 2
    assert len(world.workers) == 2
    assert world.log.found("metrics")[-1]["refused_by_reason"] == {"worker_lost": 2}


@virtual_time
async def test_worker_is_killed_when_it_hangs_while_all_drain() -> None:
    """The others need not wait until the time is over."""
    world = World(2, "shutdown.drain_timeout_s=60", "supervisor.worker_timeout_s=5")
    await passed(1)
    world.worker(1).is_hanging = True
    report = await world.end()
    assert world.worker(1).is_killed
    assert report.took_s < 6
    assert report.is_failure


@virtual_time
async def test_workers_are_killed_when_they_do_not_drain_in_time() -> None:
    """Each keeps to the time itself, so a little later; then nothing is waited for."""
    world = World(2, "shutdown.drain_timeout_s=3")
    await passed(1)
    world.worker(1).account(4, in_flight=1)
    world.worker(1).drains = False
    report = await world.end()
    assert 5 <= report.took_s < 6
    assert world.worker(1).is_killed
    assert (report.undelivered, report.is_failure) == (1, True)


@virtual_time
async def test_drain_fails_when_a_worker_could_not_deliver_in_time() -> None:
    """It says what is left and ends with 1."""
    world = World(2, "shutdown.drain_timeout_s=3")
    await passed(1)
    world.worker(1).drains = False
    world.supervisor.stop.set()
    await passed(3)
    world.worker(1).say(Drained(5))
    world.worker(1).in_flight = 5
    world.worker(1).end(1)
    report = await world.serving
    assert (report.undelivered, report.is_failure) == (5, True)


@virtual_time
async def test_workers_that_have_not_begun_are_ended_without_a_word() -> None:
    """They hold nothing; it is no failure and nobody waits."""
    world = World(2, begins=False)
    await turns()
    world.worker(1).begin()
    report = await world.end()
    assert world.living == []
    assert (report.is_failure, report.took_s < 1) == (False, True)
    assert not world.log.found("worker.lost")
    assert not world.log.found("worker.killed")


@virtual_time
async def test_no_worker_is_started_any_more_when_the_gateway_drains() -> None:
    """A restart that was due is not made."""
    world = World(2, "supervisor.restart_base_delay_s=5", "supervisor.restart_max_delay_s=5")
    await passed(1)
    world.worker(1).end(1)
    await passed(1)
    world.worker(3).end(1)
    await world.end()
    await passed(60)
    assert len(world.workers) == 3


@virtual_time
async def test_all_are_killed_when_nobody_wants_to_wait() -> None:
    """The second Ctrl-C."""
    world = World(2)
    await passed(1)
    for worker in world.workers:
        worker.drains = False
    world.supervisor.stop.set()
    await turns()
    world.supervisor.kill_all()
    assert all(worker.is_killed for worker in world.workers)
    await world.serving


@virtual_time
async def test_metrics_are_written_while_workers_live_and_once_at_the_end() -> None:
    """Each `interval_s`, from what workers have sent."""
    world = World(2, "metrics.interval_s=5")
    await passed(1)
    world.worker(1).say(Snapshot({"sessions": 3, "logins": 4}))
    world.worker(2).say(Snapshot({"sessions": 2, "logins": 2}))
    await passed(5)
    (record,) = world.log.found("metrics")
    assert (record["sessions"], record["logins"], record["workers"]["live"]) == (5, 6, 2)
    await world.end()
    assert len(world.log.found("metrics")) == 2
    assert world.log.found("metrics")[-1]["logins"] == 6
