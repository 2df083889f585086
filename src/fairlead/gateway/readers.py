"""Large bodies are read by processes beside the gateway, so that nobody waits for them.

A body of 53 MiB, an array of tokens, took the event loop 4 s to decode and hash. A thread would not help:
one call of the decoder holds the interpreter for hundreds of milliseconds. So bodies beyond ``LARGE_BYTES``
go to a process, in the pieces they came in, and what matters of them comes back.

There are two lanes, by size, so that a body of some hundred KiB does not wait behind one of 50 MiB. A lane
reads one body at a time, and takes clients in turn. Its process starts with the first body and is
started again when it died.
"""

import asyncio
import contextlib
import logging
import sys
from array import array
from collections import deque
from typing import NamedTuple

import msgspec

from fairlead.core.model import BlockKey
from fairlead.gateway.prompt import Chain
from fairlead.gateway.reading import Answer, Ask, Edit, Refused, Setup
from fairlead.gateway.wire import Asked, BadRequest, decode
from fairlead.http.bodies import Body
from fairlead.http.client import Buffer

log = logging.getLogger("fairlead.gateway")

LARGE_BYTES = 131_072
"""Bodies of up to this size are read at once: that takes 5 ms at the very most."""
LANES = (4 * 2**20, 2**62)
"""The largest body of each lane."""
TIMEOUT_S = 60.0
"""The longest that one body may take. Any that an engine could serve takes a second."""
CODE = f"import sys; sys.path[:] = {sys.path!r}; from fairlead.gateway.body_reader import main; main()"
"""What the process runs. It finds modules where we do, and none in the working directory."""
_DIED = (OSError, EOFError, RuntimeError)
"""What it looks like when the process is gone; uvloop raises RuntimeError for a pipe that it has closed."""
_READ_BYTES = 65_536
_KEYS_AT_ONCE = 8192


class LargeBody(NamedTuple):
    """A body in the forms that engines may get, each in pieces, over the same memory."""

    body: Body
    """Is counted while it is kept."""
    forms: dict[str, list[Buffer]]
    """By the kind of the engine."""


class Read(NamedTuple):
    """What a large body says."""

    asked: Asked
    """Without its texts."""
    chain: Chain
    body: LargeBody


class ReaderError(Exception):
    """The process died over a body, or took too long."""


class Readers:
    """The lanes."""

    def __init__(self, setup: Setup) -> None:
        self.lanes = [_Lane(_Process(setup)) for _ in LANES]

    async def read(self, client: str, ask: Ask, body: Body) -> Read:
        """Return what ``body`` says. Raises ``BadRequest``, ``ReaderError``."""
        lane = next(lane for lane, most in zip(self.lanes, LANES, strict=True) if body.size <= most)
        return await lane.read(client, ask, body)

    @property
    def started(self) -> int:
        """How often a process was started."""
        return sum(lane.process.started for lane in self.lanes)

    async def close(self) -> None:
        """End the processes. Nobody may wait for a body any more."""
        for lane in self.lanes:
            await lane.close()


class _Lane:
    """Bodies that wait for one process, by client."""

    def __init__(self, process: "_Process") -> None:
        self.process = process
        self._waiting: dict[str, deque[tuple[Ask, Body, asyncio.Future[Read]]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def read(self, client: str, ask: Ask, body: Body) -> Read:
        done: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((ask, body, done))
        if self._task is None:
            self._task = asyncio.ensure_future(self._work())
        return await done

    async def _work(self) -> None:
        try:
            while self._waiting:
                client = next(iter(self._waiting))
                theirs = self._waiting.pop(client)
                ask, body, done = theirs.popleft()
                if theirs:
                    self._waiting[client] = theirs  # last again
                if done.cancelled():
                    continue
                try:
                    read = await self.process.read(ask, body)
                except (BadRequest, ReaderError) as error:
                    if not done.done():
                        done.set_exception(error)
                except Exception:
                    log.exception("a request body could not be read")
                    if not done.done():
                        done.set_exception(ReaderError("the body could not be read"))
                else:
                    if not done.done():
                        done.set_result(read)
                del body, ask, done
        finally:
            self._task = None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for theirs in self._waiting.values():
            for _, _, done in theirs:
                done.cancel()
        self._waiting.clear()
        await self.process.stop()


class _Process:
    """A ``body_reader``. Started when it is needed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._process: asyncio.subprocess.Process | None = None
        self.started = 0
        """How often it was started."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def read(self, ask: Ask, body: Body) -> Read:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told = await self._read(ask, body)
        except TimeoutError:
            await self.stop()
            log.warning("a request body of %d bytes took longer than %g s to read", body.size, TIMEOUT_S)
            raise ReaderError("the body takes too long to read") from None
        except _DIED as error:
            await self.stop()
            log.warning("the process that read a request body of %d bytes ended: %s", body.size, error)
            raise ReaderError("the body could not be read") from None
        except BaseException:
            await self.stop()  # cancelled in the middle of it
            raise
        if isinstance(told, Refused):
            raise BadRequest(told.message, told.param, told.code, told.status)
        return told

    async def _read(self, ask: Ask, body: Body) -> Read | Refused:
        if self._process is not None:
            try:
                return await self._exchange(self._process, ask, body)
            except _DIED:
                await self.stop()  # it had left, perhaps, to make room: see ``body_reader.LEAVE_AT``
        return await self._exchange(await self._start(), ask, body)

    async def _exchange(self, process: asyncio.subprocess.Process, ask: Ask, body: Body) -> Read | Refused:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        packed = msgspec.msgpack.encode(ask)
        stdin.write(len(packed).to_bytes(4, "little") + packed)
        for part in body.parts:
            stdin.write(part)
            await stdin.drain()
        length = int.from_bytes(await stdout.readexactly(4), "little")
        told = msgspec.msgpack.decode(await stdout.readexactly(length), type=Answer)
        if isinstance(told, Refused):
            return told
        keys = await _keys(stdout, told.keys)
        made = [await _edited(stdout, body, edit) for edit in told.edits]
        forms = {kind: made[n] for kind, n in told.forms.items()}
        chain = Chain(keys, told.prompt_size, told.parts)
        return Read(decode(ask.kind, told.slim), chain, LargeBody(body, forms))

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", CODE, stdin=pipe, stdout=pipe
        )
        self.started += 1
        assert process.stdin is not None
        packed = msgspec.msgpack.encode(self._setup)
        process.stdin.write(len(packed).to_bytes(4, "little") + packed)
        return process

    async def stop(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _keys(stdout: asyncio.StreamReader, count: int) -> list[BlockKey]:
    keys: list[BlockKey] = []
    while count:
        part = array("Q")
        part.frombytes(await stdout.readexactly(8 * min(count, _KEYS_AT_ONCE)))
        keys += part.tolist()
        count -= len(part)
    return keys


async def _edited(stdout: asyncio.StreamReader, body: Body, edit: Edit) -> list[Buffer]:
    """Return the pieces of an edited body."""
    parts: list[Buffer] = []
    left = edit.size
    while left:
        part = await stdout.read(min(left, _READ_BYTES))
        if not part:
            raise EOFError("it ended in the middle of its answer")
        parts.append(part)
        left -= len(part)
    skip = edit.at
    for piece in body.parts:
        if skip < len(piece):
            parts.append(memoryview(piece)[skip:] if skip else piece)
        skip = max(0, skip - len(piece))
    return parts
