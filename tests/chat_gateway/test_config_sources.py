"""Merging of the sources, and the list of problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.config import Config
from chat_gateway.config_sources import ConfigError, Problem, load
from chat_gateway.listen_address import ListenAddress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def problems_of(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    listens: Sequence[str] = (),
) -> list[Problem]:
    """What is wrong with these sources."""
    with pytest.raises(ConfigError) as caught:
        load(path, env or {}, sets, listens)
    return list(caught.value.problems)


def file_with(tmp_path: Path, text: str | bytes) -> Path:
    """A configuration file with this content."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_load_gives_the_defaults_when_no_source_says_anything() -> None:
    """Without any source the packaged defaults hold."""
    assert load(None, {}, [], []) == Config()


def test_load_ignores_the_environment_when_the_prefix_is_another() -> None:
    """Variables of other programs are none of ours."""
    assert load(None, {"PATH": "/bin", "CHAT_GATEWAYS": "1"}, [], []) == Config()


def test_load_takes_the_last_source_when_several_set_a_key(tmp_path: Path) -> None:
    """Precedence is defaults < file < environment < options, key by key."""
    path = file_with(tmp_path, "[limits]\nmax_connections = 1\nmax_recipients = 1\nlogin_timeout_s = 1\n")
    env = {"CHAT_GATEWAY_LIMITS__MAX_CONNECTIONS": "2", "CHAT_GATEWAY_LIMITS__MAX_RECIPIENTS": "2"}
    limits = load(path, env, ["limits.max_connections=3"], []).limits
    assert (limits.max_connections, limits.max_recipients, limits.login_timeout_s) == (3, 2, 1.0)
    assert limits.max_line_bytes == Config().limits.max_line_bytes


def test_load_replaces_all_listeners_when_an_option_gives_one(tmp_path: Path) -> None:
    """`--listen` does not add to the file, it replaces what the file and the environment say."""
    path = file_with(
        tmp_path, '[[listen]]\nurl = "line://10.0.0.1:1"\n[[listen]]\nurl = "line://10.0.0.2:2"\n'
    )
    env = {"CHAT_GATEWAY_LISTEN": "line://10.0.0.3:3, line://10.0.0.4:4"}
    sets = ["listen=line://10.0.0.5:5"]
    first, second = ListenAddress("line", "10.0.0.1", 1), ListenAddress("line", "10.0.0.2", 2)
    assert load(path, {}, [], []).listen == (first, second)
    assert [address.port for address in load(path, env, [], []).listen] == [3, 4]
    assert [address.port for address in load(path, env, sets, []).listen] == [5]
    assert [address.port for address in load(path, env, sets, ["line://10.0.0.6:6"]).listen] == [6]


@pytest.mark.parametrize(
    "name", ["CHAT_GATEWAY_STAGES__ROUTE__CAPACITY", "chat_gateway_Stages__route__capacity"]
)
def test_environment_sets_a_nested_key_when_written_in_any_case(name: str) -> None:
    """Two underscores stand between levels; case does not matter."""
    assert load(None, {name: "4096"}, [], []).stages.route.capacity == 4096


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("log.format=json", "json"),
        ('log.format="json"', "json"),
        (" log.format =json", "json"),
        ('log={format = "json"}', "json"),
        ("log.format=text", "text"),
    ],
)
def test_set_takes_a_value_when_it_is_toml_or_a_bare_word(option: str, value: str) -> None:
    """A value is TOML, and a word that is no TOML is a string, so that a shell needs no quotes."""
    assert load(None, {}, [option], []).log.format == value


@pytest.mark.parametrize(
    ("key", "text", "wrong", "allowed"),
    [
        ("runtime.workers", "0", "0 is too small", '"auto" or an integer from 1 to 256'),
        ("runtime.workers", "257", "257 is too large", '"auto" or an integer from 1 to 256'),
        ("runtime.workers", "many", '"many" is a string', '"auto" or an integer from 1 to 256'),
        ("runtime.workers", "true", "true is a boolean", '"auto" or an integer from 1 to 256'),
        ("dead_letters.path", "5", "5 is an integer", "a string of at most 4096 characters"),
    ],
)
def test_problem_of_an_unusual_key_says_what_is_allowed(
    key: str, text: str, wrong: str, allowed: str
) -> None:
    """One problem for one bad value, also where several types are allowed."""
    (problem,) = problems_of(sets=[f"{key}={text}"])
    assert (problem.key, problem.wrong, problem.allowed) == (key, wrong, allowed)


