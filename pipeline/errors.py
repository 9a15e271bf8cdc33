"""The four things that can go wrong at a channel's end, named by situation (the trio contract)."""

from __future__ import annotations

__all__ = ["BrokenResourceError", "ClosedResourceError", "EndOfChannel", "WouldBlock"]


class WouldBlock(Exception):
    """A `_nowait` call could not be done at once."""


class EndOfChannel(Exception):
    """The send end was closed and everything that was sent has been received."""


class ClosedResourceError(Exception):
    """You closed this end yourself."""


class BrokenResourceError(Exception):
    """The other side has left: what is sent now would reach nobody."""
