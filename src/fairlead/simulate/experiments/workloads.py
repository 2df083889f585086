"""The workloads of the experiments: [DLPM]'s four from generators, and recorded traces where they lie."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from fairlead.simulate.experiments.base import Options
from fairlead.simulate.sweep.run import ALL, Sample
from fairlead.trace.workload import Workload

DOC_QA, TREE, JUDGE, CHAT, AGENTS = "doc-qa", "tree-of-thoughts", "judge", "multi-turn", "agents"
PAPER = (DOC_QA, TREE, JUDGE, CHAT)
SCARCE_KV = 64_000
"""Tokens of KV pool at which caching matters to the short workloads, about an A10G's with a 3B model.

With the A100's 449,000 all that they share stays cached, and order changes no hit."""
LONGEST_PROMPT = 100_000
"""Of the agents' trace; longer ones are left out, with the turns that follow from them."""
CLIENTS = 8


SHORTER = {CHAT: "think_s=2", AGENTS: "steps=8"}
"""Options by which conversations end sooner, for fleets: few long ones never fill eight workers."""


def kv_tokens(name: str) -> int:
    """Return the KV pool that a workload of [DLPM] runs with; 0 is the profile's own."""
    return 0 if name == DOC_QA else SCARCE_KV


def generated(
    name: str, requests: int, seed: int, *, attack: str = "", clients: int = 0, options: str = ""
) -> Workload:
    """Return a generator's workload; ``attack`` is ``kind:share``."""
    source = f"{name}:{options}" if options else name
    return Workload(source=source, requests=requests, seed=seed, attack=attack, clients=clients)


class Recorded(NamedTuple):
    """A recorded trace: what to call it, where it lies in the data folder, where to get it."""

    name: str
    path: str
    dataset: str
    assign: str
    max_prompt_tokens: int = 0

    def file(self, options: Options) -> Path | None:
        """Return the file, None where there is none."""
        path = options.data / "traces" / self.path if options.data else None
        return path if path and path.exists() else None

    def workload(self, options: Options, seed: int, *, requests: int = 0, attack: str = "") -> Workload:
        """Return the workload. Only where ``file`` has found one."""
        file = self.file(options)
        assert file is not None
        return Workload(
            source=str(file),
            requests=requests,
            seed=seed,
            attack=attack,
            assign=self.assign,
            clients=CLIENTS if self.assign else 0,
            max_prompt_tokens=self.max_prompt_tokens,
        )


CONVERSATION = Recorded(
    "conversation",
    "mooncake/conversation_trace.jsonl.zst",
    "Mooncake's conversation trace (github.com/kvcache-ai/Mooncake, FAST25-release)",
    "prefix",
)
CODING = Recorded(
    "coding agents",
    "kv-cache-tester/sessions_odd.tar.zst",
    "the sessions of callanjfox/kv-cache-tester (github.com), odd-numbered, as a .tar.zst",
    "session",
    LONGEST_PROMPT,
)
ARENA = Recorded(
    "arena (recorded)",
    "vtc-arena/arena_real_trace.csv",
    "the requests of VTC's real trace (github.com/Ying1123/VTC-artifact) as a CSV of"
    " req_id,client_id,arrival_s,input_tokens,output_tokens",
    "",
)


def missing(options: Options, recorded: Sequence[Recorded]) -> list[str]:
    """Say which traces are not there and where to get them."""
    where = f"in {options.data}" if options.data else "(no --data DIR, no FAIRLEAD_DATA)"
    return [
        f"{trace.name}: left out, traces/{trace.path} is not {where}; it is {trace.dataset}"
        for trace in recorded
        if trace.file(options) is None
    ]


def present(options: Options, recorded: Sequence[Recorded]) -> list[Recorded]:
    """Return the traces that are there."""
    return [trace for trace in recorded if trace.file(options) is not None]


def drawn(recorded: bool) -> Sample:
    """Return what a seed draws: other gaps between a recording's arrivals; a generator makes all anew.

    A recording is not cut in two for tuning: half of the sessions never load a fleet as all of them do.
    Scores are tuned on the same requests at other times, which can only flatter them.
    """
    return Sample(gaps=True) if recorded else ALL


def hot_prefix(folder: Path, requests: int, seed: int = 1) -> Path:
    """Write a workload in which one prefix suddenly takes most arrivals, and return the file.

    Poisson arrivals at 10 a second of questions on 64 documents of 4,096 tokens. In the middle third four
    of five requests ask about one new document of 16,384 tokens: its holders save themselves nearly all of
    the prefill, and a policy that follows the cache sends everything to them.
    """
    rng = Random(f"hot prefix/{seed}")
    fresh = 1_000_000
    now = 0.0
    lines = []
    for number in range(requests):
        now += rng.expovariate(10.0)
        hot = 3 * number // requests == 1 and rng.random() < 0.8
        first, blocks = (500_000, 32) if hot else (1_000 * (1 + rng.randrange(64)), 8)
        fresh += 1
        row = {
            "timestamp": round(now * 1000),
            "input_length": blocks * 512 + 100,
            "output_length": rng.randint(100, 300),
            "hash_ids": [*range(first, first + blocks), fresh],
        }
        lines.append(json.dumps(row))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hot-prefix-{requests}-{seed}.jsonl"
    unfinished = path.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
