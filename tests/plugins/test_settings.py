"""What plugins are told: file, environment, and the errors that name what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.plugins.settings import (
    DIGEST_BYTES,
    NAME_LENGTH,
    PluginSettings,
    SettingsError,
    client_of,
    name_of,
    plugin_ordering,
    read_settings,
)


def test_without_anything_it_is_dlpm_for_a_queue_of_its_own() -> None:
    settings = read_settings({"PATH": "/bin"})
    assert settings == PluginSettings()
    ordering = plugin_ordering(settings)
    assert ordering.name == "dlpm"
    assert not ordering.steals, "one queue: nothing to steal"


def test_the_environment_stands_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plugin.toml"
    path.write_text(
        'order = "vtc"\nmetrics_file = "here.json"\nmetrics_clients = 7\n[weights]\nalice = 2\n"a b" = 0.5\n'
    )
    settings = read_settings(
        {
            "FAIRLEAD_PLUGIN_CONFIG": str(path),
            "FAIRLEAD_PLUGIN_ORDER": "dlpm:quantum=4k",
            "FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "0.5",
        }
    )
    assert settings == PluginSettings(
        order="dlpm:quantum=4k",
        weights={"alice": 2.0, "a b": 0.5},
        metrics_file="here.json",
        metrics_interval_secs=0.5,
        metrics_clients=7,
    )


def test_weights_reach_the_policy() -> None:
    settings = read_settings({"FAIRLEAD_PLUGIN_WEIGHTS": "alice=2, bob=0.5", "FAIRLEAD_PLUGIN_ORDER": "vtc"})
    ordering = plugin_ordering(settings)
    for client in ("alice", "bob", "carol"):
        ordering.decoded(0, client, 1)  # no queue yet, so nobody has an account
    ordering.make_queue(0, lambda keys: 0)
    for client in ("alice", "bob", "carol"):
        ordering.decoded(0, client, 100)
    assert [ordering.credit(0, client) for client in ("alice", "bob", "carol")] == [-100, -400, -200]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FAIRLEAD_PLUGIN_ODER": "vtc"}, "unknown setting 'FAIRLEAD_PLUGIN_ODER'.*did you mean 'order'"),
        ({"FAIRLEAD_PLUGIN_CONFIG": "/no/such/file"}, "cannot read /no/such/file"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice"}, "'weights' takes NAME=WEIGHT,NAME=WEIGHT, not 'alice'"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "=2"}, "'weights' takes NAME=WEIGHT"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice=0"}, "'weights.alice' takes a number from 1e-06 to 1e[+]06"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice=much"}, "'weights.alice' takes a number .*, not 'much'"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice=1e400"}, "'weights.alice' takes a number"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "a=1,b=2,a=3"}, "client 'a' twice"),
        ({"FAIRLEAD_PLUGIN_METRICS_CLIENTS": "1.5"}, "'metrics_clients' takes a whole number"),
        (
            {"FAIRLEAD_PLUGIN_METRICS_CLIENTS": "many"},
            "'metrics_clients' takes a whole number .*, not 'many'",
        ),
        ({"FAIRLEAD_PLUGIN_METRICS_CLIENTS": "1e9"}, "'metrics_clients' takes .* to 10000"),
        (
            {"FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "nan"},
            "'metrics_interval_secs' takes a number from 0.01",
        ),
        ({"FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "1e300"}, "'metrics_interval_secs' takes .* to 86400"),
        ({"FAIRLEAD_PLUGIN_DEFAULT_CLIENT": ""}, "'default_client' takes a name"),
        ({"FAIRLEAD_PLUGIN_ORDER": ""}, r"'order' takes the name of a policy \(fcfs, "),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_settings(environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oder = 'vtc'", "unknown setting 'oder'"),
        ("[weights", "not TOML"),
        ("weights = 3", "takes a table"),
        ("weights = []", "takes a table"),
        ("weights = {a = 'x'}", "'weights.a' takes a number"),
        ("weights = {a = true}", "'weights.a' takes a number .*, not True"),
        ("weights = {a = inf}", "'weights.a' takes a number"),
        ("weights = {a = " + "9" * 400 + "}", "'weights.a' takes a number"),
        ("weights = {a = 0x" + "f" * 5000 + "}", "'weights.a' takes .* not such a large number"),
        ("weights = {'' = 1}", "takes names of clients"),
        ("order = 3", "'order' takes a text, not 3"),
        ("order = ['dlpm']", "'order' takes a text"),
        ("default_client = 1.5", "'default_client' takes a name.*, not 1.5"),
        ("metrics_file = true", "'metrics_file' takes a text, not True"),
        ("metrics_clients = true", "'metrics_clients' takes a whole number"),
        ("metrics_clients = -1", "'metrics_clients' takes a whole number from 0"),
        ("metrics_clients = inf", "'metrics_clients' takes a whole number"),
        ("metrics_interval_secs = '1'", "'metrics_interval_secs' takes a number .*, not '1'"),
        ("metrics_interval_secs = 1979-05-27", "'metrics_interval_secs' takes a number"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plugin.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_settings({"FAIRLEAD_PLUGIN_CONFIG": str(path)})
    if " takes " in message:
        assert "in the file that FAIRLEAD_PLUGIN_CONFIG names" in str(caught.value), "where to change it"
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("dlmp", "unknown ordering policy 'dlmp'.*did you mean 'dlpm'"),
        ("dlpm:quantum=-1", "quantum"),
        ("vtc:on_no_fit=skip", "on_no_fit=skip is not possible"),
        ("dlpm:scope=fleet", "scope=fleet is not possible"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(order: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plugin_ordering(PluginSettings(order=order))


def test_a_name_may_hold_an_equals_sign() -> None:
    settings = read_settings({"FAIRLEAD_PLUGIN_WEIGHTS": "Zm9v===2, b = 3"})
    assert settings.weights == {"Zm9v==": 2.0, "b": 3.0}


def test_the_client_is_the_first_name_there_is() -> None:
    settings = PluginSettings(default_client="nobody")
    assert client_of(settings, "alice", "s1") == "alice"
    assert client_of(settings, None, "s1") == "session:s1"
    assert client_of(settings, "", "s1") == "session:s1"
    assert client_of(settings, 0, "s1") == "0"
    assert client_of(settings, None) == "nobody"


def test_a_session_is_never_charged_to_a_client_of_its_name() -> None:
    """Whoever cannot name clients may still name sessions."""
    settings = PluginSettings()
    for name in ("alice", settings.default_client):
        assert client_of(settings, None, name) != name


@pytest.mark.parametrize(
    "value",
    [None, "", True, 1.5, float("nan"), [], ["alice"], {"a": 1}, b"alice", "a\ud800", 10**30, -(10**5000)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_name_is_as_if_it_was_not_there(value: object) -> None:
    assert name_of(value) is None
    assert client_of(PluginSettings(), value, value) == "default"


@given(st.text(), st.text())
def test_names_are_bounded_and_two_never_become_one(one: str, other: str) -> None:
    found = [name_of(one), name_of(other)]
    for name in found:
        if name is not None:
            assert len(name) <= NAME_LENGTH + 1 + 2 * DIGEST_BYTES
            name.encode()
    if one != other and None not in found:
        assert found[0] != found[1]


def test_names_that_begin_alike_are_two() -> None:
    long = "x" * NAME_LENGTH
    million = name_of("x" * 1_000_000)
    names = [long, long + "y", long + "z", million, long + "\n", million + "x" if million else ""]
    found = [name_of(name) for name in names]
    assert found[0] == long
    assert len(set(found)) == len(names)
    assert name_of(million) != million, "what is as long as a cut name is cut itself: no name can be forged"


def test_weights_go_by_the_names_that_requests_have() -> None:
    long = "x" * 1000
    settings = read_settings({"FAIRLEAD_PLUGIN_WEIGHTS": f"{long}=3"})
    assert settings.weights == {client_of(settings, long): 3.0}
