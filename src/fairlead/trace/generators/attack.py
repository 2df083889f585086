"""A client that sends too much, made from the workload itself.

Follows the misbehaving clients of [DLPM], arXiv 2501.14312: one sends more requests, or longer prefixes,
or more complex ones. Ours: its sessions are copies of the workload's own, so that they are of its kind,
with keys of their own, so that they share nothing with anyone else; and its demand is a stated share of
everyone else's, however large the single request is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from heapq import merge
from itertools import islice
from operator import attrgetter
from random import Random
from typing import Literal, get_args

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey, ClientId, Costs
from fairlead.core.params import nearest
from fairlead.trace.generators.keys import LIMIT, STEP, Keys, Prompt
from fairlead.trace.model import Session, Trace, TraceError, Turn

Kind = Literal["more", "longer", "complex"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ATTACKER: ClientId = "attacker"
"""What the client is called, unless the caller says otherwise."""

_COSTS = Costs()
_FRONTS = 1_024
"""Prefixes that are kept, so that a popular one is not made for each of its requests."""
_SCATTER = 0x5851F42D4C957F2D
"""Odd and large: prefixes of neighbouring keys start far apart, so that no two of them overlap."""
_SAMPLE = 2_000
"""Sessions that are looked at to learn how long the workload's prompts are."""


def with_attacker(
    trace: Trace,
    kind: Kind = "more",
    share: float = 0.8,
    *,
    at: int = 0,
    factor: float = 4.0,
    seed: int = 1,
    name: ClientId = ATTACKER,
) -> Trace:
    """Return ``trace`` with one client more, whose demand is ``share`` of all others' from ``at`` on.

    ``kind``: "more" copies sessions as they are; "longer" puts a prefix in front of each prompt that makes
    it ``factor`` times as long as the workload's mean; "complex" makes each answer ``factor`` times as
    long. Longer requests are fewer: the demand is the same for each kind. Demand is counted as prompt
    tokens plus twice the output tokens, with nothing cached. ``at`` is in microseconds from the start.

    Sessions stay a stream. One pass is made over the trace now, to count. Raises ``TraceError`` for an
    unknown kind, a share, factor or time out of range, and a name that a client already has.
    """
    if kind not in KINDS:
        raise TraceError(f"unknown attack '{kind}' (valid: {', '.join(KINDS)}){nearest(kind, KINDS)}")
    if not 0 < share <= 100 or not 1 <= factor <= 1_000 or at < 0:
        raise TraceError(
            "an attack takes a share in (0, 100], a factor in [1, 1000] and a time of at least 0"
        )
    if name in trace.clients:
        raise TraceError(f"the trace already has a client called '{name}'; name the attacker otherwise")
    prefix = _prefix_blocks(trace, factor) if kind == "longer" else 0
    stretch = factor if kind == "complex" else 1.0

    def attack() -> Iterator[Session]:
        copier = _Copier(trace.block_tokens, prefix, stretch, f"{seed}/{name}")
        return _attack(trace, copier, share, at, Random(f"{seed}/{name}/attack"), name)

    def both() -> Iterator[Session]:
        return merge(trace.sessions(), attack(), key=attrgetter("at"))

    turns, last = 0, -1
    for session in attack():
        turns += len(session.turns)
        last = session.at
    if not turns:
        raise TraceError(f"the trace is too short for an attack of share {share:g} from {at} us on")
    told = f"attack/{trace.identity}/{kind}/{share!r}/{at}/{factor!r}/{seed}/{name}"
    return replace(
        trace,
        name=f"{trace.name}+{name}",
        sessions=both,
        requests=trace.requests + turns,
        duration_us=max(trace.duration_us, last - next(trace.sessions()).at),
        clients={**trace.clients, name: 1.0},
        misbehaving=trace.misbehaving | {name},
        labels=(*trace.labels, f"client '{name}' added: {share:g} of all others' demand, {kind} (synthetic)"),
        identity=blake2b(told.encode(), digest_size=16).hexdigest(),
    )


def _attack(
    trace: Trace, copier: "_Copier", share: float, at: int, rng: Random, name: ClientId
) -> Iterator[Session]:
    """Yield copies whenever the attacker owes demand, each somewhere before the next session starts."""
    owed: float | None = None
    number = 0
    source = trace.sessions()
    session = next(source, None)
    while session is not None:
        following = next(source, None)
        if session.at >= at:
            demand = _demand(session.turns)
            if owed is None:
                owed = -demand / 2  # half a session behind, so that whole sessions do not add up to more
            owed += share * demand
            copies: list[Sequence[Turn]] = []
            while owed > 0:
                copies.append(copier.copy(session.turns, len(copies)))
                owed -= _demand(copies[-1])
            gap = following.at - session.at if following else 0
            for moment, turns in zip(sorted(rng.random() for _ in copies), copies, strict=True):
                called = f"{name}-{number}" if session.name else ""
                yield Session(session.at + int(moment * gap), name, turns, called)
                number += 1
        session = following


def _demand(turns: Sequence[Turn]) -> int:
    extend, output = _COSTS
    return sum(extend * turn.prompt_tokens + output * turn.output_tokens for turn in turns)


