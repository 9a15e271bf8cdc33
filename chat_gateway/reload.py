"""Reading the configuration again while the gateway runs.

Knows nothing of who puts it into force; says in the log what is wrong with it or what it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat_gateway.config_section import Section
from chat_gateway.config_sources import ConfigError
from chat_gateway.process import CannotStartError, loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from chat_gateway.config import Config

__all__ = ["Reload", "changed_keys"]

# What belongs to the whole gateway and holds until it is started anew.
_FIXED = ("listen", "runtime.workers", "supervisor.")


class Reload:
    """Made by who runs the gateway; used in its loop.

    Args:
        config: what is in force.
        load: reads the effective configuration again, raises `ConfigError`.
        log: where the result is told.
    """

    def __init__(self, config: Config, load: Callable[[], Config], log: FilteringBoundLogger) -> None:
        self.config = config
        self._load = load
        self._log = log

    def check_only(self) -> None:
        """Say whether it could be used and what it would change; nothing changes."""
        config = self._read()
        if config is not None:
            changed = list(changed_keys(self.config, config))
            self._log.info(
                "config.checked", changed=changed, hint="one worker is not replaced: restart the gateway"
            )

    def take(self) -> Config | None:
        """What is to be in force from now on; None, and a record of what is wrong, when it cannot be used."""
        config = self._read()
        if config is None:
            return None
        changed = list(changed_keys(self.config, config))
        fixed = [key for key in changed if key.startswith(_FIXED)]
        self._log.info(
            "config.taken", changed=[key for key in changed if key not in fixed], needs_restart=fixed
        )
        runtime = config.runtime.model_copy(update={"workers": self.config.runtime.workers})
        kept = {"listen": self.config.listen, "runtime": runtime, "supervisor": self.config.supervisor}
        self.config = config.model_copy(update=kept)
        return self.config

    def _read(self) -> Config | None:
        try:
            config = self._load()
            loop_factory(config.runtime.loop)
        except ConfigError as error:
            self._log.error("config.refused", problems=[str(problem) for problem in error.problems])
            return None
        except CannotStartError as error:
            self._log.error("config.refused", problems=[str(error)])
            return None
        return config


def changed_keys(old: Section, new: Section, table: str = "") -> Iterator[str]:
    """The keys that have another value, with their tables, in the order of the models."""
    for name in type(old).model_fields:
        was, is_now = getattr(old, name), getattr(new, name)
        if isinstance(was, Section):
            yield from changed_keys(was, is_now, f"{table}{name}.")
        elif was != is_now:
            yield table + name
