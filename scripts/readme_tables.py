"""Writes the README's policy tables from the registry; ``--check`` only says whether they are current."""

import re
import sys
from pathlib import Path

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.policies import markdown_table

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- policies -->\n", "<!-- /policies -->"


def current(text: str) -> str:
    """Return ``text`` with the tables between the marks made anew."""
    tables = f"{markdown_table(ORDERINGS)}\n\n{markdown_table(POLICIES)}\n"
    return re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: tables, text, flags=re.DOTALL)


def main() -> int:
    text = README.read_text()
    fresh = current(text)
    if "--check" in sys.argv[1:]:
        return int(fresh != text)
    README.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
