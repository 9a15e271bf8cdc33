"""The directory of a gateway's sockets: private, removed in the end, by the next gateway if need be."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chat_gateway.run_dir import RunDir, default_bases

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="base")
def fixture_base() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="gw"))
    yield path
    shutil.rmtree(path)


def dead_directory(base: Path, name: str = "chat-gateway-4711-dead") -> Path:
    """What a gateway that was killed leaves."""
    path = base / name
    path.mkdir()
    for file in ("lock", "supervisor.sock", "7.sock"):
        (path / file).touch()
    return path


def test_run_dir_is_private_and_gone_when_it_is_closed(base: Path) -> None:
    """Nobody else may speak with the supervisor; closing it twice does no harm."""
    run_dir = RunDir([base])
    assert run_dir.path.parent == base
    assert run_dir.path.name.startswith(f"chat-gateway-{os.getpid()}-")
    assert stat.S_IMODE(run_dir.path.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir.supervisor_socket))
    run_dir.log_lock.touch()
    run_dir.close()
    run_dir.close()
    assert list(base.iterdir()) == []


def test_two_run_dirs_live_side_by_side(base: Path) -> None:
    """A second gateway of the same user removes nothing of the first one."""
    first, second = RunDir([base]), RunDir([base])
    assert first.path.exists()
    assert first.path != second.path
    first.close()
    assert second.path.exists()
    second.close()


def test_directory_of_a_dead_gateway_is_removed_when_another_one_starts(base: Path) -> None:
    """Its lock can be taken, so nobody lives there; also below a base that is not used itself."""
    other = base / "other"
    other.mkdir()
    dead = [dead_directory(base), dead_directory(other)]
    RunDir([other, base]).close()
    assert [path.exists() for path in dead] == [True, False]
    RunDir([base]).close()
    assert [path.exists() for path in dead] == [False, False]


def test_directory_is_kept_when_it_is_locked_or_has_no_lock(base: Path) -> None:
    """A living gateway holds the lock; what has none is not known to be a gateway's."""
    living, unknown = dead_directory(base), base / "chat-gateway-1-notes"
    unknown.mkdir()
    with (living / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        RunDir([base]).close()
    assert living.exists()
    assert unknown.exists()


def test_link_to_a_directory_is_kept(base: Path) -> None:
    """Somebody else may have put it there, to have something else removed."""
    target = base / "target"
    target.mkdir()
    (target / "lock").touch()
    (base / "chat-gateway-1-link").symlink_to(target)
    RunDir([base]).close()
    assert (target / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give files away")
def test_directory_of_another_user_is_kept(base: Path) -> None:
    """Even by one who could remove it."""
    theirs = dead_directory(base)
    os.chown(theirs, 12345, 12345)
    RunDir([base]).close()
    assert theirs.exists()


def test_next_base_is_taken_when_one_cannot_be_used(base: Path) -> None:
    """It is missing, or its path too long for a socket; and nothing is left in it."""
    long = base / ("x" * 60) / ("y" * 40)
    long.mkdir(parents=True)
    run_dir = RunDir([base / "missing", long, base])
    assert run_dir.path.parent == base
    assert list(long.iterdir()) == []
    run_dir.close()


def test_error_is_that_of_the_last_base_when_none_can_be_used(base: Path) -> None:
    """The operator reads it."""
    with pytest.raises(FileNotFoundError):
        RunDir([base / "missing"])
    with pytest.raises(OSError, match="no directory is given"):
        RunDir([])


def test_default_bases_begin_with_the_directory_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the temporary one; the last is short everywhere. A relative path is none."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_bases()[0] == Path("/run/user/7")
    assert default_bases()[-1] == Path("/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    assert Path("run") not in default_bases()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_bases()[-1] == Path("/tmp")
