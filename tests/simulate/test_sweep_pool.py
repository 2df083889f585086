"""Work in processes: what fails, what dies, and what is left."""

import os
import signal
import sys
import time
import types
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from fairlead.simulate.sweep.pool import Call, Ends, Failure, run_here, run_in_processes
from fairlead.simulate.sweep.ray import run_on_ray


def told(argument: Any) -> tuple[Any, int]:
    """What it was given, and by which process it was done."""
    return argument, os.getpid()


def refuses(_: Any) -> None:
    raise ValueError("such a thing cannot be")


def breaks(_: Any) -> None:
    raise KeyError("missing")


def dies(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(_: Any) -> None:
    os._exit(3)


def waits(_: Any) -> None:
    time.sleep(600)


def all_of(ends: Ends) -> dict[int, Any]:
    with closing(ends) as ended:
        pairs = [one for one in ended if one is not None]
    found = dict(pairs)
    assert len(found) == len(pairs)  # each once
    return found


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_piece_of_work_is_done_once(processes: int) -> None:
    works = [Call(told, i) for i in range(12)]
    found = all_of(run_in_processes(works, processes))
    assert [found[i][0] for i in range(12)] == list(range(12))
    pids = {pid for _, pid in found.values()}
    assert 1 <= len(pids) <= processes
    assert os.getpid() not in pids


def test_nothing_to_do_starts_nothing() -> None:
    assert all_of(run_in_processes([], 4)) == {}


def test_a_process_stays_with_its_group() -> None:
    works = [Call(told, (group, i), group) for i in range(20) for group in "ab"]
    found = all_of(run_in_processes(works, 2))
    changes = Counter()
    at: dict[int, str] = {}
    for (group, _), pid in found.values():  # in the order of their end
        changes[pid] += at.get(pid, group) != group
        at[pid] = group
    assert sum(changes.values()) <= 2  # at the end of a group it helps with the other
    order = [value[0][0] for value in all_of(run_here(works)).values()]
    assert order == ["a"] * 20 + ["b"] * 20


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (refuses, "such a thing cannot be"),
        (breaks, r"KeyError: 'missing' \(.*test_sweep_pool.py:\d+\)"),
        (dies, r"ended unasked \(signal SIGKILL; was memory short\?\)"),
        (leaves, r"ended unasked \(exit code 3\)"),
    ],
)
def test_a_fault_is_told_and_does_not_lose_the_rest(call: Any, said: str) -> None:
    works = [Call(told, 0), Call(call, 1), Call(told, 2), Call(call, 3), Call(told, 4)]
    found = all_of(run_in_processes(works, 2))
    assert [found[i][0] for i in (0, 2, 4)] == [0, 2, 4]
    for i in (1, 3):
        assert isinstance(found[i], Failure)
        with pytest.raises(RuntimeError, match=said):
            raise RuntimeError(found[i].text)


def test_closing_ends_the_processes_whatever_they_do() -> None:
    ends = run_in_processes([Call(told, 0), *[Call(waits, i) for i in range(3)]], 3)
    pid = next(one for one in ends if one is not None)[1][1]
    assert os.path.exists(f"/proc/{pid}")
    began = time.monotonic()
    ends.close()
    assert time.monotonic() - began < 300  # it did not wait for them
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_caller_gets_a_turn_while_all_are_busy() -> None:
    with closing(run_in_processes([Call(waits, 0)], 1)) as ends:
        assert next(ends) is None
        assert next(ends) is None


def test_a_process_with_threads_is_not_forked() -> None:
    import threading

    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        found = all_of(run_in_processes([Call(told, 1), Call(refuses, 2)], 1))
    finally:
        gate.set()
        thread.join()
    assert found[0][0] == 1
    assert found[1] == Failure("such a thing cannot be")


# ------------------------------------------------------------------ Ray, whose calls are few


class FakeRay(types.ModuleType):
    """The calls that are used, done at once; ``stuck`` tasks never end."""

    class RayError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayError=self.RayError)
        self.stuck: set[int] = set()
        self.cancelled: list[int] = []
        self.started: list[dict[str, Any]] = []
        self.down = 0
        self._values: dict[int, Any] = {}

    def init(self, **options: Any) -> None:
        self.started.append(options)

    def shutdown(self) -> None:
        self.down += 1

    def remote(self, **_: Any) -> Any:
        def wrap(function: Any) -> Any:
            def start(*args: Any) -> int:
                reference = len(self._values)
                self._values[reference] = (function, args)
                return reference

            return types.SimpleNamespace(remote=start)

        return wrap

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        ready = [r for r in reversed(references) if r not in self.stuck][:1]
        return ready, [r for r in references if r not in ready]

    def get(self, reference: int) -> Any:
        function, args = self._values[reference]
        if args[0].argument == "lost":
            raise self.RayError("the node is gone")
        return function(*args)

    def cancel(self, reference: int, force: bool) -> None:
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_ray_does_the_work_and_loses_no_place(ray: FakeRay) -> None:
    works = [Call(told, 0), Call(refuses, 1), Call(told, "lost"), Call(told, 3)]
    found = all_of(run_on_ray(works, "auto"))
    assert (found[0][0], found[3][0]) == (0, 3)
    assert found[1] == Failure("such a thing cannot be")
    assert found[2] == Failure("the node is gone")
    assert ray.started[0]["address"] == "auto"
    assert (ray.cancelled, ray.down) == ([], 1)


def test_stopping_cancels_what_ray_has_not_done(ray: FakeRay) -> None:
    ray.stuck = {0, 2}
    with closing(run_on_ray([Call(told, i) for i in range(3)], "auto")) as ends:
        assert next(ends) is not None
    assert (ray.cancelled, ray.down) == ([0, 2], 1)


def test_a_node_with_other_code_is_refused(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = iter(["mine", "theirs"])
    monkeypatch.setattr("fairlead.simulate.sweep.ray.code_hash", lambda: next(hashes))
    assert "another version" in all_of(run_on_ray([Call(told, 0)], "auto"))[0].text


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:word"])
def test_an_address_where_nobody_is_says_so_at_once(ray: FakeRay, address: str) -> None:
    with pytest.raises(ValueError, match=f"no Ray cluster at {address}"):
        all_of(run_on_ray([Call(told, 0)], address))
    assert not ray.started


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'fairlead\[ray\]'"):
        all_of(run_on_ray([Call(told, 0)], "auto"))
