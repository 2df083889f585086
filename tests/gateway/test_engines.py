import pytest

from fairlead.gateway import engines
from fairlead.gateway.engines import Load, SequenceCredit
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


class Pages(MockWorker):
    """Answers GETs from a table of pages."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        super().__init__()
        self.pages = pages

    def _get(self, ask: Ask) -> bytes:
        page = self.pages.get(ask.line.split()[1])
        return plain(b"no", 404) if page is None else plain(page)


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
    from fairlead.http.client import Pool

    pages, capacity, load = CASES[name]

    async def main():
        worker = Pages(pages)
        await worker.start()
        pool = Pool(worker.url)
        found = await engines.capacity(pool, (), 2.0)
        assert tuple(found) == capacity
        assert await engines.load(found.kind, pool, (), 2.0) == load
        await pool.close()
        await worker.stop()

    run(main)


def test_credit_falls_to_what_runs_and_grows_back():
    credit = SequenceCredit(64)
    assert credit.read(Load(10, 5), 64) == 64, "one reading is normal: a request waits for the next step"
    assert credit.read(Load(10, 5), 64) == 10
    assert credit.read(Load(10, 0), 5) == 10, "no growth while it is not used up"
    assert credit.read(Load(10, 0), 10) == 11
    for _ in range(100):
        credit.read(Load(5, 0), 1000)
    assert credit.now == 64
    for _ in range(5):
        credit.read(Load(0, 9), 64)
    assert credit.now == 1, "never none"
