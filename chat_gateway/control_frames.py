"""What the supervisor and its workers say to each other, in the frames of `bus_frames`.

A worker dials the supervisor and says hello; from then on both speak whenever there is something to say, and
nobody answers anything. Knows nothing of sockets.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from chat_gateway.bus_frames import decoder_of

__all__ = [
    "TO_SUPERVISOR",
    "TO_WORKER",
    "Beat",
    "Close",
    "Drain",
    "DrainReason",
    "Drained",
    "Hello",
    "Members",
    "PleaseDrain",
    "Ready",
    "Snapshot",
    "ToSupervisor",
    "ToWorker",
]

DrainReason: TypeAlias = Literal["shutdown", "restarting"]


class _Struct(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A message: an array of its tag and its fields, in order."""


# From a worker.


class Hello(_Struct, tag=1):
    """First: which worker this is; its socket of the bus is bound."""

    wid: int
    pid: int


class Ready(_Struct, tag=2):
    """It accepts connections."""


class Beat(_Struct, tag=3):
    """It lives, and this is its account of copies."""

    accepted: int
    delivered: int
    stored: int
    refused: dict[str, int]
    in_flight: int


class Snapshot(_Struct, tag=4):
    """Its numbers for the gateway's metrics record, see `metrics_record`."""

    numbers: dict[str, Any]


class Drained(_Struct, tag=5):
    """What is left without an outcome; 0 unless its time for that is over. Said once."""

    in_flight: int


class PleaseDrain(_Struct, tag=6):
    """Somebody told this worker to end, which means the whole gateway."""


# From the supervisor.


class Members(_Struct, tag=11):
    """The workers of the gateway, whenever that changes."""

    epoch: int
    members: list[tuple[int, int, bool]]  # slot, wid, whether it is leaving; see `directory.Member`


class Drain(_Struct, tag=12):
    """Accept and read no more, say `Drained` once every copy has its outcome, and serve the others on."""

    reason: DrainReason
    deadline_s: float  # from now


class Close(_Struct, tag=13):
    """Everybody has said `Drained`: close the connections in order, and end."""


ToSupervisor: TypeAlias = Hello | Ready | Beat | Snapshot | Drained | PleaseDrain
ToWorker: TypeAlias = Members | Drain | Close

TO_SUPERVISOR = decoder_of(ToSupervisor)
TO_WORKER = decoder_of(ToWorker)
