"""A model of one LLM engine: paged KV cache, continuous batching, step time."""
