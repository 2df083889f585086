"""Hypothesis explores at random on a developer's machine, and repeats itself where CI judges a change.

Tests marked ``pure_only`` are skipped where the hot path is compiled.
"""

import os

import pytest
from hypothesis import settings

import fairlead

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("soak", max_examples=1000, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what compiled classes do not allow; `-rs` counts and names it."""
    if not fairlead.compiled():
        return
    for item in items:
        marker = item.get_closest_marker("pure_only")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"pure Python only: {marker.args[0]}"))
