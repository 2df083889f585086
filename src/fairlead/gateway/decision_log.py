"""Opens the gateway's decision log as configured; logs its end."""

import logging
import time
from pathlib import Path

from fairlead.config import Config
from fairlead.core.dispatcher import Dispatcher
from fairlead.trace.decision_files import DecisionLog
from fairlead.trace.decisions import Setup

log = logging.getLogger("fairlead.decisions")


def open_decision_log(config: Config, dispatcher: Dispatcher, now_us: int) -> DecisionLog | None:
    """Open the log of a dispatcher that has taken no event yet; None if none is configured.

    ``now_us`` is the time by the clock of the events. Raises OSError.
    """
    if not config.decision_log:
        return None
    return DecisionLog(
        Path(config.decision_log),
        Setup.of(dispatcher, config.policy, config.queue_order, config.seed),
        began=(time.time_ns() // 1000, now_us),
        max_bytes=config.decision_log_max_bytes,
        files=config.decision_log_files,
        on_failure=_failed,
    )


def _failed(reason: str) -> None:
    log.error("the decision log ends here; requests are still served: %s", reason)
