"""Conversations as text: vLLM's multi-turn benchmark, ShareGPT's dump, and tau-bench's results.

Each is a JSON list: ``{"id", "messages": [{"role", "content"}]}``,
``{"id", "conversations": [{"from", "value"}]}`` or
``{"task_id", "trial", "traj": [{"role", "content", "tool_calls"}]}``.

Every answer of the assistant is a request whose prompt is all the text before it. There is no tokenizer here:
four bytes count as a token, and block keys are made of bytes, so equal text has equal keys. A request follows
the answer before it (closed loop); its own answer is in the next prompt, so its blocks are ``output_keys``.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.core.keys import byte_keys, seed_key
from fairlead.core.params import Param, Values
from fairlead.trace.arrivals import session_starts, start_params
from fairlead.trace.decoding import decode
from fairlead.trace.faults import Faults
from fairlead.trace.files import Sample, whole_text
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.store import Store

TOKEN_BYTES = 4
"""Bytes that count as a token."""

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_ANSWERS = "assistant"


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[msgspec.Raw] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    sender: str = msgspec.field(name="from", default="")
    value: str | None = None


class _Item(msgspec.Struct):
    id: str | int | None = None
    task_id: str | int | None = None
    trial: int = 0
    messages: list[_Message] | None = None
    conversations: list[_Message] | None = None
    traj: list[_Message] | None = None


class _Part(msgspec.Struct):
    text: str = ""


class Exchange(NamedTuple):
    """One request of a conversation, in bytes of the whole text."""

    prompt_end: int
    answer_end: int


def _text(message: _Message) -> str:
    """Return all that the model reads of a message."""
    content = message.content if message.value is None else message.value
    if isinstance(content, list):
        content = "".join(decode(bytes(part), _Part).text for part in content)
    calls = bytes(message.tool_calls)
    extra = "" if calls in (b"", b"null", b"[]") else msgspec.json.encode(decode(calls, object)).decode()
    return (content or "") + extra


def transcript(messages: Sequence[_Message]) -> tuple[bytes, list[Exchange], int]:
    """Return a conversation's text, its requests, and the number of messages that nothing answers.

    Each message stands as role, line end, text, line end. A prompt ends where the answer's text begins.
    Raises ValueError for a message without a role.
    """
    text = bytearray()
    exchanges: list[Exchange] = []
    waiting = 0
    for number, message in enumerate(messages):
        role = message.role or message.sender
        if not role:
            raise ValueError(f"message {number} has no role")
        role = _ROLES.get(role, role)
        text += role.encode("utf-8", "surrogatepass") + b"\n"
        start = len(text)
        text += _text(message).encode("utf-8", "surrogatepass")
        if role == _ANSWERS and number:
            exchanges.append(Exchange(start, len(text)))
            waiting = 0
        else:
            waiting += role == "user"
        text += b"\n"
    return bytes(text), exchanges, waiting


def _add_turns(store: Store, text: bytes, exchanges: Sequence[Exchange], block: int, think: int) -> None:
    """Append a conversation's requests to the store's latest session."""
    size = block * TOKEN_BYTES
    end = exchanges[-1].answer_end
    first, _ = store.add_keys(byte_keys(text[:end], size, seed_key("trace"), xxh3_64_intdigest))
    for number, (prompt_end, answer_end) in enumerate(exchanges):
        prompt = prompt_end // TOKEN_BYTES  # at least 1: the roles are there
        output = max(1, answer_end // TOKEN_BYTES - prompt)
        shared, total = first + prompt_end // size, first + answer_end // size
        store.add_turn(
            prompt,
            output,
            [(first, shared)] if shared > first else (),
            [(shared, total)] if total > shared else (),
            number - 1,
            think if number else 0,
        )


def _items(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        items = decode(whole_text(path), list[msgspec.Raw])
    except ValueError as error:
        raise TraceError(
            f"{path}: not a JSON list of conversations: {error}; is the file complete?"
        ) from None
    yield from ((number, bytes(item)) for number, item in enumerate(items))


def _messages(item: _Item) -> list[_Message]:
    for found in (item.messages, item.conversations, item.traj):
        if found is not None:
            return found
    raise ValueError("no messages, conversations or traj")


def _name(item: _Item, number: int) -> str:
    if item.id is not None:
        return str(item.id)
    return f"conversation {number}" if item.task_id is None else f"task {item.task_id} trial {item.trial}"


def _read(form: str) -> Callable[[Path, Values], Trace]:
    def read(path: Path, values: Values) -> Trace:
        faults = Faults(path, "conversation")
        store = Store()
        starts, label = session_starts(values)
        block, think = values.integer("block_tokens"), round(values.number("think_s") * 1e6)
        count = 0
        for number, raw in _items(path):
            count += 1
            where = f"conversation {number}"
            try:
                item = decode(raw, _Item)
                text, exchanges, unanswered = transcript(_messages(item))
            except ValueError as error:
                faults.broken(where, str(error))
                continue
            if unanswered:
                faults.mended("messages without an answer at the end: left out", where, unanswered)
            if exchanges:
                store.add_session(next(starts), ONE_CLIENT, _name(item, number))
                _add_turns(store, text, exchanges, block, think)
            else:
                faults.mended("conversations without any answer: left out", where)
        repairs = faults.finish(count, "mend or remove those conversations")
        labels = [
            f"token counts are estimates: {TOKEN_BYTES} bytes a token",
            label,
            f"think time {values.number('think_s'):g} s",
            NO_CLIENTS,
        ]
        return store.trace(path.name, block, identify(form, path, values), labels, repairs)

    return read


def _sniff(*fields: str, without: str = "") -> Callable[[Sample], bool]:
    def sniff(sample: Sample) -> bool:
        head = sample.head.lstrip(b"\xef\xbb\xbf \t\r\n")
        return (
            not sample.names
            and head.startswith(b"[")
            and all(f'"{field}"'.encode() in head for field in fields)
            and not (without and f'"{without}"'.encode() in head)
        )

    return sniff


_PARAMS = (
    *start_params(1.0),
    Param("think_s", 0.0, "seconds from an answer to the next message", low=0, high=1e6),
    Param("block_tokens", 16, "tokens of a KV block", low=1),
)

READERS = (
    Reader(
        "vllm-multi-turn",
        'JSON list of {"id", "messages": [{"role", "content"}]}',
        _sniff("messages", "role"),
        _read("vllm-multi-turn"),
        _PARAMS,
    ),
    Reader(
        "sharegpt",
        'JSON list of {"id", "conversations": [{"from", "value"}]}',
        _sniff("conversations", "from", without="messages"),
        _read("sharegpt"),
        _PARAMS,
    ),
    Reader(
        "tau-bench",
        'JSON list of {"task_id", "trial", "traj": [{"role", "content"}]}',
        _sniff("task_id", "reward", without="messages"),
        _read("tau-bench"),
        _PARAMS,
    ),
)
