"""The prefix index: which workers cache how much of a prompt.

``PrefixIndex`` (``index.py``) is all that others use. Inside:

- approximate, by the requests sent: ``tree.py``, what one worker caches, with ``ring.py`` for the least
  recently used; ``holders.py``, which workers hold a block;
- precise, by a worker's own events: ``precise.py``, what one worker caches; ``bitmaps.py``, which workers
  hold a block.
"""

from fairlead.core.prefix.index import PrefixIndex
from fairlead.core.prefix.tree import Claim

__all__ = ["Claim", "PrefixIndex"]
