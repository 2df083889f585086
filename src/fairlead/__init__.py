"""fairlead schedules LLM requests: fairly between clients, cache-aware, balanced over workers."""

__version__ = "0.1.0"
