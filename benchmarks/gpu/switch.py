"""A scheduler that changes its rules when it is told to, so that one start of vLLM serves all of them.

A request of the client ``switch`` with ``rules`` and ``slots`` among its ``vllm_xargs`` drops what is under
way, empties the prefix cache and begins anew: with no client known, with that order, and with at most that
many requests at a time. ``rules`` is an ordering policy, or one with ``before/`` in front: then all of the
plugin is the earlier one that ``benchmarks.gpu.before`` wrote. For measurements only: whoever names that
client decides.
"""

import functools
import importlib
import os
from dataclasses import replace
from typing import Any

from vllm.v1.request import RequestStatus  # type: ignore[import-not-found]

from fairlead.plugins.vllm import DLPMScheduler, SyncDLPMScheduler

CLIENT = "switch"
RULES, SLOTS = "rules", "slots"
BEFORE = "before/"


@functools.cache
def scheduler_of(package: str, form: str) -> type:
    """Return the scheduler of a package's plugin that can be switched; ``form`` is its class's name."""
    plugin = importlib.import_module(f"{package}.plugins.vllm")
    return type(f"Switch{form}", (_Switch, getattr(plugin, form)), {"package": package, "form": form})


class _Switch:
    package = "fairlead"
    form = DLPMScheduler.__name__

    def add_request(self: Any, request: Any) -> None:
        """Take a request, and begin anew before one that says so."""
        told = getattr(request.sampling_params, "extra_args", None) or {}
        if told.get("client_id") == CLIENT:
            self.begin(told[RULES], told[SLOTS])
        super().add_request(request)  # type: ignore[misc]

    def begin(self: Any, rules: str, slots: int) -> None:
        """Drop everything, and go on by other rules."""
        if self.requests:  # whose clients hung up just now
            self.finish_requests(list(self.requests), RequestStatus.FINISHED_ABORTED)
        vars(self.kv_cache_manager.block_pool).pop("cache_full_blocks", None)  # what the last ones hooked
        assert self.reset_prefix_cache()
        if self._file is not None:
            self._file.close()
        package = "fairlead_before" if rules.startswith(BEFORE) else "fairlead"
        # The same object, as vLLM holds it in several places. No class of these has slots.
        self.__class__ = scheduler_of(package, self.form)
        settings = importlib.import_module(f"{package}.plugins.settings").read_settings(os.environ)
        order = rules.removeprefix(BEFORE)
        self.open_book(self.vllm_config, replace(settings, order=order))
        self.max_num_running_reqs = slots


class SwitchScheduler(_Switch, DLPMScheduler):
    """Use it as ``--scheduler-cls``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the synchronous form where vLLM schedules synchronously, as on CPUs."""
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        if not config.scheduler_config.async_scheduling:
            return scheduler_of("fairlead", SyncDLPMScheduler.__name__)(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)
