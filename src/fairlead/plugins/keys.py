"""The keys of a prompt's blocks, made when they are asked for.

A policy looks at a few keys of a prompt: where the cached part ends. Making all of them for each request
would cost more than the policy itself.
"""

from collections.abc import Sequence
from typing import overload

from fairlead.core.model import BlockKey


class LazyKeys(Sequence[BlockKey]):
    """The keys of the ``length`` full blocks of a prompt that its engine may find cached.

    An engine always computes the last token of a prompt. So a block that ends with it is not among them.

    A key is a hint here, never the truth. It says whose match to look up again when a block enters the
    cache; the look-up asks the engine's own cache. Two prompts whose keys are equal, by accident or made
    so on purpose, cost a look-up, and change neither the order nor what is charged.
    """

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    def key_at(self, index: int) -> BlockKey:
        """Return the key of block ``index``, which is from 0 to the length less 1."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> BlockKey: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockKey]: ...

    def __getitem__(self, index: int | slice) -> BlockKey | Sequence[BlockKey]:
        if isinstance(index, slice):
            return [self.key_at(i) for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self.key_at(index)

    def __len__(self) -> int:
        return self._length
