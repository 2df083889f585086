"""fairlead schedules LLM requests: fairly between clients, cache-aware, balanced over workers."""

from fairlead.native import compiled, guard

__all__ = ["__version__", "compiled"]
__version__ = "0.2.0"

guard()
