"""What was wrong in a chaos run beside its account: processes and sessions that ended without cause, and what
is left over at the end. Asks what was written down in the course of the run; reads nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bench.chaos_account import ChaosAccount
    from bench.chaos_strikes import Stop
    from bench.chaos_watch import ChaosWatch
    from bench.stress_account import SentSession

__all__ = ["count_as_broken", "left_over", "note_stops", "wrong_deaths", "wrong_ends"]

_NEAR_S = 3.0  # from a blow until a client of that worker knows
_BY_CLIENT = ("client_closed", "client_lost")
_EMPTY = (
    *("in_flight", "buffered_bytes", "sessions", "connections", "logins_in_grace"),
    *("outbox.parked_copies", "outbox.pending_bytes", "bus.pending_bytes", "bus.held_logins", "bus.places"),
)
_HUNG = "no sign of life"


def note_stops(account: ChaosAccount, watch: ChaosWatch, stops: Iterable[Stop]) -> None:
    """Tell the account whose workers stood still when."""
    by_pid: dict[int, list[tuple[float, float]]] = {}
    for stop in stops:
        by_pid.setdefault(stop.pid, []).append((stop.begin_s, stop.end_s))
    for (login, _), pid in watch.places.items():
        account.stood_still_s.setdefault(login, []).extend(by_pid.get(pid, []))


def count_as_broken(account: ChaosAccount, watch: ChaosWatch) -> None:
    """To a client that is leaving, its worker's death looks like an end in order: tell the account."""
    for session in account.sessions:
        process = watch.process_of(session)
        is_dead = process is None or process.blow
        if session.is_complete and is_dead and watch.reason_of(session) is None:
            session.is_complete = False
            account.break_off(session.login, session.ended_s or 0.0)


def wrong_ends(account: ChaosAccount, watch: ChaosWatch) -> list[str]:
    """Sessions that ended though neither their client nor the end of their worker gave cause for it."""
    return [
        f"{session.login} (session {session.number}, port {session.port}) ended at {session.ended_s} s "
        f"without cause: {watch.reason_of(session)}, on {watch.process_of(session)}"
        for session in account.sessions
        if session.is_in and not _has_cause(session, account, watch)
    ]


def _has_cause(session: SentSession, account: ChaosAccount, watch: ChaosWatch) -> bool:
    reason = watch.reason_of(session)
    if session.is_complete:
        return reason == "client_closed"
    if session.number in account.vanished and reason in _BY_CLIENT:
        return True
    process = watch.process_of(session)
    if process is not None:
        return bool(process.blow) and process.ended_s is not None
    ended_s = session.ended_s or 0.0  # its worker died before it could say that it was there
    return any(one.blow and abs(ended_s - one.struck_s) < _NEAR_S for one in watch.processes.values())


def wrong_deaths(watch: ChaosWatch) -> list[str]:
    """Processes that ended though nothing was done to them, or in another way than that."""
    faults = []
    for process in watch.processes.values():
        if process.blow:
            is_right = process.end == "SIGKILL" and (process.blow == "hang") == (process.kill_reason == _HUNG)
        else:
            is_right = process.end == "stopped"
        if not is_right:
            faults.append(f"a worker ended as it should not: {process}")
    return faults


def left_over(
    watch: ChaosWatch, last: Mapping[str, Any], files_more: int, exit_status: int | None
) -> list[str]:
    """What is left in the gateway when all clients have gone, and what its log says.

    Args:
        watch: at the end.
        last: the metrics record before the gateway was told to end.
        files_more: that the supervisor has open, beyond what it had at the beginning.
        exit_status: of the supervisor.
    """
    values = {name: _value(last, name) for name in _EMPTY}
    faults = [f"{name} is {value} at the end" for name, value in values.items() if value != 0]
    struck = sum(bool(one.blow) for one in watch.processes.values())
    if (restarts := _value(last, "workers.restarts")) != struck:
        faults.append(f"{restarts} restarts were counted, {struck} workers were made to die")
    if watch.unbalanced:
        faults.append(f"the sum did not hold in {watch.unbalanced} metrics records")
    if files_more:
        faults.append(f"the supervisor has {files_more} files more open than at the beginning")
    if exit_status != 0:
        faults.append(f"the gateway's exit status is {exit_status}")
    return faults + [f"in the log: {line.strip()[:2000]}" for line in watch.errors[:5]]


def _value(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
