"""The models: defaults, ranges, pairs of keys, and the reference file that is held equal to them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, get_origin

import pytest
from pydantic import ValidationError

from chat_gateway.config import Config, LimitsConfig
from chat_gateway.config_section import Section
from chat_gateway.config_sources import load
from chat_gateway.listen_address import ListenAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

REFERENCE = Path(__file__).parents[2] / "configs" / "gateway.toml"


def keys_of(model: type[Section], table: str = "") -> Iterator[tuple[str, str, FieldInfo]]:
    """Each key of the configuration as (table, name, field)."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from keys_of(kind, f"{table}.{name}" if table else name)
        else:
            yield table, name, field


def comments_of(text: str) -> dict[tuple[str, str], str]:
    """The comment just above each key of a TOML file, on one line, by (table, name)."""
    comments: dict[tuple[str, str], str] = {}
    table, comment = "", list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
            continue
        if line.startswith("["):
            table = line.strip("[]")
        elif " = " in line:
            comments[table, line.partition(" = ")[0]] = " ".join(comment)
        comment = []
    return comments


def test_reference_equals_the_defaults_when_loaded() -> None:
    """The reference file gives every key the value that holds without a file."""
    assert load(REFERENCE, {}, [], []) == Config()


def test_reference_has_every_key_when_compared_with_the_models() -> None:
    """No key is missing in the reference file, so that it can be read as the list of keys."""
    tree = tomllib.loads(REFERENCE.read_text())
    missing = []
    for table, name, _ in keys_of(Config):
        values = tree
        for part in filter(None, table.split(".")):
            values = values.get(part, {})
        if name not in values:
            missing.append(f"{table}.{name}")
    assert missing == []


def test_reference_explains_every_key_when_compared_with_the_models() -> None:
    """The comment above each key is the text the models have for it."""
    comments = comments_of(REFERENCE.read_text())
    for table, name, field in keys_of(Config):
        written = comments[("listen", "url") if name == "listen" else (table, name)]
        assert written == " ".join((field.description or "").split()), (table, name)


@pytest.mark.parametrize(("table", "name", "field"), list(keys_of(Config)))
def test_key_says_what_it_does_and_how_to_choose_it_when_documented(
    table: str, name: str, field: FieldInfo
) -> None:
    """Each key has a text with an advice, and each number a range."""
    advice = re.search(r"\b(choose|lower|raise|keep)\b", field.description or "", re.IGNORECASE)
    assert advice, f"{table}.{name}"
    if field.annotation in (int, float):
        limits = {
            attribute for limit in field.metadata for attribute in ("ge", "le") if hasattr(limit, attribute)
        }
        assert limits == {"ge", "le"}, f"{table}.{name}"
    else:
        is_bounded_text = any(hasattr(limit, "max_length") for limit in field.metadata)
        assert field.annotation is bool or get_origin(field.annotation) is not None or is_bounded_text


def test_config_is_frozen_when_made() -> None:
    """Nobody can change the configuration of a running gateway by accident."""
    config = Config()
    with pytest.raises(ValidationError):
        config.limits.max_connections = 5


def test_number_is_taken_when_an_integer_stands_for_a_float() -> None:
    """People write 5 for 5.0."""
    assert Config.model_validate({"outbox": {"linger_s": 5}}).outbox.linger_s == 5.0


@pytest.mark.parametrize("value", ["5", 5.0, True, 0, None])
def test_number_is_refused_when_it_is_of_another_type_or_out_of_range(value: object) -> None:
    """Nothing is converted silently: not a string, a fraction or a boolean."""
    with pytest.raises(ValidationError):
        Config.model_validate({"limits": {"max_connections": value}})


def test_unknown_key_is_refused_when_a_model_is_made() -> None:
    """A misspelt key in code is an error as well."""
    with pytest.raises(ValidationError):
        LimitsConfig.model_validate({"max_conections": 5})


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("outbox", {"low_watermark_bytes": 5000, "high_watermark_bytes": 5000}),
        ("outbox", {"high_watermark_bytes": 100_001, "low_watermark_bytes": 1, "max_outbox_bytes": 100_000}),
        ("outbox", {"write_timeout_s": 30.5}),
        ("limits", {"max_line_bytes": 65_537}),
        ("limits", {"max_read_bytes": 16_383}),
        ("retry", {"base_delay_s": 2.1}),
    ],
)
def test_pair_is_refused_when_its_order_is_wrong(table: str, values: dict[str, float]) -> None:
    """Two keys that contradict each other are an error, also when one of them is a default."""
    with pytest.raises(ValidationError, match="does not fit"):
        Config.model_validate({table: values})


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("outbox", {"high_watermark_bytes": 524_288}),
        ("outbox", {"write_timeout_s": 30}),
        ("limits", {"max_line_bytes": 65_536}),
        ("retry", {"base_delay_s": 2.0}),
    ],
)
def test_pair_is_taken_when_equal_values_make_sense(table: str, values: dict[str, float]) -> None:
    """The upper bound itself is allowed where a bound is meant."""
    assert Config.model_validate({table: values}) != Config()


def test_config_is_made_when_a_listen_address_is_given_directly() -> None:
    """Tests and other code may give an address instead of a url."""
    address = ListenAddress("line", "127.0.0.1", 0)
    assert Config(listen=(address, address)).listen == (address, address)
