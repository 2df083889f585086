"""vLLM's scheduler and KV cache without weights: requests in, one made-up token a step out.

Works where vLLM imports, on a CPU too; used by the benchmark beside it and by the tests of the plugin.
"""

import functools
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself
    import torch  # type: ignore[import-not-found]
    from vllm.engine.arg_utils import EngineArgs  # type: ignore[import-not-found]
    from vllm.sampling_params import SamplingParams  # type: ignore[import-not-found]
    from vllm.utils.hashing import sha256  # type: ignore[import-not-found]
    from vllm.v1.core.kv_cache_utils import (  # type: ignore[import-not-found]
        get_request_block_hasher,
        init_none_hash,
    )
    from vllm.v1.kv_cache_interface import (  # type: ignore[import-not-found]
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
    )
    from vllm.v1.outputs import ModelRunnerOutput  # type: ignore[import-not-found]
    from vllm.v1.request import Request, RequestStatus  # type: ignore[import-not-found]
    from vllm.v1.structured_output import StructuredOutputManager  # type: ignore[import-not-found]

BLOCK_TOKENS = 32
"""The smallest block that vLLM takes on a CPU."""


def engine_config(model: str, blocks: int, *, ahead: bool = False, **options: Any) -> Any:
    """Return vLLM's configuration for a model in a folder; ``ahead`` for asynchronous scheduling."""
    usual: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 8192,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
        "block_size": BLOCK_TOKENS,
        "enforce_eager": True,
        "enable_prefix_caching": True,
    }
    config = EngineArgs(model=model, num_gpu_blocks_override=blocks, **usual | options).create_engine_config()
    config.cache_config.num_gpu_blocks = blocks
    config.scheduler_config.async_scheduling = ahead
    return config


def make_scheduler(make: Callable[..., Any], config: Any, groups: Sequence[Any] | None = None) -> Any:
    """Make a scheduler of the class ``make`` for a model with one layer of full attention."""
    if groups is None:
        layer = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32)
        groups = [KVCacheGroupSpec(["layer"], layer)]
    blocks = config.cache_config.num_gpu_blocks
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=list(groups))
    return make(
        vllm_config=config,
        kv_cache_config=kv,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
        include_finished_set=False,
        log_stats=True,
    )


@functools.cache
def _hasher() -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK_TOKENS, sha256)


def new_request(
    name: str, client: str | None, prompt: Sequence[int], output_tokens: int, **options: Any
) -> Any:
    """Make a request as vLLM's engine core does; ``client`` goes where ``vllm_xargs`` would put it."""
    params = SamplingParams(
        max_tokens=output_tokens,
        ignore_eos=True,
        temperature=0,
        extra_args=None if client is None else {"client_id": client},
    )
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt),
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        block_hasher=_hasher(),
        **options,
    )


class Bare:
    """A scheduler driven step by step; ``ahead`` schedules a step before the last one has ended."""

    def __init__(self, scheduler: Any, *, ahead: bool = False) -> None:
        self.scheduler = scheduler
        self.tokens: dict[str, list[int]] = {}
        """Output so far, by request."""
        self.clients: dict[str, str] = {}
        """Whose requests were sent."""
        self._depth = 2 if ahead else 1
        self._under_way: deque[tuple[Any, Any]] = deque()

    def send(self, name: str, client: str, prompt: Sequence[int], output_tokens: int) -> None:
        """Let a request of a client arrive."""
        self.clients[name] = client
        self.scheduler.add_request(new_request(name, client, prompt, output_tokens))

    def step(self) -> Any:
        """Schedule a step and end the oldest one under way; return what was scheduled."""
        scheduled = self.scheduler.schedule()
        self._under_way.append((scheduled, self.output_of(scheduled)))
        idle = not scheduled.num_scheduled_tokens
        while len(self._under_way) >= self._depth or (idle and self._under_way):
            self.end(*self._under_way.popleft())
        return scheduled

    def output_of(self, scheduled: Any) -> Any:
        """Return what a model would give for a step that was just scheduled."""
        names = list(scheduled.num_scheduled_tokens)
        requests = self.scheduler.requests
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[] if requests[n].is_prefill_chunk else [self._token(n)] for n in names],
        )

    def end(self, scheduled: Any, output: Any) -> None:
        """End a step with what a model gave for it."""
        for of_frontend in self.scheduler.update_from_output(scheduled, output).values():
            for one in of_frontend.outputs:
                self.tokens.setdefault(one.request_id, []).extend(one.new_token_ids)

    def _token(self, name: str) -> int:
        """Return a token of the request's own, the same in every run."""
        return 300 + hash((name.encode()[-1], len(name), len(self.tokens.get(name, ())))) % 1700

    def run(self, most: int = 100_000, seen: Callable[[], None] = lambda: None) -> int:
        """Take steps until nothing is left to do; return how many. AssertionError after ``most``."""
        for number in range(most):
            if not self.scheduler.has_unfinished_requests():
                return number
            self.step()
            seen()
        raise AssertionError(f"not done after {most} steps")

    def abort(self, name: str) -> None:
        """End a request as its client's disconnection does."""
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)


def prompt(length: int, own: object, shared: int = 0, document: object = None) -> list[int]:
    """Return ``length`` tokens, of which the first ``shared`` are those of ``document``."""
    rng, rest = random.Random(f"document {document}"), random.Random(f"own {own}")
    return rng.choices(range(300, 2000), k=shared) + rest.choices(range(300, 2000), k=length - shared)
