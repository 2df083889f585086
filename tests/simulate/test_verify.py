"""Invariant 6: what was recorded is decided again, identically, and any change is noticed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.cli import main
from fairlead.core import events as ev
from fairlead.core.dispatcher import Settings
from fairlead.core.lifecycle import LifecycleError
from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.simulate.verify import Verdict, verify
from fairlead.trace.decision_files import DecisionLog, recording
from fairlead.trace.decision_reader import LogReader
from fairlead.trace.decisions import LogError, Setup
from tests.core.driver import WEIGHTS, Driver, make_dispatcher

PAIRS = [(r, o) for r in POLICIES.names() for o in ORDERINGS.names()]
PARAMS: dict[str, dict[str, object]] = {
    "dlpm": {"quantum": 300, "scope": "worker"},
    "vtc": {"scope": "worker"},
    "d2lpm": {"quantum": 500},
    "linear": {"preset": "production", "alpha": 0.5},
}


def record(
    path: Path,
    routing: str = "marginal",
    ordering: str = "dlpm",
    seed: int = 1,
    steps: int = 150,
    *,
    params: bool = False,
    **options: int,
) -> Driver:
    """Write the log of a random history: requests, failures, cancellations, workers that come and go."""
    rng = random.Random(seed)
    given = [PARAMS.get(name, {}) if params else {} for name in (routing, ordering)]
    limits = Settings(max_queued=rng.choice([8, 1000]), queue_timeout_us=2_000_000, max_attempts=2)
    dispatcher = make_dispatcher(
        routing, ordering, routing_params=given[0], ordering_params=given[1],
        settings=limits, weights=WEIGHTS, seed=seed,
    )  # fmt: skip
    specs = [
        f"{name}:{','.join(f'{k}={v}' for k, v in values.items())}"
        for name, values in zip((routing, ordering), given, strict=True)
    ]
    log = DecisionLog(path, Setup.of(dispatcher, *specs, seed), background=False, **options)
    driver = Driver(dispatcher, rng, check=False, decide=recording(dispatcher.step, log))
    driver.worker_up("w1")
    driver.worker_up("w2", precise=True)
    for _ in range(steps):
        driver.step()
    log.close()
    return driver


def verified(path: Path) -> Verdict:
    return verify(LogReader(path))


def edit(path: Path, what: str, to: str) -> None:
    """Replace the first ``what``."""
    text = path.read_text()
    assert what in text
    path.write_text(text.replace(what, to, 1))


@pytest.mark.parametrize(("routing", "ordering"), PAIRS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**9), params=st.booleans())
def test_invariant_6_any_history_replays_to_identical_decisions(
    tmp_path_factory: pytest.TempPathFactory, routing: str, ordering: str, seed: int, params: bool
) -> None:
    path = tmp_path_factory.mktemp("log") / "d.log"
    driver = record(path, routing, ordering, seed, params=params)
    verdict = verified(path)
    assert verdict.identical, verdict.difference
    assert verdict.events.total() >= len(driver.log)
    assert verdict.events["Arrived"] == driver.rid
    assert verdict.commands["Reject"] == driver.ended["rejected"]


def test_events_that_were_refused_are_refused_again(tmp_path: Path) -> None:
    """An error leaves its trace: time has moved, and the caller may have gone on."""
    path = tmp_path / "d.log"
    dispatcher = make_dispatcher()
    log = DecisionLog(path, Setup.of(dispatcher, "marginal", "dlpm", 0), background=False)
    driver = Driver(dispatcher, random.Random(1), decide=recording(dispatcher.step, log))
    driver.worker_up("w1")
    with pytest.raises(LifecycleError, match="unknown"):
        driver.decide(ev.FirstToken(5, 99))
    log.close()
    verdict = verified(path)
    assert verdict.identical
    assert verdict.commands == {"refused": 1}
    edit(path, "is unknown or has ended", "never was")
    assert not verified(path).identical


def test_another_seed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    record(path, routing="random", seed=6)
    edit(path, '"seed":6', '"seed":4')
    difference = verified(path).difference
    assert difference
    assert any(".worker: " in field for field in difference.fields)


def test_another_parameter_of_a_policy_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    record(path, ordering="dlpm", params=True)
    edit(path, '"quantum":300', '"quantum":301')
    difference = verified(path).difference
    assert difference
    assert any(".reasons.credit: " in field for field in difference.fields)


def test_another_setting_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    record(path)
    edit(path, '"costs":[1,2]', '"costs":[1,3]')
    assert not verified(path).identical


TAMPER = {
    "worker": lambda d: d.__setitem__(2, "w9"),
    "attempt": lambda d: d.__setitem__(3, 7),
    "reasons.policy": lambda d: d[4].__setitem__(0, "other"),
    "reasons.scores[0]": lambda d: d[4][1].__setitem__(0, d[4][1][0] + 1e-9),
    "reasons.candidates[0]": lambda d: d[4][2].__setitem__(0, 5),
    "reasons.matched_tokens": lambda d: d[4].__setitem__(3, d[4][3] + 1),
    "reasons.credit": lambda d: d[4].__setitem__(4, d[4][4] + 1),
}


@pytest.mark.parametrize("name", TAMPER)
def test_every_reason_of_a_decision_is_compared(tmp_path: Path, name: str) -> None:
    path = tmp_path / "d.log"
    record(path)
    lines = path.read_text().splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if '[["Dispatch",' in line][5]
    fields = json.loads(lines[at])
    TAMPER[name](fields[2][0])
    lines[at] = json.dumps(fields) + "\n"
    path.write_text("".join(lines))
    difference = verified(path).difference
    assert difference
    assert difference.record == at - 1
    assert difference.where == f"{path} line {at + 1}"
    assert len(difference.fields) == 1
    assert difference.fields[0].startswith(f"[0].{name}: ")


def test_a_whole_number_may_be_written_as_a_float(tmp_path: Path) -> None:
    """Compiled code writes 8192.0 where the sources write 8192: both verify what the other wrote."""
    path = tmp_path / "d.log"
    record(path)
    lines = path.read_text().splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if '[["Dispatch",' in line][5]
    fields = json.loads(lines[at])
    reasons = fields[2][0][4]
    reasons[3:] = map(float, reasons[3:])
    lines[at] = json.dumps(fields) + "\n"
    path.write_text("".join(lines))
    assert verified(path).identical


def test_a_decision_taken_out_or_put_in_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    record(path)
    lines = path.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '[["Dispatch",' in line)
    fields = json.loads(lines[at])
    path.write_text("".join([*lines[:at], json.dumps(fields[:2]) + "\n", *lines[at + 1 :]]))
    difference = verified(path).difference
    assert difference
    assert difference.expected == "no command"
    arrival = next(n for n in range(at + 1, len(lines)) if lines[n].startswith('["Arrived",'))
    path.write_text("".join([*lines[:arrival], *lines[arrival + 1 :]]))
    assert not verified(path).identical


def test_a_log_whose_beginning_is_gone_cannot_be_verified_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "d.log"
    record(path, steps=1500, max_bytes=2**14, files=3)
    with pytest.raises(LogError, match="rotated away") as caught:
        verified(path)
    assert "decision_log_max_bytes" in str(caught.value)
    whole = tmp_path / "whole.log"
    record(whole, steps=1500, max_bytes=2**14, files=100)
    assert len(LogReader(whole).paths) > 5
    assert verified(whole).identical


def test_the_command_says_so_and_ends_with_0_1_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.log"
    record(path)
    assert main(["verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert "identical" in said
    assert "policy marginal, seed 1" in said

    at = next(n for n, line in enumerate(path.read_text().splitlines()) if '"Dispatch"' in line)
    edit(path, ',1,["marginal"', ',2,["marginal"')
    assert main(["verify", str(path), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["identical"] is False
    assert facts["difference"]["record"] == at - 1
    assert main(["verify", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"DIFFERENT at record {at - 1}" in said
    assert "expected: [Dispatch(" in said
    assert "differs:  [0].attempt: 2, now 1" in said

    assert main(["verify", str(tmp_path / "none.log")]) == 2
    path.write_text("hello\n")
    assert main(["verify", str(path)]) == 2
    assert "not a decision log" in capsys.readouterr().err


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_verified_in_a_process_with_another_hash_seed(tmp_path: Path, hash_seed: str) -> None:
    paths = []
    for routing, ordering in (("d2lpm", "dlpm"), ("preble", "vtc"), ("session_affinity", "lpm")):
        paths.append(tmp_path / f"{routing}.log")
        record(paths[-1], routing, ordering, seed=9)
    script = (
        "import sys; from fairlead.cli import main; sys.exit(max(main(['verify', p]) for p in sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("identical") == 3
