"""The processes of one gateway, found in /proc by the session they belong to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.e2e.gateway_process import WAIT_S

__all__ = ["commands", "names_in", "nobody_left", "pids"]


def names_in(directory: Path) -> set[str]:
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


def pids(session: int) -> set[int]:
    """Processes of this session that are not just waiting to be reaped."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.add(int(directory.name))
    return found


def commands(session: int) -> list[str]:
    """What the processes of this session were started with."""
    found = []
    for pid in sorted(pids(session)):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


async def nobody_left(session: int) -> None:
    """Wait until this session has no process."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_S
    while pids(session):
        assert loop.time() < deadline, commands(session)
        await asyncio.sleep(0.02)
