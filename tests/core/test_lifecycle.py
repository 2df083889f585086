"""The table of a request's life: every move in it happens, and no other does."""

import ast
import random
import re
from pathlib import Path

import pytest

import fairlead
from fairlead.core.commands import Reject
from fairlead.core.dispatcher import Settings
from fairlead.core.lifecycle import ENDS, MOVES, LifecycleError, State
from fairlead.core.model import Request
from fairlead.core.tracked import TrackedRequest

from .driver import Driver, make_dispatcher


@pytest.mark.pure_only("replaces a method of a compiled class")
def test_every_move_of_the_table_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[State, str]] = set()
    move = TrackedRequest.move

    def noted(self: TrackedRequest, what: str) -> None:
        seen.add((self.state, what))
        move(self, what)

    monkeypatch.setattr(TrackedRequest, "move", noted)
    for seed in range(8):
        settings = Settings(queue_timeout_us=1_000_000, max_queued=20)
        driver = Driver(make_dispatcher(settings=settings, seed=seed), random.Random(seed), check=False)
        driver.worker_up("w1")
        for _ in range(300):
            driver.step()
    # Of progress, which changes nothing, only the illegal one is asked of the table.
    legal = {(state, what) for state, moves in MOVES.items() for what in moves if what != "progress"}
    assert seen == legal


def test_any_other_move_is_refused() -> None:
    whats = {what for moves in MOVES.values() for what in moves}
    for state in State:
        for what in whats - MOVES[state].keys():
            job = TrackedRequest(Request(1, "ann", 10), 1, 0)
            job.state = state
            with pytest.raises(LifecycleError, match=f"is {state}: it cannot {what}"):
                job.move(what)
    assert all(not MOVES[state] for state in ENDS)


def test_every_code_that_reject_names_is_given_somewhere() -> None:
    codes = set(re.findall(r"``(\w+)``", Reject.__doc__ or "")) - {"code"}
    assert codes == {"queue_full", "queue_timeout", "no_worker"}
    folder = Path(fairlead.__file__).parent / "core"  # compiled modules have no source to inspect
    source = ast.parse((folder / "dispatcher.py").read_text())
    assert codes <= {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
