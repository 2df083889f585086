"""Documents that quote the code must quote it as it is."""

import re
from pathlib import Path

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.policies import markdown_table

ROOT = Path(__file__).parent.parent


def test_the_diff_of_a_real_policy_is_that_policy() -> None:
    text = (ROOT / "docs/adding-a-policy.md").read_text()
    diff = text.split("+++ b/src/fairlead/core/routing/least_requests.py\n")[1].split("\n--- a/")[0]
    quoted = "\n".join(line[1:] for line in diff.splitlines())
    assert quoted + "\n" == (ROOT / "src/fairlead/core/routing/least_requests.py").read_text()
    register = (ROOT / "src/fairlead/core/routing/__init__.py").read_text()
    assert "from fairlead.core.routing.least_requests import LeastRequests\n" in register


def test_the_readmes_tables_are_what_the_registry_says() -> None:
    readme = (ROOT / "README.md").read_text()
    assert markdown_table(ORDERINGS) in readme
    assert markdown_table(POLICIES) in readme


def test_every_policy_has_its_section() -> None:
    for folder, registry in (("ordering", ORDERINGS), ("routing", POLICIES)):
        text = (ROOT / f"docs/policies/{folder}.md").read_text()
        sections = "\n".join(re.findall(r"^##+ .*$", text, re.MULTILINE))
        for name in registry.names():
            assert f"`{name}`" in sections or re.search(rf"\b{name}\b", sections), name


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"
