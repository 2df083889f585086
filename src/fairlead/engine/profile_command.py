"""``fairlead profile``: list, show, fit and check engine profiles."""

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.engine.all_reduce import Link, Shape, read_all_reduce, sharded, with_link
from fairlead.engine.fit import Fit, FitError, MeasuredStep, errors_of, fit_steps
from fairlead.engine.fit_tables import KernelTables, read_meta, read_steps
from fairlead.engine.measured import compare, read_run, replay, sensitivity
from fairlead.engine.profile_file import profile_toml, rounded
from fairlead.engine.profiles import CPU_US, PROFILES, Profile, load_profile
from fairlead.engine.steptime import StepTime

DRAWS = 4_000


class _Model(NamedTuple):
    layers: int
    hidden: int
    kv_bytes_per_token: int
    max_model_len: int


MODELS = {
    "meta-llama/Llama-3.1-8B": _Model(32, 4_096, 131_072, 131_072),
    "meta-llama/Llama-3.1-70B": _Model(80, 8_192, 327_680, 131_072),
    "Qwen/Qwen3-32B": _Model(64, 5_120, 262_144, 40_960),
}
"""Architectures by Hugging Face name: what kernel tables do not say. Bytes are bf16's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    actions.add_parser("list", help="list the built-in profiles")
    show = actions.add_parser("show", help="print a profile as TOML: a start for your own")
    show.add_argument("profile", metavar="NAME|FILE", help="a built-in profile, or a TOML file")
    _add_fit(actions.add_parser("fit", help="fit coefficients to measured tables, and print their error"))
    _add_shard(
        actions.add_parser("shard", help="divide a profile of one GPU among several, with all-reduces")
    )
    check = actions.add_parser("check", help="compare a measured run with the model's")
    check.add_argument("folder", type=Path, help="folder of the run: requests.jsonl, meta.json")
    check.add_argument("--engine", required=True, metavar="NAME|FILE", help="the profile to check")
    check.add_argument(
        "--blocks", type=Path, metavar="FILE", help="hash_ids of each prompt, for prefix caching"
    )
    check.add_argument(
        "--sensitivity", action="store_true", help="repeat with one assumption changed at a time"
    )
    check.add_argument("--json", action="store_true", help="print quantiles of both as JSON")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "tables",
        type=Path,
        help="a folder of LLMServingSim kernel tables, or a CSV of measured steps with columns decode_seqs,"
        " decode_context, prefill_tokens, prefill_area, step_us",
    )
    add("--like", metavar="NAME|FILE", help="a profile for what was not measured, and to compare with")
    add("--name", help="name of the new profile")
    add("--model", help="Hugging Face name of the model (default: as the tables say)")
    add("--gpu", help="name of the GPU (default: as the tables say)")
    add("--layers", type=int, metavar="N", help="layers of the model, if it is not a known one")
    _add_link(parser)
    add("--kv-tokens", type=int, metavar="N", help="size of the KV pool, in tokens")
    add("--kv-bytes-per-token", type=int, metavar="N", help="bytes of KV cache for one token")
    add("--max-model-len", type=int, metavar="N", help="context length")
    add("--max-num-seqs", type=int, metavar="N", help="most sequences in a batch")
    add("--max-num-batched-tokens", type=int, metavar="N", help="most tokens in a step")
    add(
        "--cpu-us",
        type=float,
        metavar="US",
        help="t_cpu: a step's host time that was not measured (default: 500 for kernels, 0 for whole steps)",
    )
    add(
        "--spread-of",
        type=Path,
        metavar="FOLDER",
        help="take the skew tables from here: same GPU, other model",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the profile to this TOML file, which --engine FILE reads",
    )
    add("--json", action="store_true", help="print JSON instead of text")


def _add_link(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tensor-parallel", type=int, metavar="N", help="GPUs that share each layer (default: 1)")
    add(
        "--all-reduce",
        type=Path,
        metavar="FILE",
        help="a CSV of measured all-reduces between them: columns bytes and us, or one of Vidur's",
    )
    add("--link-latency-us", type=float, metavar="US", help="in place of --all-reduce: the latency of one")
    add("--link-gb-per-s", type=float, metavar="GB", help="and the bus bandwidth, as NCCL's tests print it")
    add("--hidden-size", type=int, metavar="N", help="the model's hidden size, if it is not a known one")


def _add_shard(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("profile", metavar="NAME|FILE", help="a profile of one GPU")
    _add_link(parser)
    add("--layers", type=int, metavar="N", help="layers of the model, if it is not a known one")
    add(
        "--kv-tokens",
        type=int,
        metavar="N",
        required=True,
        help="size of the KV pool, in tokens, as the engine prints it",
    )
    add("--name", help="name of the new profile (default: the profile's with -tpN)")
    add("--out", type=Path, metavar="FILE", help="write it to this TOML file, not to the terminal")


def run(args: argparse.Namespace) -> int:
    """Run one sub-command. Returns 0, or 2 for wrong input."""
    actions = {"list": _list, "show": _show, "fit": _fit, "shard": _shard, "check": _check}
    try:
        return actions[args.action](args)
    except (ValueError, OSError) as error:
        print(f"fairlead profile {args.action}: {error}", file=sys.stderr)
        return 2


def _list(_: argparse.Namespace) -> int:
    width = max(map(len, PROFILES))
    for profile in PROFILES.values():
        print(f"{profile.name:{width}}  {profile.model} on {profile.gpu}")
        print(f"{'':{width}}  {profile.provenance}")
    return 0


def _show(args: argparse.Namespace) -> int:
    print(profile_toml(load_profile(args.profile)), end="")
    return 0


def _shard(args: argparse.Namespace) -> int:
    profile = load_profile(args.profile)
    link = _link(args)
    if link is None:
        raise FitError("among how many GPUs? --tensor-parallel N, at least 2")
    if args.kv_tokens < 1:
        raise FitError(f"--kv-tokens {args.kv_tokens}: a pool holds at least one token")
    found = sharded(profile, link, _shape(args, profile.model), args.kv_tokens)
    steps = StepTime(**{name: rounded(value) for name, value in _coefficients(found.steps).items()})
    text = profile_toml(replace(found, steps=steps, name=args.name or found.name))
    if args.out:
        _check_suffix(args.out)
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def _link(args: argparse.Namespace) -> Link | None:
    """Return the link between the GPUs that the options describe; None for one GPU."""
    gpus = 1 if args.tensor_parallel is None else args.tensor_parallel
    if gpus < 1:
        raise FitError(f"--tensor-parallel {gpus}: at least 1 GPU")
    given = [args.link_latency_us, args.link_gb_per_s]
    if gpus == 1:
        if args.all_reduce or given != [None, None]:
            raise FitError("one GPU has no link: --tensor-parallel N says how many there are")
        return None
    if args.all_reduce:
        if given != [None, None]:
            raise FitError("--all-reduce, or --link-latency-us and --link-gb-per-s, not both")
        return read_all_reduce(args.all_reduce, gpus)
    latency, speed = given
    if latency is None or speed is None:
        raise FitError(
            f"the link of {gpus} GPUs: --all-reduce FILE, or --link-latency-us and --link-gb-per-s"
        )
    if not 0 <= latency < float("inf") or not 0 < speed < float("inf"):
        raise FitError("--link-latency-us is from 0 up, --link-gb-per-s above 0")
    return Link(gpus, latency, speed)


def _shape(args: argparse.Namespace, model: str) -> Shape:
    """Return the model's shape, by its options or as known."""
    known = MODELS.get(model)
    layers = args.layers or (known.layers if known else None)
    hidden = args.hidden_size or (known.hidden if known else None)
    if layers is None or hidden is None:
        option = "--layers N" if layers is None else "--hidden-size N"
        raise FitError(f"the shape of {model} is not known: {option}")
    if min(layers, hidden) < 1:
        raise FitError("--layers and --hidden-size are at least 1")
    return Shape(layers, hidden)


