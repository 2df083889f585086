"""Logs of requests that were served: BurstGPT, LiteLLM's spend logs, OpenTelemetry's GenAI spans."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, quotes

BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def rules(trace: Trace) -> dict[str, int]:
    return {repair.rule: repair.count for repair in trace.repairs}


def test_burstgpt_has_models_and_leaves_failures_out(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
    rows += "118.5,ChatGPT,417,0,417,API log\n"
    (tmp_path / "b.csv").write_text(BURST + rows)
    trace = read_trace(tmp_path / "b.csv")
    assert trace.understood == (
        "BurstGPT CSV: 2 requests, 0 sessions, no clients named, 2 models, arrivals in seconds"
    )
    assert [(s.at, s.turns[0][:2]) for s in trace.sessions()] == [(0, (472, 18)), (40_000_000, (1087, 230))]
    assert rules(trace) == {"requests without an answer (failed): left out": 1}
    by_model = read_trace(tmp_path / "b.csv", client="model")
    assert set(by_model.clients) == {"ChatGPT", "GPT-4"}


def test_later_releases_of_burstgpt_have_sessions_and_ends(tmp_path: Path) -> None:
    head = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "0,7,4,ChatGPT,100,60,160,Conversation log\n10,7,1,ChatGPT,200,9,209,Conversation log\n"
    (tmp_path / "b.csv").write_text(head + rows)
    (only,) = check_trace(read_trace(tmp_path / "b.csv"))
    assert [(turn.after, turn.delay_us) for turn in only.turns] == [(-1, 0), (0, 6_000_000)]
    assert quotes(only.turns[1], only.turns[0])


def spend(start: str, **more: Any) -> dict[str, Any]:
    """A row of LiteLLM_SpendLogs, with the columns of its schema that matter and some that do not."""
    return {
        "request_id": "chatcmpl-1", "call_type": "acompletion", "api_key": "k1", "spend": 0.01,
        "total_tokens": 130, "prompt_tokens": 100, "completion_tokens": 30, "startTime": start,
        "endTime": "2024-05-01T12:00:04Z", "model": "m", "user": "ann", "team_id": "red",
        "metadata": {"a": [1]}, "cache_hit": "False", "session_id": "", "status": "success",
    } | more  # fmt: skip


SPEND = [
    spend("2024-05-01T12:00:00Z", session_id="s"),
    spend("2024-05-01T12:00:01.500Z", api_key="k2", team_id=None),
    spend("2024-05-01T12:00:09Z", session_id="s", prompt_tokens=200, endTime="2024-05-01T12:00:10Z"),
    spend("2024-05-01T12:00:20Z", cache_hit="True"),
    spend("2024-05-01T12:00:21Z", status="failure", prompt_tokens=0, completion_tokens=0),
    spend("2024-05-01T12:00:22Z", call_type="aembedding", completion_tokens=0),
]


def as_csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(
        {name: json.dumps(v) if isinstance(v, dict) else v for name, v in row.items()} for row in rows
    )
    return text.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(SPEND),
        json.dumps({"data": SPEND, "total": 6, "page": 1}),
        json.dumps({"data": SPEND, "total": 6}, indent=2),
        "".join(json.dumps(row) + "\n" for row in SPEND),
        as_csv(SPEND),
    ],
    ids=["list", "page", "indented", "lines", "csv"],
)
def test_spend_logs_have_keys_sessions_and_pauses(content: str, tmp_path: Path) -> None:
    (tmp_path / "spend").write_text(content)
    trace = read_trace(tmp_path / "spend")
    assert trace.understood == (
        "LiteLLM spend logs: 3 requests, 1 session, 2 clients, 1 model, arrivals are dates"
    )
    one, other = check_trace_without_prompts(trace)
    assert (one.client, one.name, other.client, other.at) == ("k1", "s", "k2", 1_500_000)
    assert [(turn[:2], turn.after, turn.delay_us) for turn in one.turns] == [
        ((100, 30), -1, 0),
        ((200, 30), 0, 5_000_000),
    ]
    assert rules(trace) == {
        "answers from LiteLLM's own cache: left out": 1,
        "requests that failed: left out": 1,
        "embeddings: left out": 1,
    }
    assert set(read_trace(tmp_path / "spend", client="team").clients) == {"red", "unnamed"}


def check_trace_without_prompts(trace: Trace) -> list[Any]:
    assert any("no prompts" in label for label in trace.labels)
    return list(trace.sessions())


def span(start: int, end: int, prompt: object, **attributes: object) -> dict[str, Any]:
    told = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": "30", **attributes}
    return {
        "traceId": "5b8e", "spanId": "eee1", "name": "chat m",
        "startTimeUnixNano": f"{1714564800 + start}000000000",
        "endTimeUnixNano": f"{1714564800 + end}000000000",
        "attributes": [
            {"key": key, "value": {"intValue": v} if key.endswith("tokens") else {"stringValue": v}}
            for key, v in told.items()
        ],
    }  # fmt: skip


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return {
        "resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": spans}]}]
    }


CONVERSATION = {"gen_ai.conversation.id": "c", "gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
EXPORTS = [
    export(span(0, 4, "100", **CONVERSATION), span(1, 2, 50, **{"user.id": "ann"})),
    export(
        span(9, 10, 200, **CONVERSATION),
        span(0, 11, 350, **(CONVERSATION | {"gen_ai.operation.name": "invoke_agent"})),
        {"traceId": "5b8e", "name": "GET /", "startTimeUnixNano": "1", "endTimeUnixNano": "2"},
    ),
]


@pytest.mark.parametrize("form", ["lines", "document"])
def test_spans_are_requests_and_agents_sums_are_not(form: str, tmp_path: Path) -> None:
    whole = {"resourceSpans": [found for one in EXPORTS for found in one["resourceSpans"]]}
    text = (
        "".join(json.dumps(one) + "\n" for one in EXPORTS) if form == "lines" else json.dumps(whole, indent=1)
    )
    (tmp_path / "spans.json").write_text(text)
    trace = read_trace(tmp_path / "spans.json")
    assert trace.understood == (
        "OpenTelemetry GenAI spans: 3 requests, 1 session, 2 clients, 1 model, arrivals are dates"
    )
    chat, other = trace.sessions()
    assert (chat.client, chat.name, other.client, other.at) == ("shop", "c", "ann", 1_000_000)
    assert [(turn[:2], turn.after, turn.delay_us) for turn in chat.turns] == [
        ((100, 30), -1, 0),
        ((200, 30), 0, 5_000_000),
    ]
    assert quotes(chat.turns[1], chat.turns[0])
    assert rules(trace) == {"spans of other things than requests: not looked at": 2}
    chosen = read_trace(tmp_path / "spans.json", client="service.name", session="none")
    assert (set(chosen.clients), [len(s.turns) for s in chosen.sessions()]) == ({"shop"}, [1, 1, 1])


def test_older_names_of_the_conventions_are_known(tmp_path: Path) -> None:
    old = [
        {"key": "gen_ai.usage.prompt_tokens", "value": {"intValue": "7"}},
        {"key": "gen_ai.usage.completion_tokens", "value": {"doubleValue": 3}},
    ]
    told = span(0, 1, 1) | {"attributes": old}
    (tmp_path / "spans.json").write_text(json.dumps(export(told)))
    ((turn,),) = (session.turns for session in read_trace(tmp_path / "spans.json").sessions())
    assert turn[:2] == (7, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"startTimeUnixNano": "soon"}, "startTimeUnixNano is 'soon', not a whole number"),
        ({"startTimeUnixNano": "9" * 40}, "startTimeUnixNano is out of range"),
        ({"startTimeUnixNano": None}, "startTimeUnixNano"),
        ({"attributes": 5}, r"Expected `array`, got `int` - at `\$.attributes`"),
    ],
)
def test_a_bad_span_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "spans.json").write_text(json.dumps(export(span(0, 1, 5) | change)))
    with pytest.raises(TraceError, match=f"line 1: span 1: .*{says}"):
        read_trace(tmp_path / "spans.json")


def test_spans_without_any_request_are_refused_with_what_they_lack(tmp_path: Path) -> None:
    (tmp_path / "spans.json").write_text(json.dumps(export({"name": "GET /"})))
    with pytest.raises(TraceError, match="no request"):
        read_trace(tmp_path / "spans.json")
