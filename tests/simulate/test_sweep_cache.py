"""What makes a result another one, and what does not."""

import dataclasses
import importlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.core.model import Costs
from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import External
from fairlead.core.routing import POLICIES
from fairlead.engine.profiles import profile_named
from fairlead.simulate import capacity, code
from fairlead.simulate.capacity import Capacity, measure
from fairlead.simulate.code import sources
from fairlead.simulate.settings import Fault, Settings
from fairlead.simulate.sweep import cache as sweep_cache
from fairlead.simulate.sweep.cache import Keys, Store, code_hash
from fairlead.simulate.sweep.cell import Maximum
from fairlead.simulate.sweep.run import Cell, Sample
from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.model import Loop
from fairlead.trace.reading import READERS
from fairlead.trace.workload import Workload
from tests.simulate.sweeping import mooncake, small

OTHER_SETTINGS: dict[str, Any] = {
    "policy": "lmetric",
    "order": "dlpm:quantum=123",
    "engine": "llama-3.1-8b-a100",
    "topology": "engine",
    "exact_cache": True,
    "faults": (Fault(0, 1_000),),
    "fast_forward": False,
    "costs": Costs(extend=2),
}
OTHER_WORKLOAD: dict[str, Any] = {
    "source": "judge",
    "form": "mooncake",
    "options": {"clients": 3},
    "assign": "random",
    "weights": {"client-0": 2.0},
    "attack": "more",
    "concurrency": {"client-0": Loop(2)},
}


def key(cell: Cell, capacity: Capacity | None = None, slos: dict[str, float] | None = None) -> str:
    return Keys(slos).of(cell, capacity)


def other(field: "dataclasses.Field[Any]", value: Any, told: dict[str, Any]) -> Any:
    return told[field.name] if field.name in told else value + 1


@pytest.mark.parametrize("field", fields(Settings), ids=lambda f: f.name)
def test_every_setting_counts(field: "dataclasses.Field[Any]") -> None:
    cell = small()
    changed = other(field, getattr(cell.settings, field.name), OTHER_SETTINGS)
    if field.name == "cancel_share":
        changed = 0.5
    assert key(replace(cell, settings=replace(cell.settings, **{field.name: changed}))) != key(cell)


@pytest.mark.parametrize("field", fields(Workload), ids=lambda f: f.name)
def test_every_option_of_the_workload_counts(field: "dataclasses.Field[Any]") -> None:
    cell = small()
    changed = other(field, getattr(cell.workload, field.name), OTHER_WORKLOAD)
    assert key(replace(cell, workload=replace(cell.workload, **{field.name: changed}))) != key(cell)


def test_load_maximum_sample_and_limits_count() -> None:
    cell = small(load=0.5)
    keys = [
        key(cell),
        key(replace(cell, load=0.6)),
        key(cell, Capacity(3.0, 100)),
        key(cell, Capacity(3.1, 100)),
        key(replace(cell, sample=Sample(gaps=True))),
        key(replace(cell, sample=Sample(window=1, windows=2))),
        key(cell, slos={"ttft": 500}),
        key(cell, slos={"ttft": 501}),
    ]
    assert len(set(keys)) == len(keys)


def test_the_label_does_not_count_nor_who_asks() -> None:
    assert key(replace(small(), label="mine")) == key(small())


def test_the_bytes_of_a_trace_count_and_its_name_but_not_its_folder(tmp_path: Path) -> None:
    path = mooncake(tmp_path / "trace.jsonl")
    (tmp_path / "elsewhere").mkdir()
    elsewhere = mooncake(tmp_path / "elsewhere" / "trace.jsonl")
    renamed = mooncake(tmp_path / "renamed.jsonl")
    before = key(small(source=str(path)))
    assert key(small(source=str(elsewhere))) == before
    assert key(small(source=str(renamed))) != before
    path.write_text(path.read_text().replace('"output_length": 20', '"output_length": 21', 1))
    assert key(small(source=str(path))) != before


def test_a_profile_from_a_file_counts_by_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_named("llama-3.1-8b-h100")
    before = key(small())
    monkeypatch.setattr(Settings, "profile", lambda _: replace(profile, kv_tokens=profile.kv_tokens + 16))
    assert key(small()) != before


