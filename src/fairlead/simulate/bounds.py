"""The bound on the service gap that an ordering guarantees, for the sizes in a run.

For two clients that are backlogged together, in service units over weight. docs/policies/ordering.md
proves them. The safe form U = w_e * L + w_q * M is used, with L the longest prompt and M the most
output tokens that running requests can still produce: what a batch of all engines can hold, of the
longest output.
"""

from dataclasses import dataclass

from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import parse_spec
from fairlead.simulate.settings import ENGINE, Settings


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run is made of, as far as bounds depend on it."""

    longest_prompt: int
    longest_output: int
    max_num_seqs: int
    kv_tokens: int
    """Of one engine."""
    least_weight: float


def bound(settings: Settings, sizes: Sizes) -> tuple[float, str]:
    """Return the bound and its formula; 0 and the reason, if nothing is guaranteed."""
    name, given = parse_spec(settings.order)
    values = ORDERINGS.resolve(name, given)
    if name not in {"dlpm", "vtc"}:
        return 0.0, f"{name} guarantees nothing to any client"
    costs, workers = settings.costs, settings.workers
    in_batch = min(sizes.max_num_seqs * sizes.longest_output, sizes.kv_tokens)
    shared = settings.topology != ENGINE and values.get("scope") == "fleet"
    batches = workers if shared else 1
    copies = 1 if shared else workers
    prompts = costs.extend * sizes.longest_prompt
    output = costs.output * in_batch * batches
    weight = sizes.least_weight
    where = "one account a client for all workers" if shared else f"separate accounts on {workers} workers"
    if name == "vtc":
        # Prompts that wait for the batch of other workers are admitted one at a time as well.
        one = 2 * max(prompts, output) / weight
        return copies * one, f"VTC: {copies} * 2 * max(w_e * L, w_q * M) / w = {copies * one:,.0f} ({where})"
    quantum = values.integer("quantum")
    one = 2 * (quantum + (prompts + output) / weight)
    text = f"DLPM: {copies} * 2 * (Q + (w_e * L + w_q * M) / w) = {copies * one:,.0f} ({where})"
    return copies * one, text
