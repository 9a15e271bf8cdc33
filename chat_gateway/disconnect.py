"""Why a connection ends: reasons for the log, labels for metrics, and words for the last Notice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Disconnect", "Reason"]


@dataclass(frozen=True, slots=True)
class Reason:
    label: str  # in logs and metrics
    word: str = ""  # machine word of the last Notice; empty for none
    words: str = ""  # what the Notice says to people


class Disconnect:
    """The reasons there are."""

    CLIENT_CLOSED = Reason("client_closed")
    CLIENT_LOST = Reason("client_lost")  # reset, or gone without a word
    NOT_LINE_PROTOCOL = Reason("not_line_protocol")  # HTTP, TLS, binary data
    BAD_LOGIN = Reason("bad_login", "bad-login", "that login is not allowed")
    LOGIN_TAKEN = Reason("login_taken", "login-taken", "someone is logged in under that name")
    LOGIN_TIMEOUT = Reason("login_timeout", "login-timeout", "no login came in time")
    LINE_TOO_LONG = Reason("line_too_long", "line-too-long", "a line is longer than allowed")
    BUSY = Reason("busy", "busy", "too many connections, try again later")
    SHUTDOWN = Reason("shutdown", "shutdown", "the gateway stops")
    RESTARTING = Reason("restarting", "restarting", "connect again")
    SLOW_CONSUMER = Reason("slow_consumer", "slow-consumer", "you did not read what was sent to you")
    ERROR = Reason("error", "error", "something went wrong in the gateway")