@pytest.mark.parametrize(("text", "workers"), [("auto", "auto"), ("1", 1), ("256", 256)])
def test_number_of_workers_is_taken_when_it_is_one_or_auto(text: str, workers: int | str) -> None:
    """As every source spells it."""
    assert load(None, {"CHAT_GATEWAY_RUNTIME__WORKERS": text}, [], []).runtime.workers == workers
    assert load(None, {}, [f"runtime.workers={text}"], []).runtime.workers == workers


def test_set_takes_the_last_value_when_a_key_is_repeated() -> None:
    """Of two options for one key the later one holds."""
    assert load(None, {}, ["limits.notices=true", "limits.notices=false"], []).limits.notices is False


@pytest.mark.parametrize("text", ["1\n[limits]\nmax_recipients = 7", "1\nother = 2"])
def test_set_cannot_set_a_second_key_when_its_value_has_several_lines(text: str) -> None:
    """A value is a value: it cannot bring tables or keys of its own."""
    (problem,) = problems_of(sets=[f"limits.max_connections={text}"])
    assert problem.key == "limits.max_connections"
    assert "is a string" in problem.wrong


def test_load_reports_all_problems_when_every_source_has_some(tmp_path: Path) -> None:
    """One run shows everything that has to be mended, with the source of each."""
    path = file_with(
        tmp_path,
        '[limits]\nmax_connections = 0\nlogin_timeout_s = "ten"\nnotices = 1\n[log]\nformat = "xml"\n'
        "[outbox]\nlinger_s = inf\nlow_watermark_bytes = 300000\n",
    )
    problems = problems_of(
        path,
        {"CHAT_GATEWAY_METRICS__INTERVAL_S": "7200"},
        ["breaker.fail_max=2.5", "retry=4"],
        ["http://127.0.0.1:80"],
    )
    numbers = "a number from 0.01 to 3600"
    file = str(path)
    expected = {
        Problem("limits.max_connections", "0 is too small", "an integer from 1 to 1000000", file),
        Problem("limits.login_timeout_s", '"ten" is a string', numbers, file),
        Problem("limits.notices", "1 is an integer", "true or false", file),
        Problem("log.format", '"xml" is none of the choices', 'one of "auto", "json", "text"', file),
        Problem("outbox.linger_s", "inf is not a finite number", "a number from 0 to 3600", file),
        Problem(
            "outbox.low_watermark_bytes",
            "300000 does not fit outbox.high_watermark_bytes, which is 16384",
            "less than outbox.high_watermark_bytes",
            file,
        ),
        Problem(
            "metrics.interval_s",
            "7200 is too large",
            numbers,
            "environment variable CHAT_GATEWAY_METRICS__INTERVAL_S",
        ),
        Problem("breaker.fail_max", "2.5 is a number with a fraction", "an integer from 1 to 1000", "--set"),
        Problem(
            "retry",
            "4 is an integer",
            "a table with the keys base_delay_s, max_delay_s, budget_ratio, budget_window_s, budget_floor",
            "--set",
        ),
        Problem(
            "listen[0].url",
            '"http://127.0.0.1:80" does not begin with "line://"',
            "line://HOST:PORT with a PORT from 0 to 65535 and an IPv6 HOST in brackets, such as line://[::1]:8080",
            "--listen",
        ),
    }
    assert set(problems) == expected
    assert len(problems) == len(expected)