def _check_suffix(out: Path) -> None:
    if out.suffix != ".toml":
        raise FitError(f"--out {out}: a profile is a .toml file")


class _Measured(NamedTuple):
    """What a table gave: a fit, and the samples by the name of their source to report its error on."""

    fit: Fit
    sources: dict[str, list[MeasuredStep]]
    provenance: str
    cpu_us: float


def _fit(args: argparse.Namespace) -> int:
    if args.out:
        _check_suffix(args.out)
    link = _link(args)
    if link and not args.tables.is_dir():
        raise FitError("steps timed whole include their all-reduces: no --tensor-parallel")
    like = load_profile(args.like) if args.like else None
    meta = read_meta(args.tables / "meta.yaml") if args.tables.is_dir() else {}
    draft = _draft(args, meta, like)
    measured = _fit_kernels(args, meta, draft) if args.tables.is_dir() else _fit_own(args)
    cpu_us = measured.cpu_us if args.cpu_us is None else args.cpu_us
    values = {name: rounded(value) for name, value in _coefficients(measured.fit.steps).items()}
    steps = StepTime(**{**values, "cpu_us": cpu_us})
    profile = replace(draft, steps=steps, provenance=measured.provenance)
    if link:
        linked = with_link(steps, link, _shape(args, draft.model))
        linked = replace(linked, link_us=rounded(linked.link_us), link_token_us=rounded(linked.link_token_us))
        profile = replace(profile, steps=linked, tensor_parallel=link.gpus)
    report = _fit_report(profile, measured, like)
    print(json.dumps(report, indent=2) if args.json else _fit_text(report))
    if args.out:
        args.out.write_text(profile_toml(profile), encoding="utf-8")
    return 0


