"""What engines say of themselves, each in its own way: limits once, load again and again.

Known are vLLM (Prometheus text), SGLang (``/get_server_info``, ``/v1/loads``) and llama.cpp's server
(``/props``, ``/slots``). Of any other server only its health is known, and our own books count.
"""

import re
from typing import Any, NamedTuple

import msgspec

from fairlead.http.client import Pool, UpstreamError

VLLM, SGLANG, LLAMA_CPP, UNKNOWN = "vllm", "sglang", "llama.cpp", "unknown"
TOLD_CLIENTS = {VLLM, SGLANG}
"""Engines that fairlead has a plugin for, which hears whose a request is."""


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
    return re.compile(rb"^" + name + rb"(?:\{[^\n]*\})? ([0-9.eE+-]+)", re.MULTILINE)


_RUNNING = _series(b"vllm:num_requests_running")
_WAITING = _series(b"vllm:num_requests_waiting")
_LLAMA_RUNNING = _series(b"llamacpp:requests_processing")
_LLAMA_WAITING = _series(b"llamacpp:requests_deferred")
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{([^\n]*)\}", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


async def healthy(pool: Pool, headers: tuple[tuple[bytes, bytes], ...], timeout: float) -> bool:  # noqa: ASYNC109
    """Say whether the engine answers its health check. Raises UpstreamError when it cannot be reached."""
    status, _, _ = await pool.fetch(b"GET", b"/health", headers, timeout=timeout)
    if status in {404, 405, 501}:
        status, _, _ = await pool.fetch(b"GET", b"/v1/models", headers, timeout=timeout)
    return 200 <= status < 300


async def models(pool: Pool, headers: tuple[tuple[bytes, bytes], ...], timeout: float) -> list[Model]:  # noqa: ASYNC109
    """Return the engine's models; none when it does not say."""
    body = await _get(pool, b"/v1/models", headers, timeout)
    try:
        entries = msgspec.json.decode(body, type=_ModelList).data
        decoded = [(msgspec.json.decode(raw, type=_ModelEntry), raw) for raw in entries]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [Model(entry.id, entry.parent or "", msgspec.Raw(bytes(raw))) for entry, raw in decoded]


async def capacity(pool: Pool, headers: tuple[tuple[bytes, bytes], ...], timeout: float) -> Capacity:  # noqa: ASYNC109
    """Find out what kind of engine it is and what it can take."""
    text = await _get(pool, b"/metrics", headers, timeout)
    if b"vllm:" in text:
        return Capacity(VLLM, None, _vllm_tokens(text))
    info = _json(await _get(pool, b"/get_server_info", headers, timeout))
    if isinstance(info, dict) and "max_total_num_tokens" in info:
        return Capacity(
            SGLANG, _whole(info.get("max_running_requests")), _whole(info["max_total_num_tokens"])
        )
    props = _json(await _get(pool, b"/props", headers, timeout))
    if isinstance(props, dict) and "total_slots" in props:
        slots = _whole(props["total_slots"])
        settings = props.get("default_generation_settings")
        context = _whole(settings.get("n_ctx")) if isinstance(settings, dict) else None
        return Capacity(LLAMA_CPP, slots, slots * context if slots and context else None)
    return Capacity(UNKNOWN)


async def load(
    kind: str,
    pool: Pool,
    headers: tuple[tuple[bytes, bytes], ...],
    timeout: float,  # noqa: ASYNC109
) -> Load | None:
    """Return the engine's present load; None when it does not say."""
    if kind == VLLM:
        return _from_text(await _get(pool, b"/metrics", headers, timeout), _RUNNING, _WAITING)
    if kind == SGLANG:
        return _sglang_load(_json(await _get(pool, b"/v1/loads?include=core", headers, timeout)))
    if kind == LLAMA_CPP:
        found = _from_text(await _get(pool, b"/metrics", headers, timeout), _LLAMA_RUNNING, _LLAMA_WAITING)
        return found or _llama_slots(_json(await _get(pool, b"/slots", headers, timeout)))
    return None


async def _get(pool: Pool, path: bytes, headers: tuple[tuple[bytes, bytes], ...], timeout: float) -> bytes:  # noqa: ASYNC109
    """Return the body of a good answer, or nothing."""
    try:
        status, _, body = await pool.fetch(b"GET", path, headers, timeout=timeout)
    except UpstreamError:
        return b""
    return body if status == 200 else b""


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _vllm_tokens(text: bytes) -> int | None:
    """Blocks times block size, added over data-parallel engines behind one address."""
    total = 0
    for found in _CACHE_CONFIG.finditer(text):
        labels = dict(_LABEL.findall(found[1]))
        try:
            total += int(labels[b"block_size"]) * int(labels[b"num_gpu_blocks"])
        except (KeyError, ValueError):
            return None
    return total or None


def _from_text(text: bytes, running: re.Pattern[bytes], waiting: re.Pattern[bytes]) -> Load | None:
    ran, waited = running.findall(text), waiting.findall(text)
    if not ran or not waited:
        return None
    return Load(int(sum(map(float, ran))), int(sum(map(float, waited))))


def _sglang_load(answer: Any) -> Load | None:
    """Add up the data-parallel ranks."""
    ranks = answer.get("loads") if isinstance(answer, dict) else answer
    if not isinstance(ranks, list) or not ranks or not all(isinstance(rank, dict) for rank in ranks):
        return None
    try:
        return Load(
            sum(int(rank["num_running_reqs"]) for rank in ranks),
            sum(int(rank["num_waiting_reqs"]) for rank in ranks),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _llama_slots(answer: Any) -> Load | None:
    if not isinstance(answer, list) or not all(isinstance(slot, dict) for slot in answer):
        return None
    return Load(sum(bool(slot.get("is_processing")) for slot in answer), 0)


class SequenceCredit:
    """How many requests an engine gets at once: as many as it runs without keeping some waiting.

    Credit falls to what the engine really runs when requests wait inside it at two readings in a
    row (one is normal: a request just sent waits for the next step), and grows again by an eighth
    while all of it is used and none waits.
    """

    __slots__ = ("_waited", "ceiling", "now")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.now = ceiling
        self._waited = False

    def read(self, load: Load, sent: int) -> int:
        """Take in a reading; ``sent`` is how many of our requests the engine has. Return the credit."""
        if load.waiting > 0:
            if self._waited:
                self.now = max(1, min(self.now, load.running))
            self._waited = True
        else:
            self._waited = False
            if sent >= self.now:
                self.now = min(self.ceiling, self.now + max(1, self.now // 8))
        return self.now
