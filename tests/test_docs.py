"""Documents that quote the code must quote it as it is."""

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fairlead.cli import COMMANDS
from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES

ROOT = Path(__file__).parent.parent


def test_the_diff_of_a_real_policy_is_that_policy() -> None:
    text = (ROOT / "docs/adding-a-policy.md").read_text()
    diff = text.split("+++ b/src/fairlead/core/routing/least_requests.py\n")[1].split("\n--- a/")[0]
    quoted = "\n".join(line[1:] for line in diff.splitlines())
    assert quoted + "\n" == (ROOT / "src/fairlead/core/routing/least_requests.py").read_text()
    register = (ROOT / "src/fairlead/core/routing/__init__.py").read_text()
    assert "from fairlead.core.routing.least_requests import LeastRequests\n" in register


def test_the_example_policy_is_shown_as_it_is() -> None:
    text = (ROOT / "docs/adding-a-policy.md").read_text()
    package = ROOT / "examples/fairlead-example-policies"
    assert (package / "src/fairlead_example_policies/warmest.py").read_text() in text
    assert 'warmest = "fairlead_example_policies.warmest:Warmest"' in (package / "pyproject.toml").read_text()


def test_the_check_of_policies_runs_as_it_is_shown() -> None:
    text = (ROOT / "docs/adding-a-policy.md").read_text()
    exec(
        next(
            p for p in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "check_" in p
        ),
        {},
    )


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_pages_take_from_the_code_is_current() -> None:
    wanted: dict[Path, str] = reference().files()
    pages = (
        "README.md",
        "docs/cli.md",
        "docs/configuration.md",
        "docs/gateway-metrics.md",
        "docs/policies/index.md",
    )
    assert {ROOT / page for page in pages} <= wanted.keys()
    stale = [str(path.relative_to(ROOT)) for path, text in wanted.items() if path.read_text("utf-8") != text]
    assert not stale, "run: python scripts/reference.py"


def test_a_generated_part_without_a_source_is_an_error() -> None:
    with pytest.raises(KeyError):
        reference().part("no such part")


def test_pages_name_only_metrics_that_there_are() -> None:
    module = reference()
    families = set(re.findall(r"`(fairlead_\w+?)(?:_total)?`", module.metrics()))
    assert "fairlead_requests" in families
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"\b(fairlead_[a-z_]+)\b", path.read_text()):
            plain = re.sub(r"_(total|bucket|sum|count)$", "", name)
            modules = ("fairlead_example_policies", "fairlead_decision_log", "fairlead_engine_lag_seconds")
            assert plain in families or plain in modules, f"{path.relative_to(ROOT)}: {name}"


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = set(re.findall(r"(?:^|[ -])([\w/.-]+\.md)$", navigation, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages, "mkdocs.yml lists the pages"


def test_every_policy_has_its_section() -> None:
    for folder, registry in (("ordering", ORDERINGS), ("routing", POLICIES)):
        text = (ROOT / f"docs/policies/{folder}.md").read_text()
        sections = "\n".join(re.findall(r"^##+ .*$", text, re.MULTILINE))
        for name in registry.names():
            assert f"`{name}`" in sections or re.search(rf"\b{name}\b", sections), name


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    rows = text.split("| input | set by |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([a-z_]+/test_\w+\.py)`", row)
        assert named, row
        for path in named:
            assert (ROOT / "tests" / path).is_file(), path


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def quoted_commands() -> Iterator[tuple[str, str]]:
    """Yield every command line of ours in a code block of a document, with the document's name."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(\w+=\S+ )*fairlead [a-z]", line):
                    yield path.relative_to(ROOT).as_posix(), line


@pytest.mark.parametrize(("document", "line"), list(quoted_commands()))
def test_commands_in_documents_parse(document: str, line: str) -> None:
    """A flag that was renamed or a command that is gone does not stay in the documents."""
    plain = re.sub(r"\s\.\.\.(?=\s|$)", "", line)  # "and so on"
    plain = re.sub(r"(?<=\s)N(?=\s|$)", "1", plain)  # "some number"
    words = shlex.split(plain, comments=True)
    name, *rest = words[words.index("fairlead") + 1 :]
    assert name in COMMANDS, f"{document}: {line}"
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    former = {f for a in parser._actions if a.help == argparse.SUPPRESS for f in a.option_strings}
    assert not former & set(rest), f"{document}: {line}: an option's former name"
    try:
        parser.parse_args(rest)
    except SystemExit as end:  # argparse's only way to say it, also with exit_on_error=False
        pytest.fail(f"{document}: {line}: argparse ended with {end.code}; stderr says why")


def test_there_are_commands_to_parse() -> None:
    found = list(quoted_commands())
    assert {document for document, _ in found} >= {"README.md", "docs/tutorial.md", "docs/compare.md"}
    assert {line.split()[1] for _, line in found} >= {"simulate", "compare", "report", "replay", "serve"}
