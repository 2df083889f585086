"""Sum op tables of Llama-3.1-8B into whole steps, for ``fairlead profile fit``.

    python scripts/sum_op_tables.py DATA h200_sxm > steps.csv
    fairlead profile fit steps.csv --like llama-3.1-8b-h100 --gpu "H200 SXM 141 GB" --cpu-us 1000 ...

DATA holds NVIDIA aiconfigurator's tables (GEMMs by shape, attention of vLLM, in milliseconds) and
LLMServingSim's kernel tables, from which the small kernels between the GEMMs come, scaled by the memory
bandwidth of the two GPUs. GEMM shapes that were not measured are interpolated along one side.
"""

import argparse
import csv
import re
import sys
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path

from fairlead.engine.fit_tables import Line, read_rows

LAYERS = 32
GEMMS = ((6_144, 4_096), (4_096, 4_096), (28_672, 4_096), (4_096, 14_336))
"""(columns, depth) of the QKV, output, gate-and-up and down projections of one layer."""
HEAD = (128_256, 4_096)
SMALL = {"layernorm": 2, "rotary_emb": 1, "act_fn": 1}
SMALL_GPU_BANDWIDTH = 1_597e9
"""Bytes/s of the RTX PRO 6000 on which the small kernels were timed."""
BATCH = 128
CONTEXT = (63, 16_383)
PREFILL_TOKENS = 8_192


class Gemms:
    """Milliseconds of a GEMM of any shape, bf16."""

    def __init__(self, path: Path) -> None:
        points: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for (m, n, k, ms), _ in read_rows(path, ("m", "n", "k", "latency")):
            points[int(n), int(k)].append((m, ms))
        self._lines = {shape: Line(found) for shape, found in points.items()}

    def ms(self, m: float, n: int, k: int) -> float:
        """Return the time of m rows: measured, or linear in n (or else k) between its neighbours."""
        if (n, k) in self._lines:
            return self._lines[n, k](m)
        columns = sorted(a for a, b in self._lines if b == k)
        if columns and not columns[0] < n < columns[-1]:
            return self._lines[columns[-1], k](m) * n / columns[-1]
        if columns:
            i = bisect_left(columns, n)
            return self._between(m, n, [(columns[j], (columns[j], k)) for j in (i - 1, i)])
        depths = sorted(b for a, b in self._lines if a == n)
        i = bisect_left(depths, k)
        return self._between(m, k, [(depths[j], (n, depths[j])) for j in (i - 1, i)])

    def _between(self, m: float, x: int, ends: list[tuple[int, tuple[int, int]]]) -> float:
        return Line((side, self._lines[shape](m)) for side, shape in ends)(x)


def small_us(data: Path, bandwidth: float) -> Line:
    """Return the time of a layer's small kernels by tokens, in microseconds."""
    dense = data / "profiles/llmservingsim/RTXPRO6000/Llama-3.1-8B/tp1/dense.csv.gz"
    sums: dict[float, float] = defaultdict(float)
    for (tokens, us), (name,) in read_rows(dense, ("tokens", "time_us"), ("layer",)):
        sums[tokens] += us * SMALL.get(name, 0) * SMALL_GPU_BANDWIDTH / bandwidth
    last = max(sums)
    # Beyond the table these kernels stay bound by memory: linear in tokens.
    return Line([*sums.items(), (16 * last, 16 * sums[last])])


def steps(data: Path, system: str) -> list[tuple[float, ...]]:
    """Return rows of the CSV: sequences, context, prefill tokens, prefill area, microseconds."""
    folder = data / "profiles/aiconfigurator"
    gemms = Gemms(folder / f"{system}_bf16_gemm.csv.gz")
    found = re.search(r"mem_bw: (\d+)", (folder / f"{system}.yaml").read_text())
    if found is None:
        raise SystemExit(f"{folder / system}.yaml names no mem_bw")
    small = small_us(data, float(found[1]))

    def dense_us(tokens: float, sequences: float) -> float:
        layer = sum(gemms.ms(tokens, n, k) for n, k in GEMMS) * 1000 + small(tokens)
        return LAYERS * layer + gemms.ms(sequences, *HEAD) * 1000

    rows: list[tuple[float, ...]] = []
    attention = folder / "llama3_8b_tp1_attention.csv"
    columns = ("batch_size", "isl", "step", "latency")
    for (batch, length, step, ms), (name, kind) in read_rows(attention, columns, ("system", "kind")):
        if name != system:
            continue
        us = LAYERS * ms * 1000
        if kind == "generation" and batch <= BATCH and CONTEXT[0] <= step <= CONTEXT[1]:
            rows.append((batch, batch * step, 0, 0, us + dense_us(batch, batch)))
        elif kind == "context" and 16 <= batch * length <= PREFILL_TOKENS:
            rows.append((0, 0, batch * length, batch * length**2, us + dense_us(batch * length, batch)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("system", choices=("a100_sxm", "h100_sxm", "h200_sxm"))
    args = parser.parse_args()
    out = csv.writer(sys.stdout)
    out.writerow(("decode_seqs", "decode_context", "prefill_tokens", "prefill_area", "step_us"))
    for *work, us in steps(args.data, args.system):
        out.writerow((*map(int, work), round(us, 3)))


if __name__ == "__main__":
    main()
