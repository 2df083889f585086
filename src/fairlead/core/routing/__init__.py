"""Routing: which worker? One file a policy, one line here."""

from collections.abc import Mapping

from fairlead.core.registry import Registry
from fairlead.core.routing.balance_route import BalanceRoute
from fairlead.core.routing.base import RoutingBase, RoutingContext
from fairlead.core.routing.cache_aware import CacheAware
from fairlead.core.routing.d2lpm import D2lpm
from fairlead.core.routing.dualmap import DualMap
from fairlead.core.routing.fair_lmetric import FairLMetric
from fairlead.core.routing.least_requests import LeastRequests
from fairlead.core.routing.linear import Linear
from fairlead.core.routing.lmetric import LMetric
from fairlead.core.routing.marginal import Marginal
from fairlead.core.routing.power_of_two import PowerOfTwo
from fairlead.core.routing.preble import Preble
from fairlead.core.routing.random_choice import RandomChoice
from fairlead.core.routing.round_robin import RoundRobin
from fairlead.core.routing.session_affinity import SessionAffinity
from fairlead.core.routing.vllm_score import VllmScore

POLICIES: Registry[RoutingBase] = Registry(
    "routing policy",
    (
        RandomChoice,
        RoundRobin,
        LeastRequests,
        PowerOfTwo,
        SessionAffinity,
        CacheAware,
        VllmScore,
        Linear,
        Preble,
        LMetric,
        DualMap,
        BalanceRoute,
        D2lpm,
        FairLMetric,
        Marginal,
    ),
    group="fairlead.routing",
    method="choose",
)


def make_routing(name: str, given: Mapping[str, object] | None, context: RoutingContext) -> RoutingBase:
    """Make the policy called ``name``; raise ``PolicyError`` on an unknown name, parameter or bad value."""
    POLICIES.resolve(name, given)  # refuses unknown names before one of them is taken for an argument
    return POLICIES.get(name)(context, **(given or {}))
