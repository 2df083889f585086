"""Schedulers for vLLM that change nothing and write down every step. To be imported by vLLM alone.

``FAIRLEAD_STEP_LOG=steps.csv vllm serve MODEL --scheduler-cls fairlead.engine.vllm_steps.LoggingScheduler``
with this package installed beside vLLM. Where vLLM schedules asynchronously (its default on GPUs) it is
``AsyncLoggingScheduler``. The cost is a row of text a step: some 30 us with a few sequences.
"""

import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # type: ignore[import-not-found]
from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found]

from fairlead.engine.step_log import StepNotes

VARIABLE = "FAIRLEAD_STEP_LOG"
"""The environment variable that names the file."""


class _Logging:
    """A mix-in for vLLM's schedulers."""

    requests: dict[str, Any]
    """Of the scheduler: all requests that have not ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        path = os.environ.get(VARIABLE)
        if not path:
            raise ValueError(f"{VARIABLE} must name the file that steps are written to")
        self._notes = StepNotes(Path(path).open("w", newline=""))  # noqa: SIM115 - open as long as the engine

    def add_request(self, request: Any) -> None:
        self._notes.arrived(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._notes.scheduled(output.num_scheduled_tokens, self.requests, began)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        self._notes.ended(scheduler_output.num_scheduled_tokens, self.requests)
        return found

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._notes.preempted(request.request_id)
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]


class LoggingScheduler(_Logging, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, with notes."""


class AsyncLoggingScheduler(_Logging, AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler that schedules a step before the last one has ended, with notes."""
