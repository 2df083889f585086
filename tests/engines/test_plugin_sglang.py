"""The plugin for SGLang, with its real scheduler and without its engine: tests/plugins_sglang.

In a process of its own, since that SGLang lies in a folder beside the packages of vLLM.
"""

import os
import subprocess
import sys

from tests.engines.servers import ROOT, VENV

SGLANG = "0.5.23"
"""Put here by scripts/setup_engines.py; there is no build of its server for CPUs."""


def test_the_plugin_with_sglang() -> None:
    path = [str(VENV / f"sglang-{SGLANG}"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers"]
    command += ["--override-ini", "addopts=-q", "--confcutdir=tests/plugins_sglang"]
    command += ["--override-ini", "filterwarnings=ignore"]  # torch's and SGLang's own
    done = subprocess.run(
        [*command, "tests/plugins_sglang"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ":".join(filter(None, path)), "EXPECTED_SGLANG": SGLANG},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
