"""The plugin with the scheduler of a second version of vLLM, without its engine."""

import os
import subprocess
import sys

from tests.engines.servers import ROOT, VENV

NEXT = "0.33.0"
"""Its pure Python part, put here by scripts/setup_engines.py; there is no build of it for CPUs."""


def test_the_plugin_with_the_next_vllm() -> None:
    path = [str(VENV / f"vllm-{NEXT}"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers"]
    command += ["--override-ini", "addopts=-q", "--confcutdir=tests/engines"]
    done = subprocess.run(
        [*command, "tests/engines/test_plugin_scheduler.py"],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": ":".join(filter(None, path)), "VLLM_TARGET_DEVICE": "cpu", "EXPECTED_VLLM": NEXT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
