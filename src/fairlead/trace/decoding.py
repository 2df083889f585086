"""JSON of files that are not trusted: whatever is wrong with it is a ValueError that says so."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


class ShapeError(ValueError):
    """The text is JSON, but not of the wanted form. The message names the field."""


def decode(text: bytes, form: type[T]) -> T:
    """Return ``text`` as a ``form``. Raises ``ShapeError``, or ValueError if it is no JSON."""
    try:
        return msgspec.json.decode(text, type=form)
    except msgspec.ValidationError as error:
        raise ShapeError(str(error).replace(" | null`", "`")) from None  # a field may be absent, hardly null
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
