"""Files of prompts for benchmarks and batches: OpenAI's batches, vLLM's ``custom``, guidellm's and AIPerf's.

They have text, mostly no arrival times, and of the answers at most a length. There is no tokenizer here: four
bytes count as a token, unless the file states the prompt's tokens. Block keys are made of bytes, so prompts
that begin alike share blocks. Sessions whose turns state only what is new have answers of the stated length
in their later prompts, of text that nothing else has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.core.keys import byte_keys, seed_key
from fairlead.core.model import ClientId
from fairlead.core.params import Param, Values
from fairlead.trace.arrivals import session_starts, start_params
from fairlead.trace.calls import SESSIONS, Call, Calls, closed
from fairlead.trace.conversations import TOKEN_BYTES
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Sample
from fairlead.trace.model import Trace
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.rows import Cells, fraction, read_rows, value, whole, word
from fairlead.trace.store import Span, Store

MAX_ANSWER = 1 << 18
"""Tokens of an answer beyond which a line is broken: texts of such answers are made up in memory."""

_EMBEDDING = "embeddings and other requests without an answer: left out"


class _Prompt(NamedTuple):
    """What one line of a file, or a turn of it, asks for."""

    text: bytes
    output: int | None = None
    """Tokens of the answer; None: not stated."""
    tokens: int | None = None
    """Tokens of the prompt; None: estimated."""
    at_ms: float | None = None
    delay_ms: float | None = None
    session: str = ""
    client: ClientId = ""
    new: bool = False
    """The text is only what the turn adds to its session."""


Ask = Callable[[str, Cells], Iterator[_Prompt]]
"""Reads the prompts of a line, given its place. Raises ValueError for a line that has none."""


class _Reading:
    """One file while it is read."""

    def __init__(self, path: Path, values: Values) -> None:
        self.faults = Faults(path)
        self.store = Store()
        self.block = values.integer("block_tokens")
        self.answer = values.integer("output_tokens")
        self.starts, self.starts_label = session_starts(values)
        self.calls = Calls(self.store, self.block, closed=closed(values))
        self.timed = self.untimed = self.unstated = self.counted = self.named = 0
        self._said: dict[str, bytes] = {}  # by session: all text so far, where turns add to it
        self._known: set[str] = set()

    def add(self, where: str, prompt: _Prompt) -> None:
        faults = self.faults
        output = self.answer if prompt.output is None else prompt.output
        output = faults.at_least_one(where, "output tokens", output)
        if output > MAX_ANSWER:
            raise ValueError(f"output tokens are {output}, beyond any answer")
        text = self._said.get(prompt.session, b"") + prompt.text if prompt.new else prompt.text
        tokens = len(text) // TOKEN_BYTES if prompt.tokens is None else prompt.tokens
        tokens = faults.at_least_one(where, "prompt tokens", tokens)
        call = Call(self._at(where, prompt), tokens, output, prompt.client or ONE_CLIENT, prompt.session)
        if prompt.delay_ms is not None:
            call.delay = microseconds("delay", prompt.delay_ms, 1e3)
        call.spans = self._keys(text, tokens)
        if prompt.new:
            unlike = f"{prompt.session}\0{len(text)}\0".encode("utf-8", "surrogatepass")
            self._said[prompt.session] = text + _filler(unlike, output * TOKEN_BYTES)
        self.unstated += prompt.output is None
        self.counted += prompt.tokens is not None
        self.named += bool(prompt.client)
        self._known.add(prompt.session)
        self.calls.add(call)

    def _at(self, where: str, prompt: _Prompt) -> int:
        if prompt.at_ms is not None:
            self.timed += 1
            at = microseconds("timestamp", prompt.at_ms, 1e3)
            self.faults.arrival(where, at)
            return at
        if prompt.session and prompt.session in self._known:
            return -1
        self.untimed += 1
        return next(self.starts)

    def _keys(self, text: bytes, tokens: int) -> tuple[Span, ...]:
        """Return the keys of the prompt's full blocks; beyond its text, a prompt has blocks of its own."""
        full = tokens // self.block
        keys = byte_keys(text, self.block * TOKEN_BYTES, seed_key("trace"), xxh3_64_intdigest)[:full]
        if len(keys) < full:
            own = f"{self.calls.added}\0more".encode()
            rest = _filler(own, (full - len(keys)) * self.block * TOKEN_BYTES)
            seed = keys[-1] if keys else seed_key("trace")
            keys += byte_keys(rest, self.block * TOKEN_BYTES, seed, xxh3_64_intdigest)
        return (self.store.add_keys(keys),)

    def labels(self) -> list[str]:
        found = []
        if self.counted < self.calls.added:
            found.append(f"token counts of prompts are estimates: {TOKEN_BYTES} bytes a token")
        if self.unstated:
            found.append(f"{self.unstated} requests state no output: {self.answer} tokens each")
        if self.untimed:
            found.append(self.starts_label)
        if not self.named:
            found.append(NO_CLIENTS)
        return found


