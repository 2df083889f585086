"""What a plugin inside an engine can be told, by environment variables or in a TOML file.

``FAIRLEAD_PLUGIN_CONFIG`` names the file; ``FAIRLEAD_PLUGIN_ORDER`` and so on stand above what is in it.
"""

import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from fairlead.core.ordering import ORDERINGS, Ordering, OrderingContext, make_ordering
from fairlead.core.params import PolicyError, nearest
from fairlead.core.registry import parse_spec

PREFIX = "FAIRLEAD_PLUGIN_"
FILE_VARIABLE = PREFIX + "CONFIG"
CLIENT_ID_LENGTH = 256
"""Longest client id, in characters; longer ones are cut."""


class SettingsError(ValueError):
    """A setting that is unknown, ill-typed or not possible here. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """What a plugin does. Each field is a key of the file and, in capitals, an environment variable."""

    order: str = "dlpm"
    """Who goes next: an ordering policy, as ``name`` or ``name:key=value,...``."""
    weights: Mapping[str, float] = field(default_factory=lambda: types.MappingProxyType({}))
    """Weights of clients, above 0; 1 for the others. In the environment ``alice=2,bob=0.5``."""
    default_client: str = "default"
    """Who pays for requests that name neither a client nor a session."""
    metrics_file: str = ""
    """File that the figures of every client are written to, as JSON; none if empty."""
    metrics_interval_secs: float = 1.0
    """Time between two writes of that file."""
    metrics_clients: int = 100
    """Clients with figures of their own, the most served first; the others are added up."""


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


def client_of(settings: PluginSettings, *names: object) -> str:
    """Return the first of ``names`` that is a name (neither None nor empty), else the default client."""
    for name in names:
        if name is not None and name != "":
            return str(name)[:CLIENT_ID_LENGTH]
    return settings.default_client


def _read_file(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"{FILE_VARIABLE}: cannot read {path}: {error.strerror}") from None
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
        pairs = (part.partition("=") for part in text.split(",") if part.strip())
        return {client.strip(): _number(f"weights.{client.strip()}", weight) for client, _, weight in pairs}
    if key in {"metrics_interval_secs", "metrics_clients"}:
        return _number(key, text)
    return text


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"setting '{key}' takes a number, not {text!r}") from None


def _checked(given: Mapping[str, object]) -> PluginSettings:
    """Check every value and return the settings. Raises ``SettingsError``."""
    plain = PluginSettings()
    texts = {}
    for key, default in (
        ("order", plain.order),
        ("default_client", plain.default_client),
        ("metrics_file", plain.metrics_file),
    ):
        text = given.get(key, default)
        if not isinstance(text, str) or (default and not text):
            raise SettingsError(f"setting '{key}' takes a text, not {text!r}")
        texts[key] = text
    weights = given.get("weights", {})
    if not isinstance(weights, dict):
        raise SettingsError("setting 'weights' takes a table: [weights] with NAME = WEIGHT")
    interval = _above_0("metrics_interval_secs", given.get("metrics_interval_secs", 1.0))
    clients = given.get("metrics_clients", plain.metrics_clients)
    if isinstance(clients, bool) or not isinstance(clients, (int, float)) or clients < 0 or clients % 1:
        raise SettingsError(f"setting 'metrics_clients' takes a whole number of at least 0, not {clients!r}")
    return PluginSettings(
        **texts,
        weights=types.MappingProxyType(
            {client: _above_0(f"weights.{client}", weight) for client, weight in weights.items()}
        ),
        metrics_interval_secs=interval,
        metrics_clients=int(clients),
    )


def _above_0(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise SettingsError(f"setting '{key}' takes a number above 0, not {value!r}")
    return float(value)
