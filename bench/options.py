"""Options of the load generator: one dataclass, from and to a command line; knows nothing of sockets."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from bench.protocols import DIALECTS
from bench.wire import Mixture

MAX_CONNECTIONS = 28_000  # local ports of one source address on Linux by default
MAX_SECONDS = 600.0
MAX_WINDOW = 4096  # bounds the memory of the prepared texts
MAX_EVERY = 32  # lines to several are at least 2 of the prepared texts


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What one load does; sizes in bytes, times in seconds, rate in messages a second in all."""

    pairs: int = 100
    fanout: int = 1
    window: int = 64
    rate_per_s: float = 0.0
    tick_s: float = 0.0
    size: tuple[int, int] = (64, 64)
    seconds: float = 5.0
    idle: int = 0
    drain_s: float = 5.0
    host: str = "127.0.0.1"
    port: int = 0
    log: str = ""
    cross: float = 0.0
    tag: str = ""
    hold: int = 0
    proto: str = "line"
    several: int = 0
    every: int = 20
    ragged: int = 0

    def __post_init__(self) -> None:
        checks = {
            "pairs, fanout and window are at least 1": min(self.pairs, self.fanout, self.window) >= 1,
            f"window is at most {MAX_WINDOW}": self.window <= MAX_WINDOW,
            "rate, idle and drain are not negative": min(self.rate_per_s, self.idle, self.drain_s) >= 0,
            "tick is from 0 to 1, and needs a rate": 0 <= self.tick_s <= (1.0 if self.rate_per_s else 0.0),
            f"seconds is above 0 and at most {MAX_SECONDS:g}": 0 < self.seconds <= MAX_SECONDS,
            "size is B or LOW-HIGH, from 4 to 16000": 4 <= self.size[0] <= self.size[1] <= 16_000,
            "cross is from 0 to 1": 0 <= self.cross <= 1,
            "cross needs the gateway's log": not self.cross or bool(self.log),
            f"proto is one of {', '.join(DIALECTS)}": self.proto in DIALECTS,
            "log is the gateway's, which speaks line": not self.log or self.proto == "line",
            "several is 0 or above fanout": not self.several or self.several > self.fanout,
            f"every is from 0 to {MAX_EVERY}": 0 <= self.every <= MAX_EVERY,
            "several and ragged need proto line": self.proto == "line" or not (self.several or self.ragged),
            "no several with log: its conversations differ in their lines": not (self.several and self.log),
            "no idle with log: they live where the kernel puts them": not (self.idle and self.log),
            f"at most {MAX_CONNECTIONS} connections in all": self.connections <= MAX_CONNECTIONS,
        }
        wrong = [text for text, holds in checks.items() if not holds]
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def connections(self) -> int:
        """Connections the load opens."""
        return self.pairs * (1 + self.receivers) + self.idle

    @property
    def receivers(self) -> int:
        """Connections that listen to one sender; the first `fanout` of them get every line."""
        return max(self.fanout, self.several)

    def mixture(self, sender: int) -> Mixture:
        """How the lines of a sender differ; those of one number go to several for 1 in EVERY senders.

        Sender 0 begins with the first text, each other one a text later than the one before it. So those
        in the middle of each EVERY texts go to several, which are of all sizes.
        """
        every = self.every if self.several else 0
        place = (every // 2 - sender) % every if every else 0
        return Mixture(self.receivers - self.fanout, every, place, bool(self.ragged))

    def describe(self) -> str:
        """The load in short, for people."""
        pace = f"rate {self.rate_per_s:g}/s" if self.rate_per_s else f"window {self.window}"
        size = "-".join(str(n) for n in sorted(set(self.size)))
        extra = [f"fanout {self.fanout}"] * (self.fanout > 1) + [f"{self.idle} idle"] * (self.idle > 0)
        extra += [f"{100 * self.cross:g} % between workers"] * bool(self.log)
        if self.several:
            silent = self.pairs * (self.several - self.fanout)
            extra += [f"1 line in {self.every} to {self.several}" if self.every else f"{silent} silent"]
        extra += ["writes end mid-line"] * bool(self.ragged)
        extra += [f"sent every {1e3 * self.tick_s:g} ms"] * bool(self.tick_s)
        pairs = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
        return ", ".join([pairs, pace, f"{size} bytes", *extra])

    def to_argv(self) -> list[str]:
        """The command line that gives these options back."""
        argv = []
        for field in fields(self):
            value = getattr(self, field.name)
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            argv += [f"--{_FLAGS.get(field.name, field.name)}", text]
        return argv


_FLAGS = {"rate_per_s": "rate", "tick_s": "tick", "drain_s": "drain"}
_HELP = {
    "pairs": "conversations; each has a sender and FANOUT receivers, all held by this process",
    "fanout": "receivers that each line names",
    "several": "receivers that 1 line in EVERY names instead; the further ones hear nothing else",
    "every": f"which lines go to SEVERAL: 1 in so many, at most {MAX_EVERY}; 0 for none, to compare with",
    "ragged": "1 to end each write in the middle of the line that is due next",
    "window": "closed loop: lines in flight for each sender; the next is sent when one has arrived",
    "rate_per_s": "open loop instead: lines a second in all, sent when due whatever the server does",
    "tick_s": "open loop: send what comes due in so many seconds at once; for rates that would leave no rest",
    "size": "bytes of each text, B or LOW-HIGH for a mixture spread evenly in ratio",
    "seconds": "how long to send; the first fifth is warm-up and not counted",
    "idle": "further connections that log in, send one line to themselves and do nothing more",
    "drain_s": "how long to wait at most for what is in flight at the end",
    "host": "address of the server",
    "port": "port of the server",
    "log": "the gateway's log as JSON lines, so far; it says at which worker each session lives",
    "cross": "share of the conversations that are between two workers, 0 to 1; needs --log",
    "tag": "what all logins begin with, so that several generators can load one gateway",
    "proto": f"what the server speaks: {', '.join(DIALECTS)}",
    "hold": "1 to wait for a line on standard input before the load begins",
}


def _size(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def parse_options(prog: str, description: str, argv: list[str] | None = None) -> LoadOptions:
    """Read a command line; ends the process with status 2 and one clear line if it is wrong."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=layout)
    for field in fields(LoadOptions):
        flag = f"--{_FLAGS.get(field.name, field.name)}"
        default = field.default
        kind = _size if isinstance(default, tuple) else type(default)
        shown = default[0] if isinstance(default, tuple) else "none" if default == "" else default
        needed = field.name == "port"
        text = _HELP[field.name] if needed else f"{_HELP[field.name]} (default {shown})"
        parser.add_argument(
            flag, dest=field.name, type=kind, default=default, metavar=kind.__name__.strip("_").upper(),
            required=needed, help=text,
        )
    try:
        return LoadOptions(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
