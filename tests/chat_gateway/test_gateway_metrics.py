"""One record for several workers: it adds up whatever becomes of them, each number merged in its way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.bus_statistics import BusStatistics
from chat_gateway.gateway_metrics import EACH, MERGING, GatewayMetrics, Row
from chat_gateway.metrics import own_snapshot
from chat_gateway.metrics_record import render
from pipeline.histogram import Histogram
from tests.chat_gateway.fakes import FakeGateway, turns, virtual_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chat_gateway.gateway_metrics import Table
    from chat_gateway.logs import Log

EXPLAINED_IN = Path(__file__).parents[2] / "docs" / "metrics.md"


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def durations(*microseconds: int) -> list[int]:
    """What a histogram of these sends."""
    histogram = Histogram()
    for each in microseconds:
        histogram.record((each + 0.5) / 1e6)
    return histogram.to_data()


def stage(**chosen: Any) -> dict[str, Any]:
    """A stage's part of a snapshot."""
    usual: dict[str, Any] = {"capacity": 10, "depth": 0, "peak": 0, "busy_s": 0.0}
    return {"stages": {"parse": {**usual, **chosen}}}


def account(accepted: int = 0, delivered: int = 0, in_flight: int = 0, **refused: int) -> dict[str, Any]:
    """The copies' part of a snapshot."""
    return {
        "accepted": accepted,
        "delivered": delivered,
        "stored": 0,
        "in_flight": in_flight,
        "refused_by_reason": refused,
    }


def stands(record: Mapping[str, Any]) -> list[int]:
    """The account of a record."""
    return [record[name] for name in ("accepted", "delivered", "stored", "refused", "in_flight")]


def rows(table: Table, above: str = "") -> Iterator[tuple[str, Row]]:
    """Every row with its dotted name."""
    for name, row in table.items():
        if isinstance(row, Row):
            yield above + name, row
        else:
            yield from rows(row, f"{above}{name}.")


def leaves(snapshot: Mapping[str, Any], table: Table, above: str = "") -> Iterator[str]:
    """The dotted name of every number, labels replaced as in the table."""
    for name, value in snapshot.items():
        named = name if name in table else EACH
        row = table.get(named, {})
        if isinstance(value, dict):
            yield from leaves(value, row if not isinstance(row, Row) else {}, f"{above}{named}.")
        else:
            yield above + named


class FakeBus:
    """Stands for a worker's bus."""

    def __init__(self) -> None:
        self.counts = BusStatistics()

    def statistics(self) -> BusStatistics:
        return self.counts


