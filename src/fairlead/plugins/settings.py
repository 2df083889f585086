"""What a plugin inside an engine can be told, by environment variables or in a TOML file.

``FAIRLEAD_PLUGIN_CONFIG`` names the file; ``FAIRLEAD_PLUGIN_ORDER`` and so on stand above what is in it.
"""

import hashlib
import reprlib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from fairlead.core.model import ClientId
from fairlead.core.ordering import ORDERINGS, Ordering, OrderingContext, make_ordering
from fairlead.core.outside import amount, whole
from fairlead.core.params import PolicyError, nearest
from fairlead.core.registry import parse_spec

PREFIX = "FAIRLEAD_PLUGIN_"
FILE_VARIABLE = PREFIX + "CONFIG"
NAME_LENGTH = 223
"""Longest name of a client that is kept as it is, in characters."""
DIGEST_BYTES = 16
"""Of the digest that takes the place of the rest of a longer name; twice as many characters."""
SESSION = "session:"
"""What begins the account of a session, so that no session is charged to the client of that name."""
WEIGHTS = (1e-6, 1e6)
INTERVAL_SECS = (0.01, 86_400.0)
MOST_CLIENTS = 10_000


class SettingsError(ValueError):
    """A setting that is unknown, ill-typed or not possible here. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """What a plugin does. Each field is a key of the file and, in capitals, an environment variable."""

    order: str = "dlpm"
    """Who goes next: an ordering policy, as ``name`` or ``name:key=value,...``."""
    weights: Mapping[str, float] = field(default_factory=lambda: types.MappingProxyType({}))
    """Weights of clients, 0.000001 to 1000000; 1 for the others. In the environment ``alice=2,bob=0.5``."""
    default_client: str = "default"
    """Who pays for requests that name neither a client nor a session."""
    metrics_file: str = ""
    """File that the figures of every client are written to, as JSON; none if empty."""
    metrics_interval_secs: float = 1.0
    """Time between two writes of that file, 0.01 to 86400 seconds."""
    metrics_clients: int = 100
    """Clients with figures of their own, the most served first, 10000 at most; the others are added up."""


_KEYS = tuple(f.name for f in fields(PluginSettings))


def read_settings(environ: Mapping[str, str]) -> PluginSettings:
    """Resolve the settings from ``environ`` and the file that it names. Raises ``SettingsError``."""
    given: dict[str, object] = {}
    path = environ.get(FILE_VARIABLE)
    if path:
        for key, value in _read_file(path).items():
            given[_known(key, key)] = value
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable != FILE_VARIABLE:
            key = _known(variable[len(PREFIX) :].lower(), variable)
            given[key] = _from_text(key, text)
    return _checked(given)


def plugin_ordering(settings: PluginSettings) -> Ordering:
    """Make the policy for one engine's queue, number 0. Raises ``SettingsError``.

    An engine sees its own queue alone, so accounts are kept for one worker. It stops by itself at the first
    request that has no room, so that nothing can be skipped.
    """
    try:
        name, given = parse_spec(settings.order)
        params = {param.name for param in ORDERINGS.get(name).params}
        values = ORDERINGS.resolve(name, given)
    except PolicyError as error:
        raise SettingsError(f"order: {error}") from None
    if values.get("on_no_fit") == "skip":
        raise SettingsError("order: on_no_fit=skip is not possible here: engines stop at who has no room")
    if given.get("scope", "worker") != "worker":
        raise SettingsError(f"order: scope={given['scope']} is not possible here: an engine knows one queue")
    if "scope" in params:
        given["scope"] = "worker"
    ordering = make_ordering(name, given, OrderingContext())
    for client, weight in settings.weights.items():
        ordering.set_weight(client, weight)
    return ordering


def client_of(settings: PluginSettings, client: object, session: object = None) -> ClientId:
    """Return whom a request is charged to: its client, else its session, else the default client.

    Both come from outside. What is no name is as if it was not there.
    """
    name = name_of(client)
    if name is not None:
        return name
    name = name_of(session)
    return settings.default_client if name is None else SESSION + name


def name_of(given: object) -> str | None:
    """Return a name of bounded length for a text or a whole number; None if ``given`` is neither.

    Two names never become one: a digest stands for what is cut off, and nothing else is that long. Empty
    texts are no names, nor are texts with half of a surrogate pair, which no JSON or log could hold.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given) if -(2**63) <= given < 2**64 else None
    if not isinstance(given, str) or not given:
        return None
    try:
        raw = given.encode()
    except UnicodeEncodeError:
        return None
    if len(given) <= NAME_LENGTH:
        return given
    return given[:NAME_LENGTH] + "~" + hashlib.blake2b(raw, digest_size=DIGEST_BYTES).hexdigest()


