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
from chat_gateway.dead_letters import MAX_QUEUED_BYTES
from chat_gateway.session import BLOCK_OVERHEAD_BYTES, LINE_OVERHEAD_BYTES
from stages.message import ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chat_gateway.config import Config
    from chat_gateway.listen_address import ListenAddress

# "b:" and its end: what takes most for each of its bytes once it is encoded.
SHORTEST_LINE_BYTES = 3
# "b,c:" and its end: what counts most for each of its bytes while it waits, since `stages.message` counts
# `ENTRY_BYTES` for each recipient of several.
SHORTEST_LINE_TO_TWO_BYTES = 5


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One of the places where bytes of messages can be, at its worst."""

    name: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """The most memory that messages can take: shared parts, parts of one connection, how many of these."""

    shared: tuple[MemoryPart, ...]
    parts: tuple[MemoryPart, ...]
    connections: int

    @property
    def per_connection_bytes(self) -> int:
        """What one connection can hold beside the shared parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def all_connections_bytes(self) -> int:
        """All connections at their worst at once."""
        return self.per_connection_bytes * self.connections

    @property
    def total_bytes(self) -> int:
        """The bound."""
        return sum(part.size_bytes for part in self.shared) + self.all_connections_bytes


def most_message_memory_bytes(config: Config) -> MemoryBound:
    """The bound on the memory of messages inside the gateway, which follows from the configuration alone.

    `limits.max_buffered_bytes` bounds every batch that has a copy without an outcome, wherever that waits: in
    a stage, in an outbox, parked, in a grace. The credits of the sessions are a share of it, and no bound of
    their own, since what waits in a grace or behind an open breaker holds no credit. What it does not see
    comes on top, for each connection: the unfinished line; the one read that each may have brought before
    it is known that the bound is reached; and what the transport holds, which counts as delivered.
    """
    limits, outbox = config.limits, config.outbox
    encoded = limits.max_read_bytes + limits.max_read_bytes // SHORTEST_LINE_BYTES * LINE_OVERHEAD_BYTES
    lines = limits.max_read_bytes // SHORTEST_LINE_TO_TWO_BYTES
    read = BLOCK_OVERHEAD_BYTES + limits.max_read_bytes + lines * (LINE_OVERHEAD_BYTES + 2 * ENTRY_BYTES)
    shared = [MemoryPart("messages in flight", limits.max_buffered_bytes, "limits.max_buffered_bytes")]
    if config.dead_letters.path:
        shared.append(MemoryPart("dead letters", MAX_QUEUED_BYTES, "that wait for the disk"))
    parts = (
        MemoryPart(
            "unfinished line",
            limits.max_line_bytes + limits.max_read_bytes,
            "limits.max_line_bytes, and the read that passes it",
        ),
        MemoryPart("one read more", read, "limits.max_read_bytes of the shortest lines, each to several"),
        MemoryPart(
            "one flush",
            max(outbox.send_buffer_bytes, encoded),
            "outbox.send_buffer_bytes, or all that one read brought, once encoded",
        ),
    )
    return MemoryBound(tuple(shared), parts, limits.max_connections)


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
    """The bound as a sum: shared parts and all connections, with what one of these is made of."""
    yield "# The most memory that messages can take, all at their worst at once:"
    for part in bound.shared:
        yield _memory_line(part.name, part.size_bytes, part.reason)
    yield _memory_line(f"for {bound.connections} connections", bound.all_connections_bytes, "each of them:")
    for part in bound.parts:
        yield _memory_line(f"  {part.name}", part.size_bytes, part.reason)
    yield _memory_line("in all", bound.total_bytes, "and beside it the socket buffers of the kernel")
    if physical_bytes is not None and bound.total_bytes > physical_bytes:
        yield f"# Warning: that is more than the memory of this machine, {_readable(physical_bytes)}. Lower"
        yield "# limits.max_connections, limits.max_read_bytes or limits.max_buffered_bytes."


def _memory_line(name: str, size_bytes: int, reason: str) -> str:
    exact = f"({size_bytes} bytes)"
    return f"#   {name:<20} {_readable(size_bytes):>10} {exact:>20}  {reason}"


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
