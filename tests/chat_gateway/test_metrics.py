"""The metrics record: it adds up, its intervals begin anew, and it comes in time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from tests.chat_gateway.fakes import FakeGateway, fill, passed, turns, virtual_time

if TYPE_CHECKING:
    import pytest

    from tests.chat_gateway.fakes import VirtualLoop


@virtual_time
async def test_record_accounts_for_every_copy_when_some_wait() -> None:
    """accepted = delivered + stored + refused + in flight, and each by its reason."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    alice.send(b"alice, bob, nobody: x\nno colon\n")
    await turns()
    record = gateway.worker.metrics.record()
    account = [record[name] for name in ("accepted", "delivered", "stored", "refused", "in_flight")]
    assert account == [4, 2, 0, 1, 1]
    assert record["refused_by_reason"] == {"not_logged_in": 1}
    assert record["rejected_lines"] == {"bad-line": 1}
    assert record["bytes_in"] == gateway.ledger.bytes_in > 0
    assert record["bytes_out"] == gateway.ledger.bytes_out > 0
    await gateway.close()


@virtual_time
async def test_record_counts_connections_and_outboxes_as_they_are_now() -> None:
    """Sessions that are not read because of where their messages go are told from those that are."""
    gateway = FakeGateway(
        "outbox.max_outbox_bytes=1024", "outbox.high_watermark_bytes=512", "outbox.low_watermark_bytes=0"
    )
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    gateway.connect().reset()
    fill(alice, "bob")
    await turns()
    record = gateway.worker.metrics.record()
    assert (record["connections"], record["connections_accepted"], record["logins"]) == (2, 3, 2)
    assert record["connections_closed"] == {"client_lost": 1}
    assert (record["sessions"], record["sessions_stalled"]) == (2, 1)
    outbox = record["outbox"]
    assert (outbox["paused"], outbox["parked_copies"]) == (1, 2)
    assert outbox["pending_bytes"] == outbox["peak_bytes"] == len(b"from alice: \n") + 1000
    await gateway.close()


@virtual_time
async def test_record_tells_of_each_stage_since_the_record_before() -> None:
    """Counters go up for ever; waits and shares are of the interval."""
    gateway = FakeGateway("stages.parse.capacity=2", is_started=False)
    alice = gateway.login("alice")
    alice.send(b"alice: 1\nalice: 2\n")
    alice.send(b"alice: 3\n")
    record = gateway.worker.metrics.record()
    parse = record["stages"]["parse"]
    assert list(record["stages"]) == ["parse", "route", "deliver"]
    assert (parse["in"], parse["out"], parse["depth"], parse["free"], parse["waiting"]) == (2, 0, 2, 0, 1)
    gateway.worker.topology.start()
    await turns()
    parse = gateway.worker.metrics.record()["stages"]["parse"]
    assert (parse["in"], parse["out"], parse["depth"], parse["free"], parse["waiting"]) == (3, 3, 0, 2, 0)
    assert parse["peak"] == parse["capacity"] == 2
    assert parse["send_wait_us"]["max"] > 0
    assert parse["time_in_stage_us"]["max"] > 0
    assert parse["busy_share"] > 0
    parse = gateway.worker.metrics.record()["stages"]["parse"]
    assert parse["send_wait_us"] == parse["time_in_stage_us"] == {"p50": 0, "p99": 0, "max": 0}
    assert (parse["in"], parse["busy_share"]) == (3, 0)
    await gateway.close()


@virtual_time
async def test_record_counts_senders_that_did_not_wait_when_some_did() -> None:
    """One wait in a hundred sends is the worst of them, not the middle one."""
    gateway = FakeGateway("stages.parse.capacity=99", is_started=False)
    alice = gateway.login("alice")
    for _ in range(100):
        alice.send(b"alice: x\n")
    gateway.worker.topology.start()
    await turns()
    waits = gateway.worker.metrics.record()["stages"]["parse"]["send_wait_us"]
    assert waits["p50"] == 0
    assert waits["max"] > 0
    await gateway.close()


@virtual_time
async def test_reports_come_at_their_interval_and_once_more_at_the_end() -> None:
    """The last one is complete, and nothing ticks after it."""
    gateway = FakeGateway("metrics.interval_s=2")
    gateway.worker.metrics.start()
    await passed(7)
    assert len(gateway.log.found("metrics")) == 3
    gateway.login("alice")
    gateway.worker.metrics.stop()
    assert len(gateway.log.found("metrics")) == 4
    assert gateway.log.found("metrics")[-1]["logins"] == 1
    await passed(7)
    assert len(gateway.log.found("metrics")) == 4
    await gateway.close()


@virtual_time
async def test_lag_is_what_the_loop_was_late_when_something_blocked_it() -> None:
    """In the record of that interval only."""
    gateway = FakeGateway("metrics.interval_s=3600")
    loop = cast("VirtualLoop", gateway.loop)
    gateway.worker.metrics.start()

    def block() -> None:
        loop.now += 0.3

    loop.call_later(1.05, block)
    await passed(3)
    first, second = gateway.worker.metrics.record(), gateway.worker.metrics.record()
    assert 200_000 <= first["loop_lag_us"]["max"] <= 300_000
    assert first["loop_lag_us"]["p50"] < 1000
    assert second["loop_lag_us"]["max"] == 0
    gateway.worker.metrics.stop()
    await gateway.close()


@virtual_time
async def test_memory_is_that_of_the_process_when_proc_tells() -> None:
    """At least what an interpreter takes, and whole pages."""
    gateway = FakeGateway()
    memory_bytes = gateway.worker.metrics.record()["memory_bytes"]
    assert 1 << 22 < memory_bytes < 1 << 36
    assert memory_bytes % os.sysconf("SC_PAGE_SIZE") == 0
    await gateway.close()


@virtual_time
async def test_memory_is_zero_when_proc_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system, or no file left: the record comes all the same."""

    def refuse(*_arguments: object, **_names: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("chat_gateway.metrics.os.open", refuse)
    gateway = FakeGateway()
    assert gateway.worker.metrics.record()["memory_bytes"] == 0
    gateway.worker.metrics.start()
    gateway.worker.metrics.stop()
    await gateway.close()


@virtual_time
async def test_record_tells_what_became_of_the_log_when_reported() -> None:
    """Lines that were dropped or left out are seen in the records that are not."""
    gateway = FakeGateway()
    gateway.log.logger.info("something")
    assert gateway.worker.metrics.record()["log"] == {"written": 1, "dropped": 0, "left_out": 0, "failed": 0}
    await gateway.close()


@virtual_time
async def test_record_tells_of_the_ladder_when_a_writer_is_stuck() -> None:
    """Breakers by state, all of them named."""
    gateway = FakeGateway()
    record = gateway.worker.metrics.record()
    assert record["breakers"] == {"closed": 0, "open": 0, "half_open": 0}
    assert (record["retries"], record["evictions"]) == (0, 0)
    await gateway.close()


@virtual_time
async def test_reports_go_on_when_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be made costs itself, not all that would follow."""
    gateway = FakeGateway("metrics.interval_s=1")
    gateway.loop.set_exception_handler(lambda *_: None)
    metrics = gateway.worker.metrics
    metrics.start()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "snapshot", lambda: 1 / 0)
        await passed(1.5)
    await passed(3)
    count = len(gateway.log.found("metrics"))
    metrics.stop()
    await gateway.close()
    assert count >= 2
