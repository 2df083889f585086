"""An HTTP/1.1 server for answers that may take minutes: llhttp parses, uvloop moves the bytes.

A ``Handler`` is called once a request is complete. It answers through the ``Exchange`` at once or
later, whole or in parts, and hears at once when the client is gone. What a client does not take at
once waits in memory; see ``fairlead.http.backlog``.

Framing is strict: whatever llhttp or RFC 9112 calls ambiguous (two lengths, length and chunking,
bare line feeds, folded headers, ...) is refused with 400 and the connection closed, because the
next hop might read it differently. Requests on one connection are answered one at a time, in order.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fairlead.http.backlog import Backlogs
from fairlead.http.bodies import Bodies
from fairlead.http.connection import ServerConnection
from fairlead.http.exchange import Exchange, Listener
from fairlead.http.messages import Headers, Response, error_response, json_response
from fairlead.http.routes import Router

__all__ = [
    "Exchange",
    "Handler",
    "Headers",
    "HttpLimits",
    "Listener",
    "Response",
    "Router",
    "Server",
    "error_response",
    "json_response",
]

log = logging.getLogger("fairlead.http")

Handler = Callable[[Exchange], Response | Awaitable[Response | None] | None]
"""Returns the answer, or an awaitable of it, or None when it answers through the exchange itself."""


class HttpLimits(NamedTuple):
    """What a server puts up with. Times in seconds, sizes in bytes."""

    header_bytes: int = 32_768
    header_count: int = 100
    body_bytes: int = 64 * 2**20
    bodies_total_bytes: int = 2**30
    """Bytes of bodies that are held at once; beyond them the largest that is still coming is refused."""
    header_timeout: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout: float = 60.0
    """From the end of the headers to the end of the body."""
    idle_timeout: float = 75.0
    """Between requests on one connection."""
    write_timeout: float = 60.0
    """How long a client may take nothing of an answer that is ready for it."""
    answer_buffer_bytes: int = 16 * 2**20
    """Bytes of answers that may wait for one client; beyond them it is cut off."""
    answer_buffer_total_bytes: int = 512 * 2**20
    """Bytes of answers that may wait for all clients; beyond them the one furthest behind is cut off."""
    pipelined: int = 32
    """Requests that a client may send ahead of their answers."""


class Server:
    """Listens, keeps the set of connections, enforces their deadlines, drains.

    All methods are called on the event loop's thread.
    """

    def __init__(self, handler: Handler, limits: HttpLimits | None = None) -> None:
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.connections: set[ServerConnection] = set()
        self.bodies = Bodies(self.limits.bodies_total_bytes)
        self.backlogs = Backlogs(self.limits.answer_buffer_bytes, self.limits.answer_buffer_total_bytes)
        self.draining = False
        self._empty = asyncio.Event()
        self._listening: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[None]] = set()

    async def listen(self, host: str = "127.0.0.1", port: int = 0, sock: socket.socket | None = None) -> int:
        """Accept connections on ``host``:``port``, or on ``sock``; return the port.

        Raises OSError when the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        if sock is not None:
            server = await loop.create_server(lambda: ServerConnection(self), sock=sock, backlog=4096)
        else:
            server = await loop.create_server(lambda: ServerConnection(self), host, port, backlog=4096)
        self._listening.append(server)
        if self._sweeper is None:
            self._sweep()
        return int(server.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Take no new connections; close idle ones; the others close after their present answer."""
        self.draining = True
        for server in self._listening:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - an answer in time or False, not an error
        """Stop listening and wait for the answers under way; return whether all ended in time."""
        self.stop_listening()
        if self.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._empty.wait()
        return not self.connections

    async def close(self) -> None:
        """End at once: abort every connection and cancel every handler."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for server in self._listening:
            await server.wait_closed()
        self._listening.clear()
        await asyncio.sleep(0)  # aborted transports report their loss in the loop's next round

    def forget(self, connection: ServerConnection) -> None:
        """Called by a connection that is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def make_room(self, connection: ServerConnection) -> bool:
        """Return whether ``connection`` may go on with its body; refuse a larger one that is still coming."""
        bodies = self.bodies
        while bodies.held > bodies.total:
            bodies.refused += 1
            largest = max(self.connections, key=lambda c: c.incoming)
            if largest.incoming <= connection.incoming:
                return False
            largest.refuse_body()
        return True

    def run(self, exchange: Exchange) -> None:
        """Call the handler. Whatever it raises is answered with 500 and logged, never sent."""
        try:
            result = self.handler(exchange)
        except Exception:
            log.exception("handler failed on %s", exchange.path)
            exchange.fail()
            return
        if result is None:
            return
        if isinstance(result, Response):
            exchange.reply(result)
            return
        task = asyncio.ensure_future(self._await(exchange, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if exchange.listener is None:
            exchange.listener = _CancelOnLoss(task)

    async def _await(self, exchange: Exchange, result: Awaitable[Response | None]) -> None:
        try:
            response = await result
        except Exception:
            log.exception("handler failed on %s", exchange.path)
            exchange.fail()
        else:
            if response is not None:
                exchange.reply(response)

    def _sweep(self) -> None:
        """Look at every deadline now and then: cheaper than a timer a request."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            if connection.deadline and now >= connection.deadline:
                connection.timed_out()
        limits = self.limits
        shortest = min(
            limits.header_timeout, limits.body_timeout, limits.idle_timeout, limits.write_timeout, 4.0
        )
        self._sweeper = loop.call_later(max(0.01, shortest / 4), self._sweep)


class _CancelOnLoss:
    """Listens for a handler that is a coroutine: the client's loss cancels it."""

    __slots__ = ("task",)

    def __init__(self, task: asyncio.Future[None]) -> None:
        self.task = task

    def disconnected(self) -> None:
        self.task.cancel()

    def pause(self) -> bool:
        """Coroutines await ``Exchange.drained``."""
        return True

    def resume(self) -> None:
        """Nothing to do."""
