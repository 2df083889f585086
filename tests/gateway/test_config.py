import argparse
import re
from pathlib import Path

import pytest

import fairlead
from fairlead.config import OPTIONS, OTHERS, Config, ConfigError, add_flags, from_args, reference, resolve

ROOT = Path(__file__).parents[2]


def parse(*words, environ=None):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_args(parser.parse_args(list(words)), environ or {})


def test_nothing_given_is_the_defaults():
    assert resolve({}) == Config()
    assert parse() == Config()


def test_flags_win_over_environment_over_file(tmp_path):
    file = tmp_path / "fairlead.toml"
    file.write_text('port = 1\nhost = "a"\norder = "vtc"\n[clients.alice]\nweight = 2\n')
    config = parse(
        "--config",
        str(file),
        "--port",
        "3",
        environ={"FAIRLEAD_PORT": "2", "FAIRLEAD_HOST": "b", "PATH": "x"},
    )
    assert (config.port, config.host, config.order) == (3, "b", "vtc")
    assert config.clients["alice"].weight == 2.0
    assert parse(environ={"FAIRLEAD_CONFIG": str(file)}).port == 1


def test_a_flag_of_an_earlier_version_says_its_new_name():
    with pytest.raises(ConfigError, match=r"'--worker-sequences'; it is called '--worker-max-num-seqs' now"):
        parse("--worker-sequences", "4")


def test_lists_and_switches_in_every_source():
    urls = ("http://a:1", "http://b:2")
    assert parse("--worker-urls", *urls).worker_urls == urls
    assert parse(environ={"FAIRLEAD_WORKER_URLS": "http://a:1, http://b:2"}).worker_urls == urls
    assert resolve({"worker_urls": list(urls)}).worker_urls == urls
    assert parse("--no-ask-usage").ask_usage is False
    assert parse(environ={"FAIRLEAD_ASK_USAGE": "off"}).ask_usage is False
    assert resolve({"ask_usage": False}).ask_usage is False


def test_where_engines_order_the_paper_s_router_is_the_default():
    assert resolve({"engine_ordering": True}).policy == "d2lpm"
    assert resolve({"engine_ordering": True, "policy": "lmetric"}).policy == "lmetric"
    assert parse(environ={"FAIRLEAD_ENGINE_ORDERING": "on"}).policy == "d2lpm"
    assert resolve({"engine_ordering": False, "order": "vtc"}).policy == Config().policy


