"""Fitting the step-time formula: known coefficients come back, bad tables are named."""

import json
import math
import random
import re
import sys
from collections import Counter
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.cli import main
from fairlead.engine.fit import (
    COEFFICIENTS,
    WEIGHTS,
    FitError,
    MeasuredStep,
    errors_of,
    fit_steps,
    kind_of,
)
from fairlead.engine.fit_tables import DRAWN_SEQS, KernelTables, Line, read_steps
from fairlead.engine.measured import read_run, replay
from fairlead.engine.profile_file import profile_toml
from fairlead.engine.profiles import MIXED_RATIO, PROFILES, load_profile
from fairlead.engine.steptime import PS_PER_US, StepTime, Work

KNOWN = StepTime(
    weights_us=10_000,
    base_us=6_000,
    token_us=40,
    decode_context_ns=90,
    prefill_pair_ns=2.5,
    sequence_us=20,
    mixed_context_ns=70,
    head_us=700,
    cpu_us=0,
)


def us(steps: StepTime, work: Work) -> float:
    return steps.step_ps(*work) / PS_PER_US


def works(seed: int, count: int = 400) -> list[Work]:
    """Batches of every kind, decoding up to 96 sequences, prefilling up to 2,000 tokens."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        seqs = 0 if i % 4 == 3 else rng.randint(1, 96)
        chunk = 0 if i % 4 < 2 else rng.randint(16, 2_000)
        past = rng.choice((0, rng.randint(1, 4_000)))
        found.append(Work(seqs, seqs * rng.randint(16, 4_000), chunk, chunk * (2 * past + chunk)))
    return found


coefficients = st.builds(
    StepTime,
    weights_us=st.floats(2_000, 60_000),
    base_us=st.floats(500, 2_000),
    token_us=st.floats(30, 200),
    decode_context_ns=st.floats(10, 400),
    prefill_pair_ns=st.floats(0.2, 12),
    sequence_us=st.floats(1, 25),
    mixed_context_ns=st.floats(5, 400),
    head_us=st.floats(0, 2_000),
    cpu_us=st.just(0),
)


@settings(max_examples=25)
@given(coefficients, st.integers(0, 3))
def test_an_exact_table_gives_its_coefficients_back(known: StepTime, seed: int) -> None:
    fit = fit_steps([MeasuredStep(work, us(known, work)) for work in works(seed)], known.head_us)
    for work in works(seed):
        assert us(fit.steps, work) == pytest.approx(us(known, work), rel=1e-5)
    for work in works(seed + 10):  # where few steps show the floor, it can be split in more ways than one
        assert us(fit.steps, work) == pytest.approx(us(known, work), rel=0.05)
    assert fit.errors["decode"].worst < 0.02


def test_noise_hardly_moves_the_coefficients() -> None:
    """3% of noise on 2,000 steps: every coefficient within 10%, the error reported is the noise."""
    rng = random.Random(1)
    samples = [MeasuredStep(work, us(KNOWN, work) * rng.gauss(1, 0.03)) for work in works(1, 2_000)]
    fit = fit_steps(samples, KNOWN.head_us)
    for name in COEFFICIENTS:
        assert getattr(fit.steps, name) == pytest.approx(getattr(KNOWN, name), rel=0.1), name
    assert fit.kink == pytest.approx(100, rel=0.1)
    assert not fit.notes
    for errors in fit.errors.values():
        assert errors.median == pytest.approx(0.67 * 0.03, rel=0.15)
        assert errors.median < errors.p90 < errors.worst
        assert abs(errors.bias) < 0.005


def test_no_coefficient_is_negative() -> None:
    """Steps that get shorter with context are not explained by a negative cost."""
    samples = [MeasuredStep(w, us(KNOWN, w) * (1.3 if w.decode_context < 50_000 else 0.8)) for w in works(2)]
    fit = fit_steps(samples)
    assert min(getattr(fit.steps, name) for name in COEFFICIENTS) >= 0


def test_without_a_floor_w_is_a() -> None:
    linear = replace(KNOWN, weights_us=0, sequence_us=0)
    fit = fit_steps([MeasuredStep(w, us(linear, w)) for w in works(3)], KNOWN.head_us)
    assert fit.kink == pytest.approx(0, abs=1)
    for work in works(4):
        assert us(fit.steps, work) == pytest.approx(us(linear, work), rel=0.02)


def test_without_mixed_steps_k_mix_is_assumed_and_said() -> None:
    samples = [MeasuredStep(w, us(KNOWN, w)) for w in works(5) if kind_of(w) != "mixed"]
    fit = fit_steps(samples, KNOWN.head_us)
    assert fit.steps.mixed_context_ns == pytest.approx(MIXED_RATIO * fit.steps.decode_context_ns)
    assert "no mixed steps" in fit.notes[0]
    assert set(fit.errors) == {"decode", "prefill"}


def test_what_the_steps_do_not_tell_apart_is_said() -> None:
    """Every prefill has 512 tokens and no past: b, a and k_p cannot be told apart."""
    samples = [MeasuredStep(w, us(KNOWN, w)) for w in works(6) if kind_of(w) == "decode"]
    samples += [MeasuredStep(Work(prefill_tokens=512, prefill_area=512 * 512), 30_000.0)] * 20
    fit = fit_steps(samples)
    assert any("not told apart" in note for note in fit.notes)
    assert fit.errors["prefill"].worst < 0.01


def test_errors_are_relative_and_signed() -> None:
    work = Work(10, 10_000)
    errors = errors_of(
        KNOWN, [MeasuredStep(work, us(KNOWN, work) / 1.1), MeasuredStep(work, us(KNOWN, work) / 0.9)]
    )
    assert errors["decode"].worst == pytest.approx(0.1)
    assert errors["decode"].bias == pytest.approx(0, abs=1e-9)
    assert set(errors) == {"decode"}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (MeasuredStep(Work(1, 10), 0.0), "step 1 took 0.0 us"),
        (MeasuredStep(Work(1, 10), float("nan")), "step 1 took nan us"),
        (MeasuredStep(Work(1, -10), 5.0), "step 1 is impossible"),
        (MeasuredStep(Work(), 5.0), "step 1 is impossible"),
    ],
)
def test_impossible_steps_are_refused(sample: MeasuredStep, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_steps([sample, *(MeasuredStep(w, us(KNOWN, w)) for w in works(7))])


def test_too_few_steps_are_refused() -> None:
    decoding = [MeasuredStep(w, us(KNOWN, w)) for w in works(8) if kind_of(w) == "decode"]
    with pytest.raises(FitError, match="0 steps that prefill: at least 8"):
        fit_steps(decoding)
    with pytest.raises(FitError, match="0 steps that only decode"):
        fit_steps([MeasuredStep(w, us(KNOWN, w)) for w in works(8) if kind_of(w) == "prefill"])


def test_without_scipy_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(*work, us(KNOWN, work)) for work in works(9)]
    table = tmp_path / "steps.csv"
    head = "decode_seqs,decode_context,prefill_tokens,prefill_area,step_us\n"
    table.write_text(head + "".join(",".join(map(str, row)) + "\n" for row in rows))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert main(["profile", "fit", str(table), "--like", "llama-3.1-8b-h100"]) == 2
    assert "pip install 'fairlead[fit]'" in capsys.readouterr().err


@given(st.integers(0, 1_000), st.sampled_from([1.0, 3.0]))
@settings(max_examples=20)
def test_a_fit_cannot_be_bettered_by_changing_one_coefficient(seed: int, noise: float) -> None:
    """Around the solution the weighted squares grow whichever coefficient moves: it is an optimum."""
    rng = random.Random(seed)
    samples = [
        MeasuredStep(work, us(KNOWN, work) * math.exp(rng.gauss(0, noise / 100))) for work in works(seed, 200)
    ]
    counts = Counter(kind_of(sample.work) for sample in samples)
    fit = fit_steps(samples, KNOWN.head_us)

    def squares(steps: StepTime) -> float:
        return sum(
            WEIGHTS[kind_of(work)] / counts[kind_of(work)] * (us(steps, work) / measured - 1) ** 2
            for work, measured in samples
        )

    least = squares(fit.steps)
    for name in COEFFICIENTS:
        value = getattr(fit.steps, name)
        assert value >= 0
        for factor in (0.999, 1.001):
            assert squares(replace(fit.steps, **{name: value * factor})) > least * (1 - 1e-3), name


def test_line_is_linear_between_points_and_flat_beyond() -> None:
    line = Line([(4, 40), (1, 10), (2, 30)])
    assert [line(x) for x in (0, 1, 1.5, 2, 3, 4, 9)] == [10, 10, 20, 30, 35, 40, 40]


def test_a_gemm_takes_as_long_as_the_next_row_where_rows_are_close() -> None:
    """Kernels work in whole tiles: 129 tokens take as long as 144. Between distant rows, linear."""
    line = Line([(112, 9), (128, 10), (144, 20), (1144, 120)], tile=16)
    assert [line(x) for x in (112, 113, 128, 129, 143, 144, 244, 2000)] == [9, 10, 10, 20, 20, 20, 30, 120]


# Kernel tables


def kernel_folder(folder: Path, *, skew: bool = False, gpus: int = 1) -> Path:
    """Tables of a model of 4 layers whose kernels follow KNOWN, head included, on a doubling grid."""
    tables = folder / f"tp{gpus}"
    tables.mkdir(parents=True)
    axis = [2**i for i in range(12)]

    def dense_us(tokens: int) -> float:
        return max(KNOWN.weights_us, KNOWN.base_us + KNOWN.token_us * tokens)

    lines = [f"qkv_proj,{n},{(dense_us(n) - 1000) / 4}\n" for n in axis]
    lines += [f"layernorm,{n},{100}\n" for n in axis] + [f"embedding,{n},{200}\n" for n in axis]
    (tables / "dense.csv").write_text("layer,tokens,time_us\n" + "".join(lines))
    heads = [f"lm_head,{n},{KNOWN.head_us}\n" for n in axis[:9]]
    (tables / "per_sequence.csv").write_text("layer,sequences,time_us\n" + "".join(heads))
    rows = []
    for chunk, past, seqs, context in product(
        (0, *axis[4:]), (0, *axis[4:], 4096, 8192, 16384), (0, *axis[:9]), (0, *axis[4:], 4096, 8192, 16384)
    ):
        if chunk + seqs and (seqs == 0) == (context == 0) and (chunk or not past):
            per_token = KNOWN.decode_context_ns + (KNOWN.mixed_context_ns if chunk else 0)
            pairs = chunk * (past + chunk / 2)
            time = (per_token * seqs * context + KNOWN.prefill_pair_ns * pairs) / 1000
            rows.append(f"{chunk},{past},{seqs},{context},{time / 4}\n")
    (tables / "attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n" + "".join(rows)
    )
    if skew:
        lines = [f"{regime},{n},100,110\n" for regime in ("pure", "mixed") for n in (2, 64, 256)]
        (tables / "skew.csv").write_text("regime,n,t_mean_us,t_skew_us\n" + "".join(lines))
    (folder / "meta.yaml").write_text(
        "gpu: Test GPU\nmodel: test/model\nvllm_version: 0.0.1\nengine:\n  model: no\n"
    )
    return folder


def test_kernel_tables_give_their_coefficients_back(tmp_path: Path) -> None:
    tables = KernelTables(kernel_folder(tmp_path), layers=4)
    drawn = tables.draw(800, 500_000, 2_048)
    assert drawn == tables.draw(800, 500_000, 2_048)
    assert max(s.work.decode_seqs for s in drawn) <= DRAWN_SEQS
    assert {kind_of(s.work) for s in drawn} == {"decode", "prefill", "mixed"}
    fit = fit_steps(drawn, tables.head_us)
    assert fit.steps.head_us == KNOWN.head_us
    for name in ("base_us", "token_us", "decode_context_ns", "mixed_context_ns", "weights_us"):
        assert getattr(fit.steps, name) == pytest.approx(getattr(KNOWN, name), rel=0.05), name
    within = tables.rows(kv_tokens=1_000, max_tokens=512)
    assert within
    assert all(s.work.decode_context <= 1_000 and s.work.prefill_tokens <= 512 for s in within)


def test_unequal_contexts_cost_what_the_skew_tables_say(tmp_path: Path) -> None:
    """Attention over unequal contexts takes 10% longer: so does a decoding token's context."""
    equal = fit_steps(KernelTables(kernel_folder(tmp_path / "a"), 4).draw(800, 500_000, 2_048))
    skewed = KernelTables(kernel_folder(tmp_path / "b", skew=True), 4)
    found = fit_steps(skewed.draw(800, 500_000, 2_048))
    ratio = found.steps.decode_context_ns / equal.steps.decode_context_ns
    assert ratio == pytest.approx(1.1, rel=0.02)
    borrowed = KernelTables(tmp_path / "a", 4, spread_of=tmp_path / "b")
    assert borrowed.draw(50, 500_000, 2_048) == skewed.draw(50, 500_000, 2_048)


