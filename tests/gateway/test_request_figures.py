"""A client's numbers are bounded before they count; what an engine would refuse reaches it unchanged."""

import asyncio
import json

import pytest

from fairlead.gateway.key_secret import NO_SECRET
from fairlead.gateway.prompt import BytePrompts
from fairlead.gateway.wire import CHAT, COMPLETION, EMBEDDING, decode
from tests.gateway.mocks import MockWorker, answer, chat, plain, run, serving

HUGE = 10**400
LIMITS = {
    "negative": -1_000_000_000,
    "negative and huge": -HUGE,
    "minus one": -1,
    "none": 0,
    "a fraction": 1.5,
    "true": True,
    "false": False,
    "null": None,
}


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_is_none_leaves_the_books_neutral(name, field):
    asked = decode(CHAT, chat(**{field: LIMITS[name]}))
    assert asked.limit is None
    assert asked.most.output is None


def test_limits_are_read_and_clamped():
    for said, limit in ((5, 5), (5.0, 5), (2**24, 2**24), (10**12, 2**24), (HUGE, 2**24), (1e300, 2**24)):
        assert decode(CHAT, chat(max_tokens=said)).limit == limit
    # Some engines read the older name: an answer may be as long as the larger one says.
    asked = decode(CHAT, chat(max_tokens=50, max_completion_tokens=7, n=2))
    assert asked.limit == 7
    assert asked.most.output == 2 * 50
    assert decode(CHAT, chat(max_tokens=-5, max_completion_tokens=7)).limit is None


def completion(prompt, **fields):
    return decode(COMPLETION, json.dumps({"model": "tiny", "prompt": prompt, **fields}).encode())


@pytest.mark.parametrize(
    ("asked", "prompts", "sequences"),
    [
        (decode(CHAT, chat()), 1, 1),
        (decode(CHAT, chat(n=64)), 1, 64),
        (decode(CHAT, chat(n=64.0)), 1, 64),
        (decode(CHAT, chat(n=None)), 1, 1),
        (decode(CHAT, chat(n=0)), 1, 1),
        (decode(CHAT, chat(n=-3)), 1, 1),
        (decode(CHAT, chat(n=HUGE)), 1, 1),
        (decode(CHAT, chat(n=True)), 1, 1),
        (decode(CHAT, chat(n="8")), 1, 1),
        (decode(CHAT, chat(n=[2])), 1, 1),
        (completion("a", n=3), 1, 3),
        (completion("a", n=3, best_of=5), 1, 5),
        (completion("a", n=5, best_of=3), 1, 5),
        (completion("a", n=2, best_of=HUGE), 1, 2),
        (completion("a", best_of="x"), 1, 1),
        (completion(["a"] * 1000), 1000, 1000),
        (completion(["a"] * 1000, n=2), 1000, 2000),
        (completion([[1, 2], [3]]), 2, 2),
        (completion([1, 2, 3]), 1, 1),
        (completion([]), 1, 1),
        (decode(EMBEDDING, json.dumps({"model": "tiny", "input": ["a"] * 10_000}).encode()), 10_000, 10_000),
        (decode(EMBEDDING, json.dumps({"model": "tiny", "input": [7] * 10_000}).encode()), 1, 1),
        (decode(EMBEDDING, json.dumps({"model": "tiny", "input": "a", "n": 9}).encode()), 1, 1),
    ],
)
def test_a_request_counts_as_the_sequences_that_an_engine_runs_for_it(asked, prompts, sequences):
    assert (asked.most.prompts, asked.most.sequences) == (prompts, sequences)


def test_embeddings_have_no_output():
    asked = decode(EMBEDDING, json.dumps({"model": "tiny", "input": ["a", "b"]}).encode())
    assert (asked.limit, asked.most.output) == (0, 0)


def test_all_prompts_of_a_list_count_their_tokens():
    text = "word " * 80
    one = BytePrompts(secret=NO_SECRET).keys("c", COMPLETION, completion(text)).prompt_tokens
    many = BytePrompts(secret=NO_SECRET).keys("c", COMPLETION, completion([text] * 1000)).prompt_tokens
    assert 1000 * (one - 1) <= many <= 1010 * one


