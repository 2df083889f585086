"""A workload sent to a live endpoint, and what its clients saw."""
