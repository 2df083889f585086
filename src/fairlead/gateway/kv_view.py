"""What one engine caches, by its own events, in our block keys.

An engine names blocks by hashes of its own; prompts are looked up by keys of ours. Both chain, so
the key of a reported block follows from the key of its parent and its tokens. A block whose key
cannot be told for sure is left out: a match that the engine does not have costs more than a hit
that nobody predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fairlead.core.keys import Digest, seed_key, token_keys
from fairlead.core.model import BlockKey
from fairlead.gateway.key_secret import NO_SECRET, KeySecret
from fairlead.gateway.kv_wire import Cleared, EngineHash, Removed, Stored, WireEvent

_WHOLE_PREFIX = {None, "full_attention", "mla_attention", "sink_full_attention"}
"""Kinds of attention that need all blocks of a prefix, as our matches do; others keep a window or a state."""


class IncompatibleError(ValueError):
    """The engine's blocks cannot be named by our keys. The text says why."""


class Gained(NamedTuple):
    """The engine holds ``keys`` now, a chain after ``parent`` (None: they start a prompt)."""

    keys: Sequence[BlockKey]
    parent: BlockKey | None


class Lost(NamedTuple):
    """The engine no longer holds ``keys``."""

    keys: Sequence[BlockKey]


class Forgot(NamedTuple):
    """The engine holds nothing."""


Change = Gained | Lost | Forgot


class _Block:
    """A block that the engine holds. Without ``keys`` it is foreign: held, but never matched."""

    __slots__ = ("copies", "keys", "parent")

    def __init__(self, keys: Sequence[BlockKey], parent: BlockKey | None) -> None:
        self.keys = keys
        self.parent = parent
        self.copies = 1
        """Requests that ran side by side each computed it, and each copy is evicted by itself."""


@dataclass(slots=True)
class Counts:
    """What could not be used, since the start."""

    orphans: int = 0
    """Blocks whose parent was never reported: it was cached before we listened."""
    foreign: int = 0
    """Blocks that depend on more than tokens, adapter and salt (images, embeddings), or do not align."""
    dropped: int = 0
    """Blocks forgotten because there were more than ``max_blocks``."""