def _read_file(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(
            f"{FILE_VARIABLE}: cannot read {path}: {error.strerror}. Name a file that exists and that the"
            " engine may read."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{FILE_VARIABLE}: {path} is not TOML: {error}") from None


def _known(key: str, shown: str) -> str:
    if key not in _KEYS:
        hint = nearest(key, _KEYS)
        raise SettingsError(f"unknown setting '{shown}' (valid: {', '.join(_KEYS)}){hint}")
    return key


def _from_text(key: str, text: str) -> object:
    """Turn an environment variable's text into what the file would have."""
    if key == "weights":
        return _weights_from_text(text)
    if key in {"metrics_interval_secs", "metrics_clients"}:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _weights_from_text(text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        client, _, weight = (piece.strip() for piece in part.rpartition("="))
        if not client:
            raise _wrong("weights", "NAME=WEIGHT,NAME=WEIGHT", part)
        if client in found:
            raise SettingsError(f"setting 'weights' has client '{client}' twice: leave one of them out")
        try:
            found[client] = float(weight)
        except ValueError:
            found[client] = weight
    return found


def _checked(given: Mapping[str, object]) -> PluginSettings:
    """Check every value and return the settings. Raises ``SettingsError``."""
    plain = PluginSettings()
    interval = given.get("metrics_interval_secs", plain.metrics_interval_secs)
    clients = given.get("metrics_clients", plain.metrics_clients)
    most_clients = whole(clients, MOST_CLIENTS)
    if most_clients is None:
        raise _wrong("metrics_clients", f"a whole number from 0 to {MOST_CLIENTS}", clients)
    default_client = name_of(given.get("default_client", plain.default_client))
    if default_client is None:
        raise _wrong("default_client", "a name, which is not empty", given["default_client"])
    order = _text("order", given.get("order", plain.order))
    if not order:
        raise _wrong("order", f"the name of a policy ({', '.join(ORDERINGS.names())})", order)
    return PluginSettings(
        order=order,
        default_client=default_client,
        metrics_file=_text("metrics_file", given.get("metrics_file", plain.metrics_file)),
        weights=_weights(given.get("weights", {})),
        metrics_interval_secs=_number("metrics_interval_secs", interval, *INTERVAL_SECS),
        metrics_clients=most_clients,
    )


def _weights(given: object) -> Mapping[str, float]:
    if not isinstance(given, dict):
        raise _wrong("weights", "a table, [weights] with lines NAME = WEIGHT", given)
    found = {}
    for client, weight in given.items():
        name = name_of(client)
        if name is None:
            raise _wrong("weights", "names of clients, which are not empty", client)
        found[name] = _number(f"weights.{name}", weight, *WEIGHTS)
    return types.MappingProxyType(found)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "a text", value)
    return value


def _number(key: str, value: object, least: float, most: float) -> float:
    found = amount(value, most, least)
    if found is None:
        raise _wrong(key, f"a number from {least:g} to {most:g}", value)
    return found


def _wrong(key: str, takes: str, value: object) -> SettingsError:
    """Say what a setting takes, what it was given, and where to put it right."""
    top = key.partition(".")[0]
    try:
        shown = reprlib.repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        shown = "such a large number"
    return SettingsError(
        f"setting '{key}' takes {takes}, not {shown}. Change {PREFIX}{top.upper()} in the environment, or"
        f" '{top}' in the file that {FILE_VARIABLE} names."
    )
