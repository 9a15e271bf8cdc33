"""One end of the link between the supervisor and one worker; the same class at both ends.

Nobody waits for it: what is said is handed to the transport, and what can be said later is left out while
the other side does not read. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from chat_gateway.bus_frames import FrameError, Frames, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

__all__ = ["ControlLink"]


_CLOSE_S = 1.0  # the other side may never read


class ControlLink(asyncio.Protocol):
    """Made by whoever listens or dials, with its transport; ends with it.

    Args:
        decoder: for the messages of the other side.
        on_message: takes each of them, with the link.
        on_lost: told once that the link has ended, with what was wrong, if anything.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[object],
        on_message: Callable[[ControlLink, object], None],
        on_lost: Callable[[ControlLink, str], None],
    ) -> None:
        self._frames = Frames(decoder)
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._is_paused = False  # the other side does not read
        self._problem = ""  # what it said that cannot be understood
        self._lost = asyncio.Event()  # the transport has ended

    def send(self, message: msgspec.Struct) -> None:
        """Say something; nothing happens when the link has ended."""
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    def send_if_read(self, message: msgspec.Struct) -> None:
        """Say something that will be said again, unless the other side does not read."""
        if not self._is_paused:
            self.send(message)

    def close(self) -> None:
        """End it once everything said is on its way; may be called twice."""
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """End it, and wait a moment until what was said is on its way."""
        self.close()
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _CLOSE_S)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for message in self._frames.feed(data):
                self._on_message(self, message)
        except FrameError as error:
            self._problem = str(error)
            self.close()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._lost.set()
        self._on_lost(self, self._problem or (str(exc) if exc else ""))
