"""Where a configuration comes from: a TOML file, the environment and options, merged over the defaults.

All that is wrong is gathered and reported at once, each problem with its key, what is wrong, what is
allowed and the source it came from. Knows nothing of what the keys mean: that is `config`.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from chat_gateway.config import Config
from chat_gateway.config_process import MAX_WORKERS
from chat_gateway.config_section import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    KeyPath = tuple[str, ...]

ENV_PREFIX = "CHAT_GATEWAY_"
_LISTEN = ("listen",)
_URL_ALLOWED = (
    "line://HOST:PORT with a PORT from 0 to 65535 and an IPv6 HOST in brackets, such as line://[::1]:8080"
)
_LISTEN_ALLOWED = f'one or more [[listen]] tables, each with url = "..." for {_URL_ALLOWED}'
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration, in words for people."""

    key: str
    wrong: str
    allowed: str
    source: str

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}; allowed: {self.allowed} (from {self.source})"


class ConfigError(Exception):
    """A configuration that cannot be used, with all of its problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)  # never empty; in the order of the sources, then of the keys


def load(path: Path | None, env: Mapping[str, str], sets: Sequence[str], listens: Sequence[str]) -> Config:
    """Merge defaults < file < environment < `--set KEY=VALUE` < `--listen URL`, and check the result.

    Raises:
        ConfigError: with every problem of every source.
    """
    merge = _Merge()
    if path is not None:
        merge.take_file(path)
    merge.take_environment(env)
    merge.take_sets(sets)
    if listens:
        merge.set(_LISTEN, [{"url": url} for url in listens], "--listen")
    return merge.checked()


def _walk(model: type[Section], path: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo | type[Section]]]:
    yield path, model
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _walk(kind, (*path, name))
        else:
            yield (*path, name), field


_KNOWN = dict(_walk(Config))
_TABLES = {path: known for path, known in _KNOWN.items() if isinstance(known, type)}
_KEYS = {path: known for path, known in _KNOWN.items() if not isinstance(known, type)}


class _Source(NamedTuple):
    """One source of values: how problems name it, and how it spells keys."""

    label: str
    spell: Callable[[KeyPath], str]


class _Merge:
    """The values of all sources so far, later over earlier; made for one call of `load`."""

    def __init__(self) -> None:
        self._values: dict[KeyPath, Any] = {}  # known keys only, those set last at the end
        self._sources: dict[KeyPath, str] = {}  # where each of these values comes from
        self._problems: list[Problem] = []  # what is wrong so far

    def take_file(self, path: Path) -> None:
        """Take a TOML file in; a syntax error is one problem and leaves the other sources to be checked."""
        try:
            tree = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            self._problem(str(path), f"cannot be read: {error.strerror}", "a readable TOML file", "--config")
        except UnicodeDecodeError as error:
            wrong = f"is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
            self._problem(str(path), wrong, "a TOML file in UTF-8", "--config")
        except (ValueError, RecursionError) as error:
            wrong = f"is not TOML: {_words(error)}"
            self._problem(str(path), wrong, "the syntax of TOML 1.0", "--config")
        else:
            self._take((), tree, _Source(str(path), _dotted))

    def take_environment(self, env: Mapping[str, str]) -> None:
        """Take every variable whose name begins with the prefix in any case."""
        for name in sorted(env):
            if name.upper().startswith(ENV_PREFIX):
                path = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
                label = f"environment variable {_shown_name(name)}"
                self._take(path, _toml_value(env[name]), _Source(label, _env_name))

    def take_sets(self, sets: Sequence[str]) -> None:
        """Take options of the form KEY=VALUE."""
        for option in sets:
            key, equals, text = option.partition("=")
            if equals:
                path = tuple(part.strip() for part in key.split("."))
                self._take(path, _toml_value(text), _Source("--set", _dotted))
            else:
                self._problem(_shown_name(key), "has no value", "KEY=VALUE, such as log.level=debug", "--set")

    def set(self, path: KeyPath, value: object, source: str) -> None:
        """Give a known key a value, over what an earlier source gave."""
        self._values.pop(path, None)
        if path == _LISTEN:
            value = self._listen_items(value, source)
        self._values[path] = value
        self._sources[path] = source

    def checked(self) -> Config:
        """The configuration, when nothing was wrong in any source."""
        tree: dict[str, Any] = {}
        for path, value in self._values.items():
            table = tree
            for name in path[:-1]:
                table = table.setdefault(name, {})
            table[path[-1]] = value
        try:
            config = Config.model_validate(tree)
        except ValidationError as error:
            self._problems.extend(map(self._explained, error.errors(include_url=False)))
        if self._problems:
            raise ConfigError(self._problems)
        return config

    def _problem(self, key: str, wrong: str, allowed: str, source: str) -> None:
        self._problems.append(Problem(key, wrong, allowed, source))

    def _take(self, path: KeyPath, value: object, source: _Source) -> None:
        if path in _KEYS:
            self.set(path, value, source.label)
        elif path not in _TABLES:
            self._unknown(path, value, source)
        elif isinstance(value, dict):
            for name, inner in value.items():
                self._take((*path, name), inner, source)
        else:
            allowed = f"a table with the keys {_names(path)}"
            self._problem(_dotted(path), f"{_shown(value)} is {_kind(value)}", allowed, source.label)

    def _unknown(self, path: KeyPath, value: object, source: _Source) -> None:
        near = _nearest(path, _TABLES if isinstance(value, dict) else _KEYS)
        hint = f", did you mean {source.spell(near)}?" if near else ""
        table = next(path[:end] for end in range(len(path) - 1, -1, -1) if path[:end] in _TABLES)
        place = f"in [{_dotted(table)}] " if table else ""
        self._problem(_dotted(path), f"is not a known key{hint}", f"{place}{_names(table)}", source.label)

    def _listen_items(self, value: object, source: str) -> object:
        """The listeners as a list of tables that have a url only; a string is a list with commas."""
        if isinstance(value, str):
            return [{"url": url.strip()} for url in value.split(",")]
        if not isinstance(value, list):
            return value
        for index, item in enumerate(value):
            for name in item if isinstance(item, dict) else ():
                if name != "url":
                    key = f"listen[{index}].{_shown_name(name)}"
                    self._problem(key, "is not a known key", "url", source)
        return value

    def _explained(self, error: ErrorDetails) -> Problem:
        if error["type"] == "rise":
            return self._explained_rise(error)
        path = tuple(part for part in error["loc"] if isinstance(part, str))
        source = self._sources.get(path, "the defaults")
        if path == _LISTEN:
            return _explained_listen(error, source)
        value = error["input"]
        wrong = _WRONG.get(error["type"], "{value} is {kind}").format(value=_shown(value), kind=_kind(value))
        return Problem(_dotted(path), wrong, _ALLOWED.get(path) or _allowed(_KEYS[path]), source)

    def _explained_rise(self, error: ErrorDetails) -> Problem:
        """Blame the key of the pair that was set last: the other one may be a default."""
        context, table = error["ctx"], tuple(map(str, error["loc"][:-1]))
        paths = [(*table, context[name]) for name in ("lower", "upper")]
        values = [context["lower_value"], context["upper_value"]]
        order = list(self._values)
        ranks = [order.index(path) if path in order else -1 for path in paths]
        blamed = ranks.index(max(ranks))
        other = _dotted(paths[1 - blamed])
        wrong = f"{_shown(values[blamed])} does not fit {other}, which is {_shown(values[1 - blamed])}"
        allowed = f"{_RISE_WORDS[blamed, context['may_be_equal']]} {other}"
        return Problem(_dotted(paths[blamed]), wrong, allowed, self._sources[paths[blamed]])


_WRONG = {
    "greater_than_equal": "{value} is too small",
    "less_than_equal": "{value} is too large",
    "literal_error": "{value} is none of the choices",
    "finite_number": "{value} is not a finite number",
    "string_too_long": "{value} is too long",
}
_ALLOWED: dict[KeyPath, str] = {("runtime", "workers"): f'"auto" or an integer from 1 to {MAX_WORKERS}'}
_RISE_WORDS = {(0, True): "at most", (0, False): "less than", (1, True): "at least", (1, False): "more than"}
_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def _explained_listen(error: ErrorDetails, source: str) -> Problem:
    key, value = "listen", error["input"]
    if error["type"] == "listen_empty":
        return Problem(key, error["msg"], _LISTEN_ALLOWED, source)
    if error["type"] == "listen_twice":
        return Problem(key, error["msg"], "each address once; port 0 may repeat", source)
    if len(error["loc"]) > 1:
        key = f"listen[{error['loc'][1]}]"
    if error["type"] == "listen_url":
        return Problem(f"{key}.url", f"{_shown(value['url'])} {error['msg']}", _URL_ALLOWED, source)
    words = error["msg"] if error["type"] == "listen_item" else f"is {_kind(value)}"
    return Problem(key, f"{_shown(value)} {words}", _LISTEN_ALLOWED, source)


def _allowed(field: FieldInfo) -> str:
    """The values of a key in words: its choices, or its type and range."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(_shown, get_args(field.annotation)))
    if field.annotation is bool:
        return "true or false"
    if field.annotation is str:
        longest = next(limit.max_length for limit in field.metadata if hasattr(limit, "max_length"))
        return f"a string of at most {longest} characters"
    kind = "an integer" if field.annotation is int else "a number"
    low, high = (
        next(getattr(limit, name) for limit in field.metadata if hasattr(limit, name))
        for name in ("ge", "le")
    )
    return f"{kind} from {low} to {high}"


def _nearest(path: KeyPath, known: Mapping[KeyPath, object]) -> KeyPath | None:
    """The known key most like this one, as a whole or by its last name: people forget the table."""

    def likeness(candidate: KeyPath) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, ".".join(candidate), ".".join(path)).ratio()
        last = difflib.SequenceMatcher(None, candidate[-1], path[-1]).ratio()
        return max(whole, last), whole

    best = max((candidate for candidate in known if candidate), key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def _toml_value(text: str) -> object:
    """A TOML value, or the text itself where it is none, so that nobody has to quote a word."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return tree["value"] if len(tree) == 1 else text


def _names(table: KeyPath) -> str:
    return ", ".join(_TABLES[table].model_fields)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(_shown_name, path))


def _env_name(path: KeyPath) -> str:
    return ENV_PREFIX + "__".join(path).upper()


def _shown_name(name: str) -> str:
    """A key as it stands in TOML: quoted and escaped where it is not a bare word."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name) else _shown(name)


def _shown(value: object) -> str:
    """A value as TOML spells it, on one line and shortened."""
    try:
        text = json.dumps(value) if isinstance(value, str | bool) else repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4,300 digits
        return "a value too long to show"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a date or a time")


def _words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
