"""Health, circuit breaker, credits: what the gateway makes of its workers' behaviour."""

import asyncio
import json

from tests.gateway.mocks import Ask, MockWorker, answer, chat, plain, run, serving


async def until(condition) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


def test_an_unhealthy_worker_gets_nothing_until_it_is_well():
    async def main():
        sick, well = MockWorker(), MockWorker()
        async with serving(sick, well) as served:
            workers = list(served.gateway.workers)
            sick.healthy = False
            await until(lambda: not workers[0].up)
            for _ in range(4):
                assert (await served.post(chat()))[0] == 200
            assert (len(sick.asked), len(well.asked)) == (0, 4)
            sick.healthy = True
            await until(lambda: workers[0].up)
            for _ in range(4):
                assert (await served.post(chat()))[0] == 200
            assert len(sick.asked) == 2

    run(main)


def test_a_killed_worker_is_noticed_and_so_is_its_return():
    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            (known,) = served.gateway.workers
            await worker.stop()
            await until(lambda: not known.up)
            waiting = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.05)
            assert served.gateway.dispatcher.queued == 1
            await worker.start()
            assert (await waiting)[0] == 200

    run(main)


def test_failures_in_a_row_open_the_circuit_and_probing_closes_it():
    async def main():
        bad, good = MockWorker(answer(status=500)), MockWorker()
        async with serving(bad, good, cb_failure_threshold=3, cb_timeout_secs=0.3) as served:
            known = next(iter(served.gateway.workers))
            for _ in range(12):
                assert (await served.post(chat()))[0] == 200
            assert not known.up
            assert len(bad.asked) == 3
            bad.behave = answer()
            await until(lambda: known.up)
            for _ in range(2):
                assert (await served.post(chat()))[0] == 200
            assert len(bad.asked) == 4
            assert not known.failures

    run(main)


def test_a_row_of_failures_is_ended_by_a_success():
    async def main():
        worker = MockWorker()
        async with serving(worker, cb_failure_threshold=3, max_attempts=1) as served:
            (known,) = served.gateway.workers
            for _ in range(4):
                for status in (500, 500, 200):
                    worker.behave = answer(status=status)
                    assert (await served.post(chat()))[0] == status
            assert known.up
            assert known.failed == 8

    run(main)


def test_health_checks_leave_the_counts_of_requests_alone():
    async def main():
        worker = MockWorker(answer(delay=0.4))
        async with serving(worker) as served:
            fleet = served.gateway.dispatcher.fleet
            asks = [asyncio.ensure_future(served.post(chat())) for _ in range(3)]
            await asyncio.sleep(0.1)
            worker.healthy = False
            (known,) = served.gateway.workers
            await until(lambda: not known.up)
            assert fleet.running[0] == 3
            assert [(await ask)[0] for ask in asks] == [200] * 3
            await served.settled()

    run(main)


def test_credits_hold_requests_back_and_follow_the_engines_queue():
    async def main():
        worker = MockWorker(answer(delay=0.3))
        async with serving(worker, worker_max_num_seqs=8) as served:
            dispatcher = served.gateway.dispatcher
            asks = [asyncio.ensure_future(served.post(chat())) for _ in range(12)]
            await until(lambda: len(worker.asked) == 8 and dispatcher.arrived == 12)
            assert (dispatcher.fleet.running[0], dispatcher.queued) == (8, 4)
            worker.running, worker.waiting = 2, 6
            await until(lambda: dispatcher.fleet.max_num_seqs[0] == 2)
            worker.running, worker.waiting = 2, 0
            await until(lambda: dispatcher.fleet.max_num_seqs[0] > 2)
            assert [(await ask)[0] for ask in asks] == [200] * 12

    run(main)


def test_an_engine_of_unknown_size_gets_few_requests_first_and_its_own_number_soon():
    async def main():
        worker = MockWorker(answer(delay=0.4))
        async with serving(worker, worker_max_num_seqs=0, load_interval_secs=60) as served:
            dispatcher = served.gateway.dispatcher
            asks = [asyncio.ensure_future(served.post(chat())) for _ in range(30)]
            await until(lambda: dispatcher.arrived == 30)
            assert (dispatcher.fleet.running[0], dispatcher.queued) == (8, 22)
            worker.running, worker.waiting = 5, 3
            await until(lambda: dispatcher.fleet.max_num_seqs[0] == 5)
            assert [(await ask)[0] for ask in asks] == [200] * 30

    run(main)


