"""Reads a request trace of any known format. The rules for faults are in ``fairlead.trace.faults``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fairlead.core.params import PolicyError, nearest, resolve
from fairlead.trace import (
    conversations,
    decision_trace,
    hashed,
    kv_cache_tester,
    mapped,
    prompts,
    servegen,
    tables,
    usage_logs,
)
from fairlead.trace.files import Sample, sample
from fairlead.trace.mapped import MUST
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import Reader
from fairlead.trace.stdin import kept
from fairlead.trace.store import counted
from fairlead.trace.transform import cap_tokens

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *hashed.READERS, *kv_cache_tester.READERS, *tables.READERS, *servegen.READERS, *conversations.READERS,
        *usage_logs.READERS, *prompts.READERS, *decision_trace.READERS, *mapped.READERS,
    )
}  # fmt: skip
"""Every format by name. To add one, add its ``Reader`` here."""

_SHOWN = 12
"""Fields of an unknown format that an error names ..."""
_NAME = 40
"""... and characters of each."""


def read_trace(
    path: str | Path,
    *,
    form: str | None = None,
    max_prompt_tokens: int | None = None,
    max_total_tokens: int | None = None,
    **options: object,
) -> Trace:
    """Read the trace at ``path``: a file (plain, gzip or zstd), a tar archive or a folder.

    ``form`` names the format; without it the content decides. ``options`` are those of the format
    (``READERS[form].params``). Longer prompts than ``max_prompt_tokens``, and requests with more than
    ``max_total_tokens`` of prompt and output, are left out together with the turns that follow from them.
    Raises ``TraceError`` naming file, line, field and remedy.
    """
    path = Path(kept(str(path)))
    start = sample(path)
    reader = _named(form) if form else _recognised(path, start)
    try:
        values = resolve(reader.name, reader.params, options)
    except PolicyError as error:
        raise TraceError(f"{path}: {error}") from None
    trace = reader.read(path, values)
    counts = (
        trace.understood or f"{counted(trace.requests, 'request')}, {counted(len(trace.clients), 'client')}"
    )
    trace = replace(trace, understood=f"{reader.title or reader.name}: {counts}")
    if max_prompt_tokens or max_total_tokens:
        trace = cap_tokens(trace, max_prompt_tokens=max_prompt_tokens, max_total_tokens=max_total_tokens)
    return trace


def _named(form: str) -> Reader:
    found = READERS.get(form)
    if found is None:
        raise TraceError(
            f"unknown trace format '{form}' (valid: {', '.join(READERS)}){nearest(form, READERS)}"
        )
    return found


def _recognised(path: Path, start: Sample) -> Reader:
    found = [reader for reader in READERS.values() if reader.sniff(start)]
    if len(found) == 1:
        return found[0]
    known = "".join(f"\n  {reader.name}: {reader.summary}" for reader in found or READERS.values())
    fields = start.fields()
    if found:
        raise TraceError(f"{path}: it may have more than one format; name one with --form:{known}")
    if start.names:
        seen = f"it holds the files {', '.join(start.names[:3])}"
    elif fields:
        more = ", ..." if len(fields) > _SHOWN else ""
        seen = f"it has the fields {', '.join(field[:_NAME] for field in fields[:_SHOWN])}{more}"
    else:
        seen = f"it starts with {start.head[:60].decode('utf-8', 'replace')!r}"
    remedy = f". Say which field is what: {suggested_map(fields)}" if fields else ""
    raise TraceError(
        f"{path}: unknown format; {seen}{remedy}. Known formats (--form names one, in Python form=):{known}"
    )


_LIKELY = {
    "arrival": ("arriv", "timestamp", "start", "time", "created", "date", "ts"),
    "prompt": ("prompt", "input", "context", "request", "in_tok", "question", "prefill"),
    "output": ("output", "completion", "response", "generated", "answer", "out_tok", "decode"),
    "client": ("client", "tenant", "team", "user", "api_key", "account", "customer"),
    "session": ("session", "conversation", "chat", "thread"),
}
"""Parts of names by which a field is guessed to be what a map needs, the likeliest first."""


def suggested_map(fields: Sequence[str]) -> str:
    """Return a ``--map`` for a source with ``fields``, with dots where none looks right."""
    told = []
    left = list(fields)
    for role, parts in _LIKELY.items():
        found = next((name for part in parts for name in left if part in name.lower()), "")
        if found:
            left.remove(found)
        if found or role in (*MUST, "arrival"):
            told.append(f"{role}={found or '...'}")
    return f"--map {','.join(told)}"
