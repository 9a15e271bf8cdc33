"""Whose turn it is to write a line, where several processes write to one pipe, file or terminal.

A pipe keeps a write whole up to PIPE_BUF bytes only, and a write to what does not block may end early. So
each line is written under a lock, which the kernel takes back when its holder dies. A holder that was stopped
is waited for a while; then all others go on with another lock, and it begins its line anew when it is
continued. Must not know what is in a line.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# How long a holder is waited for that could write, since the output would take something: many times what a
# line takes on a busy machine.
PATIENCE_S: Final = 0.5

_FIRST_PAUSE_S: Final = 0.000_2
_MAX_PAUSE_S: Final = 0.005
# Enough for one that waits to look again; or whoever has much to write would have the lock all the time.
_GIVE_WAY_S: Final = 2 * _MAX_PAUSE_S
_POLL_MS: Final = 1_000

# What the processes share: numbers of 32 bits at the beginning of the file.
_BYTE: Final = 0  # of the file, that is locked: the next one, when the holder of the one before was stopped
_TURN: Final = 1  # of the line begun last, counted up
_IS_CUT: Final = 2  # that line has no end: it failed, its writer died, or is in the midst of it
_WAITER: Final = 3  # process that would have the lock; 0 for none
_SHARED_BYTES: Final = 16


class LogLock:
    """Made by a `LogWriter`, whose thread uses and closes it; one for each process, which has what it locked.

    For each line: `acquire`, `begin`, writes with `go_on` after each one that took a part only, `release`.

    Args:
        path: file to lock, made if need be, the same for all processes that write to the same place; None
            where this process writes alone.
        sleep: waits for a number of seconds.

    Raises:
        OSError: the file cannot be made or read.
    """

    def __init__(self, path: Path | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        # The file that is locked; None where nothing is.
        self._file: int | None = None
        # Its content in memory; without a file, memory of our own.
        self._memory = mmap.mmap(-1, _SHARED_BYTES) if path is None else self._open(path)
        # Numbers that the processes share.
        self._shared = memoryview(self._memory).cast("I")
        self._sleep = sleep
        self._pid = os.getpid()
        # This process may write; then, the byte of the file by which it keeps the others from that.
        self._is_held = False
        self._byte = 0
        # Another one was waiting for its turn when ours ended.
        self._gives_way = False
        # Number of the line that this process writes.
        self._turn = 0
        # The line before that one has no end.
        self.was_cut = False

    def acquire(self, fd: int, is_abandoned: Callable[[], bool]) -> None:
        """Wait until no other process writes a line that can write.

        Args:
            fd: where the line is to be written.
            is_abandoned: asked now and then whether to give up.

        Raises:
            TimeoutError: it was given up.
        """
        if self._gives_way:
            self._gives_way = False
            self._sleep(_GIVE_WAY_S)
        waited_s, pause_s, latest = 0.0, _FIRST_PAUSE_S, self._latest()
        while not self._try_acquire():
            if is_abandoned():
                raise TimeoutError
            if latest != self._latest() or not _would_take(fd, 0):  # lines come, or cannot come
                waited_s, latest = 0.0, self._latest()
                _would_take(fd, _POLL_MS)
            elif waited_s > PATIENCE_S:
                self._shared[_BYTE] = (self._byte + 1) & 0xFFFF_FFFF
                continue
            self._sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(pause_s * 2, _MAX_PAUSE_S)

    def begin(self, line: bytes) -> bytes:
        """What to write for this line to be on one of its own."""
        self.was_cut = bool(self._shared[_IS_CUT])
        self._shared[_TURN] = self._turn = (self._shared[_TURN] + 1) & 0xFFFF_FFFF
        if len(line) >= select.PIPE_BUF:  # a shorter one is written as a whole or not at all
            self._shared[_IS_CUT] = True
        return b"\n" + line if self.was_cut else line

    def go_on(self) -> bool:
        """A part was written; False when another line has followed it: to be begun anew, in another turn."""
        if self._is_ours():
            self._shared[_IS_CUT] = True
            return True
        self._unlock()
        return False

    def release(self, *, is_cut: bool) -> None:
        """The line is done with; `is_cut` when whatever is written next has to begin on a line of its own."""
        if self._is_held:
            if self._is_ours():
                self._shared[_IS_CUT] = is_cut
            self._gives_way = self._shared[_WAITER] not in (0, self._pid)
            self._shared[_WAITER] = 0
            self._unlock()

    def close(self) -> None:
        """Nothing more is written."""
        self._shared.release()
        self._memory.close()  # has a descriptor of its own
        if self._file is not None:
            os.close(self._file)

    def _open(self, path: Path) -> mmap.mmap:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # Makes room without changing what is there; on a full disk, an error here and not a signal later.
        os.pwrite(self._file, b"\0", _SHARED_BYTES)
        return mmap.mmap(self._file, _SHARED_BYTES)

    def _latest(self) -> tuple[int, int]:
        """Changes when somebody goes on."""
        return self._shared[_BYTE], self._shared[_TURN]

    def _is_ours(self) -> bool:
        return self._shared[_TURN] == self._turn

    def _try_acquire(self) -> bool:
        self._byte = self._shared[_BYTE]
        if self._file is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
            except OSError:
                self._shared[_WAITER] = self._pid
                return False
        self._is_held = True
        if self._shared[_BYTE] != self._byte:
            self._unlock()
        return self._is_held

    def _unlock(self) -> None:
        self._is_held = False
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._byte)


def _would_take(fd: int, timeout_ms: int) -> bool:
    """Something can be written to `fd`, or an error would be met, within that time."""
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_ms))
