"""The properties that the fuzzer holds its targets against: they hold, planted defects break them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import fuzz, fuzz_frames, fuzz_lines
from bench.fuzz import TARGETS
from chat_gateway.bus_frames import Frames
from stages.line_codec import LineCodec, LineFramer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEEDS = [
    pytest.param(target.check, seed, id=f"{name}-{number}")
    for name, target in TARGETS.items()
    for number, seed in enumerate(target.seeds)
]


@pytest.mark.parametrize(("check", "seed"), SEEDS)
def test_check_passes_when_the_input_is_a_seed(check: Callable[[bytes], None], seed: bytes) -> None:
    """Fuzzing begins with inputs that are in order."""
    check(seed)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
def test_check_passes_when_the_input_is_anything(name: str, data: bytes) -> None:
    """No input is needed to have a certain form."""
    TARGETS[name].check(data)


def test_check_fails_when_the_end_of_a_stream_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last line without its end counts."""
    monkeypatch.setattr(LineFramer, "finish", lambda _: b"")
    with pytest.raises(AssertionError, match="a line got lost"):
        fuzz_lines.check(fuzz_lines.SEEDS[1])


def test_check_fails_when_recipients_would_get_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix stands before every line of a run."""
    monkeypatch.setattr(LineCodec, "encode", staticmethod(lambda prefix, texts: prefix + texts))
    with pytest.raises(AssertionError, match="would get other lines"):
        fuzz_lines.check(fuzz_lines.SEEDS[1] + b"\nbob: 1\nbob: 2\n")


@pytest.mark.parametrize("seed", fuzz_frames.SEEDS[:4])
def test_check_fails_when_only_one_frame_of_a_read_is_taken(
    monkeypatch: pytest.MonkeyPatch, seed: bytes
) -> None:
    """Where reads end makes no difference; in all of these there are several frames that are in order."""
    feed = Frames.feed
    monkeypatch.setattr(Frames, "feed", lambda frames, data: list(feed(frames, data))[:1])
    with pytest.raises(AssertionError, match="the split changed what was said"):
        fuzz_frames.check(seed)


def test_check_fails_when_garbage_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no message is refused."""
    feed = Frames.feed

    def lenient(frames: Frames, data: bytes) -> Any:
        return feed(frames, data.replace(b"\x63", b"\x02"))

    monkeypatch.setattr(Frames, "feed", lenient)
    with pytest.raises(AssertionError, match="garbage was taken"):
        fuzz_frames.check(b"\x01\x00\x00\x00" + b"\x00\x00\x00\x02\x91\x63")


def test_check_fails_when_another_error_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads from a link expects the declared one alone."""

    def raising(_frames: Frames, _data: bytes) -> Any:
        raise KeyError

    monkeypatch.setattr(Frames, "feed", raising)
    with pytest.raises(KeyError):
        fuzz_frames.check(fuzz_frames.SEEDS[0])


class Fuzzers:
    """Stands for the processes that fuzz; the first of them may find something."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.commands: list[list[str]] = []

    def run(self, command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        """One of them has ended."""
        assert not check
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.statuses.pop(0))


@pytest.mark.parametrize(("statuses", "runs"), [((0, 0), 2), ((77,), 1), ((0, 77), 2)])
def test_main_gives_each_target_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], runs: int
) -> None:
    """In a process of its own; what one has found ends the run with its status."""
    fuzzers = Fuzzers(*statuses)
    monkeypatch.setattr(subprocess, "run", fuzzers.run)
    monkeypatch.setattr(sys, "argv", ["bench.fuzz", "--seconds", "9", "--seed", "3"])
    assert fuzz.main() == statuses[-1]
    expected = [["--target", name, "--seconds", "4", "--seed", "3"] for name in ("lines", "frames")]
    assert [command[3:] for command in fuzzers.commands] == expected[:runs]
    assert all(command[:3] == [sys.executable, "-m", "bench.fuzz"] for command in fuzzers.commands)


def test_main_runs_an_input_again_when_it_is_given_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Against every target: none needs an input of a certain form."""
    crash = tmp_path / "crash-1"
    crash.write_bytes(fuzz_lines.SEEDS[1])
    monkeypatch.setattr(sys, "argv", ["bench.fuzz", str(crash)])
    assert fuzz.main() == 0
    monkeypatch.setattr(LineFramer, "finish", lambda _: b"")
    with pytest.raises(AssertionError, match="a line got lost"):
        fuzz.main()
