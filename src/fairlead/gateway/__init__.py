"""The OpenAI-compatible gateway: real traffic through the core."""
