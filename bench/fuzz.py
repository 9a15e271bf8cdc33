"""Coverage-guided fuzzing of what comes in: `python -m bench.fuzz --seconds 60`; needs `atheris`.

Half of the time goes to the line codec, half to the frames of other workers and of the supervisor. What is
found is kept in `build/fuzz`, in a directory for each: inputs that reached something new in `corpus`, and
those that broke a property as `crash-*`, which `python -m bench.fuzz FILE` runs again.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import fuzz_frames, fuzz_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TARGETS", "Target", "main"]

_MAX_INPUT_BYTES = 2048
_FOUND = Path("build/fuzz")


class Target(NamedTuple):
    """Something that is fuzzed."""

    check: Callable[[bytes], None]  # raises when a property does not hold
    seeds: Sequence[bytes]
    modules: Sequence[str]  # whose coverage guides the search
    packages: Sequence[str]  # where these are


TARGETS = {
    "lines": Target(fuzz_lines.check, fuzz_lines.SEEDS, fuzz_lines.MODULES, ["stages"]),
    "frames": Target(fuzz_frames.check, fuzz_frames.SEEDS, fuzz_frames.MODULES, ["chat_gateway"]),
}


def main() -> int:
    """Fuzz until the time is over, or until a property breaks.

    Returns:
        The exit status: 0 when every property held.
    """
    parser = argparse.ArgumentParser(prog="bench.fuzz", description="Fuzzes the line codec and the frames.")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to run once, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 for a new one each time")
    parser.add_argument("--target", choices=TARGETS, help="only this one, all the time")
    options = parser.parse_args()
    if options.files:
        for target in TARGETS.values():
            for file in options.files:
                target.check(file.read_bytes())
        return 0
    if options.target is not None:
        return _fuzz(options.target, options.seconds, options.seed)
    return _fuzz_all(options.seconds, options.seed)


def _fuzz_all(seconds: int, seed: int) -> int:
    """Each for its part of the time, in a process of its own, since the fuzzer ends the one that it is in."""
    share_s = max(seconds // len(TARGETS), 1)
    for name in TARGETS:
        print(f"fuzzing {name} for {share_s} s", flush=True)
        options = ["--target", name, "--seconds", str(share_s), "--seed", str(seed)]
        if status := subprocess.run([sys.executable, "-m", "bench.fuzz", *options], check=False).returncode:
            return status
    return 0


def _fuzz(name: str, seconds: int, seed: int) -> int:
    """Fuzz one target; does not return, but ends the process."""
    target = TARGETS[name]
    atheris = importlib.import_module("atheris")  # an extra, so nothing else here depends on it
    with atheris.instrument_imports(include=target.packages):
        for module in target.modules:
            importlib.import_module(module)
    found = _FOUND / name
    corpus = found / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed_input in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed_input)
    limits = [f"-max_total_time={seconds}", f"-max_len={_MAX_INPUT_BYTES}", f"-seed={seed}"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/", str(corpus)], target.check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
