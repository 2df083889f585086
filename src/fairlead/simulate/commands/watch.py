"""How far a sweep is, on the terminal."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fairlead.simulate.sweep.run import SweepState

_DOING = {"maximum": "measuring maximum loads", "cells": "simulating"}


class Watch:
    """The progress bar, and what was done in the end.

    It refreshes when it is told to and has no thread: workers are forked meanwhile. ``told`` is written in
    front of what is being done.
    """

    def __init__(self, console: Console, told: str = "") -> None:
        self._console = console
        self._told = f"{told}: " if told else ""
        self._state = SweepState("cells", 0, 0)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, state: SweepState) -> None:
        """Draw how far the sweep is."""
        if self._task is None or state.doing != self._state.doing:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self._told + _DOING[state.doing], total=None, note="")
        self._state = state
        self._bar.update(
            self._task,
            # Without those on disk: they came at once and say nothing of the time that is left.
            completed=state.done - state.kept,
            total=state.total - state.kept,
            note=_note(state),
            refresh=True,
        )

    def sum_up(self) -> None:
        """Print how many results were simulated, and how many were read."""
        state = self._state
        if state.doing != "cells" or not state.total:
            return
        simulated = state.done - state.kept - state.failed
        parts = [f"{state.done} of {state.total} cells"]
        if state.kept:
            parts.append(f"{state.kept} from the cache")
        if simulated:
            parts.append(f"{simulated} simulated in {state.elapsed_s:,.1f} s")
        if state.failed:
            parts.append(f"{state.failed} failed")
        self._console.print(", ".join(parts), style="dim", highlight=False)


def _note(state: SweepState) -> str:
    parts = []
    if state.kept:
        parts.append(f"and {state.kept} from the cache")
    if state.requests:
        parts.append(f"{state.requests / max(state.elapsed_s, 1e-3):,.0f} requests/s")
    if state.failed:
        parts.append(f"{state.failed} failed")
    return ", ".join(parts)