def test_a_maximum_that_is_kept_is_measured_again_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    trace, settings = generate("shared-prefix", requests=20), Settings(workers=1)
    found = measure(trace, settings)
    (kept,) = (tmp_path / "capacity").iterdir()
    kept.write_text(kept.read_text().replace(str(found.requests_per_s), "1.5"))
    assert measure(trace, settings).requests_per_s == 1.5
    monkeypatch.setattr(code, "sources", lambda _: {"fairlead.simulate.world.world": kept})
    monkeypatch.setattr(capacity, "hash_of", code.hash_of.__wrapped__)
    assert measure(trace, settings) == found


def test_the_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, name = key(small()), code_hash()
    real = sources("fairlead.simulate.sweep.cell")
    changed = tmp_path / "world.py"
    changed.write_bytes(real["fairlead.simulate.world.world"].read_bytes() + b"# a comment\n")
    monkeypatch.setattr(code, "sources", lambda _: real | {"fairlead.simulate.world.world": changed})
    monkeypatch.setattr(sweep_cache, "hash_of", code.hash_of.__wrapped__)
    assert code_hash() != name
    assert key(small()) != before


def test_the_code_is_all_that_decides_and_nothing_that_only_shows() -> None:
    found = sources("fairlead.simulate.sweep.cell")
    assert all(path.is_file() for path in found.values())
    registered = [POLICIES.get(n).__module__ for n in POLICIES.names()]
    registered += [ORDERINGS.get(n).__module__ for n in ORDERINGS.names()]
    registered += [GENERATORS.get(n).__module__ for n in GENERATORS.names()]
    registered += [reader.read.__module__ for reader in READERS.values()]
    needed = {
        "fairlead",
        "fairlead.core.dispatcher",
        "fairlead.engine.model",
        "fairlead.engine.profiles",
        "fairlead.simulate.world.world",
        "fairlead.report.metrics",
        *registered,
    }
    assert needed <= found.keys()
    shown = {"fairlead.cli", "fairlead.report.html", "fairlead.simulate.commands.compare"}
    assert not shown & found.keys()


ROUTING_OF_OTHERS = """
from fairlead.core.routing.least_requests import LeastRequests
from others_policies.scores import SCORE

class Theirs(LeastRequests):
    name = "theirs"
"""


def test_the_code_of_another_package_decides_where_a_policy_is_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a module of that package which the policy's own imports: results of old code are not taken."""
    package = tmp_path / "others_policies"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "routing.py").write_text(ROUTING_OF_OTHERS)
    (package / "scores.py").write_text("SCORE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = External("theirs", "others", lambda: importlib.import_module("others_policies.routing").Theirs)
    monkeypatch.setattr(POLICIES, "_found", {"theirs": point})
    monkeypatch.setattr(POLICIES, "_classes", dict(POLICIES._classes))
    theirs, ours = small(policy="theirs"), small(policy="least_requests")
    before, own = key(theirs), key(ours)
    fleet = Maximum(theirs.workload, theirs.settings)
    maximum = Keys(None).of_maximum(fleet)
    (package / "scores.py").write_text("SCORE = 2\n")
    assert key(theirs) == before, "a process runs the code that it imported"
    code.hash_of_package.cache_clear()
    assert key(theirs) != before
    assert key(ours) == own
    assert Keys(None).of_maximum(fleet) == maximum, "maxima are measured with policies of ours"


def test_maxima_differ_by_workload_and_fleet_only() -> None:
    keys = Keys(None)
    work = Maximum(Workload(source="judge"), Settings())
    same = work._replace(settings=Settings(policy="lmetric", order="fcfs", seed=9, faults=(Fault(0, 5),)))
    assert keys.of_maximum(work) == keys.of_maximum(same)
    others = [
        work._replace(settings=Settings(workers=5)),
        work._replace(settings=Settings(kv_tokens=1_000)),
        work._replace(workload=Workload(source="judge", requests=7)),
    ]
    assert len({keys.of_maximum(w) for w in (work, *others)}) == 4


def test_a_store_gives_back_what_it_was_given_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder")
    assert store.get("a") is None
    assert store.maximum("a") is None
    result = {"fairlead": "0", "schema": 1, "duration": 1.5, "labels": ("one",)}
    kept = store.put("a", result)
    assert kept == store.get("a") == result | {"labels": ["one"]}
    store.put_maximum("a", Capacity(2.5, 10))
    assert store.maximum("a") == Capacity(2.5, 10)
    assert sorted(p.relative_to(store.folder).as_posix() for p in store.folder.rglob("*") if p.is_file()) == [
        "a.json",
        "maximum/a.json",
    ]
    store._maximum("b").write_text("{}")
    assert store.maximum("b") is None
