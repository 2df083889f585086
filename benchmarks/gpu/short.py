"""Orders inside a real vLLM server in under nine minutes: E1's documents, and closed loops.

    python -m benchmarks.gpu.before COMMIT FOLDER   # once: the plugin as it was
    PYTHONPATH=src:FOLDER python -m benchmarks.gpu.short OUT [--rules fcfs vtc before/dlpm dlpm]

Needs vLLM, this package and the repository's root as working directory; `--shape tiny` runs on a CPU. One
server serves all: between two runs its rules are changed and its cache is emptied (benchmarks.gpu.switch).

The documents are E1's `doc-qa` at an eighth of the length, with an eighth of the KV pool: as scarce, and
there is time for enough requests. Eight clients, and one more that sends 1.5 times as much as all of these;
arrivals at --rate documents' questions a second, the same for all rules. In the closed loops `noisy` keeps 50
requests open and `quiet` a few, as many run at a time as SLOTS says.

OUT gets a file for each run, the server's log and about.json. A run whose result is there already is not
repeated, and --seconds-in-all stops before a run that would not end in time.
"""

import argparse
import importlib.util
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.loops import closed_loops, seconds_of_batch
from benchmarks.gpu.run import ATTACK, BenchmarkError, environment, on_gpu, replay, server
from benchmarks.gpu.shapes import SHAPES, write_model
from benchmarks.gpu.switch import BEFORE, CLIENT, RULES, SLOTS

ORDERS = ("fcfs", "vtc", BEFORE + "dlpm", "dlpm")
MODEL = "random"
DOCUMENTS = "documents"
NOISY_OPEN = 50
LOOP_TOKENS = (415, 100)
"""Prompt and output."""
PREFILLS = (256, 512, 1_024, 2_048, 4_096, 8_192)
"""Prompts that are timed alone, with one token of output."""
BATCHES = (1, 4, 8, 16, 32, 64, 128)
"""Requests that are timed together, of BATCH_TOKENS each."""
BATCH_TOKENS = (256, 65)
REPEATS = 3
SETTLE_S = 1.0
"""What the engine may take to end its last step, before it is told to change its rules."""


class Setting(NamedTuple):
    """What differs between the GPU and a try on a CPU."""

    workload: str
    kv_tokens: int
    slots: int
    """Requests at a time, for the documents."""
    cells: tuple[tuple[int, int], ...]
    """Closed loops: requests at a time, requests that ``quiet`` keeps open."""
    options: dict[str, str]


SETTINGS = {
    # No compilation by torch, so that it starts soon; decode steps are CUDA graphs.
    "llama-3.1-8b": Setting(
        "doc-qa:doc_tokens=2500",
        56_128,
        256,
        ((4, 2), (4, 4), (8, 8)),
        {"--compilation-config": json.dumps({"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"})},
    ),
    "tiny": Setting(
        "doc-qa:doc_tokens=640,documents=2,question_tokens=32,output_tokens=8", 4_800, 4, ((4, 2),), {}
    ),
}


def switch(url: str, rules: str, slots: int) -> None:
    """Have the server begin anew with other rules."""
    time.sleep(SETTLE_S)
    xargs = {"client_id": CLIENT, RULES: rules, SLOTS: slots}
    body = {"model": MODEL, "prompt": [2, 3, 4], "max_tokens": 1, "vllm_xargs": xargs}
    asked = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - our own server
        answer.read()


def warm_up(url: str) -> None:
    """Have what is compiled or captured at first use done before anything is measured."""
    switch(url, "fcfs", 256 if on_gpu() else 4)
    closed_loops(url, MODEL, {"warm": 16}, seconds=3.0, prompt_tokens=900, output_tokens=20, salt="warm")


def time_steps(url: str, file: Path) -> None:
    """Time prompts alone, and batches of equal requests that are sent at once; the fastest of REPEATS."""
    switch(url, "fcfs", 256)

    def fastest(kind: str, count: int, prompt: int, output: int) -> float:
        salts = [f"{kind} {count} {prompt} {number}" for number in range(REPEATS)]
        return min(seconds_of_batch(url, MODEL, count, prompt, output, salt) for salt in salts)

    prefills = {tokens: fastest("prefill", 1, tokens, 1) for tokens in PREFILLS}
    batches = {count: fastest("batch", count, *BATCH_TOKENS) for count in BATCHES}
    prompt, output = BATCH_TOKENS
    told = {"prefill_s": prefills, "batch_s": batches, "batch_prompt": prompt, "batch_output": output}
    file.write_text(json.dumps(told, indent=1) + "\n")


