"""Registry and parameters: names and values are checked, and every error lists what is valid."""

from typing import ClassVar

import pytest

from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import Param, PolicyError, Values, parse_value, resolve
from fairlead.core.registry import Registry, parse_spec

PARAMS = (
    Param("quantum", 4_000, "service units", low=1),
    Param("share", 0.5, "a share", low=0, high=1),
    Param("skip", False, "skip what does not fit"),
    Param("scope", "worker", "whose deficits", choices=("worker", "fleet")),
    Param("label", "x", "a free name"),
)


class Fair:
    name: ClassVar[str] = "fair"
    source: ClassVar[str] = "a paper"
    summary: ClassVar[str] = "fair"
    params: ClassVar[tuple[Param, ...]] = PARAMS


class Plain:
    name: ClassVar[str] = "plain"
    source: ClassVar[str] = "folklore"
    summary: ClassVar[str] = "plain"
    params: ClassVar[tuple[Param, ...]] = ()


REGISTRY: Registry[Fair | Plain] = Registry("test policy", (Fair, Plain))


def test_names_keep_the_order_of_registration():
    assert REGISTRY.names() == ["fair", "plain"]
    assert REGISTRY.get("plain") is Plain


def test_unknown_name_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(PolicyError) as error:
        REGISTRY.get("fiar")
    assert str(error.value) == "unknown test policy 'fiar' (valid: fair, plain); did you mean 'fair'?"


def test_a_parameter_of_an_earlier_version_says_its_new_name():
    with pytest.raises(PolicyError, match=r"unknown parameter 'moves'.*; it is called 'steal' now"):
        ORDERINGS.resolve("dlpm", {"moves": "off"})


def test_unknown_parameter_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(PolicyError) as error:
        REGISTRY.resolve("fair", {"quantom": 3})
    assert "fair: unknown parameter 'quantom'" in str(error.value)
    assert "(valid: quantum, share, skip, scope, label)" in str(error.value)
    assert "did you mean 'quantum'?" in str(error.value)


def test_a_policy_without_parameters_says_so():
    with pytest.raises(PolicyError, match=r"plain: unknown parameter 'a' \(valid: none\)"):
        REGISTRY.resolve("plain", {"a": 1})


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two classes are called 'fair'"):
        Registry("test policy", (Fair, Fair))


def test_resolve_fills_in_defaults_and_keeps_types():
    values = REGISTRY.resolve("fair", {"quantum": "16k", "skip": "on"})
    assert values == {"quantum": 16_000, "share": 0.5, "skip": True, "scope": "worker", "label": "x"}
    assert values.integer("quantum") == 16_000
    assert values.number("share") == 0.5
    assert values.flag("skip") is True
    assert values.word("scope") == "worker"


def test_reading_a_value_as_another_type_is_an_error():
    with pytest.raises(TypeError, match="'share' is a float, not a int"):
        Values(share=0.5).integer("share")


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("quantum", 7, 7),
        ("quantum", 7.0, 7),
        ("quantum", "4096", 4096),
        ("quantum", "1M", 1_000_000),
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("skip", "No", False),
        ("skip", True, True),
        ("scope", "fleet", "fleet"),
        ("label", 3, "3"),
    ],
)
def test_values_are_parsed_to_the_type_of_the_default(name, given, value):
    param = next(p for p in PARAMS if p.name == name)
    parsed = parse_value("fair", param, given)
    assert parsed == value
    assert type(parsed) is type(param.default)


@pytest.mark.parametrize(
    ("name", "given", "takes"),
    [
        ("quantum", 0, "a whole number of at least 1"),
        ("quantum", 1.5, "a whole number of at least 1"),
        ("quantum", True, "a whole number of at least 1"),
        ("quantum", "k", "a whole number of at least 1"),
        ("quantum", "", "a whole number of at least 1"),
        ("quantum", None, "a whole number of at least 1"),
        ("share", 1.01, "a number from 0 to 1"),
        ("share", "nan", "a number from 0 to 1"),
        ("share", [], "a number from 0 to 1"),
        ("share", 10**400, "a number from 0 to 1"),
        ("skip", "maybe", "on or off"),
        ("skip", 1, "on or off"),
        ("scope", "planet", "one of worker, fleet"),
    ],
)
def test_bad_values_are_errors_that_say_what_is_taken(name, given, takes):
    with pytest.raises(PolicyError) as error:
        resolve("fair", PARAMS, {name: given})
    assert str(error.value) == f"fair: parameter '{name}' takes {takes}, not {given!r}"


def test_infinity_is_no_number_even_without_a_limit():
    with pytest.raises(PolicyError, match="takes a number of at least 0"):
        parse_value("fair", Param("weight", 1.0, "a weight", low=0), "inf")


def test_a_spec_is_split_into_name_and_parameters():
    assert parse_spec("dlpm") == ("dlpm", {})
    assert parse_spec("dlpm:quantum=4k, scope=fleet") == ("dlpm", {"quantum": "4k", "scope": "fleet"})


def test_a_spec_that_is_not_key_value_says_how_to_write_it():
    with pytest.raises(PolicyError, match="'4k' is not key=value"):
        parse_spec("dlpm:4k")


def test_a_spec_that_gives_a_parameter_twice_is_an_error():
    with pytest.raises(PolicyError, match="'quantum' is given twice"):
        parse_spec("dlpm:quantum=4k,quantum=8k")
