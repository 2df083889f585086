"""Fakes for people who write policies, or bodies around the core: a clock, engines, a world, checks.

Everything runs in virtual time: an hour of traffic takes milliseconds, and the same seed gives the same
run. For figures that can be trusted use ``fairlead simulate``, whose engine model is measured against
real ones; these fakes are for tests.
"""

from fairlead.testing.checks import check_dispatcher
from fairlead.testing.clock import Clock
from fairlead.testing.engine import FakeEngine
from fairlead.testing.world import Outcome, World

__all__ = ["Clock", "FakeEngine", "Outcome", "World", "check_dispatcher"]
