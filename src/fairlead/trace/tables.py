"""CSV traces without prompts: Azure's inference traces, the VTC paper's arena trace, and BurstGPT."""

from collections.abc import Callable
from pathlib import Path

from fairlead.core.model import ClientId
from fairlead.core.params import Param, Values
from fairlead.trace.calls import HISTORY, HISTORY_PARAM, SESSIONS, Call, Calls, closed, gaps_label
from fairlead.trace.faults import Faults
from fairlead.trace.files import Sample
from fairlead.trace.model import Trace
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.rows import Cells, date, read_rows, since, value, whole, word
from fairlead.trace.store import Store, counted

_NO_PREFIXES = "the source has no prompts: requests share no prefix"
_REMEDY = "mend or remove those lines"


def _client(cells: Cells) -> ClientId:
    name = word(cells, "client_id")
    if not name:
        raise ValueError("client_id is missing")
    return name


def _read(
    form: str,
    columns: tuple[str, str, str],
    arrival: Callable[[Cells, str], int],
    client: Callable[[Cells], ClientId] | None,
    unit: str,
) -> Callable[[Path, Values], Trace]:
    time_column, prompt_column, output_column = columns
    needed = (time_column, prompt_column, output_column, *(("client_id",) if client else ()))

    def read(path: Path, values: Values) -> Trace:
        faults = Faults(path)
        store = Store()

        def take(where: str, cells: Cells) -> None:
            at = arrival(cells, time_column)
            prompt = faults.at_least_one(where, prompt_column, whole(cells, prompt_column))
            output = faults.at_least_one(where, output_column, whole(cells, output_column))
            who = client(cells) if client else ONE_CLIENT
            faults.arrival(where, at)
            store.add_session(at, who)
            store.add_turn(prompt, output)

        repairs = faults.finish(read_rows(path, faults, take, needed), _REMEDY)
        labels = [_NO_PREFIXES, *([] if client else [NO_CLIENTS])]
        block = values.integer("block_tokens")
        return store.trace(path.name, block, identify(form, path, values), labels, repairs, facts=[unit])

    return read


_FAILED = "requests without an answer (failed): left out"
_BURST = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")
_BY = {"model": "Model", "log_type": "Log Type"}


def _read_burstgpt(path: Path, values: Values) -> Trace:
    """Read BurstGPT: seconds since the first day's midnight; ``Session ID`` is in later releases only."""
    faults = Faults(path)
    store = Store()
    block = values.integer("block_tokens")
    calls = Calls(store, block, closed=closed(values), history=values.flag("history"))
    models: set[str] = set()
    by = _BY.get(values.word("client"))

    def take(where: str, cells: Cells) -> None:
        at = since(cells, "Timestamp", 1e6)
        prompt = whole(cells, "Request tokens")
        output = whole(cells, "Response tokens")
        if output == 0:
            faults.mended(_FAILED, f"{where}: Response tokens is 0")
            return
        call = Call(
            at,
            faults.at_least_one(where, "Request tokens", prompt),
            faults.at_least_one(where, "Response tokens", output),
            (word(cells, by) if by else "") or ONE_CLIENT,
            word(cells, "Session ID"),
        )
        if value(cells, "Elapsed time") is not None:
            call.end = at + since(cells, "Elapsed time", 1e6)
        models.add(word(cells, "Model"))
        faults.arrival(where, at)
        calls.add(call)

    repairs = faults.finish(read_rows(path, faults, take, _BURST), _REMEDY)
    calls.finish()
    labels = [] if by else [NO_CLIENTS]
    if not calls.turns:
        labels.append(_NO_PREFIXES)
    else:
        labels.append(gaps_label(ends=True))
        labels.append(HISTORY if values.flag("history") else _NO_PREFIXES)
    facts = [counted(len(models), "model"), "arrivals in seconds"]
    return store.trace(path.name, block, identify("burstgpt", path, values), labels, repairs, facts=facts)


def _has(*columns: str) -> Callable[[Sample], bool]:
    def sniff(sample: Sample) -> bool:
        return set(columns) <= set(sample.columns() or sample.keys())

    return sniff


_BLOCK = Param("block_tokens", 16, "tokens of a KV block; no block is shared", low=1)

READERS = (
    Reader(
        "azure",
        "CSV TIMESTAMP,ContextTokens,GeneratedTokens",
        _has("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        _read("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), date, None, "arrivals are dates"),
        (_BLOCK,),
        "Azure CSV",
    ),
    Reader(
        "vtc-arena",
        "CSV req_id,client_id,arrival_s,input_tokens,output_tokens",
        _has("client_id", "arrival_s", "input_tokens", "output_tokens"),
        _read(
            "vtc-arena",
            ("arrival_s", "input_tokens", "output_tokens"),
            lambda cells, field: since(cells, field, 1e6),
            _client,
            "arrivals in seconds",
        ),
        (_BLOCK,),
        "VTC arena CSV",
    ),
    Reader(
        "burstgpt",
        "CSV Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type, perhaps with Session ID",
        _has(*_BURST),
        _read_burstgpt,
        (
            Param("client", "none", "column whose values are clients", choices=("none", *_BY)),
            SESSIONS,
            HISTORY_PARAM,
            Param("block_tokens", 16, "tokens of a KV block", low=1),
        ),
        "BurstGPT CSV",
    ),
)
