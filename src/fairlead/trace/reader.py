"""What a reader is. ``fairlead.trace.reading`` registers them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fairlead.core.params import Param, Values
from fairlead.trace.files import Sample, content_hash
from fairlead.trace.model import ONE_CLIENT, Trace

__all__ = ["NO_CLIENTS", "ONE_CLIENT", "Reader", "identify"]

NO_CLIENTS = "the source names no clients: all requests belong to one"


class Reader(NamedTuple):
    """One trace format."""

    name: str
    summary: str
    """What it looks like, in a line: shown where a format is not recognised."""
    sniff: Callable[[Sample], bool]
    """Whether a source looks like this format. At most one reader may say so."""
    read: Callable[[Path, Values], Trace]
    """Reads it. The trace's ``identity`` must name content and options (see ``identify``)."""
    params: tuple[Param, ...] = ()
    """Options of this format."""
    title: str = ""
    """How messages call it, such as "BurstGPT CSV"; empty: by its name."""


def identify(form: str, path: Path, values: Values) -> str:
    """Return an identity from the source's bytes, the format and its options."""
    state = f"{form} {content_hash(path)} {sorted(values.items())}"
    return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()
