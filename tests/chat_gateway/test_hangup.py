"""What SIGHUP means, by whether there is a terminal and whether it is still there; in virtual time."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from chat_gateway.hangup import Hangup
from tests.chat_gateway.fakes import passed, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable


class Terminals:
    """Which descriptors are terminals just now, and what a hang-up has led to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *fds: int) -> None:
        self.fds = set(fds)
        self.done: list[str] = []
        self.handlers: dict[int, Callable[[], None]] = {}
        monkeypatch.setattr(os, "isatty", lambda fd: fd in self.fds)
        loop: Any = asyncio.get_running_loop()
        loop.add_signal_handler = self.handlers.__setitem__
        Hangup(lambda: self.done.append("closed"), lambda: self.done.append("asked")).install()

    def hang_up(self) -> None:
        """The signal comes."""
        self.handlers[signal.SIGHUP]()


def test_hangup_is_a_wish_when_there_never_was_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a service manager; at once."""

    @virtual_time
    async def check() -> None:
        terminals = Terminals(monkeypatch)
        terminals.hang_up()
        assert terminals.done == ["asked"]

    check()


@pytest.mark.parametrize("left", [set(), {2}])
def test_hangup_means_the_end_when_the_terminal_has_closed(
    left: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of those that were there at the start is enough."""

    @virtual_time
    async def check() -> None:
        terminals = Terminals(monkeypatch, 0, 2)
        terminals.fds = left
        terminals.hang_up()
        assert terminals.done == ["closed"]

    check()


@pytest.mark.parametrize(("closes", "meaning"), [(True, "closed"), (False, "asked")])
def test_hangup_is_understood_a_moment_later_when_the_terminal_is_still_there(
    closes: bool, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that exits sends the signal just before its terminal closes; an operator keeps it open."""

    @virtual_time
    async def check() -> None:
        terminals = Terminals(monkeypatch, 0)
        terminals.hang_up()
        assert terminals.done == []
        await passed(0.1)
        if closes:
            terminals.fds = set()
        await passed(1)
        assert terminals.done == [meaning]

    check()


def test_hangup_is_left_alone_when_it_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started the gateway with nohup wants it to go on."""

    @virtual_time
    async def check() -> None:
        assert Terminals(monkeypatch, 0).handlers == {}

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        check()
    finally:
        signal.signal(signal.SIGHUP, before)