def _filler(unlike: bytes, size: int) -> bytes:
    """Return ``size`` bytes that no other text has."""
    word = xxh3_64_intdigest(unlike).to_bytes(8, "little").hex().encode() + unlike
    return (word * (size // len(word) + 1))[:size]


# ---- texts


def _flat(content: object) -> bytes:
    """Return the text of a message's content: a text, or a list of parts, of which those with text count."""
    if content is None:
        return b""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if isinstance(content, Sequence):
        return b"".join(_flat(part.get("text") if isinstance(part, Mapping) else part) for part in content)
    raise ValueError("a text is expected as content, or a list of parts")


def _messages(found: object) -> bytes:
    """Return a chat as text: of each message its role, a line end, its content, a line end."""
    if not isinstance(found, list) or not found:
        raise ValueError("messages is no list of messages")
    text = bytearray()
    for number, message in enumerate(found):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no role")
        text += message["role"].encode("utf-8", "surrogatepass") + b"\n" + _flat(message.get("content"))
        if message.get("tool_calls"):
            text += msgspec.json.encode(message["tool_calls"])
        text += b"\n"
    return bytes(text)


def _tools(found: object) -> bytes:
    return msgspec.json.encode(found) if found else b""


def _body(body: object) -> tuple[bytes, int | None]:
    """Return text and stated limit of a request to an OpenAI API. Raises ValueError if there is no prompt."""
    if not isinstance(body, Mapping):
        raise ValueError("body is no object")
    cells: Mapping[str, Any] = body
    if cells.get("messages") is not None:
        text = _tools(cells.get("tools")) + _messages(cells["messages"])
    elif isinstance(cells.get("input"), list) and any(isinstance(part, Mapping) for part in cells["input"]):
        text = _flat(cells.get("instructions")) + _messages(cells["input"])
    elif cells.get("prompt") is not None or cells.get("input") is not None:
        given = cells.get("prompt") if cells.get("prompt") is not None else cells.get("input")
        text = _flat(cells.get("instructions")) + _token_ids(given)
    else:
        raise ValueError("no messages, prompt or input in the body")
    return text, _limit(cells)


def _token_ids(given: object) -> bytes:
    """Return a prompt as text; each token id takes as many bytes as a token counts for."""
    if isinstance(given, list) and given and all(isinstance(token, int) for token in given):
        return b"".join((token & 0xFFFFFFFF).to_bytes(TOKEN_BYTES, "little") for token in given)
    return _flat(given)


def _limit(cells: Cells) -> int | None:
    for field in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if value(cells, field) is not None:
            return whole(cells, field)
    return None


def _optional(cells: Cells, *fields: str) -> int | None:
    return next((whole(cells, field) for field in fields if value(cells, field) is not None), None)


def _milliseconds(cells: Cells, field: str) -> float | None:
    return None if value(cells, field) is None else fraction(cells, field)


# ---- formats


def _batch(_where: str, cells: Cells) -> Iterator[_Prompt]:
    """Read a line of OpenAI's batch input: ``custom_id``, ``method``, ``url``, ``body``."""
    text, limit = _body(cells.get("body"))
    yield _Prompt(text, limit, client=word(cells, "body.user"))


def _custom(_where: str, cells: Cells) -> Iterator[_Prompt]:
    """Read a line of vLLM's ``custom`` data: ``prompt`` and, if stated, ``output_tokens``."""
    prompt = cells.get("prompt")
    text = _messages(prompt) if isinstance(prompt, list) else _flat(prompt)
    if not text:
        raise ValueError("prompt is missing")
    yield _Prompt(text, _optional(cells, "output_tokens"))


_PREFIXES = ("system_prompt", "system", "prefix")
_TEXTS = ("prompt", "instruction", "question", "input", "context", "content", "text")


def _guidellm(_where: str, cells: Cells) -> Iterator[_Prompt]:
    """Read a row of guidellm's data, by the names that its column mapper knows."""
    name = next((field for field in _TEXTS if value(cells, field) is not None), "")
    if not name:
        raise ValueError("prompt is missing")
    prefix = next((_flat(cells[field]) for field in _PREFIXES if value(cells, field) is not None), b"")
    yield _Prompt(
        prefix + _flat(cells[name]),
        _optional(cells, "output_tokens_count", "completion_tokens_count"),
        _optional(cells, "prompt_tokens_count", "input_tokens_count"),
    )


def _aiperf(where: str, cells: Cells) -> Iterator[_Prompt]:
    """Read a line of AIPerf's input: single turns, whole sessions, texts of traces, or inputs.json."""
    session = word(cells, "session_id")
    turns = cells.get("turns")
    if turns is None and cells.get("payloads") is not None:
        turns = cells["payloads"]
        if not isinstance(turns, list):
            raise ValueError("payloads is no list")
        for payload in turns:
            text, limit = _body(payload)
            yield _Prompt(text, limit, session=session)
        return
    if turns is None:
        yield _turn(cells, session, new=cells.get("message_mode") == "delta")
        return
    if not isinstance(turns, list) or not turns:
        raise ValueError("turns is no list of turns")
    system = b""
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} is no object")
        if turn.get("role") == "system" and not number and len(turns) > 1:
            system = _flat(turn.get("text"))  # AIPerf puts it before every turn and asks nothing with it
            continue
        yield _turn(turn, session or where, new=True, before=system)
        system = b""


def _turn(cells: Cells, session: str, *, new: bool, before: bytes = b"") -> _Prompt:
    output = _optional(cells, "output_length")
    if cells.get("messages") is not None:
        text = _tools(cells.get("tools")) + _messages(cells["messages"])
    elif cells.get("payload") is not None:
        text, limit = _body(cells["payload"])
        output = limit if output is None else output
    else:
        texts = (cells.get(field) for field in ("text", "texts", "text_input"))
        text = b"".join(_texts(found) for found in texts if found is not None)
        if not text:
            raise ValueError("no text, texts, text_input, messages or payload")
    return _Prompt(
        before + text,
        output,
        at_ms=_milliseconds(cells, "timestamp"),
        delay_ms=_milliseconds(cells, "delay"),
        session=session,
        new=new and bool(session),
    )


def _texts(found: object) -> bytes:
    """Return a text, a list of texts, or a list of AIPerf's ``Text`` objects as one text."""
    if isinstance(found, list):
        parts = (part.get("contents") if isinstance(part, Mapping) else part for part in found)
        return b"".join(_flat(part) for part in parts)
    return _flat(found)


def _read(form: str, ask: Ask) -> Callable[[Path, Values], Trace]:
    def read(path: Path, values: Values) -> Trace:
        reading = _Reading(path, values)

        def take(where: str, cells: Cells) -> None:
            if "embedding" in word(cells, "url"):
                reading.faults.mended(_EMBEDDING, f"{where}: {word(cells, 'url')}")
                return
            for prompt in list(ask(where, cells)):
                reading.add(where, prompt)

        count = read_rows(path, reading.faults, take)
        reading.calls.finish()
        repairs = reading.faults.finish(count, "mend or remove those lines")
        arrivals = "no arrival times" if not reading.timed else "arrivals in milliseconds"
        return reading.store.trace(
            path.name,
            reading.block,
            identify(form, path, values),
            reading.labels(),
            repairs,
            facts=[arrivals],
        )

    return read


# ---- recognition


def _keys(sample: Sample) -> set[str]:
    return sample.keys() or set(sample.array_keys())


_ASKS = {"text", "texts", "text_input", "turns", "payload"}
_HASHED = {"input_length", "hash_ids"}


def _of_batch(sample: Sample) -> bool:
    return {"custom_id", "url", "body"} <= _keys(sample)


_COUNTS = {"output_tokens_count", "completion_tokens_count", "prompt_tokens_count", "input_tokens_count"}


def _of_guidellm(sample: Sample) -> bool:
    known = set(sample.columns()) or _keys(sample)
    return bool(known & _COUNTS) and bool(known & set(_TEXTS))


def _of_custom(sample: Sample) -> bool:
    keys = sample.keys()
    timed = any(part in key.lower() for key in keys for part in ("time", "arriv"))
    return "prompt" in keys and not timed and not keys & (_COUNTS | {"body", "ts"})


def _of_aiperf(sample: Sample) -> bool:
    if sample.head.lstrip().startswith(b"{") and {"data", "session_id", "payloads"} <= set(
        sample.array_keys()
    ):
        return True
    keys = sample.keys()
    if "prompt" in keys or keys & _COUNTS or keys & _HASHED:
        return False
    return bool(keys & _ASKS) or ("messages" in keys and bool(keys & {"output_length", "session_id"}))


_PARAMS = (
    *start_params(1.0),
    Param(
        "output_tokens",
        256,
        "tokens of an answer whose length the file does not state",
        low=1,
        high=MAX_ANSWER,
    ),
    SESSIONS,
    Param("block_tokens", 16, "tokens of a KV block", low=1),
)

READERS = (
    Reader(
        "openai-batch",
        'JSON lines {"custom_id", "method", "url", "body": {"messages", "max_tokens"}}',
        _of_batch,
        _read("openai-batch", _batch),
        _PARAMS,
        "OpenAI batch",
    ),
    Reader(
        "vllm-custom",
        'JSON lines {"prompt"[, "output_tokens"]}',
        _of_custom,
        _read("vllm-custom", _custom),
        _PARAMS,
        "vLLM custom JSON lines",
    ),
    Reader(
        "guidellm",
        'CSV or JSON lines {"prompt", "output_tokens_count"[, "prompt_tokens_count"][, "prefix"]}',
        _of_guidellm,
        _read("guidellm", _guidellm),
        _PARAMS,
        "guidellm data",
    ),
    Reader(
        "aiperf",
        'JSON lines {"text"[, "timestamp": ms][, "output_length"]}, {"session_id", "turns"}, or inputs.json',
        _of_aiperf,
        _read("aiperf", _aiperf),
        _PARAMS,
        "AIPerf input",
    ),
)
