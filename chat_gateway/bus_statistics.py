"""What a worker counts of its bus, and its part of a metrics snapshot; knows nothing of sockets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from pipeline.histogram import Histogram

if TYPE_CHECKING:
    from chat_gateway.metrics_record import Snapshot

__all__ = ["BREAKER_STATES", "BusStatistics"]

BREAKER_STATES = ("closed", "open", "half_open")


@dataclass(slots=True)
class BusStatistics:
    """One worker's links to all other workers together.

    Made by the bus, which counts in it as it goes and brings the gauges up to date when asked for it; in the
    worker's loop.
    """

    copies_out: int = 0  # ever: sent to other workers
    copies_in: int = 0  # ever: come from other workers
    batches_out: int = 0  # ever: frames with copies, sent
    batches_in: int = 0  # ever: the same, come
    bytes_out: int = 0  # ever: that left, with whatever is said beside copies
    bytes_in: int = 0  # ever: that came
    pending_bytes: int = 0  # now: wait in the outboxes in front of the links
    peak_bytes: int = 0  # the most that was pending in one of them, since the last snapshot
    breakers: dict[str, int] = field(default_factory=dict)  # now: links by the state of their breaker
    held_logins: int = 0  # now: logins whose copies wait for the answer to earlier ones
    places: int = 0  # now: logins that live at other workers, as far as this one knows
    round_trip: Histogram = field(default_factory=Histogram)  # from ping to pong, since the last snapshot

    def snapshot(self) -> Snapshot:
        """The numbers as plain data; begins the next interval."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self)}
        del numbers["round_trip"]
        self.peak_bytes = 0
        return {
            **numbers,
            "breakers": {state: self.breakers.get(state, 0) for state in BREAKER_STATES},
            "round_trip_us": self.round_trip.take().to_data(),
        }
