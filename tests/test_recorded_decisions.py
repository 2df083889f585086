"""What earlier versions decided is decided again: the logs in ``fixtures/`` verify identically."""

import lzma
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from fairlead.core.commands import Command
from fairlead.core.events import Event
from fairlead.simulate.verify import Verdict, verify
from fairlead.trace.decision_reader import LogReader

LOGS = sorted((Path(__file__).parent / "fixtures" / "decision_logs").glob("*.log.xz"))


def replayed(packed: Path, folder: Path) -> Verdict:
    path = folder / packed.stem
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return verify(LogReader(path))


@pytest.mark.parametrize("packed", LOGS, ids=lambda path: path.name.removesuffix(".log.xz"))
def test_a_kept_log_verifies_identically(packed: Path, tmp_path: Path) -> None:
    verdict = replayed(packed, tmp_path)
    assert verdict.identical, verdict.difference
    assert not verdict.truncated
    assert verdict.events.total() > 150


def test_the_kept_logs_have_every_kind_of_event_and_command_and_a_request_that_moved(tmp_path: Path) -> None:
    events: Counter[str] = Counter()
    commands: Counter[str] = Counter()
    for packed in LOGS:
        verdict = replayed(packed, tmp_path)
        events += verdict.events
        commands += verdict.commands
    assert events.keys() == {kind.__name__ for kind in get_args(Event)}
    assert commands.keys() == {kind.__name__ for kind in get_args(Command)}
    assert any(b"moved: has credit" in lzma.decompress(packed.read_bytes()) for packed in LOGS)
