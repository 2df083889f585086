"""The process that reads large bodies: asks on standard input, answers on standard output.

Each frame is a length of four bytes and MessagePack; what follows it, its fields say. The process ends
with its input. It leaves Ctrl-C and SIGTERM to the gateway, which needs it until it has drained.
"""

import contextlib
import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from fairlead.gateway.key_secret import KeySecret
from fairlead.gateway.prompt import BytePrompts, PromptKeys
from fairlead.gateway.reading import Ask, Refused, Setup, Told, read
from fairlead.gateway.wire import BadRequest

MOST_MEMORY = 4 * 2**30
"""Bytes of address space: a body made to need more (64 MiB of empty objects) is refused."""
LEAVE_AT = 2**30
"""Once it needed so many bytes of memory it makes room for a fresh process."""

S = TypeVar("S", Setup, Ask)


def main() -> None:
    """Read bodies until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    asks = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")  # of the two, the gateway must live
    gc.disable()  # a body has millions of objects, none of them in a cycle
    setup = frame(asks, Setup)
    if setup is None:
        return
    prompts, adapters = prompts_of(setup)
    while (ask := frame(asks, Ask)) is not None:
        adapters.clear()
        adapters.update(ask.adapters)
        with contextlib.suppress(BrokenPipeError):
            answer(ask, asks.read(ask.size), prompts, answers)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > LEAVE_AT:
            return


def prompts_of(setup: Setup) -> tuple[PromptKeys, dict[str, str]]:
    """Make what turns prompts into keys as the gateway does, and the adapters it knows."""
    adapters: dict[str, str] = {}
    secret = KeySecret(setup.secret)
    if not setup.tokenizer:
        return BytePrompts(setup.block_tokens, secret=secret), adapters
    from fairlead.gateway.tokenizing import load_prompts  # noqa: PLC0415 - an optional extra

    tokens = load_prompts(Path(setup.tokenizer), block_tokens=setup.block_tokens, secret=secret)
    tokens.adapters = adapters
    return tokens, adapters


def answer(ask: Ask, body: bytes, prompts: PromptKeys, answers: BinaryIO) -> None:
    """Read one body and say what it says."""
    told: Told | Refused
    follows: list[bytes] = []
    try:
        told, follows = read(ask, body, prompts)
    except BadRequest as error:
        told = Refused(error.message, error.param, error.code, error.status)
    except MemoryError:
        told = Refused("reading the body takes too much memory", None, "body_too_large", 413)
    packed = msgspec.msgpack.encode(told)
    answers.writelines((len(packed).to_bytes(4, "little"), packed, *follows))
    answers.flush()


def frame(asks: BinaryIO, kind: type[S]) -> S | None:
    """Return the next frame; None at the end."""
    length = asks.read(4)
    return msgspec.msgpack.decode(asks.read(int.from_bytes(length, "little")), type=kind) if length else None
