"""The private directory in which the processes of one gateway find each other's sockets.

It belongs to the supervisor, which holds a lock in it for as long as it lives. A directory whose lock can be
taken is that of a gateway that died, and is removed. Knows nothing of what the sockets are for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LOG_LOCK", "RunDir", "default_bases"]

LOG_LOCK = "log.lock"  # for the processes that write to one log

_PREFIX = "chat-gateway-"
_LOCK = "lock"
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without the zero at its end
_LONGEST_NAME = "supervisor.sock"  # a worker's has at most as many characters


def default_bases() -> list[Path]:
    """Where run directories may be made, best first; the last one is short enough on every system."""
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    bases = [Path(user)] if os.path.isabs(user) else []
    return list(dict.fromkeys([*bases, Path(tempfile.gettempdir()), Path("/tmp")]))


class RunDir:
    """Made and closed by a supervisor; also removes what dead gateways of the same user have left.

    Args:
        bases: where it may be made; the first that can be used is.

    Raises:
        OSError: none of them can be used.
    """

    def __init__(self, bases: Iterable[Path]) -> None:
        self._lock_fd = -1  # open, and locked, until it is closed
        self.path = self._made(bases)

    @property
    def supervisor_socket(self) -> Path:
        """Where the supervisor listens for its workers."""
        return self.path / _LONGEST_NAME

    @property
    def log_lock(self) -> Path:
        """What keeps the lines of the gateway's processes apart."""
        return self.path / LOG_LOCK

    def close(self) -> None:
        """Remove it with all that is in it; may be called twice."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _made(self, bases: Iterable[Path]) -> Path:
        problem = OSError("no directory is given")
        for base in bases:
            _remove_stale(base)
            try:
                return self._made_in(base)
            except OSError as error:
                problem = error
        raise problem

    def _made_in(self, base: Path) -> Path:
        """Make it under another name first: nobody must find it before it is locked."""
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}{os.getpid()}-", dir=base))
        path = base / made.name.removeprefix(".")
        lock_fd = -1
        try:
            if len(os.fsencode(path / _LONGEST_NAME)) > _MAX_SOCKET_PATH_BYTES:
                raise OSError(f"{base} is too long a path for sockets")
            lock_fd = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(path)
        except BaseException:
            if lock_fd >= 0:
                os.close(lock_fd)
            shutil.rmtree(made, ignore_errors=True)
            raise
        self._lock_fd = lock_fd
        return path


def _remove_stale(base: Path) -> None:
    """Remove directories of dead gateways; whatever cannot be removed stays."""
    with contextlib.suppress(OSError):
        for path in base.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if _is_ours(path):
                    _remove_if_dead(path)


def _is_ours(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _remove_if_dead(path: Path) -> None:
    """Raises: BlockingIOError: its gateway lives. OSError: it is none of ours."""
    lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock_fd)
