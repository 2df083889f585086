"""From configuration to the gateway's parts: the dispatcher, prompt keys, KV-cache event followers."""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from fairlead.config import Config
from fairlead.core import events as ev
from fairlead.core.dispatcher import Dispatcher
from fairlead.core.make import make_dispatcher
from fairlead.core.settings import Settings
from fairlead.gateway.key_secret import KeySecret
from fairlead.gateway.prompt import BytePrompts, PromptKeys
from fairlead.gateway.workers import Worker

if TYPE_CHECKING:
    from fairlead.gateway.kv_events import KvEvents

log = logging.getLogger("fairlead.gateway")

RETRY_SHARE = 0.5
"""Most of the saved-up retries that one client's requests may have spent."""


def configured_dispatcher(config: Config) -> Dispatcher:
    """Make the core with the configured policies. Raises ``PolicyError``."""
    return make_dispatcher(
        config.queue_order,
        config.policy,
        settings=Settings(
            max_attempts=config.max_attempts,
            retry_ratio=config.retry_ratio,
            retry_share=RETRY_SHARE,
            max_queued=config.queue_size,
            queue_timeout_us=int(config.queue_timeout_secs * 1e6),
            first_token_patience=2.0,
            forward=config.engine_ordering,
        ),
        weights={name: client.weight for name, client in config.clients.items()},
        seed=config.seed,
    )


def key_secret(config: Config) -> KeySecret:
    """Return what all block keys of this gateway depend on: as configured, else drawn now."""
    return KeySecret.of(config.prefix_secret or secrets.token_hex())


def make_prompts(config: Config, adapters: dict[str, str], secret: KeySecret) -> PromptKeys:
    """Make what turns prompts into block keys. Raises ``TokenizerError``.

    ``adapters`` names the base model of each LoRA adapter. The caller adds to it as workers list them.
    """
    if not config.tokenizer:
        return BytePrompts(config.block_tokens, secret=secret)
    from fairlead.gateway.tokenizing import load_prompts  # noqa: PLC0415 - an optional extra

    tokens = load_prompts(Path(config.tokenizer), block_tokens=config.block_tokens, secret=secret)
    tokens.adapters = adapters
    return tokens


def kv_follower(
    config: Config,
    worker: Worker,
    sources: bytes,
    emit: Callable[[ev.Event], None],
    now_us: Callable[[], int],
    secret: KeySecret,
) -> "KvEvents | None":
    """Make the follower of a worker's KV-cache events; None, and a warning, if they cannot be followed.

    ``sources`` is the worker's answer to ``/kv_event_sources``.
    """
    # Only who follows events pays for ZMQ.
    from fairlead.gateway.kv_events import KeySettings, KvEvents, SourceError, source_from  # noqa: PLC0415

    try:
        source = source_from(sources, worker.id)
    except SourceError as error:
        log.warning("KV-cache events of %s cannot be followed: %s", worker.id, error)
        return None
    model = next((m.id for m in worker.models if not m.parent), "")
    return KvEvents(
        worker.id,
        source,
        KeySettings(model, config.block_tokens, xxh3_64_intdigest, secret=secret),
        emit=emit,
        now=now_us,
        on_state=lambda state: log.info("KV cache of %s: %s (%s)", worker.id, state.phase, state.reason),
        ignore=worker.ignore,
    )
