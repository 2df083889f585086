"""vLLM's own scheduler and KV cache without a model behind them, in virtual time.

A step takes what the formula says and every request gets a token from it. With asynchronous scheduling a
step is scheduled when the one before it begins, as the engine's core does with two batches under way.
"""

import functools
import os
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fairlead.engine.steptime import PS_PER_US, StepTime, Work
from tests.engines.servers import BLOCK_TOKENS, MODEL_FOLDER

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager


class Arrival(NamedTuple):
    """A request as the scheduler gets it."""

    at_us: int
    prompt: Sequence[int]
    output_tokens: int


class Outcome(NamedTuple):
    """What happened, by the number of the request."""

    order: list[int]
    """Of first admission."""
    hits: dict[int, int]
    first_us: dict[int, int]
    ended_us: dict[int, int]
    preemptions: int


class _UnderWay(NamedTuple):
    ends_us: int
    scheduled: Any
    emits: set[str]
    """Requests that get a token from the step."""


def _scheduler(blocks: int, seqs: int, budget: int, *, ahead: bool) -> Any:
    config = EngineArgs(
        model=str(MODEL_FOLDER),
        dtype="float32",
        max_model_len=4096,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        block_size=BLOCK_TOKENS,
        enforce_eager=True,
        enable_prefix_caching=True,
        num_gpu_blocks_override=blocks,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = blocks
    config.scheduler_config.async_scheduling = ahead
    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    return (AsyncScheduler if ahead else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
    )


@functools.cache
def _hasher() -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK_TOKENS, sha256)


class Bare:
    """One scheduler, driven through all ``arrivals``, which are in order of time."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        times: StepTime,
        blocks: int,
        seqs: int,
        budget: int,
        *,
        ahead: bool,
    ) -> None:
        self._scheduler = _scheduler(blocks, seqs, budget, ahead=ahead)
        self._depth = 2 if ahead else 1
        self._arrivals = arrivals
        self._times = times
        self._coming = 0
        self._decoding: set[str] = set()
        self._under_way: deque[_UnderWay] = deque()
        self._free_us = 0
        """When the steps scheduled so far have ended."""
        self._preempt = self._scheduler._preempt_request
        self._scheduler._preempt_request = self._preempted
        self.outcome = Outcome([], {}, {}, {}, 0)

    def run(self) -> Outcome:
        """Serve everything."""
        now = 0
        scheduler, under_way = self._scheduler, self._under_way
        while True:
            self._arrive(now)
            if len(under_way) < self._depth and scheduler.has_requests() and self._schedule(now):
                continue
            if under_way:
                step = under_way.popleft()
                now = step.ends_us
                self._update(step)
            elif not scheduler.has_unfinished_requests():
                if self._coming == len(self._arrivals):
                    return self.outcome
                now = max(now, self._arrivals[self._coming].at_us)

    def _arrive(self, now: int) -> None:
        while self._coming < len(self._arrivals) and self._arrivals[self._coming].at_us <= now:
            _, prompt, output = self._arrivals[self._coming]
            self._scheduler.add_request(
                Request(
                    request_id=str(self._coming),
                    prompt_token_ids=list(prompt),
                    sampling_params=SamplingParams(max_tokens=output, ignore_eos=True, temperature=0),
                    pooling_params=None,
                    arrival_time=0.0,
                    block_hasher=_hasher(),
                )
            )
            self._coming += 1

    def _schedule(self, now: int) -> bool:
        """Schedule a step; return whether there was anything to compute."""
        scheduled = self._scheduler.schedule()
        tokens = scheduled.num_scheduled_tokens
        if not tokens:
            self._scheduler.update_from_output(scheduled, _output([], set()))
            return False
        work = self._work(tokens)
        self._free_us = max(now, self._free_us) + self._times.step_ps(*work) // PS_PER_US
        self._under_way.append(_UnderWay(self._free_us, scheduled, self._decoding & set(tokens)))
        return True

    def _work(self, tokens: Mapping[str, int]) -> Work:
        seqs = context = prefilled = area = 0
        for rid, count in tokens.items():
            request = self._scheduler.requests[rid]
            before = request.num_computed_tokens - count
            if rid in self._decoding:
                seqs += 1
                context += before
                continue
            prefilled += count
            area += count * (2 * before + count)
            if int(rid) not in self.outcome.hits:
                self.outcome.hits[int(rid)] = before
                self.outcome.order.append(int(rid))
            if request.num_computed_tokens >= request.num_tokens:
                self._decoding.add(rid)
        return Work(seqs, context, prefilled, area)

    def _update(self, step: _UnderWay) -> None:
        rids = list(step.scheduled.num_scheduled_tokens)
        self._scheduler.update_from_output(step.scheduled, _output(rids, step.emits))
        for rid in step.emits:
            self.outcome.first_us.setdefault(int(rid), step.ends_us)
        for rid in rids:
            if rid not in self._scheduler.requests:
                self._decoding.discard(rid)
                self.outcome.ended_us.setdefault(int(rid), step.ends_us)

    def _preempted(self, request: Any, *args: Any, **more: Any) -> None:
        self._decoding.discard(request.request_id)
        self.outcome = self.outcome._replace(preemptions=self.outcome.preemptions + 1)
        self._preempt(request, *args, **more)


def _output(rids: list[str], emits: set[str]) -> Any:
    return ModelRunnerOutput(
        req_ids=rids,
        req_id_to_index={rid: i for i, rid in enumerate(rids)},
        sampled_token_ids=[[300] if rid in emits else [] for rid in rids],
    )
