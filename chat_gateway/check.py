"""What `chat-gateway check` prints: the effective configuration, and the most memory messages can take.

The whole report is valid TOML, which `serve --config` accepts: what is not configuration is a comment.
Knows nothing of where the configuration came from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.config_section import Section
from chat_gateway.dead_letters import MAX_QUEUED_BYTES
from chat_gateway.read_buffers import LEAST_READ_BYTES
from chat_gateway.session import BLOCK_OVERHEAD_BYTES, LINE_OVERHEAD_BYTES
from stages.line_codec import MAX_CACHE_BYTES, most_tail_bytes
from stages.message import ENTRY_BYTES
from stages.notices import MAX_LINE_BYTES, MAX_PENDING_BYTES, MAX_TEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chat_gateway.config import Config
    from chat_gateway.listen_address import ListenAddress

# "b:" and its end: what takes most for each of its bytes once it is encoded.
SHORTEST_LINE_BYTES = 3


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

    `limits.max_buffered_bytes` bounds what was read until its last copy has an outcome, wherever that waits:
    in a stage, in an outbox, parked, in a grace. The credits of the sessions are a share of it, and no bound
    of their own, since what waits in a grace or behind an open breaker holds no credit. It is passed by one
    read, and then by the lines that the least reads may still end. What it does not see comes on top: what is
    made of one read while it is worked on, and for each connection the unfinished line, the notices, and what
    the transport holds, which counts as delivered.
    """
    limits = config.limits
    read_bytes = limits.max_read_bytes + limits.max_line_bytes  # with the unfinished line before it
    encoded = read_bytes + read_bytes // SHORTEST_LINE_BYTES * LINE_OVERHEAD_BYTES
    shared = [
        MemoryPart("messages in flight", limits.max_buffered_bytes, "limits.max_buffered_bytes"),
        MemoryPart(
            "one read more",
            BLOCK_OVERHEAD_BYTES + read_bytes * (1 + max(LINE_OVERHEAD_BYTES, ENTRY_BYTES // 2)),
            "limits.max_read_bytes of the lines that count most",
        ),
        MemoryPart("one read at work", 2 * encoded, "limits.max_read_bytes of the shortest lines, encoded"),
        MemoryPart("recipient lists", MAX_CACHE_BYTES, "that were parsed lately"),
    ]
    if config.dead_letters.path:
        shared.append(MemoryPart("dead letters", MAX_QUEUED_BYTES, "that wait for the disk"))
    return MemoryBound(tuple(shared), _connection_parts(config), limits.max_connections)


def _connection_parts(config: Config) -> tuple[MemoryPart, ...]:
    """What each connection can hold beside the shared parts."""
    limits = config.limits
    line = BLOCK_OVERHEAD_BYTES + LINE_OVERHEAD_BYTES + limits.max_line_bytes + LEAST_READ_BYTES
    line += min(limits.max_recipients, limits.max_line_bytes // 2) * ENTRY_BYTES
    encoded = limits.max_line_bytes + LINE_OVERHEAD_BYTES
    notices = MAX_TEXT_BYTES if limits.notices else 0
    return (
        MemoryPart(
            "unfinished line",
            max(most_tail_bytes(limits.max_line_bytes), line),
            "limits.max_line_bytes, or ended when memory is full, to limits.max_recipients",
        ),
        MemoryPart(
            "one flush",
            max(config.outbox.send_buffer_bytes, encoded, notices) + MAX_LINE_BYTES,
            "outbox.send_buffer_bytes or the longest line, and the last notice",
        ),
        MemoryPart(
            "notices",
            MAX_PENDING_BYTES if limits.notices else 0,
            "that wait for the next flush, merged by name",
        ),
    )


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
        yield "# limits.max_connections, limits.max_line_bytes or limits.max_buffered_bytes."


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
