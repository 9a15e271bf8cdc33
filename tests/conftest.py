"""Fixtures for every test: the suite runs on asyncio and, where it is installed, on uvloop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat_gateway.gateway import loop_factory

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable



def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test once on each event loop there is."""
    factories = (loop_factory(name) for name in ("asyncio", "auto"))
    return {name: factory for factory, name in factories}