def test_skew_tables_that_their_folder_disowns_are_not_used(tmp_path: Path) -> None:
    """LLMServingSim leaves a skew sweep beside ``skew_fit: enabled: false``, and does not read it."""
    equal = KernelTables(kernel_folder(tmp_path / "a"), 4)
    disowned = kernel_folder(tmp_path / "b", skew=True)
    meta = disowned / "meta.yaml"
    meta.write_text(meta.read_text() + "skew_fit:\n  enabled: true\n")
    assert KernelTables(disowned, 4).spread
    meta.write_text(meta.read_text().replace("true", "false"))
    assert KernelTables(disowned, 4).draw(50, 500_000, 2_048) == equal.draw(50, 500_000, 2_048)
    with pytest.raises(FitError, match=r"meta\.yaml: skew_fit is not enabled"):
        KernelTables(tmp_path / "a", 4, spread_of=disowned)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "dense.csv",
            "layer,tokens,time_ms\na,1,2\n",
            r"no column time_us \(found: layer, tokens, time_ms\)",
        ),
        ("dense.csv", "layer,tokens,time_us\na,1,-2\n", "line 2: time_us is '-2'"),
        ("per_sequence.csv", "layer,sequences,time_us\na,1,fast\n", "line 2: time_us is 'fast'"),
        ("attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n", "attention.csv: no rows"),
        ("skew.csv", "regime,n,t_mean_us,t_skew_us\npure,2,1,1\n", "none of regime mixed"),
        ("moe.csv", "", "mixture of experts"),
    ],
)
def test_bad_kernel_tables_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (kernel_folder(tmp_path) / "tp1" / name).write_text(text)
    with pytest.raises(FitError, match=message):
        KernelTables(tmp_path, 4)


