import contextlib
import time

import pytest

from fairlead.gateway import engines
from fairlead.gateway.engines import Load, SequenceCapacity
from fairlead.http.client import Pool
from tests.gateway.mocks import Ask, MockWorker, plain, run

VLLM = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="a}b"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a}b"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a}b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0"} 9.0
vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="32",engine="1",num_gpu_blocks="500"} 1.0
"""


class Ignored(list[str]):
    """Names of the figures that were not believed."""

    def __call__(self, figure: str, said: object) -> None:
        self.append(figure)


class Pages(MockWorker):
    """Answers GETs from a table of pages."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        super().__init__()
        self.pages = pages

    def _get(self, ask: Ask) -> bytes:
        page = self.pages.get(ask.line.split()[1])
        return plain(b"no", 404) if page is None else plain(page)


@contextlib.asynccontextmanager
async def paged(pages: dict[str, bytes]):
    """Give a pool to an engine that says this, and what is ignored of it."""
    worker = Pages(pages)
    await worker.start()
    pool = Pool(worker.url)
    try:
        yield pool, Ignored()
    finally:
        await pool.close()
        await worker.stop()


CASES = {
    "vllm": ({"/metrics": VLLM}, (engines.VLLM, None, 48_000), Load(7, 1)),
    "sglang": (
        {
            "/get_server_info": b'{"max_total_num_tokens": 1234, "max_running_requests": 48}',
            "/v1/loads?include=core": b'{"loads": [{"num_running_reqs": 2, "num_waiting_reqs": 1},'
            b' {"num_running_reqs": 3, "num_waiting_reqs": 0}]}',
        },
        (engines.SGLANG, 48, 1234),
        Load(5, 1),
    ),
    "llama.cpp with metrics": (
        {
            "/metrics": b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n",
            "/props": b'{"total_slots": 4, "default_generation_settings": {"n_ctx": 100}}',
        },
        (engines.LLAMA_CPP, 4, 400),
        Load(2, 1),
    ),
    "llama.cpp without metrics": (
        {"/props": b'{"total_slots": 4}', "/slots": b'[{"is_processing": true}, {"is_processing": false}]'},
        (engines.LLAMA_CPP, 4, None),
        Load(1, 0),
    ),
    "something else": ({}, (engines.UNKNOWN, None, None), None),
    "nonsense": (
        {"/metrics": b"\xff", "/get_server_info": b"[", "/props": b'{"total_slots": "x"}', "/slots": b"{}"},
        (engines.LLAMA_CPP, None, None),
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_engines_are_read_each_in_its_own_way(name):
    pages, capacity, load = CASES[name]

    async def main():
        async with paged(pages) as (pool, ignored):
            found = await engines.capacity(pool, (), 2.0, ignored)
            assert tuple(found) == capacity
            assert await engines.load(found.kind, pool, (), 2.0, ignored) == load
            assert ignored == (["total_slots"] if name == "nonsense" else [])

    run(main)


def vllm(running="1", waiting="0", size="16", blocks="1000") -> bytes:
    return (
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
        f'vllm:cache_config_info{{block_size="{size}",num_gpu_blocks="{blocks}"}} 1.0\n'
    ).encode()


def sglang(tokens="1234", most="48", running="2", waiting="1") -> dict[str, bytes]:
    return {
        "/get_server_info": f'{{"max_total_num_tokens": {tokens}, "max_running_requests": {most}}}'.encode(),
        "/v1/loads?include=core": (
            f'[{{"num_running_reqs": {running}, "num_waiting_reqs": {waiting}}},'
            ' {"num_running_reqs": 1, "num_waiting_reqs": 0}]'
        ).encode(),
    }


HUGE = "9" * 400
IMPOSSIBLE = ("-1", "1e400", "0.5", HUGE, str(2**31))
"""What no engine's figure can be, as JSON and Prometheus write it."""


@pytest.mark.parametrize("said", [*IMPOSSIBLE, "NaN", "+Inf", "x", "1" * 5000])
def test_figures_of_prometheus_that_cannot_be_are_ignored_and_counted(said):
    async def main():
        for pages, figure in (
            (vllm(running=said), "running"),
            (vllm(waiting=said), "waiting"),
            (vllm(size=said), "cache_config_info"),
            (vllm(blocks=said), "cache_config_info"),
        ):
            async with paged({"/metrics": pages}) as (pool, ignored):
                found = await engines.capacity(pool, (), 2.0, ignored)
                load = await engines.load(found.kind, pool, (), 2.0, ignored)
                assert ignored == [figure]
                assert found.kv_tokens == (None if figure == "cache_config_info" else 16_000)
                assert load == (Load(1, 0) if figure == "cache_config_info" else None)

    run(main)


@pytest.mark.parametrize(
    "said", [*(said for said in IMPOSSIBLE if said != "1e400"), "1e300", "true", '"7"', "[]"]
)
def test_figures_in_json_that_cannot_be_are_ignored_and_counted(said):
    props = b'{"total_slots": 2, "default_generation_settings": {"n_ctx": %b}}'

    async def main():
        for pages, figures in (
            (sglang(tokens=said), ["max_total_num_tokens"]),
            (sglang(most=said), ["max_running_requests"]),
            (sglang(running=said), ["running"]),
            (sglang(waiting=said), ["waiting"]),
            ({"/props": f'{{"total_slots": {said}}}'.encode(), "/slots": b"[]"}, ["total_slots"]),
            ({"/props": props % said.encode()}, ["n_ctx"]),
        ):
            async with paged(pages) as (pool, ignored):
                found = await engines.capacity(pool, (), 2.0, ignored)
                await engines.load(found.kind, pool, (), 2.0, ignored)
                assert ignored == figures

    run(main)


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"data":' * 50_000, b"\xff", b"9" * 5000, b'{"data": [1e400]}', b""]
)
def test_bodies_that_are_no_json_say_nothing_and_break_nothing(body):
    async def main():
        names = ("/metrics", "/get_server_info", "/props", "/slots", "/v1/models", "/v1/loads?include=core")
        async with paged(dict.fromkeys(names, body)) as (pool, ignored):
            assert await engines.capacity(pool, (), 2.0, ignored) == (engines.UNKNOWN, None, None)
            for kind in (engines.VLLM, engines.SGLANG, engines.LLAMA_CPP):
                assert await engines.load(kind, pool, (), 2.0, ignored) is None
            assert await engines.models(pool, (), 2.0, ignored) == []

    run(main)


MODELS = {
    "an empty name": (b'{"id": ""}', 0),
    "a name of two lines": (b'{"id": "a\\nb"}', 0),
    "an endless name": (b'{"id": "%b"}' % (b"a" * 257), 0),
    "no text": (b'{"id": 7}', 0),
    "no name": (b"{}", 0),
    "no entry": (b"7", 0),
    "a parent of two lines": (b'{"id": "a", "parent": "b\\n"}', 0),
    "a name twice": (b'{"id": "a"}, {"id": "a", "parent": "b"}', 1),
    "a length that is none": (b'{"id": "a", "max_model_len": -1}', 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_impossible_model_leaves_the_others(name):
    entry, more = MODELS[name]

    async def main():
        async with paged({"/v1/models": b'{"data": [%b, {"id": "good", "parent": "base"}]}' % entry}) as (
            pool,
            ignored,
        ):
            models = await engines.models(pool, (), 2.0, ignored)
            assert [(model.id, model.parent) for model in models] == [("a", "")] * more + [("good", "base")]
            assert ignored == ["model"] * (1 - more)

    run(main)


def test_a_list_of_models_without_end_is_cut():
    async def main():
        entries = b",".join(b'{"id":"m%d"}' % n for n in range(50_000))
        async with paged({"/v1/models": b'{"data": [%b]}' % entries}) as (pool, ignored):
            assert len(await engines.models(pool, (), 2.0, ignored)) == 1000
            assert ignored == ["models"]

    run(main)


def test_labels_are_read_in_time_that_grows_with_their_length():
    """A megabyte without an end of a label took minutes when each character began a search anew."""

    async def main():
        text = b"vllm:cache_config_info{%b} 1.0\n" % (b"a" * 500_000)
        async with paged({"/metrics": text}) as (pool, ignored):
            began = time.perf_counter()
            assert (await engines.capacity(pool, (), 2.0, ignored)).kv_tokens is None
            assert time.perf_counter() - began < 5

    run(main)


def test_an_engine_that_does_not_say_its_limit_is_explored_from_below():
    capacity = SequenceCapacity(64, known=False)
    assert (capacity.now, capacity.exploring) == (8, True)
    assert capacity.read(Load(3, 0), 3) == 8, "no growth while it is not used up"
    assert [capacity.read(Load(n, 0), n) for n in (8, 16, 32)] == [16, 32, 64]
    assert not capacity.exploring
    capacity = SequenceCapacity(64, known=False)
    assert capacity.read(Load(4, 4), 8) == 8, "one reading is normal: a request waits for the next step"
    assert capacity.read(Load(4, 4), 8) == 4
    assert not capacity.exploring
    assert capacity.read(Load(4, 0), 4) == 5, "from here on by an eighth"
    assert SequenceCapacity(4, known=False).now == 4
    assert not SequenceCapacity(4, known=False).exploring


def test_capacity_falls_to_what_runs_and_grows_back():
    capacity = SequenceCapacity(64, known=True)
    assert capacity.read(Load(10, 5), 64) == 64, "one reading is normal: a request waits for the next step"
    assert capacity.read(Load(10, 5), 64) == 10
    assert capacity.read(Load(10, 0), 5) == 10, "no growth while it is not used up"
    assert capacity.read(Load(10, 0), 10) == 11
    for _ in range(100):
        capacity.read(Load(5, 0), 1000)
    assert capacity.now == 64
    for _ in range(5):
        capacity.read(Load(0, 9), 64)
    assert capacity.now == 1, "never none"
