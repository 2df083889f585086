"""Reads a request trace of any known format. The rules for faults are in ``fairlead.trace.faults``."""

from pathlib import Path

from fairlead.core.params import PolicyError, nearest, resolve
from fairlead.trace import conversations, decision_trace, hashed, kv_cache_tester, servegen, tables
from fairlead.trace.files import Sample, sample
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import Reader
from fairlead.trace.transform import cap_tokens

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *hashed.READERS, *kv_cache_tester.READERS, *tables.READERS, *servegen.READERS, *conversations.READERS,
        *decision_trace.READERS,
    )
}  # fmt: skip
"""Every format by name. To add one, add its ``Reader`` here."""


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
    path = Path(path)
    start = sample(path)
    reader = _named(form) if form else _recognised(path, start)
    try:
        values = resolve(reader.name, reader.params, options)
    except PolicyError as error:
        raise TraceError(f"{path}: {error}") from None
    trace = reader.read(path, values)
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
    for reader in READERS.values():
        if reader.sniff(start):
            return reader
    seen = (
        f"files {', '.join(start.names[:3])}"
        if start.names
        else repr(start.head[:60].decode("utf-8", "replace"))
    )
    known = "".join(f"\n  {reader.name}: {reader.summary}" for reader in READERS.values())
    raise TraceError(
        f"{path}: unknown format; it starts with {seen}. Known formats (name one with form=):{known}"
    )
