"""Ordering: in one queue, who goes next? One file a policy, one line here."""

from collections.abc import Callable, Mapping
from typing import cast

from fairlead.core.ordering.base import Ordering, OrderingContext
from fairlead.core.ordering.dlpm import Dlpm
from fairlead.core.ordering.drr import Drr
from fairlead.core.ordering.fcfs import Fcfs
from fairlead.core.ordering.k_lpm import KLpm
from fairlead.core.ordering.lpm import Lpm
from fairlead.core.ordering.plas import Plas
from fairlead.core.ordering.priority import Priority
from fairlead.core.ordering.vtc import Vtc
from fairlead.core.registry import Registry

ORDERINGS: Registry[Ordering] = Registry(
    "ordering policy",
    (Fcfs, Priority, Lpm, KLpm, Plas, Drr, Vtc, Dlpm),
    group="fairlead.ordering",
    method="make_queue",
)

__all__ = ["ORDERINGS", "Ordering", "OrderingContext", "make_ordering"]


def make_ordering(name: str, given: Mapping[str, object] | None, context: OrderingContext) -> Ordering:
    """Make the policy called ``name``. Unknown names and parameters raise ``PolicyError``."""
    make = cast("Callable[..., Ordering]", ORDERINGS.get(name))
    return make(context, **ORDERINGS.resolve(name, given))
