"""A log that nobody reads must not slow the gateway down, nor keep it from ending."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.gateway_process import GatewayProcess

# The log goes through a process of its own, which can be stopped; a pipe holds 64 KiB beyond that.
THROUGH_CAT = ("bash", "-c", 'exec "$@" > >(exec cat)', "bash")
QUEUE_RECORDS = 200
# Nothing but connections and sessions is logged while the test counts.
QUIET = ("--set", f"log.queue_records={QUEUE_RECORDS}", "--set", "metrics.interval_s=3600")
# A login and its end are three records of some 150 bytes, so this is twice what pipe and queue hold.
MIN_VISITS = 500
PHASE_S = 1.0
MIN_RATE_SHARE = 0.4  # generous: the machine is shared, and a writer that blocks makes it 0
ENDS_IN_S = 10.0  # a drain of nothing, and the two seconds that a stuck log may take


class LogReader:
    """The process that reads the log of a gateway; stopped and continued by the test."""

    def __init__(self, gateway: GatewayProcess) -> None:
        pid = gateway.process.pid
        (self._pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Read nothing meanwhile."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)


class Load:
    """Lines from one client to another and visitors that come and go, in rounds; counts both."""

    def __init__(self, port: int, sender: RawPeer, recipient: RawPeer) -> None:
        self.visits = 0
        self._port = port
        self._script = Script(sender, recipient.name, line_bytes=256, total_bytes=1 << 30)
        self._sender = sender
        self._recipient = recipient

    def close(self) -> None:
        """Both leave."""
        self._sender.close()
        self._recipient.close()

    async def rates_per_s(self, *, min_visits: int = 0) -> tuple[float, float]:
        """Bytes that arrived and visits that ended each second, over one phase and so many visits."""
        began, bytes_before, visits_before = time.monotonic(), len(self._recipient.received), self.visits
        while time.monotonic() - began < PHASE_S or self.visits - visits_before < min_visits:
            visitor = await LineClient.login(self._port, f"visitor{self.visits}")
            await visitor.close()
            self.visits += 1
            self._script.push()
            self._recipient.read()
        took_s = time.monotonic() - began
        return (
            (len(self._recipient.received) - bytes_before) / took_s,
            (self.visits - visits_before) / took_s,
        )


async def open_load(gateway: GatewayProcess) -> Load:
    """A sender and a recipient that stay until the gateway ends."""
    return Load(
        gateway.port,
        await RawPeer.login(gateway.port, "sender"),
        await RawPeer.login(gateway.port, "recipient"),
    )


async def test_messages_and_logins_keep_their_pace_when_nobody_reads_the_log() -> None:
    """What does not fit into the log's queue is dropped and counted, and nothing waits for it."""
    async with running_gateway("--loop", same_loop(), *QUIET, prefix=THROUGH_CAT) as gateway:
        load = await open_load(gateway)
        before = await load.rates_per_s()
        with LogReader(gateway).stopped():
            meanwhile = await load.rates_per_s(min_visits=MIN_VISITS)
        after = await load.rates_per_s()
        load.close()
        status = await gateway.stop()

    assert status == 0
    for index in range(2):
        assert meanwhile[index] > MIN_RATE_SHARE * min(before[index], after[index])
    dropped = sum(record["count"] for record in gateway.found("log.dropped"))
    assert dropped > 0
    assert gateway.found("metrics")[-1]["log"]["dropped"] == dropped
    accepted = len(gateway.found("connection.accepted"))
    assert accepted < load.visits
    kinds = ("connection.accepted", "session.login", "session.closed")
    assert sum(len(gateway.found(kind)) for kind in kinds) + dropped == 3 * (load.visits + 2)


async def test_gateway_ends_in_time_when_nobody_reads_the_log() -> None:
    """SIGTERM ends the gateway with status 0 although the last records cannot be written."""
    async with running_gateway("--loop", same_loop(), *QUIET, prefix=THROUGH_CAT) as gateway:
        load = await open_load(gateway)
        with LogReader(gateway).stopped():
            await load.rates_per_s(min_visits=MIN_VISITS)
            load.close()
            gateway.signal(signal.SIGTERM)
            # Not `wait`, which waits for the end of the log too.
            await drive(until=lambda: gateway.process.returncode is not None, bound_s=ENDS_IN_S)
        assert await gateway.wait() == 0
    assert not gateway.found("gateway.stopped")  # the pipe was full to the end