class KvView:
    """The blocks of one engine.

    ``block_tokens`` is the size of our blocks; an engine block has to be a multiple of it. ``model``
    is the name that prompts' keys are seeded with, ``secret`` what they depend on besides. At most
    ``max_blocks`` of our blocks are kept; an engine block that is foreign counts as one.
    """

    def __init__(
        self,
        model: str,
        block_tokens: int,
        digest: Digest,
        max_blocks: int = 1_000_000,
        secret: KeySecret = NO_SECRET,
    ) -> None:
        self.counts = Counts()
        self.since_orphan = 0
        """Blocks stored in a row that all fitted in."""
        self._model = model
        self._block_tokens = block_tokens
        self._digest = digest
        self._secret = secret
        self._max_blocks = max_blocks
        self._held: dict[EngineHash, _Block] = {}
        self._size = 0
        """Of what is held, in our blocks; a foreign block counts as one."""
        self._group: int | None = None
        self._aligned = False

    def __len__(self) -> int:
        """Return the engine blocks known to be held."""
        return len(self._held)

    def clear(self) -> None:
        """Forget everything, since nothing is known for sure any more."""
        self._held.clear()
        self._size = 0
        self.since_orphan = 0

    def apply(self, event: WireEvent) -> list[Change]:
        """Take in one event and return what it changes in terms of our keys.

        Raises ``IncompatibleError``. Blocks outside of GPU memory, and of cache groups that keep less
        than the whole prefix, change nothing.
        """
        if isinstance(event, Cleared):
            self._held.clear()
            self._size = 0
            return [Forgot()]
        if event.medium not in {None, "GPU"}:
            return []
        if isinstance(event, Removed):
            return self._removed(event) if event.group_idx in {None, self._group} else []
        if not self._counts_as_prefix(event):
            return []
        return self._stored(event)

    def chains(self) -> Iterator[Gained]:
        """Iterate over all that is held, as few long chains."""
        run: list[BlockKey] = []
        parent: BlockKey | None = None
        for block in self._held.values():
            if not block.keys:
                continue
            if not run or block.parent != run[-1]:
                if run:
                    yield Gained(run, parent)
                run, parent = [], block.parent
            run.extend(block.keys)
        if run:
            yield Gained(run, parent)

    def _counts_as_prefix(self, event: Stored) -> bool:
        """Follow one group of those that keep whole prefixes: they are filled and evicted alike."""
        if event.kv_cache_spec_kind not in _WHOLE_PREFIX:
            return False
        if self._group is None:
            self._group = event.group_idx
        return event.group_idx == self._group

    def _stored(self, event: Stored) -> list[Change]:
        size = event.block_size
        known = self._held.get(event.parent_block_hash) if event.parent_block_hash is not None else None
        if event.parent_block_hash is not None and known is None:
            self.counts.orphans += len(event.block_hashes)
            self.since_orphan = 0
            return []
        self.since_orphan += len(event.block_hashes)
        keys: Sequence[BlockKey] = ()
        if self._usable(event) and (known is None or known.keys):
            parent = known.keys[-1] if known else None
            keys = self._keys(event, parent)
        if not keys:
            self.counts.foreign += len(event.block_hashes)
        each = size // self._block_tokens if keys else 0
        parent = known.keys[-1] if known and keys else None
        return [*self._hold(event.block_hashes, keys, each, parent), *self._shrink()]

    def _usable(self, event: Stored) -> bool:
        if len(event.token_ids) != len(event.block_hashes) * event.block_size:
            return False
        if event.block_size % self._block_tokens:
            if not self._aligned:
                raise IncompatibleError(
                    f"the engine's blocks have {event.block_size} tokens, which is no multiple of "
                    f"{self._block_tokens}, the tokens of a block here"
                )
            return False
        self._aligned = True
        return True

    def _keys(self, event: Stored, parent: BlockKey | None) -> Sequence[BlockKey]:
        """Return our keys of the blocks, or nothing if more than tokens, adapter and salt decide."""
        lora, salt = event.lora_name or "", ""
        if event.lora_id and not lora:
            return ()
        for position, raw in enumerate(event.extra_keys or ()):
            extra = list(raw or ())
            if lora and extra[:1] == [lora]:
                del extra[0]
            if len(extra) == 1 and isinstance(extra[0], str) and parent is None and position == 0:
                salt = extra.pop()
            if extra:
                return ()
        seed = seed_key(self._model, lora, salt, self._secret) if parent is None else parent
        try:
            return token_keys(event.token_ids, self._block_tokens, seed, self._digest)
        except (TypeError, OverflowError):  # pairs of tokens, as speculative decoding has, or negative ids
            return ()

    def _hold(
        self, hashes: Sequence[EngineHash], keys: Sequence[BlockKey], each: int, parent: BlockKey | None
    ) -> Iterator[Change]:
        """Note the blocks, ``each`` keys a block; what is new comes out as runs."""
        run: list[BlockKey] = []
        start = parent
        for position, name in enumerate(hashes):
            mine = tuple(keys[position * each : (position + 1) * each])
            block = self._held.get(name)
            if block is not None:
                block.copies += 1
                if run:
                    yield Gained(run, start)
                run = []
            else:
                self._held[name] = _Block(mine, parent)
                self._size += len(mine) or 1
                if not run:
                    start = parent
                run.extend(mine)
            if mine:
                parent = mine[-1]
        if run:
            yield Gained(run, start)

    def _removed(self, event: Removed) -> list[Change]:
        lost: list[BlockKey] = []
        for name in event.block_hashes:
            block = self._held.get(name)
            if block is None:
                continue
            block.copies -= 1
            if not block.copies:
                self._drop(name)
                lost.extend(block.keys)
        return [Lost(lost)] if lost else []

    def _shrink(self) -> list[Change]:
        """Forget the oldest blocks beyond the cap; they will not match, which is safe."""
        lost: list[BlockKey] = []
        while self._size > self._max_blocks:
            self.counts.dropped += 1
            lost.extend(self._drop(next(iter(self._held))).keys)
        return [Lost(lost)] if lost else []

    def _drop(self, name: EngineHash) -> _Block:
        block = self._held.pop(name)
        self._size -= len(block.keys) or 1
        return block
