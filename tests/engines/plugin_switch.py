"""A scheduler for tests: the plugin's, with a log of its steps, that changes its order when it is told to.

A request of the client ``order:dlpm:quantum=2000``, sent while nothing else is in the engine, empties the
prefix cache and begins anew with that order. So one server serves for all orders.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from fairlead.plugins.settings import read_settings
from fairlead.plugins.vllm import SyncDLPMScheduler
from tests.engines.plugin_load import STEPS, TELLS


class SwitchScheduler(SyncDLPMScheduler):
    """See the module."""

    _steps: TextIO | None = None

    def add_request(self, request: Any) -> None:
        params = request.sampling_params
        client = (params.extra_args or {}).get("client_id", "")
        if isinstance(client, str) and client.startswith(TELLS):
            assert not self.requests
            self._begin(client.removeprefix(TELLS))
        super().add_request(request)

    def _begin(self, order: str) -> None:
        pool = self.kv_cache_manager.block_pool
        vars(pool).pop("cache_full_blocks", None)  # what the last order hooked
        assert self.reset_prefix_cache()
        if self._file is not None:
            self._file.close()
        self.open_book(self.vllm_config, replace(read_settings(os.environ), order=order))
        if self._steps is not None:
            self._steps.close()
        name = order.partition(":")[0]
        self._steps = (Path(os.environ[STEPS]) / f"{name}.jsonl").open("w", buffering=1)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        found = super().update_from_output(*args, **kwargs)
        if self._steps is not None:
            figures = self.book.figures
            row = {
                client: [figures.service(one), one.waiting]
                for client, one in figures.clients.items()
                if not client.startswith(TELLS)
            }
            self._steps.write(json.dumps(row) + "\n")
        return found
