"""What a SIGHUP means: the terminal has closed, or an operator wants the configuration read again."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Hangup"]

_LOOK_AGAIN_S = 0.5  # a shell that exits may send the signal just before its terminal closes


class Hangup:
    """Made in the running loop at the start of the gateway, while its terminal is still there.

    Args:
        on_terminal_closed: the terminal that was there at the start is gone.
        on_asked: anything else.
    """

    def __init__(self, on_terminal_closed: Callable[[], None], on_asked: Callable[[], None]) -> None:
        self._on_terminal_closed = on_terminal_closed
        self._on_asked = on_asked
        self._loop = asyncio.get_running_loop()
        self._terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]

    def install(self) -> None:
        """Handle the signal from now on, unless whoever started us wants it ignored, as nohup does."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self) -> None:
        if self._terminals and not self._is_terminal_closed():
            self._loop.call_later(_LOOK_AGAIN_S, self._decide)
        else:
            self._decide()

    def _decide(self) -> None:
        if self._is_terminal_closed():
            self._on_terminal_closed()
        else:
            self._on_asked()

    def _is_terminal_closed(self) -> bool:
        return not all(map(os.isatty, self._terminals))
