"""vLLM servers for the plugin's tests: a model whose prompts cost what steps do not, and little KV."""

import os
import subprocess
import sys
from pathlib import Path

from tests.engines.plugin_load import STEPS
from tests.engines.servers import MODEL_FOLDER, ROOT, VENV, Engine

MEDIUM = VENV / "models" / "medium"
SEQUENCES = 4
FIRST = "first"
"""A client whose weight is 2, which makes it the first under ``priority``. Other tests do not use it."""
KV_BLOCKS = 150
"""Four prompts of 704 tokens take 92 at most; the twelve documents would take 240."""
LIMITS = {
    "--model": str(MEDIUM),
    "--max-num-seqs": str(SEQUENCES),
    "--num-gpu-blocks-override": str(KV_BLOCKS),
    "--max-num-batched-tokens": "768",
}


def make_model() -> None:
    """Make the model if it is not there."""
    if not (MEDIUM / "config.json").exists():
        make = [sys.executable, "-m", "tests.engines.plugin_model", str(MODEL_FOLDER), str(MEDIUM)]
        subprocess.run(make, check=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def stock_server(number: int) -> Engine:
    """Return a server without the plugin, not started yet; its prefix cache can be emptied."""
    make_model()
    return Engine(number, LIMITS, {"VLLM_SERVER_DEV_MODE": "1"})


def plugin_server(number: int, folder: Path) -> Engine:
    """Return a server with the plugin, not started yet.

    It changes its order when it is told to (``plugin_switch``), and keeps in ``folder`` a log of the steps
    of each order, and ``figures.json``.
    """
    make_model()
    folder.mkdir(exist_ok=True)
    environment = {
        STEPS: str(folder),
        "FAIRLEAD_PLUGIN_METRICS_FILE": str(folder / "figures.json"),
        "FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "0.2",
        "FAIRLEAD_PLUGIN_WEIGHTS": f"{FIRST}=2",
    }
    return Engine(
        number, LIMITS | {"--scheduler-cls": "tests.engines.plugin_switch.SwitchScheduler"}, environment
    )