def test_problem_reads_as_one_line_when_printed() -> None:
    """A problem is one sentence with its key, what is wrong, what is allowed and its source."""
    assert str(Problem("a.b", "0 is too small", "an integer from 1 to 2", "--set")) == (
        "a.b: 0 is too small; allowed: an integer from 1 to 2 (from --set)"
    )


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[limits]\nmax_conections = 5", "limits.max_conections", "limits.max_connections"),
        ("max_connections = 5", "max_connections", "limits.max_connections"),
        ("[limit]\nmax_connections = 5", "limit", "limits"),
        ("[route]\ncapacity = 5", "route", "stages.route"),
        ("[stages.rout]\ncapacity = 5", "stages.rout", "stages.route"),
        ('[[listener]]\nurl = "x"', "listener", "listen"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_when_it_is_misspelt(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    """Who mistypes a key, or forgets its table, is told which one was meant."""
    (problem,) = problems_of(file_with(tmp_path, text))
    assert (problem.key, problem.wrong) == (key, f"is not a known key, did you mean {near}?")


def test_unknown_key_lists_the_keys_of_its_table_when_nothing_is_near() -> None:
    """A key that resembles none is answered by what its table has."""
    (problem,) = problems_of(sets=["shutdown.zzzz=1"])
    assert (problem.wrong, problem.allowed) == ("is not a known key", "in [shutdown] drain_timeout_s")


def test_unknown_variable_is_refused_with_the_nearest_variable_when_it_has_the_prefix() -> None:
    """A misspelt variable does not pass silently; the hint is a name that can be copied."""
    (problem,) = problems_of(env={"CHAT_GATEWAY_LIMITS__MAX_CONECTIONS": "1"})
    assert problem.wrong == "is not a known key, did you mean CHAT_GATEWAY_LIMITS__MAX_CONNECTIONS?"
    assert problem.source == "environment variable CHAT_GATEWAY_LIMITS__MAX_CONECTIONS"


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (
            ["outbox.high_watermark_bytes=1000"],
            Problem(
                "outbox.high_watermark_bytes",
                "1000 does not fit outbox.low_watermark_bytes, which is 4096",
                "more than outbox.low_watermark_bytes",
                "--set",
            ),
        ),
        (
            ["retry.max_delay_s=1", "retry.base_delay_s=3"],
            Problem(
                "retry.base_delay_s",
                "3.0 does not fit retry.max_delay_s, which is 1.0",
                "at most retry.max_delay_s",
                "--set",
            ),
        ),
        (
            ["retry.base_delay_s=1", "retry.max_delay_s=1", "retry.base_delay_s=3"],
            Problem(
                "retry.base_delay_s",
                "3.0 does not fit retry.max_delay_s, which is 1.0",
                "at most retry.max_delay_s",
                "--set",
            ),
        ),
        (
            ["retry.base_delay_s=3", "retry.max_delay_s=1"],
            Problem(
                "retry.max_delay_s",
                "1.0 does not fit retry.base_delay_s, which is 3.0",
                "at least retry.base_delay_s",
                "--set",
            ),
        ),
    ],
)
def test_pair_blames_the_key_set_last_when_two_keys_contradict(sets: list[str], problem: Problem) -> None:
    """The problem names the key somebody has just set, not the default it collides with."""
    assert problems_of(sets=sets) == [problem]


def test_pair_is_reported_when_another_key_of_its_table_is_wrong_too() -> None:
    """A bad value does not hide a bad pair beside it."""
    problems = problems_of(sets=["outbox.linger_s=-1", "outbox.low_watermark_bytes=300000"])
    assert [problem.key for problem in problems] == ["outbox.low_watermark_bytes", "outbox.linger_s"]


@pytest.mark.parametrize(
    ("text", "key", "wrong"),
    [
        ("listen = []", "listen", "there is no listener"),
        ("listen = 5", "listen", "5 is an integer"),
        ('[listen]\nurl = "line://[::1]:1"', "listen", "{'url': 'line://[::1]:1'} is a table"),
        ("listen = [5]", "listen[0]", "5 has no url that is a string"),
        ("[[listen]]\nurl = 5", "listen[0]", "{'url': 5} has no url that is a string"),
        ('listen = ""', "listen[0].url", '"" does not begin with "line://"'),
        ('[[listen]]\nurl = "line://[::1]:1"\ntls = true', "listen[0].tls", "is not a known key"),
        (
            '[[listen]]\nurl = "line://[::1]:1"\n[[listen]]\nurl = "line://[0::1]:1"',
            "listen",
            "line://[::1]:1 is given twice",
        ),
    ],
)
def test_listeners_are_refused_when_they_cannot_be_used(
    tmp_path: Path, text: str, key: str, wrong: str
) -> None:
    """Each way to get the listeners wrong is one problem with words of its own."""
    (problem,) = problems_of(file_with(tmp_path, text))
    assert (problem.key, problem.wrong) == (key, wrong)