BAD = {
    "option 'order' is for queues of the gateway's own": {"engine_ordering": True, "order": "dlpm"},
    "unknown option 'prot'; did you mean 'port'?": {"prot": 1},
    "unknown option 'worker_sequences'; it is called 'worker_max_num_seqs' now": {"worker_sequences": 1},
    "unknown option 'zzz' (valid: host, port": {"zzz": 1},
    "option 'port' takes a whole number, not '80'": {"port": "80"},
    "option 'port' must be at least 0": {"port": -1},
    "option 'port' must be at most 65535": {"port": 70000},
    "option 'ask_usage' takes on or off": {"ask_usage": 1},
    "option 'queue_timeout_secs' takes a number": {"queue_timeout_secs": True},
    "option 'queue_timeout_secs' takes a number, not nan": {"queue_timeout_secs": float("nan")},
    "option 'drain_timeout_secs' takes a number, not 1000000": {"drain_timeout_secs": 10**400},
    "not such a large number": {"drain_timeout_secs": 16**5000},
    "option 'clients.a.weight' takes a number above 0, not True": {"clients": {"a": {"weight": True}}},
    "option 'clients.a.weight' takes a number above 0, not inf": {"clients": {"a": {"weight": float("inf")}}},
    "option 'retry_statuses' takes codes from 400 to 599": {"retry_statuses": ["\u0664\u0662\u0669"]},
    "option 'worker_urls' takes a list": {"worker_urls": "http://a"},
    "'worker_urls', address 2: it begins with neither http://": {"worker_urls": ["http://a", "a:1"]},
    "names an engine twice": {"worker_urls": ["http://a", "http://a:80/"]},
    "option 'worker_api_key' has characters that no header field has": {"worker_api_key": "key\n"},
    "option 'trusted_proxies'": {"trusted_proxies": ["10.0.0.1/8"]},
    "option 'log_level'": {"log_level": "loud"},
    "option 'retry_statuses'": {"retry_statuses": ["200"]},
    "option 'clients' takes tables": {"clients": 1},
    "unknown option 'clients.a.wight'; did you mean 'weight'?": {"clients": {"a": {"wight": 1}}},
    "option 'clients.a.weight' takes a number above 0": {"clients": {"a": {"weight": 0}}},
    "option 'clients.a.api_keys'": {"clients": {"a": {"api_keys": "k"}}},
    "not sha256: and 64 hex digits": {"clients": {"a": {"api_keys": ["sha256:xyz"]}}},
    "have the same API key": {"clients": {"a": {"api_keys": ["k"]}, "b": {"api_keys": ["k"]}}},
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_errors_that_name_the_key(message):
    with pytest.raises(ConfigError) as caught:
        resolve(BAD[message])
    assert message in str(caught.value)


def test_mistakes_elsewhere_are_named_too(tmp_path):
    for environ in ({"FAIRLEAD_PROT": "1"}, {"FAIRLEAD_PORT": "x"}):
        with pytest.raises(ConfigError, match=next(iter(environ))):
            parse(environ=environ)
    with pytest.raises(ConfigError, match="cannot read"):
        parse("--config", str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("port = = 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        parse("--config", str(tmp_path / "bad.toml"))


def test_every_option_has_help_and_a_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    for name, option in OPTIONS.items():
        assert "--" + name.replace("_", "-") in text
        assert option.metadata["help"]


def test_the_reference_in_the_docs_is_current():
    """After a change of options run scripts/reference.py."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_variables_of_other_commands_are_no_options():
    environ = {f"FAIRLEAD_{name}": "1" for name in (OTHERS | {"PLUGIN_ORDER"}) - {"CONFIG"}}
    assert parse(environ=environ) == parse()
    sources = Path(fairlead.__file__).parent.rglob("*.py")
    read = {name for path in sources for name in re.findall(r'"FAIRLEAD_([A-Z_]+)"', path.read_text())}
    assert {name for name in read if not name.startswith("PLUGIN_")} <= OTHERS


def test_secrets_are_in_no_text():
    """Not in what is printed of a configuration, and not in errors."""
    secrets = {"prefix_secret": "sesame" * 3, "worker_api_key": "opensesame", "api_key": ["bob=sesame-key"]}
    assert "sesame" not in repr(resolve(secrets))
    for name in secrets:
        with pytest.raises(ConfigError, match=name) as error:
            resolve({name: 424242})
        assert "424242" not in str(error.value)
    with pytest.raises(ConfigError, match="at least 16 characters") as error:
        parse(environ={"FAIRLEAD_PREFIX_SECRET": "sesame"})
    assert "sesame" not in str(error.value)


SECRET = "hunter2"
WHERE_SECRETS_SHOW = [
    {"worker_urls": [f"http://user:{SECRET}@a:1"]},
    {"worker_urls": [f"http://{SECRET}@a:1"]},
    {"worker_urls": [f"http://user:{SECRET}"]},
    {"worker_urls": [f"http://user:{SECRET}?@a:1"]},
    {"worker_urls": [f"http://user:{SECRET}/@a:1"]},
    {"worker_urls": [f"http://a:1?key={SECRET}"]},
    {"worker_urls": [f"http://a:1/#{SECRET}"]},
    {"worker_urls": [f"ftp://user:{SECRET}@a:1"]},
    {"worker_urls": [f"user:{SECRET}@a:1"]},
    {"worker_urls": [f"http://a:1/ {SECRET}"]},
    {"worker_urls": [f"http://[{SECRET}"]},
    {"worker_urls": [f"http://{SECRET}\u2100"]},
    {"worker_api_key": [SECRET]},
    {"worker_api_key": f"{SECRET}\r\nhost: b"},
    {"worker_api_key": f"{SECRET}\u00e9"},
    {"api_key": SECRET},
    {"api_key": [f"sha256:{SECRET}"]},
    {"api_key": [f"alice=sha256:{SECRET}"]},
    {"clients": {"a": {"api_keys": [f"sha256:{SECRET}"]}}},
    {"clients": {"a": {"api_keys": SECRET}}},
    {"clients": {"a": {"api_keys": [[SECRET]]}}},
    {"clients": {"a": {"api_keys": [SECRET]}, "b": {"api_keys": [SECRET]}}},
]


@pytest.mark.parametrize("given", WHERE_SECRETS_SHOW, ids=str)
def test_errors_show_no_secrets(given):
    with pytest.raises(ConfigError) as caught:
        resolve(given)
    shown = str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    assert SECRET not in shown
    assert "worker_urls" in shown or "api_key" in shown or "API key" in shown


def test_engines_get_their_key_with_the_scheme_that_it_names():
    assert resolve({}).worker_authorization == b""
    assert resolve({"worker_api_key": SECRET}).worker_authorization == b"Bearer hunter2"
    assert resolve({"worker_api_key": "Basic dTpw"}).worker_authorization == b"Basic dTpw"
