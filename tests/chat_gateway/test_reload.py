"""The configuration that is read again: what is taken, what stays, and what is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from chat_gateway import reload
from chat_gateway.config_sources import ConfigError, Problem
from chat_gateway.process import CannotStartError
from chat_gateway.reload import Reload, changed_keys
from tests.chat_gateway.fakes import FakeLog, configured

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from chat_gateway.config import Config

PROBLEMS = [Problem("log.level", "is bad", "good ones", "a file"), Problem("x", "is no key", "y", "a file")]


def made(load: Callable[[], Config], *sets: str) -> tuple[Reload, FakeLog]:
    """A reload of a gateway that runs with these keys set."""
    log = FakeLog()
    return Reload(configured(*sets), load, cast("FilteringBoundLogger", log.logger)), log


def bad() -> Config:
    """A configuration with two problems."""
    raise ConfigError(PROBLEMS)


def test_changed_keys_are_named_with_their_tables_in_order() -> None:
    """Those inside tables of tables too."""
    new = configured("stages.route.capacity=7", "limits.max_recipients=3", "runtime.workers=5")
    assert list(changed_keys(configured(), new)) == [
        "limits.max_recipients",
        "stages.route.capacity",
        "runtime.workers",
    ]
    assert list(changed_keys(new, new)) == []


def test_take_returns_the_new_configuration_but_for_what_needs_a_new_start() -> None:
    """Addresses, the number of workers and the supervisor's own keys stay, and are named."""
    new = configured(
        'listen="line://127.0.0.1:9"', "runtime.workers=3", "supervisor.max_restarts=9", "log.level=debug"
    )
    reloaded, log = made(lambda: new, "runtime.workers=2")
    taken = reloaded.take()
    old = configured("runtime.workers=2")
    assert taken == old.model_copy(update={"log": new.log})
    assert log.found("config.taken") == [
        {
            "changed": ["log.level"],
            "needs_restart": ["listen", "runtime.workers", "supervisor.max_restarts"],
        }
    ]


def test_take_compares_with_what_was_taken_last() -> None:
    """Not with what the gateway was started with."""
    reloaded, log = made(lambda: configured("log.level=debug"))
    reloaded.take()
    reloaded.take()
    assert [record["changed"] for record in log.found("config.taken")] == [["log.level"], []]


@pytest.mark.parametrize("action", ["take", "check_only"])
def test_bad_configuration_is_reported_with_every_problem(action: str) -> None:
    """And nothing is taken."""
    reloaded, log = made(bad)
    before = reloaded.config
    assert getattr(reloaded, action)() is None
    assert reloaded.config is before
    assert log.found("config.refused") == [{"problems": [str(problem) for problem in PROBLEMS]}]
    assert len(log.errors) == 1


def test_configuration_is_bad_when_its_loop_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only be found out by workers that cannot start."""

    def loop_factory(_name: str) -> None:
        raise CannotStartError("runtime.loop is uvloop, which is not installed here")

    monkeypatch.setattr(reload, "loop_factory", loop_factory)
    reloaded, log = made(configured)
    assert reloaded.take() is None
    assert log.found("config.refused")[0]["problems"][0].startswith("runtime.loop is uvloop")


def test_check_only_says_what_would_change() -> None:
    """With one worker nothing does."""
    reloaded, log = made(lambda: configured("log.level=debug"))
    before = reloaded.config
    reloaded.check_only()
    assert reloaded.config is before
    assert log.found("config.checked")[0]["changed"] == ["log.level"]
