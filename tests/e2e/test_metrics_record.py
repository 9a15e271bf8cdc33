"""The metrics records of a gateway under every kind of load: complete, explained, and always adding up."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPLAINED_IN = Path(__file__).parents[2] / "docs" / "metrics.md"
IMPATIENT = (
    *("--set", "metrics.interval_s=0.05", "--set", "outbox.write_timeout_s=0.1"),
    *("--set", "breaker.fail_max=1", "--set", "retry.base_delay_s=0.01", "--set", "retry.max_delay_s=0.02"),
    *(
        "--set",
        "limits.refused_per_s=0",
    ),  # or who is refused so much is read on for longer than a test may take
)
_FIELD_ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
_LABEL_ITEM = re.compile(r"^- `([^`]+)`: ", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<\w+>")
_QUANTILES = ("p50", "p99", "max")


def leaves(record: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of every field, at whatever depth."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def explained_fields() -> dict[str, re.Pattern[str]]:
    """What the page calls each field of a single worker's record, and what matches its name in one."""
    alone, _several = EXPLAINED_IN.read_text().split("\n## Several workers\n")
    names = _FIELD_ROW.findall(alone)
    return {name: re.compile(r"[\w-]+".join(map(re.escape, _PLACEHOLDER.split(name)))) for name in names}


async def make_every_kind_of_load(port: int) -> None:
    """Deliveries, unknown recipients, rejected lines, refused logins, and a recipient that gets stuck."""
    alice = await LineClient.login(port, "alice")
    taken = await LineClient.connect(port)
    taken.send(b"alice\n")
    await taken.rest()
    stuck = await RawPeer.login(port, "stuck", receive_buffer_bytes=4096)
    pusher = await RawPeer.login(port, "pusher", send_buffer_bytes=65_536)
    script = Script(pusher, "stuck", line_bytes=512, total_bytes=1 << 30)
    mixed = b"alice: yes\nnobody: no\nno colon\nalice: \x00\nalice, nobody, alice: both\n" * 20
    is_over = elapsed(1.0)
    while not is_over():
        alice.send(mixed)
        await drive(script.push, pusher.read, until=elapsed(0.05))
    alice.end()
    await alice.rest()
    for client in (alice, taken):
        await client.close()
    stuck.close()
    pusher.close()


async def records_under_load() -> list[dict[str, Any]]:
    """All metrics records of a gateway from its start to its end, with all the load in between."""
    async with running_gateway("--loop", same_loop(), *IMPATIENT) as gateway:
        await make_every_kind_of_load(gateway.port)
        await gateway.wait_record("metrics", lambda record: record["connections_accepted"] == 4)
        seen = len(gateway.found("metrics"))
        assert await gateway.stop() == 0
        records = gateway.found("metrics")
        assert len(records) > seen  # one more at the end
        (draining,) = gateway.found("gateway.draining")
        assert gateway.records.index(records[-1]) > gateway.records.index(draining)
    return records


def assert_adds_up(record: dict[str, Any]) -> None:
    """Each copy is counted once: by its outcome, or as being in flight."""
    ended = record["delivered"] + record["stored"] + record["refused"]
    assert record["accepted"] == ended + record["in_flight"]
    assert record["refused"] == sum(record["refused_by_reason"].values())
    for stage in record["stages"].values():
        assert stage["free"] == max(stage["capacity"] - stage["depth"], 0)
        assert stage["peak"] >= stage["depth"] >= 0
        assert stage["in"] >= stage["out"] >= 0


def assert_ordered(record: dict[str, Any]) -> None:
    """A higher quantile is never less."""
    fields = dict(leaves(record))
    groups = {name.removesuffix(".p50") for name in fields if name.endswith(".p50")}
    assert len(groups) >= 7
    for group in groups:
        p50, p99, most = (fields[f"{group}.{quantile}"] for quantile in _QUANTILES)
        assert 0 <= p50 <= p99 <= most, group


def assert_only_rises(before: dict[str, Any], after: dict[str, Any]) -> None:
    """What is explained as a counter for ever never goes down and never disappears."""
    text = EXPLAINED_IN.read_text()
    counters = [pattern for name, pattern in explained_fields().items() if f"| `{name}` | ever: " in text]
    assert len(counters) > 10
    values = dict(leaves(after))
    for name, value in leaves(before):
        if any(pattern.fullmatch(name) for pattern in counters):
            assert values[name] >= value, name


async def test_metrics_records_add_up_and_only_count_up_when_everything_happens_at_once() -> None:
    """Every record's sum holds, its quantiles are ordered, and no counter of it is less than before."""
    records = await records_under_load()
    assert len(records) > 10
    for record in records:
        assert_adds_up(record)
        assert_ordered(record)
    for before, after in pairwise(records):
        assert_only_rises(before, after)
    last = records[-1]
    assert (last["in_flight"], last["connections"], last["sessions"]) == (0, 0, 0)
    assert last["refused_by_reason"]["not_logged_in"] > 0
    assert last["refused_by_reason"]["breaker_open"] > 0
    assert last["rejected_lines"]["bad-line"] == last["rejected_lines"]["bad-text"] > 0
    assert last["connections_closed"]["login_taken"] == 1


async def test_every_field_of_a_metrics_record_is_explained_and_every_explained_one_is_there() -> None:
    """The page and the records name the same fields, and the page names every label they carry."""
    explained = explained_fields()
    seen: set[str] = set()
    labels: set[str] = set()
    unexplained: set[str] = set()
    for record in await records_under_load():
        for name, _ in leaves(record):
            found = [field for field, pattern in explained.items() if pattern.fullmatch(name)]
            seen.update(found)
            if len(found) != 1:
                unexplained.add(name)
            elif found[0].endswith(">"):
                labels.add(name.rsplit(".", 1)[1])
    assert unexplained == set()
    assert set(explained) - seen == set()
    assert labels - set(_LABEL_ITEM.findall(EXPLAINED_IN.read_text())) == set()
