"""The simulated world: clients, the production dispatcher, and engine models, in virtual time."""

from fairlead.simulate.world.world import World

__all__ = ["World"]