def test_a_missing_table_and_a_sparse_one_are_named(tmp_path: Path) -> None:
    attention = kernel_folder(tmp_path) / "tp1" / "attention.csv"
    lines = attention.read_text().splitlines(keepends=True)
    attention.write_text("".join(lines[:20]))
    with pytest.raises(FitError, match="drawn batches lie within the attention table"):
        KernelTables(tmp_path, 4).draw(100, 500_000, 2_048)
    attention.unlink()
    with pytest.raises(FitError, match=r"no attention.csv or attention.csv.gz"):
        KernelTables(tmp_path, 4)


# Steps timed whole, the command, and profile files

HEADER = "decode_seqs,decode_context,prefill_tokens,prefill_area,step_us\n"


def steps_csv(path: Path) -> Path:
    path.write_text(HEADER + "".join(f"{','.join(map(str, w))},{us(KNOWN, w)}\n" for w in works(9)))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode_seqs,step_us\n1,2\n", "no column decode_context, prefill_tokens, prefill_area"),
        (HEADER + "1,10,0,0,0\n", "line 2: step_us is 0"),
        (HEADER + "0,10,0,0,5\n", "contradicts itself"),
        (HEADER + "0,0,10,5,5\n", "contradicts itself"),
        (HEADER + "1,10,0,0\n", "step_us is None"),
    ],
)
def test_bad_steps_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "steps.csv").write_text(text)
    with pytest.raises(FitError, match=message):
        read_steps(tmp_path / "steps.csv")


