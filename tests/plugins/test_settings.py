"""What plugins are told: file, environment, and the errors that name what is wrong."""

from pathlib import Path

import pytest

from fairlead.plugins.settings import (
    CLIENT_ID_LENGTH,
    PluginSettings,
    SettingsError,
    client_of,
    plugin_ordering,
    read_settings,
)


def test_without_anything_it_is_dlpm_for_a_queue_of_its_own() -> None:
    settings = read_settings({"PATH": "/bin"})
    assert settings == PluginSettings()
    ordering = plugin_ordering(settings)
    assert ordering.name == "dlpm"
    assert not ordering.moves, "one queue: nothing to move"


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
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice"}, "'weights.alice' takes a number"),
        ({"FAIRLEAD_PLUGIN_WEIGHTS": "alice=0"}, "'weights.alice' takes a number above 0"),
        ({"FAIRLEAD_PLUGIN_METRICS_CLIENTS": "1.5"}, "'metrics_clients' takes a whole number"),
        ({"FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "nan"}, "'metrics_interval_secs' takes a number above 0"),
        ({"FAIRLEAD_PLUGIN_DEFAULT_CLIENT": ""}, "'default_client' takes a text"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_settings(environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [("oder = 'vtc'", "unknown setting 'oder'"), ("[weights", "not TOML"), ("weights = 3", "takes a table")],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plugin.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_settings({"FAIRLEAD_PLUGIN_CONFIG": str(path)})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("dlmp", "unknown ordering policy 'dlmp'.*did you mean 'dlpm'"),
        ("dlpm:quantum=0", "quantum"),
        ("vtc:on_no_fit=skip", "on_no_fit=skip is not possible"),
        ("dlpm:scope=fleet", "scope=fleet is not possible"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(order: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plugin_ordering(PluginSettings(order=order))


def test_the_client_is_the_first_name_there_is() -> None:
    settings = PluginSettings(default_client="nobody")
    assert client_of(settings, "alice", "session") == "alice"
    assert client_of(settings, None, "", "session") == "session"
    assert client_of(settings, 0, "session") == "0"
    assert client_of(settings, None, None) == "nobody"
    assert client_of(settings, "x" * 1000) == "x" * CLIENT_ID_LENGTH
