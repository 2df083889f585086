"""Answers on the wire: one request's result in OpenAI's shape, whole or as a stream of events."""

from collections.abc import Callable

import msgspec

from fairlead.core.model import RequestId
from fairlead.engine.text import Answer
from fairlead.engine.tokens import BYTES_PER_TOKEN, Tokens
from fairlead.http.messages import Response, head
from fairlead.http.server import Exchange

SERVER = (b"server", b"fairlead-engine (model of an engine, not an LLM)")
FINGERPRINT = "fairlead-engine-model"
"""Says in every answer that no LLM wrote it."""

_STREAM_HEAD = head(
    200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), SERVER]
)
_DONE = b"data: [DONE]\n\n"


class Reply:
    """One request on its way through the engine, and how it is answered. Is told when its client leaves.

    Times are the event loop's, in seconds.
    """

    __slots__ = (
        "abort",
        "answer",
        "arrived_s",
        "cached_tokens",
        "chat",
        "created",
        "exchange",
        "first_s",
        "id",
        "include_usage",
        "model",
        "prompt_tokens",
        "rid",
        "tokens",
    )

    def __init__(
        self,
        exchange: Exchange,
        abort: Callable[[RequestId], None],
        rid: RequestId,
        name: str,
        model: str,
        tokens: Tokens,
        prompt_tokens: int,
        answer: Answer,
        *,
        chat: bool,
        include_usage: bool,
        created: int,
        arrived_s: float,
    ) -> None:
        self.exchange = exchange
        self.abort = abort
        self.rid = rid
        self.tokens = tokens
        """Prompt and answer."""
        self.prompt_tokens = prompt_tokens
        self.answer = answer
        self.chat = chat
        self.include_usage = include_usage
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{name}"
        self.model = model
        self.created = created
        self.arrived_s = arrived_s
        self.first_s = arrived_s
        self.cached_tokens = 0
        self.prepare()

    def prepare(self) -> None:
        """Prepare what can be prepared before the first token."""

    def disconnected(self) -> None:
        """The client is gone: the engine drops the request."""
        self.abort(self.rid)

    def pause(self) -> bool:
        """A slow reader's answer may wait whole: its size is bounded by the context length."""
        return True

    def resume(self) -> None:
        """Do nothing: the client has caught up."""

    def finish(self) -> None:
        """Send the whole answer."""
        answer = self.answer
        text = answer.text.decode()
        choice: dict[str, object] = {"index": 0}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice |= {"logprobs": None, "finish_reason": answer.finish_reason}
        kind = "chat.completion" if self.chat else "text_completion"
        body = self._envelope(kind) | {"choices": [choice], "usage": self._usage()}
        self.exchange.reply(Response(200, msgspec.json.encode(body), headers=(SERVER,)))

    def _envelope(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _usage(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.answer.tokens,
            "total_tokens": self.prompt_tokens + self.answer.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Stream(Reply):
    """A reply as server-sent events: one write a token, made of parts prepared once."""

    __slots__ = ("_after", "_before", "_sent")

    def prepare(self) -> None:
        """Encode a chunk once, around the place of its text."""
        self._sent = 0
        mark = "\0"
        frame = self._event({"content": mark} if self.chat else mark, None)
        self._before, self._after = frame.split(rb"\u0000")

    def token(self) -> None:
        """Send one more token; the last one is left to ``finish``."""
        at = self._sent * BYTES_PER_TOKEN
        self._sent += 1
        if self._sent == 1:
            self.exchange.begin(_STREAM_HEAD)
            if self.chat:
                self.exchange.send(self._event({"role": "assistant", "content": ""}, None))
        if self._sent == self.answer.tokens:
            return
        piece = self.answer.text[at : at + BYTES_PER_TOKEN]
        if piece:
            self.exchange.send(self._before + piece + self._after)
        elif self._sent == 1:
            self.exchange.flush()

    def finish(self) -> None:
        """Send the last token, the reason of the end, usage if asked for, and the end mark."""
        last = self.answer.text[(self.answer.tokens - 1) * BYTES_PER_TOKEN :].decode()
        data = self._event({"content": last} if self.chat else last, self.answer.finish_reason)
        if self.include_usage:
            data += _frame(self._envelope(self._kind()) | {"choices": [], "usage": self._usage()})
        self.exchange.finish(data + _DONE)

    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _event(self, content: object, finish_reason: str | None) -> bytes:
        choice = {
            "index": 0,
            "delta" if self.chat else "text": content,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        # As vLLM does, and unlike OpenAI, no "usage": null here even if usage comes at the end.
        return _frame(self._envelope(self._kind()) | {"choices": [choice]})


def _frame(body: dict[str, object]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)
