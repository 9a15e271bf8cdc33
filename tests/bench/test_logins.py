"""Specification of bench.logins: short loads over real sockets, against servers that are right and wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.login import LoginError
from bench.logins import LoginOptions, run_logins
from bench.servers import BASELINE, COMMANDS, Server
from tests.bench import broken_server


def test_logins_give_figures_when_the_server_is_right() -> None:
    """All that are due are made at the rate asked for, and those after the warm-up are timed."""
    with Server(COMMANDS[BASELINE]) as server:
        host, port = server.address
        argv = LoginOptions(rate_per_s=200.0, seconds=0.5, host=host, port=port).to_argv()
        done = subprocess.run(
            [sys.executable, "-m", "bench.logins", *argv],
            input="\n", capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    settled, figures_line = done.stdout.splitlines()
    figures = json.loads(figures_line)
    assert settled == "settled"
    assert figures["delivered"] == 100
    assert figures["delivered_per_s"] <= 205
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
    assert 0 < figures["cpu_share"] < 2


def test_logins_are_charged_from_when_they_were_due_when_the_server_is_late() -> None:
    """A rate that nobody can keep shows in the latency, not in a lower rate."""
    with Server(COMMANDS[BASELINE]) as server:
        figures = run_logins(LoginOptions(rate_per_s=1e6, seconds=0.0003, port=server.address[1]))
    assert figures["delivered"] == 300
    took_us = 1e6 * figures["delivered"] / figures["delivered_per_s"]
    assert figures["max_us"] >= 0.5 * took_us  # all were due at its beginning


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"! busy\n", "did not accept a login: b'! busy"), (b"close", "did not accept|lost")],
)
def test_logins_end_with_an_error_when_one_is_refused(answer: bytes, reason: str) -> None:
    """A login that is not let in is never a figure."""
    refused = pytest.raises(LoginError, match=reason)
    with broken_server.running(lambda _copy, _number: answer) as port, refused:
        run_logins(LoginOptions(rate_per_s=100.0, seconds=0.1, port=port))


def test_logins_end_with_status_1_and_one_line_when_nobody_listens() -> None:
    """Without a server there is one clear line and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.logins", *LoginOptions(port=1).to_argv()],
        input="\n", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
