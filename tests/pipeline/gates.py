"""What the tests of stages work with: a handler that ends when told to, and stages that are quickly made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pipeline.stage import Stage
from pipeline.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """An asynchronous handler in which each item stays until it is let out."""

    def __init__(self) -> None:
        self.inside: dict[Any, asyncio.Future[Any]] = {}  # in the order they came
        self.began: list[Any] = []
        self.most = 0  # most items inside at once

    async def __call__(self, item: Any) -> Any:
        self.began.append(item)
        future = self.inside[item] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.inside))
        try:
            return await future
        finally:
            del self.inside[item]

    def let_out(self, item: Any) -> None:
        """The handler returns what it was given."""
        self.inside[item].set_result(item)

    def let_fail(self, item: Any, error: BaseException) -> None:
        """The handler raises."""
        if isinstance(error, asyncio.CancelledError):
            self.inside[item].cancel()
        else:
            self.inside[item].set_exception(error)


class Failures:
    """An `on_error` that writes down what it is told."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.errors: list[Exception] = []

    def __call__(self, item: Any, error: Exception) -> None:
        self.items.append(item)
        self.errors.append(error)


def no_errors(item: Any, error: Exception) -> None:
    """An `on_error` for stages that must not fail."""
    raise AssertionError(f"{item} failed") from error


def pass_through(item: Any) -> Any:
    """A synchronous handler that returns what it was given."""
    return item


def stage(
    handler: Callable[[Any], Any] = pass_through,
    *,
    name: str = "stage",
    capacity: int = 100,
    on_error: Callable[[Any, Exception], None] = no_errors,
    **options: Any,
) -> Stage[Any, Any]:
    """A stage with defaults for everything."""
    return Stage(name, handler, capacity=capacity, on_error=on_error, **options)


def accepted(first: Stage[Any, Any], item: Any, weight: int = 1) -> list[Any]:
    """Offer an item; the list is empty until it has been accepted, then it holds the item."""
    entered: list[Any] = []
    if first.input.offer(item, weight, lambda: entered.append(item)):
        entered.append(item)
    return entered


def first(item: tuple[Any, ...]) -> Any:
    """The key of a tuple: what stands first."""
    return item[0]


def running(*stages: Stage[Any, Any]) -> Topology:
    """A topology of these that has been started."""
    topology = Topology(stages)
    topology.start()
    return topology
