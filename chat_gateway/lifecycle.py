"""Where a connection is in its life, and what keeps it from reading for a moment."""

from __future__ import annotations

import enum

__all__ = ["CLAIMING", "HELD_BACK", "MAX_DISCARDED_BYTES", "NO_ROOM", "OPEN", "TURN_OVER", "State"]

# What a peer may still send after we closed our side before it is reset: more than the kernels of both
# sides hold between them (tcp_rmem and tcp_wmem are 6 and 4 MiB by default), or a busy sender that stops
# at once would be reset all the same. `linger_s` bounds it in time.
MAX_DISCARDED_BYTES = 16 << 20

# What keeps a connection from reading for a moment.
NO_ROOM = 1  # a block of its own stands in line at the parse stage
TURN_OVER = 2  # it has brought enough for this turn of the loop
HELD_BACK = 4  # it has said too much lately
CLAIMING = 8  # it is not known yet whether it gets its login


class State(enum.IntEnum):
    """Where a connection is in its life; only ever goes up."""

    NEW = 0  # constructed, no transport yet
    LOGIN = 1  # its first line has not come
    CLAIMING = 2  # its login is asked for
    OPEN = 3  # logged in
    LEAVING = 4  # the peer has ended its stream; its copies are waited for
    FLUSHING = 5  # we end it: what is pending goes out
    LINGERING = 6  # our side is shut down; reading and throwing away until the peer closes
    CLOSED = 7


OPEN = State.OPEN  # for each read: a member of an enumeration takes ten times as long to find
