"""The programs that people have at hand, nc, socat and telnet, as clients of a gateway process.

Each test runs twice: with the gateway on asyncio, and on uvloop. A program that is not installed skips its
tests, except where CI=true says that it must be there (.ci/packages installs it).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.gateway_process import WAIT_S
from tests.e2e.room import lines_until, open_room

if TYPE_CHECKING:
    from collections.abc import Callable


class Program(NamedTuple):
    """How a program is started, how many lines it prints of its own, and whether it ends in order."""

    arguments: Callable[[int], list[str]]
    own_lines: int = 0
    half_closes: bool = True  # at the end of its input it closes the sending side only


PROGRAMS = {
    "nc": Program(lambda port: ["nc", "-N", "127.0.0.1", str(port)]),
    "socat": Program(lambda port: ["socat", "-t30", "-", f"TCP:127.0.0.1:{port}"]),
    "socat with CRLF": Program(lambda port: ["socat", "-t30", "-", f"TCP:127.0.0.1:{port},crnl"]),
    "telnet": Program(
        lambda port: ["telnet", "127.0.0.1", str(port)],
        own_lines=3,  # Trying, Connected, Escape character
        half_closes=False,
    ),
}
HALF_CLOSING = [name for name, program in PROGRAMS.items() if program.half_closes]


async def start(name: str, port: int) -> asyncio.subprocess.Process:
    """Start a program, connected to the gateway; its own lines have been read."""
    program = PROGRAMS[name]
    command, *arguments = program.arguments(port)
    path = shutil.which(command)
    if path is None:
        message = f"{command} is not installed; as root, .ci/packages installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    process = await asyncio.create_subprocess_exec(path, *arguments, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    for _ in range(program.own_lines):
        assert await line(process)
    return process


async def line(process: asyncio.subprocess.Process) -> bytes:
    """The next line that a program prints."""
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        return await process.stdout.readline()


def say(process: asyncio.subprocess.Process, data: bytes) -> None:
    """Type into a program."""
    assert process.stdin is not None
    process.stdin.write(data)


async def finish(process: asyncio.subprocess.Process, data: bytes = b"") -> tuple[bytes, int]:
    """Type the last of its input into a program; returns what it still prints and its exit status."""
    async with asyncio.timeout(WAIT_S):
        printed, _ = await process.communicate(data)
    assert process.returncode is not None
    return printed, process.returncode


@pytest.mark.parametrize("name", PROGRAMS)
async def test_program_chats_when_it_stays_connected(name: str) -> None:
    """Lines go both ways while both sides stay open; Notices are printed like everything else."""
    async with open_room() as room:
        bob = await room.login("bob")
        process = await start(name, room.gateway.port)
        try:
            say(process, b"alice\nbob: hello: you\n")
            assert await bob.line() == b"from alice: hello: you\n"
            bob.send(b"alice: hi!\n")
            assert await line(process) == b"from bob: hi!\n"
            say(process, b"alice, carol: x\n")
            assert await line(process) == b"! unknown-recipient carol: not logged in\n"
            assert await line(process) == b"from alice: x\n"
        finally:
            await finish(process)
        await room.logged_out("alice")
        bob.send(b"alice: are you there?\n")
        assert await bob.line() == b"! unknown-recipient alice: not logged in\n"


@pytest.mark.parametrize("name", HALF_CLOSING)
async def test_program_gets_all_answers_when_its_input_is_a_pipe_that_ends(name: str) -> None:
    """`printf ... | nc -N` delivers its last line without its end, prints every answer, and ends with 0."""
    lines = b"".join(b"alice, bob: %d\n" % number for number in range(2000))
    expected = lines.replace(b"alice, bob", b"from alice")
    async with open_room() as room:
        bob = await room.login("bob")
        process = await start(name, room.gateway.port)
        assert await finish(process, b"alice\n" + lines + b"bob: end") == (expected, 0)
        assert await lines_until(bob, b"from alice: end\n") == expected


@pytest.mark.parametrize("name", PROGRAMS)
async def test_program_disturbs_nobody_when_it_is_killed(name: str) -> None:
    """A client that ends without a word leaves its login free, and the others where they were."""
    async with open_room() as room:
        bob = await room.login("bob")
        process = await start(name, room.gateway.port)
        say(process, b"alice\nbob: unfinish")
        await room.logged_in("alice")
        process.kill()
        assert (await finish(process))[1] < 0
        await room.logged_out("alice")
        again = await room.login("alice")
        again.send(b"bob: back\n")
        assert (await lines_until(bob, b"from alice: back\n")) in (b"", b"from alice: unfinish\n")