def _prefix_blocks(trace: Trace, factor: float) -> int:
    """Return how many blocks in front make prompts ``factor`` times as long on average."""
    tokens = count = 0
    for session in islice(trace.sessions(), _SAMPLE):
        tokens += sum(turn.prompt_tokens for turn in session.turns)
        count += len(session.turns)
    return round((factor - 1) * tokens / max(1, count) / trace.block_tokens)


class _Copier:
    """Makes turns of the same shape with keys of their own.

    A copied key is the original's with some bits flipped, always the highest: copies share with each
    other what the originals share, nothing with a generated workload, and nothing (but for a chance of
    one in some 10 ** 17 a pair) with one whose keys are hashes.
    """

    def __init__(self, block_tokens: int, prefix: int, stretch: float, seed: str) -> None:
        self._keys = Keys(block_tokens)
        self._prefix = prefix
        self._stretch = stretch
        self._seed = seed
        self._masks: dict[str, int] = {}
        self._fronts: dict[BlockKey, list[BlockKey]] = {}

    def copy(self, turns: Sequence[Turn], number: int) -> list[Turn]:
        """Return the copy of a session's turns; copies of different ``number`` share nothing."""
        if self._stretch > 1:
            return self._stretched(turns, number)
        if not self._prefix:
            return [self._renamed(turn, number) for turn in turns]
        return [self._prefixed(turn, number, root) for turn, root in zip(turns, _roots(turns), strict=True)]

    def _mask(self, use: str) -> int:
        found = self._masks.get(use)
        if found is None:
            found = self._masks[use] = LIMIT | Random(f"{self._seed}/{use}").getrandbits(BLOCK_KEY_BITS - 1)
        return found

    def _flipped(self, keys: Iterable[BlockKey], use: str) -> tuple[BlockKey, ...]:
        mask = self._mask(use)
        return tuple([key ^ mask for key in keys])

    def _renamed(self, turn: Turn, number: int) -> Turn:
        use = f"copies/{number}"
        return turn._replace(
            keys=self._flipped(turn.keys, use), output_keys=self._flipped(turn.output_keys, use)
        )

    def _prefixed(self, turn: Turn, number: int, root: BlockKey) -> Turn:
        """Return a copy with ``prefix`` blocks in front, the same ones for prompts that start alike."""
        root ^= self._mask(f"fronts/{number}")
        front = self._fronts.get(root)
        if front is None:
            if len(self._fronts) == _FRONTS:
                self._fronts.clear()
            first = root * _SCATTER
            front = [LIMIT + (first + i * STEP) % LIMIT for i in range(self._prefix)]
            self._fronts[root] = front
        copy = self._renamed(turn, number)
        return copy._replace(
            prompt_tokens=turn.prompt_tokens + self._prefix * self._keys.block_tokens,
            keys=(*front, *copy.keys),
        )

    def _stretched(self, turns: Sequence[Turn], number: int) -> list[Turn]:
        """Return copies with longer answers, which make the prompts that quote them longer."""
        made: list[Turn] = []
        answered: list[Prompt] = []
        followed = {turn.after for turn in turns}
        same: dict[tuple[int, int, tuple[BlockKey, ...]], Prompt] = {}
        for index, turn in enumerate(turns):
            alike = turn.after, turn.prompt_tokens, tuple(turn.keys)
            prompt = same.get(alike)
            if prompt is None:
                if turn.after >= 0 and _quotes(turn, turns[turn.after]):
                    parent = turns[turn.after]
                    said = turn.prompt_tokens - parent.prompt_tokens - parent.output_tokens
                    prompt = self._grow(answered[turn.after], said)
                else:
                    prompt = Prompt(turn.prompt_tokens, self._flipped(turn.keys, f"copies/{number}"))
                same[alike] = prompt
            output = round(turn.output_tokens * self._stretch)
            known = bool(turn.output_keys) or index in followed
            answered.append(self._grow(prompt, output) if known else prompt)
            answer = answered[-1].keys[len(prompt.keys) :] if turn.output_keys else ()
            made.append(
                turn._replace(
                    prompt_tokens=prompt.tokens, output_tokens=output, keys=prompt.keys, output_keys=answer
                )
            )
        return made

    def _grow(self, prompt: Prompt, tokens: int) -> Prompt:
        grown = self._keys.grow(prompt, tokens)
        own = len(prompt.keys)
        return Prompt(grown.tokens, (*prompt.keys, *self._flipped(grown.keys[own:], "answers")))


def _roots(turns: Sequence[Turn]) -> list[BlockKey]:
    """Return what each prompt starts with: its first key, or that of a later turn that quotes it."""
    owners: list[int] = []
    first: dict[int, BlockKey] = {}
    for number, turn in enumerate(turns):
        quoting = turn.after >= 0 and _quotes(turn, turns[turn.after])
        owners.append(owners[turn.after] if quoting else number)
        start = turn.keys or turn.output_keys
        if start:
            first.setdefault(owners[-1], start[0])
    return [first.get(owner, 0) for owner in owners]


def _quotes(turn: Turn, parent: Turn) -> bool:
    """Whether a prompt starts with another's prompt and answer. Keys chain, so the last one tells."""
    if turn.prompt_tokens < parent.prompt_tokens + parent.output_tokens:
        return False
    blocks = len(parent.keys) + len(parent.output_keys)
    last = parent.output_keys or parent.keys
    return not last or (len(turn.keys) >= blocks and turn.keys[blocks - 1] == last[-1])
