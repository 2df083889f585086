"""The gateway's configuration: one frozen object, resolved once from file, environment and flags.

Later sources win: defaults, then the TOML file, then ``FAIRLEAD_*`` variables, then flags. Names,
defaults and help come from ``Config`` alone; flags, environment, file and docs are derived from it.
An unknown or ill-typed option is a ``ConfigError`` that names the key and what would be valid.
"""

import argparse
import hashlib
import ipaddress
import reprlib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from fairlead.core.params import SWITCH_WORDS, nearest
from fairlead.http.address import parse_address

ENV_PREFIX = "FAIRLEAD_"
OTHERS = frozenset({"CONFIG", "PURE", "CACHE", "DATA", "COMPILE", "STEP_LOG", "TORCH_INDEX"})
"""Variables of that prefix that are no options but belong to other commands, builds and tests. Those of
plugins inside engines begin with ``PLUGIN_``."""
RENAMED = {"worker_sequences": "worker_max_num_seqs"}
"""Options that had another name in an earlier version: an error says the new one."""
KEY_PREFIX = "sha256:"
_SECRET_CHARS = 16
DEFAULT_CLIENT = "default"
MOST_NAME = 200
"""Characters of a client's name."""
ENGINES_POLICY = "d2lpm"
"""The routing policy where engines order their queues themselves."""


class ConfigError(ValueError):
    """An option that is unknown, ill-typed or out of range. The message names it."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What is known beforehand of one client."""

    weight: float = 1.0
    api_keys: tuple[str, ...] = ()
    """Hashes of its keys, ``sha256:`` and 64 hex digits."""


