"""A self-checking run: `python -m bench.stress --seed 7 --seconds 30`.

Dozens of clients connect, send, stall, break off and return, as a plan says that follows from the seed, and
check that nothing is lost, doubled or reordered beyond what they were told. Afterwards nothing may be left
in the gateway. Prints what it did; exit status 1 with what was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from bench.log_watch import LogWatch
from bench.servers import COMMANDS, GATEWAY, Server
from bench.stress_account import Account
from bench.stress_client import Client
from bench.stress_plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.stress_account import SentSession
    from bench.stress_plan import Member

# The ladder and the grace are short, so that each step is taken often within the run.
_SETTINGS = (
    "limits.refused_per_s=0",  # or who was refused a lot is read on for longer than a run may take
    "outbox.max_outbox_bytes=65536",
    "outbox.high_watermark_bytes=32768",
    "outbox.low_watermark_bytes=8192",
    "outbox.send_buffer_bytes=16384",
    "outbox.write_timeout_s=0.5",
    "outbox.min_progress_bytes=1024",
    "outbox.evict_after_s=2.5",
    "outbox.reconnect_grace_s=1",
    "outbox.linger_s=1",
    "retry.max_delay_s=0.2",
    "retry.budget_floor=100",
    "breaker.reset_timeout_s=0.5",
    "metrics.interval_s=0.5",
    "log.flood_per_s=100000",
)
# What may be under way to a client that breaks off: both kernel buffers, which are twice what was asked
# for and counted by the kernel with its own overhead, and one flush.
_WINDOW_BYTES = 131_072
_PROGRESS_S = 5.0  # between two lines about the progress
_QUIET_S = 1.0  # after the plan, before everybody leaves
_SETTLED_S = 3.0  # after everybody has left: grace, linger and two metrics records
_WARM_UP_TIMEOUT_S = 10.0
_EXTRA_S = 60.0  # on top of the plan, or the run has hung


class _Ends(LogWatch):
    """Also keeps why each connection ended; fed by the thread that reads the gateway's output."""

    def __init__(self) -> None:
        super().__init__()
        # (login, port of the client) -> reason
        self.reasons: dict[tuple[str, int], str] = {}
        # logins whose breaker has opened -> how often
        self.opened: Counter[str] = Counter()
        # records that report an error, at most a few
        self.errors: list[str] = []

    def feed(self, line: str) -> None:
        """See `LogWatch`."""
        super().feed(line)
        try:
            record = json.loads(line)
        except ValueError:
            self.errors.append(line)
            return
        if record.get("event") == "session.closed":
            self.reasons[record["login"], record["port"]] = record["reason"]
        elif record.get("event") == "breaker.opened":
            self.opened[record["login"]] += 1
        elif record.get("level") in ("error", "critical"):
            self.errors.append(line)


def run(seed: int, seconds: float, members: int) -> list[str]:
    """One run; returns what was wrong."""
    plan = make_plan(seed, seconds, members)
    account = Account(frozenset(one.login for one in plan if one.manners == "steady"), _WINDOW_BYTES)
    watch = _Ends()
    settings = [word for setting in _SETTINGS for word in ("--set", setting)]
    with Server(COMMANDS[GATEWAY] + settings, watch.feed) as server:
        _warm_up(server.address)
        files_before = server.open_files()
        clients = asyncio.run(_run_clients(plan, server.address, account, seconds))
        time.sleep(_SETTLED_S)
        files_after = server.open_files()
        server.stop()
    faults = account.close()
    faults += _leaks(watch, files_before, files_after, server.exit_status)
    faults += _wrong_ends(account.sessions, {one.login: one.manners for one in plan}, watch)
    _print_summary(clients, account, watch)
    return faults


def _warm_up(address: tuple[str, int]) -> None:
    """One session, since the first one opens files that stay open."""
    with socket.create_connection(address, _WARM_UP_TIMEOUT_S) as sock:
        sock.sendall(b"first\n")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


