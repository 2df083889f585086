"""``fairlead replay``: a workload against a live endpoint, with the same result as a simulation's."""

import argparse
import asyncio
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fairlead.core.model import ClientId
from fairlead.core.params import nearest
from fairlead.replay.endpoint import CLIENT_HEADER, Asking, Endpoint, ReplayError
from fairlead.replay.live import Told, fitting, replay
from fairlead.replay.prompts import USUAL, Vocabulary
from fairlead.replay.sender import Pace, Sender
from fairlead.report.metrics import summarise
from fairlead.report.results import save
from fairlead.report.run import Run
from fairlead.report.terminal import show_run
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.workload import add_workload_arguments, workload_from

_EVERY_S = 0.25
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    pace, vocabulary = Pace(), USUAL
    shown = " (default: %(default)s)"
    parser.description = (
        "Send a workload to a live OpenAI-compatible endpoint: real lengths, equal prefixes for equal keys,"
        " open-loop arrivals, turns after their answers. docs/replay.md says how."
    )
    add = parser.add_argument
    add(
        "--url",
        required=True,
        help="address of the endpoint, such as http://127.0.0.1:8000; a final /v1 is ignored",
    )
    add("--model", default="", help="model to ask for (default: the only one that the endpoint serves)")
    add(
        "--api-key", action="append", default=[], metavar="[CLIENT=]KEY",
        help="a client's API key, or the key of all; @FILE reads one from each line",
    )  # fmt: skip
    add(
        "--client-header", default=CLIENT_HEADER, metavar="NAME",
        help="header that names the client, '' for none; the body's 'user' always names it" + shown,
    )  # fmt: skip
    add(
        "--speed",
        type=float,
        default=pace.speed,
        help="make arrivals and pauses this many times as fast" + shown,
    )
    add(
        "--timeout",
        type=float,
        default=pace.timeout_s,
        metavar="S",
        help="seconds after arrival at which a client gives up" + shown,
    )
    add(
        "--max-concurrency",
        type=int,
        default=0,
        metavar="N",
        help="most requests sent at a time (default: no limit)",
    )
    add(
        "--prompt-form", default="auto", choices=("auto", "tokens", "text"),
        help="send prompts as token ids (exact), or as text of estimated length" + shown,
    )  # fmt: skip
    add(
        "--vocab", default=f"{vocabulary.low}-{vocabulary.high}", metavar="LOW-HIGH",
        help="token ids that prompts are made of" + shown,
    )  # fmt: skip
    add(
        "--lengths", default="exact", choices=("exact", "limit"),
        help="exact sends min_tokens and ignore_eos, which vLLM and SGLang understand; limit sends"
        " max_tokens only" + shown,
    )  # fmt: skip
    add(
        "--salt",
        default="",
        help="a word that changes all texts, so that nothing sent before is found cached",
    )
    add("--max-model-len", type=int, default=0, help="leave longer requests out (default: the endpoint's)")
    add("--seed", type=int, default=1, help="seed of the workload" + shown)
    add("--policy", default="live", help="name of the endpoint's routing policy, for the report" + shown)
    add("--order", default="live", help="name of the endpoint's ordering policy, for the report" + shown)
    add("--engine", default="", help="name of the engine, for the report (default: the model)")
    add("--json", type=Path, metavar="FILE", help="write the result, for `fairlead report`")
    add_workload_arguments(parser, loops=False)


def run(args: argparse.Namespace) -> int:
    """Replay. Returns 0 done, 1 endpoint not usable or nothing completed, 2 wrong usage, 130 interrupted."""
    errors = Console(stderr=True)
    try:
        pace = _pace(args)
        workload = workload_from(args, args.seed)
        trace = workload.attacked(workload.open())
        if trace.understood:
            errors.print(trace.understood, style="dim", markup=False, highlight=False)
        asking = _asking(args, trace)
    except ValueError as error:  # TraceError and PolicyError too
        print(f"fairlead replay: {error}", file=sys.stderr)
        return 2
    try:
        found = uvloop.run(_replay(args, trace, asking, pace, errors))
    except (TraceError, ReplayError) as error:
        print(f"fairlead replay: {error}", file=sys.stderr)
        return 1 if isinstance(error, ReplayError) else 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("fairlead replay: interrupted before the first request", file=sys.stderr)
        return 130
    return _told(args, found, errors)


def _told(args: argparse.Namespace, found: Run, errors: Console) -> int:
    result = summarise(found)
    if args.json:
        save(args.json, result)
    show_run(result, Console())
    for reason, count in found.settings["errors"].items():
        errors.print(f"{count:,} requests: {reason}", style="yellow", markup=False, highlight=False)
    late = found.settings["sender_late_ms"]
    if late:
        print("sender's own lateness: " + ", ".join(f"{name} {ms:g} ms" for name, ms in late.items()))
    if args.json:
        print(f"wrote {args.json}; draw it with: fairlead report {args.json} --html report.html")
    if found.settings["interrupted"]:
        return 130
    return 0 if result["completed"] else 1


