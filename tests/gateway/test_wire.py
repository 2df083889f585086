import json

import pytest

from fairlead.gateway.wire import CHAT, COMPLETION, EMBEDDING, BadRequest, decode, usage_of, with_usage
from tests.gateway.mocks import chat


def test_usage_is_spliced_in_without_touching_the_rest():
    body = b' \n{"model":"m" ,"messages":[{"role":"user","content":"\\u00e9"}],"stream":true}\n'
    asked = decode(CHAT, body)
    got = with_usage(body, asked)
    added = b'"stream_options":{"include_usage":true},'
    assert got.replace(added, b"") == body
    assert json.loads(got) == {**json.loads(body), "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("options", [{"include_usage": False}, {"continuous_usage_stats": True}, {}, None])
def test_own_stream_options_are_kept_beside_it(options):
    body = chat(stream=True, stream_options=options, seed=12345678901234567890, temperature=0.10)
    got = json.loads(with_usage(body, decode(CHAT, body)))
    assert got["stream_options"] == {**(options or {}), "include_usage": True}
    assert {k: v for k, v in got.items() if k != "stream_options"} == {
        k: v for k, v in json.loads(body).items() if k != "stream_options"
    }


def test_the_limit_is_the_newer_of_the_two_names():
    assert decode(CHAT, chat(max_tokens=5)).limit == 5
    assert decode(CHAT, chat(max_tokens=5, max_completion_tokens=7)).limit == 7
    assert decode(CHAT, chat()).limit is None


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (COMPLETION, b'{"model":"m"}', "prompt"),
        (COMPLETION, b'{"model":"m","prompt":3}', "prompt"),
        (EMBEDDING, b'{"model":"m"}', "input"),
        (CHAT, chat(stream_options={"include_usage": "x"}), "stream_options.include_usage"),
        (CHAT, chat(user=5), "user"),
    ],
)
def test_errors_name_the_field(kind, body, param):
    with pytest.raises(BadRequest) as caught:
        decode(kind, body)
    assert caught.value.param == param
    assert param in caught.value.message


def test_usage_of_an_answer():
    usage = usage_of(b'{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":2}}')
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 2, None)
    for body in (b"", b"{", b"[]", b'{"usage":null}', b"\xff"):
        assert usage_of(body) is None
    said = usage_of(b'{"usage":{"prompt_tokens":"x"}}')
    assert said is not None
    assert said.prompt_tokens == "x"
