"""The names that ``import fairlead`` gives are a promise, and cost nothing before they are used."""

import subprocess
import sys

import pytest

import fairlead

PUBLIC = """
Arrived CacheCleared CacheEvicted CacheStored Cancel Cancelled Choice Command Costs Dispatch Dispatcher Event
Fail Failed Finished FirstToken Fits Fleet LifecycleError Limits Match Matched ON_NO_FIT Ordering OrderingBase
OrderingContext Param PolicyError Progressed Queue Refused Reject Request Routing RoutingBase RoutingContext
Settings Tick QueuedRequest WorkerChanged WorkerDown WorkerGone WorkerUp __version__ byte_keys compiled
make_dispatcher seed_key token_keys
"""


def test_the_public_names_are_these() -> None:
    """A name that goes away is a change that breaks users: it needs a new version and the changelog."""
    assert sorted(fairlead.__all__) == sorted(PUBLIC.split())


@pytest.mark.parametrize("name", PUBLIC.split())
def test_each_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(fairlead, name)
    if name not in {"__version__", "Command", "Event", "Fits", "Matched"}:
        assert found.__doc__
    assert name in dir(fairlead)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fairlead' has no attribute 'Dispatchr'"):
        _ = fairlead.Dispatchr  # type: ignore[attr-defined]


def test_importing_it_imports_no_dispatcher() -> None:
    code = (
        "import sys, fairlead; assert 'fairlead.core.dispatcher' not in sys.modules;"
        "fairlead.Dispatcher; assert 'fairlead.core.dispatcher' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
