"""What both sides of HTTP/1.1 share: reason phrases, heads, answers, errors in OpenAI's shape."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

import msgspec

Headers = list[tuple[bytes, bytes]]
"""Header fields in the order received; names in lower case."""

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

FULL_READ = 256_000
"""Bytes of uvloop's read buffer. After a full one libuv reads on, up to 32 times, and serves nobody else."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that belong to one connection and are never passed on (RFC 9110 section 7.6.1), and the
body length, which whoever frames the message states itself."""


def status_line(status: int) -> bytes:
    """Return the status line; an unregistered code gets an empty phrase."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the status line and ``headers``, each ended by CRLF, without the closing blank line."""
    return status_line(status) + b"".join([b"%b: %b\r\n" % field for field in headers])


class Response(NamedTuple):
    """A whole answer."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_response(
    value: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Response:
    """Return ``value`` as JSON."""
    return Response(status, msgspec.json.encode(value), headers=headers)


_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None, kind: str | None = None
) -> bytes:
    """Return OpenAI's error object; ``kind`` is its ``type``, by default what ``status`` implies."""
    if kind is None:
        kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: int | None = None,
) -> Response:
    """Return an error in OpenAI's shape; ``retry_after_s`` adds Retry-After."""
    extra = () if retry_after_s is None else ((b"retry-after", b"%d" % retry_after_s),)
    return Response(status, error_body(status, message, code, param), headers=extra)
