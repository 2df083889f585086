"""Figures for Prometheus. Counting is a few additions; text is made when somebody asks for it.

Labels are bounded: the first ``clients`` names get series of their own, with the label ``client``. The rest
are added up in series with the label ``others`` in its place, so that no name can be taken for theirs.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fairlead.core.dispatcher import Dispatcher
from fairlead.gateway.workers import Worker
from fairlead.http.server import Server

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5)
DECISION_SECONDS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 0.02)
STAGES = ("identify", "parse", "keys", "decide")
OTHERS = {"others": "true"}
"""Labels of what is added up over clients without series of their own."""


class Histogram:
    """Counts by bucket. ``bounds`` ascend, in the unit of what is observed."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``. One below 0 counts as 0: a sum that falls is a restart to Prometheus."""
        value = max(value, 0.0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts as Prometheus writes them."""
        total = 0
        out = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            out.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
        return out


class ClientFigures:
    """What is counted for one client, or for all that share a label."""

    __slots__ = ("first_token", "output_tokens", "per_token", "prompt_tokens", "results", "wait")

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        """Requests by how they ended: ``ok``, ``error``, ``cancelled``, or why they were refused."""
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.wait = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)
        self.per_token = Histogram(TOKEN_SECONDS)

    def ended(self, result: str) -> None:
        """Count one end."""
        self.results[result] = self.results.get(result, 0) + 1


class Metrics:
    """All that the gateway counts itself; the rest is read from the dispatcher when asked for."""

    def __init__(self, clients: int) -> None:
        self._most = clients
        self.clients: dict[str, ClientFigures] = {}
        self.other = ClientFigures()
        self.stages = {stage: Histogram(DECISION_SECONDS) for stage in STAGES}
        self.loop_delay = Histogram((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0))
        self.refused: dict[str, int] = {}
        """Requests refused before they had a client: bad bodies, unknown keys."""

    def client(self, name: str) -> ClientFigures:
        """Return the figures that ``name`` is counted under."""
        found = self.clients.get(name)
        if found is None:
            if len(self.clients) >= self._most:
                return self.other
            found = self.clients[name] = ClientFigures()
        return found

    def refuse(self, reason: str) -> None:
        """Count a request refused at the door."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


class Exposition:
    """A Prometheus collector over one gateway."""

    def __init__(
        self,
        metrics: Metrics,
        dispatcher: Dispatcher,
        workers: Iterable[Worker],
        server: Server,
    ) -> None:
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._workers = workers
        self._server = server

    def render(self) -> bytes:
        """Return the exposition text."""
        # Only whoever is scraped pays for the library.
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator["Metric"]:
        """Give every family."""
        from prometheus_client import core  # noqa: PLC0415

        yield from self._of_clients(core)
        yield from self._of_books(core)
        yield from self._of_workers(core)
        yield from self._of_itself(core)
        yield from self._of_connections(core)

    def _of_clients(self, core: Any) -> Iterator["Metric"]:
        metrics = self._metrics
        requests = core.CounterMetricFamily(
            "fairlead_requests", "Requests that ended, by result.", labels=["client", "result"]
        )
        prompts = core.CounterMetricFamily(
            "fairlead_prompt_tokens",
            "Prompt tokens of requests that ended, cached ones included.",
            labels=["client"],
        )
        outputs = core.CounterMetricFamily(
            "fairlead_output_tokens", "Output tokens of requests that ended.", labels=["client"]
        )
        wait = core.HistogramMetricFamily(
            "fairlead_queue_wait_seconds",
            "Time from arrival until the request is sent to a worker.",
            labels=["client"],
        )
        first = core.HistogramMetricFamily(
            "fairlead_ttft_seconds", "Time from arrival to the first token.", labels=["client"]
        )
        each = core.HistogramMetricFamily(
            "fairlead_tpot_seconds", "Time per output token after the first.", labels=["client"]
        )
        shown = [({"client": name}, figures) for name, figures in metrics.clients.items()]
        if metrics.other.results:
            shown.append((OTHERS, metrics.other))
        for who, figures in shown:
            for result, count in figures.results.items():
                _add(requests, {**who, "result": result}, count)
            _add(prompts, who, figures.prompt_tokens)
            _add(outputs, who, figures.output_tokens)
            for family, histogram in (
                (wait, figures.wait),
                (first, figures.first_token),
                (each, figures.per_token),
            ):
                _add_histogram(family, who, histogram)
        yield from (requests, prompts, outputs, wait, first, each)

    def _of_books(self, core: Any) -> Iterator["Metric"]:
        dispatcher, metrics = self._dispatcher, self._metrics
        service = core.CounterMetricFamily(
            "fairlead_service",
            "Service delivered: computed prompt tokens + 2 x output tokens.",
            labels=["client"],
        )
        outstanding = core.GaugeMetricFamily(
            "fairlead_service_outstanding",
            "Prompt work that is charged, but not computed yet, in units of service.",
            labels=["client"],
        )
        credit = core.GaugeMetricFamily(
            "fairlead_client_credit",
            "What the client may still use: its deficit (dlpm) or minus its counter (vtc).",
            labels=["client", "worker"],
        )
        queued = core.GaugeMetricFamily(
            "fairlead_queued", "Requests that wait in the gateway.", labels=["client"]
        )
        shared = [0, 0, 0]
        slots = [(s, w) for w, s in dispatcher.fleet.slots.items()]
        accounts = dispatcher.ledger.accounts
        for name in metrics.clients:
            account = accounts.get(name)
            waiting = dispatcher.shares.count(name)
            queued.add_metric([name], waiting)
            shared[2] -= waiting
            if account is None:
                continue
            service.add_metric([name], account.delivered)
            outstanding.add_metric([name], account.outstanding)
            shared[0] -= account.delivered
            shared[1] -= account.outstanding
            credits_ = [(w, dispatcher.ordering.credit(s, name)) for s, w in slots]
            if len({value for _, value in credits_}) == 1:
                _add(credit, {"client": name}, credits_[0][1])  # the same on all workers: it names none
                continue
            for worker, value in credits_:
                _add(credit, {"client": name, "worker": worker}, value)
        shared[0] += sum(a.delivered for a in accounts.values())
        shared[1] += sum(a.outstanding for a in accounts.values())
        shared[2] += dispatcher.queued
        for family, rest in zip((service, outstanding, queued), shared, strict=True):
            _add(family, OTHERS, rest)
        yield from (service, outstanding, credit, queued)

    def _of_workers(self, core: Any) -> Iterator["Metric"]:
        fleet = self._dispatcher.fleet
        tables: list[tuple[str, str, Sequence[Any]]] = [
            (
                "fairlead_worker_running",
                "Sequences of requests that were sent to it and have not ended.",
                fleet.running,
            ),
            (
                "fairlead_worker_queued",
                "Sequences of requests that wait for it in the gateway.",
                fleet.queued,
            ),
            ("fairlead_worker_max_num_seqs", "Capacity: most sequences in its batch.", fleet.max_num_seqs),
            ("fairlead_worker_kv_tokens", "Capacity: tokens of its KV pool.", fleet.kv_tokens),
            (
                "fairlead_worker_kv_used_tokens",
                "KV tokens in use by requests that are assigned to it.",
                fleet.kv_used,
            ),
            (
                "fairlead_worker_pending_prefill_tokens",
                "Prompt tokens that are assigned to it, and not cached or computed yet.",
                fleet.pending_prefill_tokens,
            ),
            (
                "fairlead_worker_hit_rate_predicted",
                "Recent share of prompt tokens predicted to be cached.",
                fleet.hit_rate,
            ),
            (
                "fairlead_worker_engine_running",
                "Requests that run, as the engine reports.",
                fleet.engine_running,
            ),
            (
                "fairlead_worker_engine_waiting",
                "Requests that wait inside, as the engine reports.",
                fleet.engine_waiting,
            ),
        ]
        for name, text, column in tables:
            family = core.GaugeMetricFamily(name, text, labels=["worker"])
            for worker, slot in fleet.slots.items():
                family.add_metric([worker], column[slot])
            yield family
        up = core.GaugeMetricFamily(
            "fairlead_worker_up", "1 if it takes requests, 0 if it is out.", labels=["worker"]
        )
        real = core.GaugeMetricFamily(
            "fairlead_worker_hit_rate_real",
            "Recent share of prompt tokens that were cached, by the engine's usage.",
            labels=["worker"],
        )
        precise = core.GaugeMetricFamily(
            "fairlead_worker_kv_precise",
            "1 if its cache is known precisely, by KV-cache events.",
            labels=["worker"],
        )
        failures = core.CounterMetricFamily(
            "fairlead_worker_failures", "Requests that failed on it.", labels=["worker"]
        )
        refusals = core.CounterMetricFamily(
            "fairlead_worker_refusals", "Requests that it had no room for (429, 503).", labels=["worker"]
        )
        stale = core.CounterMetricFamily(
            "fairlead_worker_stale_retries",
            "Requests sent again because a kept connection was closed.",
            labels=["worker"],
        )
        ignored = core.CounterMetricFamily(
            "fairlead_worker_figures_ignored",
            "Figures of the engine that cannot be true, and are ignored.",
            labels=["worker", "figure"],
        )
        for engine in self._workers:
            up.add_metric([engine.id], engine.up)
            precise.add_metric([engine.id], engine.precise)
            for figure, count in engine.ignored.items():
                ignored.add_metric([engine.id, figure], count)
            failures.add_metric([engine.id], engine.failed)
            refusals.add_metric([engine.id], engine.refused)
            stale.add_metric([engine.id], engine.pool.stale_retries)
            if engine.reported_prompt_tokens:
                real.add_metric([engine.id], engine.reported_cached_tokens / engine.reported_prompt_tokens)
        yield from (up, real, precise, failures, refusals, stale, ignored)

    def _of_itself(self, core: Any) -> Iterator["Metric"]:
        metrics = self._metrics
        stages = core.HistogramMetricFamily(
            "fairlead_decision_seconds",
            "Time of each stage of taking in a request, of one request in eight.",
            labels=["stage"],
        )
        for stage, histogram in metrics.stages.items():
            stages.add_metric([stage], histogram.buckets(), histogram.sum)
        delay = core.HistogramMetricFamily(
            "fairlead_event_loop_delay_seconds", "How late timers fire: the event loop was busy."
        )
        delay.add_metric([], metrics.loop_delay.buckets(), metrics.loop_delay.sum)
        refused = core.CounterMetricFamily(
            "fairlead_refused", "Requests refused before they had a client, by reason.", labels=["reason"]
        )
        for reason, count in metrics.refused.items():
            refused.add_metric([reason], count)
        retries = core.CounterMetricFamily("fairlead_retries", "Requests that were tried on another worker.")
        retries.add_metric([], self._dispatcher.retries)
        yield from (stages, delay, refused, retries)

    def _of_connections(self, core: Any) -> Iterator["Metric"]:
        backlogs = self._server.backlogs
        connections = core.GaugeMetricFamily("fairlead_connections", "Open client connections.")
        connections.add_metric([], len(self._server.connections))
        waiting = core.GaugeMetricFamily(
            "fairlead_answer_buffer_bytes", "Bytes of answers that wait for clients that read slowly."
        )
        waiting.add_metric([], backlogs.waiting)
        bodies = core.GaugeMetricFamily(
            "fairlead_request_bodies_bytes", "Bytes held of request bodies beyond 16 KiB."
        )
        bodies.add_metric([], self._server.bodies.held)
        bodies_refused = core.CounterMetricFamily(
            "fairlead_request_bodies_refused", "Request bodies refused because others took the memory."
        )
        bodies_refused.add_metric([], self._server.bodies.refused)
        cut = core.CounterMetricFamily(
            "fairlead_slow_readers_cut", "Clients cut off because they read too slowly.", labels=["reason"]
        )
        for reason, count in backlogs.cut.items():
            cut.add_metric([reason], count)
        yield from (connections, waiting, cut, bodies, bodies_refused)


def _add(family: "Metric", labels: dict[str, str], value: float) -> None:
    """Add a sample with just these labels."""
    family.add_sample(family.name + ("_total" if family.type == "counter" else ""), labels, value)


def _add_histogram(family: "Metric", labels: dict[str, str], histogram: Histogram) -> None:
    buckets = histogram.buckets()
    for bound, count in buckets:
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{family.name}_count", labels, buckets[-1][1])
    family.add_sample(f"{family.name}_sum", labels, histogram.sum)