def _draft(args: argparse.Namespace, meta: dict[str, str], like: Profile | None) -> Profile:
    """Return the new profile without its step times: options first, then the tables, then ``--like``."""
    model = args.model or meta.get("model") or (like.model if like else None)
    known = MODELS.get(model or "")
    kv_bytes, context = (known.kv_bytes_per_token, known.max_model_len) if known else (None, None)

    def pick(key: str, *others: Any) -> Any:
        given = [getattr(args, key), *others, getattr(like, key, None)]
        value = next((v for v in given if v is not None), None)
        if value is None:
            raise FitError(f"the tables do not say: --{key.replace('_', '-')}, or --like PROFILE")
        return value

    gpu = pick("gpu", meta.get("gpu"))
    return Profile(
        name=pick("name"),
        model=pick("model", model),
        gpu=gpu,
        steps=StepTime(1, 0, 0, 0, 0, 0, 0, 0, 0),
        kv_tokens=pick("kv_tokens"),
        kv_bytes_per_token=pick("kv_bytes_per_token", kv_bytes),
        max_model_len=pick("max_model_len", like.max_model_len if like else context),
        provenance="",
        max_num_seqs=args.max_num_seqs or (like.max_num_seqs if like else 256),
        max_num_batched_tokens=args.max_num_batched_tokens or (like.max_num_batched_tokens if like else 2048),
    )


def _fit_kernels(args: argparse.Namespace, meta: dict[str, str], draft: Profile) -> _Measured:
    known = MODELS.get(draft.model)
    layers = args.layers or (known.layers if known else None)
    if layers is None:
        raise FitError(f"how many layers has {draft.model}? --layers N")
    tables = KernelTables(args.tables, layers, args.spread_of, args.tensor_parallel or 1)
    drawn = tables.draw(DRAWS, draft.kv_tokens, draft.max_num_batched_tokens)
    fit = fit_steps(drawn, tables.head_us)
    rows = tables.rows(draft.kv_tokens, draft.max_num_batched_tokens)
    spread = "" if tables.spread else "; equal contexts only, no skew tables in use"
    source = (
        f"Kernel tables (vLLM {meta.get('vllm_version', 'of unknown version')}, {meta.get('gpu', draft.gpu)})"
    )
    return _Measured(fit, {"drawn": drawn, "table": rows}, f"{source}{spread}.", CPU_US)


