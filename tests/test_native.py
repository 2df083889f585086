"""Which form of a module is imported: never one that was compiled from something else."""

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from fairlead import native


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with one module, and beside it a file that Python takes for its compiled form."""
    package = tmp_path / "fairlead"
    (package / "core").mkdir(parents=True)
    shutil.copy(native.__file__, package / "native.py")
    (package / "__init__.py").write_text("from fairlead.native import compiled, guard\nguard()\n")
    (package / "core" / "__init__.py").touch()
    (package / "core" / "dispatcher.py").write_text("print('source')\n")
    (package / "core" / f"dispatcher{EXTENSION_SUFFIXES[0]}").write_bytes(b"not really")
    return package


def stamp(package: Path, *paths: str) -> None:
    """Write a stamp that says that ``paths`` are as they are."""
    lines = []
    for path in paths:
        stat = (package / path).stat()
        lines.append(f"{stat.st_size} {stat.st_mtime_ns} digest {path}\n")
    (package / Path(native.STAMP).name).write_text("".join(lines))


def runs_source(package: Path, **environment: str) -> bool:
    """Whether the source is imported; if not, Python tries the compiled form, which is none."""
    code = "import fairlead; print(fairlead.compiled()); import fairlead.core.dispatcher"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env={"PYTHONPATH": str(package.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        assert "ImportError" in result.stderr
        assert result.stdout == "True\n"
        return False
    assert result.stdout == "False\nsource\n"
    return True


def test_without_a_stamp_what_is_compiled_is_taken(package: Path) -> None:
    assert not runs_source(package)


def test_the_environment_asks_for_sources(package: Path) -> None:
    assert runs_source(package, FAIRLEAD_PURE="1")
    assert not runs_source(package, FAIRLEAD_PURE="0")


def test_what_fits_its_stamp_is_taken(package: Path) -> None:
    stamp(package, "core/dispatcher.py", "native.py")
    assert not runs_source(package)


def test_an_edited_file_is_never_run_in_its_old_form(package: Path) -> None:
    stamp(package, "core/dispatcher.py", "native.py")
    source = package / "core" / "dispatcher.py"
    source.write_text(source.read_text() + "# edited\n")
    assert runs_source(package)


def test_nor_is_anything_when_a_file_is_gone(package: Path) -> None:
    stamp(package, "core/dispatcher.py", "core/__init__.py")
    (package / "core" / "__init__.py").unlink()
    assert runs_source(package)


@pytest.mark.parametrize("text", ["", "being replaced\n", "1 2 3\n", "x y z core/dispatcher.py\n"])
def test_a_stamp_that_is_being_written_counts_as_none_of_it(package: Path, text: str) -> None:
    (package / Path(native.STAMP).name).write_text(text)
    assert runs_source(package)
