"""The circuit breaker of one outbound writer: states, counters and listeners are pybreaker's.

Nothing is called through it. Its owner reports outcomes, so that a cancellation, which is no outcome,
cannot count as one. pybreaker alone measures the reset timeout with the wall clock and lets any
number of probes through; here the clock is monotonic and there is one probe at a time.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreaker,
    CircuitBreakerListener,
    CircuitMemoryStorage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pybreaker import CircuitBreakerState

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

_NAMES: Final[dict[str, BreakerState]] = {
    STATE_CLOSED: "closed",
    STATE_OPEN: "open",
    STATE_HALF_OPEN: "half_open",
}


class _ReportedFailure(Exception):
    """Stands for a failure of the writer on its way into pybreaker; never leaves this module."""


def _fail() -> None:
    raise _ReportedFailure


def _succeed() -> None:
    pass


class _Changes(CircuitBreakerListener):
    """Listens to one circuit: when it opened, and a change that has not been announced yet.

    pybreaker calls its listeners in the middle of a change, before the new state is stored, and an
    error from one would undo half of it. So this one only takes a note.
    """

    __slots__ = ("clock", "opened_at_s", "unannounced")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock  # monotonic seconds
        self.opened_at_s = 0.0  # when the circuit opened the last time, by `clock`
        self.unannounced: tuple[BreakerState, BreakerState] | None = None  # (old state, new state)

    def state_change(
        self, cb: CircuitBreaker, old_state: CircuitBreakerState | None, new_state: CircuitBreakerState
    ) -> None:
        """Take a note of a change of the circuit's state."""
        if new_state.name == STATE_OPEN:
            self.opened_at_s = self.clock()
        assert old_state is not None  # only the first state has none before it, and it is not told
        self.unannounced = (_NAMES[old_state.name], _NAMES[new_state.name])


class Breaker:
    """Refuses work for a writer that keeps failing, and lets one probe at a time look again.

    Created by the owner of the writer at its first trouble, and dropped with the writer; nobody closes
    it. It has no task and no timer, and all calls belong in the thread of one event loop.

    An open breaker changes through `try_probe` only: outcomes reported late, and another `trip`, neither
    close it nor postpone its probe.
    """

    __slots__ = ("_changes", "_circuit", "_is_probing", "_on_change", "_reset_timeout_s", "_storage")

    def __init__(
        self,
        *,
        fail_max: int,
        reset_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, str], None] | None = None,
        name: str = "",
    ) -> None:
        """Start closed, without failures.

        Args:
            fail_max: so many failures in a row open the breaker, at least 1.
            reset_timeout_s: seconds from opening until a probe is allowed, not negative.
            clock: monotonic seconds.
            on_change: called with the old and the new state after each change; must not raise.
            name: the writer, for logs.

        Raises:
            ValueError: an argument is out of its range.
        """
        if fail_max < 1:
            raise ValueError(f"fail_max must be at least 1, not {fail_max}")
        if not reset_timeout_s >= 0.0:
            raise ValueError(f"reset_timeout_s must not be negative, not {reset_timeout_s}")
        self._storage = CircuitMemoryStorage(STATE_CLOSED)  # state and counters
        self._changes = _Changes(clock)  # what pybreaker told about its state
        self._circuit = CircuitBreaker(  # the transitions between states
            fail_max=fail_max,
            listeners=[self._changes],
            state_storage=self._storage,
            name=name,
            throw_new_error_on_trip=False,
        )
        self._reset_timeout_s = reset_timeout_s  # from opening until a probe is allowed
        self._on_change = on_change  # told about each change, after it
        self._is_probing = False  # the probe has been handed out and has no result yet

    @property
    def name(self) -> str:
        """The name of the writer, for logs."""
        return self._circuit.name or ""

    @property
    def failures(self) -> int:
        """Failures in a row so far."""
        return self._storage.counter

    @property
    def state(self) -> BreakerState:
        """The state now; an open breaker stays "open" until a probe is handed out."""
        return _NAMES[self._storage.state]

    @property
    def is_refusing(self) -> bool:
        """Whether work must be refused: open and no probe due, or a probe under way."""
        return self._is_probing or self.retry_in_s > 0.0

    @property
    def retry_in_s(self) -> float:
        """Seconds until a probe is allowed, 0.0 if it is allowed now or the breaker is closed.

        While a probe is under way nobody knows; it is `reset_timeout_s`, as if the probe failed now.
        """
        if self._is_probing:
            return self._reset_timeout_s
        if self._storage.state != STATE_OPEN:
            return 0.0
        return max(0.0, self._changes.opened_at_s + self._reset_timeout_s - self._changes.clock())

    def record_failure(self) -> None:
        """Report that the writer failed: opens at `fail_max` in a row, or at once when half-open."""
        if self._storage.state == STATE_OPEN:
            return  # a late report: pybreaker would take it for a probe
        self._is_probing = False
        with contextlib.suppress(_ReportedFailure):
            self._circuit.call(_fail)
        self._announce()

    def record_success(self) -> None:
        """Report that the writer works: forgets the failures, closes when half-open."""
        state = self._storage.state
        if state == STATE_OPEN or (state == STATE_CLOSED and self._storage.counter == 0):
            return  # a late report, or the usual case, which must cost nothing
        self._is_probing = False
        self._circuit.call(_succeed)
        self._announce()

    def trip(self) -> None:
        """Open at once, however few failures there were."""
        if self._storage.state == STATE_OPEN:
            return  # pybreaker would announce the change again
        self._is_probing = False
        self._circuit.open()
        self._announce()

    def try_probe(self) -> bool:
        """Hand out the one probe if it is due, and become half-open.

        The caller must report its result, or give it up with `abandon_probe`.

        Returns:
            False when closed, when it is too early, and when somebody else has the probe.
        """
        if self._storage.state == STATE_CLOSED or self.is_refusing:
            return False
        self._is_probing = True
        if self._storage.state == STATE_OPEN:
            self._circuit.half_open()
            self._announce()
        return True

    def abandon_probe(self) -> None:
        """Give the probe up without a result (it was cancelled); another may be tried at once."""
        self._is_probing = False

    def _announce(self) -> None:
        """Tell the owner about a change, now that it is complete."""
        change, self._changes.unannounced = self._changes.unannounced, None
        if change is not None and self._on_change is not None:
            self._on_change(*change)
