"""Specification of bench.workers and bench.crew_run: very small runs on gateways of one and two workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.crew_run import Setup, joined, run_setup
from bench.kill import Kill
from bench.load import run_load
from bench.log_watch import LogWatch
from bench.logins import LoginOptions
from bench.options import LoadOptions
from bench.placement import LoginLog
from bench.servers import BASELINE, COMMANDS, Server, gateway_command
from bench.verdict import MET, MISSED, UNKNOWN, VOID, Goal, judge
from bench.workers import Comparison, compare, comparisons, curve_note, curve_setup, main

if TYPE_CHECKING:
    from bench.report import Figures

TINY = LoadOptions(pairs=8, fanout=2, rate_per_s=200, seconds=0.3)


def test_load_crosses_by_the_share_asked_for_when_it_has_the_log(tmp_path: Path) -> None:
    """What the gateway counts between its workers is that share of all copies, and nothing is lost."""
    watch = LogWatch()
    wanted = 0.0
    with LoginLog(tmp_path / "logins.log") as log:

        def feed(line: str) -> None:
            log.feed(line)
            if '"supervisor"' in line:  # whose metrics are those of all workers
                watch.feed(line)

        with Server(gateway_command(2, ["log.flood_per_s=1000"]), feed) as server:
            for cross in (0.0, 0.5, 1.0):
                load = replace(TINY, port=server.address[1], log=str(log.path), cross=cross, tag=f"c{cross}")
                figures = run_load(load, lambda: None)
                assert (figures["undelivered"], figures["notices"], figures["lost_connections"]) == (0, 0, 0)
                assert figures["delivered"] > 50
                wanted += cross * figures["delivered"]
    assert server.exit_status == 0
    assert watch.metrics["bus"]["copies_out"] == wanted


def test_setup_gives_the_costs_of_all_processes_when_several_generators_load_it() -> None:
    """Two generators share one gateway of two workers; both begin when both have settled."""
    load = replace(TINY, rate_per_s=0.0, window=32)
    figures = run_setup(Setup(2, (load, load), cross=0.5))
    assert figures["faults"] == ""
    assert figures["delivered"] > 0
    assert 1 < figures["cpu_us"] < 10_000
    assert 0 < figures["cpu_share"] <= 1.1
    assert 0 < figures["server_cpu_share"] < 4
    assert figures["others_cpu_share"] >= 0
    assert "kib_per_session" not in figures


def test_setup_times_logins_when_these_are_the_load() -> None:
    """They have no sessions to charge memory to."""
    figures = run_setup(Setup(1, (LoginOptions(rate_per_s=100.0, seconds=0.3),)))
    assert (figures["faults"], figures["delivered"]) == ("", 30)
    assert figures["p50_us"] > 0


def test_setup_charges_memory_to_sessions_when_some_are_idle() -> None:
    """What all processes have grown by is divided by the idle sessions."""
    load = LoadOptions(pairs=1, rate_per_s=10, idle=500, seconds=0.2)
    figures = run_setup(Setup(1, (load,)))
    assert figures["faults"] == ""
    assert 0.5 < figures["resident_kib_per_session"] < 20
    assert -20 < figures["kib_per_session"] < 20


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        (Setup(1, (TINY,), cross=0.5), "one worker"),
        (Setup(1, (TINY,), settings=("limits.max_connections=0",)), "did not start"),
    ],
    ids=["load", "gateway"],
)
def test_setup_gives_an_error_when_it_cannot_be_made(setup: Setup, reason: str) -> None:
    """A run that could not be made has no figure that could be taken for one."""
    figures = run_setup(setup)
    assert set(figures) == {"error"}
    assert reason in figures["error"]
    assert "\n" not in figures["error"]


@pytest.mark.parametrize(("at_s", "lost"), [(None, 0), (0.1, 3)], ids=["lives", "killed"])
def test_setup_kills_a_worker_without_a_loss_for_those_of_the_other(at_s: float | None, lost: int) -> None:
    """Its own clients lose their connections, and another one serves in its place before the run ends."""
    load = replace(TINY, pairs=4, seconds=0.6)
    figures = run_setup(Setup(2, (load,), cross=0.0, within=1, kill=Kill(2, 3, at_s)))
    assert figures["faults"] == ""
    assert figures["delivered"] > 50
    assert figures["clients_lost"] == lost
    assert ("ready_after_s" in figures) == (at_s is not None)


def test_figures_of_several_generators_are_joined_as_those_of_one() -> None:
    """What is counted is added, of what is timed the worst stands, and one that was the limit is enough."""
    one = {"delivered_per_s": 10.0, "notices": 0, "p50_us": 5.0, "fairness": 1.0, "generator_limited": False}
    other = {"delivered_per_s": 5.0, "notices": 2, "p50_us": 7.0, "fairness": 0.5, "generator_limited": True}
    assert joined([one, other]) == {
        "delivered_per_s": 15.0, "notices": 2, "p50_us": 7.0, "fairness": 0.5, "generator_limited": True,
    }  # fmt: skip


def test_comparison_prints_each_figure_beside_its_goal(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are run as often as asked for, in turn, and judged."""
    goals = (Goal("copies", "delivered", ">=", 0.5, is_ratio=True), Goal("faults", "faults", "==", ""))
    one = Setup(1, (TINY,))
    result = compare(Comparison("tiny", "nothing", one, replace(one, cross=0.0), goals), 1)
    assert [verdict["word"] for verdict in result["verdicts"]] == [MET, MET]
    assert (len(result["a"]["runs"]), len(result["b"]["runs"])) == (1, 1)
    head, _, copies, _ = capsys.readouterr().out.strip().splitlines()
    assert "alone is 1 worker, beside is 1 worker, 0 % between workers" in head
    assert copies.endswith("met")


