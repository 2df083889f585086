"""An earlier fairlead beside this one: its source under another package name, for comparisons in one process.

    python -m benchmarks.gpu.before COMMIT FOLDER

FOLDER gets the package ``fairlead_before``, which is the package of that commit with its imports renamed, and
``commit.txt``. Needs git and a checkout.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "fairlead_before"
_IMPORT = re.compile(r"^(\s*(?:from|import) )fairlead\b", re.MULTILINE)
SOURCE = "src/fairlead/"


def git(*arguments: str) -> bytes:
    """Return what git prints; ``CalledProcessError`` if it fails, after git's own message."""
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE).stdout  # noqa: S603, S607


def write_package(commit: str, folder: Path) -> str:
    """Write the package of ``commit`` into ``folder``; return the commit's whole name."""
    name = git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(git("archive", name, SOURCE))) as archive:
        for member in archive:
            if not (member.isfile() and member.name.startswith(SOURCE)):
                continue
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name.endswith(".py"):
                data = _IMPORT.sub(rf"\1{PACKAGE}", data.decode()).encode()
            path = folder / PACKAGE / member.name.removeprefix(SOURCE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (folder / "commit.txt").write_text(name + "\n")
    return name


def main() -> int:
    """Write it. Returns 0, or 1 where git has no such commit."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("commit", metavar="COMMIT", help="such as v0.1.0")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="goes on PYTHONPATH")
    args = parser.parse_args()
    try:
        print(write_package(args.commit, args.folder))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.gpu.before: {error}; is this a checkout that has the commit?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
