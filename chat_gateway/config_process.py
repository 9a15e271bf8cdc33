"""The part of the configuration that concerns processes: how they run, are watched, tell of themselves, end.

As in `config`, the text below each key is its comment in `configs/gateway.toml`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from chat_gateway.config_section import Rise, Section

__all__ = [
    "MAX_WORKERS",
    "BusConfig",
    "LogConfig",
    "MetricsConfig",
    "RuntimeConfig",
    "ShutdownConfig",
    "SupervisorConfig",
    "Workers",
]

MAX_WORKERS = 256  # each of them has a link to each other one


def _workers(value: object) -> int | Literal["auto"]:
    """A number or `auto`; one problem, where a union of types would report one for each of them."""
    if value == "auto":
        return "auto"
    if type(value) is not int:
        raise PydanticCustomError("workers_type", "is no number of workers")
    if value < 1:
        raise PydanticCustomError("greater_than_equal", "is too small")
    if value > MAX_WORKERS:
        raise PydanticCustomError("less_than_equal", "is too large")
    return value


Workers = Annotated[int | Literal["auto"], PlainValidator(_workers)]


class ShutdownConfig(Section):
    """How the gateway ends."""

    drain_timeout_s: float = Field(default=10.0, ge=0, le=3600)
    """Seconds to deliver what was accepted after SIGTERM or Ctrl-C, and to close in order, for which at most
    a quarter is kept. Choose less than the time your service manager waits before it kills.
    """


class LogConfig(Section):
    """What is logged and how."""

    format: Literal["auto", "json", "text"] = "auto"
    """The form of the log: "json" is one object a line, "text" is for people. Choose auto, which is text on a
    terminal and json elsewhere, unless a program reads the terminal.
    """
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written. Choose info, which has nothing for each message, for production, and
    debug for a search on a quiet gateway.
    """
    queue_records: int = Field(default=10_000, ge=1, le=10_000_000)
    """Records that may wait for the writer of the log; more are dropped and counted, the gateway never
    waits. Choose the longest pause of what reads the log × records/s.
    """
    flood_per_s: int = Field(default=10, ge=1, le=1_000_000)
    """Records a second for each event, reason and address before the rest are left out and counted. Raise
    it when every single one is needed.
    """


class MetricsConfig(Section):
    """The numbers in the log."""

    interval_s: float = Field(default=10.0, ge=0.01, le=3600)
    """Seconds between two metrics records. Lower it while you tune, raise it when the log must stay small."""


class RuntimeConfig(Section):
    """What the gateway runs on."""

    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """The event loop: "auto" is uvloop where it is installed and asyncio elsewhere. Choose asyncio for
    a search in the gateway's own code.
    """
    workers: Workers = "auto"
    """How many worker processes share the connections: "auto" is one for each processor this process may
    use. Choose 1 where the processors have other work, and for the least memory.
    """


class SupervisorConfig(Section):
    """What watches the workers, where there are two or more."""

    rises = (Rise("restart_base_delay_s", "restart_max_delay_s"),)

    worker_timeout_s: float = Field(default=5.0, ge=0.1, le=3600)
    """Seconds without a sign of life after which a worker is killed and replaced. Choose longer than the
    longest moment in which this machine may give it no processor.
    """
    start_timeout_s: float = Field(default=30.0, ge=0.1, le=3600)
    """Seconds a new worker has to begin, and then to serve, before it is killed and replaced. Choose several
    times the time from worker.started to worker.ready in the log.
    """
    max_restarts: int = Field(default=5, ge=0, le=10_000)
    """How often one worker that died is replaced in restart_window_s. When it dies once more, the gateway
    drains and ends with status 1. Choose few, so that your service manager learns of a lasting trouble.
    """
    restart_window_s: float = Field(default=60.0, ge=0.1, le=86_400)
    """Seconds over which the restarts of a worker are counted. Choose many times restart_max_delay_s."""
    restart_base_delay_s: float = Field(default=0.2, ge=0.001, le=3600)
    """The first restart in a window is made at once; the second waits a random part of this many seconds,
    each further one of twice as many. Choose the time in which a short trouble usually passes.
    """
    restart_max_delay_s: float = Field(default=5.0, ge=0.001, le=3600)
    """The bound of that doubling, in seconds. Choose how long the clients of a worker may have to wait."""


class BusConfig(Section):
    """The path between two workers."""

    max_outbox_bytes: int = Field(default=4_194_304, ge=65_536, le=1_073_741_824)
    """Bytes of messages that may wait on their way to one other worker; then when_full decides, as for any
    recipient, but "disconnect" refuses, since only a client can be closed. Choose what the senders
    of one worker write to another one while that hangs for a moment.
    """
