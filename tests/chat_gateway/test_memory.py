"""Giving memory back after a peak: when, how often, and where it cannot be done."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from chat_gateway.memory import (
    CALM_S,
    LARGE_FALL_BYTES,
    LARGE_PAUSE_S,
    MIN_PEAK_BYTES,
    MIN_REST_BYTES,
    Memory,
    system_trim,
)
from stages.message import Ledger
from tests.chat_gateway.fakes import FakeGateway, FakeLog, passed, virtual_time

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

MIB = 1 << 20


class _World:
    """A memory that counts the calls of its trim, each of which takes 10 ms and gives 1 MiB back."""

    def __init__(self, *, can_trim: bool = True) -> None:
        self.now = 100.0
        self.resident_bytes = 500 * MIB
        self.calls = 0
        self.ledger = Ledger()
        self.log = FakeLog()
        self.memory = Memory(
            self.ledger,
            cast("FilteringBoundLogger", self.log.logger),
            trim=self._trim if can_trim else None,
            resident_bytes=lambda: self.resident_bytes,
            clock=lambda: self.now,
        )

    def see(self, counted_bytes: int, after_s: float = 0.0) -> int:
        """How often memory was given back until then."""
        self.now += after_s
        self.ledger.buffered_bytes = counted_bytes
        self.memory.look()
        return self.calls

    def _trim(self) -> None:
        self.calls += 1
        self.now += 0.01
        self.resident_bytes -= MIB


def test_memory_is_given_back_when_a_peak_is_over_and_once_more_when_its_rest_is() -> None:
    """Three quarters of the peak have been gone for some time; then what was still in use at that moment."""
    world = _World()
    world.see(40 * MIB)
    assert world.see(10 * MIB + 1, CALM_S) == 0
    assert world.see(10 * MIB, CALM_S - 0.1) == 0
    assert world.see(5 * MIB, 0.1) == 1
    assert world.see(5 * MIB, CALM_S) == 1
    assert world.see(1 * MIB, CALM_S - 0.1) == 1
    assert world.see(1 * MIB, 0.1) == 2
    for nbytes in (MIB, 0, MIN_PEAK_BYTES - 1, 0, 0):
        assert world.see(nbytes, CALM_S) == 2
    assert world.log.records == [("debug", "memory.given_back", {"freed_bytes": MIB, "took_s": 0.01})] * 2


def test_memory_is_kept_when_the_rest_of_a_peak_was_little() -> None:
    """It is not worth a second call."""
    world = _World()
    world.see(40 * MIB)
    world.see(MIN_REST_BYTES - 1)
    assert world.see(MIN_REST_BYTES - 1, CALM_S) == 1
    assert world.see(MIN_REST_BYTES - 1, CALM_S) == 1
    assert world.see(0, CALM_S) == 1


def test_memory_is_kept_when_the_peak_was_a_moment_ago() -> None:
    """A load that comes in bursts does not fetch its memory anew each time."""
    world = _World()
    for _ in range(100):
        world.see(40 * MIB, 0.1)
        assert world.see(0, CALM_S - 0.2) == 0
    assert world.see(0, 0.3) == 1


def test_memory_is_kept_when_the_peak_was_small() -> None:
    """What is left of a small peak is not worth a call."""
    world = _World()
    world.see(MIN_PEAK_BYTES - 1)
    assert world.see(0, 1000) == 0
    world.see(MIN_PEAK_BYTES)
    assert world.see(0, 1000) == 1


def test_memory_is_given_back_at_once_when_the_fall_is_large() -> None:
    """No call has more to do than the falls of a second, however high the peak was."""
    world = _World()
    for counted_bytes in range(0, 10 * LARGE_FALL_BYTES, MIB):
        world.see(counted_bytes, 0.1)
    peak_bytes = world.ledger.buffered_bytes
    assert world.see(peak_bytes - LARGE_FALL_BYTES + 1, 0.1) == 0
    assert world.see(peak_bytes - LARGE_FALL_BYTES, 0.1) == 1
    assert world.see(peak_bytes - 2 * LARGE_FALL_BYTES, LARGE_PAUSE_S / 2) == 1
    assert world.see(peak_bytes - 2 * LARGE_FALL_BYTES, LARGE_PAUSE_S / 2) == 2


def test_memory_is_kept_when_the_system_cannot_take_it() -> None:
    """Where the C library has no such call, nothing happens and nothing is said."""
    world = _World(can_trim=False)
    world.see(400 * MIB)
    world.see(0, 1000)
    assert world.log.records == []


@pytest.mark.parametrize("library", [SimpleNamespace(), OSError("no such library")])
def test_system_trim_is_none_when_the_library_has_none(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another C library, or one that cannot be opened, is no error."""

    def open_library(_name: object) -> Any:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    assert system_trim() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library is on Linux")
def test_system_trim_can_be_called_when_there_is_one() -> None:
    """The real call takes what it is given."""
    trim = system_trim()
    assert trim is None or trim() in (0, 1)


@virtual_time
async def test_worker_gives_memory_back_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks several times a second."""
    calls: list[None] = []
    monkeypatch.setattr("chat_gateway.worker.system_trim", lambda: lambda: calls.append(None))
    gateway = FakeGateway()
    gateway.worker.metrics.start()
    gateway.ledger.buffered_bytes = 40 * MIB
    await passed(0.3)
    gateway.ledger.buffered_bytes = 0
    await passed(CALM_S + 0.3)
    gateway.worker.metrics.stop()
    await gateway.close()
    assert len(calls) == 1
