"""One request on its way: from the client to a worker, and the answer back.

A flow listens to both ends. What happens it reports to the scheduler as events; what is to be done it
is told by the dispatcher's commands. Bytes of a body pass it unchanged.
"""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from fairlead.core import events as ev
from fairlead.core import outside
from fairlead.core.commands import Dispatch, Fail, Reject
from fairlead.core.model import Request
from fairlead.gateway.engines import SGLANG
from fairlead.gateway.identity import Client
from fairlead.gateway.metrics import ClientFigures
from fairlead.gateway.prompt import Prompt, PromptKeys
from fairlead.gateway.readers import LargeBody
from fairlead.gateway.reading import for_engine
from fairlead.gateway.sse import Tap
from fairlead.gateway.wire import Most, Usage, usage_of
from fairlead.gateway.workers import Worker, Workers
from fairlead.http.bodies import Body
from fairlead.http.client import Buffer, Call, UpstreamError
from fairlead.http.heads import ResponseHead, with_length
from fairlead.http.messages import HOP_BY_HOP, Headers, error_body, error_response, head, status_line
from fairlead.http.server import Exchange

_KEPT_BYTES = 8 * 2**20
"""Of an answer that is not a stream as much is kept to read its usage; of an error as much to pass on."""
_WAITING_BYTES = 64 * 2**10
"""As much of a refusal is kept while its request waits again."""
_NO_ROOM = {429, 503}
"""Statuses with which an engine says that it has no room now. That is no fault."""
_KV_TOKENS = 2**24
"""What an engine is taken to hold at most if it does not say."""

log = logging.getLogger("fairlead.gateway")
Method = TypeVar("Method", bound=Callable[..., Any])


class Scheduler(Protocol):
    """What a flow needs of the scheduler."""

    workers: Workers
    prompts: PromptKeys
    retry_statuses: frozenset[int]
    """Statuses of an answer that another worker may avert."""

    @property
    def decided_us(self) -> int:
        """The time of the latest decision, by the clock of all events."""

    def now_us(self) -> int:
        """The clock of all events: monotonic, microseconds."""

    def step(self, event: ev.Event) -> None:
        """Let the dispatcher decide, and do what it says."""

    def forget(self, flow: "Flow") -> None:
        """The flow ended."""

    def give_up(self, flow: "Flow", reason: str) -> None:
        """The flow broke: forget it, and settle what the dispatcher still has of it. Raises nothing."""

    def made_progress(self, flow: "Flow") -> None:
        """The flow has tokens to report: soon, with those of others."""

    def report_progress(self, flow: "Flow") -> None:
        """Tell the dispatcher of the flow's tokens now."""


_BYTES_A_TOKEN = 4
"""Of an answer whose tokens nobody counted."""
_FIGURES = ("prompt_tokens", "cached_tokens", "completion_tokens")
"""Names of the figures of a usage, in the order of ``outside.Usage``."""


def _guarded(method: Method) -> Method:
    """Let what ``method`` raises end only its own flow (see ``Flow.broke``)."""

    @wraps(method)
    def guarded(flow: "Flow", *args: Any) -> Any:
        try:
            return method(flow, *args)
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            flow.broke(error)

    return cast("Method", guarded)


