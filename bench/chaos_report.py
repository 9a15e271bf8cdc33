"""What a chaos run did, in some lines: blows, times, and what became of the copies."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.chaos_account import ChaosAccount
    from bench.chaos_client import ChaosClient
    from bench.chaos_strikes import Killer
    from bench.chaos_watch import ChaosWatch

__all__ = ["print_summary", "successor_times_s"]


def successor_times_s(watch: ChaosWatch, blows: Sequence[str]) -> list[float]:
    """From each of these blows to when the next process in that place was ready; of those that got ready."""
    processes = list(watch.processes.values())
    found = []
    for index, process in enumerate(processes):
        later = (one for one in processes[index + 1 :] if one.worker == process.worker)
        successor = next(later, None)
        if process.blow in blows and successor is not None and successor.ready_s is not None:
            found.append(successor.ready_s - process.struck_s)
    return found


def print_summary(
    clients: Sequence[ChaosClient], account: ChaosAccount, watch: ChaosWatch, killer: Killer
) -> None:
    """Print it."""
    done: Counter[str] = Counter()
    for client in clients:
        done.update(client.done)
    last = watch.metrics
    print(f"  actions: {_counts(done)}; {sum(one.left_out for one in clients)} sends left out")
    print(f"  blows: {_counts(killer.done)}; {killer.left_out} left out; restarts: {last.get('workers')}")
    kills, hangs = ("kill", "kill twice"), ("hang",)
    print(f"  from a kill to its successor's being ready: {_spread(successor_times_s(watch, kills))}")
    print(f"  from the beginning of a hang to that: {_spread(successor_times_s(watch, hangs))}")
    comebacks = [one for client in clients for one in client.comebacks]
    waits = [one.in_again_s - (one.session.ended_s or 0.0) for one in comebacks]
    print(f"  from a broken connection to the next login of its client: {_spread(waits)}")
    since = []
    for one in comebacks:
        process = watch.process_of(one.session)
        if process is not None and process.blow in kills:
            since.append(one.in_again_s - process.struck_s)
    print(f"  from a kill to that: {_spread(since)}")
    print(f"  clients: {_counts(account.outcomes())}; told: {_counts(account.told())}")
    print(
        f"  gateway: {last.get('accepted')} copies accepted, {last.get('delivered')} delivered, "
        f"refused {last.get('refused_by_reason')}; {account.lost_under_way} lost under way to broken "
        f"connections, {account.overtaken_by_next_session} overtaken by their sender's next session"
    )
    bus = last.get("bus", {})
    print(
        f"  bus: {bus.get('copies_out')} copies out, {bus.get('copies_in')} in; logins: {last.get('logins')}"
    )
    print(f"  sessions ended: {dict(watch.closed)}; breakers opened: {dict(watch.opened)}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"


def _spread(times_s: Iterable[float]) -> str:
    ordered = sorted(times_s)
    if not ordered:
        return "none"
    return f"p50 {ordered[len(ordered) // 2]:.2f} s, max {ordered[-1]:.2f} s ({len(ordered)} times)"