async def _run_clients(
    plan: list[Member], address: tuple[str, int], account: Account, seconds: float
) -> list[Client]:
    begun_s = time.monotonic()

    def clock() -> float:
        return time.monotonic() - begun_s

    clients = [Client(member, address, account, clock) for member in plan]
    progress_task = asyncio.create_task(_print_progress(account, clock))
    try:
        async with asyncio.timeout(seconds + _EXTRA_S):
            await asyncio.gather(*(client.run() for client in clients))
            await asyncio.sleep(_QUIET_S)
            await asyncio.gather(*(client.finish() for client in clients))
    except TimeoutError:
        account.fault(f"the clients were not done {_EXTRA_S} s after the end of their plan")
    finally:
        progress_task.cancel()
    return clients


async def _print_progress(account: Account, clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        sessions = sum(one.ended_s is None for one in account.sessions)
        print(
            f"  {clock():5.1f} s: {sessions} sessions, {account.received_total} messages received, "
            f"{len(account.faults)} faults",
            flush=True,
        )


def _leaks(watch: _Ends, files_before: int, files_after: int, exit_status: int | None) -> list[str]:
    """What is left in the gateway when all clients have gone, and what its log says of errors."""
    last = watch.metrics
    left = {name: last.get(name) for name in ("in_flight", "buffered_bytes", "sessions", "connections")}
    left["logins_in_grace"] = last.get("logins_in_grace")
    left["parked_copies"] = last.get("outbox", {}).get("parked_copies")
    left["pending_bytes"] = last.get("outbox", {}).get("pending_bytes")
    faults = [f"{name} is {value} at the end" for name, value in left.items() if value != 0]
    if watch.unbalanced:
        faults.append(f"the sum did not hold in {watch.unbalanced} metrics records")
    if files_after != files_before:
        faults.append(f"{files_after} open files at the end, {files_before} at the beginning")
    if exit_status != 0:
        faults.append(f"the gateway's exit status is {exit_status}")
    return faults + [f"in the log: {line.strip()[:2000]}" for line in watch.errors[:5]]


def _wrong_ends(sessions: list[SentSession], manners: dict[str, str], watch: _Ends) -> list[str]:
    """Sessions that ended for a reason that their client gave no cause for."""
    faults = []
    for session in sessions:
        if not session.is_in:
            continue
        reason = watch.reasons.get((session.login, session.port), "none in the log")
        if session.is_complete:
            allowed = {"client_closed"}
        elif manners[session.login] == "rude":
            allowed = {"client_closed", "client_lost", "slow_consumer"}
        else:
            allowed = set()
        if reason not in allowed:
            faults.append(
                f"{session.login} (session {session.number}, port {session.port}) ended at "
                f"{session.ended_s} s: {reason}"
            )
    faults += [
        f"the breaker of {login} opened {count} times though it always reads"
        for login, count in watch.opened.items()
        if manners.get(login) != "rude"
    ]
    return faults


def _print_summary(clients: list[Client], account: Account, watch: _Ends) -> None:
    done: Counter[str] = Counter()
    for client in clients:
        done.update(client.done)
    last = watch.metrics
    print("  actions: " + ", ".join(f"{count} {kind}" for kind, count in sorted(done.items())))
    print(f"  left out, since the client was held up: {sum(client.left_out for client in clients)}")
    print(
        f"  sessions: {last.get('logins')}, ended: {dict(watch.closed)}, breakers opened: "
        f"{watch.opened.total()}, slowest return: {max(one.slowest_return_s for one in clients):.2f} s"
    )
    print(
        f"  copies: {last.get('accepted')} accepted, {last.get('delivered')} delivered, "
        f"{last.get('refused_by_reason')} refused; {account.received_total} received, "
        f"{account.lost_under_way} lost under way to clients that broke off, "
        f"{account.overtaken_by_next_session} overtaken by their sender's next session"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once; 0 if all was well."""
    parser = argparse.ArgumentParser(prog="bench.stress", description="A self-checking run.")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the plan (default: the time)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the plan")
    parser.add_argument("--clients", type=int, default=48, help="how many take part")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}: {options.clients} clients, {options.seconds:g} s", flush=True)
    faults = run(options.seed, options.seconds, options.clients)
    for fault in faults:
        print(f"  FAULT: {fault}")
    again = f"python -m bench.stress --seed {options.seed} --seconds {options.seconds:g}"
    print(f"{len(faults)} faults; again with: {again} --clients {options.clients}" if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
