"""One flush for each touched outbox and turn of the loop, however many batches touched it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.outbox import Outbox

__all__ = ["Flusher"]


class Flusher:
    """Flushes every outbox that was touched once, at the end of the loop's turn; one for a worker.

    Args:
        call_soon: schedules a call for the next turn of the event loop.
        on_error: told of an outbox whose flush raised; the others are flushed all the same.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        on_error: Callable[[Outbox, Exception], None],
    ) -> None:
        self._call_soon = call_soon
        self._on_error = on_error
        self._touched: list[Outbox] = []
        self._is_scheduled = False  # `flush` will be called without our doing

    def add(self, outbox: Outbox) -> None:
        """Have this outbox flushed at the end of the turn."""
        self._touched.append(outbox)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self.flush)

    def expect_flush(self) -> None:
        """The caller will call `flush` before this turn ends, so that it need not be scheduled."""
        self._is_scheduled = True

    def flush(self) -> None:
        """Flush what was touched."""
        self._is_scheduled = False
        touched, self._touched = self._touched, []
        for outbox in touched:
            try:
                outbox.flush()
            except Exception as error:
                self._on_error(outbox, error)

    def flush_one(self, outbox: Outbox) -> None:
        """Flush this one now; an error is told to `on_error` and goes no further."""
        try:
            outbox.flush()
        except Exception as error:
            self._on_error(outbox, error)
