"""What engines say of themselves, each in its own way: limits once, load again and again.

Known are vLLM (Prometheus text), SGLang (``/get_server_info``, ``/v1/loads``) and llama.cpp's server
(``/props``, ``/slots``). Of any other server only its health is known, and our own books count.

A figure that cannot be true is as good as none: ``ignore`` is told, and what was known before stays.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from fairlead.core import outside
from fairlead.http.client import Pool, UpstreamError

VLLM, SGLANG, LLAMA_CPP, UNKNOWN = "vllm", "sglang", "llama.cpp", "unknown"
KINDS = (VLLM, SGLANG, LLAMA_CPP, UNKNOWN)
TOLD_CLIENTS = {VLLM, SGLANG}
"""Engines that fairlead has a plugin for, which hears whose a request is."""

MOST_BYTES = 2**20
"""Largest such answer, in bytes. A vLLM server with many adapters writes 200 kB of metrics."""
_MOST_REQUESTS = 2**20
"""More requests than any engine has at once."""
_MOST_MODELS = 1_000
_MOST_NAME = 256
"""Most characters in the name of a model."""

Headers = tuple[tuple[bytes, bytes], ...]
Ignore = Callable[[str, object], None]
"""Called for each figure of an engine that cannot be true, with the figure's name and value."""


class Load(NamedTuple):
    """An engine's own figures."""

    running: int
    waiting: int


class Capacity(NamedTuple):
    """What an engine can take, as far as it says; None where it does not."""

    kind: str
    sequences: int | None = None
    kv_tokens: int | None = None


class Model(NamedTuple):
    """An entry of an engine's ``/v1/models``."""

    id: str
    parent: str
    """The base model of a LoRA adapter; empty for a base model."""
    raw: msgspec.Raw


class _ModelEntry(msgspec.Struct):
    id: str
    parent: str | None = None


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


def _series(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"^" + name + rb"(?:\{[^\n]*\})? (\S+)", re.MULTILINE)


_RUNNING = _series(b"vllm:num_requests_running")
_WAITING = _series(b"vllm:num_requests_waiting")
_LLAMA_RUNNING = _series(b"llamacpp:requests_processing")
_LLAMA_WAITING = _series(b"llamacpp:requests_deferred")
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{([^\n]*)\}", re.MULTILINE)
_LABEL = re.compile(rb'\b(\w+)="([^"]*)"')


async def healthy(pool: Pool, headers: Headers, timeout: float) -> bool:  # noqa: ASYNC109
    """Return whether the engine answers its health check. Raises UpstreamError when it cannot be reached."""
    status, _, _ = await pool.fetch(b"GET", b"/health", headers, timeout=timeout, most=MOST_BYTES)
    if status in {404, 405, 501}:
        status, _, _ = await pool.fetch(b"GET", b"/v1/models", headers, timeout=timeout, most=MOST_BYTES)
    return 200 <= status < 300


async def models(pool: Pool, headers: Headers, timeout: float, ignore: Ignore) -> list[Model]:  # noqa: ASYNC109
    """Return the engine's models, each name once; none when it does not say."""
    body = await _get(pool, b"/v1/models", headers, timeout)
    try:
        entries = msgspec.json.decode(body, type=_ModelList).data
    except (ValueError, RecursionError):
        return []
    if len(entries) > _MOST_MODELS:
        ignore("models", f"{len(entries)} entries")
    found: dict[str, Model] = {}
    for raw in entries[:_MOST_MODELS]:
        model = _model(bytes(raw))
        if model is None:
            ignore("model", bytes(raw))
        else:
            found.setdefault(model.id, model)
    return list(found.values())


def _model(raw: bytes) -> Model | None:
    try:
        entry = msgspec.json.decode(raw, type=_ModelEntry)
    except (ValueError, RecursionError):
        return None
    parent = entry.parent or ""
    if not entry.id or not all(len(n) <= _MOST_NAME and n.isprintable() for n in (entry.id, parent)):
        return None
    return Model(entry.id, parent, msgspec.Raw(raw))


async def capacity(pool: Pool, headers: Headers, timeout: float, ignore: Ignore) -> Capacity:  # noqa: ASYNC109
    """Find out what kind of engine it is and what it can take."""
    text = await _get(pool, b"/metrics", headers, timeout)
    if b"vllm:" in text:
        return Capacity(VLLM, None, _vllm_tokens(text, ignore))
    info = _json(await _get(pool, b"/get_server_info", headers, timeout))
    if isinstance(info, dict) and "max_total_num_tokens" in info:
        return Capacity(
            SGLANG,
            _limit(info.get("max_running_requests"), "max_running_requests", ignore),
            _limit(info["max_total_num_tokens"], "max_total_num_tokens", ignore),
        )
    props = _json(await _get(pool, b"/props", headers, timeout))
    if isinstance(props, dict) and "total_slots" in props:
        slots = _limit(props["total_slots"], "total_slots", ignore)
        settings = props.get("default_generation_settings")
        context = _limit(settings.get("n_ctx"), "n_ctx", ignore) if isinstance(settings, dict) else None
        tokens = _limit(slots * context, "n_ctx", ignore) if slots and context else None
        return Capacity(LLAMA_CPP, slots, tokens)
    return Capacity(UNKNOWN)