async def real_snapshot() -> dict[str, Any]:
    """That of a worker with a bus and with every label in use."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    gateway.connect().reset()
    alice.send(b"alice, nobody: x\nno colon\n")
    await turns()
    vars(gateway.worker)["bus"] = FakeBus()
    snapshot = gateway.worker.metrics.snapshot()
    await gateway.close()
    return snapshot


@virtual_time
async def test_table_has_a_row_for_every_number_when_a_worker_sends_all() -> None:
    """What a worker counts is merged somehow, and nothing is expected that it does not count."""
    snapshot = await real_snapshot()
    assert set(leaves(snapshot, MERGING)) == {name for name, _ in rows(MERGING)}


@virtual_time
async def test_record_is_that_of_the_worker_when_there_is_one() -> None:
    """A snapshot that went to another process and was added to nothing says the same, in the same order."""
    snapshot = await real_snapshot()
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot))
    assert sent == snapshot
    clock = Clock()
    metrics = GatewayMetrics(clock=clock)
    metrics.update(1, sent)
    clock.now += 2.5
    record = metrics.record()
    expected = {**render(snapshot), "interval_s": 2.5, "workers": {"live": 1, "restarts": 0}}
    assert record == expected
    assert list(record) == list(expected)


# Named otherwise on the page, which explains records, than in the table, which merges snapshots.
ON_PAGE = {
    "refused_by_reason.<name>": "refused_by_reason.<reason>",
    "rejected_lines.<name>": "rejected_lines.<word>",
    "connections_closed.<name>": "connections_closed.<reason>",
    "stages.<name>.busy_s": "stages.<name>.busy_share",
}
# Not merged but worked out.
WORKED_OUT = {"refused", "stages.<name>.free", "workers.live", "workers.restarts"}


def test_page_says_of_each_number_what_the_table_says() -> None:
    """Whoever reads the page knows what becomes of a number when its worker has gone."""
    page = re.findall(r"^\| `([^`]+)` \| (ever|now|interval): ", EXPLAINED_IN.read_text(), re.MULTILINE)
    explained = {name.removesuffix(".max"): span for name, span in page if name[-4:] not in (".p50", ".p99")}
    merged = {ON_PAGE.get(name, name): row.span.value for name, row in rows(MERGING)}
    del merged["interval_s"]  # explained as such
    assert {name: span for name, span in explained.items() if name not in WORKED_OUT} == merged


def test_record_is_complete_when_no_worker_has_reported() -> None:
    """All fields but the stages are there, and all is zero."""
    metrics = GatewayMetrics(clock=Clock())
    record = metrics.record()
    assert stands(record) == [0, 0, 0, 0, 0]
    assert record["stages"] == {}
    assert record["bus"]["round_trip_us"] == record["loop_lag_us"] == {"p50": 0, "p99": 0, "max": 0}
    assert record["workers"] == {"live": 0, "restarts": 0}


def test_record_sums_counters_and_gauges_when_there_are_several() -> None:
    """Labels of one worker only are there too, and what follows from sums is worked out from them."""
    metrics = GatewayMetrics(clock=Clock())
    metrics.update(1, {**account(10, 7, 1, full=2), "sessions": 3, **stage(depth=4, peak=9)})
    metrics.update(2, {**account(5, 4, 0, gone=1), "sessions": 4, **stage(depth=7, peak=8)})
    record = metrics.record()
    assert stands(record) == [15, 11, 0, 3, 1]
    assert record["refused_by_reason"] == {"full": 2, "gone": 1}
    assert record["sessions"] == 7
    parse = record["stages"]["parse"]
    assert (parse["depth"], parse["peak"], parse["capacity"], parse["free"]) == (11, 9, 20, 9)


def test_record_takes_percentiles_of_all_measurements_when_workers_differ() -> None:
    """One slow measurement of two hundred is the longest, not half of the p99."""
    metrics = GatewayMetrics(clock=Clock())
    metrics.update(1, {"loop_lag_us": durations(*[3] * 150)})
    metrics.update(2, {"loop_lag_us": durations(*[5] * 49, 900)})
    assert metrics.record()["loop_lag_us"] == {"p50": 3, "p99": 5, "max": 900}


def test_record_covers_all_reports_since_the_one_before_when_they_come_at_other_times() -> None:
    """Measurements and shares of the time are those of whoever reported; then they begin anew."""
    clock = Clock()
    metrics = GatewayMetrics(clock=clock)
    for wid, busy_s in ((1, 0.5), (1, 1.0), (2, 0.0)):
        metrics.update(wid, {"interval_s": 1.0, **stage(busy_s=busy_s), "loop_lag_us": durations(wid)})
    metrics.update(2, {"interval_s": 1.0, **stage(), "outbox": {"peak_bytes": 70, "pending_bytes": 7}})
    metrics.update(1, {"interval_s": 1.0, **stage(), "outbox": {"peak_bytes": 40, "pending_bytes": 4}})
    clock.now += 3.0
    record = metrics.record()
    assert record["interval_s"] == 3.0
    assert record["stages"]["parse"]["busy_share"] == 0.3
    assert record["loop_lag_us"]["max"] == 2
    assert (record["outbox"]["peak_bytes"], record["outbox"]["pending_bytes"]) == (70, 11)
    metrics.update(2, {"outbox": {"peak_bytes": 1, "pending_bytes": 1}})
    record = metrics.record()
    assert record["stages"]["parse"]["busy_share"] == record["loop_lag_us"]["max"] == 0
    assert (record["outbox"]["peak_bytes"], record["outbox"]["pending_bytes"]) == (1, 5)


def test_record_keeps_what_a_worker_counted_when_it_dies() -> None:
    """Counters stay, gauges go, and what was in flight has the outcome that nobody knows."""
    metrics = GatewayMetrics(clock=Clock())
    for wid in (1, 2):
        metrics.update(wid, {**account(10, 6, 3, full=1), "sessions": 5, **stage(depth=2, peak=wid)})
    metrics.lost(2)
    record = metrics.record()
    assert stands(record) == [20, 12, 0, 5, 3]
    assert record["refused_by_reason"] == {"full": 2, "worker_lost": 3}
    assert record["sessions"] == 5
    parse = record["stages"]["parse"]
    assert (parse["depth"], parse["peak"], parse["capacity"]) == (2, 2, 10)
    assert record["workers"] == {"live": 1, "restarts": 1}
    metrics.update(3, account(1, 1))
    assert stands(metrics.record()) == [21, 13, 0, 5, 3]


def test_record_follows_heartbeats_when_they_are_newer_than_the_report() -> None:
    """Of the copies only: everything else stays as it was reported; a later report is newer again."""
    metrics = GatewayMetrics(clock=Clock())
    metrics.update(1, {**account(10, 6, 3, full=1), "sessions": 5})
    metrics.beat(1, 20, 14, 0, {"full": 1, "gone": 1}, 4)
    record = metrics.record()
    assert stands(record) == [20, 14, 0, 2, 4]
    assert record["sessions"] == 5
    metrics.update(1, account(30, 28, 0, full=1, gone=1))
    assert stands(metrics.record()) == [30, 28, 0, 2, 0]
    metrics.beat(1, 40, 30, 0, {"full": 1, "gone": 1}, 8)
    metrics.lost(1)
    assert stands(metrics.record()) == [40, 30, 0, 10, 0]


def test_restarts_count_deaths_when_other_workers_end_in_order() -> None:
    """A worker that was told to end is no restart; what it gave up is still accounted for."""
    metrics = GatewayMetrics(clock=Clock())
    for wid in (1, 2):
        metrics.update(wid, account(2, 1, 1))
    metrics.left(1)
    metrics.lost(1)  # it is seen to have ended, too
    record = metrics.record()
    assert stands(record) == [4, 2, 0, 1, 1]
    assert record["workers"] == {"live": 1, "restarts": 0}
    metrics.lost(2)
    metrics.lost(3)  # before it could say anything
    assert metrics.record()["workers"] == {"live": 0, "restarts": 2}


def test_late_reports_are_ignored_when_their_worker_has_gone() -> None:
    """What is counted for good is not counted again."""
    metrics = GatewayMetrics(clock=Clock())
    metrics.update(1, account(2, 2))
    metrics.lost(1)
    metrics.update(1, {**account(3, 3), "loop_lag_us": durations(5)})
    metrics.beat(1, 4, 4, 0, {}, 0)
    record = metrics.record()
    assert stands(record) == [2, 2, 0, 0, 0]
    assert record["loop_lag_us"]["max"] == 0
    assert record["workers"]["live"] == 0


@virtual_time
async def test_record_includes_what_the_supervisor_has_of_its_own() -> None:
    """Its log lines and its memory count, and it is no worker."""
    gateway = FakeGateway()
    gateway.log.logger.info("something")
    metrics = GatewayMetrics(clock=Clock(), own=lambda: own_snapshot(cast("Log", gateway.log)))
    metrics.update(1, {"log": {"written": 5, "dropped": 1, "left_out": 0, "failed": 0}})
    record = metrics.record()
    assert record["log"] == {"written": 6, "dropped": 1, "left_out": 0, "failed": 0}
    assert record["memory_bytes"] > 1 << 22
    assert record["workers"]["live"] == 1
    await gateway.close()


def test_record_leaves_out_numbers_when_the_table_does_not_know_them() -> None:
    """A worker that counts more than this process knows costs nothing but that."""
    metrics = GatewayMetrics(clock=Clock())
    metrics.update(1, {**account(1, 1), "new": 5, "newer": {"a": [1]}, "outbox": {"new": 1}})
    record = metrics.record()
    assert stands(record) == [1, 1, 0, 0, 0]
    assert {"new", "newer"}.isdisjoint(record)
    assert "new" not in record["outbox"]


class Copies:
    """Those of one worker in the model."""

    def __init__(self) -> None:
        self.accepted = self.delivered = self.refused = 0

    @property
    def in_flight(self) -> int:
        return self.accepted - self.delivered - self.refused

    def snapshot(self) -> dict[str, Any]:
        return account(self.accepted, self.delivered, self.in_flight, gone=self.refused)


STEPS = ["accept", "deliver", "refuse", "report", "beat", "die", "leave"]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), max_size=60))
def test_sum_holds_and_counters_rise_whatever_happens_in_whatever_order(steps: list[tuple[int, str]]) -> None:
    """accepted = delivered + stored + refused + in flight, with any worker dying at any time."""
    metrics = GatewayMetrics(clock=Clock())
    wids = [1, 2, 3]
    workers = [Copies(), Copies(), Copies()]
    before = [0, 0, 0, 0]
    for place, step in steps:
        wid, worker = wids[place], workers[place]
        match step:
            case "accept":
                worker.accepted += 1
            case "deliver":
                worker.delivered += worker.in_flight > 0
            case "refuse":
                worker.refused += worker.in_flight > 0
            case "report":
                metrics.update(wid, worker.snapshot())
            case "beat":
                said = worker.snapshot()
                refused = said["refused_by_reason"]
                metrics.beat(wid, said["accepted"], said["delivered"], 0, refused, said["in_flight"])
            case _:
                (metrics.lost if step == "die" else metrics.left)(wid)
                wids[place], workers[place] = max(wids) + 1, Copies()
        record = metrics.record()
        *counters, in_flight = stands(record)
        assert counters[0] == sum(counters[1:]) + in_flight
        assert record["refused"] == sum(record["refused_by_reason"].values())
        assert all(one <= other for one, other in zip(before, counters, strict=True))
        before = counters