def _asking(args: argparse.Namespace, trace: Trace) -> Asking:
    return Asking(
        model=args.model,
        keys=read_keys(args.api_key, trace.clients),
        client_header=args.client_header,
        form=args.prompt_form,
        exact_lengths=args.lengths == "exact",
        vocabulary=read_vocabulary(args.vocab),
        salt=args.salt,
    )


def _pace(args: argparse.Namespace) -> Pace:
    if not 0 < args.speed < float("inf"):
        raise ValueError(f"--speed is a positive factor, not {args.speed:g}")
    if not 0 < args.timeout <= 1e6:
        raise ValueError(f"--timeout is a positive number of seconds, not {args.timeout:g}")
    for flag in ("max_concurrency", "max_model_len"):
        if getattr(args, flag) < 0:
            raise ValueError(f"--{flag.replace('_', '-')} cannot be negative")
    return Pace(speed=args.speed, timeout_s=args.timeout, max_concurrency=args.max_concurrency)


def read_vocabulary(told: str) -> Vocabulary:
    """Read ``LOW-HIGH``. Raises ValueError."""
    low, dash, high = told.partition("-")
    if dash and low.isascii() and low.isdigit() and high.isascii() and high.isdigit():
        found = Vocabulary(int(low), int(high))
        if found.low < found.high < 1 << 32:
            return found
    raise ValueError(f"--vocab '{told}': write the first and the last id, such as 1000-1999")


def read_keys(told: list[str], clients: Mapping[ClientId, float]) -> dict[ClientId, str]:
    """Return API keys by client, ``*`` for everybody else. Raises ValueError.

    An entry is ``KEY``, ``CLIENT=KEY`` or ``@FILE``, a file of such lines. What comes before the first
    ``=`` is a client if the workload has it; a key that holds ``=`` is written ``*=KEY``.
    """
    keys: dict[ClientId, str] = {}
    for entry in _entries(told):
        client, equals, key = entry.partition("=")
        if not equals:
            client, key = "*", entry
        if client != "*" and client not in clients:
            some = ", ".join(list(clients)[:8])
            raise ValueError(f"--api-key: no client '{client}' (there are: {some}){nearest(client, clients)}")
        if not (key.isascii() and key.isprintable() and key.strip()):
            raise ValueError(f"--api-key: the key of '{client}' is empty or has characters that no key has")
        keys[client] = key.strip()
    if keys and "*" not in keys:
        missing = [client for client in clients if client not in keys]
        if missing:
            raise ValueError(f"--api-key: no key for {', '.join(missing[:8])}; *=KEY is everybody else's")
    return keys


def _entries(told: list[str]) -> Iterator[str]:
    for entry in told:
        if not entry.startswith("@"):
            yield entry
            continue
        try:
            lines = Path(entry[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"--api-key {entry}: {error.strerror}") from None
        yield from filter(None, map(str.strip, lines))


async def _replay(args: argparse.Namespace, trace: Trace, asking: Asking, pace: Pace, errors: Console) -> Run:
    endpoint = Endpoint(args.url, asking)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    _on_interrupt(task.cancel)
    try:
        await endpoint.open(next(iter(trace.clients)))
        trace = fitting(trace, args.max_model_len or endpoint.max_model_len)
        for repair in trace.repairs:
            said = f"{repair.rule}: {repair.count:,} ({repair.example})"
            errors.print(said, style="yellow", markup=False, highlight=False)
        _allow_connections()
        told = Told(args.policy, args.order, args.engine, args.seed)
        with _bar(errors, trace.requests) as watch:

            def started(sender: Sender) -> None:
                _on_interrupt(sender.interrupt)
                for note in endpoint.notes:
                    errors.print(note, style="yellow", markup=False, highlight=False)
                watch(sender)

            return await replay(trace, endpoint, pace, started=started, told=told)
    finally:
        for sign in _INTERRUPTS:
            loop.remove_signal_handler(sign)
        await endpoint.pool.close()


def _on_interrupt(act: Callable[[], object]) -> None:
    for sign in _INTERRUPTS:
        asyncio.get_running_loop().add_signal_handler(sign, act)


def _allow_connections() -> None:
    """Let this process have as many connections open as the system allows: one a request under way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Watch:
    """Shows how far a sender is, on a terminal. Called with the sender once it starts."""

    def __init__(self, progress: Progress, requests: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=requests, state="")
        self._sender: Sender | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, sender: Sender) -> None:
        """Begin."""
        self._sender = sender
        if self._progress.console.is_terminal:
            self._show()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _show(self) -> None:
        sender = self._sender
        assert sender is not None
        tally, speed = sender.tally, self._progress.tasks[0].speed
        rate = f"{speed:,.1f} requests/s, " if speed else ""
        state = f"{rate}{sender.in_flight:,} in flight"
        failed = tally.reasons.total()
        if failed:
            state += f", {failed:,} not answered"
        self._progress.update(self._task, completed=tally.ended + tally.abandoned, state=state)
        self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self._show)


@contextmanager
def _bar(console: Console, requests: int) -> Iterator[_Watch]:
    columns = (
        TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        watch = _Watch(progress, requests)
        try:
            yield watch
        finally:
            watch.stop()