def test_fit_writes_a_profile_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.toml"
    options = ["--like", "llama-3.1-8b-h100", "--name", "mine", "--gpu", "none", "--out", str(out), "--json"]
    assert main(["profile", "fit", str(steps_csv(tmp_path / "steps.csv")), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"]["table"]["decode"]["worst"] < 0.02
    assert report["like"]["errors"]["table"]["decode"]["median"] > 0.2
    profile = load_profile(out)
    assert (profile.name, profile.gpu, profile.model) == ("mine", "none", "meta-llama/Llama-3.1-8B")
    assert profile.steps.cpu_us == 0  # part of what was timed
    for work in works(11):
        assert us(profile.steps, work) == pytest.approx(us(KNOWN, work), rel=0.02)
    assert main(["profile", "show", str(out)]) == 0
    assert capsys.readouterr().out == out.read_text()


def test_fit_of_kernel_tables_takes_names_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(kernel_folder(tmp_path))
    limits = ["--kv-tokens", "500000", "--kv-bytes-per-token", "1000", "--max-model-len", "16384"]
    assert main(["profile", "fit", folder, "--name", "x", "--layers", "4", *limits]) == 0
    out = capsys.readouterr().out
    assert "x: test/model on Test GPU" in out
    assert "vLLM 0.0.1" in out
    assert re.search(r"drawn: decode +\d+ +\d+\.\d%", out)
    assert main(["profile", "fit", folder, "--name", "x", *limits]) == 2
    assert "how many layers has test/model? --layers N" in capsys.readouterr().err
    assert main(["profile", "fit", folder, "--name", "x", "--layers", "4"]) == 2
    assert "--kv-tokens, or --like" in capsys.readouterr().err
    assert main(["profile", "fit", folder, "--like", "llama-3.1-8b-h100", "--out", "x.json"]) == 2
    assert "a profile is a .toml file" in capsys.readouterr().err


def test_fit_of_tables_of_two_gpus_adds_their_all_reduces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 layers have 8 all-reduces of 10 us; a token's 1,000 values of bf16 take 2 us each at 1 GB/s."""
    folder, out = str(kernel_folder(tmp_path, gpus=2)), tmp_path / "two.toml"
    limits = ["--kv-tokens", "500000", "--kv-bytes-per-token", "1000", "--max-model-len", "16384"]
    command = ["profile", "fit", folder, "--name", "x", "--layers", "4", *limits, "--out", str(out)]
    assert main(command) == 2
    assert "no tables for 1 GPUs, only tp2" in capsys.readouterr().err
    link = ["--tensor-parallel", "2", "--link-latency-us", "10", "--link-gb-per-s", "1"]
    assert main([*command, *link]) == 2
    assert "--hidden-size N" in capsys.readouterr().err
    assert main([*command, *link, "--hidden-size", "1000", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]["drawn"]
    assert errors["decode"]["bias"] < 0.02  # of the kernels: all-reduces are not among them
    profile = load_profile(out)
    assert (profile.tensor_parallel, profile.steps.link_us, profile.steps.link_token_us) == (2, 80, 16)
    steps = str(steps_csv(tmp_path / "steps.csv"))
    assert main(["profile", "fit", steps, "--like", "llama-3.1-8b-h100", *link]) == 2
    assert "include their all-reduces" in capsys.readouterr().err


def test_list_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROFILES)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_a_written_profile_loads_the_same(profile, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(profile_toml(profile), encoding="utf-8")
    assert load_profile(path) == profile
    assert load_profile(profile.name) is profile
    assert {f.name for f in fields(profile)} >= {"steps", "kv_tokens"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kv_tokens = ", "kv_token = "), "unknown key kv_token; did you mean 'kv_tokens'"),
        (("weights_us = ", "#"), "no key steps.weights_us"),
        (("token_us = ", 'token_us = "fast" #'), "steps.token_us is 'fast', not a number"),
        (("kv_tokens = ", "kv_tokens = 1.5 #"), "kv_tokens is 1.5, not a whole number"),
        (("max_num_seqs = ", "max_num_seqs = 0 #"), "max_num_seqs is 0, not at least 1"),
        (("token_us = ", "token_us = -1 #"), "not negative"),
        (("[steps]", "[steps"), "is not TOML"),
        (("[steps]", "steps = 1\n[other]"), "unknown key other"),
    ],
)
def test_errors_of_profile_files_name_file_and_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "p.toml"
    text = profile_toml(PROFILES["llama-3.1-8b-h100"])
    assert change[0] in text
    path.write_text(re.sub("^" + re.escape(change[0]), change[1], text, count=1, flags=re.MULTILINE))
    with pytest.raises(ValueError, match=r"p\.toml.*" + message):
        load_profile(path)


def test_a_missing_profile_file_or_name_is_said() -> None:
    with pytest.raises(ValueError, match=r"cannot read the profile none\.toml: No such file"):
        load_profile("./none.toml")
    with pytest.raises(ValueError, match="unknown profile 'none'"):
        load_profile("none")


# Measured runs


def run_folder(folder: Path, *, shift: float = 5.0) -> Path:
    """A run of four requests on an engine whose clock is ``shift`` ahead; the third arrives late."""
    rows = [
        {
            "input_toks": 40,
            "output_toks": 3,
            "arrival_time": arrival,
            "queued_ts": arrival + wait + shift,
            "first_token_ts": arrival + 0.1 + shift,
            "last_token_ts": arrival + 0.12 + shift,
        }
        for arrival, wait in ((100.0, 0.0), (100.01, 0.004), (103.0, 0.001), (103.5, 0.0))
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text('{"engine_kwargs": {"max_num_seqs": 2, "seed": 1}}')
    return folder


def test_check_sets_the_model_beside_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run_folder(tmp_path))
    assert main(["profile", "check", folder, "--engine", "llama-3.1-8b-h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["variants"]["as it is"]
    assert found["requests"] == 4
    assert found["ttft_s"]["mean"]["measured"] == pytest.approx(0.1)
    assert found["tpot_s"]["p99"]["measured"] == pytest.approx(0.01)
    assert found["end_s"]["measured"] == pytest.approx(3.62)
    # Alone, a step reads the weights (6,210), head and host code 890 and its sequence and context.
    assert found["tpot_s"]["p50"]["modelled"] == pytest.approx(0.0071, rel=0.02)
    assert found["ttft_s"]["mean"]["modelled"] == pytest.approx(0.0071, rel=0.5)
    assert main(["profile", "check", folder, "--engine", "llama-3.1-8b-h100", "--sensitivity"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert lines[2].split()[:3] == ["as", "it", "is"]


def test_steps_composed_ahead_delay_who_arrives_during_one(tmp_path: Path) -> None:
    """The second request arrives during the first's prefill: it alone waits for one more step."""
    run = read_run(run_folder(tmp_path))
    alone, second, *others = run.requests
    run = replace(run, requests=[alone, second._replace(arrival_us=1_000), *others])
    profile = PROFILES["llama-3.1-8b-h100"]
    at_once, ahead = (replay(run, profile, ahead=flag).times for flag in (False, True))
    assert ahead[1].ttft_s > at_once[1].ttft_s + 0.005
    assert [t.ttft_s for t in ahead[2:]] == [t.ttft_s for t in at_once[2:]]


def test_the_pool_of_a_run_is_its_own(tmp_path: Path) -> None:
    """vLLM's null block holds nothing. Where meta.json does not name the pool, the profile's counts."""
    folder = run_folder(tmp_path)
    meta = folder / "meta.json"
    assert read_run(folder).limits == {"max_num_seqs": 2}
    meta.write_text('{"engine_kwargs": {"max_num_seqs": 2}, "kv_cache": {"num_gpu_blocks": 5}}')
    run = read_run(folder)
    assert run.limits == {"max_num_seqs": 2, "kv_blocks": 4}
    profile = PROFILES["llama-3.1-8b-h100"]
    assert replay(run, profile).times[0].ttft_s < replay(run, profile).times[1].ttft_s
    assert replay(run, profile) == replay(replace(run, limits={"max_num_seqs": 2}), profile, kv_blocks=4)
    assert replay(run, profile) != replay(run, profile, kv_blocks=50)
    for text, message in (
        ('{"kv_cache": {"num_gpu_blocks": "5"}}', "num_gpu_blocks is '5', not a whole number from 2 up"),
        ('{"engine_kwargs": {"max_num_seqs": 0}}', "max_num_seqs is 0"),
        ("[1]", "are tables of a JSON object"),
    ):
        meta.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run(folder)


def test_check_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "check", str(tmp_path), "--engine", "llama-3.1-8b-h100"]) == 2
    assert "requests.jsonl: No such file" in capsys.readouterr().err
    path = run_folder(tmp_path) / "requests.jsonl"
    path.write_text(path.read_text().replace('"queued_ts"', '"queued"'))
    assert main(["profile", "check", str(tmp_path), "--engine", "llama-3.1-8b-h100"]) == 2
    assert "a request without 'queued_ts'" in capsys.readouterr().err