class Run(NamedTuple):
    """One result: of documents, or of closed loops with so many slots and requests open."""

    rules: str
    slots: int
    quiet_open: int = 0

    def file(self, out: Path) -> Path:
        """Return where it lies."""
        kind = f"loops-{self.slots}-{self.quiet_open}" if self.quiet_open else DOCUMENTS
        return out / f"{kind}-{self.rules.translate(str.maketrans('/:,', '---', '='))}.json"


def measure(args: argparse.Namespace, setting: Setting, url: str, run: Run) -> None:
    """Make one run's file."""
    switch(url, run.rules, run.slots)
    file = run.file(args.out)
    if not run.quiet_open:
        source = f"{setting.workload},rate={args.rate:g}"
        replay(url, source, args.requests, file, run.rules, args.shape, "--attack", ATTACK)
        return
    prompt, output = LOOP_TOKENS
    result: dict[str, Any] = closed_loops(
        url,
        MODEL,
        {"noisy": NOISY_OPEN, "quiet": run.quiet_open},
        seconds=args.loop_seconds,
        prompt_tokens=prompt,
        output_tokens=output,
        salt=file.stem,
    )
    result = {"rules": run.rules, "slots": run.slots, **result}
    file.write_text(json.dumps(result, indent=1) + "\n")
    services = [one["service"] for one in result["clients"].values()]
    print(f"   noisy : quiet = {services[0]:,} : {services[1]:,}", flush=True)


def measure_all(args: argparse.Namespace, setting: Setting, began: float) -> list[Run]:
    """Run what has no result yet; return what there was no time for."""
    shape, model = SHAPES[args.shape], args.out / "model"
    runs = [Run(rules, setting.slots) for rules in args.rules]
    runs += [Run(rules, slots, quiet) for slots, quiet in setting.cells for rules in args.rules]
    wanted = [run for run in runs if not run.file(args.out).exists()]
    if not wanted:
        return []
    write_model(shape, model)
    given = dict(option.partition("=")[::2] for option in args.option)
    more = {**setting.options, **{f"--{name}": value for name, value in given.items()}}
    more = {**more, "--scheduler-cls": "benchmarks.gpu.switch.SwitchScheduler"}
    left = []
    print(f"starting vLLM ({args.out / 'logs' / 'vllm'}.log)", flush=True)
    with server(shape, model, args.out, "vllm", "fcfs", setting.kv_tokens, more) as url:
        print(f"{time.monotonic() - began:4.0f} s: it serves", flush=True)
        about = {**environment(), "rate": args.rate, "requests": args.requests}
        (args.out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        warm_up(url)
        steps = args.out / "steps.json"
        if on_gpu() and not steps.exists():
            time_steps(url, steps)
        longest = {True: args.loop_seconds + 5, False: 30.0}
        for run in wanted:
            loops = bool(run.quiet_open)
            start = time.monotonic()
            if args.seconds_in_all and start - began + longest[loops] > args.seconds_in_all:
                left.append(run)
                continue
            print(f"{start - began:4.0f} s: {run.file(args.out).stem}", flush=True)
            measure(args, setting, url, run)
            longest[loops] = max(longest[loops], time.monotonic() - start)
    return left


def main() -> int:
    """Measure. Returns 0; 1 where something failed or there was not enough time; 2 for wrong usage."""
    began = time.monotonic()
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for results")
    parser.add_argument(
        "--shape", choices=SETTINGS, default=next(iter(SETTINGS)), help="default: %(default)s"
    )
    parser.add_argument("--rules", nargs="+", default=list(ORDERS), metavar="RULES", help="default: all")
    parser.add_argument("--requests", type=int, default=160, help="of the eight clients (default: 160)")
    parser.add_argument("--rate", type=float, default=12.6, help="their questions a second (default: 12.6)")
    parser.add_argument("--loop-seconds", type=float, default=15.0, help="default: 15")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME[=VALUE]", help="a further option of vLLM"
    )
    parser.add_argument("--seconds-in-all", type=float, default=0.0, help="default: no limit")
    args = parser.parse_args()
    if args.requests < 1 or args.rate <= 0 or args.loop_seconds <= 0:
        parser.error("--requests, --rate and --loop-seconds: more than 0")
    missing = ["vllm"] if importlib.util.find_spec("vllm") is None else []
    if any(rules.startswith(BEFORE) for rules in args.rules) and not importlib.util.find_spec(
        "fairlead_before"
    ):
        missing.append("fairlead_before (python -m benchmarks.gpu.before makes it)")
    if missing:
        print(f"benchmarks.gpu.short: not installed here: {' and '.join(missing)}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        left = measure_all(args, SETTINGS[args.shape], began)
    except (BenchmarkError, AssertionError, OSError, ValueError) as error:
        print(f"benchmarks.gpu.short: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.gpu.short: interrupted; the same command goes on", file=sys.stderr)
        return 130
    for run in left:
        print(f"no time for {run.file(args.out).stem}; the same command goes on")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
