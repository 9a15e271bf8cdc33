"""From a snapshot of what is counted to the fields of a `metrics` record.

A snapshot is plain nested data that can be sent to another process: counters, gauges, and durations as
`Histogram.to_data` gives them. What follows from these (percentiles, shares, sums) is worked out here, and
so in the same way for one worker and for all of them added up. Must not know who counts what.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pipeline.histogram import Histogram

__all__ = ["Snapshot", "render"]

Snapshot: TypeAlias = dict[str, Any]
"""Named like the fields of a record and in their order; a list of numbers is a histogram."""

# They come first, before what is worked out from the others.
_FIRST = ("interval_s", "accepted", "delivered", "stored")


def render(snapshot: Snapshot) -> dict[str, Any]:
    """The fields of a record, as docs/metrics.md explains them."""
    interval_s = snapshot["interval_s"]
    record = {name: _rendered(value) for name, value in snapshot.items()}
    record["interval_s"] = round(interval_s, 3)
    record["stages"] = {name: _stage(stage, interval_s) for name, stage in record["stages"].items()}
    refused = sum(record["refused_by_reason"].values())
    return {**{name: record[name] for name in _FIRST}, "refused": refused, **record}


def _rendered(value: Any) -> Any:
    """The same with percentiles in place of histograms."""
    if isinstance(value, dict):
        return {name: _rendered(each) for name, each in value.items()}
    return _percentiles(Histogram.from_data(value)) if isinstance(value, list) else value


def _percentiles(histogram: Histogram) -> dict[str, int]:
    return {
        "p50": histogram.quantile_us(0.5),
        "p99": histogram.quantile_us(0.99),
        "max": histogram.max_us,
    }


def _stage(stage: dict[str, Any], interval_s: float) -> dict[str, Any]:
    """With what follows: `interval_s` is over how many seconds `busy_s` was added up."""
    return {
        **{name: stage[name] for name in ("in", "out", "refused", "depth", "peak", "capacity")},
        "free": max(stage["capacity"] - stage["depth"], 0),
        "waiting": stage["waiting"],
        "busy_share": round(stage["busy_s"] / interval_s, 4) if interval_s else 0.0,
        **{name: stage[name] for name in ("send_wait_us", "time_in_stage_us")},
    }
