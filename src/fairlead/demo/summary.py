"""The demo's result, side by side."""

from math import isnan

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fairlead.demo.figures import Phase
from fairlead.demo.processes import ENGINES, KV_TOKENS, PROFILE, SPEED
from fairlead.demo.workload import CLIENTS


def summary(phases: list[Phase]) -> Table:
    """Return the table: clients and totals down, phases across."""
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{ENGINES} engines, each a model of {PROFILE} at {SPEED}x, {KV_TOKENS:,} KV tokens",
        title_justify="left",
        title_style="bold",
        caption="\n".join(f"{c.name}: {c.about}" for c in CLIENTS)
        + "\nTTFT is from the scheduled arrival; what was unanswered at the end counts with its wait so far."
        + "\nService: computed prompt + 2 x output tokens. Owed: the max-min share of all service, at most"
        + "\nwhat was wanted. The agent wants what it would use with the shortest TTFT that it saw.",
        caption_justify="left",
    )
    table.add_column("")
    for phase in phases:
        table.add_column(f"{phase.title}\n{_policies(phase)}", justify="right", min_width=22)
    for client in CLIENTS:
        table.add_row(Text(client.name, style="bold"))
        seen = [phase.clients[client.name] for phase in phases]
        for percent in (50, 99):
            table.add_row(f"  TTFT p{percent}", *_times([s.ttft(percent) for s in seen]))
        table.add_row("  completed", *[f"{s.completed:,} of {s.sent:,}" for s in seen])
        if any(s.failed for s in seen):
            table.add_row("  failed", *[str(s.failed) for s in seen], style="red")
        owed = [f"{s.service:,} of {p.owed[client.name]:,.0f}" for s, p in zip(seen, phases, strict=True)]
        table.add_row("  service, of what is owed", *owed, end_section=True)
    table.add_row("prompt + output tokens/s", *[f"{phase.tokens_per_s:,.0f}" for phase in phases])
    table.add_row("cache hit rate", *[f"{phase.hit_rate:.0%}" for phase in phases])
    table.add_row("Jain index of service", *[f"{phase.jain:.3f}" for phase in phases])
    return table


def verdict(phases: list[Phase]) -> Text:
    """Return the difference in words, from the figures alone."""
    first, last = phases[0], phases[-1]
    lines = [f"{_policies(first)} -> {_policies(last)}"]
    for client in CLIENTS:
        before = first.clients[client.name].ttft(99)
        after = last.clients[client.name].ttft(99)
        got = [_share(phase, client.name) for phase in (first, last)]
        lines.append(
            f"{client.name}: p99 TTFT {_ms(before)} -> {_ms(after)} ({_change(before, after)}),"
            f" service {got[0]} -> {got[1]} of what is owed"
        )
    tokens = _change(first.tokens_per_s, last.tokens_per_s)
    lines.append(f"tokens/s: {first.tokens_per_s:,.0f} -> {last.tokens_per_s:,.0f} ({tokens})")
    failures = {s.last_error for phase in phases for s in phase.clients.values() if s.failed}
    lines += [f"failed requests said: {error}" for error in sorted(failures)]
    return Text("\n" + "\n".join(lines))


def _policies(phase: Phase) -> str:
    return f"{phase.order} + {phase.policy}"


def _share(phase: Phase, client: str) -> str:
    owed = phase.owed[client]
    return f"{phase.clients[client].service / owed:.0%}" if owed else "-"


def _ms(value: float) -> str:
    if isnan(value):  # nothing was sent
        return "-"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def _times(values: list[float]) -> list[Text]:
    """Return the times as text, those near the best of them in green."""
    best = min(values)
    return [Text(_ms(v), style="bold green" if v <= 1.25 * best < max(values) / 1.5 else "") for v in values]


def _change(before: float, after: float) -> str:
    if not before > 0 or not after > 0:
        return "no comparison"
    if 0.95 < before / after < 1.05:
        return "about the same"
    return f"{before / after:.1f}x less" if before > after else f"{after / before:.1f}x more"
