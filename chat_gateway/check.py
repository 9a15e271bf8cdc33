"""What `chat-gateway check` prints: the effective configuration, and the most memory messages can take.

The whole report is valid TOML, which `serve --config` accepts: what is not configuration is a comment.
Knows nothing of where the configuration came from.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from chat_gateway.config_section import Section
from chat_gateway.memory_bound import most_message_memory_bytes
from chat_gateway.shares import share_of, worker_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chat_gateway.config import Config
    from chat_gateway.listen_address import ListenAddress
    from chat_gateway.memory_bound import MemoryBound

__all__ = ["physical_memory_bytes", "report"]

# Of these each of several workers has a share.
_SHARED_LIMITS = (
    ("max_connections", "a quarter more than an even part: they do not come evenly"),
    ("max_buffered_bytes", "an even part"),
)


def physical_memory_bytes() -> int | None:
    """The memory of this machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def report(config: Config, physical_bytes: int | None) -> str:
    """The effective configuration and the memory bound, with a warning when the machine has less memory.

    Where there are several workers it says what each of them has of the limits.
    """
    workers = worker_count(config.runtime.workers)
    lines = ["# The effective configuration.", "", *_toml_lines(config)]
    if workers > 1:
        lines += [*_share_lines(config, workers), "#"]
    lines += _memory_lines(most_message_memory_bytes(config, workers), physical_bytes)
    return "\n".join(lines) + "\n"


def _share_lines(config: Config, workers: int) -> Iterator[str]:
    """The limits that are divided: the gateway's, and what each worker has."""
    share = share_of(config, workers)
    yield f"# What each of the {workers} workers has of the limits of the gateway:"
    for name, reason in _SHARED_LIMITS:
        whole, part = getattr(config.limits, name), getattr(share.limits, name)
        yield f"#   limits.{name:<20} {part:>12} of {whole:<12}  {reason}"


def _memory_lines(bound: MemoryBound, physical_bytes: int | None) -> Iterator[str]:
    """The bound as a sum: shared parts and all connections, with what one of these is made of."""
    where = " in each worker" if bound.workers > 1 else ""
    yield f"# The most memory that messages can take{where}, all at their worst at once:"
    for part in bound.shared:
        yield _memory_line(part.name, part.size_bytes, part.reason)
    yield _memory_line(f"for {bound.connections} connections", bound.all_connections_bytes, "each of them:")
    for part in bound.parts:
        yield _memory_line(f"  {part.name}", part.size_bytes, part.reason)
    beside = "and beside it the socket buffers of the kernel"
    if bound.workers > 1:
        yield _memory_line("in each worker", bound.worker_bytes, "while one is replaced, there is one more")
        beside = f"in {bound.workers} workers, {beside}"
    yield _memory_line("in all", bound.total_bytes, beside)
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
