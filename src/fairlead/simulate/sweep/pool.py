"""Runs work in several processes. A fault loses one piece only, and no process outlives its parent."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

TICK_S = 0.25
"""Seconds after which the caller gets control, to show progress."""


class Call(NamedTuple):
    """One call for a process."""

    function: Callable[[Any], Any]
    argument: Any
    group: Hashable = None
    """A process goes on with the group that it is at, since it has its data in memory."""


class Failure(NamedTuple):
    """Work that raised, or whose process died."""

    text: str


Ended = tuple[int, Any]
"""The place of a piece of work, and its value or ``Failure``."""
Ends = Generator[Ended | None, None, None]
"""What has ended, as it ends, and None now and then."""


def attempt(call: Call) -> Any:
    """Return what the call returns, or a ``Failure``."""
    try:
        return call.function(call.argument)
    except ValueError as error:  # workloads, policies and settings at fault: the text says it all
        return Failure(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other pieces of work go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})")


def run_here(calls: Sequence[Call]) -> Ends:
    """Do the work in this process, group by group."""
    queue = _Queue(calls)
    group: Hashable = None
    while (place := queue.take(group)) is not None:
        group = calls[place].group
        yield place, attempt(calls[place])


def run_in_processes(calls: Sequence[Call], processes: int) -> Ends:
    """Do the work in as many processes; yield what has ended, and None now and then.

    To be closed, also when interrupted (``contextlib.closing``): that ends the processes.
    """
    queue = _Queue(calls)
    crew: list[_Worker] = []
    try:
        while True:
            for worker in crew:
                if worker.place < 0 and (place := queue.take(worker.group)) is not None:
                    worker.give(place, calls[place])
            while len(crew) < processes and (place := queue.take(None)) is not None:
                crew.append(_Worker())
                crew[-1].give(place, calls[place])
            busy = [worker for worker in crew if worker.place >= 0]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], TICK_S)
            for worker in busy:
                if worker.pipe in ready:
                    place, value = worker.take()
                    queue.ended(worker.group)
                    if not worker.alive:
                        crew.remove(worker)
                    yield place, value
            yield None
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.end()


class _Queue:
    """What is still to be done. A process stays at its group; a new one goes where fewest are."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._waiting: OrderedDict[Hashable, deque[int]] = OrderedDict()
        self._active: Counter[Hashable] = Counter()
        self._calls = calls
        for place, call in enumerate(calls):
            self._waiting.setdefault(call.group, deque()).append(place)

    def take(self, group: Hashable) -> int | None:
        """Return the next place for a process that was at ``group``; None when there is none."""
        if not self._waiting:
            return None
        if group not in self._waiting:
            group = min(self._waiting, key=lambda g: self._active[g])  # the first of equals
        places = self._waiting[group]
        place = places.popleft()
        if not places:
            del self._waiting[group]
        self._active[group] += 1
        return place

    def ended(self, group: Hashable) -> None:
        """Note that a process is done with a piece of ``group``."""
        self._active[group] -= 1


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = _new_process(theirs)
        with _no_interrupt():
            self.process.start()
        theirs.close()
        self.place = -1
        """Of the work that it is at; -1: none."""
        self.group: Hashable = None
        self.alive = True

    def give(self, place: int, call: Call) -> None:
        """Let the process do a piece of work."""
        self.place, self.group = place, call.group
        try:
            self.pipe.send(call)
        except BrokenPipeError:
            return  # it died while idle: the pipe is at its end, which ``take`` finds

    def take(self) -> Ended:
        """Return what came through the pipe, or how the process ended."""
        place, self.place = self.place, -1
        try:
            return place, self.pipe.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            self.end()
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = "; was memory short?" if -code == signal.SIGKILL else ""
            return place, Failure(f"its process ended unasked ({how}{hint})")

    def end(self) -> None:
        """Wait for the end of the process; kill it if that takes too long."""
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile. Processes that start here never see it: the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _new_process(pipe: Connection) -> BaseProcess:
    """Choose to fork if no other thread runs here: it is quick, and uses the code that is loaded already."""
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork").Process(target=_serve, args=(pipe,), daemon=True)
    return multiprocessing.get_context("spawn").Process(target=_serve, args=(pipe,), daemon=True)


def _serve(pipe: Connection) -> None:
    """Work until the parent has nothing more, or is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(call))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
