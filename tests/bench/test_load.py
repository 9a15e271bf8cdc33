"""Specification of bench.load: short loads over real sockets, against servers that are right and wrong."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench.histogram import Histogram
from bench.load import is_generator_limited, run_load
from bench.login import LoginError
from bench.options import LoadOptions
from bench.report import faults
from bench.servers import BASELINE, COMMANDS, GATEWAY, Server, ServerError, parse_ready
from tests.bench import broken_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.broken_server import Fault

MIXED = LoadOptions(
    pairs=10, window=30, size=(16, 2048), several=5, ragged=1, seconds=0.5, drain_s=5.0, idle=1
)
SHORT = LoadOptions(pairs=3, fanout=2, window=5, size=(16, 300), seconds=0.2, idle=4, drain_s=0.2)


@pytest.fixture(scope="module")
def baseline() -> Iterator[Server]:
    """The baseline server, started once; it must end by itself with status 0."""
    with Server(COMMANDS[BASELINE]) as server:
        yield server
    assert server.exit_status == 0


def run(port: int, load: LoadOptions) -> dict[str, float | bool]:
    """Figures of one load in this process."""
    return run_load(replace(load, port=port), lambda: None)


@pytest.mark.parametrize("rate_per_s", [0, 500], ids=["closed", "open"])
def test_load_gives_valid_figures_against_the_baseline(baseline: Server, rate_per_s: int) -> None:
    """As a process of its own it prints when it has settled, then figures without a fault, and ends."""
    host, port = baseline.address
    argv = replace(SHORT, host=host, port=port, rate_per_s=rate_per_s).to_argv()
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *argv], capture_output=True, text=True, timeout=30, check=True
    )
    settled, figures_line = done.stdout.splitlines()
    figures = json.loads(figures_line)
    assert settled == "settled"
    assert faults(figures) == []
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p999_us"] <= figures["max_us"]
    assert figures["delivered"] % SHORT.fanout == 0 < figures["delivered"]
    assert 0 < figures["cpu_share"] < 2
    assert min(figures["connect_per_s"], figures["late_max_us"]) > 0


def test_load_sends_what_is_due_when_open_loop(baseline: Server) -> None:
    """Lines sent are rate times seconds, each to all receivers, whatever the server does."""
    figures = run(baseline.address[1], replace(SHORT, rate_per_s=500))
    assert abs(figures["delivered"] - 500 * SHORT.seconds * SHORT.fanout) <= 0.1 * 500 * SHORT.fanout


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (lambda copy, number: b"" if number == 5 else copy, "undelivered"),
        (lambda copy, number: b"" if number == 5 else copy, "reordered"),
        (lambda copy, number: copy * 2 if number == 5 else copy, "reordered"),
        (lambda copy, number: copy.replace(b"x", b"y") if number == 5 else copy, "corrupt"),
        (lambda copy, number: b"! busy\n" + copy if number == 5 else copy, "notices"),
        (lambda copy, number: b"close" if number == 5 else copy, "lost_connections"),
    ],
    ids=["lost", "gap", "doubled", "changed", "notice", "closed"],
)
def test_load_reports_a_fault_when_the_server_makes_one(fault: Fault, key: str) -> None:
    """One wrong copy among all is found by a real load."""
    with broken_server.running(fault) as port:
        figures = run(port, replace(SHORT, fanout=1))
    assert figures[key] > 0


@pytest.mark.parametrize("rate_per_s", [0, 2000], ids=["closed", "open"])
def test_mixed_load_is_valid_against_the_gateway(rate_per_s: int) -> None:
    """Every copy of lines of all sizes, to one and to several, cut anywhere, arrives once and in order."""
    with Server(COMMANDS[GATEWAY]) as server:
        figures = run(server.address[1], replace(MIXED, rate_per_s=rate_per_s))
    assert faults(figures | {"server_exit_status": server.exit_status}) == []
    assert figures["unsent"] == 0
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
    copies = 24 / 20 * (rate_per_s * MIXED.seconds or MIXED.window * MIXED.pairs)
    assert figures["delivered"] > 0.9 * copies
    if rate_per_s:  # each sender finishes the line that it is ahead
        assert figures["delivered"] <= copies + 5 * MIXED.pairs


def test_mixed_load_has_reads_of_the_server_that_end_in_the_middle_of_a_line() -> None:
    """All do, but for the logins and for the end, where each sender finishes its line."""
    ends: list[bool] = []
    with broken_server.running(lambda copy, number: copy, ends) as port:
        figures = run(port, replace(MIXED, rate_per_s=500))
    assert faults(figures) == []
    assert ends.count(True) <= MIXED.connections + MIXED.pairs
    assert ends.count(False) > 50


def test_load_begins_each_sender_with_another_size_when_texts_differ() -> None:
    """So a short load has texts of all sizes, and as many bytes as a long one for each line."""
    firsts: set[int] = set()

    def fault(copy: bytes, number: int) -> bytes:
        if number == 1:  # after the login
            firsts.add(len(copy))
        return copy

    with broken_server.running(fault) as port:
        run(port, replace(MIXED, rate_per_s=500, seconds=0.2))
    assert len(firsts) > MIXED.pairs / 2


def test_mixed_load_times_each_copy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets few of the lines is not charged with those of others; warm-up and end are not timed."""
    made: list[Histogram] = []

    def histogram() -> Histogram:
        made.append(Histogram())
        return made[-1]

    monkeypatch.setattr("bench.load.Histogram", histogram)
    with broken_server.running(lambda copy, number: copy) as port:
        figures = run(port, replace(MIXED, rate_per_s=500))
    latencies = made[0]
    assert 0.5 * figures["delivered"] < latencies.count < figures["delivered"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda copy: b"", "undelivered"),
        (lambda copy: b"", "reordered"),
        (lambda copy: copy * 2, "reordered"),
        (lambda copy: copy.replace(b"x", b"y"), "corrupt"),
    ],
    ids=["lost", "gap", "doubled", "changed"],
)
def test_mixed_load_reports_a_fault_in_one_copy_of_a_line_to_several(
    change: Callable[[bytes], bytes], key: str
) -> None:
    """The copy for the last recipient of the second such line is wrong, all others are right."""
    copies = itertools.count(1)

    def fault(copy: bytes, number: int) -> bytes:  # after the login, lines 10 and 30 go to several
        return change(copy) if number == 31 and next(copies) == MIXED.several else copy

    with broken_server.running(fault) as port:
        figures = run(port, replace(MIXED, pairs=1, window=8, drain_s=0.2))
    assert figures[key] > 0