async def load(kind: str, pool: Pool, headers: Headers, timeout: float, ignore: Ignore) -> Load | None:  # noqa: ASYNC109
    """Return the engine's present load; None when it does not say, or says what cannot be."""
    if kind == VLLM:
        return _from_text(await _get(pool, b"/metrics", headers, timeout), _RUNNING, _WAITING, ignore)
    if kind == SGLANG:
        return _sglang_load(_json(await _get(pool, b"/v1/loads?include=core", headers, timeout)), ignore)
    if kind == LLAMA_CPP:
        text = await _get(pool, b"/metrics", headers, timeout)
        found = _from_text(text, _LLAMA_RUNNING, _LLAMA_WAITING, ignore)
        return found or _llama_slots(_json(await _get(pool, b"/slots", headers, timeout)))
    return None


async def _get(pool: Pool, path: bytes, headers: Headers, timeout: float) -> bytes:  # noqa: ASYNC109
    """Return the body of a good answer, or nothing."""
    try:
        status, _, body = await pool.fetch(b"GET", path, headers, timeout=timeout, most=MOST_BYTES)
    except UpstreamError:
        return b""
    return body if status == 200 else b""


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return None


def _limit(value: object, figure: str, ignore: Ignore) -> int | None:
    """Return a limit that an engine says; None if it says none, or one that cannot be."""
    found = outside.whole(value, least=1)
    if found is None and value is not None:
        ignore(figure, value)
    return found


def _vllm_tokens(text: bytes, ignore: Ignore) -> int | None:
    """Blocks times block size, added over data-parallel engines behind one address."""
    total = 0
    for found in _CACHE_CONFIG.finditer(text):
        labels = dict(_LABEL.findall(found[1]))
        size, blocks = labels.get(b"block_size"), labels.get(b"num_gpu_blocks")
        if size in {None, b"None"} or blocks in {None, b"None"}:
            return None  # as vLLM writes it before its pool is made
        parts = [_limit(_number(part), "cache_config_info", ignore) for part in (size, blocks) if part]
        if len(parts) < 2 or None in parts:
            return None
        total += parts[0] * parts[1]  # type: ignore[operator] # neither is None
    return _limit(total or None, "cache_config_info", ignore)


def _number(text: bytes) -> float:
    """Return a number as Prometheus writes it; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _total(parts: list[object], figure: str, ignore: Ignore) -> int | None:
    """Add a figure up over the engines behind one address; None if one of them cannot be true."""
    total = 0
    for part in parts:
        number = outside.whole(part, _MOST_REQUESTS)
        if number is None:
            ignore(figure, part)
            return None
        total += number
    return min(total, _MOST_REQUESTS)


def _from_text(
    text: bytes, running: re.Pattern[bytes], waiting: re.Pattern[bytes], ignore: Ignore
) -> Load | None:
    ran: list[object] = [_number(value) for value in running.findall(text)]
    waited: list[object] = [_number(value) for value in waiting.findall(text)]
    if not ran or not waited:
        return None
    return _load(ran, waited, ignore)


def _load(ran: list[object], waited: list[object], ignore: Ignore) -> Load | None:
    running, waiting = _total(ran, "running", ignore), _total(waited, "waiting", ignore)
    return None if running is None or waiting is None else Load(running, waiting)


def _sglang_load(answer: Any, ignore: Ignore) -> Load | None:
    """Add up the data-parallel ranks."""
    ranks = answer.get("loads") if isinstance(answer, dict) else answer
    if not isinstance(ranks, list) or not ranks or not all(isinstance(rank, dict) for rank in ranks):
        return None
    ran, waited = ([rank.get(name) for rank in ranks] for name in ("num_running_reqs", "num_waiting_reqs"))
    return None if None in ran or None in waited else _load(ran, waited, ignore)


def _llama_slots(answer: Any) -> Load | None:
    if not isinstance(answer, list) or not all(isinstance(slot, dict) for slot in answer):
        return None
    return Load(sum(bool(slot.get("is_processing")) for slot in answer), 0)


MOST_SEQUENCES = 256
"""Most sequences that an engine gets at once where neither it nor the operator says how many it runs."""
_FIRST_SEQUENCES = 8
"""What an engine that does not say its limit gets at first."""


class SequenceCapacity:
    """How many requests an engine gets at once: as many as it runs without keeping some waiting.

    It falls to what the engine really runs when requests wait inside it at two readings in a row (one
    is normal: a request just sent waits for the next step), and grows again by an eighth while all of
    it is used and none waits. When the engine refuses a request it falls at once.

    An engine that does not say its limit is explored from below: ``ceiling`` requests at once could be many
    more than it runs, and inside it they would be served in order of arrival, whoever sent them. So it gets
    few at first, and twice as many at each reading for as long as all are used and none waits.
    """

    __slots__ = ("_waited", "ceiling", "exploring", "now")

    def __init__(self, ceiling: int, *, known: bool) -> None:
        """``known``: the engine says that it runs ``ceiling`` requests, or says nothing of its load."""
        self.ceiling = ceiling
        self.now = ceiling if known else min(ceiling, _FIRST_SEQUENCES)
        self.exploring = self.now < ceiling
        """Whether it is not known yet how many it runs."""
        self._waited = False

    def read(self, load: Load, sent: int) -> int:
        """Take in a reading; ``sent`` is how many of our requests the engine has. Return the capacity."""
        if load.waiting > 0:
            if self._waited:
                self.now = max(1, min(self.now, load.running))
                self.exploring = False
            self._waited = True
        else:
            self._waited = False
            if sent >= self.now:
                more = self.now if self.exploring else max(1, self.now // 8)
                self.now = min(self.ceiling, self.now + more)
                self.exploring = self.exploring and self.now < self.ceiling
        return self.now

    def refused(self, sent: int) -> int:
        """The engine has no room for more than the ``sent`` requests that it has. Return the capacity."""
        self.now = max(1, min(self.now, sent))
        self.exploring = False
        return self.now
