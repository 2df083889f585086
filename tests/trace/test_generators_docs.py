"""The page on workloads says what the generators say."""

import re
from pathlib import Path

from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.generators.listing import markdown

PAGE = (Path(__file__).parents[2] / "docs/workloads.md").read_text()


def test_the_tables_are_what_the_generators_declare() -> None:
    assert PAGE.endswith(markdown(GENERATORS) + "\n")


def test_every_parameter_is_explained() -> None:
    for name in GENERATORS.names():
        section = PAGE.split(f"### `{name}`\n")[1].split("\n###")[0]
        for param in GENERATORS.get(name).params:
            assert f"`{param.name}`" in section or f"`{param.name}={param.default}" in section


def test_specs_on_the_page_work() -> None:
    specs = re.findall(r'generate\("([^"]+)"', PAGE)
    assert specs
    for spec in specs:
        assert generate(spec, requests=3).requests == 3
