"""What a step of vLLM's scheduler costs with the plugin, against vLLM's own first come, first served.

    python -m benchmarks.plugins.vllm_step MODEL_FOLDER [--waiting 100 1000] [--steps 400] [--order dlpm ...]

The real scheduler and KV cache, no weights. Prompts of 4,096 tokens from ten clients, kept waiting in the
given number: whoever is admitted is replaced. 64 places in the batch, 8,192 tokens a step, outputs of 32 to
96, so that a step admits about one request, evicts blocks and stores others. Two kinds of prompts:

own     nothing is shared: every order is the same work, and what differs is the order's own cost
shared  3,072 of the tokens are one of thirty documents, of which the cache holds half

A step is ``schedule`` and ``update_from_output``. All schedulers take turns, a step each, so that they see
the same machine; times are of the thread's CPU. Printed are microseconds a step, mean and median, and the
ratio of means to stock vLLM; ``arrival`` is ``add_request`` alone, hashing not included.
"""

import argparse
import gc
import logging
import os
import random
import statistics
import time

from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found]

from benchmarks.plugins.bare_vllm import Bare, engine_config, make_scheduler, new_request, prompt
from fairlead.plugins.settings import PREFIX
from fairlead.plugins.vllm import DLPMScheduler

CLIENTS, DOCUMENTS = 10, 30
PROMPT, SHARED = 4096, 3072
OUTPUT = (32, 96)
BLOCKS = {"own": 10_000, "shared": 5_000}
WARM_UP = 150


class Timed(Bare):
    """A scheduler that is kept fed, and whose steps are timed."""

    def __init__(self, model: str, order: str, kind: str, waiting: int) -> None:
        os.environ[PREFIX + "ORDER"] = order
        make = Scheduler if order == "stock" else DLPMScheduler
        super().__init__(make_scheduler(make, engine_config(model, BLOCKS[kind])))
        self.order = order
        self._kind = kind
        self._waiting = waiting
        self._sent = 0
        self.steps_ns: list[int] = []
        self.arrivals_ns: list[int] = []
        self.admitted = 0

    def feed(self) -> None:
        """Fill the queue up."""
        while len(self.scheduler.waiting) < self._waiting:
            number = self._sent
            self._sent += 1
            client = number % CLIENTS
            if self._kind == "shared":
                document = (number * 7919) % DOCUMENTS
                tokens = prompt(PROMPT, number, SHARED, document)
            else:
                tokens = prompt(PROMPT, number)
            length = random.Random(number).randint(*OUTPUT)
            request = new_request(str(number), f"client-{client}", tokens, length)
            began = time.thread_time_ns()
            self.scheduler.add_request(request)
            self.arrivals_ns.append(time.thread_time_ns() - began)

    def timed_step(self) -> None:
        """Take a step and note its time; the making of tokens is left out."""
        self.feed()
        began = time.thread_time_ns()
        scheduled = self.scheduler.schedule()
        middle = time.thread_time_ns()
        output = self.output_of(scheduled)
        after = time.thread_time_ns()
        self.scheduler.update_from_output(scheduled, output)
        self.steps_ns.append(time.thread_time_ns() - after + middle - began)
        self.admitted += len(scheduled.scheduled_new_reqs)

    def forget(self) -> None:
        """Forget what was noted so far: it was the warm-up."""
        self.steps_ns.clear()
        self.arrivals_ns.clear()
        self.admitted = 0


def measure(model: str, orders: list[str], kind: str, waiting: int, steps: int) -> None:
    all_of_them = [Timed(model, order, kind, waiting) for order in ["stock", *orders]]
    gc.collect()
    gc.freeze()
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            for one in all_of_them:
                one.forget()
        for one in all_of_them:
            one.timed_step()
    stock = statistics.fmean(all_of_them[0].steps_ns)
    for one in all_of_them:
        mean, median = statistics.fmean(one.steps_ns), statistics.median(one.steps_ns)
        arrival = statistics.fmean(one.arrivals_ns) / 1000 if one.arrivals_ns else 0.0
        print(
            f"{kind:7} {waiting:7,} {one.order:12} {mean / 1000:8.0f} {median / 1000:8.0f}"
            f" {mean / stock:8.2f} {one.admitted / steps:9.2f} {arrival:9.1f}"
        )


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder of a small model")
    parser.add_argument("--waiting", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--order", nargs="+", default=["dlpm", "vtc", "lpm", "fcfs"])
    args = parser.parse_args()
    columns = f"{'mean':>8} {'median':>8} {'ratio':>8} {'admitted':>9} {'arrival':>9}"
    print(f"{'prompts':7} {'waiting':>7} {'order':12} {columns}")
    for kind in BLOCKS:
        for waiting in args.waiting:
            measure(args.model, args.order, kind, waiting, args.steps)


if __name__ == "__main__":
    main()
