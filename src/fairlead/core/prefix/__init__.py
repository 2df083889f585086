"""The prefix index: which workers cache how much of a prompt.

``PrefixIndex`` (``index.py``) is all that others use. Inside: ``tree.py``, what one worker caches by the
requests sent to it, with ``ring.py`` for the least recently used; ``exact.py``, what one worker says that it
caches; ``holders.py`` and ``bitmaps.py``, the same two turned round: which workers hold a block.
"""

from fairlead.core.prefix.index import PrefixIndex
from fairlead.core.prefix.tree import Claim

__all__ = ["Claim", "PrefixIndex"]
