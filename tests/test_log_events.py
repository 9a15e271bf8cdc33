"""docs/logs.md explains exactly the events that the code can write."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_WRITTEN = re.compile(r"\.(?:debug|info|warning|error)\(\s*(?P<what>(?:[^()]|\n)*?)[,)]")
_EVENT = re.compile(r'"([a-z]+\.[a-z_]+)"')
_EXPLAINED = re.compile(r"^\| `([a-z]+\.[a-z_]+|metrics)` \|", re.MULTILINE)


def written_events() -> set[str]:
    """Every event name that is given to a logger in place."""
    found = {"metrics"}
    for path in (ROOT / "chat_gateway").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in _WRITTEN.finditer(text):
            found |= set(_EVENT.findall(call["what"]))
    return found


def test_every_event_is_explained_that_the_code_can_write() -> None:
    """An operator finds each record of the log on the page."""
    explained = set(_EXPLAINED.findall((ROOT / "docs" / "logs.md").read_text(encoding="utf-8")))
    assert written_events() - explained == set()


def test_every_event_that_is_explained_is_named_in_the_code() -> None:
    """Nothing is promised that the code does not know."""
    explained = set(_EXPLAINED.findall((ROOT / "docs" / "logs.md").read_text(encoding="utf-8")))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "chat_gateway").glob("*.py"))
    assert {name for name in explained if f'"{name}"' not in code} == set()
