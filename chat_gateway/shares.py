"""What of the gateway's limits each of several workers has.

The kernel spreads connections by hash, not evenly, so each worker may have a quarter more of them than its
even part; memory is divided evenly, so that the parts make up the whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chat_gateway.config import Config

__all__ = ["share_of", "worker_count"]


def worker_count(wanted: int | Literal["auto"]) -> int:
    """How many workers `runtime.workers` means on this machine; `auto`: as many as it may use processors."""
    return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted


def share_of(config: Config, workers: int) -> Config:
    """The configuration of one of several workers; with one, the gateway's own."""
    if workers == 1:
        return config
    limits = config.limits
    share = {
        "max_connections": min(-(-limits.max_connections * 5 // (workers * 4)), limits.max_connections),
        "max_buffered_bytes": limits.max_buffered_bytes // workers,
    }
    return config.model_copy(update={"limits": limits.model_copy(update=share)})
