"""Orders inside a real vLLM on a GPU, on the shared-prefix workloads of E1."""
