"""Whatever a client and an engine say in their numbers, the books balance and others pay nothing for it."""

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    USAGE,
    Ask,
    MockWorker,
    chat,
    chunk,
    plain,
    run,
    serving,
    token,
)

KV_TOKENS = 16_000
NUMBERS = st.one_of(
    st.integers(-5, 200),
    st.integers(),
    st.sampled_from([10**20, 10**400, -(10**400), 2**31, 2**53, 2**63, 2**64, KV_TOKENS, KV_TOKENS + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)
VALUES = st.recursive(
    NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)
SAID = st.one_of(NUMBERS, VALUES)


def json_of(value: object) -> bytes:
    return json.dumps(value).encode()


@st.composite
def requests(draw):
    """Return path and body: numbers of any kind wherever a request has one."""
    fields = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "max_tokens": NUMBERS,
                "max_completion_tokens": NUMBERS,
                "n": SAID,
                "best_of": SAID,
                "logprobs": SAID,
                "top_logprobs": SAID,
                "prompt_logprobs": SAID,
                "echo": SAID,
                "stream_options": st.none()
                | st.dictionaries(st.sampled_from(["continuous_usage_stats", "x"]), SAID),
            },
        )
    )
    fields["stream"] = draw(st.booleans())
    if draw(st.booleans()):
        return b"/v1/chat/completions", chat(**fields)
    prompt = draw(
        st.one_of(
            st.text(max_size=50),
            st.lists(st.text(max_size=5), max_size=20),
            st.lists(st.integers(0, 2**40), max_size=20),
            st.lists(st.lists(st.integers(0, 200_000), max_size=4), max_size=20),
            st.lists(SAID, max_size=4),
        )
    )
    kind = draw(st.sampled_from([(b"/v1/completions", "prompt"), (b"/v1/embeddings", "input")]))
    return kind[0], json_of({"model": "tiny", kind[1]: prompt, **fields})


USAGES = st.one_of(
    SAID,
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": SAID,
            "completion_tokens": SAID,
            "prompt_tokens_details": st.one_of(
                SAID, st.fixed_dictionaries({}, optional={"cached_tokens": SAID})
            ),
        },
    ),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(st.tuples(requests(), USAGES), min_size=1, max_size=12))
def test_the_books_balance_and_others_pay_nothing(exchanges):
    said: list[object] = []

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        usage = json_of(said[0]) if said and ask.headers["x-fairlead-client"] == "mallory" else json_of(USAGE)
        if ask.body.get("stream"):
            event = b'data: {"choices":[],"usage":%b}\n\n' % usage
            writer.write(EVENT_STREAM + chunk(ROLE + token("a")) + chunk(event + DONE) + b"0\r\n\r\n")
        else:
            writer.write(plain(b'{"choices":[{"message":{"content":"hi"}}],"usage":%b}' % usage))

    async def main():
        worker = MockWorker(behave)
        async with serving(worker, api_key=["mallory=k1", "ann=k2"]) as served:
            mallory, ann = [(b"authorization", b"Bearer k1")], [(b"authorization", b"Bearer k2")]
            books = served.gateway.dispatcher.ledger
            most = 0
            for (path, body), usage in exchanges:
                said[:] = [usage]
                status, _, _ = await served.post(body, path, mallory)
                assert status in {200, 400}
                asked = json.loads(body)
                prompts = 1
                for field in ("prompt", "input"):
                    prompts = max(prompts, len(asked.get(field) or []))
                answers = max(1, min(2**14, int(asked["n"]) if type(asked.get("n")) in {int, float} else 1))
                most += KV_TOKENS * prompts + 2 * KV_TOKENS * prompts * max(answers, 20)
                await served.settled()
                account = books.account("mallory")
                assert 0 <= account.delivered <= most
                assert account.outstanding == 0
            before = books.account("ann").delivered
            assert (await served.post(chat(), headers=ann))[0] == 200
            await served.settled()
            assert books.account("ann").delivered - before == 10 - 4 + 2 * 3
            assert 0 <= served.gateway.dispatcher.fleet.hit_rate[0] <= 1
            assert (await served.get(b"/metrics"))[0] == 200

    run(main)
