"""SGLang's real scheduler, batches, memory and prefix cache on a CPU, without a model.

What is left out: processes, messages, and the forward pass, whose answer is token 7 for everybody. The
scheduler is made without its constructor, which would start all that.
"""

import itertools
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_parallel, publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

VOCABULARY = 1000
TOKEN = 7
"""What every forward pass puts out."""


def publish_config(**options: Any) -> None:
    """Tell SGLang's modules of a server's arguments, as each of its processes does first."""
    arguments = ServerArgs(model_path="none", device="cpu", schedule_policy="lpm", **options)
    publish(arguments, role="scheduler")
    get_parallel().override_permanently(pp_max_micro_batch_size=1000, attn_tp_rank=0, dp_rank=None)


def new_cache(pool: ReqToTokenPool, slots: TokenToKVPoolAllocator, kind: str, *, disable: bool) -> Any:
    params = CacheInitParams(
        disable=disable, req_to_token_pool=pool, token_to_kv_pool_allocator=slots, page_size=1
    )
    if kind == "radix":
        return RadixCache(params)
    params.tree_components = (ComponentType.FULL,)
    return UnifiedRadixCache(params)


class Silent:
    """Stands for what only tells or counts: has what it is given, and methods that do nothing."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


class Bare:
    """A scheduler and what a server would do around it. ``overlap`` takes in results a step later."""

    def __init__(
        self,
        *,
        tokens: int = 4000,
        sequences: int = 6,
        chunk: int = 512,
        cache: str = "unified",
        overlap: bool = False,
        disable: bool = False,
        **options: Any,
    ) -> None:
        self.overlap = overlap
        self.tokens: dict[str, int] = {}
        """Output tokens of each request, as they were sent to its client."""
        self.clients: dict[str, str | None] = {}
        self.aborted: list[str] = []
        self.live: dict[str, Req] = {}
        self._results: list[tuple[ScheduleBatch, GenerationBatchResult]] = []
        self.scheduler = self._make(tokens, sequences, chunk, cache, disable, options)

    def _make(
        self, tokens: int, sequences: int, chunk: int, cache: str, disable: bool, options: dict[str, Any]
    ) -> Any:
        made = Scheduler.__new__(Scheduler)
        pool = ReqToTokenPool(sequences, 4096, "cpu", enable_memory_saver=False)
        kv = MHATokenToKVPool(
            tokens, 1, torch.float16, 1, 1, 1, "cpu", enable_memory_saver=False, enable_alt_stream=False
        )
        slots = TokenToKVPoolAllocator(tokens, torch.float16, "cpu", kv, need_sort=False)
        tree = new_cache(pool, slots, cache, disable=disable)
        model = SimpleNamespace(
            vocab_size=VOCABULARY,
            is_encoder_decoder=False,
            self_opened_think_start_ids=None,
            hf_text_config=None,
        )
        beams = Silent(pending_member_rows=lambda _: 0, commit_decode=lambda _: set())
        streamer = Silent(stream_output=self._stream)
        reporter = Silent(
            enable_metrics=False,
            current_scheduler_metrics_enabled=False,
            num_generated_tokens=0,
            forward_ct_decode=0,
        )
        runner = Silent(prefill_aware_swa=False, attn_backend=SimpleNamespace())
        made.__dict__.update(
            schedule_policy="lpm",
            enable_priority_scheduling=False,
            enable_hierarchical_cache=False,
            enable_hicache_storage=False,
            enable_unified_cache_external_linker=False,
            enable_lmcache=False,
            enable_lora=False,
            enable_hisparse=False,
            enable_fpm=False,
            enable_continuous_input_polling=False,
            enable_skip_finishing_decode=self.overlap,
            enable_overlap=self.overlap,
            schedule_low_priority_values_first=False,
            abort_on_priority_when_disabled=False,
            dllm_config=None,
            scheduler_stage_metrics=None,
            is_hybrid_swa=False,
            is_mixed_chunk=False,
            is_generation=True,
            require_mlp_sync=False,
            prefill_decode_interval=0,
            _prefill_decode_interval_remaining=0,
            _pending_chunked_abort_req=None,
            disaggregation_mode=DisaggregationMode.NULL,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            tree_cache=tree,
            req_to_token_pool=pool,
            token_to_kv_pool_allocator=slots,
            page_size=1,
            device="cpu",
            model_config=model,
            max_prefill_tokens=16384,
            chunked_prefill_size=chunk,
            max_running_requests=sequences,
            max_queued_requests=None,
            priority_scheduling_preemption_threshold=0,
            dynamic_chunk_sizer=None,
            min_free_slots_delayer=None,
            truncation_align_size=None,
            decode_offload_manager=None,
            hisparse_coordinator=None,
            mm_receiver=None,
            rust_server=None,
            chunked_req=None,
            waiting_queue=[],
            running_batch=ScheduleBatch(reqs=[]),
            last_batch=None,
            result_queue=self._results,
            processed_tokens_counter=0,
            forward_ct=0,
            grammar_manager=Silent(has_waiting_grammars=lambda: False),
            beam_coordinator=beams,
            metrics_reporter=reporter,
            load_publisher=Silent(),
            load_inquirer=Silent(_get_num_pending_tokens=lambda **_: 0),
            output_streamer=streamer,
            tp_worker=Silent(model_runner=runner),
            future_map=Silent(),
            dp_attn_adapter=Silent(
                maybe_prepare_mlp_sync_batch=lambda batch, **_: batch,
                maybe_convert_decode_to_extend=lambda batch: batch,
            ),
            ngram_embedding_manager=Silent(prepare_for_forward=lambda batch, **_: batch),
            ipc_channels=Silent(send_to_tokenizer=Silent(send_output=self._abort_told)),
            publish_load_snapshot=lambda **_: None,
            maybe_send_health_check_signal=lambda: None,
            _maybe_clear_mm_inputs=lambda _: None,
            _record_step_counters=lambda *_: None,
        )
        made.__dict__.update(options)
        made.init_schedule_policy()
        made.batch_result_processor = SchedulerBatchResultProcessor(
            is_generation=True,
            disaggregation_mode=DisaggregationMode.NULL,
            enable_overlap=self.overlap,
            enable_overlap_mlx=False,
            model_config=model,
            token_to_kv_pool_allocator=slots,
            tree_cache=tree,
            hisparse_coordinator=None,
            req_to_token_pool=pool,
            decode_offload_manager=None,
            metrics_collector=Silent(),
            metrics_reporter=reporter,
            draft_worker=None,
            model_worker=Silent(),
            logprob_result_processor=Silent(),
            output_streamer=streamer,
            beam_coordinator=beams,
            abort_request=made.abort_request,
        )
        return made

    def _stream(self, reqs: Sequence[Req], *_: Any) -> None:
        for req in reqs:
            self.tokens[req.rid] = len(req.output_ids)
            if req.finished():
                self.live.pop(req.rid, None)

    def _abort_told(self, _: Any, req: Req) -> None:
        self.aborted.append(req.rid)
        self.live.pop(req.rid, None)

    def send(self, name: str, client: str | None, tokens: Sequence[int], outputs: int, **options: Any) -> Req:
        params = SamplingParams(max_new_tokens=outputs)
        params.normalize(None)
        req = Req(
            name,
            "",
            array("q", tokens),
            params,
            vocab_size=VOCABULARY,
            routing_key=client,
            eos_token_ids=set(),
            **options,
        )
        self.clients[name] = client
        self.live[name] = req
        self.scheduler._add_request_to_queue(req)
        return req

    def abort(self, name: str) -> None:
        self.scheduler.abort_request(AbortReq(rid=name))

    def step(self) -> ScheduleBatch | None:
        """Do what SGLang's event loops do once. Return the batch."""
        made = self.scheduler
        made.forward_ct += 1
        made.new_token_ratio_tracker.current = 0.0  # nothing is held back for outputs: requests get retracted
        plan = made.get_next_batch_to_run(running_batch=made.running_batch, last_batch=made.last_batch)
        made.running_batch, batch = plan.running_batch, plan.batch_to_run
        if batch is not None:
            # Batches change while their results are on the way, so SGLang too keeps a copy.
            result = GenerationBatchResult(
                logits_output=None, next_token_ids=torch.full((len(batch.reqs),), TOKEN)
            )
            self._results.append((batch.copy(), result))
        while len(self._results) > (self.overlap and batch is not None):
            made.process_batch_result(*self._results.pop(0))
        made.last_batch = batch
        return batch

    def run(self) -> None:
        """Do steps until all requests have ended."""
        for count in itertools.count():
            if not self.live:
                return
            assert count < 20_000
            self.step()