@pytest.mark.parametrize("is_quick", [True, False])
def test_comparisons_differ_in_nothing_but_the_workers(is_quick: bool) -> None:
    """Both gateways of each get the same load, and quick ones leave a minute for starting and logging in."""
    found = comparisons(is_quick=is_quick)
    assert len({one.name for one in found}) == len(found)
    assert {one.b.workers for one in found} == {2}
    for one in found:
        assert one.a is None or (one.a.loads, one.a.settings) == (one.b.loads, one.b.settings)
    if is_quick:
        assert 2 * sum(one.b.loads[0].seconds for one in found) < 20


@pytest.mark.parametrize("is_quick", [True, False])
def test_worker_is_killed_after_the_warm_up_and_in_time_to_show_in_a_p99(is_quick: bool) -> None:
    """Nothing else differs: conversations and the clients that are lost live at two workers."""
    (found,) = [one for one in comparisons(is_quick=is_quick) if one.name == "kill"]
    assert found.a is not None
    assert found.a.kill is not None
    assert found.b.kill is not None
    assert found.a.kill.at_s is None
    assert found.b.kill.at_s is not None
    assert replace(found.b, kill=found.a.kill) == found.a
    assert replace(found.b.kill, at_s=None) == found.a.kill
    assert found.b.kill.worker == found.b.workers == found.b.within + 1
    seconds = found.b.loads[0].seconds
    assert 0.2 * seconds < found.b.kill.at_s < seconds - 2.0  # which a new worker may take
    assert seconds < 10  # a disturbance of 0.1 s is more than the hundredth part


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, (MET, MET, MET)),
        ({"p99_us": 125.0}, (MISSED, MET, MET)),
        ({"ready_after_s": 2.1}, (MET, MISSED, MET)),
        ({"ready_after_s": None}, (MET, UNKNOWN, MET)),
        ({"clients_lost": 63}, (VOID, MET, MET)),
        ({"others_cpu_share": 0.5}, (VOID, VOID, MET)),
        ({"faults": "undelivered: 1"}, (MET, MET, MISSED)),
    ],
)
def test_kill_is_judged_by_p99_the_new_worker_and_faults(
    changed: Figures, words: tuple[str, str, str]
) -> None:
    """One slow or unsound run B, or one without a kill that was felt, changes the verdict it belongs to."""
    (found,) = [one for one in comparisons(is_quick=True) if one.name == "kill"]
    calm: Figures = {"p99_us": 100.0, "faults": "", "clients_lost": 0, "others_cpu_share": 0.0}
    killed = {**calm, "p99_us": 119.0, "clients_lost": 64, "ready_after_s": 1.9}
    assert tuple(judge(goal, [calm], [{**killed, **changed}]).word for goal in found.goals) == words


def test_main_writes_what_it_measured_when_asked_for_one_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status says whether a goal was missed, the file holds every run."""
    tiny = Comparison("tiny", "", None, Setup(1, (TINY,)), (Goal("copies", "delivered", "==", -1),))
    monkeypatch.setattr("bench.workers.comparisons", lambda *, is_quick: [tiny])
    target = tmp_path / "figures.json"
    assert main(["--only", "tiny", "--runs", "1", "--json", str(target)]) == 1
    (result,) = json.loads(target.read_text())["results"]
    assert result["b"]["runs"][0]["faults"] == ""


def test_curve_has_as_many_generators_as_workers_and_always_the_same_load() -> None:
    """All points have the same conversations in all, and half of them cross where there is another worker."""
    for workers in (1, 2, 4):
        setup = curve_setup(workers, 1.0)
        loads = [load for load in setup.loads if isinstance(load, LoadOptions)]
        assert (setup.workers, len(loads)) == (workers, workers)
        assert sum(load.pairs for load in loads) == 128
        assert setup.cross == (0.5 if workers > 1 else None)


def test_curve_prints_a_line_for_each_number_of_workers_and_what_it_can_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Throughput is shown beside that of one worker, and a run that failed makes the status 1."""

    def run(setup: Setup) -> Figures:
        if setup.workers == 4:
            return {"error": "no room"}
        rate, limited = 1000.0 * setup.workers, setup.workers == 2
        return {
            "delivered_per_s": rate, "p50_us": 1.0, "p99_us": 2.0, "generator_limited": limited,
            "others_cpu_share": 0.4, "faults": "",
        }  # fmt: skip

    monkeypatch.setattr("bench.workers.run_setup", run)
    assert main(["--curve", "--runs", "2"]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[2].split()[1:5] == ["1", "worker", "1,000", "1"]
    assert "2,000" in lines[3]
    assert "2.00" in lines[3]
    assert "generator was the limit in 2 of 2" in lines[3]
    assert "FAILED (no room)" in lines[4]
    assert "Cores that may be used here" in out
    assert "used up to 0.40" in out


@pytest.mark.parametrize(
    ("cores", "words"),
    [(1, "of none can"), (2, "up to 1 can"), (4, "up to 2 can"), (64, "up to 4 can")],
)
def test_curve_says_what_it_can_show_when_cores_are_few(cores: int, words: str) -> None:
    """A worker needs a core of its own, and so does a generator."""
    assert words in curve_note(cores)
    assert f"here: {cores}." in curve_note(cores)


def test_memory_is_the_resident_one_where_the_system_tells_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without smaps_rollup a figure is larger rather than 0."""
    read_text = Path.read_text

    def without_rollup(path: Path) -> str:
        if path.name == "smaps_rollup":
            raise FileNotFoundError(path)
        return read_text(path)

    with Server(COMMANDS[BASELINE]) as server:
        proportional_kib = server.settled_pss_kib()
        monkeypatch.setattr(Path, "read_text", without_rollup)
        assert server.pss_kib() >= proportional_kib > 1000