class Flow:
    """State of one request. ``live`` from its arrival at the dispatcher to its end there."""

    __slots__ = (
        "arrived_us",
        "body",
        "call",
        "client",
        "continuous",
        "counted",
        "exchange",
        "failed_on",
        "fields",
        "figures",
        "first_us",
        "kept",
        "kept_size",
        "length",
        "listed",
        "live",
        "model",
        "most",
        "path",
        "prompt",
        "refused",
        "request",
        "scheduler",
        "status",
        "streamed",
        "tap",
        "worker",
        "xargs",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        exchange: Exchange,
        client: Client,
        figures: ClientFigures,
        request: Request,
        model: str,
        prompt: Prompt,
        fields: bytes,
        body: bytes | Body | LargeBody,
        tap: Tap | None,
        xargs: bool | None,
        most: Most,
        continuous: bool,
    ) -> None:
        self.scheduler = scheduler
        self.exchange = exchange
        self.client = client
        self.figures = figures
        self.request = request
        self.model = model
        self.prompt = prompt
        self.path = exchange.target
        self.fields = fields
        self.body: bytes | Body | LargeBody = body
        self.tap = tap
        self.xargs = xargs
        """Whether the body has ``vllm_xargs`` of its own; None if it is no place to name the client."""
        self.most = most
        self.continuous = continuous
        """Whether the client asked for usage in each chunk, but not for usage: only the gateway did that."""
        self.arrived_us = request.arrived_us
        self.first_us = 0
        self.live = False
        self.listed = False
        """Whether the scheduler will ask for progress soon."""
        self.worker: Worker | None = None
        self.failed_on: Worker | None = None
        """The first worker that the request failed on, once connected."""
        self.call: Call | None = None
        self.status = 0
        self.streamed = False
        self.refused: Headers | None = None
        """Header fields of an answer that was not passed on: an error that another worker may avert."""
        self.kept: list[bytes] = []
        self.kept_size = 0
        self.length = 0
        """Bytes of an answer that is no stream, as announced."""
        self.counted = 0
        """Output tokens of a stream that the dispatcher was told of."""

    def __repr__(self) -> str:
        return f"<Flow {self.request.rid} {self.client.name} on {self.worker} status={self.status}>"

    def take_progress(self) -> int:
        """Return the output tokens seen since the last call, in all no more than were asked for."""
        self.listed = False
        tap = self.tap
        if tap is None:
            return 0
        tokens, tap.events = tap.events, 0
        most = self.most.output
        if most is not None and tokens > most - self.counted:
            tokens = most - self.counted
        self.counted += tokens
        return tokens

    # --- commands ------------------------------------------------------------------------------

    def dispatch(self, command: Dispatch) -> None:
        """Send the request to the worker."""
        try:
            worker = self.worker = self.scheduler.workers.by_id[command.worker]
            if command.attempt == 1:
                waited = self.scheduler.decided_us - self.arrived_us
                self.figures.wait.observe(waited / 1e6)
            self.refused = None
            self.kept.clear()
            self.kept_size = 0
            pool = worker.pool
            body, rest = self._payload(worker.capacity.kind)
            length = len(body) + sum(map(len, rest))
            self.call = pool.send(
                b"POST %b%b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n%b"
                % (pool.prefix, self.path, pool.authority, self.fields, length, body),
                self,
                rest,
            )
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            self.broke(error)

    def _payload(self, kind: str) -> tuple[bytes, Sequence[Buffer]]:
        """Return the body for an engine of this kind; of a large one its pieces."""
        body = self.body
        if isinstance(body, LargeBody):
            return b"", body.forms[kind]
        whole = body if isinstance(body, bytes) else body.whole()
        if not self.continuous and self.xargs is None:
            return whole, ()
        xargs = None if self.xargs is None else self.client.xargs
        return for_engine(
            kind, whole, continuous=self.continuous, xargs=xargs, has_xargs=bool(self.xargs)
        ), ()

    @_guarded
    def reject(self, command: Reject) -> None:
        """Tell the client that it will not be served now."""
        self._ended(command.code)
        if self.refused is not None and command.code == "queue_timeout":
            self._pass_refusal(self.refused, command.retry_after_s)
            return
        status = 429 if command.code == "queue_full" else 503
        answer = error_response(status, command.message, command.code, retry_after_s=command.retry_after_s)
        self.exchange.reply(answer)

    @_guarded
    def fail(self, command: Fail) -> None:
        """Tell the client that its request failed for good, as far as that can still be told."""
        if self.refused is None:
            self._ended("error")
            self._tell_failure(command.reason)
            return
        self._ended("error" if self.status >= 500 else f"status_{self.status}")
        self._pass_refusal(self.refused)

    def _tell_failure(self, reason: str) -> None:
        """Tell the client as much as can still be told: an answer, an event, or a cut connection."""
        exchange = self.exchange
        if not exchange.begun:
            exchange.reply(error_response(502, f"no worker could serve this: {reason}", "worker_failed"))
        elif self.streamed:
            problem = error_body(
                502, f"the worker failed in the middle of its answer: {reason}", "worker_failed"
            )
            exchange.finish(b"data: " + problem + b"\n\ndata: [DONE]\n\n")
        else:
            exchange.abort()

    @_guarded
    def stop(self) -> None:
        """Stop the worker: nobody waits for its answer."""
        if self.call is not None:
            self.call.cancel()
            self.call = None

    def broke(self, error: Exception) -> None:
        """End the request because something in the flow raised ``error``.

        The worker is stopped, the request counts as failed, its books are settled, and the client gets an
        end. Raises nothing.
        """
        log.error("request %d broke off", self.request.rid, exc_info=error)
        reason = "an internal error"
        call, self.call = self.call, None
        exchange = self.exchange
        exchange.listener = None
        try:
            if call is not None:
                call.cancel()
            if self.live:
                self.live = False
                self.figures.ended("error")
        finally:
            self.scheduler.give_up(self, reason)
            try:
                self._tell_failure(reason)
            except Exception:
                log.exception("the client of request %d could not be told", self.request.rid)
                exchange.abort()

    # --- the client ----------------------------------------------------------------------------

    @_guarded
    def disconnected(self) -> None:
        """The client is gone: free the worker at once."""
        if self.live and self.tap is not None and self.tap.over:
            # It has all of the answer and did not wait for the end of the stream, as OpenAI's library does.
            assert self.worker is not None
            self.worker.succeeded()
            self._settle(self.tap.usage, self.worker)
        elif self.live:
            if self.first_us:
                self.scheduler.report_progress(self)
            result, reason = "cancelled", "client disconnected"
            if self.exchange.cut:
                result, reason = "slow_reader", "client read too slowly"
            self._ended(result)
            self.scheduler.step(ev.Cancelled(self.scheduler.now_us(), self.request.rid, reason))
        self.stop()

    @_guarded
    def pause(self) -> bool:
        """The client is too far behind: cut off a stream; any other answer can wait in the worker.

        An answer that is not a stream is computed before its first byte, so the worker's capacity is
        free from here on. Its usage, which comes last, is not waited for: its size is counted.
        """
        worker = self.worker
        if self.call is None or self.streamed or worker is None:
            return False
        self.call.pause()
        if self.live:
            worker.succeeded()
            self._settle(None, worker, max(self.length, self.kept_size))
            self.kept.clear()
            self.kept_size = _KEPT_BYTES  # nothing more is kept
        return True

    @_guarded
    def resume(self) -> None:
        """The client caught up."""
        if self.call is not None:
            self.call.resume()

    # --- the worker ----------------------------------------------------------------------------

    @_guarded
    def head(self, status: int, headers: Headers) -> None:
        """Pass a good answer's head on; keep an error back until it is final."""
        self.status = status
        if not 200 <= status < 300:
            self.refused = headers
            return
        lines, length, event_stream = _read_head(status, headers)
        self.streamed = event_stream
        if self.tap is not None and not event_stream:
            self.tap = None
        if event_stream:
            length = None  # the length would change with what is left out
            if self.tap is None:
                self.tap = Tap(hide=False)
            self.tap.keep_null = self.worker is not None and self.worker.capacity.kind == SGLANG
        self.length = length or 0
        self.exchange.begin(lines, length)
        self.body = b""  # from here on it is never sent again

    def data(self, body: bytes) -> None:
        """Pass on what came, and read it on the way."""
        try:
            tap = self.tap
            if self.exchange.paused and not self.exchange.keeps_up():
                return
            if self.refused is not None or tap is None:
                self.kept_size += len(body)
                if self.kept_size <= _KEPT_BYTES:
                    self.kept.append(body)
                if self.refused is None:
                    self.exchange.send(body)
                return
            out = tap.feed(body)
            if out:
                self.exchange.send(out)
            else:
                self.exchange.flush()
            if tap.events and not self.listed:
                if not self.first_us:
                    self._first_token()
                self.listed = True
                self.scheduler.made_progress(self)
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            self.broke(error)

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """Pass on a good answer that came in one piece, and settle."""
        try:
            lines = head.notes
            if not isinstance(lines, bytes):
                passed, _, event_stream = _read_head(head.status, head.headers)
                head.notes = lines = b"" if event_stream else passed
            worker = self.worker
            if not lines or self.tap is not None or worker is None:
                self.head(head.status, with_length(head.headers, len(body)))
                if self.live:
                    self.data(body)
                if self.live:
                    self.end()
                return
            self.call = None
            self.status = head.status
            self.body = b""
            worker.succeeded()
            self._settle(usage_of(body), worker, len(body))
            self.exchange.whole(lines, body)
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            self.broke(error)

    def end(self) -> None:
        """The answer is whole: settle."""
        try:
            self.call = None
            worker = self.worker
            assert worker is not None
            if self.refused is not None:
                self._refused_by(worker)
                return
            if not self.live:  # settled when the client fell behind
                self.exchange.finish()
                return
            worker.succeeded()
            tap = self.tap
            if tap is not None:
                rest = tap.rest()  # may hold the usage
                usage = tap.usage
            else:
                usage = usage_of(b"".join(self.kept)) if self.kept_size <= _KEPT_BYTES else None
                rest = b""
            self._settle(usage, worker, self.kept_size)
            self.exchange.finish(rest)
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            self.broke(error)

    @_guarded
    def error(self, error: UpstreamError) -> None:
        """The answer will not come, or not to its end."""
        self.call = None
        scheduler, worker = self.scheduler, self.worker
        assert worker is not None
        self.refused = None
        retryable = self._failed_on(worker, error.kind) and not error.answered
        if self.live:
            scheduler.step(ev.Failed(scheduler.now_us(), self.request.rid, retryable, str(error)))
        else:
            self.exchange.abort()  # settled when the client fell behind, and not whole

    # --- inside --------------------------------------------------------------------------------

    def _first_token(self) -> None:
        scheduler = self.scheduler
        now = self.first_us = scheduler.now_us()
        self.figures.first_token.observe((now - self.arrived_us) / 1e6)
        scheduler.step(ev.FirstToken(now, self.request.rid))

    def _settle(self, usage: Usage | None, worker: Worker, size: int = 0) -> None:
        """The answer is whole: tell the dispatcher what it took, as far as the engine is believed.

        ``size`` is that of an answer which is no stream, in bytes.
        """
        scheduler, rid = self.scheduler, self.request.rid
        prompt, cached, output = (None, None, None) if usage is None else self._believed(usage, worker)
        if output is None:
            scheduler.report_progress(self)  # what was seen of it counts
            if self.tap is None:
                output = min(size // _BYTES_A_TOKEN, self._most_output(worker))
        now = scheduler.now_us()
        if prompt is not None:
            scheduler.prompts.learn(self.client.name, self.model, self.prompt, prompt)
            self.figures.prompt_tokens += prompt
            if cached is not None:
                worker.count_hit(prompt, cached)
        if output:
            self.figures.output_tokens += output
            if self.first_us and output > 1:
                self.figures.per_token.observe((now - self.first_us) / 1e6 / (output - 1))
        scheduler.step(ev.Finished(now, rid, prompt, cached, output))
        self._ended("error" if self.tap is not None and self.tap.failed else "ok")

    def _believed(self, usage: Usage, worker: Worker) -> outside.Usage:
        """Return the figures of ``usage`` that can be true; the worker's others are counted and ignored."""
        most = self.most
        most_prompt = most.prompts * (worker.capacity.kv_tokens or _KV_TOKENS)
        prompt, cached, output = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
        found, wrong = outside.usage(prompt, cached, output, most_prompt, self._most_output(worker))
        if wrong:
            if found.prompt_tokens is None:
                cached = None  # of how many, nobody can tell
            said = (prompt, cached, output)
            for name, value, kept in zip(_FIGURES, said, found, strict=True):
                if value is not None and kept is None:
                    worker.ignore(name, value if isinstance(value, int | float) else type(value).__name__)
        return found

    def _most_output(self, worker: Worker) -> int:
        """Return the most output tokens that the answer can have."""
        most = self.most
        if most.output is not None:
            return most.output
        return most.sequences * (worker.capacity.kv_tokens or _KV_TOKENS)

    def _refused_by(self, worker: Worker) -> None:
        """The answer is an error, which another worker may avert: tell whose it is."""
        scheduler, status, headers = self.scheduler, self.status, self.refused
        assert headers is not None
        retryable = status in scheduler.retry_statuses
        if retryable and status in _NO_ROOM:
            if self.kept_size > _WAITING_BYTES:
                self.refused = None
                self.kept.clear()
            scheduler.workers.refused(worker, self.request.rid, status, headers)
            return
        if status >= 500 and status not in _NO_ROOM:
            retryable = self._failed_on(worker, "answer") and retryable
        reason = f"the worker answered {status}"
        scheduler.step(ev.Failed(scheduler.now_us(), self.request.rid, retryable, reason))

    def _failed_on(self, worker: Worker, kind: str) -> bool:
        """Tell of a failure; return whether another worker may be tried."""
        may = self.scheduler.workers.failed(
            worker, kind, self.request.rid, self.request.client, self.failed_on
        )
        if kind != "connect":
            self.failed_on = self.failed_on or worker
        return may

    def _pass_refusal(self, headers: Headers, retry_after_s: int | None = None) -> None:
        """Answer with the worker's own error."""
        fields = [field for field in headers if field[0] not in HOP_BY_HOP]
        if retry_after_s is not None and not any(name == b"retry-after" for name, _ in fields):
            fields.append((b"retry-after", b"%d" % retry_after_s))
        body = b"".join(self.kept)
        self.exchange.begin(head(self.status, fields), len(body))
        self.exchange.finish(body)

    def _ended(self, result: str) -> None:
        self.live = False
        self.figures.ended(result)
        self.scheduler.forget(self)


def _read_head(status: int, headers: Headers) -> tuple[bytes, int | None, bool]:
    """Return the lines of an answer's head to pass on, its length, and whether it is an event stream."""
    length = None
    event_stream = False
    lines = [status_line(status)]
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name not in HOP_BY_HOP:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-type":
                event_stream = value.startswith(b"text/event-stream")
    return b"".join(lines), length, event_stream
