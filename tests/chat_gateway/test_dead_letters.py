"""Letters in a file: whole lines, rotated by size, and only a count when the disk does not take them."""

from __future__ import annotations

import errno
import json
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chat_gateway import dead_letters as module
from chat_gateway.dead_letters import DeadLetters

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_700_000_000.12345
LETTER_BYTES = len(b'{"ts":1700000000.123,"to":"bob","lines":["' b'"]}\n')


def _letters(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def _texts(path: Path) -> list[str]:
    return [line for letter in _letters(path) for line in letter["lines"]]


def _open(path: Path, *, max_bytes: int = 1 << 20, keep: int = 3) -> DeadLetters:
    return DeadLetters(path, max_bytes=max_bytes, keep=keep, now=lambda: NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the letters go."""
    return tmp_path / "letters.jsonl"


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing before the event is set."""
    is_free = threading.Event()
    write = os.write

    def wait_and_write(fd: int, data: bytes) -> int:
        is_free.wait(30)
        return write(fd, data)

    monkeypatch.setattr(os, "write", wait_and_write)
    yield is_free
    is_free.set()


def test_letter_tells_when_to_whom_and_what_when_written(path: Path) -> None:
    """Each letter is one line of JSON: time in milliseconds, login and the lines as they would have come."""
    letters = _open(path)
    letters.add("bob", "from alice: hällo\nfrom eve: \n".encode())
    letters.add("carol", b"from alice: hi\n")
    letters.close()
    assert _letters(path) == [
        {"ts": 1_700_000_000.123, "to": "bob", "lines": ["from alice: hällo", "from eve: "]},
        {"ts": 1_700_000_000.123, "to": "carol", "lines": ["from alice: hi"]},
    ]
    assert (letters.written, letters.lost) == (2, 0)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c"])
def test_letter_has_no_forged_line_when_a_text_contains_another_separator(path: Path, separator: str) -> None:
    """Only the line feed ends a line."""
    letters = _open(path)
    line = f"from alice: hi{separator}from carol: you owe me"
    letters.add("bob", f"{line}\n".encode())
    letters.close()
    assert _texts(path) == [line]


def test_letters_follow_those_of_before_when_the_file_exists(path: Path) -> None:
    """A restart appends."""
    for text in (b"one\n", b"two\n"):
        letters = _open(path)
        letters.add("bob", text)
        letters.close()
    assert _texts(path) == ["one", "two"]


def test_file_is_not_for_everybody_when_it_is_created(path: Path) -> None:
    """Messages are private."""
    _open(path).close()
    assert not path.stat().st_mode & 0o007


def test_opening_fails_when_the_file_cannot_be_made(tmp_path: Path) -> None:
    """The operator hears of a wrong path at the start."""
    with pytest.raises(FileNotFoundError):
        _open(tmp_path / "missing" / "letters")


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_files_are_rotated_and_bounded_when_letters_do_not_fit(path: Path, keep: int) -> None:
    """A file holds what fits, older ones move on, and no more are kept than asked for."""
    letters = _open(path, max_bytes=2 * (LETTER_BYTES + 1), keep=keep)
    for digit in "123456789":
        letters.add("bob", digit.encode())
    letters.close()
    files = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
    assert [_texts(file) for file in files] == [["9"], ["7", "8"], ["5", "6"], ["3", "4"]][: keep + 1]
    assert sorted(path.parent.iterdir()) == sorted(files)
    assert (letters.written, letters.lost) == (9, 0)


def test_file_is_bounded_in_bytes_when_characters_take_several(path: Path) -> None:
    """What counts is what it takes on the disk."""
    text = "ö" * 100
    letters = _open(path, max_bytes=2 * (LETTER_BYTES + 200) - 1)
    for _ in range(2):
        letters.add("bob", text.encode())
    letters.close()
    assert _texts(path) == [text]


def test_letter_is_written_when_it_is_longer_than_a_file_may_be(path: Path) -> None:
    """It is alone in its file, and no empty one is kept for it."""
    letters = _open(path, max_bytes=100)
    for text in (b"x" * 1000, b"y"):
        letters.add("bob", text)
    letters.close()
    assert _texts(path) == ["y"]
    assert _texts(path.with_name(f"{path.name}.1")) == ["x" * 1000]
    assert not path.with_name(f"{path.name}.2").exists()


@pytest.mark.parametrize("is_moved", [False, True], ids=["deleted", "moved"])
def test_file_is_made_anew_when_somebody_took_it_away(path: Path, is_moved: bool) -> None:
    """Letters go to the file under the path, whatever became of the one that was there."""
    letters = _open(path)
    letters.add("bob", b"one\n")
    _wait_written(letters, 1)
    if is_moved:
        path.rename(path.with_name("moved"))
    else:
        path.unlink()
    letters.add("bob", b"two\n")
    letters.close()
    assert _texts(path) == ["two"]
    assert (letters.written, letters.lost) == (2, 0)


def _wait_written(letters: DeadLetters, count: int) -> None:
    """Until the thread has seen so many letters."""
    is_late = threading.Event()
    for _ in range(3000):
        if letters.written + letters.lost >= count:
            return
        is_late.wait(0.01)
    raise AssertionError("the thread is dead")


def test_letters_are_counted_and_written_again_when_the_directory_was_away(path: Path) -> None:
    """A file that cannot be made costs the letters of that time."""
    path = path.parent / "sub" / path.name
    path.parent.mkdir()
    letters = _open(path)
    path.unlink()
    path.parent.rmdir()
    for count in (1, 2):
        letters.add("bob", b"lost\n")
        _wait_written(letters, count)
    path.parent.mkdir()
    letters.add("bob", b"kept\n")
    letters.close()
    assert _texts(path) == ["kept"]
    assert (letters.written, letters.lost) == (1, 2)


def test_letters_are_counted_when_the_disk_is_full() -> None:
    """A full disk costs letters and nothing else; closing is as quiet."""
    letters = _open(Path("/dev/full"))
    for _ in range(3):
        letters.add("bob", b"lost\n")
    letters.close()
    assert (letters.written, letters.lost) == (0, 3)


def test_file_keeps_whole_letters_when_the_disk_takes_a_part_only(path: Path) -> None:
    """A letter that only begins to fit is taken back, and the next one that fits begins a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    letters = _open(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
        letters.add("bob", b"one\n")
        letters.add("bob", b"x" * 1000)
        letters.add("bob", b"two\n")
        letters.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _texts(path) == ["one", "two"]
    assert (letters.written, letters.lost) == (2, 1)


def test_letters_are_lost_and_counted_when_the_queue_is_full(
    path: Path, slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded in bytes, adding never waits, and there is room again once the disk moves."""
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 2 * (module._LETTER_OVERHEAD_BYTES + 4))
    letters = _open(path)
    for text in (b"one\n", b"two\n", b"out\n", b"out\n"):
        letters.add("bob", text)
    assert letters.lost == 2
    slow_disk.set()
    _wait_written(letters, 4)
    letters.add("bob", b"six\n")
    letters.close()
    assert _texts(path) == ["one", "two", "six"]
    assert (letters.written, letters.lost) == (3, 2)


def test_closing_ends_the_thread_when_the_queue_is_full(
    path: Path, slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that was queued is written first; a second time is no error, later letters are lost."""
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", module._LETTER_OVERHEAD_BYTES + 4)
    threads = threading.active_count()
    letters = _open(path)
    assert threading.active_count() == threads + 1
    letters.add("bob", b"one\n")
    letters.add("bob", b"out\n")
    threading.Timer(0.05, slow_disk.set).start()
    letters.close(30)
    letters.close()
    letters.add("bob", b"late\n")
    assert _texts(path) == ["one"]
    assert (letters.written, letters.lost) == (1, 2)
    assert not letters._thread.is_alive()


def test_closing_is_bounded_when_the_disk_hangs(path: Path, slow_disk: threading.Event) -> None:
    """A gateway ends although its disk does not answer."""
    letters = _open(path)
    letters.add("bob", b"one\n")
    letters.close(0.01)
    assert letters._thread.is_alive()
    slow_disk.set()
    letters.close(30)
    assert not letters._thread.is_alive()
    assert _texts(path) == ["one"]


def test_closing_is_quiet_when_the_file_cannot_be_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems tell of a full disk only then."""
    close = os.close

    def close_and_fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOSPC, "full")

    letters = _open(path)
    letters.add("bob", b"one\n")
    _wait_written(letters, 1)
    monkeypatch.setattr(os, "close", close_and_fail)
    letters.close()
    assert letters.written == 1