def test_listeners_are_taken_when_only_port_0_repeats() -> None:
    """Port 0 is another port each time."""
    assert len(load(None, {}, [], ["line://127.0.0.1:0"] * 2).listen) == 2


def test_file_is_one_problem_with_line_and_column_when_its_syntax_is_wrong(tmp_path: Path) -> None:
    """The place of a syntax error is named, and the other sources are still checked."""
    problems = problems_of(
        file_with(tmp_path, "[limits]\nmax_connections 5\n"), sets=["limits.max_recipients=0"]
    )
    assert [problem.key for problem in problems] == [str(tmp_path / "gateway.toml"), "limits.max_recipients"]
    assert problems[0].wrong.startswith("is not TOML: ")
    assert "line 2, column 17" in problems[0].wrong


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"[limits]\n# \xff\n", "is not UTF-8: byte 11 is 0xff"),
        (b"x = " + b"[" * 5000, "is not TOML: it is nested too deeply"),
        (b"x = " + b"1" * 5000, "is not TOML: Exceeds the limit"),
    ],
)
def test_file_is_one_problem_when_it_cannot_be_parsed(tmp_path: Path, content: bytes, wrong: str) -> None:
    """No file, however odd, ends in a traceback."""
    (problem,) = problems_of(file_with(tmp_path, content))
    assert problem.wrong.startswith(wrong)


def test_file_is_taken_when_it_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors that write a byte order mark do no harm."""
    assert load(file_with(tmp_path, b"\xef\xbb\xbf[log]\nlevel = 'error'\n"), {}, [], []).log.level == "error"


def test_file_is_one_problem_when_it_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a directory are named with the reason of the system."""
    missing = tmp_path / "missing.toml"
    assert problems_of(missing) == [
        Problem(str(missing), "cannot be read: No such file or directory", "a readable TOML file", "--config")
    ]
    assert problems_of(tmp_path)[0].wrong == "cannot be read: Is a directory"


def test_set_is_refused_when_it_has_no_value() -> None:
    """An option without an equals sign is answered by the form it should have."""
    assert problems_of(sets=["log.level"]) == [
        Problem("log.level", "has no value", "KEY=VALUE, such as log.level=debug", "--set")
    ]


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ('"' + "x" * 500 + '"', '"' + "x" * 56 + "... is a string"),
        ("0x" + "f" * 5000, "a value too long to show is too large"),
        ("1979-05-27", "datetime.date(1979, 5, 27) is a date or a time"),
        (r'"a\u001bb"', r'"a\u001bb" is a string'),
        ("[1]", "[1] is an array"),
    ],
)
def test_value_is_shown_short_and_escaped_when_it_is_wrong(value: str, wrong: str) -> None:
    """What stands in a problem fits on a line and cannot move the cursor of a terminal."""
    (problem,) = problems_of(sets=[f"limits.max_connections={value}"])
    assert problem.wrong == wrong


@given(
    sets=st.lists(st.text(max_size=20) | st.builds("{}={}".format, st.text(), st.text()), max_size=3),
    names=st.lists(st.text(max_size=20), max_size=3),
    listens=st.lists(st.text(max_size=20), max_size=3),
)
def test_load_reports_printable_lines_when_the_input_is_anything(
    sets: list[str], names: list[str], listens: list[str]
) -> None:
    """Whatever is given, the answer is a configuration or problems of one line each."""
    env = {f"CHAT_GATEWAY_{name}": name for name in names}
    problems: Sequence[Problem] = ()
    try:
        load(None, env, sets, listens)
    except ConfigError as error:
        problems = error.problems
    assert [str(problem) for problem in problems if not str(problem).isprintable()] == []
