"""Results on disk: one JSON file a run, or a folder of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairlead.report.metrics import SCHEMA

Result = Mapping[str, Any]
"""What ``summarise`` returns."""


class ResultError(ValueError):
    """A file that is not a result that this version can read; the text names the file and says why."""


def save(path: Path, result: Result) -> None:
    """Write one result. The file is complete or absent: it is renamed into place when written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=None, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read one result. Raises ResultError for what is not one, or is one of another schema."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise ResultError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or "fairlead" not in found:
        raise ResultError(f'{path}: not a result of fairlead (it has no "fairlead" field)')
    schema = found.get("schema")
    if schema != SCHEMA:
        by = f"written by fairlead {found['fairlead']}"
        raise ResultError(f"{path}: schema {schema!r}, {by}; this version reads {SCHEMA}: run it again")
    return found


def load_all(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read files and folders (every ``*.json`` in them, by name). Raises ResultError, also for nothing."""
    results = []
    for path in paths:
        if path.is_dir():
            files = sorted(path.glob("*.json"))
            if not files:
                raise ResultError(f"{path}: no *.json in this folder")
            results += [load(file) for file in files]
        else:
            results.append(load(path))
    if not results:
        raise ResultError("no results were named")
    return results
