"""The simulator: the production dispatcher and engine models in virtual time."""