def _fit_own(args: argparse.Namespace) -> _Measured:
    samples = read_steps(args.tables)
    return _Measured(fit_steps(samples), {"table": samples}, f"{len(samples)} steps timed whole.", 0)


def _coefficients(steps: StepTime) -> dict[str, float]:
    return {field.name: getattr(steps, field.name) for field in fields(StepTime) if field.init}


def _fit_report(profile: Profile, measured: _Measured, like: Profile | None) -> dict[str, Any]:
    """Return everything that the fit found. Errors are of what was measured: for kernels, without t_cpu."""
    report: dict[str, Any] = {
        "profile": profile.name,
        "model": profile.model,
        "gpu": profile.gpu,
        "provenance": profile.provenance,
        "steps": _coefficients(profile.steps),
        "kink_tokens": round(measured.fit.kink, 1),
        "notes": list(measured.fit.notes),
        "errors": _errors(_kernels(profile.steps), measured),
    }
    if like:
        steps = _kernels(like.steps) if measured.cpu_us else like.steps
        report["like"] = {"profile": like.name, "errors": _errors(steps, measured)}
    return report


def _kernels(steps: StepTime) -> StepTime:
    """Return the step times without what is not in kernel tables."""
    return replace(steps, cpu_us=0, link_us=0, link_token_us=0)


def _errors(steps: StepTime, measured: _Measured) -> dict[str, dict[str, dict[str, float]]]:
    return {
        source: {kind: errors._asdict() for kind, errors in errors_of(steps, samples).items()}
        for source, samples in measured.sources.items()
    }


def _fit_text(report: dict[str, Any]) -> str:
    lines = [f"{report['profile']}: {report['model']} on {report['gpu']}", report["provenance"], ""]
    lines += [f"  {name:18} {value:>10g}" for name, value in report["steps"].items()]
    lines.append(
        f"  arithmetic outlasts reading the weights from {report['kink_tokens']:g} prefill tokens on"
    )
    lines += [f"  note: {note}" for note in report["notes"]]
    lines += ["", f"  {'error over':24} {'steps':>7} {'median':>7} {'p90':>7} {'worst':>7} {'mean':>7}"]
    lines += _error_lines(report["errors"])
    if "like" in report:
        lines += [
            f"  the same steps by {report['like']['profile']}:",
            *_error_lines(report["like"]["errors"]),
        ]
    return "\n".join(lines)


def _error_lines(sources: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    return [
        f"  {source + ': ' + kind:24} {errors['steps']:7} {errors['median']:7.1%} {errors['p90']:7.1%}"
        f" {errors['worst']:7.1%} {errors['bias']:+7.1%}"
        for source, kinds in sources.items()
        for kind, errors in kinds.items()
    ]


def _check(args: argparse.Namespace) -> int:
    profile = load_profile(args.engine)
    measured = read_run(args.folder, args.blocks)
    if args.sensitivity:
        found = sensitivity(measured, profile)
    else:
        found = [("as it is", compare(measured, replay(measured, profile)))]
    if args.json:
        print(json.dumps({"profile": profile.name, "variants": dict(found)}, indent=2))
        return 0
    print(f"{found[0][1]['requests']} requests, {profile.name}; errors of the model")
    columns = [(name, at) for name in ("ttft_s", "tpot_s") for at in ("mean", "p10", "p50", "p99")]
    print(f"  {'':22}" + "".join(f"{name[:4].upper() + ' ' + at:>11}" for name, at in columns))
    for variant, report in found:
        cells = "".join(f"{report[name][at]['error']:+11.1%}" for name, at in columns)
        print(f"  {variant:22}{cells}")
    return 0