def test_load_charges_a_stall_when_the_server_stops() -> None:
    """Messages that never arrive are charged with the wait since they were due, not left out."""
    with broken_server.running(lambda copy, number: copy if number < 2 else b"") as port:
        figures = run(port, LoadOptions(pairs=1, rate_per_s=100, seconds=0.2, drain_s=0.1))
    assert figures["delivered"] <= 2
    assert figures["p50_us"] > 1e5


def test_load_refuses_to_start_when_a_login_is_not_proved() -> None:
    """A server that closes connections or answers something else is an error, not a figure of 0."""
    refused = pytest.raises(LoginError, match="did not accept a login: b'! busy")
    with broken_server.running(lambda _copy, _number: b"! busy\n") as port, refused:
        run(port, SHORT)


def test_load_ends_with_status_1_and_one_line_when_nobody_listens(baseline: Server) -> None:
    """Without a server there is one clear line and no traceback."""
    argv = replace(SHORT, host="127.0.0.1", port=1).to_argv()
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *argv], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("cpu_share", "late_p99_us", "p99_us", "limited"),
    [
        (0.5, 900, 100, False),  # late by less than a scheduler's slice
        (0.95, 10, 10_000, True),  # no processor time to spare
        (0.5, 1500, 2000, True),  # most of the latency is its own
        (0.5, 1500, 50_000, False),  # the server's delay is far above its own
    ],
)
def test_generator_is_the_limit_when_busy_or_late(
    cpu_share: float, late_p99_us: float, p99_us: float, limited: bool
) -> None:
    """Processor time above 0.9 of a core, or a lateness that makes up the latency, voids a run."""
    assert is_generator_limited(cpu_share, late_p99_us, p99_us) is limited


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ('{"event": "gateway.ready", "listen": ["line://127.0.0.1:4012"]}', ("127.0.0.1", 4012)),
        ('{"event": "metrics", "listen": ["line://127.0.0.1:4012"]}', None),
        ('{"event": "gateway.ready", "listen": []}', None),
        ("warning: something", None),
        ("[]", None),
    ],
)
def test_parse_ready_finds_the_address_in_the_ready_record_only(
    line: str, address: tuple[str, int] | None
) -> None:
    """Any other output of a server is passed over."""
    assert parse_ready(line) == address


def test_server_costs_are_read_from_its_process(baseline: Server) -> None:
    """A running server has used processor time and holds memory."""
    assert baseline.cpu_s() > 0
    assert baseline.settled_pss_kib() > 1000


def test_server_error_carries_the_output_when_it_does_not_start() -> None:
    """What a server said before it ended is in the error."""
    command = [sys.executable, "-c", "print('cannot bind')"]
    with pytest.raises(ServerError, match="cannot bind"), Server(command):
        pass
