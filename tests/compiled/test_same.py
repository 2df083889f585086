"""What is compiled gives exactly what the sources give: two processes, the same histories."""

import functools
import json
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.compiled import histories

ROOT = Path(__file__).parent.parent.parent


def run(pure: bool, *words: str) -> str:
    """Run the histories in a process of their own."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.compiled.histories", *words],
        cwd=ROOT,
        env=os.environ | {"FAIRLEAD_PURE": "1" if pure else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.returncode, result.stderr
    return result.stdout


@functools.cache
def results(pure: bool) -> dict[str, Any]:
    found = json.loads(run(pure))
    assert isinstance(found, dict)
    return found


def test_one_is_compiled_and_the_other_is_not() -> None:
    assert results(pure=False)["compiled"] is True
    assert results(pure=True)["compiled"] is False


@pytest.mark.parametrize("case", histories.cases())
def test_both_give_the_same(case: str) -> None:
    if results(pure=False)["cases"][case] == results(pure=True)["cases"][case]:
        return
    lines = zip_longest(run(False, case).splitlines(), run(True, case).splitlines())
    number, (native, pure) = next((n, pair) for n, pair in enumerate(lines) if pair[0] != pair[1])
    pytest.fail(f"{case} differs first in line {number}:\n  compiled {native}\n  pure     {pure}")
