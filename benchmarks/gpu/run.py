"""FCFS, LPM, VTC and DLPM inside a real vLLM server, on E1's workloads with a client that misbehaves.

    python -m benchmarks.gpu.run OUT [--shape llama-3.1-8b] [--order fcfs lpm vtc dlpm] [--workload judge ...]

Needs vLLM, this package and the repository's root as working directory; `--shape tiny` runs on a CPU. The
weights are random: they cost what real ones cost, and answers have the length that the workload says.

A workload's maximum is measured first: everything at once, in order of arrival. Then each order gets the
same requests, as in E1: eight clients with 0.9 of the maximum between them, and one more that sends 1.5
times as much as all of these. Every order has a server of its own, every run prompts of its own.

OUT gets a result of `fairlead replay` for each run, the logs of servers, and summary.json. A run whose result
is there already is not repeated.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHAPES, Shape, write_model
from fairlead.core.params import PolicyError
from fairlead.demo.processes import free_ports
from fairlead.plugins.settings import PREFIX, plugin_ordering, read_settings
from fairlead.report.results import load
from fairlead.trace.workload import Workload

ORDERS = ("fcfs", "lpm", "vtc", "dlpm")
LOAD, ATTACK = 0.9, "more:1.5"
"""As in E1 (fairlead.simulate.experiments.e1)."""
MAXIMUM = "maximum"
START_S = 1200
PATIENCE_S = 3600


class BenchmarkError(Exception):
    """Why it cannot go on, and what helps."""


@contextlib.contextmanager
def server(
    shape: Shape,
    model: Path,
    out: Path,
    name: str,
    order: str,
    kv_tokens: int,
    more: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run vLLM with the plugin for the length of a block; give its address. ``more`` are further options."""
    from tests.engines.servers import Server  # noqa: PLC0415 - imports what vLLM brings

    (port,) = free_ports(1)
    options = {
        "--model": str(model),
        "--served-model-name": "random",
        "--load-format": "dummy",
        "--dtype": shape.dtype,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--scheduler-cls": "fairlead.plugins.vllm.DLPMScheduler",
        **shape.options,
        **(more or {}),
    }
    if kv_tokens:
        options["--num-gpu-blocks-override"] = str(kv_tokens // int(options["--block-size"]))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enable-prefix-caching"]
    command += ["--enable-prompt-tokens-details"]
    for flag, value in options.items():
        command += [flag, value] if value else [flag]
    environment = {
        f"{PREFIX}ORDER": order,
        f"{PREFIX}METRICS_FILE": str(out / f"{name}-clients.json"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if not on_gpu():
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        command += ["--enforce-eager"]
    one = Server(name, command, environment, out / "logs")
    one.start()
    try:
        url = f"http://127.0.0.1:{port}"
        one.wait_ready(f"{url}/health", START_S)
        yield url
    finally:
        one.stop()


def on_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - comes with vLLM

    return bool(torch.cuda.is_available())


def replay(url: str, source: str, requests: int, result: Path, order: str, label: str, *more: str) -> None:
    """Send a workload and keep the result."""
    command = [sys.executable, "-m", "fairlead", "replay", source, "--url", url, "--requests", str(requests)]
    command += ["--prompt-form", "tokens", "--vocab", "2-1999", "--salt", result.stem, "--timeout"]
    command += [str(PATIENCE_S), "--order", order, "--policy", "one worker", "--engine", label]
    done = subprocess.run([*command, "--json", str(result), *more], check=False)  # noqa: S603 - ourselves
    if done.returncode:
        result.unlink(missing_ok=True)
        raise BenchmarkError(f"the replay of {source} on {order} ended with {done.returncode}")


def with_rate(source: str, rate: float) -> str:
    """Return the generator's spec with another rate, of conversations a second."""
    return f"{source}{',' if ':' in source else ':'}rate={rate:.6g}"


def conversations(source: str, requests: int) -> int:
    """Count the sessions of a workload: its rate is theirs."""
    return sum(1 for _ in Workload(source=source, requests=requests).open().sessions())


def environment() -> dict[str, Any]:
    """Say what this ran on."""
    import torch  # noqa: PLC0415 - comes with vLLM
    from vllm.version import __version__ as vllm_version  # type: ignore[import-not-found]  # noqa: PLC0415

    device = torch.cuda.get_device_name(0) if on_gpu() else f"{platform.machine()}, {os.cpu_count()} cores"
    return {"vllm": vllm_version, "torch": torch.__version__, "device": device}


def figures(order: str, workload: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return what the table shows of a run."""
    victims, fairness = result["victims"], result["fairness"]
    return {
        "workload": workload,
        "order": order,
        "completed": result["completed"],
        "failed": result["failed"],
        "tokens_per_s": round(result["total_token_throughput"], 1),
        "hit_rate": result["hit_rate"],
        "mean_ttft_ms": result["mean_ttft_ms"],
        "victims_mean_ttft_ms": victims["mean_ttft_ms"],
        "victims_p99_ttft_ms": victims["p99_ttft_ms"],
        "jain": fairness["windowed"]["jain_mean"],
        "service_gap": fairness["worst_gap"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    names = list(rows[0])
    texts = [[f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(name), *(len(text[i]) for text in texts)) for i, name in enumerate(names)]
    for line in [names, *texts]:
        print("  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)))


def measure(args: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """Run what has no result yet; return the rows of the table."""
    out, model = args.out, args.out / "model"
    write_model(shape, model)
    pools = {name: 0 if name in shape.long else shape.kv_tokens for name in args.workload}
    plan = [(MAXIMUM, "fcfs"), *((order, order) for order in args.order)]
    for kv_tokens in dict.fromkeys(pools.values()):
        for label, order in plan:
            files = {name: file_of(out, name, label) for name, kv in pools.items() if kv == kv_tokens}
            wanted = [name for name, file in files.items() if not file.exists()]
            if not wanted:
                continue
            name = f"{slug(label)}-{kv_tokens or 'all'}"
            print(f"== {label}, {', '.join(wanted)}: starting vLLM ({out / 'logs' / name}.log)", flush=True)
            with server(shape, model, out, name, order, kv_tokens) as url:
                for workload in wanted:
                    source, rate, more = shape.workloads[workload], 1e6, []
                    if label != MAXIMUM:
                        top = load(file_of(out, workload, MAXIMUM))["request_throughput"]
                        rate = LOAD * top * conversations(source, args.requests) / args.requests
                        more = ["--attack", ATTACK]
                    spec = with_rate(source, rate)
                    replay(url, spec, args.requests, files[workload], order, args.shape, *more)
    return [
        figures(order, name, load(file_of(out, name, order)))
        for name in args.workload
        for order in args.order
    ]


def file_of(out: Path, workload: str, label: str) -> Path:
    """Return where a run's result lies."""
    return out / f"{workload}-{slug(label)}.json"


def slug(label: str) -> str:
    """Return an order's spec as part of a file's name."""
    return label.translate(str.maketrans(":,", "--", "="))


def main() -> int:
    """Measure, print, write the summary. Returns 0, 1 where something failed, 2 for wrong usage."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for results")
    parser.add_argument("--shape", choices=SHAPES, default=next(iter(SHAPES)), help="default: %(default)s")
    parser.add_argument(
        "--order", nargs="+", default=list(ORDERS), metavar="ORDER", help="such as dlpm:quantum=4k"
    )
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="default: all of the shape")
    parser.add_argument("--requests", type=int, default=600, help="of the eight clients (default: 600)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    args.workload = args.workload or list(shape.workloads)
    unknown = [name for name in args.workload if name not in shape.workloads]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)} (there are {', '.join(shape.workloads)})")
    if args.requests < 1:
        parser.error("--requests: at least 1")
    for order in args.order:
        try:
            plugin_ordering(read_settings({f"{PREFIX}ORDER": order}))
        except (PolicyError, ValueError) as error:
            parser.error(f"--order {order}: {error}")
    if importlib.util.find_spec("vllm") is None:
        print("benchmarks.gpu.run: vLLM is not installed here; run it in vLLM's environment", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = measure(args, shape)
    except (BenchmarkError, AssertionError) as error:  # a server that does not start
        print(f"benchmarks.gpu.run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "benchmarks.gpu.run: interrupted; what is done is kept, the same command goes on", file=sys.stderr
        )
        return 130
    summary = {"shape": args.shape, "requests": args.requests, **environment(), "rows": rows}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
