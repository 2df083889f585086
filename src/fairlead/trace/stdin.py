"""Standard input and pipes as traces: kept in a file for as long as the program runs.

A trace is read more than once: to recognise it, to read it, to name its content, and by other processes.
"""

import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

from fairlead.trace.model import TraceError

STDIN = "-"
"""What stands for standard input."""


def kept(source: str) -> str:
    """Return ``source``; a path to a copy of what comes through it if it is ``-`` or a pipe.

    Raises ``TraceError`` if standard input is a terminal or cannot be read.
    """
    if source == STDIN:
        return str(_standard_input())
    path = Path(source)
    try:
        piped = path.is_fifo()
    except (OSError, ValueError):  # a name that no path can have
        return source
    return str(_piped(path)) if piped else source


@cache
def _standard_input() -> Path:
    if sys.stdin is None or sys.stdin.isatty():
        raise TraceError(f"'{STDIN}' reads a trace from standard input, and nothing is piped into it")
    return _copied("standard-input", sys.stdin.buffer)


@cache
def _piped(path: Path) -> Path:
    with path.open("rb") as stream:
        return _copied("pipe", stream)


def _copied(name: str, stream: BinaryIO) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fairlead-trace-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with (folder / name).open("wb") as file:
            shutil.copyfileobj(stream, file)
    except OSError as error:
        raise TraceError(f"{name} cannot be kept in {folder}: {error}") from None
    return folder / name