@pytest.mark.parametrize(
    ("asked", "reads"),
    [
        (decode(CHAT, chat()), True),
        (decode(CHAT, chat(prompt_logprobs=None, echo=False, logprobs=True, top_logprobs=5)), True),
        (decode(CHAT, chat(prompt_logprobs=0)), False),
        (decode(CHAT, chat(prompt_logprobs=1)), False),
        (decode(CHAT, chat(prompt_logprob_token_ids=[5])), False),
        (decode(CHAT, chat(echo=True)), False),
        (decode(CHAT, chat(echo=True, top_logprobs=2)), False),
        (decode(CHAT, chat(echo=True, top_logprobs=None)), True),
        (completion("a"), True),
        (completion("a", echo=True), True),
        (completion("a", logprobs=3), True),
        (completion("a", echo=True, logprobs=0), False),
        (completion("a", echo=True, logprobs=3), False),
        (completion("a", prompt_logprobs=-1), False),
    ],
)
def test_who_asks_for_the_odds_of_the_prompt_reads_no_cache(asked, reads):
    assert asked.reads_cache is reads


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": 0}])
def test_the_predicted_hit_rate_is_right_where_nothing_is_read(fields):
    """Their prompts are the same each time, and the engine computes them whole."""

    async def main():
        usage = {"prompt_tokens": 250, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}

        async def behave(ask, writer):
            writer.write(plain(json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()))

        async with serving(MockWorker(behave)) as served:
            body = json.dumps({"model": "tiny", "prompt": "word " * 200, "max_tokens": 1, **fields}).encode()
            for _ in range(20):
                assert (await served.post(body, b"/v1/completions"))[0] == 200
            assert served.gateway.dispatcher.fleet.hit_rate[0] == 0
            other = json.dumps({"model": "tiny", "prompt": "word " * 200, "max_tokens": 1}).encode()
            assert (await served.post(other, b"/v1/completions"))[0] == 200
            assert served.gateway.dispatcher.fleet.hit_rate[0] > 0, "it left its blocks for others"

    run(main)


# --- what that does to others ------------------------------------------------------------------


class Held:
    """A worker that answers nobody until it is told to, and counts who waits in it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.worker = MockWorker(self.behave)

    async def behave(self, ask, writer):
        await self.go.wait()
        await answer()(ask, writer)

    @property
    def inside(self):
        return len(self.worker.asked)


async def beside(first: bytes, path: bytes, others: int, **options) -> int:
    """Return how many of ``others`` reach a worker beside a request of one who sends ``first``."""
    held = Held()
    async with serving(held.worker, **options) as served:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(served.post(first, path))
            for _ in range(400):  # a large body is read by another process, which has to start first
                if held.inside:
                    break
                await asyncio.sleep(0.02)
            assert held.inside == 1
            assert held.worker.asked[0].raw == first
            for number in range(others):
                tasks.create_task(served.post(chat(content=f"{number:03}" + "x" * 1600, max_tokens=100)))
            await asyncio.sleep(0.2)
            served.gateway.dispatcher.check()
            inside = held.inside - 1
            held.go.set()
        assert held.inside == others + 1
        return inside


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    "limit", [-1_000_000_000, -(10**400), 0, 10**400], ids=["-1e9", "-1e400", "0", "1e400"]
)
def test_a_limit_that_no_engine_takes_makes_no_room_for_others(limit, field):
    async def main():
        plain = await beside(chat(), b"/v1/chat/completions", 12, worker_kv_tokens=4000)
        assert 5 <= plain <= 9
        odd = await beside(chat(**{field: limit}), b"/v1/chat/completions", 12, worker_kv_tokens=4000)
        assert odd == plain

    run(main)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/v1/chat/completions", chat(n=64)),
        (b"/v1/completions", json.dumps({"model": "tiny", "prompt": ["a"] * 64}).encode()),
        (b"/v1/completions", json.dumps({"model": "tiny", "prompt": ["a"] * 8, "n": 8}).encode()),
        (b"/v1/embeddings", json.dumps({"model": "tiny", "input": ["a"] * 64}).encode()),
    ],
)
def test_many_sequences_take_as_many_places(path, body):
    async def main():
        assert await beside(body, path, 8, worker_max_num_seqs=68) == 4
        assert await beside(chat(), b"/v1/chat/completions", 8, worker_max_num_seqs=68) == 8

    run(main)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/v1/completions", json.dumps({"model": "tiny", "prompt": ["word " * 20] * 1000}).encode()),
        (b"/v1/embeddings", json.dumps({"model": "tiny", "input": ["word " * 2] * 10_000}).encode()),
    ],
)
def test_a_list_larger_than_any_batch_runs_alone(path, body):
    async def main():
        assert await beside(body, path, 4) == 0

    run(main)


LONE = b'"\\ud800"'
"""Half of a surrogate pair: JSON can say it, UTF-8 cannot."""


@pytest.mark.parametrize("field", ["model", "user", "cache_salt", "content", "role"])
def test_text_that_is_no_text_gets_an_answer(field):
    async def main():
        worker = MockWorker()
        async with serving(worker, use_body_user=True) as served:
            body = chat(user="u", cache_salt="s")
            said = {
                "model": b'"tiny"',
                "user": b'"u"',
                "cache_salt": b'"s"',
                "content": b'"hello"',
                "role": b'"user"',
            }
            assert said[field] in body
            status, _, _ = await served.post(body.replace(said[field], LONE))
            assert status in {200, 400, 404}
            assert (await served.post(chat()))[0] == 200

    run(main)
