"""Runs made by hand or by a toy simulation, for the tests of this room."""

import random
from array import array

from fairlead.report.run import DONE, Fairness, Requests, Run, Series


def empty_series(clients: int = 0, workers: int = 1, interval_us: int = 1_000_000) -> Series:
    return Series(
        interval_us,
        service=[array("d") for _ in range(clients)],
        demand=[array("d") for _ in range(clients)],
        queued=[array("q") for _ in range(clients)],
        running=[array("q") for _ in range(workers)],
        waiting=[array("q") for _ in range(workers)],
        kv_used=[array("d") for _ in range(workers)],
        prefilled=[array("q") for _ in range(workers)],
    )


def add(
    requests: Requests,
    client: int,
    arrived: int,
    first: int = -1,
    ended: int = -1,
    prompt: int = 100,
    cached: int = 0,
    output: int = 0,
    outcome: int = DONE,
    worker: int = 0,
) -> None:
    requests.client.append(client)
    requests.arrived.append(arrived)
    requests.sent.append(arrived if worker >= 0 else -1)
    requests.first.append(first)
    requests.ended.append(ended)
    requests.prompt.append(prompt)
    requests.cached.append(cached)
    requests.output.append(output)
    requests.worker.append(worker)
    requests.outcome.append(outcome)


def make_run(
    clients: tuple[str, ...] = (),
    requests: Requests | None = None,
    series: Series | None = None,
    **changes: object,
) -> Run:
    requests = Requests() if requests is None else requests
    values: dict[str, object] = {
        "kind": "simulate",
        "workload": "by hand",
        "policy": "marginal",
        "order": "dlpm",
        "engine": "toy",
        "workers": 1,
        "topology": "gateway",
        "seed": 1,
        "load": 0.0,
        "clients": clients,
        "weights": [1.0] * len(clients),
        "misbehaving": (),
        "labels": (),
        "requests": requests,
        "series": empty_series(len(clients)) if series is None else series,
        "fairness": Fairness(),
        "duration_us": max(requests.ended, default=0),
        **changes,
    }
    return Run(**values)  # type: ignore[arg-type]


def queue_run(
    seed: int = 1,
    load: float = 0.8,
    policy: str = "marginal",
    order: str = "dlpm",
    speed: float = 1.0,
    clients: tuple[str, ...] = ("anna", "ben", "cleo", "flood"),
    requests: int = 400,
    workers: int = 2,
    hit: float = 0.5,
    **changes: object,
) -> Run:
    """Return a run of ``workers`` first-come servers: not an engine, but it queues and saturates as one."""
    draw = random.Random(seed)
    rows, free = Requests(), [0] * workers
    series = empty_series(len(clients), workers, 1_000_000)
    at, itl = 0.0, dict.fromkeys((9_000, 10_000, 30_000), 0)
    for _ in range(requests):
        client = len(clients) - 1 if draw.random() < 0.5 else draw.randrange(len(clients))
        at += draw.expovariate(1.0) * 1e6 / (workers * load)
        prompt, output = draw.randrange(200, 2000), draw.randrange(1, 80)
        cached = int(min(0.95, hit * draw.uniform(0.5, 1.5)) * prompt)
        worker = min(range(workers), key=free.__getitem__)
        start = max(int(at), free[worker])
        first = start + int((prompt - cached) * 300 / speed)
        ended = first + (output - 1) * int(10_000 / speed)
        # The server is held for what it takes on average, so that load 1 is where the queue starts to grow.
        free[worker] = start + int(draw.uniform(0.8, 1.2) * 1e6 / speed)
        itl[draw.choice(list(itl))] += output - 1
        add(rows, client, int(at), first, ended, prompt, cached, output, worker=worker)
    _sample(rows, series, workers)
    values: dict[str, object] = {
        "policy": policy,
        "order": order,
        "load": load,
        "seed": seed,
        "workers": workers,
        "misbehaving": ("flood",) if "flood" in clients else (),
        "itl": itl,
        "reachable_hit_rate": min(1.0, hit * 1.2),
        "fairness": Fairness(9_000.0 / speed, clients[:2], 24_000.0, "2·(U + Q) = 2·(8,000 + 4,000)"),  # type: ignore[arg-type]
        "elapsed_s": 0.02,
        "labels": ("clients are synthetic",),
        "settings": {"requests": requests, "burstiness": 1.0},
        **changes,
    }
    return make_run(clients, rows, series, **values)


def _sample(rows: Requests, series: Series, workers: int) -> None:
    """Fill the series from the rows, naively: every sample looks at every request."""
    for second in range(1, max(rows.ended) // 1_000_000 + 2):
        now = second * 1_000_000
        for client in range(len(series.service)):
            mine = [i for i in range(len(rows)) if rows.client[i] == client]
            cost = {i: rows.prompt[i] - rows.cached[i] + 2 * rows.output[i] for i in mine}
            series.service[client].append(sum(cost[i] for i in mine if rows.ended[i] <= now))
            full = sum(rows.prompt[i] + 2 * rows.output[i] for i in mine if rows.arrived[i] <= now)
            series.demand[client].append(full)
            series.queued[client].append(sum(1 for i in mine if rows.arrived[i] <= now < rows.first[i]))
        for worker in range(workers):
            mine = [i for i in range(len(rows)) if rows.worker[i] == worker]
            running = sum(1 for i in mine if rows.first[i] <= now < rows.ended[i])
            series.running[worker].append(running)
            series.waiting[worker].append(sum(1 for i in mine if rows.arrived[i] <= now < rows.first[i]))
            series.kv_used[worker].append(min(1.0, running / 4))
            series.prefilled[worker].append(
                sum(rows.prompt[i] - rows.cached[i] for i in mine if rows.first[i] <= now)
            )
