"""Make a dispatcher from the names of its policies, as the gateway, the simulator and embedders do."""

from collections.abc import Mapping
from random import Random

from fairlead.core.dispatcher import Dispatcher
from fairlead.core.model import ClientId
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.registry import parse_spec
from fairlead.core.routing import make_routing
from fairlead.core.routing.base import RoutingContext
from fairlead.core.settings import Settings

DEFAULT_ORDER = "dlpm"
DEFAULT_POLICY = "marginal"


def make_dispatcher(
    order: str = DEFAULT_ORDER,
    policy: str = DEFAULT_POLICY,
    *,
    settings: Settings | None = None,
    weights: Mapping[ClientId, float] | None = None,
    seed: int = 0,
) -> Dispatcher:
    """Make a dispatcher without workers.

    ``order`` says who goes next and ``policy`` which worker, each as ``name`` or
    ``name:key=value,key=value``. ``weights`` gives clients' weights (default 1). ``seed`` is that of the
    policies' random streams: the same events and the same seed give the same commands.

    Raises ``PolicyError`` for an unknown policy or parameter, ValueError for a weight that is not
    positive and finite.
    """
    settings = settings or Settings()
    order_name, order_given = parse_spec(order)
    policy_name, policy_given = parse_spec(policy)
    return Dispatcher(
        make_routing(policy_name, policy_given, RoutingContext(Random(seed), settings.costs)),
        make_ordering(order_name, order_given, OrderingContext(settings.costs)),
        settings,
        weights,
    )
