"""What must hold for any trace, checked the slow and plain way."""

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey
from fairlead.trace.model import Session, Trace, Turn


def check_trace(trace: Trace) -> list[Session]:
    """Assert what ``Trace`` promises and return its sessions."""
    sessions = list(trace.sessions())
    assert sum(len(session.turns) for session in sessions) == trace.requests
    starts = [session.at for session in sessions]
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] - starts[0] == trace.duration_us
    assert {session.client for session in sessions} <= set(trace.clients)
    assert trace.misbehaving <= set(trace.clients)
    assert all(weight > 0 for weight in trace.clients.values())
    for session in sessions:
        assert session.turns
        for number, turn in enumerate(session.turns):
            check_turn(turn, number, trace.block_tokens)
    check_chains(sessions)
    return sessions


def check_turn(turn: Turn, number: int, block: int) -> None:
    assert turn.prompt_tokens >= 1
    assert turn.output_tokens >= 1
    assert -1 <= turn.after < number
    assert turn.delay_us >= 0
    assert len(turn.keys) == turn.prompt_tokens // block
    if turn.output_keys:
        whole = turn.prompt_tokens + turn.output_tokens
        assert len(turn.output_keys) == whole // block - turn.prompt_tokens // block


def check_chains(sessions: list[Session]) -> None:
    """A key names its whole prefix: wherever it occurs, the same keys are before it."""
    before: dict[BlockKey, tuple[int, BlockKey]] = {}
    for session in sessions:
        for turn in session.turns:
            previous = -1
            for place, key in enumerate((*turn.keys, *turn.output_keys)):
                assert 0 <= key < 1 << BLOCK_KEY_BITS
                assert before.setdefault(key, (place, previous)) == (place, previous)
                previous = key


def shared_blocks(one: Turn, other: Turn) -> int:
    """Count equal keys from the front, and assert that none is equal behind."""
    count = 0
    while count < min(len(one.keys), len(other.keys)) and one.keys[count] == other.keys[count]:
        count += 1
    assert not set(one.keys[count:]) & set(other.keys[count:])
    return count


def quotes(turn: Turn, parent: Turn) -> bool:
    """Whether a prompt starts with the parent's prompt and answer, by keys and by length."""
    known = (*parent.keys, *parent.output_keys)
    longer = turn.prompt_tokens > parent.prompt_tokens + parent.output_tokens
    return longer and tuple(turn.keys[: len(known)]) == known