def _option(default: object, help_text: str, low: float | None = None, *, secret: bool = False) -> Any:
    """``secret``: the value is in no text that is made of the configuration."""
    return field(default=default, repr=not secret, metadata={"help": help_text, "low": low, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything ``fairlead serve`` can be told. Times are in seconds, sizes in bytes."""

    host: str = _option("127.0.0.1", "address to listen on; 0.0.0.0 for all interfaces")
    port: int = _option(8080, "port to listen on; 0 takes a free one", 0)
    worker_urls: tuple[str, ...] = _option(
        (), "addresses of the engines, such as http://a:8000; without any, two embedded engines are started"
    )
    policy: str = _option("marginal", "routing policy, decides which worker: name or name:key=value,...")
    order: str = _option("dlpm", "ordering policy, decides who goes next: name or name:key=value,...")
    engine_ordering: bool = _option(
        False,
        "send requests at once; fairlead's plugin in each engine orders them. Then 'order' is refused, and"
        f" 'policy' is {ENGINES_POLICY} unless given",
    )
    seed: int = _option(0, "seed of the policies' random streams")

    api_key: tuple[str, ...] = _option(
        (),
        "keys that clients must send, as KEY or NAME=KEY; KEY in plain or as sha256:HEX; kept hashed",
        secret=True,
    )
    trusted_proxies: tuple[str, ...] = _option(
        (), "networks (CIDR) of proxies whose x-llm-d-inference-fairness-id or x-fairlead-client is believed"
    )
    use_body_user: bool = _option(False, "take the body's 'user' for the client, if nothing else names it")
    worker_api_key: str = _option(
        "",
        "key to send to the engines, as Bearer, or with its scheme ('Basic BASE64'); if there is none, and"
        " clients need no keys, theirs is passed on",
        secret=True,
    )

    queue_size: int = _option(10_000, "most requests that may wait in all; more are refused with 429", 0)
    queue_timeout_secs: float = _option(60.0, "longest wait for a worker, then 503; 0 waits for ever", 0)
    connect_timeout_secs: float = _option(5.0, "longest wait for a connection to a worker", 0.001)
    request_timeout_secs: float = _option(
        600.0, "longest wait for the first byte of a worker's answer", 0.001
    )
    stream_timeout_secs: float = _option(300.0, "longest silence within a worker's answer", 0.001)
    drain_timeout_secs: float = _option(30.0, "how long a shutdown waits for running and queued requests", 0)
    max_body_bytes: int = _option(64 * 2**20, "largest request body; a larger one is refused with 413", 1)
    bodies_total_bytes: int = _option(
        2**30,
        "bytes of large request bodies held at once; beyond that the largest that is coming gets 503",
        2**20,
    )
    answer_buffer_bytes: int = _option(
        16 * 2**20,
        "most bytes of one answer that may wait for a slow client; beyond that it is cut off",
        65_536,
    )
    answer_buffer_total_bytes: int = _option(
        512 * 2**20,
        "most bytes that may wait for all slow clients; beyond that the answer furthest behind is cut off",
        65_536,
    )

    max_attempts: int = _option(3, "most workers that one request is tried on", 1)
    retry_ratio: float = _option(0.2, "retries allowed for each request that arrives", 0)
    retry_statuses: tuple[str, ...] = _option(
        ("429", "500", "502", "503", "504"), "status codes of a worker after which another worker is tried"
    )
    cb_failure_threshold: int = _option(
        5, "failed requests in a row after which a worker gets no more, if they are its fault", 1
    )
    cb_timeout_secs: float = _option(
        10.0, "how long such a worker gets no requests before it is tried again", 0
    )
    health_interval_secs: float = _option(5.0, "time between health checks of a worker", 0.01)
    health_timeout_secs: float = _option(3.0, "longest wait for a health check's answer", 0.01)
    health_failures: int = _option(2, "failed health checks in a row after which a worker is out", 1)

    worker_max_num_seqs: int = _option(
        0, "most sequences in a worker's batch; 0 asks the engine, or finds out (up to 256)", 0
    )
    worker_kv_tokens: int = _option(0, "tokens of a worker's KV pool; 0 asks the engine", 0)
    worker_queue: int = _option(10_000, "most sequences of requests that may wait for one worker", 1)
    load_interval_secs: float = _option(1.0, "time between readings of a worker's own load figures", 0.01)
    ask_usage: bool = _option(
        True, "ask engines for usage in streams; clients that did not ask do not see it"
    )
    kv_events: bool = _option(
        True, "follow the engines' KV-cache events where they are offered; needs 'tokenizer'"
    )
    tokenizer: str = _option(
        "", "folder with tokenizer.json: prompts become the engine's token blocks instead of byte blocks"
    )
    block_tokens: int = _option(16, "tokens in a block of the prefix index", 1)

    prefix_secret: str = _option(
        "",
        "text that the keys of prompt blocks depend on, so that no client can forge them; at least 16"
        " characters. If there is none, one is drawn at the start. Several processes that must agree need it",
        secret=True,
    )

    metrics_clients: int = _option(50, "most clients with metrics of their own; the others are added up", 0)
    log_level: str = _option("info", "debug, info, warning or error")
    decision_log: str = _option(
        "", "file for every event and decision, which 'fairlead verify' and the simulator read"
    )
    decision_log_max_bytes: int = _option(256 * 2**20, "size at which the decision log is rotated", 2**16)
    decision_log_files: int = _option(4, "most files of the decision log, the current one included", 1)

    clients: Mapping[str, ClientConfig] = field(
        default_factory=lambda: types.MappingProxyType({}),
        metadata={"help": "tables [clients.NAME] with weight (> 0, default 1) and api_keys (list)"},
    )

    @property
    def worker_authorization(self) -> bytes:
        """The Authorization field that engines get; empty if there is no key for them."""
        key = self.worker_api_key
        scheme = "" if not key or key.startswith(("Basic ", "Bearer ")) else "Bearer "
        return f"{scheme}{key}".encode()

    @property
    def queue_order(self) -> str:
        """Who goes next of those that wait here: where engines order, that is while no worker is up."""
        return "fcfs" if self.engine_ordering else self.order


_FIELDS: dict[str, Field[Any]] = {f.name: f for f in fields(Config)}
OPTIONS = {name: f for name, f in _FIELDS.items() if name != "clients"}
"""What can be given in file, environment and flags; ``clients`` only in the file."""


def hash_key(key: str) -> str:
    """Return ``sha256:HEX`` of an API key; a key given in that form stays as it is."""
    if key.startswith(KEY_PREFIX):
        digits = key[len(KEY_PREFIX) :].lower()
        if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise ConfigError("api_key: one of the keys is not sha256: and 64 hex digits")
        return KEY_PREFIX + digits
    return KEY_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and a flag for every option; an absent flag leaves None in the namespace."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options")
    for name, option in OPTIONS.items():
        flag = "--" + name.replace("_", "-")
        default = _default_of(option)
        shown = "" if default in {(), ""} else f" (default: {_show(default)})"
        text = (option.metadata["help"] + shown).replace("%", "%%")
        if option.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif get_origin(option.type) is tuple:
            parser.add_argument(flag, nargs="+", action="extend", metavar="VALUE", help=text)
        else:
            parser.add_argument(flag, metavar="VALUE", help=text)
    for name in RENAMED:
        parser.add_argument("--" + name.replace("_", "-"), nargs="*", help=argparse.SUPPRESS)


def from_args(args: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Resolve the configuration from parsed flags. Raises ``ConfigError``."""
    flags = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    for old, new in RENAMED.items():
        if getattr(args, old, None) is not None:
            before, now = (f"--{name.replace('_', '-')}" for name in (old, new))
            raise ConfigError(f"unknown option '{before}'; it is called '{now}' now")
    path = args.config if args.config is not None else environ.get(ENV_PREFIX + "CONFIG")
    return resolve(read_file(path) if path else {}, environ, flags)


def read_file(path: str) -> dict[str, object]:
    """Return the file's tables. Raises ``ConfigError`` when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def resolve(
    file: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Merge the sources, check every value, return the one object. Raises ``ConfigError``."""
    given: dict[str, Any] = {}
    for key, value in file.items():
        if key == "clients":
            given[key] = _clients(value)
        else:
            option = OPTIONS[_known(key, OPTIONS)]
            given[key] = _value(option, value, "", strict=True)
    for variable, text in (environ or {}).items():
        name = variable.removeprefix(ENV_PREFIX)
        if name != variable and name not in OTHERS and not name.startswith("PLUGIN_"):
            key = _known(name.lower(), OPTIONS, variable)
            given[key] = _value(OPTIONS[key], text, f" (from {variable})", strict=False)
    for key, value in (flags or {}).items():
        option = OPTIONS[_known(key, OPTIONS)]
        given[key] = _value(option, value, "", strict=False)
    if given.get("engine_ordering"):
        if "order" in given:
            raise ConfigError(
                "option 'order' is for queues of the gateway's own; with 'engine_ordering' it has none:"
                " give it to the engines, as FAIRLEAD_PLUGIN_ORDER"
            )
        given.setdefault("policy", ENGINES_POLICY)
    if "api_key" in given:
        given["api_key"] = tuple(_hashed(entry) for entry in given["api_key"])
    return _checked(Config(**given))


def _hashed(entry: str) -> str:
    """Return ``NAME=sha256:HEX`` of KEY or NAME=KEY, so that no key is kept in plain."""
    name, _, key = entry.partition("=")
    if key.strip("=") and not entry.startswith(KEY_PREFIX):  # padding of a base64 key is not a name's end
        return f"{name}={hash_key(key)}"
    return f"{DEFAULT_CLIENT}={hash_key(entry)}"


def _known(key: str, valid: Mapping[str, object], shown: str = "") -> str:
    if key not in valid:
        hint = nearest(key, [*valid, "clients"], RENAMED) or f" (valid: {', '.join(valid)})"
        raise ConfigError(f"unknown option '{shown or key}'{hint}")
    return key


def _default_of(option: Field[Any]) -> object:
    return (
        option.default_factory()
        if option.default is MISSING and callable(option.default_factory)
        else option.default
    )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(option: Field[Any], given: object, where: str, *, strict: bool) -> object:
    """Return ``given`` as the option's type. Unless ``strict``, texts stand for any type."""
    kind = option.type
    if isinstance(given, str) and not strict:
        if kind is bool:
            given = SWITCH_WORDS.get(given.lower(), given)
        elif get_origin(kind) is tuple:
            given = given.replace(",", " ").split()
    value = _convert(given, kind, strict=strict)
    if value is None:
        wrong = "this" if option.metadata["secret"] else _shortened(given)
        raise ConfigError(f"option '{option.name}' takes {_takes(option)}, not {wrong}{where}")
    low = option.metadata["low"]
    if low is not None and value < low:
        raise ConfigError(f"option '{option.name}' must be at least {low:g}, not {_shortened(given)}{where}")
    return value


def _convert(given: object, kind: Any, *, strict: bool = True) -> Any:
    """Return ``given`` as ``kind``; None if it is none, or a number that is not finite."""
    try:
        value = msgspec.convert(given, kind, strict=strict)
    except (msgspec.ValidationError, OverflowError, ValueError):
        return None
    return None if isinstance(value, float) and not isfinite(value) else value


def _shortened(given: object) -> str:
    """Return what was given as a message may show it: numbers and texts can have thousands of digits."""
    try:
        return reprlib.repr(given)
    except ValueError:  # Python refuses to write out integers that large
        return "such a large number"


def _takes(option: Field[Any]) -> str:
    if get_origin(option.type) is tuple:
        return "a list of texts"
    words = {bool: "on or off", int: "a whole number", float: "a number", str: "a text"}
    return words[option.type]  # type: ignore[index] # annotations are real types in this module


def _clients(given: object) -> Mapping[str, ClientConfig]:
    if not isinstance(given, dict):
        raise ConfigError("option 'clients' takes tables: [clients.NAME]")
    found = {}
    for name, table in given.items():
        if not isinstance(table, dict):
            raise ConfigError(f"option 'clients.{name}' takes a table: [clients.{name}]")
        for key in table:
            if key not in {"weight", "api_keys"}:
                raise ConfigError(
                    f"unknown option 'clients.{name}.{key}'{nearest(key, ['weight', 'api_keys'])}"
                    " (valid: weight, api_keys)"
                )
        weight = _convert(table.get("weight", 1.0), float)
        if weight is None or weight <= 0:
            given_weight = _shortened(table["weight"])
            raise ConfigError(f"option 'clients.{name}.weight' takes a number above 0, not {given_weight}")
        keys = _convert(table.get("api_keys", []), tuple[str, ...])
        if keys is None:
            raise ConfigError(f"option 'clients.{name}.api_keys' takes a list of texts")
        found[name] = ClientConfig(weight, tuple(hash_key(key) for key in keys))
    return types.MappingProxyType(found)


def _checked(config: Config) -> Config:
    """Check what needs more than a type. Raises ``ConfigError``."""
    addresses = set()
    for number, url in enumerate(config.worker_urls, 1):
        try:
            addresses.add(parse_address(url)._replace(authority=b""))
        except ValueError as error:
            raise ConfigError(
                f"option 'worker_urls', address {number}: {error}; write http://HOST:PORT or https://HOST:PORT,"
                " and give what an engine wants to see in its Authorization field as 'worker_api_key'"
            ) from None
    if len(addresses) < len(config.worker_urls):
        raise ConfigError("option 'worker_urls' names an engine twice")
    if not (config.worker_api_key.isascii() and config.worker_api_key.isprintable()):
        raise ConfigError(
            "option 'worker_api_key' has characters that no header field has, such as a line's end"
        )
    for network in config.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(f"option 'trusted_proxies': {error}") from None
    for status in config.retry_statuses:
        if not (status.isascii() and status.isdigit() and 400 <= int(status) <= 599):
            raise ConfigError(f"option 'retry_statuses' takes codes from 400 to 599, not {status!r}")
    if config.log_level not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"option 'log_level' takes debug, info, warning or error, not {config.log_level!r}")
    if 0 < len(config.prefix_secret) < _SECRET_CHARS:
        raise ConfigError(f"option 'prefix_secret' takes a text of at least {_SECRET_CHARS} characters")
    if config.port > 65_535:
        raise ConfigError(f"option 'port' must be at most 65535, not {config.port}")
    _check_clients(config)
    return config


def _check_clients(config: Config) -> None:
    """Check names and that no key has two owners. Raises ``ConfigError``."""
    for name in [*config.clients, *(owner for _, owner in key_owners(config))]:
        if not (0 < len(name) <= MOST_NAME and name.isprintable() and name == name.strip()):
            raise ConfigError(
                f"a client's name has 1 to {MOST_NAME} printable characters and no space at its ends,"
                f" not {_shortened(name)}"
            )
    owners: dict[str, str] = {}
    for key, client in key_owners(config):
        if owners.setdefault(key, client) != client:
            raise ConfigError(f"clients '{owners[key]}' and '{client}' have the same API key")


def key_owners(config: Config) -> list[tuple[str, str]]:
    """Return (key hash, client) for every configured key."""
    found = [(key, name) for name, client in config.clients.items() for key in client.api_keys]
    for entry in config.api_key:
        name, _, key = entry.partition("=")
        found.append((key, name))
    return found


def reference() -> str:
    """Return the configuration reference as Markdown."""
    lines = [
        "# Configuration",
        "",
        "<!-- Generated by scripts/reference.py from src/fairlead/config.py. -->",
        "",
        "Every option of `fairlead serve` can be given in a TOML file (`--config FILE`, `FAIRLEAD_CONFIG`),",
        "as an environment variable `FAIRLEAD_<NAME>`, or as a flag `--<name>`, with dashes for underscores.",
        "Flags win over variables, and variables over the file. In a variable, spaces or commas separate the",
        "items of a list. An unknown name, a wrong type or a value out of range stops the start with a",
        "message that names it.",
        "",
        "| option | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, option in OPTIONS.items():
        kind = "list" if get_args(option.type) else option.type.__name__  # type: ignore[union-attr]
        default = _default_of(option)
        shown = f"`{_show(default)}`" if default not in {(), ""} else "none"
        lines.append(f"| `{name}` | {kind} | {shown} | {option.metadata['help']} |")
    lines += [
        "",
        "Clients are described in the file only:",
        "",
        "```toml",
        "[clients.alice]",
        "weight = 2.0            # twice the share of a client of weight 1, the default",
        'api_keys = ["sha256:..."]  # of the key: printf %s "$KEY" | sha256sum',
        "",
        "[clients.batch-jobs]",
        "weight = 0.5",
        "```",
        "",
    ]
    return "\n".join(lines)
