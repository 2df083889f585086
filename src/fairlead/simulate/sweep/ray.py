"""Work for a Ray cluster: one task a cell. Needs ``pip install fairlead[ray]``.

Every node needs this version of fairlead, and traces at the same paths; tasks check the former.
"""

import importlib
import socket
from collections.abc import Sequence
from typing import Any

from fairlead.simulate.sweep.cache import code_hash
from fairlead.simulate.sweep.pool import TICK_S, Call, Ends, Failure, attempt


def run_on_ray(calls: Sequence[Call], address: str) -> Ends:
    """Do the work on the cluster at ``address``; yield what has ended, and None now and then.

    To be closed, also when interrupted: that cancels what is still to do. Raises ValueError if Ray is not
    installed or no cluster answers.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ValueError("Ray is not installed: pip install 'fairlead[ray]'") from None
    _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from None
    # A task that dies for want of memory would die again.
    remote = ray.remote(max_retries=0)(_work)
    waiting = {remote.remote(call, code_hash()): place for place, call in enumerate(calls)}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=TICK_S)
            for reference in ready:
                place = waiting.pop(reference)
                try:
                    value = ray.get(reference)
                except ray.exceptions.RayError as error:
                    value = Failure(str(error).strip())
                yield place, value
            yield None
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise ValueError if nobody listens at ``host:port``: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # such as "auto", which Ray finds by itself
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from None


def _work(call: Call, code: str) -> Any:
    if code_hash() != code:
        return Failure("the Ray node has another version of fairlead than this machine")
    return attempt(call)
