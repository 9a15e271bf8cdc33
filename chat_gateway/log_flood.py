"""The limit on log records that peers can cause at will.

A structlog processor that lets a number of records a second pass for each (event, reason, address) and for
each event, and reports how many it left out. Must not know how a record is rendered or where it goes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from structlog import DropEvent

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

# Keys remembered at once. One takes about 700 bytes with the default limit, so all of them take 3 MB.
MAX_KEYS: Final = 4_096

# Records and reports of one event, over all addresses, in multiples of the limit of one key.
EVENT_FACTOR: Final = 10

# Event names are constants of the program. This bounds the table if somebody's code makes them up.
_MAX_EVENTS: Final = 256
_OTHER_EVENTS: Final = "*"

# Bounds the memory of a key; the longest address (IPv6 with a zone) is shorter.
_MAX_KEY_CHARS: Final = 64

_WINDOW_S: Final = 1.0

Key = tuple[str, str, str]
"""Event, reason and address; the last two are empty where a record has none."""


class _Window:
    """At most `limit` moments in any second; the oldest moment is overwritten when it is a second old."""

    __slots__ = ("_limit", "_moments", "_oldest")

    def __init__(self, limit: int) -> None:
        # Moments that fit into one second.
        self._limit = limit
        # The latest moments; grows up to the limit, then used in a circle.
        self._moments: list[float] = []
        # Index of the oldest moment once the circle is full.
        self._oldest = 0

    def is_free(self, now: float) -> bool:
        return len(self._moments) < self._limit or now - self._moments[self._oldest] >= _WINDOW_S

    def take(self, now: float) -> None:
        if len(self._moments) < self._limit:
            self._moments.append(now)
            return
        self._moments[self._oldest] = now
        self._oldest = (self._oldest + 1) % self._limit


class _KeyState(_Window):
    """What is known of one key."""

    __slots__ = ("left_out", "since")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        # Records left out and not yet reported.
        self.left_out = 0
        # When the first of them was left out.
        self.since = 0.0


class _EventState(_Window):
    """What is known of one event over all its keys."""

    __slots__ = ("forgotten_keys", "forgotten_records")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        # Unreported records of keys that had to leave the table, and how many keys those were.
        self.forgotten_records = 0
        self.forgotten_keys = 0


class LogFlood:
    """Leaves records out, counts them and reports the counts.

    Created by `open_log`, closed by `Log.close` through `flush(is_final=True)`; runs in whatever thread logs.

    In any second and for each event there are at most 10 × `flood_per_s` lines: nine parts are for records,
    one is for reports, so that a lasting flood from many addresses cannot crowd out the news of itself.
    """

    def __init__(
        self,
        flood_per_s: int,
        *,
        clock: Callable[[], float],
        never_limited: frozenset[str],
        report: Callable[[dict[str, object]], None],
        max_keys: int = MAX_KEYS,
    ) -> None:
        """Start with nothing counted.

        Args:
            flood_per_s: records of one key in any second, at least 1.
            clock: monotonic seconds.
            never_limited: events that always pass.
            report: takes the fields of a report: `of` (the event), `count`, and either `reason` and `address`
                as far as the records had them, or `keys` (how many keys) when it is a sum.
            max_keys: keys remembered; the one unused longest goes, and its count goes into a sum.

        Raises:
            ValueError: `flood_per_s` is less than 1.
        """
        if flood_per_s < 1:
            raise ValueError("flood_per_s must be at least 1")
        # Records of one key in any second; also the reports of one event.
        self._flood_per_s = flood_per_s
        # Monotonic seconds.
        self._clock = clock
        # Events that always pass.
        self._never_limited = never_limited
        # Where reports go; called without the lock.
        self._report = report
        # Bound of `_keys`.
        self._max_keys = max_keys
        # Keys, the one unused longest first.
        self._keys: OrderedDict[Key, _KeyState] = OrderedDict()
        # Keys with unreported records, the one that waits longest first.
        self._waiting: OrderedDict[Key, _KeyState] = OrderedDict()
        # Events seen.
        self._events: dict[str, _EventState] = {}
        # Events with counts of forgotten keys.
        self._forgetful: dict[str, _EventState] = {}
        # Before this moment no reports are made.
        self._next_reports_at = clock()
        # Guards all tables. Re-entrant, since a finaliser may log in the middle of a call.
        self._lock = threading.RLock()
        # All records ever left out.
        self.left_out = 0

    def __call__(
        self, logger: object, method_name: str, event_dict: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Let a record pass, with the number left out before it in the field `left_out`.

        Raises:
            DropEvent: this one is left out.
        """
        now = self._clock()
        key = _key_of(event_dict)
        with self._lock:
            # First, so that a record that may pass carries its own count.
            left_out = 0 if key[0] in self._never_limited else self._admit(key, now)
            reports = self._due_reports(now, is_final=False)
        for fields in reports:
            self._report(fields)
        if left_out is None:
            raise DropEvent
        if left_out:
            event_dict["left_out"] = left_out
        return event_dict

    def flush(self, *, is_final: bool = False) -> None:
        """Report counts older than a second, at most once a second; the final call reports all of them."""
        with self._lock:
            reports = self._due_reports(self._clock(), is_final=is_final)
        for fields in reports:
            self._report(fields)

    def _admit(self, key: Key, now: float) -> int | None:
        """How many were left out before this record, or None when it is left out itself."""
        event = self._events.get(key[0]) or self._add_event(key[0])
        state = self._keys.get(key)
        if state is None:
            state = self._add_key(key)
        else:
            self._keys.move_to_end(key)
        if state.is_free(now) and event.is_free(now):
            state.take(now)
            event.take(now)
            return self._settle(key, state)
        self.left_out += 1
        if not state.left_out:
            state.since = now
            self._waiting[key] = state
        state.left_out += 1
        return None

    def _add_event(self, name: str) -> _EventState:
        if len(self._events) >= _MAX_EVENTS:
            name = _OTHER_EVENTS
        return self._events.setdefault(name, _EventState((EVENT_FACTOR - 1) * self._flood_per_s))

    def _event_name(self, key: Key) -> str:
        """The event under which the table knows the one of this key."""
        return key[0] if key[0] in self._events else _OTHER_EVENTS

    def _add_key(self, key: Key) -> _KeyState:
        if len(self._keys) >= self._max_keys:
            self._forget_oldest()
        state = self._keys[key] = _KeyState(self._flood_per_s)
        return state

    def _forget_oldest(self) -> None:
        key, state = self._keys.popitem(last=False)
        if count := self._settle(key, state):
            name = self._event_name(key)
            event = self._forgetful[name] = self._events[name]
            event.forgotten_records += count
            event.forgotten_keys += 1

    def _settle(self, key: Key, state: _KeyState) -> int:
        """Take the count of a key; somebody is being told about it."""
        count = state.left_out
        if count:
            state.left_out = 0
            del self._waiting[key]
        return count

    def _due_reports(self, now: float, *, is_final: bool) -> list[dict[str, object]]:
        if now < self._next_reports_at and not is_final:
            return []
        ripe: dict[str, list[tuple[int, Key]]] = {event: [] for event in self._forgetful}
        for key in self._ripe_keys(now, is_final=is_final):
            ripe.setdefault(self._event_name(key), []).append((self._settle(key, self._waiting[key]), key))
        if ripe:
            self._next_reports_at = now + _WINDOW_S
        return [fields for event, counts in ripe.items() for fields in self._reports_of(event, counts)]

    def _ripe_keys(self, now: float, *, is_final: bool) -> list[Key]:
        """Keys that are quiet: a busy one would have reported its count itself within a second."""
        latest = now if is_final else now - _WINDOW_S
        if not self._waiting or next(iter(self._waiting.values())).since > latest:
            return []
        return [key for key, state in list(self._waiting.items()) if state.since <= latest]

    def _reports_of(self, event: str, counts: list[tuple[int, Key]]) -> list[dict[str, object]]:
        """At most `flood_per_s` reports: the largest counts one by one, the others as a sum."""
        forgotten = self._forgetful.pop(event, None)
        if forgotten is None and len(counts) <= self._flood_per_s:
            return [_report_of(count, key) for count, key in counts]
        counts.sort(key=lambda pair: pair[0], reverse=True)
        single, rest = counts[: self._flood_per_s - 1], counts[self._flood_per_s - 1 :]
        total, keys = sum(count for count, _ in rest), len(rest)
        if forgotten is not None:
            total, keys = total + forgotten.forgotten_records, keys + forgotten.forgotten_keys
            forgotten.forgotten_records = forgotten.forgotten_keys = 0
        summed: dict[str, object] = {"of": event, "count": total, "keys": keys}
        return [*(_report_of(count, key) for count, key in single), summed]


def _report_of(count: int, key: Key) -> dict[str, object]:
    event, reason, address = key
    fields: dict[str, object] = {"of": event, "count": count}
    if reason:
        fields["reason"] = reason
    if address:
        fields["address"] = address
    return fields


def _key_of(event_dict: MutableMapping[str, Any]) -> Key:
    """The key of a record; its address is the field `address`, or else the host in a `peer` of host:port."""
    address = event_dict.get("address")
    if address is None:
        address = event_dict.get("peer")
        if type(address) is str:
            address = address.rpartition(":")[0] or address
    return _key_text(event_dict.get("event")), _key_text(event_dict.get("reason")), _key_text(address)


def _key_text(value: object) -> str:
    """A short text for a part of a key, whatever the value is."""
    if type(value) is str:
        return value[:_MAX_KEY_CHARS]
    if value is None:
        return ""
    try:
        return str(value)[:_MAX_KEY_CHARS]
    except Exception:
        return type(value).__name__
