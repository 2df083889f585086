"""Names of clients come from strangers: whatever they are, Prometheus reads what the gateway tells."""

import json
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead.config import ConfigError, resolve
from fairlead.core import events as ev
from fairlead.core.model import Limits, Request
from fairlead.gateway.app import Gateway
from fairlead.gateway.identity import Identity
from tests.gateway.mocks import MockWorker, chat, run, serving

HOSTILE = [
    "other",
    "others",
    "true",
    "all",
    "",
    " ",
    'a"b',
    'a"} 1\nfairlead_up{x="',
    "a\\",
    "a\\n",
    "a\nb",
    "a\r\nx-fairlead-client: boss",
    "a\x00\x1b[2Jb",
    "a\u2028b\x85",
    "\u202egnitset",
    "é",
    "e\u0301",
    "🦊" * 10,
    "long " * 1000,
    "#",
    '{client="x"}',
    "NaN",
    "<script>alert(1)</script>",
    "\ud800",
    "../../etc",
    "[clients.a]",
]
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=300))
IDENTITY = Identity(resolve({"use_body_user": True, "trusted_proxies": ["127.0.0.1/32"]}))


def told(gateway):
    """Read the exposition as Prometheus does: valid UTF-8, and no series twice."""
    series = {}
    for family in text_string_to_metric_families(gateway._exposition.render().decode()):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if v))  # an empty label is none
            assert (sample.name, labels) not in series
            series[sample.name, labels] = sample.value
    return series


def served_to(names, most=1000):
    gateway = Gateway(resolve({"worker_urls": ["http://127.0.0.1:1"], "metrics_clients": most}))
    gateway.scheduler.step(ev.WorkerUp(0, "http://127.0.0.1:1", Limits()))
    for rid, name in enumerate(names):
        figures = gateway.metrics.client(name)
        figures.ended("ok")
        figures.output_tokens += 1
        figures.first_token.observe(0.1)
        gateway.dispatcher.step(ev.Arrived(0, Request(rid, name, 10)))
    return gateway


@given(st.lists(NAMES, max_size=12), st.integers(0, 6))
@example(HOSTILE, 10)
@example(HOSTILE, 1000)
def test_any_names_give_series_that_prometheus_reads(raw, most):
    names = [IDENTITY.by_user(name).name for name in raw]
    series = told(served_to(names, most))
    shown = list(dict.fromkeys(names))[:most]
    for name in shown:
        assert series["fairlead_requests_total", (("client", name), ("result", "ok"))] == names.count(name)
        assert series["fairlead_ttft_seconds_count", (("client", name),)] == names.count(name)
        assert ("fairlead_service_outstanding", (("client", name),)) in series
    rest = sum(name not in shown for name in names)
    assert series.get(("fairlead_requests_total", (("others", "true"), ("result", "ok"))), 0) == rest
    assert series.get(("fairlead_output_tokens_total", (("others", "true"),)), 0) == rest
    assert ("fairlead_queued", (("others", "true"),)) in series


def test_names_that_identity_would_have_changed_do_no_harm_either():
    """Of whatever gives the dispatcher a name: only that no name is taken for the sum of the others."""
    names = [name for name in HOSTILE if name.isprintable() or "\n" in name]
    series = told(served_to(names))
    assert sum(key[0] == "fairlead_output_tokens_total" for key in series) == len(names)
    assert not any(("others", "true") in key[1] for key in series if key[0] == "fairlead_requests_total")


@given(NAMES, NAMES)
@example("a\nb", "a\rb")
@example("x" * 300, "x" * 301)
@example("\ud800", "\ud801")
def test_a_name_is_fit_for_headers_labels_and_logs_and_stays_one_client_s(one, other):
    for given_name in (one, other):
        client = IDENTITY.by_user(given_name)
        assert 0 < len(client.name) <= 200
        assert client.name.isprintable()
        assert client.fields.count(b"\n") == client.fields.count(b"\r\n") == 3
    if one.strip() and other.strip() and one.strip() != other.strip():
        assert IDENTITY.by_user(one).name != IDENTITY.by_user(other).name


def test_headers_that_are_no_text_name_different_clients():
    names = {
        IDENTITY.identify({b"x-fairlead-client": value}, "127.0.0.1")[0].name
        for value in (b"a\xff", b"a\xfe", b"a?", b"a", "a\x85b".encode())
    }
    assert len(names) == 5
    assert IDENTITY.identify({b"x-fairlead-client": "\u3000".encode()}, "127.0.0.1")[0].name == "default"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a ", "x" * 201, "\x1b[2J"], ids=repr)
def test_a_configured_name_is_printable(name):
    with pytest.raises(ConfigError, match="printable"):
        resolve({"clients": {name: {"weight": 2}}})


def test_names_break_no_log_line(caplog):
    caplog.set_level(logging.DEBUG)

    async def main():
        worker = MockWorker()
        async with serving(worker, use_body_user=True, log_level="debug") as served:
            for name in HOSTILE:
                status, _, _ = await served.post(chat(user=name))
                assert status == (400 if name == "\ud800" else 200)
            flows = [repr(flow) for flow in served.gateway.flows.values()]
            assert not any("\n" in line or "\x1b" in line for line in flows)
            _, text = await served.get(b"/metrics")
            assert len(json.dumps(text.decode())) > 1000
            list(text_string_to_metric_families(text.decode()))

    run(main)
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert "\x1b" not in record.getMessage()
