"""The pure decisions: standard library only, no I/O, no clock, no randomness of its own, no logging."""