def test_limits_are_read_from_the_engine():
    async def main():
        async with serving(MockWorker(), worker_max_num_seqs=99) as served:
            fleet = served.gateway.dispatcher.fleet
            assert (fleet.max_num_seqs[0], fleet.kv_tokens[0]) == (99, 16_000)
        async with serving(MockWorker(), worker_kv_tokens=5) as served:
            assert served.gateway.dispatcher.fleet.kv_tokens[0] == 5

    run(main)


class Talker(MockWorker):
    """Says what it is told to, page by page; what has no page is answered as usual."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        super().__init__()
        self.pages = pages

    def _get(self, ask: Ask) -> bytes:
        page = self.pages.get(ask.line.split()[1])
        return super()._get(ask) if page is None else page


def load_of(running: str, waiting: str = "3") -> bytes:
    text = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
    return plain(text.encode(), kind=b"text/plain")


def test_a_load_that_cannot_be_leaves_ours_and_is_counted_and_logged_once(caplog):
    async def main():
        worker = Talker({"/metrics": load_of("2")})
        async with serving(worker) as served:
            fleet, known = served.gateway.dispatcher.fleet, next(iter(served.gateway.workers))
            await until(lambda: fleet.engine_running[0] == 2)
            worker.pages["/metrics"] = load_of("1e400")
            await until(lambda: known.ignored.get("running", 0) >= 3)
            assert (fleet.engine_running[0], fleet.engine_waiting[0]) == (2, 3)
            assert known.up
            _, text = await served.get(b"/metrics")
            series = f'fairlead_worker_figures_ignored_total{{figure="running",worker="{known.id}"}}'
            assert series.encode() in text
            worker.pages["/metrics"] = load_of("1", "0")
            await until(lambda: fleet.engine_running[0] == 1)

    run(main)
    assert sum("cannot be true, which is ignored: running" in text for text in caplog.messages) == 1


def test_answers_without_end_or_sense_stop_neither_the_start_nor_the_watch():
    async def main():
        endless = b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n" + b"x" * 3_000_000
        nested = plain(b"[" * 500_000)
        pages = {"/metrics": endless, "/get_server_info": nested, "/props": nested, "/v1/models": nested}
        async with serving(Talker(pages)) as served:
            (known,) = served.gateway.workers
            assert known.up
            assert (await served.post(chat()))[0] == 200

    run(main)


def test_a_worker_that_dribbles_its_figures_holds_up_only_itself():
    async def main():
        slow = Talker({"/metrics": b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:"})
        good = MockWorker()
        async with serving(slow, good, health_timeout_secs=0.2) as served:
            assert next(worker for worker in served.gateway.workers if worker.id == good.url).up
            fleet = served.gateway.dispatcher.fleet
            for running in (7, 8, 9):
                good.running = running
                await until(lambda: fleet.engine_running[fleet.slots[good.url]] == good.running)
            await until(lambda: all(worker.up for worker in served.gateway.workers))
            for _ in range(2):
                assert (await served.post(chat()))[0] == 200

    run(main)


def test_the_start_waits_for_no_worker_that_dribbles():
    async def main():
        page = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"
        pages = dict.fromkeys(("/metrics", "/get_server_info", "/props", "/v1/models"), page)
        worker = Talker(pages)
        async with serving(worker, health_timeout_secs=0.5) as served:
            (known,) = served.gateway.workers
            assert not known.up
            assert (await served.get(b"/health"))[0] == 200
            await until(lambda: known.up)

    run(main)


def test_adapters_that_are_no_longer_served_are_forgotten():
    async def main():
        def models(*names: str) -> bytes:
            entries = [{"id": "base"}, *({"id": name, "parent": "base"} for name in names)]
            return plain(json.dumps({"data": entries}).encode())

        worker = Talker({"/v1/models": models("one", "two")})
        async with serving(worker) as served:
            workers = served.gateway.workers
            (known,) = workers
            assert set(workers.adapters) == {"one", "two"}
            worker.pages["/v1/models"] = models("three")
            worker.healthy = False
            await until(lambda: not known.up)
            worker.healthy = True
            await until(lambda: known.up)
            assert set(workers.adapters) == {"three"}

    run(main)
