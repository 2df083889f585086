"""Which handler answers a path. Unknown paths get 404, other methods 405, in OpenAI's error shape."""

from collections.abc import Awaitable, Callable

from fairlead.http.exchange import Exchange
from fairlead.http.messages import Response, error_response

Handler = Callable[[Exchange], Response | Awaitable[Response | None] | None]


class Router:
    """Handlers by exact path and method; itself a handler. HEAD is answered wherever GET is."""

    def __init__(self) -> None:
        self._routes: dict[bytes, dict[bytes, Handler]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Have ``handler`` answer ``method`` on ``path``."""
        methods = self._routes.setdefault(path.encode(), {})
        methods[method.encode()] = handler
        if method == "GET":
            methods.setdefault(b"HEAD", handler)

    def __call__(self, exchange: Exchange) -> Response | Awaitable[Response | None] | None:
        """Pass the exchange to its handler."""
        methods = self._routes.get(exchange.target) or self._routes.get(exchange.path)
        if methods is None:
            path = exchange.path.decode("latin-1")
            return error_response(404, f"no such path: {path}", "unknown_url")
        handler = methods.get(exchange.method)
        if handler is None:
            allowed = b", ".join(sorted(methods))
            response = error_response(405, f"use {allowed.decode()} here", "method_not_allowed")
            return response._replace(headers=((b"allow", allowed),))
        return handler(exchange)
