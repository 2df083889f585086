"""The live view of a phase: a table in a terminal, a line now and then elsewhere."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from fairlead.demo.clients import Traffic
from fairlead.demo.workload import CLIENTS
from fairlead.http.client import Pool, UpstreamError
from fairlead.report.distribution import percentile
from fairlead.report.fairness import fair_shares

_RECENT = 40  # requests that the live TTFT looks back on
_BAR = 12

Samples = dict[str, dict[str, float]]
"""Metric name to label (client or worker) to value."""


class View:
    """What one phase looks like while it runs."""

    def __init__(self, console: Console, place: str, title: str, policies: str, plain: bool) -> None:
        self.console = console
        self.heading = f"{place}  {title}: {policies}"
        self.plain = plain or not console.is_terminal

    @contextlib.asynccontextmanager
    async def watch(self, url: str, traffic: Traffic, seconds: float) -> AsyncIterator[None]:
        """Show the phase for as long as the block runs."""
        pool = Pool(url)
        task = asyncio.create_task(self._show(pool, traffic, seconds))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await pool.close()

    async def _show(self, pool: Pool, traffic: Traffic, seconds: float) -> None:
        if self.plain:
            self.console.print(self.heading)
            while True:
                await asyncio.sleep(5)
                self.console.print(_line(traffic))
        # transient: the table makes room for the summary when the phase ends
        with Screen(console=self.console, auto_refresh=False, transient=True) as screen:
            while True:
                samples = await _scrape(pool)
                screen.update(self._frame(traffic, samples, seconds), refresh=True)
                await asyncio.sleep(0.25)

    def _frame(self, traffic: Traffic, samples: Samples, seconds: float) -> Group:
        elapsed = min(traffic.loop.time() - traffic.started, seconds)
        done = round(30 * elapsed / seconds)
        bar = Text("━" * done, style="green") + Text("━" * (30 - done), style="bright_black")
        head = Text(self.heading, style="bold") + "  " + bar + f"  {elapsed:.0f} of {seconds:.0f} s"
        return Group(head, Columns([_clients(traffic, samples), _workers(samples)], padding=(0, 3)))


async def _scrape(pool: Pool) -> Samples:
    """Read the gateway's metrics; nothing when it does not answer in time."""
    samples: Samples = defaultdict(dict)
    with contextlib.suppress(UpstreamError):
        _, _, body = await pool.fetch(b"GET", b"/metrics", timeout=2.0)
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                label = sample.labels.get("client") or sample.labels.get("worker")
                if label is not None and "le" not in sample.labels:
                    samples[sample.name][label] = sample.value
    return samples


def _clients(traffic: Traffic, samples: Samples) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("client", min_width=9)
    for head, width in (
        ("queued", 6),
        ("running", 7),
        ("done", 5),
        ("service", 9),
        ("of owed", 7),
        ("TTFT p50", 9),
        ("p99", 9),
    ):
        table.add_column(head, justify="right", min_width=width)
    shares = _shares(traffic)
    for client in CLIENTS:
        seen = traffic.seen[client.name]
        recent = sorted(seen.ttft_ms[-_RECENT:])
        queued = int(samples["fairlead_queued"].get(client.name, 0))
        running = max(0, len(traffic.open[client.name]) - queued)
        service = samples["fairlead_service_total"].get(client.name, 0)
        times = [f"{percentile(recent, p):,.0f} ms" if recent else "" for p in (50, 99)]
        counts = (str(queued), str(running), str(seen.completed), f"{service:,.0f}", shares[client.name])
        table.add_row(client.name, *counts, *times)
    return table


def _shares(traffic: Traffic) -> dict[str, str]:
    """Return each client's share of what it is owed until now, by the requests that it saw completed."""
    got = [seen.service for seen in traffic.seen.values()]
    wanted = [max(*both) for both in zip(traffic.demands().values(), got, strict=True)]
    owed = fair_shares(wanted, [1.0] * len(got), sum(got))
    return {
        name: f"{mine / share:.0%}" if share else "-"
        for name, mine, share in zip(traffic.seen, got, owed, strict=True)
    }


def _workers(samples: Samples) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for head in ("worker", "batch", "queued", "KV pool", "cache hits"):
        table.add_column(head, justify="left" if head in {"worker", "KV pool"} else "right")
    for number, worker in enumerate(sorted(samples["fairlead_worker_running"]), 1):
        total = samples["fairlead_worker_kv_tokens"].get(worker, 0)
        used = samples["fairlead_worker_kv_used_tokens"].get(worker, 0) / total if total else 0.0
        filled = min(_BAR, round(_BAR * used))
        hits = samples["fairlead_worker_hit_rate_predicted"].get(worker, 0.0)
        table.add_row(
            f"engine {number}",
            f"{samples['fairlead_worker_running'][worker]:.0f}",
            f"{samples['fairlead_worker_queued'].get(worker, 0):.0f}",
            Text("█" * filled, style="cyan") + Text("░" * (_BAR - filled), style="bright_black"),
            f"{hits:.0%}",
        )
    return table


def _line(traffic: Traffic) -> str:
    parts = []
    shares = _shares(traffic)
    for client in CLIENTS:
        seen = traffic.seen[client.name]
        recent = sorted(seen.ttft_ms[-_RECENT:])
        ttft = f"{percentile(recent, 50):,.0f} ms" if recent else "-"
        parts.append(f"{client.name}: {seen.completed} done, {shares[client.name]} of owed, TTFT p50 {ttft}")
    return f"  {traffic.loop.time() - traffic.started:4.0f} s  " + " | ".join(parts)
