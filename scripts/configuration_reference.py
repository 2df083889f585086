"""Write docs/configuration.md from the options' definitions."""

from pathlib import Path

from fairlead.config import reference


def main() -> None:
    (Path(__file__).parent.parent / "docs" / "configuration.md").write_text(reference())


if __name__ == "__main__":
    main()
