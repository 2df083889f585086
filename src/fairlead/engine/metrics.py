"""The engine's figures under vLLM's names, in Prometheus' text form."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.engine.model import Engine
from fairlead.engine.pace import Pacer

# vLLM's buckets, in seconds.
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TPOT_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_E2E_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_LABELS = ("model_name", "engine")


class EngineMetrics(Collector):
    """Gauges and counters are read from the engine when scraped; only ended requests are observed."""

    def __init__(self, engine: Engine, pacer: Pacer, model_name: str) -> None:
        self._engine = engine
        self._pacer = pacer
        self._values = (model_name, "0")
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.ended: Counter[str] = Counter()
        """Requests by finish reason: ``stop``, ``length``, ``abort``."""
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._ttft = self._histogram("time_to_first_token", "Arrival to first token", _TTFT_BUCKETS)
        self._tpot = self._histogram(
            "request_time_per_output_token", "Mean time a token after the first, per request", _TPOT_BUCKETS
        )
        self._e2e = self._histogram("e2e_request_latency", "Arrival to last token", _E2E_BUCKETS)

    def observe(self, reason: str, tokens: int, ttft_s: float, e2e_s: float) -> None:
        """Count a request that ended by itself."""
        self.ended[reason] += 1
        self._ttft.observe(ttft_s)
        self._e2e.observe(e2e_s)
        if tokens > 1:
            self._tpot.observe((e2e_s - ttft_s) / (tokens - 1))

    def render(self) -> bytes:
        """Return everything in the text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what the engine says of itself now."""
        engine, load = self._engine, self._engine.load
        yield self._gauge("num_requests_running", "Requests in the batch", load.running)
        yield self._gauge("num_requests_waiting", "Requests not in the batch", load.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", load.kv_usage)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up", load.prefix_queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens found cached", load.prefix_hits)
        yield self._counter("num_preemptions", "Requests that lost their KV blocks", load.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens of admitted requests", self.prompt_tokens)
        yield self._counter("generation_tokens", "Output tokens", self.generation_tokens)
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests that ended", labels=(*_LABELS, "finished_reason")
        )
        for reason in ("stop", "length", "abort"):
            ended.add_metric((*self._values, reason), self.ended[reason])
        yield ended
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV pool", labels=("block_size", "num_gpu_blocks", "engine")
        )
        info.add_metric((str(engine.block_tokens), str(engine.pool.blocks), "0"), 1)
        yield info
        lag = CounterMetricFamily("fairlead_engine_lag_seconds", "Time lost: the host cannot keep the pace")
        lag.add_metric((), self._pacer.lag_s)
        yield lag

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full = Histogram(f"vllm:{name}_seconds", text, _LABELS, buckets=buckets, registry=self._registry)
        return full.labels(*self._values)
