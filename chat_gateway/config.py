"""What can be configured: every key with its default, its range and what it does.

The defaults of these models are the packaged defaults, and the text below each key is its comment in
`configs/gateway.toml`. Knows nothing of files, environment variables or options: that is `config_sources`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.config_process import (
    BusConfig,
    LogConfig,
    MetricsConfig,
    RuntimeConfig,
    ShutdownConfig,
    SupervisorConfig,
)
from chat_gateway.config_section import Rise, Section
from chat_gateway.listen_address import ListenAddress


def _listen_address(value: object) -> ListenAddress:
    if isinstance(value, ListenAddress):
        return value
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str):
        raise PydanticCustomError("listen_item", "has no url that is a string")
    try:
        return ListenAddress.from_url(url)
    except ValueError as error:
        raise PydanticCustomError("listen_url", "{why}", {"why": str(error)}) from None


class LimitsConfig(Section):
    """What one connection, and all of them together, may take."""

    rises = (Rise("max_line_bytes", "max_read_bytes"),)

    max_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    """Connections at the same time. Choose it with the memory that `chat-gateway check` prints, and keep
    it below the number of files the process may open (`ulimit -n`).
    """
    at_limit: Literal["wait", "busy"] = "wait"
    """What happens at max_connections: "wait" leaves new connections in the queue of the kernel, "busy"
    answers `! busy` and closes. Choose busy when clients know another gateway to try.
    """
    max_line_bytes: int = Field(default=16_384, ge=128, le=1_048_576)
    """The longest line a client may send; a longer one ends its connection. Choose the longest message of
    your users with its recipients, in bytes of UTF-8.
    """
    max_read_bytes: int = Field(default=65_536, ge=128, le=16_777_216)
    """What one connection may bring in one turn of the event loop, at least max_line_bytes. Choose less to
    be fairer to the others, more for larger batches.
    """
    max_recipients: int = Field(default=256, ge=1, le=65_536)
    """Recipients of one line; a line with more is refused. Choose the largest group your users write to."""
    login_timeout_s: float = Field(default=10.0, ge=0.01, le=3600)
    """Seconds a new connection has to send its login. Lower it when idle strangers use connections up."""
    max_inflight_messages: int = Field(default=4096, ge=1, le=1_000_000)
    """Lines of one session that were read and have no outcome yet; beyond them its socket is not read.
    Choose its peak rate in lines/s × the longest delay in seconds.
    """
    max_inflight_bytes: int = Field(default=262_144, ge=1024, le=1_073_741_824)
    """The same credit in bytes. Every connection may use its own up, so lower it when the memory that
    `chat-gateway check` prints is too much.
    """
    refused_per_s: float = Field(default=10.0, ge=0, le=1_000_000)
    """Refused lines of one session a second; beyond them its socket is not read for a while, so that being
    refused is not free. Choose what an honest client may get wrong; 0 for no limit.
    """
    refused_burst: int = Field(default=20, ge=1, le=10_000_000)
    """Refused lines of one session that may come at once before refused_per_s applies; one that is refused
    for a part of its recipients counts as that part. Choose the most an honest client may get wrong at once.
    """
    messages_per_s: float = Field(default=0.0, ge=0, le=10_000_000)
    """Messages of one session a second; beyond them its socket is not read for a while, nothing is refused.
    Choose several times what a person or bot needs; 0 for no limit.
    """
    messages_burst: int = Field(default=1000, ge=1, le=10_000_000)
    """Messages of one session that may come at once before messages_per_s applies. Choose the longest
    burst of an honest client.
    """
    connections_per_address: int = Field(default=64, ge=0, le=1_000_000)
    """Connections from one address at the same time; further ones are answered `! busy`. Addresses of IPv6
    count by their /64, since one host may have all of that. Choose more where many users share an address;
    0 for no limit.
    """
    new_connections_per_s: float = Field(default=0.0, ge=0, le=100_000)
    """New connections from one address (of IPv6: from one /64) a second; those beyond are not read for a
    while, after which their login_timeout_s begins. Those that would wait as long as that or longer are
    answered `! busy`. Choose it when strangers reconnect too fast; 0 for no limit.
    """
    new_connections_burst: int = Field(default=50, ge=1, le=100_000)
    """New connections from one address that may come at once before new_connections_per_s applies. Choose
    how many users behind one address reconnect together.
    """
    limit_loopback: bool = Field(default=False)
    """Whether the limits for an address hold for this machine itself too. Choose true when a proxy on this
    machine does not connect for others.
    """
    max_buffered_bytes: int = Field(default=1_073_741_824, ge=1_048_576, le=1_099_511_627_776)
    """Bytes of messages in the whole gateway. At 85 % the sessions that hold most are no longer read, at
    95 % new connections are answered `! busy`. Choose half of the memory you give the gateway.
    """
    notices: bool = True
    """Whether the gateway tells clients what went wrong, in lines that begin with `! `. Choose false only
    for clients that cannot stand such lines.
    """


class StageConfig(Section):
    """The bounds of one stage of the pipeline."""

    capacity: int = Field(default=16_384, ge=1, le=10_000_000)
    """Messages that may wait in front of this stage. Choose peak rate × time in the stage × 2; the metrics
    record has both.
    """
    concurrency: int = Field(default=64, ge=1, le=10_000)
    """Batches that an asynchronous handler works on at once; a synchronous one runs in line. Choose what
    the service behind the handler can take.
    """
    timeout_s: float = Field(default=5.0, ge=0.001, le=3600)
    """Seconds an asynchronous handler has for one batch. Choose twice its slowest good answer."""


class StagesConfig(Section):
    """The three stages, in the order messages flow."""

    parse: StageConfig = StageConfig()
    """Splits and checks what was read."""
    route: StageConfig = StageConfig()
    """Looks the recipients up."""
    deliver: StageConfig = StageConfig()
    """Encodes and offers to the outboxes."""


class OutboxConfig(Section):
    """The queue of bytes in front of each outbound writer."""

    rises = (
        Rise("low_watermark_bytes", "high_watermark_bytes", may_be_equal=False),
        Rise("high_watermark_bytes", "max_outbox_bytes"),
        Rise("write_timeout_s", "evict_after_s"),
    )

    max_outbox_bytes: int = Field(default=524_288, ge=1024, le=1_073_741_824)
    """Bytes that may wait for one writer. Choose what a good client may fall behind in a short pause; it
    counts once for each connection in the memory.
    """
    high_watermark_bytes: int = Field(default=16_384, ge=1, le=1_073_741_824)
    """Above it the senders to this writer are stalled. Choose it small: as long as the reader keeps up
    nothing waits here, and what is taken for one that does not costs all others time.
    """
    low_watermark_bytes: int = Field(default=4_096, ge=0, le=1_073_741_824)
    """At or below it stalled senders run on. Choose a quarter of the high watermark: pauses are rare, and
    send_buffer_bytes keeps the writer from running dry.
    """
    send_buffer_bytes: int = Field(default=65_536, ge=2048, le=16_777_216)
    """The send buffer of each socket in the kernel (SO_SNDBUF). Small shows a slow reader soon; raise it
    to rate × round trip for fast clients far away.
    """
    write_timeout_s: float = Field(default=5.0, ge=0.01, le=3600)
    """Seconds without progress that count as one failure for the breaker. Choose longer than the pauses
    that mobile clients make.
    """
    min_progress_bytes: int = Field(default=4096, ge=1, le=16_777_216)
    """Bytes that must leave the machine within write_timeout_s to count as progress. Choose
    write_timeout_s × the slowest reader you want to keep, in bytes/s.
    """
    evict_after_s: float = Field(default=30.0, ge=0.01, le=86_400)
    """Seconds a writer may be stuck in all before its connection is closed with `! slow-consumer`. Choose
    several write_timeout_s, so that the breaker has its turn first.
    """
    reconnect_grace_s: float = Field(default=5.0, ge=0, le=3600)
    """Seconds that copies are kept for a recipient that has disconnected; it gets them when it returns.
    Choose the time in which your clients reconnect; 0 to refuse them at once.
    """
    max_grace_bytes: int = Field(default=65_536, ge=0, le=1_073_741_824)
    """Bytes that are kept so for one login; the rest is refused. Choose what a client misses in
    reconnect_grace_s.
    """
    grace_any_address: bool = Field(default=False)
    """Whether it gets them at another address too. Choose true only where logins are proved by something
    else: anybody can take a name that is free.
    """
    linger_s: float = Field(default=2.0, ge=0, le=3600)
    """Seconds that a closed connection still reads and throws away, so that the client is not reset before
    it has the last lines. Choose a few round trips.
    """


Policy = Literal["stall", "refuse", "drop_oldest", "disconnect"]


class DeadLettersConfig(Section):
    """Where copies are written whose recipient did not come back."""

    path: str = Field(default="", max_length=4096)
    """A file of JSON lines; empty for none. Choose a disk of its own when it may grow: what the disk does
    not take is lost and counted (dead_letters.lost), and nothing else stops.
    """
    max_bytes: int = Field(default=16_777_216, ge=1024, le=1_099_511_627_776)
    """Size at which a new file is begun. Choose what you can still open in an editor."""
    keep: int = Field(default=3, ge=0, le=1000)
    """Older files that are kept beside it, as .1, .2 and so on. Choose with max_bytes what may be used of
    the disk.
    """


class WhenFullConfig(Section):
    """What senders meet at a full outbox, for each kind of traffic."""

    direct: Policy = Field(default="stall")
    """A message to one recipient: "stall" pauses its sender until there is room (you see sessions_stalled),
    "refuse" refuses the copy at once (refused_by_reason.full), "drop_oldest" refuses what has waited longest
    instead (refused_by_reason.dropped), "disconnect" closes the recipient (session.closed, slow_consumer).
    Choose stall where every copy counts, the others where the newest counts most.
    """
    fanout: Policy = Field(default="refuse")
    """A message to several recipients, with the same choices. With "stall" the slowest member sets the pace
    of the group; choose it only where every copy must arrive.
    """


class RetryConfig(Section):
    """How waits for a stuck writer are repeated."""

    rises = (Rise("base_delay_s", "max_delay_s"),)

    base_delay_s: float = Field(default=0.1, ge=0.001, le=3600)
    """The first retry waits a random part of this many seconds, each further one of twice as many. Choose
    the time in which a short trouble usually passes.
    """
    max_delay_s: float = Field(default=2.0, ge=0.001, le=3600)
    """The bound of that doubling, in seconds. Choose the delay you accept after a trouble is over."""
    budget_ratio: float = Field(default=0.2, ge=0, le=1)
    """Retries allowed for each attempt, over all writers. Lower it when retries keep a trouble alive."""
    budget_window_s: float = Field(default=10.0, ge=0.01, le=3600)
    """Seconds over which attempts and retries are compared. Choose several times max_delay_s."""
    budget_floor: int = Field(default=10, ge=0, le=1_000_000)
    """Retries allowed in each window whatever the ratio says, so that a quiet gateway can retry at all.
    Keep it small.
    """


class BreakerConfig(Section):
    """The circuit breaker of each outbound writer."""

    fail_max: int = Field(default=3, ge=1, le=1000)
    """Failures in a row that open the breaker, after which copies to this writer are refused at once.
    Choose so that fail_max × outbox.write_timeout_s is as long as senders may be stalled.
    """
    reset_timeout_s: float = Field(default=5.0, ge=0.01, le=3600)
    """Seconds an open breaker waits before it looks whether the writer moves again. Choose the time a
    recipient usually needs to come back.
    """


class TcpConfig(Section):
    """How the kernel finds out that a peer has gone without a word."""

    keepalive_idle_s: int = Field(default=60, ge=1, le=32_767)
    """Seconds without any byte before the kernel asks whether the peer is still there. Choose less than
    the time after which routers on the way forget a connection.
    """
    keepalive_interval_s: int = Field(default=15, ge=1, le=32_767)
    """Seconds between two such questions. Keep it well under keepalive_idle_s."""
    keepalive_probes: int = Field(default=4, ge=1, le=127)
    """Unanswered questions after which the peer counts as gone. Choose a few, since single packets get
    lost.
    """
    user_timeout_s: int = Field(default=60, ge=1, le=86_400)
    """Seconds that bytes may stay unacknowledged before the peer counts as gone (TCP_USER_TIMEOUT). Choose
    more than outbox.evict_after_s, so that the gateway decides first.
    """


class Config(Section):
    """The whole configuration: made once at the start by `config_sources.load`, then only read."""

    listen: tuple[Annotated[ListenAddress, PlainValidator(_listen_address)], ...] = Field(
        default=(ListenAddress("line", "127.0.0.1", 8080),), strict=False
    )
    """Where clients connect; one [[listen]] table for each address. Choose 127.0.0.1 for this machine
    alone, 0.0.0.0 or [::] for every network; port 0 lets the system choose.
    """
    limits: LimitsConfig = LimitsConfig()
    """What one connection, and all of them together, may take."""
    stages: StagesConfig = StagesConfig()
    """The stages every message passes."""
    outbox: OutboxConfig = OutboxConfig()
    """The queue of bytes in front of each outbound writer."""
    when_full: WhenFullConfig = WhenFullConfig()
    """What senders meet at a full outbox, for each kind of traffic."""
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    """Where copies are written whose recipient did not come back."""
    retry: RetryConfig = RetryConfig()
    """How the wait for a stuck writer is repeated."""
    breaker: BreakerConfig = BreakerConfig()
    """The circuit breaker of each outbound writer."""
    tcp: TcpConfig = TcpConfig()
    """How the kernel finds out that a peer has gone without a word."""
    shutdown: ShutdownConfig = ShutdownConfig()
    """How the gateway ends."""
    log: LogConfig = LogConfig()
    """What is logged and how."""
    metrics: MetricsConfig = MetricsConfig()
    """The numbers in the log."""
    runtime: RuntimeConfig = RuntimeConfig()
    """What the gateway runs on."""
    supervisor: SupervisorConfig = SupervisorConfig()
    """What watches the workers, where there are two or more."""
    bus: BusConfig = BusConfig()
    """The path between two workers, where there are two or more."""

    @field_validator("listen", mode="after")
    @classmethod
    def _check_listen(cls, listen: tuple[ListenAddress, ...]) -> tuple[ListenAddress, ...]:
        if not listen:
            raise PydanticCustomError("listen_empty", "there is no listener")
        fixed = [address.url for address in listen if address.port]
        twice = sorted({url for url in fixed if fixed.count(url) > 1})
        if twice:
            raise PydanticCustomError("listen_twice", "{urls} is given twice", {"urls": ", ".join(twice)})
        return listen
