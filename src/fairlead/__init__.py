"""fairlead schedules LLM requests: fairly between clients, cache-aware, balanced over workers.

As a library it is one object::

    import fairlead

    dispatcher = fairlead.make_dispatcher(order="dlpm", policy="marginal")
    dispatcher.step(fairlead.WorkerUp(0, "w1", fairlead.Limits()))
    request = fairlead.Request(rid=1, client="ann", prompt_tokens=400)
    for command in dispatcher.step(fairlead.Arrived(10, request)):
        ...  # Dispatch(rid=1, worker='w1', ...): send it, and report what comes of it

Events go in, commands come out; time is an argument, in microseconds; nothing here does I/O.
``docs/embedding.md`` builds a router around it, ``fairlead.testing`` has fakes for tests.

The names in ``__all__`` are the public ones: they change only with a new major version (before 1.0:
a new minor version), and the changelog says so. Each is imported when it is first used.
"""

from fairlead.native import compiled, guard

TYPE_CHECKING = False  # typing's own would cost more to import than all that is done here
if TYPE_CHECKING:
    from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reject
    from fairlead.core.dispatcher import Dispatcher
    from fairlead.core.events import (
        Arrived,
        CacheCleared,
        CacheEvicted,
        CacheStored,
        Cancelled,
        Event,
        Failed,
        Finished,
        FirstToken,
        Progressed,
        Refused,
        Tick,
        WorkerChanged,
        WorkerDown,
        WorkerGone,
        WorkerUp,
    )
    from fairlead.core.keys import byte_keys, seed_key, token_keys
    from fairlead.core.lifecycle import LifecycleError
    from fairlead.core.make import make_dispatcher
    from fairlead.core.model import Costs, Limits, Request
    from fairlead.core.ordering.base import (
        ON_NO_FIT,
        Fits,
        Matched,
        Ordering,
        OrderingBase,
        OrderingContext,
        Queue,
        QueuedRequest,
    )
    from fairlead.core.params import Param, PolicyError
    from fairlead.core.routing.base import Choice, Fleet, Match, Routing, RoutingBase, RoutingContext
    from fairlead.core.settings import Settings

__version__ = "0.2.0"

guard()  # before the first module that may be compiled

from fairlead.core.registry import add_finder  # noqa: E402
from fairlead.external import entry_points  # noqa: E402

add_finder(entry_points)

_HOMES = {
    "core.commands": ("Cancel", "Command", "Dispatch", "Fail", "Reject"),
    "core.dispatcher": ("Dispatcher",),
    "core.events": (
        "Arrived", "CacheCleared", "CacheEvicted", "CacheStored", "Cancelled", "Event", "Failed", "Finished",
        "FirstToken", "Progressed", "Refused", "Tick", "WorkerChanged", "WorkerDown", "WorkerGone",
        "WorkerUp",
    ),
    "core.keys": ("byte_keys", "seed_key", "token_keys"),
    "core.lifecycle": ("LifecycleError",),
    "core.make": ("make_dispatcher",),
    "core.model": ("Costs", "Limits", "Request"),
    "core.ordering.base": (
        "ON_NO_FIT", "Fits", "Matched", "Ordering", "OrderingBase", "OrderingContext", "Queue",
        "QueuedRequest",
    ),
    "core.params": ("Param", "PolicyError"),
    "core.routing.base": ("Choice", "Fleet", "Match", "Routing", "RoutingBase", "RoutingContext"),
    "core.settings": ("Settings",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ON_NO_FIT",
    "Arrived",
    "CacheCleared",
    "CacheEvicted",
    "CacheStored",
    "Cancel",
    "Cancelled",
    "Choice",
    "Command",
    "Costs",
    "Dispatch",
    "Dispatcher",
    "Event",
    "Fail",
    "Failed",
    "Finished",
    "FirstToken",
    "Fits",
    "Fleet",
    "LifecycleError",
    "Limits",
    "Match",
    "Matched",
    "Ordering",
    "OrderingBase",
    "OrderingContext",
    "Param",
    "PolicyError",
    "Progressed",
    "Queue",
    "QueuedRequest",
    "Refused",
    "Reject",
    "Request",
    "Routing",
    "RoutingBase",
    "RoutingContext",
    "Settings",
    "Tick",
    "WorkerChanged",
    "WorkerDown",
    "WorkerGone",
    "WorkerUp",
    "__version__",
    "byte_keys",
    "compiled",
    "make_dispatcher",
    "seed_key",
    "token_keys",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'fairlead' has no attribute '{name}'")
    from importlib import import_module  # noqa: PLC0415 - whoever uses no name of ours does not pay for it

    found = globals()[name] = getattr(import_module(f"fairlead.{module}"), name)
    return found


def __dir__() -> list[str]:
    """List the public names, imported yet or not."""
    return sorted({*globals(), *__all__})
