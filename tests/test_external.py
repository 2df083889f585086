"""Policies of other packages: found by entry points, and never a reason for ours to fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.core.params import PolicyError
from fairlead.core.registry import External, Registry, add_finder
from fairlead.core.routing.least_requests import LeastRequests

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples/fairlead-example-policies"


class Named(LeastRequests):
    name = "named"


class Other(LeastRequests):
    name = "other name"


class Bare:
    name = "bare"


def broken() -> object:
    raise ImportError("no module named 'gone'")


FOUND = {
    "named": lambda: Named,
    "broken": broken,
    "bare": lambda: Bare,
    "renamed": lambda: Other,
    "no_class": lambda: 3,
    "least_requests": lambda: Named,
}
add_finder(lambda group: [External(n, "pack", load) for n, load in FOUND.items() if group == "t.routing"])


def registry() -> Registry[LeastRequests]:
    return Registry("routing policy", (LeastRequests,), group="t.routing", method="choose")


def test_names_list_ours_first_and_load_nothing() -> None:
    assert registry().names() == ["least_requests", "bare", "broken", "named", "no_class", "renamed"]
    assert registry().built_in() == ["least_requests"]


def test_one_is_loaded_when_it_is_asked_for() -> None:
    policies = registry()
    assert policies.get("named") is Named
    assert policies.package("named") == "pack"
    assert policies.package("least_requests") == ""


def test_a_name_of_ours_keeps_its_meaning() -> None:
    assert registry().get("least_requests") is LeastRequests


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "routing policy 'broken' of package 'pack' cannot be loaded: ImportError: no module"),
        ("bare", "its class Bare has no source, summary, params, choose"),
        ("renamed", "its class is called 'other name'; both names must be the same"),
        ("no_class", "is 3: the entry point must name a class"),
        ("nameed", r"\(valid: least_requests, bare, .*did you mean 'named'"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_package(name: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        registry().get(name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The example package as pip would lay it out, without touching this environment."""
    site = tmp_path_factory.mktemp("site")
    info = site / "fairlead_example_policies-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairlead-example-policies\nVersion: 0.1.0\n")
    lines = (EXAMPLE / "pyproject.toml").read_text().split("[project.entry-points.")[1:]
    points = ["[" + part.split("\n[")[0].replace('"', "").replace("]\n", "]\n", 1) for part in lines]
    (info / "entry_points.txt").write_text("\n".join(points))
    path = os.pathsep.join([str(site), str(EXAMPLE / "src"), str(ROOT / "src")])
    return os.environ | {"PYTHONPATH": path}


def fairlead(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fairlead", *words],
        check=False,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_package_works_in_commands(installed: dict[str, str], tmp_path: Path) -> None:
    listed = fairlead(installed, "policies")
    assert listed.returncode == 0, listed.stderr
    assert "warmest" in listed.stdout
    assert "package: fairlead-example-policies" in listed.stdout
    out = tmp_path / "run.json"
    run = fairlead(
        installed, "simulate", "judge", "--requests", "30", "--policy", "warmest:slack=4",
        "--order", "round_robin_clients", "--json", str(out),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "warmest" in out.read_text()
    wrong = fairlead(installed, "simulate", "judge", "--policy", "warmest:slak=4")
    assert wrong.returncode == 2
    assert "did you mean 'slack'" in wrong.stderr


def test_without_the_package_the_name_is_unknown() -> None:
    wrong = fairlead(
        os.environ | {"PYTHONPATH": str(ROOT / "src")}, "simulate", "judge", "--policy", "warmest"
    )
    assert wrong.returncode == 2
    assert "unknown routing policy 'warmest'" in wrong.stderr
