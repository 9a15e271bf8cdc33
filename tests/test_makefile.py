"""What `make test-all` runs, and what it says of what it cannot run; no suite is run here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Stands for make where a target calls make again: says what it was asked for, fails as it is told to.
FAKE_MAKE = """#!/bin/sh
for goal; do :; done
echo "$goal"
[ "$goal" != "$FAILING" ]
"""
INSTALLED = [f".venv-{version}/bin/.installed-fuzz" for version in ("3.11", "3.12", "3.13")]


def run_test_all(directory: Path, *, failing: str = "") -> tuple[int, list[str]]:
    """Exit status and output of `make test-all` with three interpreters, where the goal `failing` fails."""
    for name in ("python3.11", "python3.12", "python3.13"):
        write_script(directory / name, "#!/bin/sh\n")
    write_script(directory / "fake-make", FAKE_MAKE)
    done = subprocess.run(
        ["make", "--old-file=lint", "--old-file=types", f"MAKE={directory}/fake-make", "test-all"],
        cwd=ROOT,
        env={"PATH": f"{directory}:{os.environ['PATH']}", "FAILING": failing},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, [line for line in lines if str(directory) not in line]


def write_script(path: Path, text: str) -> None:
    """A program of its own."""
    path.write_text(text)
    path.chmod(0o755)


def test_all_tests_fuzz_on_every_interpreter_when_atheris_can_be_installed(tmp_path: Path) -> None:
    """On each one the suites come first, then the fuzz target."""
    status, lines = run_test_all(tmp_path)
    assert status == 0
    assert lines == [line for installed in INSTALLED for line in ("tests", installed, "fuzz")]


def test_all_tests_say_what_is_left_out_when_there_is_no_wheel_for_an_interpreter(tmp_path: Path) -> None:
    """The suites of that interpreter have run, and those behind it are not forgotten."""
    status, lines = run_test_all(tmp_path, failing=INSTALLED[1])
    assert status == 0
    left_out = "python3.12: LEFT OUT of fuzzing: no wheel of atheris could be installed"
    assert lines[3:6] == ["tests", INSTALLED[1], left_out]
    assert lines[6:] == ["tests", INSTALLED[2], "fuzz"]


@pytest.mark.parametrize("failing", ["tests", INSTALLED[0], "fuzz"])
def test_all_tests_fail_when_a_suite_the_fuzzing_or_its_set_up_on_the_first_fails(
    failing: str, tmp_path: Path
) -> None:
    """What was found, and fuzzing that did not run where it can, end the run at once."""
    status, lines = run_test_all(tmp_path, failing=failing)
    assert status != 0
    assert failing in lines
    assert INSTALLED[1] not in lines
