"""What `chat-gateway check` prints: the effective configuration, and the most memory messages can take.

The whole report is valid TOML, which `serve --config` accepts: what is not configuration is a comment.
Knows nothing of where the configuration came from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.config import Section
from chat_gateway.session import BLOCK_OVERHEAD_BYTES, LINE_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chat_gateway.config import Config
    from chat_gateway.listen_address import ListenAddress

# "b:" and its end.
SHORTEST_LINE_BYTES = 3


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One of the places where bytes of messages can be, for one connection at its worst."""

    name: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """The most memory that messages can take: parts of one connection, how many of these, the ceiling."""

    parts: tuple[MemoryPart, ...]
    connections: int
    ceiling: MemoryPart

    @property
    def per_connection_bytes(self) -> int:
        """The sum of the parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def uncapped_bytes(self) -> int:
        """All connections at their worst at once, if there were no ceiling."""
        return self.per_connection_bytes * self.connections

    @property
    def total_bytes(self) -> int:
        """The bound: the ceiling, unless the connections cannot even reach it."""
        return min(self.uncapped_bytes, self.ceiling.size_bytes)


def most_message_memory_bytes(config: Config) -> MemoryBound:
    """The bound on the memory of messages inside the gateway, which follows from the configuration alone.

    A batch counts against its sender's credit and against the ceiling with its bytes, its objects, and
    what encoding adds. What waits in the channels of the stages and in the outboxes is within the credit
    of its senders, so it is no part of its own. What the ceiling does not count comes on top of it: the
    unfinished lines, and what the transports hold.
    """
    limits, outbox = config.limits, config.outbox
    lines = limits.max_read_bytes // SHORTEST_LINE_BYTES
    read = BLOCK_OVERHEAD_BYTES + limits.max_read_bytes + lines * LINE_OVERHEAD_BYTES
    flush = max(outbox.send_buffer_bytes, read)
    parts = (
        MemoryPart("unfinished line", limits.max_line_bytes, "limits.max_line_bytes"),
        MemoryPart(
            "credit", limits.max_inflight_bytes, "limits.max_inflight_bytes, wherever its copies wait"
        ),
        MemoryPart(
            "one read over the credit", read, "limits.max_read_bytes of the shortest lines, once encoded"
        ),
        MemoryPart("one flush", flush, "held by the transport: outbox.send_buffer_bytes, or one read"),
    )
    uncounted = limits.max_connections * (limits.max_line_bytes + outbox.send_buffer_bytes)
    ceiling = MemoryPart(
        "ceiling",
        limits.max_buffered_bytes + uncounted,
        "limits.max_buffered_bytes, with unfinished lines and flushes on top",
    )
    return MemoryBound(parts, limits.max_connections, ceiling)


def physical_memory_bytes() -> int | None:
    """The memory of this machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def report(config: Config, physical_bytes: int | None) -> str:
    """The effective configuration and the memory bound, with a warning when the machine has less memory."""
    memory = _memory_lines(most_message_memory_bytes(config), physical_bytes)
    return "\n".join(["# The effective configuration.", "", *_toml_lines(config), *memory]) + "\n"


def _memory_lines(bound: MemoryBound, physical_bytes: int | None) -> Iterator[str]:
    yield "# The most memory that messages can take:"
    for part in bound.parts:
        yield f"#   {part.name:<26}{_sized(part.size_bytes)}  {part.reason}"
    yield f"#   {'for each connection':<26}{_sized(bound.per_connection_bytes)}"
    yield f"#   {f'for {bound.connections} connections':<26}{_sized(bound.uncapped_bytes)}"
    yield f"#   {bound.ceiling.name:<26}{_sized(bound.ceiling.size_bytes)}  {bound.ceiling.reason}"
    yield f"#   {'at most, in all':<26}{_sized(bound.total_bytes)}"
    if physical_bytes is not None and bound.total_bytes > physical_bytes:
        yield f"# Warning: that is more than the memory of this machine, {_readable(physical_bytes)}. Lower"
        yield "# limits.max_buffered_bytes or limits.max_connections."


def _sized(size_bytes: int) -> str:
    return f"{_readable(size_bytes):>10} {f'({size_bytes} bytes)':>22}"


def _readable(size_bytes: int) -> str:
    """A size with three digits or so, such as 2.3 MiB."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{size_bytes} B"


def _toml_lines(section: Section, path: str = "") -> Iterator[str]:
    """One table with its keys, then the tables inside it; a table without keys of its own has no header."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    keys = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
    if keys:
        yield f"[{path}]"
        yield from (f"{name} = {json.dumps(value)}" for name, value in keys.items())
        yield ""
    for name, value in values.items():
        if isinstance(value, Section):
            yield from _toml_lines(value, f"{path}.{name}" if path else name)
        elif isinstance(value, tuple):
            yield from _listen_lines(value)


def _listen_lines(listen: tuple[ListenAddress, ...]) -> Iterator[str]:
    for address in listen:
        yield from ("[[listen]]", f"url = {json.dumps(address.url)}", "")
